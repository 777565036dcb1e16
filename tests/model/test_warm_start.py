"""Warm starts from models that timm and transformers build: equal outputs, what is adapted and how, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dinodomain.errors import UserError
from dinodomain.model import Backbone, ModelPlan
from dinodomain.model.coverage import Coverage
from dinodomain.model.implied import plan_from_weights
from dinodomain.model.warm_start import warm_start
from dinodomain.model.weights import Weights, describe, read_weights
from dinodomain.types import Normalisation

HEADS = 2


def normalisation(count: int) -> Normalisation:
    each = {"low": 0.0, "high": 1.0, "mean": 0.5, "std": 0.2}
    return Normalisation(mode="domain", channels=tuple("abcdefghijklm"[:count]), **{name: (value,) * count for name, value in each.items()})


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit size everywhere, so that no tensor could be left out unseen."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return module.eval()


def started(weights: Weights, *, size, channels: int = 3, ndim: int = 2, plan: ModelPlan | None = None, **how) -> tuple[Backbone, Coverage]:
    plan = plan or ModelPlan(heads=HEADS)
    choices = plan_from_weights(plan, weights)
    plan = replace(plan, **{name: found.value for name, found in choices.items()})
    backbone = Backbone.create(plan, ndim=ndim, image_size=size, normalisation=normalisation(channels), domain="x").eval()
    return backbone, warm_start(backbone, weights, **how)


@torch.no_grad()
def tokens(backbone: Backbone, x: Tensor) -> Tensor:
    """Class token, registers and patches, as others lay them out."""
    features = backbone.encode(x)
    return torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)


def from_state(state: Mapping[str, Tensor], **keys) -> Weights:
    return describe(state, place="made up", digest="0", **keys)


def timm_model(name: str, size: int, dim: int) -> nn.Module:
    timm = pytest.importorskip("timm")
    return shaken(timm.create_model(name, img_size=size, depth=2, embed_dim=dim, num_heads=HEADS, num_classes=0))


TIMM = {
    "dino": ("vit_small_patch16_224.dino", 32, 24),
    "dinov2": ("vit_small_patch14_dinov2", 28, 24),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", 28, 24),
    "dinov2 giant": ("vit_giant_patch14_dinov2", 28, 24),
    "dinov3": ("vit_small_patch16_dinov3", 32, 32),
    "dinov3 biases": ("vit_small_patch16_dinov3_qkvb", 32, 32),
    "dinov3 7b": ("vit_7b_patch16_dinov3", 32, 32),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_give_equal_tokens(name):
    model = timm_model(*TIMM[name])
    size = TIMM[name][1]
    backbone, report = started(from_state(model.state_dict()), size=size)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model.forward_features(x)
    torch.testing.assert_close(tokens(backbone, x), expected, atol=1e-5, rtol=0)
    assert (report.layout, report.family) == ("timm", name.split()[0])
    assert [entry.name for entry in report.tensors("fresh")] == ["mask_token"]
    assert not report.unused


def hf_model(name: str) -> tuple[nn.Module, int]:
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    if name == "dino":
        return hf.ViTModel(hf.ViTConfig(**sizes, image_size=32, intermediate_size=96, layer_norm_eps=1e-6)), 32
    if name == "dinov2":
        return hf.Dinov2Model(hf.Dinov2Config(**sizes, image_size=28, patch_size=14)), 28
    if name == "dinov2 giant":
        return hf.Dinov2Model(hf.Dinov2Config(**sizes, image_size=28, patch_size=14, use_swiglu_ffn=True)), 28
    if name == "dinov2 registers":
        return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**sizes, image_size=28, patch_size=14)), 28
    kind = {"dinov3": {}, "dinov3 gated": {"use_gated_mlp": True, "hidden_act": "silu"}}[name]
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**sizes, image_size=32, intermediate_size=96, num_register_tokens=4, **kind)), 32


HF = ("dino", "dinov2", "dinov2 giant", "dinov2 registers", "dinov3", "dinov3 gated")


@pytest.mark.parametrize("name", HF)
def test_transformers_models_give_equal_tokens_in_memory_and_from_a_snapshot(name, tmp_path):
    model, size = hf_model(name)
    shaken(model)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(x).last_hidden_state
    model.save_pretrained(tmp_path / "snapshot")  # with the names of earlier versions, which lie on the hub
    for weights in (from_state(model.state_dict(), config=model.config.to_dict()), read_weights(str(tmp_path / "snapshot"))):
        backbone, report = started(weights, size=size, plan=ModelPlan())
        torch.testing.assert_close(tokens(backbone, x), expected, atol=1e-5, rtol=0)
        assert (report.layout, report.family) == ("hf", name.split()[0])
        assert not report.tensors("fresh") or [entry.name for entry in report.tensors("fresh")] == ["mask_token"]
        assert set(report.unused.values()) <= {"a head of their training or use"}


def to_meta(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """timm's names as Meta has them."""
    renamed = {
        name.replace("reg_token", "storage_tokens" if family == "dinov3" else "register_tokens"): value for name, value in state.items()
    }
    for number in (1, 2):
        renamed = {name.replace(f"gamma_{number}", f"ls{number}.gamma"): value for name, value in renamed.items()}
    for block in (0, 1):
        attn = f"blocks.{block}.attn"
        if f"{attn}.q_bias" in renamed:
            query, value = renamed.pop(f"{attn}.q_bias"), renamed.pop(f"{attn}.v_bias")
            # What lies where keys are masked is never used.
            renamed[f"{attn}.qkv.bias"] = torch.cat([query, torch.full_like(query, 7.0), value])
            renamed[f"{attn}.qkv.bias_mask"] = torch.cat([torch.ones_like(query), torch.zeros_like(query), torch.ones_like(value)])
    return renamed


