"""A process that is killed between any two operations on the disk: what it had saved before is there, and it can go on."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from dinodomain.checkpoint import (
    Best,
    Kept,
    TrainState,
    best_files,
    best_path,
    checkpoint_folders,
    load_backbone,
    load_checkpoint,
    origin,
    put_back_best,
    read_best,
    remove_leftovers,
    save_checkpoint,
    write_kept,
)
from dinodomain.model import Backbone, ModelPlan
from dinodomain.types import Normalisation

NUMBERS = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.25,))
BACKBONE = Backbone.create(ModelPlan(dim=8, depth=1, heads=2, patch=4), ndim=2, image_size=8, normalisation=NUMBERS, domain="x")


def save(run, step):
    """What a run does after ``step`` steps: a better backbone, then a checkpoint; keeps two."""
    weights = {name: value + step for name, value in BACKBONE.state_dict().items()}
    kept = Kept(weights=weights, spec=BACKBONE.spec, history={"step": step})
    write_kept(best_path(run), kept, Best(step, step / 10))
    tensors = {"student": {"w": torch.full((3,), float(step))}, "teacher": {"w": torch.arange(2.0)}}
    save_checkpoint(run, TrainState(step=step, tensors=tensors, extra={"best": {"step": step}}), keep=2, beside=best_files(run))


def files(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def resume(run):
    """Goes on from the newest whole checkpoint; its step."""
    if not checkpoint_folders(run):
        return 0
    loaded = load_checkpoint(run)
    assert torch.equal(loaded.state.tensors["student"]["w"], torch.full((3,), float(loaded.state.step)))
    put_back_best(run, loaded.folder)
    note = read_best(run)
    assert note is not None
    assert note["step"] == loaded.state.step == origin(best_path(run))["step"], "the best of a future that is lost"
    load_backbone(best_path(run))
    return loaded.state.step


@pytest.mark.parametrize("again", [False, True])
def test_at_every_operation_what_was_announced_is_there_and_the_end_is_the_same(tmp_path, dies_at, again):
    """Killed while it saves step 3, for the first time or (as after a resume from a damaged one) once more."""
    before, whole, run = tmp_path / "before", tmp_path / "whole", tmp_path / "run"
    for step in (1, 2, 3) if again else (1, 2):
        save(before, step)
    shutil.copytree(before, whole)
    with dies_at(math.inf) as life:
        save(whole, 3)
    wanted = files(whole)
    assert len(life.done) > 25
    for number, operation in list(enumerate(life.done))[:: 3 if again else 1]:
        shutil.copytree(before, run)
        with pytest.raises(dies_at.error), dies_at(number):
            save(run, 3)
        step = resume(run)
        assert step in (2, 3)
        save(run, 3)
        remove_leftovers(run)
        assert files(run) == wanted, f"killed at operation {number} ({operation})"
        shutil.rmtree(run)


def test_a_checkpoint_without_a_best_removes_that_of_a_lost_future(tmp_path):
    folder = save_checkpoint(tmp_path, TrainState(step=1, tensors={"student": {"w": torch.ones(1)}}))
    write_kept(best_path(tmp_path), Kept(weights=BACKBONE.state_dict(), spec=BACKBONE.spec, history={}), Best(2, 0.5))
    put_back_best(tmp_path, folder)
    assert read_best(tmp_path) is None
    assert not best_path(tmp_path).exists()


def test_a_note_of_other_weights_is_not_believed(tmp_path):
    note, texts = best_path(tmp_path).with_suffix(".json"), []
    for value in (0.5, 0.6):
        weights = {name: tensor + value for name, tensor in BACKBONE.state_dict().items()}
        write_kept(best_path(tmp_path), Kept(weights=weights, spec=BACKBONE.spec, history={}), Best(2, value))
        texts.append(note.read_bytes())
    assert read_best(tmp_path)["value"] == 0.6
    note.write_bytes(texts[0])
    assert read_best(tmp_path) is None
