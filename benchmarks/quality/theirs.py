"""The peer's side: a process of its own pretrains, its weights are scored as ours are; or why it cannot.

Where it may lack what the input needs it is asked all the same, as its documentation says; what it answers is the reason.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers.lightly_pretrain import Request, describe

from quality.cases import BOTTLENECK, COMMON, HIDDEN, PROTOTYPES, QUICK_STEPS, SCALES, Case
from quality.data import BANDS, REAL, Prepared

BENCHMARKS = Path(__file__).parents[1]
MANY_BANDS: Mapping[str, Any] = {
    "num_channels": len(BANDS), "color_jitter": None, "random_gray_scale": None, "solarize": None, "global_view_1": {"solarize": None},
    "normalize": {"mean": [0.5] * len(BANDS), "std": [0.25] * len(BANDS)},
}  # fmt: skip
"""Arguments of its transform for another number of channels than 3."""


class NotPossible(Exception):
    """The peer refused the input."""


def request(
    case: Case, method: str, data: Prepared, out: Path, seed: int, minutes: float | None, changes: Mapping[str, Any],
    pace: float | None = None,
) -> Request:  # fmt: skip
    """What it is asked to do, as ours is; ``changes`` are fields of the request; no minutes: ``QUICK_STEPS``."""
    views, model = case.plan["views"], COMMON["model"]
    crops = {name: views[name] for name in ("global_size", "local_size", "num_local")}
    steps = QUICK_STEPS if minutes is None else None
    return Request(
        method=method.removeprefix("lightly_"), images=str(data.images.resolve()), out=str(out.resolve()), minutes=minutes or 0.0,
        pace=pace, seed=seed, batch=case.batch, model={name: model[name] for name in ("dim", "depth", "heads", "patch")},
        views={**SCALES, **crops}, head={"prototypes": PROTOTYPES, "hidden": HIDDEN, "bottleneck": BOTTLENECK},
        **{"steps": steps, **case.peer.get(method, {}), **changes},
    )  # fmt: skip


def train(asked: Request) -> dict[str, Any]:
    """Runs it in a process of its own.

    Raises:
        NotPossible: It failed; with the last exception that it told of.
    """
    out = Path(asked.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    file, said = out.with_suffix(".request.json"), out.with_suffix(".log")
    file.write_text(json.dumps(asdict(asked)))
    with said.open("w") as log:
        command = [sys.executable, "-m", "peers.lightly_pretrain", str(file)]
        done = subprocess.run(command, cwd=BENCHMARKS, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ), check=False)
    if done.returncode:
        raise NotPossible(_error(said.read_text(errors="replace")) or f"exit code {done.returncode}")
    answer: dict[str, Any] = json.loads((out / "answer.json").read_text())
    return {name: answer[name] for name in ("steps", "cpu_seconds", "parameters")}


def _error(said: str) -> str:
    """The last exception that it told of; a progress bar may come after it."""
    found = re.findall(r"^[\w.]*(?:Error|Exception)\b.*$", said, re.MULTILINE)
    return re.sub(r"'/[^']*/", "'", found[-1].strip()) if found else ""  # names, not places


def pooled(asked: Request, data: Prepared) -> np.ndarray:
    """Class token and mean patch of every line of the table of labels; all labelled images have one size."""
    from PIL import Image

    images = []
    for row in data.rows():
        found = next(path for path in (data.images / row["id"], data.images / f"{row['id']}.png") if path.is_file())
        with Image.open(found) as image:
            images.append(np.array(image.convert("RGB")))
    return describe(asked, np.stack(images), asked.views["global_size"])


def refusal(asked: Request, case: Case) -> str:
    """What it says to volumes or 12 bands; raises if it takes them after all.

    Raises:
        RuntimeError: It trained: this benchmark has to score it then.
    """
    if case.data == "sentinel2":
        _write_stacks(Path(asked.images))
        os.environ["LIGHTLY_TRAIN_IMAGE_MODE"] = "UNCHANGED"  # as its documentation says for other images than RGB
        asked = replace(asked, transform_args=MANY_BANDS)
    try:
        train(replace(asked, steps=2))
    except NotPossible as problem:
        return str(problem)
    raise RuntimeError(f"{asked.method} takes the data of {case.name!r} now: score it")


def _write_stacks(folder: Path) -> None:
    """Stacks of 12 bands as bytes, the bands of a pixel side by side: the form that image libraries read best."""
    import rasterio

    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((REAL / "sat_multispectral" / "dev" / "s2_ships").glob("*.tif")):
        with rasterio.open(file) as raster:
            bands = np.clip(raster.read() / 4000 * 255, 0, 255).astype(np.uint8)
            profile = {**raster.profile, "dtype": "uint8", "interleave": "pixel", "compress": None, "nodata": None}
        with rasterio.open(folder / file.name, "w", **profile) as made:
            made.write(bands)