def test_metas_dinov2_with_registers_gives_equal_tokens():
    model = timm_model(*TIMM["dinov2 registers"])
    state = to_meta(model.state_dict(), "dinov2")
    position = torch.randn(1, 1, 24)
    # Meta keeps a position for the class token; registers come after positions were added.
    state |= {
        "pos_embed": torch.cat([position, state["pos_embed"]], 1),
        "cls_token": state["cls_token"] - position,
        "mask_token": torch.ones(1, 24),
    }
    backbone, report = started(from_state(state), size=28)
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(tokens(backbone, x), model.forward_features(x), atol=1e-5, rtol=0)
    assert (report.layout, report.share) == ("meta", 1.0)
    torch.testing.assert_close(backbone.vit.mask_token.detach(), torch.ones(1, 24))


def test_metas_dinov2_giant_is_its_gate_and_value_in_one():
    model = timm_model(*TIMM["dinov2 giant"])
    state = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for name, value in model.state_dict().items()}
    backbone, report = started(from_state(state), size=28)
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(tokens(backbone, x), model.forward_features(x), atol=1e-5, rtol=0)
    assert (report.layout, backbone.vit.plan.mlp) == ("meta", "swiglu")


@pytest.mark.parametrize("unfilled", [False, True])
def test_metas_dinov3_masks_key_biases_and_tells_its_base(unfilled):
    model = timm_model(*TIMM["dinov3 biases"])
    state = to_meta(model.state_dict(), "dinov3")
    if unfilled:
        state = {name: value * float("nan") if name.endswith("bias_mask") else value for name, value in state.items()}
    state["rope_embed.periods"] = (100.0 ** (torch.arange(4) / 4)).bfloat16()
    state["local_cls_norm.weight"] = torch.ones(32)
    weights = from_state(state)
    assert (
        plan_from_weights(ModelPlan(heads=HEADS, position="rope", rope_base=10.0), weights).get("rope_base") is None
    )  # a choice of the user's
    backbone, report = started(weights, size=32)
    assert (report.layout, backbone.vit.plan.rope_base, backbone.vit.plan.rope_rescale, backbone.vit.plan.norm_eps) == (
        "meta",
        100.0,
        2.0,
        1e-5,
    )
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tokens(backbone, x), model.forward_features(x), atol=1e-5, rtol=0)
    assert set(report.unused) == {"rope_embed.periods", "local_cls_norm.weight"}


def wrap_teacher(state):
    return {"teacher": {f"backbone.{name}": value for name, value in state.items()} | {"dino_head.mlp.0.weight": torch.ones(2, 2)}}


def wrap_both(state):
    bad = {f"student.module.backbone.{name}": value + 1 for name, value in state.items()}
    return {"state_dict": bad | {f"teacher.backbone.{name}": value for name, value in state.items()}}


