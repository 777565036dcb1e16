"""The loop around the step: when to log, when to save, when to stop. Takes objects, so it runs on a bare accelerator machine too.

A checkpoint holds the state after n steps and metrics.jsonl the rows 0..n-1; rows are made durable before the checkpoint is
announced, so a run killed at any instant goes on without a gap and without a row twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from dinodomain import parallel
from dinodomain.checkpoint import save_checkpoint
from dinodomain.engine.interrupt import Interrupt
from dinodomain.engine.log import logger
from dinodomain.engine.record import Recorder
from dinodomain.engine.step import StepResult, train_step
from dinodomain.engine.training import Training
from dinodomain.errors import UserError
from dinodomain.types import Batch


class Batches(Protocol):
    """What the loop needs of a loader."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches for ever, from the loaded state on."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """A few integers that say which batch comes next."""
        ...


class TrainingStopped(UserError):
    """The run cannot go on by itself; says why and what to change."""


def fit(training: Training, batches: Batches, out: Path, *, recorder: Recorder | None, record: Callable[[int], Mapping[str, Any]]) -> None:
    """Trains until ``engine.steps`` steps are done.

    Args:
        training: From the start or restored.
        batches: In the same state.
        out: Run folder.
        recorder: On rank 0; None elsewhere.
        record: Lineage record after a number of steps.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything was saved.
        TrainingStopped: Too many steps in a row gave NaN or Inf.
    """
    plan, total = training.plan, training.plan.engine.steps
    stream = iter(batches)
    with Interrupt() as interrupt:
        while training.step < total:
            started = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - started
            result = train_step(training, batch)
            row = make_row(result, training.step - 1, host_values(result))
            seconds = time.perf_counter() - started
            if recorder is not None:
                rate = plan.loader.batch / max(seconds, 1e-9)
                recorder.write({**row, "seconds": seconds, "data_wait": waited, "samples_per_s": rate})
            _stop_if_bad(training)
            stop = _any_rank(interrupt.asked, plan.engine.device)
            if stop or training.step % plan.checkpoint.every == 0 or training.step == total:
                save(training, batches, out, recorder=recorder, record=record)
            if stop and training.step < total:
                logger.info("interrupted after step %d; saved. Run the same command again to go on", training.step - 1)
                raise KeyboardInterrupt


def save(training: Training, batches: Batches, out: Path, *, recorder: Recorder | None, record: Callable[[int], Mapping[str, Any]]) -> None:
    """Saves a checkpoint from rank 0; the others wait, so that none runs ahead of a failed save."""
    if recorder is not None:
        recorder.sync()
        loader = {**batches.state_dict(), "step": training.step}
        state = training.snapshot(loader, record(training.step))
        folder = save_checkpoint(out, state, keep=training.plan.checkpoint.keep)
        logger.info("saved %s", folder)
    parallel.barrier()


def make_row(result: StepResult, step: int, measured: Mapping[str, float]) -> dict[str, Any]:
    """The row of one step without its times."""
    return {"step": step, **measured, **result.values, "skipped": int(result.skipped)}


def host_values(result: StepResult) -> dict[str, float]:
    """Means over ranks of all metrics, brought to the host in one copy."""
    stacked = torch.stack([value.float().reshape(()) for value in result.metrics.values()])
    mean = parallel.all_reduce_sum(stacked) / parallel.world()
    return dict(zip(result.metrics, mean.tolist()))


def _stop_if_bad(training: Training) -> None:
    limit = training.plan.engine.max_bad_steps
    if training.bad_in_row >= limit:
        raise TrainingStopped(
            "engine.max_bad_steps", f"{limit} steps in a row gave NaN or Inf, the last was step {training.step - 1}",
            remedy="none of them changed the weights. Lower optim.lr, set engine.precision=fp32, or look for broken pixel values with "
                   "dinodomain inspect; dinodomain doctor run=... shows where it began",
        )  # fmt: skip


def _any_rank(asked: bool, device: str) -> bool:
    """Ranks stop together: a signal may reach one of them only."""
    if not parallel.is_distributed():
        return asked
    return bool(parallel.all_reduce_max(torch.tensor(float(asked), device=device)))
