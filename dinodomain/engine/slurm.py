"""``launcher=submitit``: hands a run to a Slurm cluster, one process per accelerator, and lets it go on by itself when its time is up.

Ninety seconds before a job ends (time limit, pre-emption) Slurm sends a signal. Here it means what Ctrl-C means: the step is finished and
saved; only then is the job queued again, and ``resume=auto`` goes on from that step. ``slurm.cluster=local`` runs the same processes on
this machine, ``debug`` in this one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinodomain.domain import Domain
from dinodomain.engine.plan import PretrainPlan, SlurmPlan
from dinodomain.engine.pretrain import pretrain
from dinodomain.engine.run import Run
from dinodomain.errors import UserError, require

LOGS = "slurm"
"""Folder below the run that holds the output of each process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A run that a cluster has been given.

    Attributes:
        run: Its folder; what lies there grows while the job runs.
        job: The cluster's number for it.
        logs: Folder with the output of each process.
        cluster: ``slurm``, ``local`` or ``debug``.
        finished: Whether it was waited for.
    """

    run: Run
    job: str
    logs: Path
    cluster: str
    finished: bool

    def text(self) -> str:
        """What the command prints: the job, where its output lies, how to follow it."""
        lines = [f"job {self.job} on {self.cluster}", f"logs: {self.logs}"]
        if self.finished:
            return "\n".join([*lines, self.run.text()])
        follow = [f"squeue --job {self.job}", f"tail -F {self.logs}/{self.job}_0_log.out", f"dinodomain doctor run={self.run.path}"]
        return "\n".join([*lines, *(f"follow: {command}" for command in follow), f"end: scancel {self.job}", f"run: {self.run.path}"])

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        told = self.run.as_json() if self.finished else {"run": str(self.run.path)}
        return {"job": self.job, "cluster": self.cluster, "logs": str(self.logs), "finished": self.finished, **told}


@dataclass(slots=True)
class Job:
    """What each process of the job runs; goes to the cluster as a pickle, and again as it is after an interruption.

    Attributes:
        plan: With ``launcher=local``.
        domain: The domain object; None finds it by name.
    """

    plan: PretrainPlan
    domain: Domain | None = None
    _begun: bool = field(default=False, init=False)

    def __call__(self) -> str:
        """Trains; returns the run folder."""
        if self.plan.slurm.cluster != "debug":
            _join()
        with self._requeued_after_saving():
            pretrain(self.plan, domain=self.domain)
        return self.plan.out

    def checkpoint(self) -> Any:
        """What submitit queues in place of an interrupted job.

        ``resume=never`` guards a folder that somebody else began: once this job has, it means to go on.
        """
        plan = replace(self.plan, resume="auto") if self._begun and self.plan.resume == "never" else self.plan
        return _submitit().helpers.DelayedSubmission(Job(plan, self.domain))

    @contextmanager
    def _requeued_after_saving(self) -> Iterator[None]:
        """Lets the cluster's signal end the loop as Ctrl-C does, and submitit's own handler queue the job again after that."""
        number = _warning_signal()
        before = signal.getsignal(number)
        outside, warned = signal.getsignal(signal.SIGTERM), []

        def handle(got: int, frame: Any) -> None:
            warned.append(got)
            if signal.getsignal(signal.SIGTERM) is outside and callable(before):
                before(got, frame)  # not in the loop: nothing is to be saved
            else:
                self._begun = True
                os.kill(os.getpid(), signal.SIGTERM)

        if not callable(before):  # debug: nobody sends signals
            yield
            return
        signal.signal(number, handle)
        try:
            yield
        except KeyboardInterrupt:
            if not warned:
                raise
            before(warned[0], None)  # on rank 0 it queues the job again and exits
        finally:
            signal.signal(number, before)


def submit(plan: PretrainPlan, domain: Domain | None = None) -> Submitted:
    """Gives a run to the cluster; waits for it on ``local`` and ``debug``.

    Args:
        plan: With ``launcher=submitit``.
        domain: The domain object; None finds it by ``plan.domain``.

    Raises:
        MissingExtra: submitit is not installed.
        UserError: The cluster refuses, or the run failed.
    """
    submitit, slurm = _submitit(), plan.slurm
    logs = Path(plan.out).absolute() / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=slurm.cluster, **_retries(slurm))
        executor.update_parameters(**parameters(slurm, name=f"dinodomain-{Path(plan.out).name}"))
        job = executor.submit(Job(replace(plan, out=str(Path(plan.out).absolute()), launcher="local"), domain))
    except (RuntimeError, NameError, TypeError, submitit.core.utils.FailedJobError) as error:
        remedy = "submit from a machine that has sbatch, set slurm.cluster=local to try it here, or correct slurm.extra"
        raise UserError("launcher", f"submitit cannot give the run to {slurm.cluster!r}: {error}", remedy=remedy) from error
    wait = slurm.cluster != "slurm"
    if wait:
        _wait(job, slurm, logs)
    return Submitted(run=Run(Path(plan.out)), job=str(job.job_id), logs=logs, cluster=slurm.cluster, finished=wait)


def parameters(slurm: SlurmPlan, *, name: str) -> dict[str, Any]:
    """The plan in submitit's words; ``extra`` has the last one.

    Args:
        slurm: What is asked for.
        name: Of the job.
    """
    asked: dict[str, Any] = {
        "name": name,
        "nodes": slurm.nodes,
        "tasks_per_node": max(1, slurm.gpus),
        "cpus_per_task": slurm.cpus,
        "mem_gb": slurm.memory_gb,
        "timeout_min": slurm.minutes,
        "slurm_signal_delay_s": 90,
    }
    if slurm.gpus:
        asked["gpus_per_node"] = slurm.gpus
    if slurm.partition is not None:
        asked["slurm_partition"] = slurm.partition
    return {**asked, **slurm.extra}


def _retries(slurm: SlurmPlan) -> dict[str, int]:
    """How often a job that ran out of time is queued again; submitit wants one number for each kind of cluster."""
    return {} if slurm.cluster == "debug" else {f"{slurm.cluster}_max_num_timeout": slurm.requeue}


def _wait(job: Any, slurm: SlurmPlan, logs: Path) -> None:
    """Waits for all processes.

    Raises:
        UserError: One failed; holds the last line of what it said.
    """
    if slurm.cluster == "debug":
        job.submission().result()  # submitit's own way opens a debugger at an error
        return
    try:
        job.results()
    except Exception as error:  # submitit's errors have no common parent
        raise UserError("launcher", f"job {job.job_id} failed: {_reason(error)}", remedy=f"its whole output lies in {logs}") from error


def _reason(error: Exception) -> str:
    """The last line of the job's own traceback, which submitit frames with dashes and advice."""
    own = str(error).partition("You can check full logs")[0]
    lines = [line.strip() for line in own.splitlines() if line.strip(" -")]
    return lines[-1] if lines else type(error).__name__


def _join() -> None:
    """Tells torch.distributed what the cluster laid out: rank, world, and where rank 0 listens."""
    environment = _submitit().helpers.TorchDistributedEnvironment()
    environment.export(set_cuda_visible_devices=False, overwrite=True)


def _warning_signal() -> signal.Signals:
    return signal.Signals(_submitit().core.job_environment.JobEnvironment._usr_sig())


def _submitit() -> Any:
    return require("submitit", extra="slurm", wanted_by="launcher=submitit")