def wrap_shards(state):
    return {"model": {name.replace("blocks.", "module._orig_mod.blocks.0."): value for name, value in state.items()}, "epoch": 3}


@pytest.mark.parametrize("wrap", [dict, wrap_teacher, wrap_both, wrap_shards], ids=["plain", "teacher", "student and teacher", "shards"])
def test_nested_and_wrapped_states_are_unwrapped(wrap: Callable, tmp_path):
    model = timm_model(*TIMM["dinov2"])
    torch.save(wrap(model.state_dict()), tmp_path / "a.pth")
    backbone, report = started(read_weights(str(tmp_path / "a.pth")), size=28)
    assert report.share > 0.999
    torch.testing.assert_close(backbone.vit.blocks[1].mlp.fc2.weight.detach(), model.blocks[1].mlp.fc2.weight.detach())
    assert len(report.digest) == 64


def test_shards_with_an_index_and_the_hub_cache(tmp_path, monkeypatch):
    model, size = hf_model("dinov2")
    shaken(model)
    snapshot = tmp_path / "hub" / "models--some--one" / "snapshots" / "abc"
    model.save_pretrained(snapshot, max_shard_size="20KB")
    assert (snapshot / "model.safetensors.index.json").is_file()
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    backbone, report = started(read_weights("hub:some/one"), size=size)
    assert (report.share, report.licence) == (1.0, "mit (model card)")
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(tokens(backbone, x), model(x).last_hidden_state, atol=1e-5, rtol=0)
    with pytest.raises(
        UserError, match=r"some/two is not in the hub cache .* nothing is downloaded in a run; fetch it .* `hf download some/two`"
    ):
        read_weights("hub:some/two")
    with pytest.raises(UserError, match=r"no snapshot 'v2' of some/one"):
        read_weights("hub:some/one@v2")
    next(snapshot.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"names shards that are not there"):
        read_weights(str(snapshot))


@pytest.mark.parametrize("how", ["mean", "cycle"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 13])
def test_equal_channels_give_the_response_that_they_gave(how, channels):
    model = timm_model(*TIMM["dinov2"])
    backbone, report = started(from_state(model.state_dict()), size=28, channels=channels, inflate=how)
    gray = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        expected = model.forward_features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(tokens(backbone, gray.expand(-1, channels, -1, -1)), expected, atol=1e-5, rtol=0)
    adapted = [entry.name for entry in report.tensors("adapted")]
    assert ("patch_embed.proj.weight" in adapted) == (channels != 3)


def test_cycled_channels_are_copies_scaled_by_their_number():
    model = timm_model(*TIMM["dinov2"])
    kernel = model.patch_embed.proj.weight.detach()
    backbone, _ = started(from_state(model.state_dict()), size=28, channels=6, inflate="cycle")
    torch.testing.assert_close(backbone.vit.patch_embed.proj.weight.detach(), torch.cat([kernel, kernel], dim=1) / 2)


def test_a_volume_of_equal_slices_embeds_as_the_slice_does():
    model = timm_model(*TIMM["dinov2"])
    plan = ModelPlan(heads=HEADS, patch=(7, 14, 14))
    backbone, report = started(from_state(model.state_dict()), size=(14, 28, 28), ndim=3, channels=1, plan=plan)
    gray = torch.randn(2, 1, 1, 28, 28)
    with torch.no_grad():
        flat = model.patch_embed(gray[:, :, 0].expand(-1, 3, -1, -1)) + model.pos_embed[:, 1:]
        deep = backbone.encode(gray.expand(-1, -1, 14, -1, -1), layer=0).patches
    torch.testing.assert_close(deep, flat.repeat(1, 2, 1), atol=1e-5, rtol=1e-5)
    assert "depth is not told apart" in " ".join(report.notes)


