"""Pretrains from a plan: build, resume or start, train, and leave a run folder that tells its whole story."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinodomain import lineage, parallel
from dinodomain.checkpoint import TrainState, checkpoint_folders, load_checkpoint
from dinodomain.domain import Domain
from dinodomain.engine.build import Setup, build
from dinodomain.engine.drawn import continued, what_changed
from dinodomain.engine.folder import BOARD, LINEAGE, LOG, PLAN, check_folder, check_same_plan, lock
from dinodomain.engine.log import TensorBoardTracker, Tracker, log_to, logger, write_plan
from dinodomain.engine.loop import fit
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.record import Recorder, on_terminal
from dinodomain.engine.run import Run
from dinodomain.errors import UserError
from dinodomain.lineage import to_json
from dinodomain.model import normalisation_of


def pretrain(plan: PretrainPlan, *, domain: Domain | None = None, trackers: Sequence[Tracker] = ()) -> Run:
    """Trains a backbone, or goes on where the run in ``plan.out`` stopped.

    Under ``torchrun`` every process calls this; batches are shared out and gradients averaged.

    Args:
        plan: The run.
        domain: The domain object; None finds it by ``plan.domain``.
        trackers: Further places scalars go to (W&B, MLflow ...), used on rank 0.

    Returns:
        The finished run.

    Raises:
        UserError: The plan cannot work, the folder holds another run, or training stopped because of NaN.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after everything was saved.
    """
    with parallel.process_group():
        setup = build(plan, domain)
        out = Path(plan.out)
        resume = check_folder(out, plan.resume, to_json(setup.training.plan))
        parallel.barrier()  # nobody looks at the folder after rank 0 begins to write
        with _opened(out):
            _train(setup, out, resume=resume, trackers=trackers)
    return Run(out)


@contextmanager
def _opened(out: Path) -> Iterator[None]:
    """Lock and log of the run folder, on rank 0."""
    with ExitStack() as stack:
        if parallel.rank() == 0:
            stack.enter_context(lock(out))
            stack.enter_context(log_to(out / LOG, quiet=on_terminal()))
        yield


def _train(setup: Setup, out: Path, *, resume: bool, trackers: Sequence[Tracker]) -> None:
    setup = _restored(setup, out) if resume else setup
    training = setup.training
    if training.step >= training.plan.engine.steps:
        logger.info("the run in %s is finished (%d steps)", out, training.step)
        return
    parallel.barrier()  # all ranks have read the checkpoint before rank 0 writes again
    recorder = _begin(setup, out, trackers) if parallel.rank() == 0 else None
    try:
        fit(training, setup.loader, out, recorder=recorder, record=lambda step: setup.record("checkpoint", step))
    finally:
        if recorder is not None:
            recorder.close()
            lineage.write_json(out / LINEAGE, setup.record("run", training.step))


def _restored(setup: Setup, out: Path) -> Setup:
    """Loads the newest whole checkpoint, if there is any."""
    if not checkpoint_folders(out):
        logger.info("%s holds no checkpoint yet: starting from step 0", out)
        return setup
    loaded = load_checkpoint(out)
    for note in loaded.notes:
        logger.warning("%s", note)
    state, training = loaded.state, setup.training
    force = training.plan.resume == "force"
    check_same_plan(state.plan, to_json(training.plan), out, force=force)
    changed = state.loader["index_digest"] != setup.loader.index_digest
    if changed:
        _take_change(setup, state, out, force=force)
    training.restore(state, str(loaded.folder))
    setup.loader.load_state_dict(state.loader, changed=changed)
    logger.info("going on from %s", loaded.folder)
    return replace(setup, drawn=continued(setup.store, setup.loader, state.step, state.lineage, state.loader))


def _take_change(setup: Setup, state: TrainState, out: Path, *, force: bool) -> None:
    """Goes on with other tiles, or refuses to; the network's range stays what the weights were trained with."""
    what = what_changed(setup.store, setup.loader, state.lineage)
    if not force:
        remedy = "give it what it had, or choose another out folder; resume=force goes on at the same step with what is there now"
        raise UserError("store", f"what the run in {out} would draw is not what it drew: {what}", remedy=remedy)
    setup.training.keep_normalisation(normalisation_of(state.backbone))
    logger.warning("resume=force: from step %d on other tiles are drawn: %s", state.step, what)


def _begin(setup: Setup, out: Path, trackers: Sequence[Tracker]) -> Recorder:
    """Writes what is known before the first step and opens the books."""
    training = setup.training
    plan: dict[str, Any] = to_json(training.plan)
    write_plan(out / PLAN, plan)
    lineage.write_json(out / LINEAGE, setup.record("run", training.step))
    for reason in setup.reasons:
        logger.info("plan: %s", reason)
    own = [TensorBoardTracker(out / BOARD, training.step)] if training.plan.engine.tensorboard else []
    return Recorder(out, training.plan.engine, first_step=training.step, trackers=[*own, *trackers])
