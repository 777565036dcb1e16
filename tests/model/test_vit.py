"""The transformer against timm, its packed pass against one pass per size, and its inputs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch
import yaml

from dinodomain.config import build as build_plan
from dinodomain.config import config_dir
from dinodomain.errors import UserError
from dinodomain.model import Backbone, ModelPlan, VisionTransformer
from dinodomain.model.block import draw_subset
from dinodomain.types import Acquisition, Normalisation

SMALL = ModelPlan(dim=48, depth=3, heads=3, patch=8, registers=2, layer_scale=0.1)


def build(plan: ModelPlan = SMALL, *, in_channels: int = 3, ndim: int = 2, image_size: int = 32) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(plan, in_channels=in_channels, ndim=ndim, image_size=image_size)
    with torch.no_grad():  # tokens that start near zero would hide an error in their order
        for token in (vit.cls_token, vit.reg_token, vit.mask_token):
            if token is not None:
                token.normal_()
    return vit.eval()


@pytest.mark.parametrize(
    ("registers", "layer_scale", "class_position", "position"),
    [(4, 1e-5, False, "learned"), (0, 0.0, True, "learned"), (2, 0.5, True, "sincos"), (0, 0.3, False, "sincos")],
)
def test_timm_loads_the_state_strictly_and_gives_the_same_tokens(registers, layer_scale, class_position, position):
    plan = ModelPlan(
        dim=96, depth=3, heads=3, registers=registers, layer_scale=layer_scale, class_position=class_position, position=position
    )
    vit = build(plan, image_size=224)
    twin = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=96,
        depth=3,
        num_heads=3,
        reg_tokens=registers,
        init_values=layer_scale or None,
        no_embed_class=not class_position,
        num_classes=0,
        dynamic_img_size=True,
    ).eval()
    twin.load_state_dict(vit.timm_state(), strict=True)
    with torch.no_grad():
        for side in (224, 96, 288):
            x = torch.randn(2, 3, side, side)
            ours, theirs = vit(x), twin.forward_features(x)
            tokens = torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1)
            assert (tokens - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("ndim", [2, 3])
def test_packed_pass_equals_one_pass_per_size(ndim):
    vit = build(ndim=ndim)
    images = [torch.randn(3, 3, *[32] * ndim), torch.randn(5, 3, *[16] * ndim)]
    mask = torch.rand(3, 4**ndim) < 0.4
    with torch.no_grad():
        packed = vit.forward_many(images, [mask, None])
        alone = [vit(images[0], mask), vit(images[1])]
    for one, other in zip(packed, alone):
        assert one.grid == other.grid
        for name in ("cls", "registers", "patches"):
            assert (getattr(one, name) - getattr(other, name)).abs().max() <= 1e-5


def test_packed_gradients_equal_those_of_one_pass_per_size():
    images = [torch.randn(2, 3, 32, 32), torch.randn(4, 3, 16, 16)]
    gradients = []
    for packed in (True, False):
        vit = build()
        features = vit.forward_many(images) if packed else [vit(x) for x in images]
        sum(part.cls.square().sum() + part.patches.square().sum() for part in features).backward()
        gradients.append({name: value.grad for name, value in vit.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4)


def test_a_volume_of_one_slice_thick_patches_orders_its_tokens_by_z_then_y_then_x():
    vit = build(ndim=3)
    x = torch.zeros(1, 3, 16, 24, 32)
    x[:, :, 8:, 16:, 24:] = 1.0
    tokens = vit.patch_embed(x)[0]
    changed = (tokens - tokens[0]).abs().amax(dim=1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [2 * 3 * 4 - 1]


@pytest.mark.parametrize(("patch", "ndim"), [(8, 2), (8, 3), ((4, 8), 2), ((2, 8, 4), 3)])
def test_patch_projection_equals_the_strided_convolution(patch, ndim):
    embed = build(dataclasses.replace(SMALL, patch=patch), ndim=ndim).patch_embed
    x = torch.randn(2, 3, *[24] * ndim)
    torch.testing.assert_close(embed(x), embed.proj(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_sixteen_bit_steps_survive_the_patch_projection_under_bfloat16():
    embed = build(in_channels=1).patch_embed
    x = torch.full((1, 1, 8, 8), 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        low, high = embed(x), embed(x + 1 / 65536)
    assert low.dtype == torch.float32
    torch.testing.assert_close(high - low, (embed.proj.weight.sum((1, 2, 3)) / 65536)[None, None], rtol=0.2, atol=1e-7)


def test_masked_patches_do_not_reach_the_tokens():
    vit = build()
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    x = torch.randn(1, 3, 32, 32)
    other = x.clone()
    other[:, :, 8:16, 8:16] += 3.0
    torch.testing.assert_close(vit(x, mask).cls, vit(other, mask).cls)
    assert (vit(x).cls - vit(other).cls).abs().max() > 1e-4


@pytest.mark.parametrize(
    "changes", [{}, {"position": "rope", "class_position": False}, {"position": "rope", "rope_unit": "physical", "rope_length": 9.0}]
)
def test_tokens_computed_alone_are_those_of_one_kept_patch_each(changes):
    vit, x = build(dataclasses.replace(SMALL, **changes)), torch.randn(2, 3, 16, 24)
    about = Acquisition(spacing=torch.tensor([[1.0, 1.0], [2.0, 0.5]]))
    with torch.no_grad():
        alone = vit.encode_alone(x, about)
        for patch in range(6):
            keep = (torch.arange(6) == patch).expand(2, -1)
            torch.testing.assert_close(alone[:, patch], vit.encode(x, keep=keep, about=about).patches[:, 0])


def test_keeping_all_patches_changes_nothing_and_dropped_patches_have_no_influence():
    vit = build()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.encode(x, keep=torch.ones(2, 16, dtype=torch.bool)).patches, vit(x).patches)
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[0, [1, 7, 9]] = keep[1, [0, 2, 15]] = True
    other = x.clone()
    other[0, :, :8, :8] = 9.0  # patch 0, which sample 0 drops
    kept, again = vit.encode(x, keep=keep), vit.encode(other, keep=keep)
    assert kept.patches.shape == (2, 3, 48)
    assert kept.grid == (4, 4)
    torch.testing.assert_close(kept.cls, again.cls)


def test_raw_layers_end_in_the_final_tokens():
    vit = build()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.norm(vit.encode(x, layer=3).cls), vit(x).cls)
    embedded = vit.encode(x, layer=0)
    torch.testing.assert_close(embedded.cls, vit.cls_token[0].expand(2, -1))
    with pytest.raises(UserError, match=r"layer: is 4; allowed: 0\.\.3 blocks"):
        vit.encode(x, layer=4)


def test_bad_inputs_name_the_shape_and_what_fits():
    vit = build()
    with pytest.raises(UserError, match=r"30x32 is not a multiple of model\.patch=8; allowed: multiples of 8, for example 24x32"):
        vit(torch.randn(1, 3, 30, 32))
    with pytest.raises(UserError, match=r"has shape \(1, 2, 32, 32\); allowed: \[N, 3, Y, X\]"):
        vit(torch.randn(1, 2, 32, 32))
    with pytest.raises(UserError, match="keeps 1 to 2 patches"):
        vit.encode(torch.randn(2, 3, 16, 16), keep=torch.tensor([[True, False, False, False], [True, True, False, False]]))
    with pytest.raises(UserError, match="has 3 sides; allowed: one number, or 2 of them"):
        VisionTransformer(SMALL, in_channels=1, ndim=2, image_size=(32, 32, 32))


def test_a_plan_reports_all_its_problems_at_once():
    with pytest.raises(UserError) as caught:
        ModelPlan(dim=48, heads=5, patch=0, drop_path=1.0)
    message = str(caught.value)
    assert "model.patch: is 0" in message
    assert "model.heads: 5 heads do not divide dim 48; allowed: 1, 2, 3, 4, 6, 8" in message
    assert "model.drop_path" in message


def test_stochastic_depth_repeats_with_its_seed_and_is_off_in_evaluation():
    plan = dataclasses.replace(SMALL, drop_path=0.5)
    vit = build(plan).train()
    x = [torch.randn(8, 3, 32, 32), torch.randn(8, 3, 16, 16)]
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(vit.forward_many(x)[1].cls)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    reference = build(SMALL)
    torch.testing.assert_close(vit.eval()(x[0]).cls, reference(x[0]).cls)


def test_a_dropped_branch_keeps_its_expectation():
    layout = ((10, 3), (4, 2))
    total = torch.zeros(38)
    for _ in range(2000):
        drawn = draw_subset(layout, 0.3, torch.device("cpu"))
        assert drawn.layout == ((7, 3), (3, 2))
        total.index_add_(0, drawn.rows, drawn.gain[:, 0])
    assert (total / 2000 - 1).abs().max() < 0.07


def test_fixed_positions_take_no_gradient_and_are_saved():
    vit = build(dataclasses.replace(SMALL, position="sincos"))
    assert not vit.pos_embed.requires_grad
    assert "pos_embed" in vit.state_dict()


def test_bfloat16_tokens_stay_close_to_float32():
    vit = build()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = vit(x)
    assert half.cls.dtype == torch.float32
    assert (half.cls - vit(x).cls).abs().max() < 0.1


@pytest.mark.parametrize(("init", "std"), [("normal", 0.02), ("xavier", (2 * 2 / (96 + 384)) ** 0.5)])
def test_first_weights_have_the_spread_the_plan_asks_for(init, std):
    torch.manual_seed(0)
    vit = VisionTransformer(ModelPlan(dim=96, depth=1, heads=4, patch=8, init=init), in_channels=1, ndim=2, image_size=32)
    assert vit.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("position", ["learned", "sincos", "rope"])
@pytest.mark.parametrize(("patch", "size", "grid"), [((4, 16), (16, 32), (4, 2)), ((2, 8, 4), (8, 16, 16), (4, 2, 4))])
def test_patches_need_not_be_cubes(position, patch, size, grid):
    vit = build(dataclasses.replace(SMALL, patch=patch, position=position), ndim=len(patch), image_size=size)
    assert (vit.grid, vit.patch, tuple(vit.patch_embed.proj.weight.shape[2:])) == (grid, patch, patch)
    x = torch.zeros(1, 3, *size)
    changed = x.clone()
    changed[(0, slice(None), *(slice(side - own, side) for side, own in zip(size, patch)))] = 1.0
    moved = (vit.encode(x, layer=0).patches - vit.encode(changed, layer=0).patches)[0].abs().amax(dim=1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [len(moved) - 1], "the last patch in row-major order is the last corner"
    double = vit(torch.randn(2, 3, *(2 * side for side in size)))
    assert double.grid == tuple(2 * side for side in grid)
    assert double.patches.isfinite().all()


def test_a_backbone_with_patches_of_two_sides_comes_back_from_its_spec():
    numbers = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.2,))
    plan = dataclasses.replace(SMALL, patch=(4, 8), position="rope", rope_unit="physical", rope_length=9.0, mlp="swiglu")
    backbone = Backbone.create(plan, ndim=2, image_size=16, normalisation=numbers, domain="made_up").eval()
    again = Backbone.from_spec(json.loads(json.dumps(backbone.spec)), backbone.state_dict())
    assert again.vit.plan == plan
    assert again.patch == backbone.patch == (4, 8)
    x, about = torch.randn(2, 1, 16, 16), Acquisition(spacing=torch.ones(2, 2))
    assert torch.equal(again(x, about=about).cls, backbone(x, about=about).cls)


def test_patches_with_the_wrong_number_of_sides_or_none_that_fit_are_refused():
    with pytest.raises(UserError, match=r"model\.patch: \(4, 8\) has 2 sides; allowed: one number, or 3 of them"):
        build(dataclasses.replace(SMALL, patch=(4, 8)), ndim=3)
    with pytest.raises(UserError, match=r"20x32 is not a multiple of model\.patch=8x16; allowed: multiples of 8x16, for example 16x32"):
        build(dataclasses.replace(SMALL, patch=(8, 16)), image_size=(20, 32))
    for patch, problem in (((4,), "has 1 sides"), ((4, 0), r"is \(4, 0\); allowed: at least 1"), ((1, 2, 3, 4), "has 4 sides")):
        with pytest.raises(UserError, match=problem):
            ModelPlan(patch=patch)


FAMILY = {  # published sizes: Dosovitskiy 2021 (table 1), Touvron 2021 (Ti, S), Simeoni 2025 (H+)
    "vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224", "vit_huge_plus": "vit_huge_plus_patch16_dinov3_qkvb",
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAMILY))
def test_every_size_of_the_family_has_the_parameters_of_timms(name):
    plan = build_plan(ModelPlan, yaml.safe_load((config_dir() / "model" / f"{name}.yaml").read_text()))
    same = {"reg_tokens": plan.registers, "init_values": plan.layer_scale or None, "no_embed_class": not plan.class_position}
    with torch.device("meta"):
        ours = VisionTransformer(plan, in_channels=3, ndim=2, image_size=224)
        theirs = timm.create_model(FAMILY[name], num_classes=0, **({} if plan.mlp == "swiglu" else same))
    counts = [sum(value.numel() for value in state.values()) for state in (ours.timm_state(), theirs.state_dict())]
    more = plan.dim * plan.depth + (0 if ours.pos_embed is None else ours.pos_embed.numel())  # key biases and learned positions
    assert counts[0] - counts[1] == (more if plan.mlp == "swiglu" else 0), "timm's DINOv3 has neither"
    with torch.device("meta"):
        volumes = VisionTransformer(plan, in_channels=1, ndim=3, image_size=96)
    blocks = [{key: value.shape for key, value in vit.blocks.state_dict().items()} for vit in (ours, volumes)]
    assert blocks[0] == blocks[1]
    assert volumes.patch_embed.proj.weight.shape == (plan.dim, 1, 16, 16, 16)
    assert volumes.grid == (6, 6, 6)
