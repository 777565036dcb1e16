"""What a run writes of its weights, and when: checkpoints, the best backbone, log-spaced backbones; beside training where the plan says so.

Order within a save: backbones that are due, rows of metrics.jsonl, the checkpoint, its pointer. So whatever a checkpoint counts on is on
disk before it is announced, and a run that goes on from it does every later write again. A save that fails is told and training goes on,
if there is an older whole checkpoint; what it was to write comes with the next, at the latest where the run ends. The first save and the
last are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from dinodomain import parallel
from dinodomain.checkpoint import (
    Background,
    Best,
    HostCopy,
    Kept,
    Stateful,
    TrainState,
    best_files,
    best_path,
    better,
    latest,
    remove_leftovers,
    save_checkpoint,
    spaced_path,
    spaced_steps,
    with_part,
    write_kept,
)
from dinodomain.engine.distribute import is_sharded, whole_state
from dinodomain.engine.log import logger
from dinodomain.engine.record import Recorder
from dinodomain.engine.training import Training
from dinodomain.errors import UserError

BEST = "best"
"""Name of the part of a checkpoint that holds the best look so far."""


T = TypeVar("T")


class Position(Protocol):
    """What says which batch comes next."""

    def state_dict(self) -> Mapping[str, Any]:
        """A few integers."""
        ...


class Saver:
    """Saves a run; every rank has one and calls it after every step, rank 0 writes.

    Args:
        training: Changed by the step between calls.
        batches: The loader.
        out: Run folder.
        recorder: On rank 0; None elsewhere.
        record: Lineage record after a number of steps.
        best: The best look before the first step of this process.
    """

    def __init__(
        self,
        training: Training,
        batches: Position,
        out: Path,
        *,
        recorder: Recorder | None,
        record: Callable[[int], Mapping[str, Any]],
        best: Best | None = None,
    ) -> None:
        plan = training.plan.checkpoint
        self._training, self._batches, self._out, self._recorder, self._record = training, batches, out, recorder, record
        self._best, self._saved, self._before = best, training.step, training.step
        self._spaced = frozenset(spaced_steps(training.plan.engine.steps, plan.spaced))
        self._sharded = is_sharded(training.pair.parameters())
        self._owed: dict[Path, tuple[Kept, Best | None]] = {}
        self._host, self._background = HostCopy(), Background(threaded=plan.background)
        if recorder is not None:
            remove_leftovers(out)

    def after_step(self, watched: Mapping[str, float], *, stop: bool = False) -> None:
        """Saves what is due after ``training.step`` steps; collective.

        Args:
            watched: What this step's look measured, the same on every rank; empty without one.
            stop: The run ends here: save and wait for it.

        Raises:
            UserError: What must be saved cannot be: the first checkpoint, or the last.
        """
        plan, step = self._training.plan, self._training.step
        last = stop or step == plan.engine.steps
        best = better(self._best, watched, step) if plan.checkpoint.best else None
        self._best = best or self._best
        due: dict[Path, Best | None] = {spaced_path(self._out, step): None} if step in self._spaced else {}
        if best is not None:
            due[best_path(self._out)] = best
        whole = last or step % plan.checkpoint.every == 0
        if due or whole:
            self._save(due, whole=whole, last=last)

    def close(self) -> None:
        """Waits for what is being written and tells if it failed; not collective."""
        error = self._background.wait()
        if error is not None:
            logger.warning("%s", error)

    def _save(self, due: Mapping[Path, Best | None], *, whole: bool, last: bool) -> None:
        error, device = self._background.wait(), self._training.plan.engine.device
        if error is not None:
            what, then = ("The run ends", "what is owed is tried again now") if last else ("Training goes on", "the next save tries again")
            logger.warning("%s. %s: %s is whole, and %s", error, what, latest(self._out), then)
        if any_rank(error is not None, device):
            self._saved = self._before  # a step counts as saved only if it was: the run may end at that very step
        self._owe(due)
        whole = whole and self._training.step > self._saved
        state = self._snapshot() if whole else None
        if self._recorder is not None:
            host = None if state is None else self._host.take(state)
            self._background.start(lambda: self._write(host))
        self._before, self._saved = self._saved, self._training.step if whole else self._saved
        first = any_rank(self._recorder is not None and latest(self._out) is None, device)
        if first or last:
            self._settle()

    def _settle(self) -> None:
        """Waits for the save in flight; every rank learns of its failure."""
        error = self._background.wait()
        if any_rank(error is not None, self._training.plan.engine.device):
            raise error or UserError("run", "another process could not save the run", remedy="its own message says why")

    def _owe(self, due: Mapping[Path, Best | None]) -> None:
        """Copies the teacher's backbone for the files that are due; collective where it is sharded."""
        if not due or (self._recorder is None and not self._sharded):
            return
        backbone = self._training.pair.teacher.backbone
        weights = whole_state(backbone.state_dict())
        if self._recorder is not None:
            own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
            kept = Kept(weights=own, spec=backbone.spec, history=self._record(self._training.step))
            self._owed.update({path: (kept, best) for path, best in due.items()})

    def _snapshot(self) -> TrainState | None:
        if self._recorder is None and not self._sharded:
            return None
        step = self._training.step
        loader = {**self._batches.state_dict(), "step": step}
        state = self._training.snapshot(loader, self._record(step) if self._recorder is not None else {})
        best = {} if self._best is None else {"step": self._best.step, "value": self._best.value, "measure": self._best.measure}
        state = with_part(state, BEST, best)
        anchor: Stateful | None = self._training.anchor
        return state if anchor is None else with_part(state, "anchor", anchor.state_dict())

    def _write(self, state: TrainState | None) -> None:
        """Runs beside training; the trainer touches nothing that is used here until it has waited."""
        for path, (kept, best) in list(self._owed.items()):
            write_kept(path, kept, best)
            del self._owed[path]
        if state is None:
            return
        assert self._recorder is not None
        try:
            self._recorder.sync()
        except OSError as error:
            said = f"rows cannot be written: {error.strerror or error}"
            raise UserError(str(self._out / "metrics.jsonl"), said, remedy="free some space; they are kept until they can be") from error
        beside = best_files(self._out) if state.extra[BEST] else {}
        folder = save_checkpoint(self._out, state, keep=self._training.plan.checkpoint.keep, beside=beside)
        logger.info("saved %s", folder)


def best_before(state: Mapping[str, Any] | None) -> Best | None:
    """The best look that a checkpoint remembers."""
    return Best(int(state["step"]), float(state["value"]), str(state["measure"])) if state else None


def any_rank(asked: bool, device: str) -> bool:
    """Whether any rank says so; ranks must do alike."""
    if not parallel.is_distributed():
        return asked
    return bool(parallel.all_reduce_max(torch.tensor(float(asked), device=device)))


def alike(action: Callable[[], T], device: str, place: str) -> T:
    """Does what may fail on one rank only; then every rank raises, so that none waits for the others for ever. Collective.

    Args:
        action: Holds no collective itself.
        device: Of the run.
        place: What the other ranks' message is about.

    Raises:
        Exception: What ``action`` raised here.
        UserError: It failed on another rank.
    """
    made: list[T] = []
    error: Exception | None = None
    try:
        made.append(action())
    except Exception as caught:  # raised again, once all ranks know
        error = caught
    if any_rank(error is not None, device):
        raise error or UserError(place, "another process failed here", remedy="its own message says why")
    return made[0]
