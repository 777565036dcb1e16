from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file

from dinodomain.checkpoint import TrainState, load_backbone, origin, save_backbone, save_checkpoint
from dinodomain.errors import UserError
from dinodomain.model import Backbone, Head, ModelPlan, Pair
from dinodomain.types import Normalisation


def make_backbone(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    numbers = Normalisation(mode="domain", channels=("a", "b"), low=(0.0, 0.0), high=(1.0, 2.0), mean=(0.5, 0.5), std=(0.25, 0.3))
    plan = ModelPlan(dim=8, depth=1, heads=2, patch=4, registers=1)
    return Backbone.create(plan, ndim=2, image_size=16, normalisation=numbers, domain="x")


def save_run(run, step=3):
    backbone = make_backbone()
    head = Head(8, hidden=8, bottleneck=4, layers=2, prototypes=6)
    pair = Pair(backbone, head)
    with torch.no_grad():
        for parameter in pair.teacher.parameters():
            parameter.add_(0.5)
    tensors = {"student": pair.student.state_dict(), "teacher": pair.teacher.state_dict()}
    save_checkpoint(run, TrainState(step=step, tensors=tensors, backbone=backbone.spec, lineage={"kind": "checkpoint"}))
    return pair.teacher.backbone.eval()


def assert_same(first: Backbone, second: Backbone) -> None:
    x = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.encode(x).cls, second.encode(x).cls)
    assert first.spec == second.spec
    assert not second.training


def test_the_teacher_comes_out_of_a_run_and_of_a_checkpoint(tmp_path):
    teacher = save_run(tmp_path)
    assert_same(teacher, load_backbone(tmp_path))
    assert_same(teacher, load_backbone(str(tmp_path / "checkpoints" / "step-000003")))
    assert origin(tmp_path) == {"kind": "checkpoint"}


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog):
    teacher = save_run(tmp_path, 3)
    save_run(tmp_path, 4)
    (tmp_path / "checkpoints" / "step-000004" / "teacher.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        assert_same(teacher, load_backbone(tmp_path))
    assert "passed over" in caplog.text


def test_an_exported_file_carries_spec_and_lineage(tmp_path):
    backbone = make_backbone().eval()
    path = save_backbone(tmp_path / "backbone.safetensors", backbone, history={"kind": "run"})
    for place in (path, tmp_path):
        assert_same(backbone, load_backbone(place))
        assert origin(place) == {"kind": "run"}


def test_a_flipped_weight_and_a_truncated_export_are_refused_by_name(tmp_path):
    path = save_backbone(tmp_path / "x.safetensors", make_backbone())
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors: weights do not match"):
        load_backbone(path)
    path.write_bytes(data[:-9])
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be read"):
        load_backbone(path)


def test_paths_that_hold_no_backbone_are_refused_with_what_is_allowed(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="without a dinodomain spec"):
        load_backbone(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"holds neither checkpoints/, state\.json nor backbone\.safetensors"):
        load_backbone(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(tmp_path / "nowhere")
