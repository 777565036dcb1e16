"""The training step side by side with lightly-train's DINOv2 method: samples per CPU-second, and where the time of ours goes.

Both get the same ready crops, number of prototypes, number format and one thread, and do everything a step does: teacher, masks, student,
DINO, iBOT and KoLeo, backward, clipping, AdamW, teacher update. Softmax centring, as lightly-train ships it. Networks have the same width,
depth, heads, patch and registers. Rounds are interleaved, rates are medians over rounds; a ratio is the median of the rounds' own ratios,
and the lower end of its 95 % interval comes from resampling the rounds. Compilation and one step to warm up come before.

    pip install "dinodomain[bench]"
    python benchmarks/train_step.py [--quick] [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import os

# Before anything that reads it: rates are those of one thread.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerator import batch_of, made_up, training
from readers.measure import Row, line, rates, row

from dinodomain.engine import step
from dinodomain.engine.training import Training
from dinodomain.lineage import write_json
from dinodomain.optim import clip_gradients
from dinodomain.policy import ViewPolicy
from dinodomain.types import Batch, Views
from dinodomain.views import ViewsPlan

PLANE = ViewPolicy(axes=("NS", "EW"), flip={"NS": 0.5, "EW": 0.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One size of network and crops.

    Attributes:
        name: For the table.
        sizes: Width, depth, heads.
        views: Crops.
        prototypes: K.
        batch: Samples per step.
        targets: Way of ours to the ratio that it should reach against lightly-train in the same number format.
    """

    name: str
    sizes: tuple[int, int, int]
    views: ViewsPlan
    prototypes: int
    batch: int
    targets: dict[str, float]


CASES = (
    Case(
        name="ViT-Ti/16", sizes=(192, 12, 3), prototypes=65536, batch=8, views=ViewsPlan(global_size=224, local_size=96, num_local=8),
        targets={"fp32": 1.0, "fp32 compiled": 1.12, "bf16": 1.0, "bf16 compiled": 1.08},
    ),
    Case(
        name="128 x 6", sizes=(128, 6, 4), prototypes=4096, batch=4, views=ViewsPlan(global_size=96, local_size=48, num_local=6),
        targets={"fp32": 1.25, "fp32 compiled": 1.25},
    ),
)  # fmt: skip


def measured(case: Case, quick: bool) -> Iterator[Row]:
    """Rows of one case: rates against lightly-train, then the shares of ours."""
    what = f"{case.name}, {_crops(case.views)}, K={case.prototypes}, batch {case.batch}"
    # A quick look compiles nothing: minutes for a few steps.
    ways = [way for way in case.targets if not (quick and "compiled" in way)]
    state, batch = ready(case, "fp32")
    views = step.render_views(state, batch)
    steps: dict[str, Callable[[int], int]] = {way: own(case, way, views) for way in ways}
    formats = list(dict.fromkeys(way.split()[0] for way in ways))
    why = ""
    try:
        steps |= {f"lightly-train {number}": theirs(case, number, views) for number in formats}
    except ImportError as problem:
        why = f"not installed ({problem})"
    for run in steps.values():
        run(0)
    found = rates({name: (lambda turn, run=run: run(turn + 1)) for name, run in steps.items()}, 2 if quick else 9)
    for way in ways:
        peer, target = f"lightly-train {way.split()[0]}", case.targets[way]
        if why:
            yield {
                **row(f"step, {way}", what, found[way], peer, [0.0], "samples/CPU-s", target),
                "peer_value": why,
                "ratio": None,
                "low": None,
            }
        else:
            made = row(f"step, {way}", what, found[way], peer, found[peer], "samples/CPU-s", target)
            yield {**made, "low": lower_end(found[way], found[peer])}
    yield from shares(state, batch, views, what, 2 if quick else 5)


def ready(case: Case, number: str) -> tuple[Training, Batch]:
    """A run's objects and a batch of made-up images."""
    side = 2 * case.views.global_size
    batch = batch_of(made_up((case.batch, 1, 3, side, side), torch.uint8))
    state = training(case.sizes, case.batch, channels=3, ndim=2, plan=case.views, policy=PLANE, device="cpu", prototypes=case.prototypes)
    state.plan = replace(state.plan, engine=replace(state.plan.engine, precision="bf16" if number == "bf16" else "fp32"))
    return state, batch


