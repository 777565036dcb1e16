"""The loss over many prototypes, fused against plain: peak memory and CPU-seconds of targets, loss and backward together.

Both start from the same unit points and prototypes of student and teacher. The plain form is what autograd makes of whole logits and
whole targets (``objective/reference.py``), with the same centring; before anything is timed, loss and gradients of both are compared.
Memory is the peak resident set (``/proc/self/statm``, looked at every millisecond) above that before the loss, in a fresh process for
every value; times are CPU-seconds of all threads, in turns, medians over rounds. ``--chunk-bytes`` measures other chunk sizes.

    python benchmarks/loss_memory.py [--quick] [--only TEXT] [--chunk-bytes N] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from readers.measure import Row, line, met, rates, row
from torch import Tensor
from torch.nn import functional

from dinodomain.lineage import write_json
from dinodomain.objective import fused, reference
from dinodomain.objective.centering import Center, Sinkhorn, Targets, Taught, by_view
from dinodomain.objective.dino import dino_loss
from dinodomain.objective.ibot import ibot_loss

STUDENT, TEACHER = 0.1, 0.04
VIEWS, GLOBAL = 10, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One loss on made-up points."""

    loss: str
    centering: str
    precision: str
    rows: int
    prototypes: int
    width: int = 256

    @property
    def name(self) -> str:
        """For the table and ``--only``."""
        return f"{self.loss}, {self.centering}, {self.precision}, {self.rows} x {self.prototypes}"

    def points(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Student's points and prototypes, which need gradients, and the teacher's."""
        generator = torch.Generator().manual_seed(0)
        taught = self.rows * GLOBAL // VIEWS if self.loss == "DINO" else self.rows
        sizes = (self.rows, self.prototypes, taught, self.prototypes)
        made = [functional.normalize(torch.randn(size, self.width, generator=generator), dim=1) for size in sizes]
        return made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3]


def targets_of(case: Case, points: Tensor, prototypes: Tensor) -> Targets:
    """Of all the teacher's rows."""
    centering = Center(case.prototypes, 0.9) if case.centering == "softmax" else Sinkhorn()
    return centering([Taught(points, prototypes)], TEACHER)[0]


def ours(case: Case, z: Tensor, w: Tensor, points: Tensor, prototypes: Tensor) -> Tensor:
    """The loss as training takes it."""
    targets = targets_of(case, points, prototypes)
    if case.loss == "DINO":
        return dino_loss(by_view(z, VIEWS), w, targets, STUDENT, num_global=GLOBAL).total
    return ibot_loss(z, w, targets, torch.full((case.rows,), 1 / case.rows), 1, STUDENT)


def plain(case: Case, z: Tensor, w: Tensor, points: Tensor, prototypes: Tensor) -> Tensor:
    """The loss with whole logits and targets."""
    if case.loss == "DINO":
        taught = targets_of(case, points, prototypes).form(slice(None), GLOBAL)
        shares = reference.dino_loss(by_view(z @ w.T, VIEWS), taught, STUDENT)
        return shares.glob + shares.local
    taught = targets_of(case, points, prototypes).form(slice(None))[0]
    return reference.ibot_loss(z @ w.T, taught, torch.full((case.rows,), 1 / case.rows), 1, STUDENT)


WAYS: dict[str, Callable[..., Tensor]] = {"ours": ours, "plain": plain}


def once(case: Case, way: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
    """Loss and both gradients."""
    inputs[0].grad = inputs[1].grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
        loss = WAYS[way](case, *inputs)
    loss.backward()  # type: ignore[no-untyped-call]
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    return loss.item(), inputs[0].grad, inputs[1].grad


def agree(case: Case) -> None:
    """Stops where the two ways differ by more than rounding."""
    inputs = case.points()
    (loss, *gradients), (twin, *twins) = once(case, "ours", inputs), once(case, "plain", inputs)
    worst = max([abs(loss / twin - 1), *(float((a - b).norm() / b.norm()) for a, b in zip(gradients, twins))])
    limit = 1e-5 if case.precision == "fp32" else 2e-2
    if worst > limit:
        raise SystemExit(f"{case.name}: fused and plain differ by {worst:.2g} of their size, at most {limit:.2g} is rounding")
    print(f"{case.name}: fused and plain agree to {worst:.1e}", flush=True)


def peak_megabytes(case: Case, way: str) -> float:
    """Peak above what the inputs take, MB (1e6 bytes); call it in a fresh process."""
    small = Case(loss=case.loss, centering=case.centering, precision=case.precision, rows=20, prototypes=64, width=case.width)
    once(small, way, small.points())  # what is made once
    inputs, page = case.points(), resource.getpagesize()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page  # noqa: E731
    before, done = resident(), threading.Event()
    peak = [before]

    def look() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    once(case, way, inputs)
    done.set()
    watcher.join()
    return (peak[0] - before) / 1e6


def apart(number: int, way: str, options: argparse.Namespace) -> float:
    """``peak_megabytes`` of a case in a process of its own."""
    command = [sys.executable, __file__, "--child", str(number), way, "--chunk-bytes", str(options.chunk_bytes)]
    found = subprocess.run([*command, *(["--quick"] if options.quick else [])], check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def cases(quick: bool) -> list[Case]:
    """What is measured."""
    rows, prototypes = (160, 2048) if quick else (1536, 65536)
    kinds = [
        ("iBOT", "softmax", "fp32"),
        ("iBOT", "sinkhorn", "fp32"),
        ("DINO", "softmax", "fp32"),
        ("DINO", "sinkhorn", "fp32"),
        ("iBOT", "softmax", "bf16"),
    ]
    return [
        Case(loss=loss, centering=centering, precision=precision, rows=rows // 10 * 10 if loss == "DINO" else rows, prototypes=prototypes)
        for loss, centering, precision in kinds
    ]


def measured(number: int, case: Case, options: argparse.Namespace) -> list[Row]:
    """Rows of one case."""
    agree(case)
    inputs = case.points()

    def turn(way: str) -> Callable[[int], int]:
        return lambda _round: once(case, way, inputs) and 1

    speeds = rates({way: turn(way) for way in WAYS}, 2 if options.quick else 3)
    peaks = {way: [apart(number, way, options)] for way in WAYS}
    held = (row("peak memory of loss and backward", case.name, peaks["ours"], "plain autograd", peaks["plain"], "MB", 0.5),)
    return [*held, row("time of loss and backward", case.name, speeds["ours"], "plain autograd", speeds["plain"], "1 / CPU-second", 0.95)]


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows: shows that it runs, not how good")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--chunk-bytes", type=int, default=fused.CHUNK_BYTES, help="scratch of a chunk")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    fused.CHUNK_BYTES = options.chunk_bytes
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.child:
        print(peak_megabytes(cases(options.quick)[int(options.child[0])], options.child[1]))
        return
    found: list[Row] = []
    for number, case in enumerate(cases(options.quick)):
        if options.only in case.name:
            begun = time.monotonic()
            found += measured(number, case, options)
            for one in found[-2:]:
                print(f"{one['measure']}\n{line(one)}", flush=True)
            print(f"  {time.monotonic() - begun:.0f} s", flush=True)
    missed = [one for one in found if met(one) is False]
    print(f"\n{len(found)} rows, {sum(met(one) is True for one in found)} targets met, {len(missed)} missed")
    if options.quick:
        print("quick: so few rows say nothing about targets")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, found)


if __name__ == "__main__":
    main()
