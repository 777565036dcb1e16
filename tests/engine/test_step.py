from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinodomain.engine import build, train_step
from dinodomain.engine import step as step_module
from dinodomain.engine.loop import host_values


def fingerprint(training):
    state = training.snapshot({}, {})
    return {f"{part}/{name}": value.clone() for part, tensors in state.tensors.items() for name, value in tensors.items()}


@pytest.fixture
def setup(make_plan, images):
    return build(make_plan(), images)


def test_a_step_moves_student_teacher_centres_and_moments(setup):
    training, stream = setup.training, iter(setup.loader)
    train_step(training, next(stream))
    before = fingerprint(training)
    result = train_step(training, next(stream))
    after = fingerprint(training)
    assert not result.skipped
    assert training.step == 2
    for part in (
        "student/head.mlp.0.weight",
        "teacher/backbone.vit.norm.weight",
        "objective/cls_centering.center",
        "optimizer/exp_avg/head.mlp.0.weight",
    ):
        assert not torch.equal(before[part], after[part]), part


@pytest.mark.parametrize("poison", ["gradient", "loss"])
def test_a_step_with_nan_leaves_everything_as_it_was_and_is_counted(setup, poison):
    training, stream = setup.training, iter(setup.loader)
    train_step(training, next(stream))
    before = fingerprint(training)
    if poison == "gradient":
        weight = training.pair.student.backbone.vit.norm.weight
        handle = weight.register_hook(lambda gradient: gradient * float("nan"))
        result = train_step(training, next(stream))
        handle.remove()
    else:
        held = training.pair.student.backbone.vit.norm.bias.detach().clone()
        training.pair.student.backbone.vit.norm.bias.data.fill_(float("inf"))
        result = train_step(training, next(stream))
        training.pair.student.backbone.vit.norm.bias.data.copy_(held)
    assert result.skipped
    assert (training.bad_in_row, training.bad_total, training.step) == (1, 1, 2)
    for name, value in fingerprint(training).items():
        assert torch.equal(before[name], value), name
    assert not train_step(training, next(stream)).skipped
    assert (training.bad_in_row, training.bad_total) == (0, 1)


def test_a_step_depends_on_nothing_but_state_and_batch(setup):
    training = setup.training
    batch = next(iter(setup.loader))
    twin = copy.deepcopy(training)
    twin.optimizer = type(training.optimizer)(
        [{**group, "params": list(new)} for group, new in zip(training.optimizer.param_groups, _twin_groups(training, twin))], fused=True
    )
    first = host_values(train_step(training, batch))
    torch.rand(100)
    assert host_values(train_step(twin, batch)) == first


def _twin_groups(training, twin):
    names = {id(parameter): name for name, parameter in training.pair.student.named_parameters()}
    theirs = dict(twin.pair.student.named_parameters())
    return [[theirs[names[id(parameter)]] for parameter in group["params"]] for group in training.optimizer.param_groups]


def test_bf16_gives_nearly_the_same_loss_and_float32_weights(make_plan, images):
    losses = []
    for precision in ("fp32", "bf16"):
        setup = build(make_plan(engine={"precision": precision}), images)
        losses.append(host_values(train_step(setup.training, next(iter(setup.loader))))["loss"])
        assert {parameter.dtype for parameter in setup.training.pair.parameters()} == {torch.float32}
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[0] != losses[1]


def test_clipping_limits_each_sub_module_by_its_own_norm(make_plan, images):
    setup = build(make_plan(optim={"clip": 1e-3}), images)
    norms = host_values(train_step(setup.training, next(iter(setup.loader))))
    student = setup.training.pair.student
    for name, module in (("backbone", student.backbone), ("head", student.head)):
        assert norms[f"grad_norm_{name}"] > 1e-3
        left = torch.stack([parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]).norm()
        assert float(left) == pytest.approx(1e-3, rel=1e-3)


def test_norms_are_told_of_every_sub_module_and_a_patch_head_is_clipped_by_its_own(make_plan, images):
    setup = build(make_plan(optim={"clip": 1e-3}, objective={"patch_head": "separate"}), images)
    student = setup.training.pair.student
    told = host_values(train_step(setup.training, next(iter(setup.loader))))
    blocks = student.backbone.vit.blocks
    parts = {
        "patch_embed": student.backbone.vit.patch_embed, "block_first": blocks[0], "block_middle": blocks[1], "block_last": blocks[1],
        "patch_head": student.patch_head,
    }  # fmt: skip
    left = {
        name: float(torch.stack([parameter.grad.norm() for parameter in part.parameters() if parameter.grad is not None]).norm())
        for name, part in parts.items()
    }
    assert left["patch_head"] == pytest.approx(1e-3, rel=1e-3)
    shrunk = 1e-3 / told["grad_norm_backbone"]
    for name in ("patch_embed", "block_first", "block_middle", "block_last"):
        assert told[f"grad_norm_{name}"] * shrunk == pytest.approx(left[name], rel=1e-3), name  # measured before, not clipped by its own


def test_the_update_ratio_is_the_length_of_the_move_over_that_of_the_weight(setup):
    training = setup.training
    weight = training.pair.student.backbone.vit.blocks[1].mlp.fc1.weight
    before = weight.detach().clone()
    told = host_values(train_step(training, next(iter(setup.loader))))["update_ratio"]
    assert told > 0
    assert told == pytest.approx(float((weight.detach() - before).norm() / before.norm()), rel=1e-4)


def test_the_host_waits_for_the_device_once_a_step(setup, monkeypatch):
    """Once views are there: what makes them reads its own parameters on the host."""
    training, batch = setup.training, next(iter(setup.loader))
    views = step_module.render_views(training, batch)
    monkeypatch.setattr(step_module, "render_views", lambda *args, **kwargs: views)
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                waits.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    with Watch():
        train_step(training, batch)
    assert len(waits) == 1


def test_a_frozen_backbone_keeps_every_bit_while_the_heads_learn(make_plan, images):
    setup = build(make_plan(optim={"freeze_backbone": 0.3, "freeze_last_layer": 0.0}), images)
    training, stream = setup.training, iter(setup.loader)
    before = fingerprint(training)
    for _ in range(3):
        train_step(training, next(stream))
    after = fingerprint(training)
    for name in before:
        if name.startswith(("student/backbone", "teacher/backbone")):
            assert before[name].equal(after[name]), name
    assert not before["student/head.mlp.0.weight"].equal(after["student/head.mlp.0.weight"])
    train_step(training, next(stream))
    assert not fingerprint(training)["student/backbone.vit.norm.bias"].equal(before["student/backbone.vit.norm.bias"])
