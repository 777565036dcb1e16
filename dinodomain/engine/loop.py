"""The loop around the step: when to log, when to save, when to stop. Takes objects, so it runs on a bare accelerator machine too.

A checkpoint holds the state after n steps and metrics.jsonl the rows 0..n-1; rows are made durable before the checkpoint is
announced, so a run killed at any instant goes on without a gap and without a row twice. Data that cannot be read end a run, not its work:
what was trained is saved first, on every rank alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
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

    def __iter__(self) -> Generator[Batch, None, None]:
        """Batches for ever, from the loaded state on; closing it ends whatever reads them."""
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
        TrainingStopped: Too many steps in a row gave NaN or Inf, or another process could not read its data.
        UserError: The data of the next step cannot be read; everything was saved.
    """
    plan, total, saved = training.plan, training.plan.engine.steps, training.step
    with Interrupt() as interrupt, closing(iter(batches)) as stream:
        while training.step < total:
            started = time.perf_counter()
            batch, error = _next(stream)
            failed = _any_rank(error is not None, plan.engine.device)
            if failed or batch is None:
                if training.step > saved:
                    save(training, batches, out, recorder=recorder, record=record)
                raise error or _other_rank(training.step)
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
                saved = training.step
            if stop and training.step < total:
                logger.info("interrupted after step %d; saved. Run the same command again to go on", training.step - 1)
                raise KeyboardInterrupt


def _next(stream: Generator[Batch, None, None]) -> tuple[Batch | None, Exception | None]:
    """The next batch, or why there is none."""
    try:
        return next(stream), None
    except Exception as error:  # raised again, once all ranks know
        return None, error


def _other_rank(step: int) -> TrainingStopped:
    return TrainingStopped(
        "run", f"another process could not read the data of step {step}", remedy="its own message says why; what was trained is saved"
    )


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
