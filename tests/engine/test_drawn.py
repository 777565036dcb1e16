"""What runs draw, by whom and how: reader processes, several draws of a read, mixed stores, and changes of all that on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dinodomain.engine import open_run, pretrain
from dinodomain.engine.record import Recorder
from dinodomain.errors import UserError
from dinodomain.lineage import to_json
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, tiny_store

CHILD = """
import json, sys
from dinodomain.config import build
from dinodomain.engine import PretrainPlan, pretrain
from dinodomain.testing import SyntheticImages
pretrain(build(PretrainPlan, json.loads(sys.argv[1])), domain=SyntheticImages(size=(32, 32)))
"""


def measured(run):
    """Rows without the clock."""
    measured = ("seconds", "data_wait", "samples_per_s", "memory")
    return [{name: value for name, value in row.items() if name not in measured} for row in run.metrics()]


def readers():
    """Living children of this process that read."""
    return [child for child in psutil.Process().children(recursive=True) if "dinodomain.loader.worker" in " ".join(child.cmdline())]


class Killed(BaseException):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """Ends the next run after a step as a kill would: nothing is saved."""

    def arm(step):
        plain = Recorder.write

        def write(self, row):
            plain(self, row)
            if row["step"] == step:
                monkeypatch.setattr(Recorder, "write", plain)
                raise Killed

        monkeypatch.setattr(Recorder, "write", write)

    return arm


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


@pytest.fixture(scope="module")
def straight(tiny_plan, images, tmp_path_factory):
    """Rows of an uninterrupted run that reads in its own thread."""
    return measured(pretrain(tiny_plan(tmp_path_factory.mktemp("straight") / "run"), domain=images))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A store whose tiles share a bucket with those of ``store``."""
    return tiny_store(tmp_path_factory.mktemp("second") / "store", domain=SyntheticImages(size=(30, 28)), num=6)


@pytest.fixture
def mix(store, second, tmp_path):
    """Writes a mix file of both."""

    def write(first=0.75, other=0.25):
        path = tmp_path / "mix.yaml"
        path.write_text(f"stores: [{{path: {store}, share: {first}}}, {{path: {second}, share: {other}}}]")
        return str(path)

    return write


# Readers.


@pytest.mark.parametrize("workers", [1, 2])
def test_reader_processes_change_no_loss_and_end_with_the_run(make_plan, images, straight, workers):
    run = pretrain(make_plan(loader={"workers": workers, "threads": 1}), domain=images)
    assert measured(run) == straight
    assert readers() == []


def test_readers_end_with_a_run_that_fails(make_plan, images, stop_after):
    stop_after(3)
    with pytest.raises(Killed):
        pretrain(make_plan(loader={"workers": 2, "threads": 1}), domain=images)
    assert readers() == []


def test_a_run_killed_with_its_readers_at_work_goes_on_bit_equal_with_other_readers(make_plan, images, straight):
    plan = make_plan(loader={"workers": 2, "threads": 1})
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(to_json(plan))], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    rows, deadline, below = Path(plan.out) / "metrics.jsonl", time.monotonic() + 60, []
    while not rows.is_file() or rows.read_bytes().count(b"\n") < 7:
        assert child.poll() is None, child.stdout.read().decode()
        assert time.monotonic() < deadline
        below = psutil.Process(child.pid).children(recursive=True) or below
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert measured(pretrain(make_plan(loader={"workers": 1, "threads": 2}), domain=images)) == straight
    assert below
    assert not psutil.wait_procs(below, timeout=20)[1], "readers outlive a killed run"


def test_the_number_of_readers_and_their_memory_are_logged(make_plan, images):
    run = pretrain(make_plan(loader={"workers": None}, engine={"steps": 1}), domain=images)
    log = (run.path / "log.txt").read_text()
    assert "plan: loader.workers = 0: loader.threads=0 reads where it computes" in log
    assert "plan: batches are read into a ring of 49168 bytes per process (4 parts of 0.0117 MiB)" in log
    assert run.plan["loader"]["workers"] == 0


# Several draws of a read.


def test_a_run_with_several_draws_goes_on_bit_equal_in_the_middle_of_a_group(make_plan, images, straight, stop_after, tmp_path):
    loader = {"draws": 2, "spread": 3}
    whole = measured(pretrain(make_plan(loader=loader, out=str(tmp_path / "whole")), domain=images))
    assert whole != straight
    stop_after(7)  # saved after step 5, when three groups are half drawn
    with pytest.raises(Killed):
        pretrain(make_plan(loader={**loader, "workers": 1, "threads": 1}), domain=images)
    run = pretrain(make_plan(loader=loader), domain=images)
    assert measured(run) == whole
    assert sum(run.lineage["counts"]["units_drawn"].values()) == 40


# Mixes.


