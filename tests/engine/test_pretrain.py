from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch

from dinodomain.checkpoint import load_backbone, origin
from dinodomain.engine import TrainingStopped, open_run, pretrain
from dinodomain.errors import UserError
from dinodomain.model import StartPlan
from dinodomain.objective import Objective
from dinodomain.show.curves import draw_curves


def measured(rows):
    """Rows without the clock."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "data_wait", "samples_per_s", "memory")} for row in rows]


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
        "backbones", "checkpoints", "figures", "lineage.json", "log.txt", "metrics.jsonl", "plan.yaml", "watch.safetensors",
    ]  # fmt: skip
    assert [row["step"] for row in run.metrics()] == list(range(10))
    assert {"entropy.png", "feature_std.png", "gradients.png", "loss.png", "lr.png"} <= {figure.name for figure in run.figures}
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
    wanted += ["seconds", "samples_per_s", "data_wait", "memory", "watch_knn_own"]
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


def test_backbones_are_kept_at_log_spaced_steps_and_where_the_teacher_watched_best(make_plan, images):
    run = pretrain(make_plan(checkpoint={"spaced": 3}, watch={"every": 4}), domain=images)
    assert list(run.backbones) == ["step-000002", "step-000005", "step-000010", "best"]
    for step in (2, 5, 10):
        counts = origin(run.backbones[f"step-{step:06d}"])["counts"]
        assert (counts["steps"], counts["samples"]) == (step, 4 * step)
    last = load_backbone(run.backbones["step-000010"]).state_dict()
    assert all(torch.equal(value, last[name]) for name, value in run.backbone().state_dict().items())
    looks = {row["step"] + 1: row["watch_rankme"] for row in run.metrics() if "watch_rankme" in row}
    assert list(looks) == [1, 4, 8, 10]
    best = max(looks, key=lambda step: (looks[step], step))
    assert run.best is not None
    assert (run.best["step"], run.best["value"]) == (best, looks[best])
    assert origin(run.backbones["best"])["counts"]["steps"] == best
    assert f"best after step {best - 1}: watch_rankme" in run.text()
    assert run.as_json()["backbones"]["best"] == str(run.backbones["best"])


def test_none_are_kept_where_none_are_asked_for(make_plan, images):
    run = pretrain(make_plan(checkpoint={"spaced": 0, "best": False}, engine={"steps": 2}), domain=images)
    assert (run.backbones, run.best) == ({}, None)
    assert "backbones" not in run.text()


def test_a_run_works_outside_the_main_thread(make_plan, images):
    results = []
    thread = threading.Thread(target=lambda: results.append(pretrain(make_plan(engine={"steps": 2}), domain=images)))
    thread.start()
    thread.join()
    assert results[0].finished


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
    plain = Objective.learn

    def broken(self, student, views, lesson, **keys):
        loss = plain(self, student, views, lesson, **keys)
        return replace(loss, total=loss.total * float("nan"))

    monkeypatch.setattr(Objective, "learn", broken)
    with pytest.raises(TrainingStopped, match=r"3 steps in a row gave NaN or Inf, the last was step 2.*optim\.lr"):
        pretrain(make_plan(engine={"max_bad_steps": 3}), domain=images)


def test_good_steps_before_nan_are_saved_and_the_remedy_can_be_followed(make_plan, images, straight_run, monkeypatch, tmp_path):
    from dinodomain.engine import loop

    plain = loop.train_step

    def poisoned(training, batch):
        with monkeypatch.context() as patch:
            if training.step >= 3:
                learn = Objective.learn
                patch.setattr(
                    Objective, "learn",
                    lambda *args, **keys: (lambda loss: replace(loss, total=loss.total * float("nan")))(learn(*args, **keys)),
                )  # fmt: skip
            return plain(training, batch)

    plan = make_plan(engine={"max_bad_steps": 2}, checkpoint={"every": 100})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", poisoned)
        with pytest.raises(TrainingStopped) as caught:
            pretrain(plan, domain=images)
    stopped = open_run(plan.out)
    assert stopped.step == 5, "three good steps and two that changed nothing"
    assert [row["skipped"] for row in stopped.metrics()] == [0, 0, 0, 1, 1]
    assert measured(stopped.metrics())[:3] == measured(straight_run.metrics())[:3]
    assert f"start.weights={plan.out} start.heads=true out=NEW" in str(caught.value)
    start = StartPlan(weights=plan.out, heads=True)
    again = pretrain(make_plan(out=str(tmp_path / "new"), start=start, optim={"lr": 1e-4}, engine={"steps": 1}), domain=images)
    begun = load_backbone(again.path / "backbones" / "start.safetensors").state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in stopped.backbone().state_dict().items())


def test_tensorboard_is_written_by_default(make_plan, images):
    run = pretrain(make_plan(engine={"steps": 1, "trackers": ("tensorboard",)}), domain=images)
    assert list((run.path / "tensorboard").glob("events*"))
