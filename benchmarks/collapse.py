"""Runs of each recipe that must not fail and runs that are made to: what does the doctor say of each, with its step and its cause?

On UC Merced (``DINODOMAIN_TEST_DATA``) with the network, crops and heads of the recipe ``tiny``: the recipes ``dino``, ``dinov2`` and
``dinov3`` with its Gram stage, their objectives and schedules as they are; a run of ``tiny`` that is left alone; one without centring,
which collapses to one prototype; one whose teacher is not sharpened, which becomes uniform (both as in Caron 2021, figure 7); and one with
an absurd learning rate, which gives NaN, is skipped, counted and stopped. Started again, every run goes on where it stopped.

    python benchmarks/collapse.py [--quick] [--out out/collapse] [--only NAME] [--json FILE]

Prints verdict, findings and the table of each run, and where its figure lies. Rows of ``--json``: {"measure", "input", "ours", "unit",
"target", "detail", "seconds", "figure", "numbers"}; ``ours`` is 1 where the doctor says what is to be said, ``detail`` its verdict,
``numbers`` first, best and last value of each measure.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinodomain import api
from dinodomain.engine import TrainingStopped
from dinodomain.engine.doctor import DoctorPlan, Findings, doctor
from dinodomain.lineage import write_json

REAL = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
BATCH, LONG = 32, 1500
SMALL: Mapping[str, Mapping[str, Any]] = {
    "model": {"dim": 96, "depth": 4, "heads": 4, "patch": 8, "layer_scale": 1.0, "init": "xavier"},
    "views": {"global_size": 32, "local_size": 16, "num_local": 4},
    "objective": {"prototypes": 1024, "head_hidden": 384, "bottleneck": 64},
}
"""What makes a recipe fit for minutes of two cores; LayerScale of 1e-5 leaves the blocks of so short a run as they began."""
SMALL_V3 = {**SMALL, "objective": {**SMALL["objective"], "patch_prototypes": 1024}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run and what is to be said of it.

    Attributes:
        name: Of its folder.
        verdict: What the doctor's verdict must contain.
        cause: What the cause of its first finding must contain; empty for a healthy run.
        change: Keys that provoke it, or make the recipe small.
        recipe: Name of the recipe.
        after: The run that it begins with.
        steps: How long it is trained.
    """

    name: str
    verdict: str
    cause: str = ""
    change: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: str = "tiny"
    after: str = ""
    steps: int = 300


CASES = (
    Case(name="dino", verdict="healthy", recipe="dino", change=SMALL, steps=LONG),
    Case(name="dinov2", verdict="healthy", recipe="dinov2", change=SMALL, steps=LONG),
    Case(name="dinov3", verdict="healthy", recipe="dinov3", change=SMALL_V3, steps=LONG),
    Case(name="dinov3_gram", verdict="healthy", recipe="dinov3_gram", change=SMALL_V3, after="dinov3", steps=500),
    Case(name="healthy", verdict="healthy"),
    Case(
        name="no_centring",
        verdict="collapsed (collapse to ",
        cause="objective.centering=none",
        change={"objective": {"centering": "none", "koleo_weight": 0.0}},
    ),
    Case(
        name="no_sharpening",
        verdict="collapsed (collapse to a uniform teacher",
        cause="teacher temperature",
        change={"objective": {"centering": "softmax", "koleo_weight": 0.0, "teacher_temperature": (1.0, 1.0)}},
    ),
    Case(
        name="absurd_lr",
        verdict="unstable (steps gave NaN or Inf",
        cause="learning rate",
        change={"optim": {"lr": 1e12, "warmup": 0.1}},
    ),
)


def provoke(case: Case, store: Path, out: Path, steps: int) -> Findings:
    """Trains, or goes on, and asks the doctor."""
    run = out / case.name
    change: dict[str, Any] = {
        "loader": {"batch": BATCH},
        "engine": {"steps": steps, "log_every": 100},
        "watch": {"every": max(5, steps // 16)},
        **case.change,
    }
    if case.after:
        change["start"] = {"weights": str(out / case.after)}
    try:
        api.pretrain(domain="aerial", store=str(store), out=str(run), recipe=case.recipe, **change)
    except TrainingStopped as stopped:
        print(f"stopped: {stopped}")
    found = doctor(DoctorPlan(run=str(run)))
    assert isinstance(found, Findings)
    return found


def judged(case: Case, found: Findings, seconds: float) -> dict[str, Any]:
    """Whether the doctor said what was provoked."""
    named = found.verdict.startswith(case.verdict) and (not case.cause or case.cause in found.findings[0].cause)
    return {
        "measure": "doctor names what is to be said", "input": f"UC Merced, {case.name}", "ours": int(named), "unit": "yes", "target": 1,
        "detail": found.verdict, "seconds": round(seconds, 1), "figure": found.figures[0] if found.figures else "",
        "numbers": found.numbers,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="too few steps for a verdict; shows that it runs")
    parser.add_argument("--out", type=Path, default=Path("out/collapse"))
    parser.add_argument("--only", help="one run")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    source = REAL / "ucmerced_rgb128" / "dev"
    if not source.is_dir():
        raise SystemExit("no real data: set DINODOMAIN_TEST_DATA")
    store = chosen.out / "store"
    api.ingest(domain="aerial", source=str(source), store=str(store))
    rows = []
    wanted = {case.name for case in CASES if chosen.only in (None, case.name)}
    for case in CASES:
        if case.name in wanted | {one.after for one in CASES if one.name in wanted}:
            started = time.perf_counter()
            found = provoke(case, store, chosen.out, 30 if chosen.quick else case.steps)
            rows.append(judged(case, found, time.perf_counter() - started))
            print(f"\n== {case.name}\n{found.text()}\n", flush=True)
    print(*(f"{'named ' if row['ours'] else 'MISSED'}  {row['input']}: {row['detail']} ({row['seconds']} s)" for row in rows), sep="\n")
    if chosen.json is not None:
        write_json(chosen.json, rows)


if __name__ == "__main__":
    main()