def test_rotary_pairs_keep_axis_and_content_in_a_volume():
    from dinodomain.model.adapt import pair_order, turn_for_volumes

    order = pair_order(32)  # heads of 64: 16 pairs for y, 16 for x
    assert sorted(order) == list(range(32))
    z, y, x, rest = order[:10], order[10:20], order[20:30], order[30:]
    assert y == [0, 2, 3, 5, 6, 8, 10, 11, 13, 14]
    assert x == [16 + pair for pair in y]
    assert len(z) + len(rest) == 12
    matrix = torch.randn(3 * 24, 24)
    moved = turn_for_volumes(matrix, HEADS)
    tokens_in = torch.randn(5, 24)
    before, after = ((tokens_in @ rows.T).view(5, 3, HEADS, 12) for rows in (matrix, moved))
    scores = [torch.einsum("ihd,jhd->hij", qkv[:, 0], qkv[:, 1]) for qkv in (before, after)]
    torch.testing.assert_close(*scores)
    assert torch.equal(before[:, 2], after[:, 2])


def test_dinov3_becomes_a_volume_network_that_says_what_it_loses():
    model = timm_model(*TIMM["dinov3"])
    backbone, report = started(from_state(model.state_dict()), size=(32, 32, 32), ndim=3, channels=1)
    assert report.share > 0.99
    assert "of 8 pairs of channels in a head an image turns 4 by each of its 2 axes, a volume 2 by each of 3" in " ".join(report.notes)
    assert torch.isfinite(tokens(backbone, torch.randn(1, 1, 32, 32, 32))).all()


@pytest.mark.parametrize("patch", [16, 20, 28])
def test_a_larger_patch_answers_to_enlarged_patches_as_the_old_one_did(patch):
    from dinodomain.model.adapt import fit_patch
    from dinodomain.model.positions import axis_matrix

    kernel, x = torch.randn(6, 3, 14, 14), torch.randn(4, 3, 14, 14)
    resize = axis_matrix(14, patch, "bilinear", torch.device("cpu"))
    larger = resize @ x @ resize.T
    fitted = fit_patch(kernel, (patch, patch))
    torch.testing.assert_close(
        torch.einsum("ecyx,ncyx->ne", fitted, larger), torch.einsum("ecyx,ncyx->ne", kernel, x), atol=1e-3, rtol=1e-4
    )


def test_a_smaller_patch_is_the_best_fit_for_shrunk_patches():
    from dinodomain.model.adapt import fit_patch
    from dinodomain.model.positions import axis_matrix

    kernel, resize = torch.randn(2, 1, 14, 14, dtype=torch.float64), axis_matrix(14, 8, "bilinear", torch.device("cpu")).double()
    fitted = fit_patch(kernel, (8, 8))
    miss = lambda candidate: float((resize.T @ candidate @ resize - kernel).square().sum())  # noqa: E731
    for _ in range(5):
        assert miss(fitted) < miss(fitted + 0.01 * torch.randn_like(fitted))


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_a_network_that_is_told_its_channels_begins_as_the_one_with_a_kernel_for_each(channels):
    model = timm_model(*TIMM["dinov2"])
    backbone, report = started(
        from_state(model.state_dict()), size=28, channels=channels, plan=ModelPlan(heads=HEADS, channels="wavelength"), min_coverage=0.8
    )
    gray = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        expected = model.forward_features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(tokens(backbone, gray.expand(-1, channels, -1, -1)), expected, atol=1e-4, rtol=0)
    fresh = {entry.name for entry in report.tensors("fresh")}
    assert fresh == {"patch_embed.key.weight", "patch_embed.channel.by_name", "mask_token"}


def test_another_patch_and_grid_are_fitted_and_said():
    model = timm_model("vit_small_patch14_dinov2", 56, 24)
    backbone, report = started(from_state(model.state_dict()), size=48, plan=ModelPlan(heads=HEADS, patch=8))
    assert backbone.vit.grid == (6, 6)
    reasons = {entry.name: entry.reason for entry in report.tensors("adapted")}
    assert reasons["patch_embed.proj.weight"] == "patch 14x14 to 8x8 (pseudo-inverse resize)"
    assert reasons["pos_embed"] == "grid 4x4 to 6x6"
    from dinodomain.model.positions import resample

    expected = resample(model.pos_embed[:, 1:].detach(), (4, 4), (6, 6))
    torch.testing.assert_close(backbone.vit.pos_embed.detach(), expected)


