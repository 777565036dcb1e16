"""Runs handed to submitit: for real in this process and in two local ones; only sbatch itself is not here."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dinodomain.engine import Run, Submitted, pretrain, submit
from dinodomain.engine.plan import SlurmPlan
from dinodomain.engine.slurm import Job, _wait, parameters
from dinodomain.errors import MissingExtra, UserError

submitit = pytest.importorskip("submitit")


@pytest.fixture
def plan(make_plan):
    def make(**slurm):
        return make_plan(launcher="submitit", slurm=SlurmPlan(gpus=0, cpus=1, **slurm), engine={"steps": 3})

    return make


def test_debug_trains_in_this_process_and_leaves_a_whole_run(plan, images):
    made = submit(plan(cluster="debug"), domain=images)
    assert made.finished
    assert made.run.finished
    assert made.run.plan["launcher"] == "local"
    assert f"job {made.job} on debug" in made.text()
    assert "3 of 3 steps" in made.text()
    assert made.as_json()["step"] == 3


def test_a_plan_that_cannot_work_is_refused_as_it_is_without_a_cluster(plan, images):
    broken = plan(cluster="debug")
    submit(broken, domain=images)
    with pytest.raises(UserError, match="holds a run with another plan"):
        submit(replace(broken, seed=1), domain=images)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.usefixtures("socket_enabled")
def test_two_local_processes_warned_of_their_end_save_and_go_on_to_the_end_by_themselves(plan, images, monkeypatch):
    """As before a time limit: the signal comes in the loop, the job is queued again, no step is lost or done twice."""
    asked = plan(cluster="local", extra={"tasks_per_node": 2})
    asked = replace(asked, engine=replace(asked.engine, steps=60), checkpoint=replace(asked.checkpoint, every=10**6), resume="never")

    def interrupt(job, slurm, logs):
        rows = Path(asked.out) / "metrics.jsonl"
        until = time.monotonic() + 120
        while not (rows.is_file() and rows.read_text().count("\n") >= 3):
            assert time.monotonic() < until, [path.read_text()[-2000:] for path in logs.glob("*log.*")]
            time.sleep(0.02)
        controller = job._process.pid
        for task in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
            os.kill(int(task), signal.SIGUSR2)  # what the cluster sends every process
        job.results()

    monkeypatch.setattr("dinodomain.engine.slurm._wait", interrupt)
    made = submit(asked, domain=images)
    assert made.run.finished
    steps = [row["step"] for row in made.run.metrics()]
    assert steps == list(range(60))
    said = "".join(path.read_text() for path in made.logs.glob("*log.*"))
    assert "interrupted after step" in (Path(asked.out) / "log.txt").read_text()
    assert "Requeued job" in said


def test_a_failing_job_says_what_went_wrong_and_where_to_read_it(plan, tmp_path):
    frame = "-" * 70
    said = (
        f"Job (task=0) failed during processing with trace:\n{frame}\nTraceback ...\ndinodomain.errors.UserError: store: no such folder\n\n"
    )
    said += f"{frame}\nYou can check full logs with 'job.stderr(0)' and 'job.stdout(0)'or at paths:\n  - {tmp_path}/7_0_log.err"

    class Failed:
        job_id = 7

        def results(self):
            raise submitit.core.utils.FailedJobError(said)

    with pytest.raises(UserError, match=r"job 7 failed: dinodomain.errors.UserError: store: no such folder") as caught:
        _wait(Failed(), plan(cluster="local").slurm, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_plan_is_told_in_submitits_words():
    asked = parameters(SlurmPlan(nodes=2, gpus=4, partition="long", extra={"slurm_account": "me"}), name="x")
    assert (asked["nodes"], asked["tasks_per_node"], asked["gpus_per_node"], asked["slurm_partition"]) == (2, 4, 4, "long")
    assert asked["slurm_account"] == "me"
    alone = parameters(SlurmPlan(gpus=0), name="x")
    assert alone["tasks_per_node"] == 1
    assert "gpus_per_node" not in alone
    assert "slurm_partition" not in alone


def test_a_job_goes_to_the_cluster_as_it_is_and_again_after_an_interruption(plan, images):
    job = Job(plan(), images)
    again = job.checkpoint()
    assert (again.function.plan, again.function.domain) == (job.plan, images)


def test_a_job_that_may_not_go_on_with_what_it_finds_goes_on_with_what_it_began(plan, images):
    job = Job(replace(plan(), resume="never"), images)
    assert job.checkpoint().function.plan.resume == "never", "the folder may be somebody else's"
    outside = signal.getsignal(signal.SIGUSR2)
    calls = []
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(job.checkpoint().function.plan.resume))
    before = signal.getsignal(signal.SIGTERM)

    def stop(number, frame):
        raise KeyboardInterrupt

    try:
        with job._requeued_after_saving():
            signal.signal(signal.SIGTERM, stop)  # what the loop does
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR2, outside)
    assert calls == ["auto"]
    assert Job(replace(plan(), resume="force"), images).checkpoint().function.plan.resume == "force"


def test_without_sbatch_a_cluster_is_refused_with_what_to_do(plan, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch"):
        submit(plan())


def test_a_submitted_run_says_how_to_follow_it(tmp_path):
    made = Submitted(run=Run(tmp_path), job="17", logs=tmp_path / "slurm", cluster="slurm", finished=False)
    for part in ("job 17", "squeue --job 17", "17_0_log.out", f"doctor run={tmp_path}", "scancel 17"):
        assert part in made.text()
    assert made.as_json() == {"job": "17", "cluster": "slurm", "logs": str(tmp_path / "slurm"), "finished": False, "run": str(tmp_path)}


def test_without_submitit_the_extra_is_named(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtra, match="slurm"):
        submit(plan())


def test_training_here_is_not_taken_for_handing_over(plan, images):
    with pytest.raises(UserError, match="submit"):
        pretrain(plan(), domain=images)
