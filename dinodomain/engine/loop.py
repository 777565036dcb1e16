"""The loop around the step: when to log, when to save, when to stop. Takes objects, so it runs on a bare accelerator machine too.

A checkpoint holds the state after n steps and metrics.jsonl the rows 0..n-1; rows are made durable before the checkpoint is
announced, so a run killed at any instant goes on without a gap and without a row twice. Data that cannot be read, held tiles that cannot
be looked at and steps that give nothing but NaN end a run, not its work: what was trained is saved first, on every rank alike. However a
run ends, what is being written is written before ``fit`` returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import torch

from dinodomain import parallel
from dinodomain.checkpoint import Best
from dinodomain.engine.interrupt import Interrupt
from dinodomain.engine.log import logger
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.record import Recorder
from dinodomain.engine.saver import Saver, any_rank
from dinodomain.engine.step import StepResult, train_step
from dinodomain.engine.training import Training
from dinodomain.errors import UserError
from dinodomain.types import Batch

_STATUS = Path("/proc/self/status")


class Batches(Protocol):
    """What the loop needs of a loader."""

    def __iter__(self) -> Generator[Batch, None, None]:
        """Batches for ever, from the loaded state on; closing it ends whatever reads them."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """A few integers that say which batch comes next."""
        ...


class TrainingStopped(UserError):
    """The run cannot go on by itself; says why and what to change."""


class Watcher(Protocol):
    """Measures the teacher now and then."""

    def due(self, step: int) -> bool:
        """Whether to look after ``step`` finished steps; the same on every rank."""
        ...

    def look(self, training: Training) -> Mapping[str, float]:
        """Numbers by name (``watch_...``), the same on every rank; collective, changes nothing that training uses.

        Raises:
            Exception: The held tiles cannot be looked at; every rank raises, whichever of them met it.
        """
        ...


def fit(
    training: Training,
    batches: Batches,
    out: Path,
    *,
    recorder: Recorder | None,
    record: Callable[[int], Mapping[str, Any]],
    watcher: Watcher | None = None,
    best: Best | None = None,
) -> None:
    """Trains until ``engine.steps`` steps are done.

    Args:
        training: From the start or restored.
        batches: In the same state.
        out: Run folder.
        recorder: On rank 0; None elsewhere.
        record: Lineage record after a number of steps.
        watcher: What measures the teacher: its numbers go into the step's row, tell the anchor and choose the best backbone.
        best: The best look before the first of these steps.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything was saved.
        TrainingStopped: Too many steps in a row gave NaN or Inf, or another process could not read its data.
        UserError: The data of the next step, or the held tiles, cannot be read and everything was saved; or the run cannot be saved.
    """
    plan, total = training.plan, training.plan.engine.steps
    made = Saver(training, batches, out, recorder=recorder, record=record, best=best)
    with Interrupt() as interrupt, closing(iter(batches)) as stream, closing(made) as saver:
        while training.step < total:
            started = time.perf_counter()
            batch, error = _next(stream)
            failed = any_rank(error is not None, plan.engine.device)
            if failed or batch is None:
                saver.after_step({}, stop=True)
                raise error or _other_rank(training.step)
            waited = time.perf_counter() - started
            result = train_step(training, batch)
            row = make_row(result, training.step - 1, host_values(result))
            timing = _timing(plan, seconds=time.perf_counter() - started, waited=waited)
            watched, error = _look(watcher, training)
            if training.anchor is not None and watched:
                training.anchor.consider(training.step, watched.get("watch_dense_match"))
            if recorder is not None:
                recorder.write({**row, **watched, **timing})
            bad = training.bad_in_row >= plan.engine.max_bad_steps
            stop = any_rank(interrupt.asked, plan.engine.device)
            saver.after_step(watched, stop=stop or bad or error is not None)
            if error is not None:
                logger.error("the look after step %d failed; what was trained is saved. Repair what the message names and run the same "
                             "command again, or put looks off with a larger watch.every", training.step - 1)  # fmt: skip
                raise error
            if bad:
                raise _only_nan(training, out)
            if stop and training.step < total:
                logger.info("interrupted after step %d; saved. Run the same command again to go on", training.step - 1)
                raise KeyboardInterrupt


def _next(stream: Generator[Batch, None, None]) -> tuple[Batch | None, Exception | None]:
    """The next batch, or why there is none."""
    try:
        return next(stream), None
    except Exception as error:  # raised again, once all ranks know
        return None, error


def _look(watcher: Watcher | None, training: Training) -> tuple[dict[str, float], Exception | None]:
    """What a look tells if one is due; or why it could not, which every rank is told."""
    if watcher is None or not watcher.due(training.step):
        return {}, None
    try:
        return dict(watcher.look(training)), None
    except Exception as error:  # raised again, once everything is saved
        return {}, error


def _other_rank(step: int) -> TrainingStopped:
    return TrainingStopped(
        "run", f"another process could not read the data of step {step}", remedy="its own message says why; what was trained is saved"
    )


def make_row(result: StepResult, step: int, measured: Mapping[str, float]) -> dict[str, Any]:
    """The row of one step without its times."""
    return {"step": step, **measured, **result.values, "skipped": int(result.skipped)}


def host_values(result: StepResult) -> dict[str, float]:
    """Means over ranks of all metrics, brought to the host in one copy."""
    stacked = torch.stack([value.float().reshape(()) for value in result.metrics.values()])
    mean = parallel.all_reduce_sum(stacked) / parallel.world()
    return dict(zip(result.metrics, mean.tolist()))


def _only_nan(training: Training, out: Path) -> TrainingStopped:
    return TrainingStopped(
        "engine.max_bad_steps", f"{training.bad_in_row} steps in a row gave NaN or Inf, the last was step {training.step - 1}",
        remedy=f"none of them changed the weights, and these are saved. dinodomain doctor run={out} shows where it began, dinodomain "
               "inspect looks for broken pixel values. To go on from the weights with a lower optim.lr or engine.precision=fp32, which "
               f"this folder does not take any more, begin a run in another: start.weights={out} start.heads=true out=NEW",
    )  # fmt: skip


def _timing(plan: PretrainPlan, *, seconds: float, waited: float) -> dict[str, float]:
    """What a step took: seconds with and of the wait for data, samples a second of all ranks, peak bytes of memory where known."""
    row: dict[str, float] = {"seconds": seconds, "data_wait": waited, "samples_per_s": plan.loader.batch / max(seconds, 1e-9)}
    memory = peak_memory(plan.engine.device)
    return row if memory is None else {**row, "memory": memory}


def peak_memory(device: str) -> int | None:
    """Most bytes that were in use since the process began: tensors on a CUDA device, else all that is resident; None where unknown."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if not _STATUS.is_file():
        return None
    # Not getrusage: its maximum is inherited from whatever started the process.
    found = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
    return int(found.split()[1]) * 1024 if found is not None else None