def test_registers_may_be_added_or_left_out():
    plain, with_registers = (timm_model(*TIMM[name]) for name in ("dinov2", "dinov2 registers"))
    _, more = started(from_state(plain.state_dict()), size=28, plan=ModelPlan(heads=HEADS, registers=2))
    assert {entry.name: entry.reason for entry in more.tensors("fresh")}["reg_token"].startswith("these weights have no registers")
    backbone, fewer = started(from_state(with_registers.state_dict()), size=28, plan=ModelPlan(heads=HEADS, registers=0))
    assert backbone.vit.reg_token is None
    assert fewer.unused == {"reg_token": "model.registers=0; class and patch tokens come out differently"}


@pytest.mark.parametrize(("name", "scale"), [("dino", 0.1), ("dinov2", 0.0)])
def test_layer_scale_is_added_or_multiplied_in_without_a_change(name, scale):
    model = timm_model(*TIMM[name])
    size = TIMM[name][1]
    backbone, _ = started(from_state(model.state_dict()), size=size, plan=ModelPlan(heads=HEADS, layer_scale=scale))
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(tokens(backbone, x), model.forward_features(x), atol=1e-5, rtol=0)


def test_class_positions_may_stay_apart():
    model = timm_model(*TIMM["dinov2"])
    backbone, _ = started(from_state(model.state_dict()), size=28, plan=ModelPlan(heads=HEADS, class_position=True))
    torch.testing.assert_close(backbone.vit.pos_embed.detach(), model.pos_embed.detach())
    x = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(tokens(backbone, x), model.forward_features(x), atol=1e-5, rtol=0)


def test_the_report_counts_exactly_and_is_plain_json():
    model = timm_model(*TIMM["dinov2"])
    state = dict(model.state_dict())
    lost = state.pop("blocks.1.mlp.fc2.weight")
    state["head.weight"], state["strange"] = torch.ones(3, 3), torch.ones(2)
    backbone, report = started(from_state(state), size=28, min_coverage=0.5)
    own = {name: value.numel() for name, value in backbone.vit.state_dict().items()}
    assert report.total == sum(own.values())
    assert report.found == report.total - lost.numel() - own["mask_token"]
    body = json.loads(json.dumps(report.as_json()))
    assert body["counts"]["fresh"] == {"tensors": 2, "parameters": lost.numel() + 24}
    assert body["counts"]["adapted"] == {"tensors": 2, "parameters": own["cls_token"] + own["pos_embed"]}
    assert body["counts"]["matched"]["tensors"] == len(own) - 4
    assert body["unused"] == {"head.weight": "a head of their training or use", "strange": "unknown name"}
    assert "unused: 1 tensors (strange): unknown name" in report.text()


def test_too_little_is_refused_by_the_key_and_changes_nothing():
    model = timm_model(*TIMM["dinov2"])
    state = {name: value for name, value in model.state_dict().items() if "blocks.1.mlp" not in name}
    few = {name: value for name, value in model.state_dict().items() if name != "blocks.1.norm1.weight"}
    plan = ModelPlan(dim=24, depth=2, heads=2, patch=14, registers=0)
    backbone = Backbone.create(plan, ndim=2, image_size=28, normalisation=normalisation(3), domain="x")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=r"start.min_coverage: is 0.95, and of made up only 0.8\d+ of the parameters fit, 0.6667 of"):
        warm_start(backbone, from_state(state))
    with pytest.raises(UserError, match=r"only 0\.9\d+ of the parameters fit, 0\.9\d+ of the tensors"):
        warm_start(backbone, from_state(few))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert warm_start(backbone, from_state(state), min_coverage=0.5).share < 0.9


def test_a_real_encoder_of_another_architecture_is_refused_whole(real_data):
    with pytest.raises(UserError) as caught:
        read_weights(str(real_data / "weights_galileo_nano"))
    text = str(caught.value)
    assert "is not a DINO, DINOv2 or DINOv3 vision transformer: 43 of its 106 tensors (595968 of 1037856 parameters)" in text
    assert "it lacks a patch embedding, a class token, blocks with query, key and value" in text


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (ModelPlan(heads=HEADS, dim=48), "model.dim: is 48, made up has 24"),
        (ModelPlan(heads=HEADS, depth=3), "model.depth: is 3, made up has 2"),
        (ModelPlan(heads=HEADS, mlp="swiglu"), "model.mlp: is 'swiglu', made up has 'gelu'"),
        (ModelPlan(heads=HEADS, mlp_ratio=2.0), "model.mlp_ratio: is 2.0, made up has 4.0"),
        (ModelPlan(heads=HEADS, position="rope"), "set model.position=learned or leave it out"),
        (
            ModelPlan(heads=5, dim=40, depth=3),
            "model.heads: is not known: the weights \\(24 wide\\) do not tell; allowed: 1, 2, 3, 4, 6, 8, 12, 24",
        ),
    ],
)
def test_a_plan_that_contradicts_the_weights_names_the_key(plan, said):
    model = timm_model(*TIMM["dinov2"])
    with pytest.raises(UserError, match=said):
        plan_from_weights(plan, from_state(model.state_dict()))


