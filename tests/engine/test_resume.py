"""A run that stops, however it stops, goes on as if it had not: losses, weights, moments, centres, anchor, kept backbones are equal."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dinodomain.checkpoint import list_backbones, load_backbone, load_checkpoint, part_of, read_best
from dinodomain.engine import open_run, pretrain
from dinodomain.engine.log import MetricsFile, read_rows
from dinodomain.engine.record import Recorder
from dinodomain.errors import UserError

CLOCK = ("seconds", "data_wait", "samples_per_s", "memory")

EVERYTHING = {
    "model": {"position": "rope", "rope_jitter": 1.5, "rope_rescale": 2.0, "rope_shift": 0.2},
    "objective": {"patch_head": "separate", "centering": "softmax"},
    "gram": {"weight": 1.0, "refresh": 3, "refreshes": 2},
    "watch": {"every": 3},
    "checkpoint": {"every": 5, "spaced": 3},
}
"""A run with all that has a state, or is drawn anew at every step."""


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


@pytest.fixture(scope="module")
def everything(tiny_plan, images, tmp_path_factory):
    """Changes of a plan; the anchor is the backbone of an earlier run."""
    plan = with_changes(tiny_plan(tmp_path_factory.mktemp("earlier") / "run"), engine={"steps": 1})
    anchor = pretrain(plan, domain=images).backbones["step-000001"]
    return {**EVERYTHING, "gram": {**EVERYTHING["gram"], "teacher": str(anchor)}}


@pytest.fixture(scope="module")
def straight(tiny_plan, images, everything, tmp_path_factory):
    """An uninterrupted run of ten steps with everything."""
    run = pretrain(with_changes(tiny_plan(tmp_path_factory.mktemp("straight") / "run"), **everything), domain=images)
    anchor = part_of(load_checkpoint(run.path).state, "anchor")
    assert anchor is not None
    assert anchor["refreshes"] == 2, "nothing is tested of anchoring"
    return run.path


def with_changes(plan, **changes):
    from dataclasses import replace

    for name, value in changes.items():
        plan = replace(plan, **{name: replace(getattr(plan, name), **value)})
    return plan


def measured(run: Path):
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in read_rows(run / "metrics.jsonl")]


def same(run: Path, straight: Path) -> None:
    """Everything that two runs leave is bit-equal, but for times and for what the plan says of workers."""
    assert measured(run) == measured(straight)
    first, second = (load_checkpoint(path).state for path in (run, straight))
    assert first.tensors.keys() == second.tensors.keys()
    for part, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[part].keys()
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors[part][name]), (part, name)
    assert (first.extra, first.counters, first.loader) == (second.extra, second.counters, second.loader)
    assert read_best(run) == read_best(straight)
    assert list(list_backbones(run)) == list(list_backbones(straight))
    for name, path in list_backbones(run).items():
        wanted = load_backbone(list_backbones(straight)[name]).state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in load_backbone(path).state_dict().items()), name


def die_after(monkeypatch, step: int) -> None:
    plain = Recorder.write

    def write(self, row):
        plain(self, row)
        if row["step"] == step:
            raise Killed

    monkeypatch.setattr(Recorder, "write", write)


@pytest.mark.parametrize(("step", "loader"), [(3, {}), (7, {"threads": 2})])
def test_ten_steps_equal_some_saved_loaded_and_the_rest(make_plan, images, everything, straight, monkeypatch, step, loader):
    """Also with other readers, and whatever the process drew before."""
    plan = make_plan(**everything)
    with monkeypatch.context() as patch:
        die_after(patch, step)
        with pytest.raises(Killed):
            pretrain(plan, domain=images)
    assert [row["step"] for row in open_run(plan.out).metrics()] == list(range(step + 1))
    torch.manual_seed(99)
    same(pretrain(with_changes(plan, loader=loader), domain=images).path, straight)


def test_waiting_for_the_disk_gives_the_same(make_plan, images, everything, straight):
    plan = with_changes(make_plan(**everything), checkpoint={"background": False})
    same(pretrain(plan, domain=images).path, straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_after_the_step_and_raise(make_plan, images, everything, straight, monkeypatch, number):
    plan = with_changes(make_plan(**everything), checkpoint={"every": 100})
    plain = Recorder.write

    def write(self, row):
        plain(self, row)
        if row["step"] == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", write)
        with pytest.raises(KeyboardInterrupt):
            pretrain(plan, domain=images)
    assert signal.getsignal(number) is before
    assert open_run(plan.out).step == 4
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    same(pretrain(plan, domain=images).path, straight)


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(make_plan, images, everything, straight, caplog):
    plan = make_plan(**everything)
    run = pretrain(plan, domain=images)
    (run.path / "checkpoints" / "step-000010" / "student.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.INFO):
        run = pretrain(plan, domain=images)
    assert "passed over a damaged checkpoint" in caplog.text
    assert "step-000005" in caplog.text
    same(run.path, straight)


def full(monkeypatch, steps) -> None:
    """The disk is full for checkpoints of these steps."""
    import safetensors.torch

    plain = safetensors.torch.save_file

    def save_file(tensors, path, **keys):
        if any(f"step-{step:06d}" in str(path) for step in steps):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return plain(tensors, path, **keys)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_not_the_run(make_plan, images, everything, straight, monkeypatch, caplog):
    plan = with_changes(make_plan(**everything), checkpoint={"every": 2, "keep": 9})
    full(monkeypatch, [4, 6])
    run = pretrain(plan, domain=images)
    assert caplog.text.count("Training goes on: ") == 2
    assert "cannot save step 4: No space left on device" in caplog.text
    assert "checkpoint.keep" in caplog.text
    assert [path.name for path in sorted((run.path / "checkpoints").glob("[.s]*"))] == ["step-000002", "step-000008", "step-000010"]
    same(run.path, straight)


@pytest.mark.parametrize(("step", "kept"), [(5, 0), (10, 5)])
def test_a_first_or_last_save_that_fails_ends_the_run_and_loses_nothing_before_it(
    make_plan, images, everything, straight, monkeypatch, step, kept
):
    plan = make_plan(**everything)
    with monkeypatch.context() as patch:
        full(patch, [step])
        with pytest.raises(UserError, match=rf"cannot save step {step}: No space left .* MiB are needed.*checkpoint\.keep.*resume=auto"):
            pretrain(plan, domain=images)
    assert open_run(plan.out).step == kept
    assert not list((Path(plan.out) / "checkpoints").glob(".step*"))
    same(pretrain(plan, domain=images).path, straight)


@pytest.mark.parametrize("refused", [1, 2])
def test_a_save_that_failed_is_tried_again_where_the_run_ends_at_that_very_step(
    make_plan, images, everything, straight, monkeypatch, caplog, refused
):
    """The checkpoint of step 6 fails beside training; then the data of the next step cannot be read."""
    import safetensors.torch

    from dinodomain.engine import loop

    plan = with_changes(make_plan(**everything), checkpoint={"every": 3})
    plain, plain_next, tried = safetensors.torch.save_file, loop._next, []

    def save_file(tensors, path, **keys):
        if "step-000006" in str(path) and "checkpoints" in str(path) and len(tried) < refused:
            tried.append(path)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return plain(tensors, path, **keys)

    def unreadable(stream):
        unreadable.asked += 1
        return (None, UserError("store", "shard is damaged")) if unreadable.asked == 7 else plain_next(stream)

    unreadable.asked = 0
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", save_file)
        patch.setattr(loop, "_next", unreadable)
        with pytest.raises(UserError, match="shard is damaged" if refused == 1 else "cannot save step 6"):
            pretrain(plan, domain=images)
    assert len(tried) == refused
    assert "The run ends: " in caplog.text
    assert open_run(plan.out).step == (6 if refused == 1 else 3)
    same(pretrain(plan, domain=images).path, straight)


def test_a_held_tile_that_cannot_be_read_ends_a_run_not_its_work(make_plan, images, everything, straight, monkeypatch, caplog):
    from dinodomain.engine.watch import Watcher

    plan = with_changes(make_plan(**everything), checkpoint={"every": 100}, watch={"every": 4})

    def damaged(*_args, **_keys):
        yield from ()
        raise UserError("store", "shard is damaged", remedy="restore the file")

    with monkeypatch.context() as patch:
        patch.setattr("dinodomain.engine.watch.sweep_tiles", damaged)
        with pytest.raises(UserError, match="shard is damaged"):
            pretrain(plan, domain=images)
    stopped = open_run(plan.out)
    assert (stopped.step, len(stopped.metrics())) == (1, 1)
    assert "the look after step 0 failed; what was trained is saved" in caplog.text
    monkeypatch.setattr(Watcher, "due", lambda self, step: step % 3 == 0 or step == 10)  # as the straight run looks
    whole = pretrain(plan, domain=images)
    assert [row["step"] for row in whole.metrics()] == list(range(10))
    losses = [row["loss"] for row in open_run(straight).metrics()]
    assert [row["loss"] for row in whole.metrics()] == losses


def test_a_backbone_that_the_disk_refused_comes_with_the_next_save(make_plan, images, everything, straight, monkeypatch, caplog):
    from dinodomain.checkpoint import kept

    plan, plain, asked = make_plan(**everything), kept.write_backbone, []

    def write_backbone(path, *rest):
        asked.append(path.name)
        if len(asked) == 3:  # the first save is waited for, and would stop the run
            raise OSError(28, "No space left on device")
        return plain(path, *rest)

    plan = with_changes(plan, checkpoint={"every": 2, "keep": 9})
    monkeypatch.setattr(kept, "write_backbone", write_backbone)
    run = pretrain(plan, domain=images)
    assert f"cannot save {asked[2]}: No space left on device" in caplog.text
    assert asked.count(asked[2]) > 1
    same(run.path, straight)


def test_rows_that_the_disk_refuses_wait_and_none_is_torn(tmp_path):
    class Full:
        """Takes half of what it is given, then nothing for a while."""

        def __init__(self, handle):
            self.handle, self.refusals = handle, 3

        def write(self, data):
            if self.refusals == 3:
                self.refusals -= 1
                return self.handle.write(data[: len(data) // 2])
            if self.refusals:
                self.refusals -= 1
                raise OSError(28, "No space left on device")
            return self.handle.write(data)

        def __getattr__(self, name):
            return getattr(self.handle, name)

    metrics = MetricsFile(tmp_path / "m")
    metrics._handle = Full(metrics._handle)
    metrics.write({"step": 0})
    with pytest.raises(OSError, match="No space"):
        metrics.sync()
    metrics.write({"step": 1})
    metrics.sync()
    metrics.close()
    assert [row["step"] for row in read_rows(tmp_path / "m")] == [0, 1]