def test_a_mix_trains_and_its_lineage_says_who_was_drawn_from_which_store(make_plan, images, mix, store, second):
    run = pretrain(make_plan(store=mix(), engine={"steps": 40}, checkpoint={"every": 40}), domain=images)
    record = run.lineage
    assert record["history"][0]["kind"] == "mix"
    assert [one["kind"] for one in record["history"][0]["history"]] == ["store", "store"]
    parts = record["counts"]["stores"]
    assert [part["store"] for part in parts] == [open_store(path).digest for path in (store, second)]
    assert [part["samples"] for part in parts] == [pytest.approx(120, abs=8), pytest.approx(40, abs=8)]
    assert sum(part["samples"] for part in parts) == 160 == record["counts"]["samples"]
    assert all(sum(part["units_drawn"].values()) == part["samples"] for part in parts)
    assert str(store) not in json.dumps(record)


def test_a_mix_goes_on_bit_equal_and_its_figure_of_views_is_drawn(make_plan, images, mix, stop_after, tmp_path):
    from dinodomain.engine.look import ViewsFigurePlan, draw_figure
    from dinodomain.views import ViewsPlan

    whole = measured(pretrain(make_plan(store=mix(), out=str(tmp_path / "whole")), domain=images))
    stop_after(6)
    with pytest.raises(Killed):
        pretrain(make_plan(store=mix()), domain=images)
    assert measured(pretrain(make_plan(store=mix(3, 1)), domain=images)) == whole
    views = ViewsPlan(global_size=16, local_size=8, num_local=2)
    assert draw_figure(ViewsFigurePlan(store=mix(), out=str(tmp_path), views=views), domain=images).note.startswith("4 tiles")


# Changes.


def test_another_share_is_refused_by_name_and_taken_when_told(make_plan, images, mix, stop_after, caplog):
    stop_after(7)
    with pytest.raises(Killed):
        pretrain(make_plan(store=mix()), domain=images)
    with pytest.raises(
        UserError, match=r"store: .* not what it drew: stores\[0\]\.share was 0\.75, now 0\.5; stores\[1\]\.share was .*force"
    ):
        pretrain(make_plan(store=mix(1, 1)), domain=images)
    run = pretrain(make_plan(store=mix(1, 1), resume="force"), domain=images)
    assert "from step 5 on other tiles are drawn: stores[0].share was 0.75, now 0.5" in caplog.text
    assert [row["step"] for row in run.metrics()] == list(range(10))
    counts = run.lineage["counts"]
    assert counts["samples"] == 40 == sum(counts["units_drawn"].values())
    (change,) = counts["changes"]
    assert (change["until"], sum(change["units_drawn"].values())) == (5, 20)
    assert sum(part["samples"] for part in counts["stores"]) == 20
    assert [one["plan"]["stores"][0]["share"] for one in run.lineage["history"]] == [0.5, 0.75]


def test_what_was_drawn_before_a_change_is_kept_by_later_resumes(make_plan, images, store, second, stop_after):
    stop_after(6)
    with pytest.raises(Killed):
        pretrain(make_plan(checkpoint={"every": 2}), domain=images)
    stop_after(8)
    changed = {"store": str(second), "checkpoint": {"every": 2}}
    with pytest.raises(UserError, match=r"the store was \w{12}, now \w{12}; it had 12 eligible tiles, now 6"):
        pretrain(make_plan(**changed), domain=images)
    with pytest.raises(Killed):
        pretrain(make_plan(**changed, resume="force"), domain=images)
    run = pretrain(make_plan(**changed), domain=images)
    record = run.lineage
    assert [change["until"] for change in record["counts"]["changes"]] == [6]
    assert record["counts"]["changes"][0]["store"] == open_store(store).digest
    assert record["counts"]["samples"] == 40
    assert [one["digest"] for one in record["history"]] == [open_store(path).lineage["digest"] for path in (second, store)]


def test_other_weights_are_taken_when_told_and_the_rest_of_the_plan_is_not(make_plan, images, stop_after):
    stop_after(7)
    with pytest.raises(Killed):
        pretrain(make_plan(), domain=images)
    with pytest.raises(UserError, match=r"loader\.min_valid was 0\.5, now 0\.9.*resume=force goes on at the same step"):
        pretrain(make_plan(loader={"min_valid": 0.9}), domain=images)
    with pytest.raises(UserError, match=r"optim\.lr was 0\.001, now 0\.5") as error:
        pretrain(make_plan(loader={"min_valid": 0.9}, optim={"lr": 0.5}, resume="force"), domain=images)
    assert "min_valid" not in str(error.value)
    run = pretrain(make_plan(loader={"min_valid": 0.9}, resume="force"), domain=images)
    assert run.plan["loader"]["min_valid"] == 0.9
    assert run.finished


def test_the_network_s_range_stays_that_of_the_first_store(make_plan, images, second, stop_after):
    keys = {"views": {"normalise": "store"}}
    stop_after(6)
    with pytest.raises(Killed):
        pretrain(make_plan(**keys), domain=images)
    first = open_run(make_plan().out).backbone().normalisation
    run = pretrain(make_plan(**keys, store=str(second), resume="force"), domain=images)
    assert run.backbone().normalisation == first
    assert first.mean != tuple(open_store(second).stats()[name].mean for name in first.channels)
