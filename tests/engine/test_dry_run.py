from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace

import pytest
import torch

from dinodomain.engine import dry_run, pretrain
from dinodomain.engine.dry_run import check_disk, disk_needed
from dinodomain.errors import MissingExtra, UserError
from dinodomain.lineage import to_json


@pytest.fixture(scope="module")
def forecast(tiny_plan, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    plan = tiny_plan(folder / "deep" / "run")
    told = dry_run(plan, domain=images)
    return folder, plan, told


def test_nothing_is_left_behind(forecast):
    folder, _, _ = forecast
    assert list(folder.iterdir()) == []


def test_it_tells_memory_speed_time_and_disk(forecast):
    _, plan, told = forecast
    assert told.samples_per_s == pytest.approx(plan.loader.batch / told.seconds_per_step)
    assert told.hours == pytest.approx(told.seconds_per_step * plan.engine.steps / 3600)
    assert 0 <= told.data_wait <= 1
    assert told.host_bytes is None or told.host_bytes > 2**20
    text = told.text()
    assert all(
        word in text for word in ("memory at the peak", "samples/s", "waiting for data", "10 steps take", "disk:", "nothing was kept")
    )
    assert json.loads(json.dumps(to_json(told.as_json())))["dry_run"] is True


def test_the_disk_it_foresees_is_what_the_run_takes(forecast, make_plan, images, monkeypatch):
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])
    plan = make_plan(checkpoint={"keep": 1, "every": 10}, watch={"tiles": 0})
    run = pretrain(plan, domain=images)
    taken = sum(
        file.stat().st_size for file in run.path.rglob("*") if file.is_file() and file.suffix in (".safetensors", ".json", ".jsonl")
    )
    told = dry_run(replace(plan, out=str(run.path.parent / "other")), domain=images)
    assert taken - told.checkpoint_bytes < told.disk_needed < taken + 2 * told.checkpoint_bytes


def test_disk_grows_with_what_is_kept(tiny_plan, tmp_path):
    plan = replace(tiny_plan(tmp_path), watch=replace(tiny_plan(tmp_path).watch, tiles=0))
    sizes = {"checkpoint": 1000, "backbone": 10, "row": 1, "numbers": 5}
    assert disk_needed(plan, **sizes) == 3 * 1000 + 8 * 10 + 10 * 1
    two = replace(plan, checkpoint=replace(plan.checkpoint, keep=1, spaced=2), engine=replace(plan.engine, steps=100))
    assert disk_needed(two, **sizes) == 2 * 1000 + 2 * 10 + 100


def test_a_disk_that_is_too_small_is_refused_by_key(forecast):
    _, plan, told = forecast
    with pytest.raises(UserError, match=r"checkpoint\.keep: is 3: the run needs .*free; .*lower checkpoint\.keep or checkpoint\.spaced"):
        check_disk(replace(told, disk_free=told.disk_needed - 1), plan)
    with pytest.raises(UserError, match="1 would not be enough"):
        check_disk(replace(told, disk_free=1), plan)


def test_memory_that_is_too_small_is_refused_before_the_first_step(make_plan, images, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["dinodomain.engine.build"], "memory_by_kind", lambda share: {"cpu": 2**16})
    with pytest.raises(UserError, match=r"engine\.accumulate: a step needs about .*, the device has 64 KiB; take engine\.accumulate=2"):
        dry_run(make_plan(), domain=images)
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_in_a_step_is_refused_by_key_and_leaves_nothing(make_plan, images, monkeypatch, tmp_path):
    def fail(training, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sys.modules["dinodomain.engine.dry_run"], "train_step", fail)
    with pytest.raises(UserError, match=r"engine\.accumulate: a step needs more memory than there is"):
        dry_run(make_plan(), domain=images)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_without_its_package_is_refused_first(make_plan, images):
    with pytest.raises(
        MissingExtra, match=r"engine\.trackers=mlflow needs mlflow: pip install mlflow; or leave it out: engine\.trackers=\[\]"
    ):
        dry_run(make_plan(engine={"trackers": ("mlflow",)}), domain=images)


def test_each_checkpoint_may_keep_another_best_backbone(tiny_plan, tmp_path):
    plan, sizes = tiny_plan(tmp_path), {"checkpoint": 0, "backbone": 1, "row": 0, "numbers": 0}
    watched = replace(plan, watch=replace(plan.watch, tiles=8), checkpoint=replace(plan.checkpoint, best=True, keep=1, spaced=0))
    unwatched = replace(watched, watch=replace(plan.watch, tiles=0))
    # Two checkpoints while the second is written, and the best of the run.
    assert disk_needed(watched, **sizes) - disk_needed(unwatched, **sizes) == 3


def test_an_anchor_that_waits_for_drift_is_measured_at_work(make_plan, images, monkeypatch):
    module = sys.modules["dinodomain.engine.dry_run"]
    seen, step = [], module.train_step

    def watched(training, batch):
        result = step(training, batch)
        seen.append(training.anchor is not None and training.anchor.active)
        return result

    monkeypatch.setattr(module, "train_step", watched)
    plan = make_plan(gram={"weight": 1.0, "teacher": "drift"}, watch={"tiles": 8, "every": 1})
    told = dry_run(plan, domain=images)
    assert seen == [True] * 3
    assert any(reason.startswith("gram.teacher = drift: measured") for reason in told.reasons)
    # The checkpoint holds the anchor's weights, too.
    plain = dry_run(replace(plan, gram=replace(plan.gram, weight=0.0)), domain=images)
    assert told.checkpoint_bytes > 1.05 * plain.checkpoint_bytes


def test_a_disk_that_refuses_the_checkpoint_is_refused_by_key(make_plan, images, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dinodomain.lineage.write_bytes", full)
    with pytest.raises(UserError, match=r"^out: .* does not take one checkpoint: No space left on device; free space, or choose"):
        dry_run(make_plan(), domain=images)
