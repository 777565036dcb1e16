from __future__ import annotations

import errno

import pytest
import torch

from dinodomain.checkpoint import (
    Best,
    Kept,
    TrainState,
    better,
    list_backbones,
    load_backbone,
    load_checkpoint,
    part_of,
    save_backbone,
    save_checkpoint,
    spaced_path,
    spaced_steps,
    with_part,
    write_kept,
)
from dinodomain.errors import UserError
from dinodomain.model import Backbone, ModelPlan
from dinodomain.types import Normalisation


def make_backbone() -> Backbone:
    numbers = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.25,))
    return Backbone.create(ModelPlan(dim=8, depth=1, heads=2, patch=4), ndim=2, image_size=8, normalisation=numbers, domain="x").eval()


@pytest.mark.parametrize(
    ("steps", "count", "wanted"),
    [(1000, 8, (8, 16, 31, 62, 125, 250, 500, 1000)), (10, 3, (2, 5, 10)), (3, 8, (1, 2, 3)), (1, 8, (1,)), (7, 1, (7,)), (7, 0, ())],
)
def test_each_step_is_about_half_of_the_next_and_the_last_is_the_end(steps, count, wanted):
    assert spaced_steps(steps, count) == wanted


def test_of_equal_looks_the_later_is_best_and_what_was_not_measured_is_not():
    assert better(None, {"watch_rankme": 0.2}, 5) == Best(5, 0.2)
    assert better(Best(5, 0.2), {"watch_rankme": 0.2}, 9) == Best(9, 0.2)
    assert better(Best(5, 0.2), {"watch_rankme": 0.1, "watch_knn_own": 0.9}, 9) is None
    assert better(None, {}, 9) is better(None, {"watch_rankme": float("nan")}, 9) is None


def test_labels_decide_where_they_are_watched_and_another_measure_begins_anew():
    labelled = {"watch_knn": 0.3, "watch_knn_own": 0.9, "watch_rankme": 4.0}
    assert better(Best(5, 9.0), labelled, 9) == Best(9, 0.3, "watch_knn")
    assert better(Best(5, 0.4, "watch_knn"), labelled, 9) is None


def test_kept_backbones_load_and_are_listed_in_order_of_their_steps(tmp_path):
    backbone = make_backbone()
    kept = Kept(weights=backbone.state_dict(), spec=backbone.spec, history={"kind": "checkpoint"})
    for step in (1200000, 7, 30):
        write_kept(spaced_path(tmp_path, step), kept)
    save_backbone(tmp_path / "backbones" / "start.safetensors", backbone)
    (tmp_path / "backbones" / ".best.safetensors.1.tmp").write_bytes(b"half")
    assert list(list_backbones(tmp_path)) == ["step-000007", "step-000030", "step-1200000", "start"]
    loaded = load_backbone(list_backbones(tmp_path)["step-000030"])
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("number", "wanted"), [(errno.ENOSPC, "MiB are needed, .* MiB are free.*checkpoint.keep"), (errno.EROFS, "writable")]
)
def test_a_disk_that_refuses_is_told_with_what_to_change(tmp_path, monkeypatch, number, wanted):
    backbone = make_backbone()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(number, "no")))
    with pytest.raises(UserError, match=rf"cannot save step-000007\.safetensors: no.*{wanted}"):
        write_kept(spaced_path(tmp_path, 7), Kept(weights=backbone.state_dict(), spec=backbone.spec, history={}))
    assert not list((tmp_path / "backbones").iterdir())


def test_further_parts_come_back_and_older_checkpoints_know_none(tmp_path):
    state = TrainState(step=1, tensors={"student": {"w": torch.ones(2)}})
    part = {"w": torch.arange(3.0), "low": 2, "source": "start"}
    state = with_part(with_part(state, "anchor", part), "best", {})
    save_checkpoint(tmp_path, state)
    found = load_checkpoint(tmp_path).state
    back = part_of(found, "anchor")
    assert back is not None
    assert torch.equal(back.pop("w"), part["w"])
    assert back == {"low": 2, "source": "start"}
    assert part_of(found, "best") == {}
    assert part_of(found, "other") is None
