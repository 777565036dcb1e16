"""Every parameter in exactly one group, decays where they belong, and clipping by sub-module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinodomain.model import Backbone, Head, ModelPlan, Pair
from dinodomain.optim import OptimPlan, Schedules, clip_gradients, make_optimizer, parameter_groups
from dinodomain.types import Normalisation


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    normalisation = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.2,))
    plan = ModelPlan(dim=24, depth=3, heads=2, patch=8, registers=2)
    backbone = Backbone.create(plan, ndim=2, image_size=32, normalisation=normalisation, domain="x")
    return Pair(backbone, Head(24, prototypes=16, hidden=20, bottleneck=8)).student


def names_of(student, groups):
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


@pytest.mark.parametrize("layer_decay", [1.0, 0.9])
def test_every_trainable_parameter_is_in_exactly_one_group(student, layer_decay):
    student.backbone.vit.mask_token.requires_grad_(False)
    groups = parameter_groups(student, OptimPlan(layer_decay=layer_decay))
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in student.parameters() if parameter.requires_grad}


def test_vectors_positions_and_tokens_do_not_decay(student):
    groups = parameter_groups(student, OptimPlan())
    for group, names in zip(groups, names_of(student, groups)):
        for name in names:
            exempt = name.endswith(("bias", "gamma", "norm.weight", "norm1.weight", "norm2.weight", "pos_embed", "_token"))
            assert group["wd_scale"] == (0.0 if exempt else 1.0), name


def test_layer_decay_falls_from_the_heads_to_the_embeddings(student):
    groups = parameter_groups(student, OptimPlan(layer_decay=0.5))
    scale = {name: group["lr_scale"] for group, names in zip(groups, names_of(student, groups)) for name in names}
    assert scale["head.prototypes.weight"] == scale["backbone.vit.norm.weight"] == scale["head.mlp.0.weight"] == 1.0
    assert scale["backbone.vit.blocks.2.mlp.fc1.weight"] == 0.5
    assert scale["backbone.vit.blocks.0.norm1.bias"] == 0.125
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token", "reg_token", "mask_token"):
        assert scale[f"backbone.vit.{name}"] == 0.0625, name


def test_wrapped_and_compiled_names_get_the_same_groups(student):
    plan = OptimPlan(layer_decay=0.9)
    wrapped = nn.Module()
    wrapped.module = student
    plain = [(group["name"], group["lr_scale"], len(group["params"])) for group in parameter_groups(student, plan)]
    compiled = nn.Module()  # the names that torch.compile gives, without paying for its import
    compiled._orig_mod = student.backbone.vit.blocks[1]
    student.backbone.vit.blocks[1] = compiled
    assert any("_orig_mod" in name for name, _ in wrapped.named_parameters())
    assert [(group["name"], group["lr_scale"], len(group["params"])) for group in parameter_groups(wrapped, plan)] == plain


def test_schedules_reach_every_group(student):
    plan = OptimPlan(lr=1e-3, warmup=0.0, layer_decay=0.5, freeze_last_layer=0.1, weight_decay=(0.04, 0.04))
    optimizer = make_optimizer(parameter_groups(student, plan), plan)
    schedules = Schedules(plan, total_steps=100, batch=256)
    schedules.apply(optimizer, 0)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.0 if group["last_layer"] else 1e-3 * group["lr_scale"])
        assert group["weight_decay"] == pytest.approx(0.04 * group["wd_scale"])
    schedules.apply(optimizer, 10)
    assert all(group["lr"] > 0 for group in optimizer.param_groups)


def test_frozen_prototypes_do_not_move(student):
    plan = OptimPlan(freeze_last_layer=0.5)
    optimizer = make_optimizer(parameter_groups(student, plan), plan)
    before = student.head.prototypes.weight.clone()
    student.head(torch.randn(4, 24)).square().sum().backward()
    Schedules(plan, total_steps=10, batch=256).apply(optimizer, 0)
    optimizer.step()
    assert torch.equal(student.head.prototypes.weight, before)


def test_fused_adamw_equals_the_formula():
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = nn.Module()
    module.weight = parameter
    plan = OptimPlan(lr=0.1, betas=(0.9, 0.999), weight_decay=(0.04, 0.04))
    optimizer = make_optimizer(parameter_groups(module, plan), plan)
    assert optimizer.defaults["fused"]
    parameter.grad = torch.tensor([[0.5, 0.25]])
    optimizer.step()
    # First step of Adam: the bias-corrected ratio is the gradient's sign; decay is decoupled.
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.04) - 0.1
    torch.testing.assert_close(parameter.detach(), expected)


def test_each_module_is_clipped_by_its_own_norm():
    modules = {"wild": nn.Linear(1, 2, bias=False), "calm": nn.Linear(1, 1, bias=False)}
    modules["wild"].weight.grad = torch.tensor([[30.0], [40.0]])
    modules["calm"].weight.grad = torch.tensor([[0.5]])
    norms = clip_gradients(modules, 5.0)
    assert {name: value.item() for name, value in norms.items()} == {"wild": 50.0, "calm": 0.5}
    torch.testing.assert_close(modules["wild"].weight.grad, torch.tensor([[3.0], [4.0]]))
    assert modules["calm"].weight.grad.item() == 0.5


def test_a_limit_of_zero_measures_only():
    module = nn.Linear(1, 2, bias=False)
    module.weight.grad = torch.tensor([[3.0], [4.0]])
    assert clip_gradients({"all": module}, 0.0)["all"].item() == 5.0
    torch.testing.assert_close(module.weight.grad, torch.tensor([[3.0], [4.0]]))


def test_the_patch_embedding_has_a_rate_of_its_own(student):
    groups = parameter_groups(student, OptimPlan(patch_lr=0.2, layer_decay=0.5))
    scale = {name: group["lr_scale"] for group, names in zip(groups, names_of(student, groups)) for name in names}
    assert scale["backbone.vit.patch_embed.proj.weight"] == scale["backbone.vit.patch_embed.proj.bias"] == pytest.approx(0.2 * 0.0625)
    assert scale["backbone.vit.pos_embed"] == 0.0625
    assert scale["head.mlp.0.weight"] == 1.0


def test_a_frozen_backbone_does_not_move_by_a_bit_while_the_head_learns(student):
    plan = OptimPlan(freeze_backbone=0.5, warmup=0.2, weight_decay=(0.1, 0.1))
    optimizer, schedules = make_optimizer(parameter_groups(student, plan), plan), Schedules(plan, total_steps=10, batch=256)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    for step in range(6):
        for parameter in student.parameters():
            parameter.grad = torch.ones_like(parameter)
        schedules.apply(optimizer, step)
        optimizer.step()
        moved = {name.partition(".")[0] for name, value in student.named_parameters() if not torch.equal(value, before[name])}
        assert moved == ({"head"} if step < 5 else {"head", "backbone"})
