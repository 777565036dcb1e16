"""Multi-crop side by side with what a user would take otherwise: samples per CPU-second and memory of one batch.

Every pipeline makes 2 x 224 + 8 x 96 (volumes: 2 x 96^3 + 8 x 48^3) as batches of float32 from the same decoded images in memory: arrays,
PIL images or tensors, whichever its own loader would give it. The operations and their rates are the same as far as the peer has them;
the note of a row says what differs. One thread. Rounds are interleaved, rates are medians over rounds, a ratio is the median of the
rounds' own ratios. Images are real where the data is there (``DINODOMAIN_TEST_DATA``), else synthetic. Memory is the peak beyond the
images while one batch is made, per sample, in a process per pipeline. A peer that is not installed gets a row that says so.

    pip install "dinodomain[bench]" && pip install --no-deps dinov2
    python benchmarks/multicrop.py [--quick] [--synthetic] [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import os

# Before anything that reads them: rates are those of one thread.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

import argparse
import importlib
import multiprocessing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peers import images as content
from peers import memory
from peers.common import Images, Pipeline
from peers.package import ours
from readers.measure import Row, line, rates, row

from dinodomain.lineage import write_json
from dinodomain.policy import Jitter, Solarise, ViewPolicy
from dinodomain.views import ViewsPlan

PLANE = ViewPolicy(axes=("NS", "EW"), flip={"NS": 0.5, "EW": 0.5})
RGB = replace(PLANE, solarise=Solarise())
BANDS = replace(PLANE, jitter=Jitter(per_channel=True))
VOLUME = ViewPolicy(axes=("IS", "AP", "LR"), flip={"IS": 0.5, "AP": 0.5, "LR": 0.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way that is not ours.

    Attributes:
        name: For the table.
        build: ``module.function`` in ``peers``; imported only when it is measured.
        note: What differs from ours.
        target: Ratio to reach.
        against: Which of the case's policies ours runs with.
    """

    name: str
    build: str
    note: str
    target: float | None = None
    against: str = "ours"

    def pipeline(self, images: Images) -> Pipeline:
        """Made ready; raises ImportError where the library is missing."""
        module, function = self.build.split(".")
        made: Pipeline = getattr(importlib.import_module(f"peers.{module}"), function)(images)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of input: how to get it, our policies by name, the sizes and the peers."""

    name: str
    images: Callable[[bool, Path | None], Images]
    policies: Mapping[str, ViewPolicy]
    plan: ViewsPlan
    peers: tuple[Peer, ...]


_RGB = {"ours": RGB, "ours, common operations": replace(RGB, gamma=None, noise=None)}
_RGB_PEERS = (
    Peer(name="torchvision v2", build="torchvision_v2.rgb", note="uint8 until the noise, antialiased; image by image", target=3.0),
    Peer(name="kornia", build="kornia_batched.rgb", note="batched; not antialiased", target=4.5),
    Peer(name="albumentations", build="albumentations_cv2.rgb", note="uint8 and lookup tables; area average, cubic where it enlarges"),
    Peer(
        name="lightly-train DINOv2", build="lightly.as_it_comes", target=1.25,
        note="uint8; area average; has saturation, hue and grey, lacks vertical flip, gamma and noise; locals of 96",
    ),
    Peer(
        name="lightly-train DINOv2, common operations", build="lightly.common", against="ours, common operations", target=1.25,
        note="flips, brightness, contrast, blur, solarisation on both sides",
    ),
    Peer(
        name="dinov2 PIL", build="dinov2_pil.as_it_comes", target=4.5,
        note="has saturation, hue and grey, lacks vertical flip, gamma and noise; blurs the first global view never, the second at 0.9",
    ),
)  # fmt: skip
_PLAIN = replace(BANDS, jitter=None, gamma=None, noise=None)
CASES = (
    Case(
        name="RGB uint8 384^2", images=lambda quick, data: content.photographs(4 if quick else 16, 384, data),
        policies=_RGB, plan=ViewsPlan(), peers=_RGB_PEERS,
    ),
    Case(
        name="RGB uint8 512^2", images=lambda quick, data: content.photographs(4 if quick else 16, 512, data),
        policies=_RGB, plan=ViewsPlan(), peers=_RGB_PEERS,
    ),
    Case(
        name="12-band uint16 256^2", images=lambda quick, data: content.scenes(4 if quick else 16, 256, data),
        policies={"ours": BANDS, "ours, crop, flip, blur": _PLAIN}, plan=ViewsPlan(),
        peers=(
            Peer(name="torchvision v2 float", build="torchvision_v2.bands", note="float32, antialiased; image by image", target=2.2),
            Peer(name="kornia", build="kornia_batched.bands", note="batched; not antialiased", target=2.2),
            Peer(
                name="albumentations", build="albumentations_cv2.bands", target=2.2,
                note="float32; area average, cubic where it enlarges; rejects uint16",
            ),
            Peer(
                name="lightly-train DINOv2, crop, flip, blur", build="lightly.bands", against="ours, crop, flip, blur", target=2.2,
                note="float32, rejects uint16; area average; has no change of intensity for 12 channels, ours does none here",
            ),
        ),
    ),
    Case(
        name="int16 160^3", images=lambda quick, data: content.volumes(1 if quick else 4, 160, data),
        policies={"ours": VOLUME}, plan=ViewsPlan(global_size=96, local_size=48),
        peers=(
            Peer(name="MONAI", build="monai_volume.plain", note="crop + Resize, not antialiased", target=2.7),
            Peer(name="MONAI antialiased", build="monai_volume.antialiased", note="crop + Resize(anti_aliasing=True)"),
            Peer(name="torchio", build="torchio_volume.volumes", note="crop sliced by hand, Resize, not antialiased", target=8.0),
        ),
    ),
)  # fmt: skip
PIL_CANNOT = "PIL has no images of 12 channels or uint16"


def build(case: Case, images: Images) -> tuple[dict[str, Pipeline], dict[str, str]]:
    """All pipelines of a case by name, and why others are missing."""
    made = {name: ours(images, policy, case.plan) for name, policy in case.policies.items()}
    missing: dict[str, str] = {}
    for peer in case.peers:
        try:
            made[peer.name] = peer.pipeline(images)
        except ImportError as problem:
            missing[peer.name] = f"not installed ({problem})"
    return made, missing


def speed(case: Case, quick: bool, data: Path | None) -> list[Row]:
    """Samples per CPU-second of all pipelines of a case, round by round in turn, after one warm-up each."""
    images = case.images(quick, data)
    runs, missing = build(case, images)
    for run in runs.values():
        run(0)
    found = rates({name: (lambda turn, run=run: run(turn + 1)) for name, run in runs.items()}, 3 if quick else 9)
    given = f"{case.name}, {images.kind}"
    rows = [_row("multi-crop", given, "samples/CPU-s", peer, found, missing, peer.target) for peer in case.peers]
    if "12-band" in case.name:
        rows.append(_absent("multi-crop", given, "samples/CPU-s", found["ours"], "dinov2 PIL", PIL_CANNOT, None))
    return rows


def memory_rows(case: Case, quick: bool, data: Path | None) -> list[Row]:
    """Peak memory of all pipelines of a case, each in a fresh process, so that no allocator remembers another's batch."""
    wanted = [*case.policies, *(peer.name for peer in case.peers)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {name: pool.apply(peak, (case.name, name, quick, data)) for name in wanted}
    found = {name: [value] for name, value in peaks.items() if isinstance(value, float)}
    missing = {name: value for name, value in peaks.items() if isinstance(value, str)}
    kind = "synthetic" if data is None else "real"
    return [_row("peak memory per sample", f"{case.name}, {kind}", "MB", peer, found, missing, None) for peer in case.peers]


def peak(name: str, pipeline: str, quick: bool, data: Path | None) -> float | str:
    """In a process of its own: MB per sample, or why there is no number."""
    torch.set_num_threads(1)
    quiet()
    case = next(case for case in CASES if case.name == name)
    images = case.images(quick, data)
    if pipeline in case.policies:
        return memory.peak_megabytes(ours(images, case.policies[pipeline], case.plan), 3)
    peer = next(peer for peer in case.peers if peer.name == pipeline)
    try:
        return memory.peak_megabytes(peer.pipeline(images), 3)
    except ImportError as problem:
        return f"not installed ({problem})"


def _row(
    measure: str, given: str, unit: str, peer: Peer, found: Mapping[str, list[float]], missing: Mapping[str, str], target: float | None
) -> Row:
    if peer.name in missing:
        return _absent(measure, given, unit, found[peer.against], peer.name, missing[peer.name], target)
    return {**row(measure, given, found[peer.against], peer.name, found[peer.name], unit, target), "note": peer.note}


def _absent(measure: str, given: str, unit: str, own: list[float], peer: str, why: str, target: float | None) -> Row:
    """A row for a peer that cannot take part."""
    return {**row(measure, given, own, peer, [0.0] * len(own), unit, target), "peer_value": why, "ratio": None, "note": why}


def show(rows: list[Row]) -> None:
    """Prints rows of one measure and input under one heading."""
    if rows:
        print(f"\n{rows[0]['measure']}: {rows[0]['input']}, {rows[0]['rounds']} rounds\n  {'ours':>10} | {'peer':>10}")
    for found in rows:
        if found["ratio"] is None:
            print(f"  {found['ours']:10.2f} | {'-':>10} {found['unit']:16} | {found['peer']}: {found['note']}", flush=True)
        else:
            print(f"{line(found)} ({found['note']})", flush=True)


def quiet() -> None:
    """Warnings of peers about what nothing here uses."""
    for module in ("monai", "albumentations", "kornia", "torchio", "lightly_train", "dinov2", "torchvision", "rasterio"):
        warnings.filterwarnings("ignore", module=module)


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and rounds: shows that it runs, not how fast")
    parser.add_argument("--synthetic", action="store_true", help="made-up images even where real ones are there")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    data = None if args.synthetic else content.real_folder()
    rows: list[Row] = []
    for case in CASES:
        if args.only in case.name:
            show(found := speed(case, args.quick, data))
            rows += found
            if memory.measurable():
                show(found := memory_rows(case, args.quick, data))
                rows += found
    if not memory.measurable():
        print("\nno rows of memory: this system does not keep a peak that can be reset (/proc/self/clear_refs)")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
