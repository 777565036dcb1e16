"""How long a core audit takes and how much memory: 100,000 images' pooled features and 5,000 images' patch features, three attributes.

Two audits, as one would run them: features alone (384 wide, of the audited encoder, of pixels and of an untrained twin; 40,000 people, two
hospitals, a task, two visits), and an encoder with its store for what needs images or patch features (14 x 14 patches of 384). The time
that the encoder's forwards take is measured and taken off, as they depend on its size; the one used here has a single block. Reading
text in images (``rapidocr``) is a network's forward, too, and its images are a setting: 100 here.

    python benchmarks/audit_speed.py [--quick] [--threads 2] [--only CHECK ...] [--work out/audit_speed] --json FILE

Rows of ``--json``: {"measure", "input", "ours", "unit", "target", "passed"}; a row per check, the sum, and the peak of each audit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

ROWS, WIDTH, PEOPLE, IMAGES, SIDE, PATCH = 100_000, 384, 40_000, 5000, 224, 16
MINUTES, GIB = 45.0, 8.0
ATTRIBUTES = ("sex", "age", "ethnicity")
POOLED = ("composition", "duplicates", "site", "lodo", "subgroups", "attribute", "use", "reidentification", "membership", "capability")
SHOWN = ("provenance", "curation", "overlap", "text", "dense", "shortcut", "maps", "declaration")


@dataclass(kw_only=True)
class Clock:
    """Seconds by check, the encoder's forwards taken off.

    Attributes:
        spent: Seconds by check.
        forwards: Seconds in the encoder so far.
    """

    spent: dict[str, float] = field(default_factory=dict)
    forwards: float = 0.0
    _before: float = 0.0
    _inside: bool = False

    def told(self, name: str, seconds: float | None) -> None:
        """A check begins, or ends after so many seconds."""
        if seconds is None:
            self._before = self.forwards
        else:
            self.spent[name] = seconds - (self.forwards - self._before)
            print(f"{name:<20}{self.spent[name]:8.1f} s", file=sys.stderr, flush=True)

    def counting(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The same method, whose time counts as the encoder's; calls within calls count once."""

        @wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return forward(*args, **kwargs)
            self._inside, began = True, time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside = False
                self.forwards += time.perf_counter() - began

        return timed


def pooled(num: int, people: int) -> Any:
    """An ``AuditSet`` of low-rank features with some of everything in them, as trained encoders give them."""
    import numpy as np

    from dinodomain.audit import AuditSet

    generator = np.random.default_rng(0)
    person = np.sort(generator.integers(0, people, num))
    sex, ethnicity, site = (generator.integers(0, count, people)[person] for count in (2, 4, 2))
    age = generator.normal(60, 12, people)[person]
    finding = generator.random(num) < 0.2 + 0.1 * site
    told = np.stack([sex, ethnicity == 1, site, (age - 60) / 12, finding], axis=1)
    spectrum = np.arange(1, WIDTH + 1) ** -0.7

    def features(strength: float) -> np.ndarray:
        rows = 0.7 * (generator.normal(size=(people, WIDTH))[person] + generator.normal(size=(num, WIDTH)))
        rows[:, 5:10] += strength * told
        return (rows * spectrum).astype(np.float32)

    columns = {
        "sex": np.array(["F", "M"])[sex], "age": np.round(age), "ethnicity": np.array(list("ABCD"))[ethnicity],
        "site": np.array(["north", "south"])[site], "finding": np.where(finding, "yes", "no"),
        "visit": generator.integers(0, 2, num).astype(str), "split": np.where(person < 0.9 * people, "train", "test"),
    }  # fmt: skip
    return AuditSet(
        features={"audited": features(0.5), "pixels": features(0.2), "untrained": features(0.1)}, columns=columns, split="split",
        units=np.array([f"p{one:06d}" for one in person]), content_hash=np.array([f"{at:016x}" for at in generator.permutation(num)]),
        sources=np.arange(num), holdout=person % 50 == 0, members_known=True,
    )  # fmt: skip


