"""Pretrains from a plan: build, resume or start, train, and leave a run folder that tells its whole story."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinodomain import lineage, parallel
from dinodomain.checkpoint import Best, TrainState, checkpoint_folders, load_checkpoint, prune, put_back_best, remove_leftovers
from dinodomain.domain import Domain
from dinodomain.engine.build import Setup, build
from dinodomain.engine.drawn import continued, what_changed
from dinodomain.engine.folder import LINEAGE, LOG, PLAN, check_folder, check_same_plan, lock
from dinodomain.engine.log import log_to, logger, write_plan
from dinodomain.engine.loop import fit
from dinodomain.engine.memory import memory_errors
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.record import Recorder, on_terminal
from dinodomain.engine.run import Run
from dinodomain.engine.saver import BEST, best_before
from dinodomain.engine.start import write_start
from dinodomain.engine.trackers import Tracker, make_trackers
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
    if plan.launcher != "local":
        raise UserError(
            "launcher", f"is {plan.launcher}; this call trains in this process", remedy="engine.submit(plan) hands the run over"
        )
    with parallel.process_group():
        _in_group(plan, domain, trackers)
    return Run(Path(plan.out))


def _in_group(plan: PretrainPlan, domain: Domain | None, trackers: Sequence[Tracker]) -> None:
    """The whole run, in a frame of its own: nothing of it is alive when the group of processes ends."""
    setup = build(plan, domain)
    out = Path(plan.out)
    resume = check_folder(out, plan.resume, to_json(setup.training.plan))
    parallel.barrier()  # nobody looks at the folder after rank 0 begins to write
    with _opened(out), memory_errors(setup.training.plan, world=parallel.world()):
        _train(setup, out, resume=resume, trackers=trackers)


@contextmanager
def _opened(out: Path) -> Iterator[None]:
    """Lock and log of the run folder, on rank 0."""
    with ExitStack() as stack:
        if parallel.rank() == 0:
            stack.enter_context(lock(out))
            stack.enter_context(log_to(out / LOG, quiet=on_terminal()))
        yield


def _train(setup: Setup, out: Path, *, resume: bool, trackers: Sequence[Tracker]) -> None:
    setup, best = _restored(setup, out) if resume else (setup, None)
    training = setup.training
    if training.step >= training.plan.engine.steps:
        logger.info("the run in %s is finished (%d steps)", out, training.step)
        if parallel.rank() == 0:  # it may have been killed right after its last save
            write_plan(out / PLAN, to_json(training.plan))
            prune(out, keep=training.plan.checkpoint.keep, newest=training.step)
            remove_leftovers(out)
            _write_lineage(setup, out)
        return
    parallel.barrier()  # all ranks have read the checkpoint before rank 0 writes again
    recorder = _begin(setup, out, trackers) if parallel.rank() == 0 else None
    try:
        record = lambda step: setup.record("checkpoint", step)  # noqa: E731
        fit(training, setup.loader, out, recorder=recorder, record=record, watcher=setup.watcher, best=best)
    finally:
        if recorder is not None:
            recorder.close()
            _write_lineage(setup, out)


def _write_lineage(setup: Setup, out: Path) -> None:
    """What shaped the run until now; a disk that refuses it here must not hide why the run ends."""
    try:
        lineage.write_json(out / LINEAGE, setup.record("run", setup.training.step))
    except OSError as error:
        logger.warning("%s cannot be written: %s. The checkpoint holds the same; run again to write it", out / LINEAGE, error.strerror)


def _restored(setup: Setup, out: Path) -> tuple[Setup, Best | None]:
    """Loads the newest whole checkpoint, if there is any; with it comes the best look until then."""
    if not checkpoint_folders(out):
        logger.info("%s holds no checkpoint yet: starting from step 0", out)
        return setup, None
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
    if parallel.rank() == 0:
        put_back_best(out, loaded.folder)
    drawn = continued(setup.store, setup.loader, state.step, state.lineage, state.loader)
    return replace(setup, drawn=drawn), best_before(state.extra.get(BEST))


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
    if training.started is not None:
        write_start(training.started, out)
    begun = make_trackers(training.plan.engine.trackers, out, training.step, plan, trackers)
    return Recorder(out, training.plan.engine, first_step=training.step, trackers=begun, whole=plan)