def test_heads_of_released_sizes_are_known_and_config_wins():
    state = {"cls_token": torch.zeros(1, 1, 128), "patch_embed.proj.weight": torch.zeros(128, 3, 4, 4), "pos_embed": torch.zeros(1, 5, 128)}
    block = {"attn.qkv.weight": (384, 128), "mlp.fc1.weight": (512, 128), "mlp.fc2.weight": (128, 512)}
    state |= {f"blocks.0.{name}": torch.zeros(shape) for name, shape in block.items()}
    assert plan_from_weights(ModelPlan(), from_state(state))["heads"].value == 2
    assert plan_from_weights(ModelPlan(), from_state(state, config={"num_attention_heads": 4}))["heads"].value == 4
    assert "heads" not in plan_from_weights(ModelPlan(heads=8), from_state(state))
    widest = {name: torch.zeros(()).expand(*(size * 32 if size >= 128 else size for size in value.shape)) for name, value in state.items()}
    assert plan_from_weights(ModelPlan(), from_state(widest))["heads"].value == 32


def test_a_key_that_was_given_its_default_is_kept_or_contradicts():
    default, model = ModelPlan(), timm_model(*TIMM["dinov2"])
    weights = from_state(model.state_dict())
    taken = plan_from_weights(ModelPlan(heads=HEADS), weights)
    assert taken["registers"].value == 0 != default.registers
    assert "registers" not in plan_from_weights(ModelPlan(heads=HEADS), weights, given={"registers"})
    with pytest.raises(UserError, match=rf"model\.dim: is {default.dim}, made up has 24 .*set model\.dim=24 or leave it out"):
        plan_from_weights(ModelPlan(heads=HEADS), weights, given={"dim"})
    state = {"cls_token": torch.zeros(1, 1, 768), "patch_embed.proj.weight": torch.zeros(768, 3, 4, 4)}
    block = {"attn.qkv.weight": (2304, 768), "mlp.fc1.weight": (3072, 768), "mlp.fc2.weight": (768, 3072)}
    wide = from_state(state | {f"blocks.0.{name}": torch.zeros(shape) for name, shape in block.items()})
    assert plan_from_weights(ModelPlan(), wide)["heads"].value == 12
    assert "heads" not in plan_from_weights(ModelPlan(), wide, given={"heads"})  # 6, which the weights cannot contradict


def test_another_activation_than_ours_is_refused():
    hf = pytest.importorskip("transformers")
    config = hf.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=HEADS, image_size=32, intermediate_size=96, hidden_act="relu"
    )
    weights = from_state(hf.ViTModel(config).state_dict(), config=config.to_dict())
    with pytest.raises(UserError, match=r"start.weights: made up activates its MLP by 'relu' .config.json, hidden_act.; allowed: gelu"):
        plan_from_weights(ModelPlan(), weights)


def test_a_layout_may_be_demanded():
    model, _ = hf_model("dinov2")
    state = model.state_dict()
    assert from_state(state, layout="hf").renamed.layout == "hf"
    with pytest.raises(UserError, match=r"start.layout: is 'timm', the names in made up are those of hf"):
        from_state(state, layout="timm")


def test_files_that_are_no_weights_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    (tmp_path / "a.npz").touch()
    said = {
        "evil.pth": "cannot be read without running code that it carries",
        "empty.pth": "holds no state dict",
        "cut.safetensors": "cannot be read as safetensors",
        "a.npz": "is of an unknown kind; allowed: .safetensors, .bin",
        "none": "does not exist",
    }
    for name, text in said.items():
        with pytest.raises(UserError, match=text):
            read_weights(str(tmp_path / name))
    with pytest.raises(UserError, match=r"several files of weights"):
        read_weights(str(tmp_path))