def images(num: int, folder: Path) -> tuple[Path, Path, Path]:
    """A store of images with a sign in half of them, an encoder of one block, and a CSV; what is there from a run before is kept."""
    import numpy as np
    import torch

    from dinodomain.checkpoint import save_backbone
    from dinodomain.model import Backbone, ModelPlan
    from dinodomain.store import array_record, build_store, open_store
    from dinodomain.testing import SyntheticImages
    from dinodomain.types import Normalisation

    domain, path, generator = SyntheticImages(size=(SIDE, SIDE)), folder / f"store{num}", np.random.default_rng(0)
    names = [f"i{at:05d}" for at in range(num)]

    def image(at: int) -> np.ndarray:
        pixels = np.kron(generator.integers(40, 160, (3, SIDE // 4, SIDE // 4)), np.ones((4, 4))).astype(np.uint8)
        if at % 2:
            pixels[:, 32:64, 64:96] = 255 * (np.indices((32, 32)).sum(axis=0) // 4 % 2)
        return pixels

    if not (path / "manifest.json").exists():
        records = {name: array_record(image(at), channels=tuple(domain.channels), layout="whole") for at, name in enumerate(names)}
        build_store(path, records, domain=domain.name, units={name: name for name in names})
    torch.manual_seed(0)
    store, weights, table = open_store(path), folder / "encoder.safetensors", folder / f"table{num}.csv"
    numbers = Normalisation(mode="domain", channels=store.channels, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)
    plan = ModelPlan(dim=WIDTH, depth=1, heads=6, patch=PATCH, registers=1, init="xavier", layer_scale=1.0)
    backbone = Backbone.create(plan, ndim=2, image_size=SIDE, normalisation=numbers, domain=domain.name)
    save_backbone(weights, backbone, history={"parents": {"store": store.digest}, "digest": "untrained"})
    with table.open("w", newline="") as handle:
        lines = csv.writer(handle)
        lines.writerow(["id", *ATTRIBUTES, "site", "finding"])
        for at, name in enumerate(names):
            site = generator.integers(0, 2)
            told = ("FM"[at % 2], round(generator.normal(60, 12)), "ABCD"[generator.integers(0, 4)], ("north", "south")[site])
            lines.writerow([name, *told, ("no", "yes")[int(generator.random() < 0.2 + 0.1 * site)]])
    return path, weights, table


def audit_pooled(num: int, clock: Clock, names: Sequence[str]) -> None:
    """The checks that need features only."""
    from dinodomain.audit import Asked, run_checks

    asked = Asked(attributes=ATTRIBUTES, domains=("site",), task="finding", study="visit")
    run_checks(pooled(num, 2 * num // 5), asked=asked, names=names, progress=clock.told)


def audit_shown(num: int, clock: Clock, names: Sequence[str], folder: Path) -> None:
    """The checks that need images, patch features or lineage."""
    from dinodomain.audit import AuditPlan, run_checks
    from dinodomain.audit.load import from_store
    from dinodomain.model import Backbone
    from dinodomain.testing import SyntheticImages

    store, weights, table = images(num, folder)
    for method in ("forward", "encode", "encode_alone"):
        setattr(Backbone, method, clock.counting(getattr(Backbone, method)))
    plan = AuditPlan(
        checkpoint=str(weights), store=str(store), labels=str(table), out=str(folder / "report"), task="finding", attributes=ATTRIBUTES,
        domains=("site",), ocr_images=100,
    )  # fmt: skip
    subject = from_store(plan, SyntheticImages(size=(SIDE, SIDE)))
    run_checks(
        subject.data, asked=plan.asked, effort=plan.effort, names=names, record=subject.record, observer=subject.observer,
        trail=subject.trail, progress=clock.told,
    )  # fmt: skip


def part(which: str, given: argparse.Namespace) -> dict[str, Any]:
    """One audit, in this process: seconds by check, those of the forwards, peak memory."""
    import torch

    torch.set_num_threads(given.threads)
    clock = Clock()
    names = [name for name in (POOLED if which == "pooled" else SHOWN) if not given.only or name in given.only]
    if names and which == "pooled":
        audit_pooled(2000 if given.quick else ROWS, clock, names)
    elif names:
        audit_shown(120 if given.quick else IMAGES, clock, names, given.work)
    return {"spent": clock.spent, "forwards": clock.forwards, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def rows(found: dict[str, dict[str, Any]], quick: bool) -> Iterator[dict[str, Any]]:
    """The table."""
    data = "a small set, which proves nothing" if quick else f"{ROWS:,} x {WIDTH} pooled, {IMAGES:,} x 196 x {WIDTH} patches, 3 attributes"

    def row(measure: str, ours: float, unit: str, most: float | None = None) -> dict[str, Any]:
        passed = None if most is None else ours <= most
        return {"measure": measure, "input": data, "ours": round(ours, 2), "unit": unit, "target": most, "passed": passed}

    for which, told in found.items():
        yield from (row(f"{name} ({which})", seconds, "s") for name, seconds in told["spent"].items())
        yield row(f"forwards ({which})", told["forwards"], "s")
        yield row(f"peak memory ({which})", told["gib"], "GiB", GIB)
    yield row("core audit", sum(sum(told["spent"].values()) for told in found.values()) / 60, "min", MINUTES)


def main() -> None:
    """Both audits, each in a process of its own, so that each has its own peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 rows and 120 images: proves that it runs, and nothing else")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], metavar="CHECK")
    parser.add_argument("--work", type=Path, default=Path("out/audit_speed"), help="folder for the store")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--part", choices=("pooled", "shown"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.part:
        print(json.dumps(part(given.part, given)))
        return
    threads = {f"{library}_NUM_THREADS": str(given.threads) for library in ("OMP", "OPENBLAS", "MKL")}
    found = {}
    for which in ("pooled", "shown"):
        command = [sys.executable, __file__, *sys.argv[1:], "--part", which]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **threads})
        found[which] = json.loads(done.stdout.strip().splitlines()[-1])
    table = list(rows(found, given.quick))
    for row in table:
        print(f"{row['measure']:<32}{row['ours']:>10} {row['unit']}" + (f"  (at most {row['target']})" if row["target"] else ""))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
