from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dinodomain.checkpoint import load_checkpoint
from dinodomain.engine import TrainingStopped, open_run, pretrain
from dinodomain.errors import UserError
from dinodomain.show.curves import draw_curves

CHILD = """
import json, sys
from dinodomain.config import build
from dinodomain.engine import PretrainPlan, pretrain
from dinodomain.testing import SyntheticImages
pretrain(build(PretrainPlan, json.loads(sys.argv[1])), domain=SyntheticImages(size=(32, 32)))
"""


def measured(rows):
    """Rows without the clock."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "data_wait", "samples_per_s")} for row in rows]


def start_child(plan, **environment):
    from dinodomain.lineage import to_json

    return subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(to_json(plan))],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_rows(out: Path, count: int, child) -> None:
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").is_file() or (out / "metrics.jsonl").read_bytes().count(b"\n") < count:
        assert child.poll() is None, child.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than these runs; one test draws."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


@pytest.fixture(scope="module")
def straight_run(tiny_plan, images, tmp_path_factory):
    """An uninterrupted run of ten steps."""
    return pretrain(tiny_plan(tmp_path_factory.mktemp("straight") / "run"), domain=images)


@pytest.fixture
def straight(straight_run):
    """Its rows."""
    return measured(straight_run.metrics())


def test_a_run_folder_tells_the_whole_story(make_plan, images, monkeypatch):
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", draw_curves)
    run = pretrain(make_plan(engine={"figures_every": 4}), domain=images)
    assert sorted(path.name for path in run.path.iterdir() if path.name[0] != ".") == [
        "checkpoints", "figures", "lineage.json", "log.txt", "metrics.jsonl", "plan.yaml",
    ]  # fmt: skip
    assert [row["step"] for row in run.metrics()] == list(range(10))
    assert [figure.name for figure in run.figures] == ["entropy.png", "feature_std.png", "gradients.png", "loss.png", "lr.png"]
    assert (run.step, run.finished) == (10, True)
    assert "step 9: loss" in (run.path / "log.txt").read_text()
    assert open_run(run.path).plan["engine"]["steps"] == 10
    assert "auto" not in json.dumps({key: value for key, value in run.plan.items() if key != "resume"})
    assert run.as_json()["finished"]
    assert "10 of 10 steps" in run.text()


def test_rows_hold_every_number_a_doctor_needs(make_plan, images):
    row = pretrain(make_plan(), domain=images).metrics()[-1]
    wanted = ["step", "loss", "loss_dino_global", "loss_dino_local", "loss_ibot", "loss_koleo", "lr", "weight_decay", "momentum", "skipped"]
    wanted += [
        "teacher_temperature",
        "teacher_entropy",
        "kl_to_uniform",
        "max_entropy",
        "feature_std",
        "grad_norm_backbone",
        "grad_norm_head",
    ]
    wanted += ["seconds", "samples_per_s", "data_wait"]
    assert set(wanted) <= set(row)
    parts = sum(value for name, value in row.items() if name.startswith("loss_"))
    assert row["loss"] == pytest.approx(parts, rel=1e-5)


def test_lineage_names_the_store_and_counts_the_samples_of_each_unit(make_plan, images, store):
    record = pretrain(make_plan(), domain=images).lineage
    assert record["counts"]["samples"] == 40 == sum(record["counts"]["units_drawn"].values())
    assert record["history"][0]["kind"] == "store"
    assert "out" not in record["plan"]
    assert str(store) not in json.dumps(record)


def test_the_backbone_of_a_run_encodes_and_knows_its_channels(make_plan, images):
    backbone = pretrain(make_plan(), domain=images).backbone()
    assert backbone.channels == ("c0", "c1", "c2")
    assert backbone.features(torch.zeros(2, 3, 16, 16)).shape == (2, 32)


def test_two_equal_runs_are_bit_equal_and_another_seed_is_not(make_plan, images, straight, tmp_path):
    again = pretrain(make_plan(out=str(tmp_path / "again"), loader={"threads": 2}), domain=images)
    assert measured(again.metrics()) == straight
    other = pretrain(make_plan(out=str(tmp_path / "other"), seed=1), domain=images)
    assert measured(other.metrics()) != straight


def test_ten_steps_equal_five_saved_loaded_and_five_more(make_plan, images, straight, straight_run, monkeypatch):
    plan = make_plan()

    class Killed(BaseException):
        pass

    from dinodomain.engine.record import Recorder

    plain = Recorder.write

    def killed_after_seven(self, row):
        plain(self, row)
        if row["step"] == 7:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "write", killed_after_seven)
        with pytest.raises(Killed):
            pretrain(plan, domain=images)
    assert [row["step"] for row in open_run(plan.out).metrics()] == list(range(8))
    torch.manual_seed(99)  # what the process drew before must not matter
    run = pretrain(plan, domain=images)
    assert measured(run.metrics()) == straight
    first, second = (load_checkpoint(path).state for path in (run.path, straight_run.path))
    for part, tensors in first.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors[part][name]), (part, name)


@pytest.mark.parametrize("rows", [1, 7])
def test_a_run_killed_at_any_moment_goes_on_bit_equal(make_plan, straight, rows):
    plan = make_plan()
    child = start_child(plan)
    wait_for_rows(Path(plan.out), rows, child)
    child.kill()
    child.communicate()
    child = start_child(plan)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0, output.decode()
    assert measured(open_run(plan.out).metrics()) == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_after_the_step_and_raise(make_plan, images, straight, number):
    plan = make_plan(checkpoint={"every": 100})

    class Tracker:
        def log(self, step, values):
            if step == 3:
                os.kill(os.getpid(), number)

        def close(self):
            pass

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        pretrain(plan, domain=images, trackers=[Tracker()])
    assert signal.getsignal(number) is before
    assert open_run(plan.out).step == 4
    assert measured(pretrain(plan, domain=images).metrics()) == straight


def test_a_run_works_outside_the_main_thread(make_plan, images):
    results = []
    thread = threading.Thread(target=lambda: results.append(pretrain(make_plan(engine={"steps": 2}), domain=images)))
    thread.start()
    thread.join()
    assert results[0].finished


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(make_plan, images, straight, caplog):
    plan = make_plan()
    run = pretrain(plan, domain=images)
    (run.path / "checkpoints" / "step-000010" / "student.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.INFO):
        run = pretrain(plan, domain=images)
    assert "passed over a damaged checkpoint" in caplog.text
    assert "step-000005" in caplog.text
    assert measured(run.metrics()) == straight


def test_a_finished_run_is_left_alone(make_plan, images):
    plan = make_plan()
    first = pretrain(plan, domain=images)
    before = (first.path / "metrics.jsonl").read_bytes()
    assert pretrain(plan, domain=images).finished
    assert (first.path / "metrics.jsonl").read_bytes() == before


def test_another_plan_in_the_same_folder_is_refused_naming_its_keys(make_plan, images):
    pretrain(make_plan(), domain=images)
    with pytest.raises(UserError, match=r"optim\.lr was 0\.001, now 0\.5.*another out folder"):
        pretrain(make_plan(optim={"lr": 0.5}), domain=images)
    with pytest.raises(UserError, match="resume=never"):
        pretrain(make_plan(resume="never"), domain=images)
    (open_run(make_plan().out).path / "plan.yaml").unlink()  # the checkpoint remembers too
    with pytest.raises(UserError, match=r"seed was 0, now 4"):
        pretrain(make_plan(seed=4), domain=images)


def test_a_store_of_another_domain_is_refused(make_plan, volumes):
    with pytest.raises(UserError, match=r"domain: is 'synthetic_volumes', the store was made by 'synthetic'; use domain=synthetic"):
        pretrain(make_plan(), domain=volumes)


def test_volumes_train_too(make_plan, volumes, volume_store):
    plan = make_plan(domain="synthetic_volumes", store=str(volume_store), engine={"steps": 2}, loader={"batch": 2})
    rows = pretrain(plan, domain=volumes).metrics()
    assert all(row["loss"] > 0 and not row["skipped"] for row in rows)


def test_training_lowers_the_loss(make_plan, images):
    plan = make_plan(
        engine={"steps": 40}, optim={"lr": 4e-3}, model={"drop_path": 0.0}, objective={"koleo_weight": 0.0, "ibot_weight": 0.0}
    )
    losses = [row["loss"] for row in pretrain(plan, domain=images).metrics()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_nan_after_nan_stops_the_run_with_what_to_do(make_plan, images, monkeypatch):
    from dinodomain.objective import Objective

    plain = Objective.forward

    def broken(self, pair, views, **keys):
        loss = plain(self, pair, views, **keys)
        object.__setattr__(loss, "total", loss.total * float("nan"))
        return loss

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(TrainingStopped, match=r"3 steps in a row gave NaN or Inf, the last was step 2.*optim\.lr"):
        pretrain(make_plan(engine={"max_bad_steps": 3}), domain=images)


def test_tensorboard_is_written_by_default(make_plan, images):
    run = pretrain(make_plan(engine={"steps": 1, "tensorboard": True}), domain=images)
    assert list((run.path / "tensorboard").glob("events*"))
