"""Which range becomes 0..1, and the whole-tile path of inference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dinodomain.domain import Channel, ViewPolicy, linear_to_unit
from dinodomain.errors import UserError
from dinodomain.types import Normalisation
from dinodomain.views import ViewsPlan, apply_range, render, resolve_normalisation, to_network

DECLARED = {"CT": Channel(unit="HU", low=-1024, high=3071, mean=0.2, std=0.1)}
STATS = {"CT": (100.0, 50.0, -1000.0, 1000.0), "odd": (1.0, 0.0, 1.0, 1.0)}
POLICY = ViewPolicy(axes=("y", "x"), default_mode="source")


def test_auto_is_the_domains_choice():
    assert resolve_normalisation("auto", POLICY, DECLARED, ["CT"], STATS).mode == "source"


def test_domain_mode_takes_the_declared_range():
    found = resolve_normalisation("domain", POLICY, DECLARED, ["CT"], None)
    assert (found.low, found.high, found.mean, found.std) == ((-1024,), (3071,), (0.2,), (0.1,))


def test_store_mode_brings_statistics_to_the_unit_range():
    found = resolve_normalisation("store", POLICY, {}, ["CT"], STATS)
    assert (found.low, found.high) == ((-1000.0,), (1000.0,))
    assert found.mean == pytest.approx((0.55,))
    assert found.std == pytest.approx((0.025,))


def test_source_mode_needs_no_declaration():
    found = resolve_normalisation("source", POLICY, {}, ["T1", "FLAIR"], None)
    assert found.channels == ("T1", "FLAIR")


@pytest.mark.parametrize(
    ("mode", "name", "text"),
    [
        ("domain", "PET", "channel 'PET' has no declared range in this domain; use views.normalise=store"),
        ("store", "PET", "the store has no statistics of channel 'PET'"),
        ("store", "odd", "channel 'odd' has mean 1.0, std 0.0, range 1.0..1.0"),
    ],
)
def test_unusable_channels_are_named(mode, name, text):
    with pytest.raises(UserError, match=text):
        resolve_normalisation(mode, POLICY, DECLARED, [name], STATS)


def test_range_follows_channel_names_not_places(make_batch):
    batch = make_batch(2, 2)
    norm = Normalisation(mode="store", channels=("band 1", "band 0"), low=(1.0, 0.0), high=(11.0, 10.0), mean=(0.5, 0.5), std=(1.0, 1.0))
    info = replace(batch.info, scale=torch.tensor([[2.0, 3.0]] * 2))
    told = apply_range(info, norm, batch.channels)  # in the network's order
    assert told.low.tolist() == [[1.0, 0.0]] * 2
    assert told.high.tolist() == [[11.0, 10.0]] * 2
    assert told.scale.tolist() == [[3.0, 2.0]] * 2


def test_source_mode_keeps_each_sources_own_range(make_batch):
    batch = make_batch(2, 2)
    norm = resolve_normalisation("source", POLICY, {}, batch.channels, None)
    assert apply_range(batch.info, norm, batch.channels) is batch.info


def test_a_channel_the_normalisation_lacks_is_named(make_batch):
    batch = make_batch(1, 2)
    norm = resolve_normalisation("source", POLICY, {}, ["band 0"], None)
    with pytest.raises(UserError, match="channels of the store: band 1 not known"):
        apply_range(batch.info, norm, batch.channels)


def test_hounsfield_units_by_hand(make_batch):
    batch = make_batch(1, 1, (4, 4))
    batch = replace(
        batch, pixels=torch.full_like(batch.pixels, 1024), channels=("CT",), info=replace(batch.info, offset=batch.info.offset - 1024)
    )
    norm = resolve_normalisation("domain", POLICY, DECLARED, ["CT"], None)
    found, known = to_network(batch, to_float=linear_to_unit, normalisation=norm)
    assert torch.allclose(found, torch.full((1, 1, 4, 4), (1024 / 4095 - 0.2) / 0.1))  # stored 1024 is 0 HU
    assert known.all()


def test_whole_tiles_are_resized_like_torchvision(make_batch, normalisation):
    batch = make_batch(2, 3, (90, 120), torch.float32)
    found, known = to_network(batch, to_float=linear_to_unit, normalisation=normalisation(batch), size=48)
    wanted = tv.resize(batch.pixels[:, 0], [48, 48], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    assert float((found * 0.25 + 0.4 - wanted).abs().max()) < 1e-5
    assert known.shape == (2, 48, 48)


def test_padding_and_unknown_pixels_are_zero_and_invalid(make_batch, normalisation):
    valid = torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    valid[..., :10, :] = 1
    batch = make_batch(1, 2, (40, 40), torch.uint16, valid=valid)
    batch = replace(batch, info=replace(batch.info, valid_box=torch.tensor([[[0, 30], [0, 20]]])))
    wanted = torch.zeros(40, 40, dtype=torch.bool)
    wanted[10:30, :20] = True
    found, known = to_network(batch, to_float=linear_to_unit, normalisation=normalisation(batch))
    assert torch.equal(known[0], wanted)
    assert (found[0, :, ~wanted] == 0).all()
    _, half = to_network(batch, to_float=linear_to_unit, normalisation=normalisation(batch), size=20)
    assert torch.equal(half[0], wanted[::2, ::2])


def test_inference_and_training_see_the_same_pixels(make_batch, draw_for, normalisation):
    batch = make_batch(2, 2, (64, 64), torch.uint16)
    plan = ViewsPlan(global_size=32, num_global=1, num_local=0, global_scale=(1.0, 1.0), augment=False, renderer="matmul")
    views = render(
        batch, draw_for(batch, ViewPolicy(axes=("y", "x")), plan), to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8
    )
    whole, _ = to_network(batch, to_float=linear_to_unit, normalisation=normalisation(batch), size=32)
    assert float((views.groups[0].pixels - whole).abs().max()) < 1e-5


def test_inference_leaves_the_batch_as_it_was(make_batch, normalisation):
    batch = make_batch(2, dtype=torch.float32)
    before = batch.pixels.clone()
    to_network(batch, to_float=linear_to_unit, normalisation=normalisation(batch))
    assert torch.equal(batch.pixels, before)
