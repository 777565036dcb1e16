"""The backbone: spec and weights, pooled features, attribution, the untrained baseline."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dinodomain.errors import UserError
from dinodomain.model import Backbone, ModelPlan, random_like
from dinodomain.types import Acquisition, Normalisation

NORMALISATION = Normalisation(mode="store", channels=("B02", "B08"), low=(0.0, 0.0), high=(1.0, 0.8), mean=(0.3, 0.4), std=(0.1, 0.2))
PLAN = ModelPlan(dim=24, depth=2, heads=2, patch=8, registers=1, layer_scale=0.2)


def build(**changes) -> Backbone:
    torch.manual_seed(0)
    return Backbone.create(PLAN, **{"ndim": 2, "image_size": 32, "normalisation": NORMALISATION, "domain": "sentinel2", **changes})


@pytest.mark.parametrize("ndim", [2, 3])
def test_spec_survives_json_and_gives_the_same_network(ndim):
    backbone = build(ndim=ndim, image_size=(16,) * ndim, pooling="mean")
    twin = Backbone.from_spec(json.loads(json.dumps(backbone.spec)), backbone.state_dict())
    assert twin.spec == backbone.spec
    assert twin.normalisation == NORMALISATION
    assert twin.channels == ("B02", "B08")
    x = torch.randn(3, 2, *[16] * ndim)
    np.testing.assert_array_equal(twin.features(x), backbone.features(x))


@pytest.mark.parametrize(("pooling", "width"), [("cls+mean", 48), ("cls", 24), ("mean", 24)])
def test_features_pool_as_named(pooling, width):
    backbone = build(pooling=pooling)
    x = torch.randn(3, 2, 32, 32)
    rows = backbone.features(x)
    tokens = backbone.encode(x)
    parts = {"cls": [tokens.cls], "mean": [tokens.patches.mean(1)], "cls+mean": [tokens.cls, tokens.patches.mean(1)]}
    assert rows.dtype == np.float32
    assert rows.shape == (3, width) == (3, backbone.num_features)
    np.testing.assert_allclose(rows, torch.cat(parts[pooling], dim=1).detach().numpy())


def test_features_leave_the_training_mode_alone():
    backbone = build().train()
    backbone.features(torch.randn(1, 2, 16, 16))
    assert backbone.training


def test_gradients_reach_the_input_so_that_attribution_works():
    attr = pytest.importorskip("captum.attr")
    backbone = build().eval()
    x, baseline = torch.randn(2, 2, 16, 16), torch.zeros(2, 2, 16, 16)
    target = torch.randn(24)

    def score(images: torch.Tensor) -> torch.Tensor:
        return backbone.encode(images).cls @ target

    attribution = attr.IntegratedGradients(score).attribute(x, baselines=baseline, n_steps=64)
    torch.testing.assert_close(attribution.flatten(1).sum(1), (score(x) - score(baseline)).detach(), rtol=0.02, atol=0.02)


def test_the_untrained_baseline_is_the_same_network_with_other_weights_from_its_seed_alone():
    backbone = build()
    state = torch.random.get_rng_state()
    one, again, other = random_like(backbone, 1), random_like(backbone, 1), random_like(backbone, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.spec == backbone.spec
    x = torch.randn(2, 2, 32, 32)
    np.testing.assert_array_equal(one.features(x), again.features(x))
    assert np.abs(one.features(x) - other.features(x)).max() > 1e-3
    assert np.abs(one.features(x) - backbone.features(x)).max() > 1e-3


def test_a_newer_spec_and_foreign_weights_are_refused():
    backbone = build()
    with pytest.raises(UserError, match="has format 2; allowed: 1"):
        Backbone.from_spec({**backbone.spec, "format": 2}, backbone.state_dict())
    with pytest.raises(UserError, match=r"Missing key.*vit\.cls_token"):
        Backbone.from_spec(backbone.spec, {"other": torch.zeros(1)})


def test_windows_and_units_survive_json_and_a_spec_without_them_still_loads():
    plain = build()
    assert not {"sources", "units"} & set(plain.spec["normalisation"])  # as every spec was before there were any
    assert Backbone.from_spec(json.loads(json.dumps(plain.spec)), plain.state_dict()).normalisation == plain.normalisation
    count = len(plain.channels)
    numbers = replace(plain.normalisation, sources=("x",) * count, units=("HU",) * count)
    windowed = build(normalisation=numbers)
    assert Backbone.from_spec(json.loads(json.dumps(windowed.spec)), windowed.state_dict()).normalisation == numbers
    with pytest.raises(UserError, match=f"channels: {count + 1} stored channels for {count} in the network"):
        build(normalisation=replace(numbers, sources=("x",) * (count + 1)))


def test_channels_and_network_must_agree():
    vit = build().vit
    three = Normalisation(mode="domain", channels=("a", "b", "c"), low=(0,) * 3, high=(1,) * 3, mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(UserError, match=r"channels: 3 named \(a, b, c\), 2 in the network"):
        Backbone(vit, normalisation=three, domain="x")
    with pytest.raises(UserError, match=r"pooling: is 'max'; allowed: cls\+mean, cls, mean"):
        Backbone(vit, normalisation=NORMALISATION, domain="x", pooling="max")


def test_the_order_of_channels_is_free_where_they_are_named():
    backbone, x = build().eval(), torch.randn(2, 2, 16, 16)
    swapped = backbone.features(x.flip(1), about=Acquisition(channels=("B08", "B02")))
    np.testing.assert_array_equal(swapped, backbone.features(x))
    assert not backbone.any_channels
    assert [band.wavelength_nm for band in backbone.bands] == [None, None]


@pytest.mark.parametrize(("position", "unit", "needs"), [("rope", "physical", True), ("rope", "crop", False), ("learned", "crop", False)])
def test_a_backbone_says_whether_it_must_be_told_the_pixel_size(position, unit, needs):
    length = 8.0 if unit == "physical" else None
    plan = replace(PLAN, position=position, rope_unit=unit, rope_length=length)
    torch.manual_seed(0)
    backbone = Backbone.create(plan, ndim=2, image_size=32, normalisation=NORMALISATION, domain="x").eval()
    assert backbone.needs_spacing is needs
    x = torch.randn(2, 2, 16, 16)
    fine, coarse = (backbone.features(x, about=Acquisition(spacing=torch.full((2, 2), step))) for step in (0.5, 2.0))
    assert bool(np.abs(fine - coarse).max() > 1e-6) == needs