def test_nan_in_weights_is_refused():
    state = dict(timm_model(*TIMM["dinov2"]).state_dict())
    state["norm.weight"] = state["norm.weight"] * float("nan")
    with pytest.raises(UserError, match=r"made up holds NaN or Inf in norm.weight"):
        started(from_state(state), size=28)


def wavelength_backbone(channels: str, seed: int) -> Backbone:
    torch.manual_seed(seed)
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=4, registers=0, channels="wavelength")
    numbers = replace(normalisation(len(channels)), channels=tuple(channels))
    return Backbone.create(plan, ndim=2, image_size=8, normalisation=numbers, domain="x").eval()


def test_our_own_weights_keep_their_channels_by_name():
    first, second = wavelength_backbone("abc", 0), wavelength_backbone("cxa", 1)
    own = second.vit.patch_embed.channel.by_name.detach().clone()
    weights = from_state(first.state_dict(), header={"spec": first.spec, "lineage": {}})
    report = warm_start(second, weights)
    had, now = (one.vit.patch_embed.channel.by_name.detach() for one in (first, second))
    assert torch.equal(now, torch.stack([had[2], own[1], had[0]]))
    assert report.total - report.found == own.shape[1]  # the row of x
    assert report.as_json()["counts"]["fresh"] == {"tensors": 0, "parameters": own.shape[1]}
    assert sum(kind["parameters"] for kind in report.as_json()["counts"].values()) == report.total
    assert "1 tensors, 48 parameters, 16 of them fresh (patch_embed.channel.by_name)" in report.text()
    assert report.layout == "dinodomain"
    assert [entry.reason for entry in report.tensors("adapted")] == ["embeddings of the channels c, a; others begin anew"]
    with pytest.raises(UserError, match=r"start.min_coverage: is 1.0, and of made up only 0.99\d+ of the parameters fit"):
        warm_start(wavelength_backbone("cxa", 1), weights, min_coverage=1.0)


def fixed_backbone(channels: str, *, ndim: int = 2, dim: int = 16, **numbers) -> Backbone:
    plan = ModelPlan(dim=dim, depth=1, heads=2, patch=4, registers=1)
    known = replace(normalisation(len(channels)), channels=tuple(channels), **numbers)
    return Backbone.create(plan, ndim=ndim, image_size=8, normalisation=known, domain="x").eval()


def of_ours(backbone: Backbone) -> Weights:
    return from_state(backbone.state_dict(), header={"spec": backbone.spec, "lineage": {}})


def kernels(backbone: Backbone) -> Tensor:
    return backbone.vit.patch_embed.proj.weight.detach()


def why_kernel(report: Coverage) -> str:
    entry = next(entry for entry in report.entries if entry.name == "patch_embed.proj.weight")
    assert (entry.how == "adapted") == bool(entry.reason)
    return entry.reason


def test_our_own_fixed_channels_are_put_in_order():
    first, second = fixed_backbone("abc"), fixed_backbone("cab")
    report = warm_start(second, of_ours(first))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(tokens(second, x[:, [2, 0, 1]]), tokens(first, x))
    assert why_kernel(report) == "channels put in this run's order"
    assert not why_kernel(warm_start(fixed_backbone("abc"), of_ours(first)))


@pytest.mark.parametrize("how", ["mean", "cycle"])
def test_our_own_fixed_channels_that_overlap_are_taken_by_name(how):
    first, second = fixed_backbone("abc"), fixed_backbone("xca")
    report = warm_start(second, of_ours(first), inflate=how)
    had, now = kernels(first), kernels(second)
    torch.testing.assert_close(now, torch.stack([had.mean(1) if how == "mean" else had[:, 0], had[:, 2], had[:, 0]], dim=1))
    assert why_kernel(report) == f"own kernels of c, a; x take {'the mean of all' if how == 'mean' else 'those of others in turn'}"


def test_a_subset_of_our_channels_takes_its_own_kernels_and_more_answer_to_equal_channels_alike():
    first = fixed_backbone("abc")
    fewer, more = fixed_backbone("ca"), fixed_backbone("abcd")
    report = warm_start(fewer, of_ours(first))
    torch.testing.assert_close(kernels(fewer), kernels(first)[:, [2, 0]] * 3 / 2)
    assert why_kernel(report) == "own kernels of c, a, scaled by 3/2"
    report = warm_start(more, of_ours(first))
    assert why_kernel(report) == "own kernels of a, b, c; d take the mean of all, scaled by 3/4"
    gray = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(tokens(more, gray.expand(-1, 4, -1, -1)), tokens(first, gray.expand(-1, 3, -1, -1)))