def own(case: Case, way: str, views: Views) -> Callable[[int], int]:
    """Our step on ready crops."""
    state, batch = ready(case, way.split()[0])
    if "compiled" in way:
        state.pair.student.backbone.vit.compile_blocks()
        state.pair.teacher.backbone.vit.compile_blocks()

    def run(turn: int) -> int:
        with given(views):
            step.train_step(state, batch)
        return case.batch

    return run


class given:
    """Makes the step take ready crops instead of rendering its own."""

    def __init__(self, views: Views) -> None:
        self._views, self._own = views, step.render_views

    def __enter__(self) -> None:
        step.render_views = lambda *_, **__: self._views

    def __exit__(self, *_: object) -> None:
        step.render_views = self._own


def theirs(case: Case, number: str, views: Views) -> Callable[[int], int]:
    """lightly-train's step on the same crops."""
    from peers.lightly_step import Step, method

    torch.manual_seed(0)
    width, depth, heads = case.sizes
    made = method(width, depth, heads, size=case.views.global_size, prototypes=case.prototypes, batch=case.batch, centering="softmax")
    crops = [crop for group in views.groups for crop in group.pixels.chunk(group.num_views)]
    return Step(made, crops, bf16=number == "bf16")


def shares(state: Training, batch: Batch, views: Views, what: str, rounds: int) -> Iterator[Row]:
    """Share of clipping, AdamW and teacher update in a whole step, and of the views."""
    with given(views):
        whole = seconds(lambda: step.train_step(state, batch), rounds)
    clipped, also = step.sub_modules(state.pair.student)

    def update() -> None:
        clip_gradients(clipped, 3.0, measured=also)
        state.optimizer.step()
        state.pair.update_teacher(0.99)

    note = f"of {whole:.2f} CPU-s"
    yield _share("clip + AdamW + teacher update", what, seconds(update, rounds) / whole, 0.02, note, rounds)
    yield _share("views, beside the step", what, seconds(lambda: step.render_views(state, batch), rounds) / whole, None, note, rounds)


def seconds(act: Callable[[], object], rounds: int) -> float:
    """Median CPU-seconds."""
    act()
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        act()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def lower_end(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Lower end of the 95 % interval of the median of the rounds' ratios, by resampling rounds."""
    ratios = np.divide(ours, theirs)
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return round(float(np.quantile(np.median(drawn, axis=1), 0.025)), 3)


def _share(measure: str, what: str, value: float, target: float | None, note: str, rounds: int) -> Row:
    return {
        "measure": measure, "input": what, "ours": round(value, 4), "peer": "a step", "peer_value": 1.0, "unit": "share",
        "ratio": round(value, 4), "target": target, "rounds": rounds, "note": note,
    }  # fmt: skip


def _crops(plan: ViewsPlan) -> str:
    return f"{plan.num_global}x{plan.global_size} + {plan.num_local}x{plan.local_size}"


def show(found: Row) -> None:
    """Prints one row."""
    if found["unit"] == "share":
        verdict = "" if found["target"] is None else f" (at most {found['target']:.0%})"
        print(f"  {found['ours']:10.2%} {found['measure']}, {found['note']}{verdict}", flush=True)
    elif found["ratio"] is None:
        print(f"  {found['ours']:10.3f} samples/CPU-s {found['measure']} | {found['peer']}: {found['peer_value']}", flush=True)
    else:
        print(f"{line(found)} {found['measure']}, lower end {found['low']}", flush=True)


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing compiled: shows that it runs, not how fast")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows: list[Row] = []
    for case in CASES:
        if args.only in case.name:
            print(f"\n{case.name}, {_crops(case.views)}, K={case.prototypes}, batch {case.batch}", flush=True)
            for found in measured(case, args.quick):
                show(found)
                rows.append(found)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
