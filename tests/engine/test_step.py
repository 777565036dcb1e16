from __future__ import annotations

import copy

import pytest
import torch

from dinodomain.engine import build, train_step
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