def test_channels_without_a_common_name_are_taken_by_place_and_said_so():
    first, second = fixed_backbone("abc"), fixed_backbone("xyz")
    report = warm_start(second, of_ours(first))
    assert torch.equal(kernels(second), kernels(first))
    assert why_kernel(report) == "channels a, b, c taken for x, y, z by their place: they share no name"


def test_weights_of_volumes_never_begin_a_network_of_images():
    volumes, flat = fixed_backbone("a", ndim=3), fixed_backbone("a")
    before = {name: value.clone() for name, value in flat.state_dict().items()}
    with pytest.raises(
        UserError, match=r"start.weights: made up is a network of 3-D images, the tiles of this run are 2-D; allowed: weights"
    ):
        warm_start(flat, of_ours(volumes), min_coverage=0.0)
    assert all(torch.equal(value, before[name]) for name, value in flat.state_dict().items())


def test_a_patch_embedding_that_fits_nowhere_is_refused_whatever_the_share():
    with pytest.raises(UserError, match=r"start.weights: the patch embedding of made up does not fit"):
        warm_start(fixed_backbone("a"), of_ours(fixed_backbone("a", dim=24)), min_coverage=0.0)
    with pytest.raises(UserError, match=r"model.channels: is fixed, made up is told its channels .* set model.channels=wavelength"):
        warm_start(fixed_backbone("abc"), of_ours(wavelength_backbone("abc", 0)), min_coverage=0.0)


def test_a_patch_embedding_without_a_bias_has_a_bias_of_zero():
    first, second = fixed_backbone("a"), fixed_backbone("a")
    state = {name: value for name, value in of_ours(first).tensors.items() if name != "patch_embed.proj.bias"}
    report = warm_start(second, from_state(state, header={"spec": first.spec, "lineage": {}}))
    assert report.share == 1.0
    assert not second.vit.patch_embed.proj.bias.detach().any()


def test_another_normalisation_of_our_own_weights_is_told():
    first = fixed_backbone("ab")
    assert not warm_start(fixed_backbone("ab"), of_ours(first)).notes
    # A pixel of 0.5 is 0 for the weights, and 0.5 deviations of theirs below what is 0 here.
    report = warm_start(fixed_backbone("ab", mean=(0.5, 0.6), std=(0.2, 0.1)), of_ours(first))
    assert report.notes == ("these weights saw other numbers for the same pixels than this run gives: theirs = b x 0.5 + 0.5",)
    told = " ".join(warm_start(fixed_backbone("ba", mode="source"), of_ours(first)).notes)
    assert "theirs = b in another kind of range, a in another kind of range" in told


def test_too_few_registers_among_the_weights_are_unused_and_said_so():
    plain = timm_model(*TIMM["dinov2 registers"])
    backbone, report = started(from_state(plain.state_dict()), size=28, plan=ModelPlan(heads=HEADS, registers=6))
    assert backbone.vit.reg_token.shape[1] == 6
    assert {entry.name: entry.reason for entry in report.tensors("fresh")}["reg_token"] == "6 registers asked for, 4 among the weights"
    assert report.unused == {"reg_token": "model.registers=6; class and patch tokens come out differently"}


def test_our_export_for_timm_comes_back_whole(tmp_path):
    torch.manual_seed(0)
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=4, registers=1, norm_eps=1e-4, drop_path=0.3)
    backbone = shaken(Backbone.create(plan, ndim=2, image_size=8, normalisation=normalisation(2), domain="x"))
    safetensors.torch.save_file(backbone.vit.timm_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_args": {"num_heads": 2}, "dinodomain": {"spec": backbone.spec}}))
    again, report = started(read_weights(str(tmp_path)), size=8, channels=2, plan=ModelPlan())
    assert again.vit.plan == replace(plan, drop_path=0.0)
    assert [entry.name for entry in report.tensors("fresh")] == ["mask_token"]
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(tokens(again, x), tokens(backbone, x))
