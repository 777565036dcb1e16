"""Rotary positions against per-token complex rotation, against DINOv3 as other people wrote it, and in what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.model import ModelPlan, VisionTransformer
from dinodomain.model.attention import class_attention
from dinodomain.model.rope import Rope, Turn, turned
from dinodomain.types import Acquisition, Features

CROP = ModelPlan(dim=24, depth=2, heads=2, patch=4, registers=2, layer_scale=1.0, init="xavier", position="rope")
PHYSICAL = replace(CROP, rope_unit="physical", rope_length=50.0)


def build(plan: ModelPlan = CROP, *, ndim: int = 2, image_size: int | tuple[int, ...] = 16) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(plan, in_channels=1, ndim=ndim, image_size=image_size).eval()


def make_rope(plan: ModelPlan, *, ndim: int = 2, grid: tuple[int, ...] = (), patch: tuple[int, ...] = ()) -> Rope:
    return Rope(plan, patch=patch or (4,) * ndim, grid=grid or (4,) * ndim, prefix=1 + plan.registers)


def turn_of(plan: ModelPlan, grid: tuple[int, ...], *, spacing=None, patch=(), training: bool = False, whole: tuple[int, ...] = ()) -> Turn:
    """That of one image, or of as many as ``spacing`` has rows."""
    about = None if spacing is None else Acquisition(spacing=torch.tensor(spacing))
    x = torch.zeros(1 if spacing is None else len(spacing), 1)
    return make_rope(plan, ndim=len(grid), grid=whole, patch=patch).turn(x, grid, about, training=training)


def rotated_twin(x: Tensor, grid: tuple[int, ...], reach: list[float], prefix: int, base: float) -> Tensor:
    """[L, h] float64, token by token and pair by pair as complex numbers; ``reach`` is the coordinate of the crop's edge on each axis."""
    length, width = x.shape
    pairs = width // (2 * len(grid))
    out = x.clone()
    for token in range(prefix, length):
        place, rest = [], token - prefix
        for count in reversed(grid):
            place.insert(0, rest % count)
            rest //= count
        for axis, (index, count) in enumerate(zip(place, grid)):
            coordinate = (2 * (index + 0.5) / count - 1) * reach[axis]
            for pair in range(pairs):
                angle = 2 * math.pi * coordinate / base ** (pair / pairs)
                channel = axis * pairs + pair
                value = complex(x[token, channel], x[token, channel + width // 2]) * complex(math.cos(angle), math.sin(angle))
                out[token, channel], out[token, channel + width // 2] = value.real, value.imag
    return out


@pytest.mark.parametrize(
    ("width", "grid", "plan", "spacing", "reach"),
    [
        (12, (3, 4), CROP, None, [1.0, 1.0]),
        (14, (3, 4), CROP, None, [1.0, 1.0]),  # 14 = 2 x 2 x 3 pairs and a rest of one pair
        (12, (2, 3, 4), CROP, None, [1.0, 1.0, 1.0]),
        (16, (2, 3, 4), replace(CROP, rope_base=30.0), None, [1.0, 1.0, 1.0]),
        (12, (2, 8), replace(CROP, rope_unit="patch"), None, [0.5, 2.0]),  # a global crop has 4 x 4
        (12, (2, 8), replace(CROP, rope_unit="patch", rope_length=5.0), None, [0.2, 0.8]),
        (12, (2, 3), PHYSICAL, [[2.5, 10.0]], [2.5 * 4 * 2 / 2 / 50, 10.0 * 4 * 3 / 2 / 50]),
        (14, (2, 3, 4), PHYSICAL, [[5.0, 0.7, 0.7]], [5.0 * 4 / 50, 0.7 * 4 * 1.5 / 50, 0.7 * 4 * 2 / 50]),
    ],
)
def test_every_token_is_turned_as_a_complex_number_by_its_own_angle(width, grid, plan, spacing, reach):
    plan = replace(plan, dim=2 * width)
    x = torch.randn(1 + plan.registers + math.prod(grid), width, dtype=torch.float64)
    found = turned(x[None, :, None], turn_of(plan, grid, spacing=spacing))[0, :, 0]
    wanted = rotated_twin(x, grid, reach, 1 + plan.registers, plan.rope_base)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-6)
    rest = width // 2 - len(grid) * (width // (2 * len(grid)))
    alone = [channel for half in (0, width // 2) for channel in range(half + width // 2 - rest, half + width // 2)]
    assert torch.equal(found[:, alone], x[:, alone]), "channels that do not divide among the axes stay"
    assert torch.equal(found[: 1 + plan.registers], x[: 1 + plan.registers]), "class and registers stay"


def dinov3(vit: VisionTransformer, *, rescale: float | None = None):
    """The same network as transformers writes it, with the same weights."""
    transformers = pytest.importorskip("transformers")
    plan = vit.plan
    config = transformers.DINOv3ViTConfig(
        patch_size=plan.patch, image_size=vit.image_size[0], num_channels=vit.in_channels, hidden_size=plan.dim,
        intermediate_size=int(plan.dim * plan.mlp_ratio), num_hidden_layers=plan.depth, num_attention_heads=plan.heads, key_bias=True,
        use_gated_mlp=plan.mlp == "swiglu", hidden_act="silu" if plan.mlp == "swiglu" else "gelu", layer_norm_eps=1e-6,
        num_register_tokens=plan.registers, rope_theta=plan.rope_base, pos_embed_rescale=rescale,
    )  # fmt: skip
    twin = transformers.DINOv3ViTModel(config).eval()
    whole = {"cls_token": vit.cls_token, "register_tokens": vit.reg_token, "mask_token": vit.mask_token[None]}
    whole |= {f"patch_embeddings.{kind}": getattr(vit.patch_embed.proj, kind) for kind in ("weight", "bias")}
    state = {f"embeddings.{name}": value for name, value in whole.items()}
    state |= {"norm.weight": vit.norm.weight, "norm.bias": vit.norm.bias}
    for place, block in enumerate(vit.blocks):
        own = {"norm1": block.norm1, "norm2": block.norm2, "attention.o_proj": block.attn.proj, "mlp.down_proj": block.mlp.fc2}
        for kind in ("weight", "bias"):
            qkv = getattr(block.attn.qkv, kind).chunk(3)
            first = getattr(block.mlp.fc1, kind).chunk(2 if plan.mlp == "swiglu" else 1)
            parts = dict(zip(("attention.q_proj", "attention.k_proj", "attention.v_proj"), qkv))
            parts |= dict(zip(("mlp.gate_proj", "mlp.up_proj") if plan.mlp == "swiglu" else ("mlp.up_proj",), first))
            parts |= {name: getattr(module, kind) for name, module in own.items()}
            state |= {f"model.layer.{place}.{name}.{kind}": value for name, value in parts.items()}
        state |= {f"model.layer.{place}.layer_scale{part + 1}.lambda1": ls.gamma for part, ls in enumerate((block.ls1, block.ls2))}
    twin.load_state_dict(state, strict=True)
    return twin


def stirred(vit: VisionTransformer) -> VisionTransformer:
    """Every parameter made up, so that no order or sign can hide."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)
    return vit


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_tokens_are_those_of_dinov3_in_transformers(mlp):
    vit = stirred(build(replace(CROP, mlp=mlp, dim=32, heads=2)))
    twin = dinov3(vit)
    for size in ((16, 16), (8, 24), (32, 32)):
        x = torch.randn(2, 1, *size)
        with torch.no_grad():
            ours, theirs = vit(x), twin(x).last_hidden_state
        torch.testing.assert_close(torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1), theirs, rtol=1e-5, atol=2e-5)


def test_the_jitter_of_training_is_that_of_dinov3_in_transformers():
    transformers = pytest.importorskip("transformers")
    modelling = transformers.models.dinov3_vit.modeling_dinov3_vit
    rope = make_rope(replace(CROP, rope_shift=0.3, rope_jitter=1.5, rope_rescale=2.0))
    coordinates = torch.rand(9, 2)
    torch.manual_seed(3)
    wanted = modelling.augment_patches_center_coordinates(coordinates, shift=0.3, jitter=1.5, rescale=2.0)
    torch.manual_seed(3)
    torch.testing.assert_close(rope.varied(coordinates), wanted)


def test_jitter_is_drawn_in_training_only_and_repeats_with_its_seed():
    plan = replace(CROP, rope_shift=0.2, rope_jitter=1.3, rope_rescale=2.0)
    still, before = turn_of(plan, (4, 4)), torch.get_rng_state()
    assert torch.equal(still.cos, turn_of(CROP, (4, 4), training=True).cos), "nothing to draw"
    assert torch.equal(torch.get_rng_state(), before), "and nothing drawn"
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(turn_of(plan, (4, 4), training=True).sin)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], still.sin)
    vit = build(plan)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(vit(x).cls, vit(x).cls), "nor in evaluation"
    assert not torch.equal(vit.train()(x).cls, vit(x).cls)


def test_jitter_stays_within_its_ranges():
    rope = make_rope(replace(CROP, rope_shift=0.2, rope_jitter=1.5, rope_rescale=2.0))
    torch.manual_seed(0)
    ends = torch.stack([rope.varied(torch.tensor([[0.0, 0.0], [1.0, 1.0]])) for _ in range(400)])
    stretch = ends[:, 1] - ends[:, 0]
    ratio = stretch[:, 0] / stretch[:, 1]
    assert 1 / 3 <= stretch.min() < 0.5
    assert 2 < stretch.max() <= 3
    assert 1 / 2.25 <= ratio.min() < 0.6
    assert (ends[:, 0] / stretch).abs().max() <= 0.2 + 1e-6


def logits(turn: Turn, query: Tensor, key: Tensor) -> Tensor:
    """[P, P] of patches; ``query`` and ``key`` [L, h]."""
    q, k = (turned(part[None, :, None].double(), turn)[0, :, 0] for part in (query, key))
    return (q @ k.T)[3:, 3:]


def test_in_crop_units_a_place_in_the_crop_has_one_angle_at_any_size():
    small, large = turn_of(CROP, (2, 2)), turn_of(CROP, (6, 6))
    middles = [3 + row * 6 + column for row in (1, 4) for column in (1, 4)]  # centres of thirds that are centres of halves
    torch.testing.assert_close(large.cos[:, middles], small.cos[:, 3:], rtol=0, atol=2e-6)
    torch.testing.assert_close(large.sin[:, middles], small.sin[:, 3:], rtol=0, atol=2e-6)


def test_in_patch_units_attention_knows_how_far_patches_lie_apart_and_not_where():
    plan = replace(CROP, rope_unit="patch")
    query, key = torch.randn(2, 1, 12).expand(-1, 3 + 36, -1)  # the same content everywhere
    large = logits(turn_of(plan, (6, 6)), query, key).view(6, 6, 6, 6)
    small = logits(turn_of(plan, (3, 3)), query[:12], key[:12]).view(3, 3, 3, 3)
    for row, column in ((0, 0), (3, 2)):
        there = slice(row, row + 3), slice(column, column + 3)
        torch.testing.assert_close(large[there][:, :, there[0], there[1]], small, rtol=0, atol=1e-5)


def test_in_physical_units_distance_counts_in_millimetres_whatever_the_pixels():
    coarse, fine = turn_of(PHYSICAL, (2, 2), spacing=[[8.0, 4.0]]), turn_of(PHYSICAL, (4, 4), spacing=[[4.0, 2.0]])
    query, key = torch.randn(2, 1, 12).expand(-1, 3 + 16, -1)
    large = logits(fine, query, key).view(4, 4, 4, 4)[::2, ::2, ::2, ::2]
    torch.testing.assert_close(large, logits(coarse, query[:7], key[:7]).view(2, 2, 2, 2), rtol=0, atol=1e-5)


def test_in_physical_units_every_image_has_its_own_spacing():
    vit = build(PHYSICAL)
    x = torch.randn(3, 1, 16, 16)
    spacing = torch.tensor([[1.0, 1.0], [3.0, 1.0], [9.0, 9.0]])
    together = vit(x, None, Acquisition(spacing=spacing))
    for place in range(3):
        alone = vit(x[[place]], None, Acquisition(spacing=spacing[[place]]))
        torch.testing.assert_close(alone.patches[0], together.patches[place])
    other = vit(x, None, Acquisition(spacing=spacing.flip(0)))
    assert (other.patches[0] - together.patches[0]).abs().max() > 1e-3
    torch.testing.assert_close(other.patches[1], together.patches[1])


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        (None, r"spacing: is not told"),
        (Acquisition(), r"spacing: is not told"),
        (Acquisition(spacing=torch.tensor([[1.0, 1.0], [math.nan, 1.0]])), r"spacing: is unknown of 1 of 2 images"),
        (Acquisition(spacing=torch.tensor([[1.0, 0.0], [-1.0, 1.0]])), r"spacing: is unknown of 2 of 2 images"),
        (Acquisition(spacing=torch.ones(2, 3)), r"spacing: has shape \(2, 3\); allowed: \(2, 2\)"),
    ],
)
def test_without_spacing_physical_units_say_what_to_do(about, problem):
    with pytest.raises(UserError, match=problem) as caught:
        build(PHYSICAL)(torch.zeros(2, 1, 16, 16), None, about)
    assert "model.rope_unit=crop" in str(caught.value)


def tokens(features: Features) -> Tensor:
    return torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)


@pytest.mark.parametrize("plan", [CROP, PHYSICAL])
@pytest.mark.parametrize("ndim", [2, 3])
def test_kept_patches_are_turned_as_where_they_lay(plan, ndim):
    vit = build(plan, ndim=ndim)
    about = Acquisition(spacing=torch.rand(2, ndim) + 0.5)
    x = torch.randn(2, 1, *[12] * ndim)
    keep = torch.zeros(2, 3**ndim, dtype=torch.bool)
    keep[0, [1, 5, 6]] = keep[1, [0, 7, 8]] = True
    turn, embedded = vit.turn(x, about), vit.encode(x, layer=0, about=about)
    found = vit.encode(x, keep=keep, about=about)
    for place in range(2):  # the plain way: one image, its tokens and angles picked by hand
        rows = torch.cat([torch.arange(3), keep[place].nonzero()[:, 0] + 3])
        own = Turn(*(part[place if len(part) > 1 else 0][None, rows] for part in turn))
        packed = tokens(embedded)[place, rows]
        for block in vit.blocks:
            packed = block(packed, ((1, 6),), (own,))
        torch.testing.assert_close(tokens(found)[place], vit.norm(packed))
    everything = vit.encode(x, keep=torch.ones(2, 3**ndim, dtype=torch.bool), about=about)
    torch.testing.assert_close(everything.patches, vit(x, None, about).patches)


@pytest.mark.parametrize("ndim", [2, 3])
def test_packed_sizes_equal_one_pass_per_size(ndim):
    vit = build(PHYSICAL, ndim=ndim)
    images = [torch.randn(4, 1, *[16] * ndim), torch.randn(6, 1, *[8] * ndim)]
    about = [Acquisition(spacing=torch.rand(len(x), ndim) + 0.5) for x in images]
    for one, x, told in zip(vit.forward_many(images, None, about), images, about):
        torch.testing.assert_close(one.patches, vit(x, None, told).patches, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_keeps_angles_with_their_images():
    block = build(replace(PHYSICAL, drop_path=0.5)).blocks[0].train()
    turn = turn_of(PHYSICAL, (2, 2), spacing=torch.rand(6, 2).add(0.5).tolist())
    x, layout = torch.randn(6 * 7, 24), ((6, 7),)
    subsets = block.draw(layout, torch.device("cpu"))
    found = block(x, layout, (turn,), subsets).view(6, 7, 24)
    for sample in range(6):  # the plain way: each image by itself, each branch or not
        own = x.view(6, 7, 24)[sample]
        if sample in subsets[0].samples[0]:
            own = own + 2 * block.ls1(block.attn(block.norm1(own), ((1, 7),), (turn.of_samples(torch.tensor([sample])),)))
        if sample in subsets[1].samples[0]:
            own = own + 2 * block.ls2(block.mlp(block.norm2(own)))
        torch.testing.assert_close(found[sample], own)


def test_there_are_no_added_positions_and_nothing_new_in_the_state():
    vit = build()
    assert vit.pos_embed is None
    assert not [name for name in vit.state_dict() if "pos" in name or "rope" in name]
    torch.testing.assert_close(vit.encode(torch.zeros(1, 1, 16, 16), layer=0).patches[0, 3], vit.patch_embed.proj.bias)


def test_attention_maps_are_of_turned_keys():
    vit = stirred(build(replace(CROP, registers=0)))
    x = torch.randn(2, 1, 16, 16)
    weights = class_attention(vit, x)
    block, before = vit.blocks[1], vit.encode(x, layer=1)
    packed = torch.cat([before.cls[:, None], before.patches], dim=1)
    value = block.attn.qkv(block.norm1(packed))[..., 48:].view(2, 17, 2, 12)
    mixed = torch.einsum("nhp,nphd->nhd", weights.flatten(2), value[:, 1:]) + (1 - weights.flatten(2).sum(2))[..., None] * value[:, 0]
    expected = block.attn(block.norm1(packed).flatten(0, 1), ((2, 17),), (vit.turn(x),)).view(2, 17, 24)[:, 0]
    torch.testing.assert_close(block.attn.proj(mixed.flatten(1)), expected, rtol=1e-4, atol=1e-5)


def test_trigonometry_stays_float32_and_queries_keep_their_type():
    turn = turn_of(CROP, (4, 4))
    x = torch.randn(1, 19, 2, 12)
    assert turn.cos.dtype == turn.sin.dtype == torch.float32
    assert turned(x.bfloat16(), turn).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turn_of(CROP, (4, 4)).sin, turn.sin)
        half = build()(torch.ones(1, 1, 16, 16)).cls
    assert (half - build()(torch.ones(1, 1, 16, 16)).cls).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "ndim", "problem"),
    [
        ({"dim": 12, "heads": 3}, 3, r"model\.heads: 3 heads of 4 channels each.*heads of 6 channels or more"),
        ({"dim": 4, "heads": 2}, 2, r"model\.heads: 2 heads of 2 channels each.*heads of 4 channels or more"),
        ({"rope_unit": "physical"}, 2, r"model\.rope_length: is not known"),
    ],
)
def test_what_cannot_be_built_names_its_key(changes, ndim, problem):
    with pytest.raises(UserError, match=problem):
        build(replace(CROP, **changes), ndim=ndim)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_base": 1.0}, r"model\.rope_base: is 1\.0; allowed: above 1"),
        ({"rope_shift": -0.1}, r"model\.rope_shift: is -0\.1"),
        ({"rope_jitter": 0.9}, r"model\.rope_jitter: is 0\.9; allowed: 1 \(off\) or more"),
        ({"rope_rescale": math.nan}, r"model\.rope_rescale: is nan"),
        ({"rope_unit": "patch", "rope_length": 0.0}, r"model\.rope_length: is 0\.0; allowed: above 0"),
        ({"rope_length": 3.0}, r"model\.rope_length: is set with rope_unit=crop"),
        ({"class_position": True}, r"model\.class_position: is set with position=rope"),
        ({"dim": 30, "heads": 2}, r"model\.heads: 2 heads of 15 channels each: rope turns channels in pairs"),
        ({"position": "learned", "rope_unit": "physical"}, r"model\.rope_unit: is physical with position=learned.*model\.rope_unit=crop"),
        ({"position": "sincos", "rope_rescale": 2.0}, r"model\.rope_rescale: is 2\.0 with position=sincos"),
    ],
)
def test_plans_that_cannot_mean_anything_are_refused(changes, problem):
    with pytest.raises(UserError, match=problem):
        replace(CROP, **changes)
