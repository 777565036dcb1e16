"""The patch embedding that is told what each channel is: equal to its plain twin, blind to order, honest about what it was not given."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from dinodomain.domain import Channel
from dinodomain.errors import Problems, UserError
from dinodomain.model import Backbone, Band, ModelPlan, bands_of, random_like
from dinodomain.model.channels import WavelengthPatchEmbed, make_patch_embed, reference, wave_features
from dinodomain.model.patch_embed import PatchEmbed
from dinodomain.types import Acquisition, Normalisation

BANDS = (Band("B02", 492.0), Band("B08", 833.0), Band("VV", 5.55e7), Band("VH", 5.55e7), Band("ct"))
NAMES = tuple(band.name for band in BANDS)
PLAN = ModelPlan(dim=16, depth=1, heads=2, patch=4, registers=1, layer_scale=0.5, channels="wavelength")
OPTICAL = {"B02": 492.0, "B03": 560.0, "B08": 833.0}


def make(dim: int = 12, patch: int | tuple[int, ...] = 4, ndim: int = 2) -> WavelengthPatchEmbed:
    torch.manual_seed(0)
    return WavelengthPatchEmbed(BANDS, dim, patch, ndim)


def numbers(names: tuple[str, ...]) -> Normalisation:
    row = tuple(float(place) for place in range(len(names)))
    return Normalisation(mode="domain", channels=names, low=row, high=tuple(x + 1 for x in row), mean=row, std=tuple(x + 1 for x in row))


def backbone(bands: dict[str, float | None] = OPTICAL, **plan) -> Backbone:
    torch.manual_seed(0)
    told = [Band(*item) for item in bands.items()]
    made = Backbone.create(
        replace(PLAN, **plan), ndim=2, image_size=16, normalisation=numbers(tuple(bands)), domain="sentinel2", bands=told
    )
    return made.eval()


@pytest.mark.parametrize(("ndim", "patch", "size"), [(2, 4, (8, 12)), (2, (4, 2), (8, 6)), (3, (2, 4, 4), (4, 8, 4))])
def test_it_equals_its_plain_twin_whatever_was_lost(ndim, patch, size):
    embed, x = make(patch=patch, ndim=ndim).double(), torch.randn(2, 5, *size, dtype=torch.float64)
    kept = torch.tensor([[True, False, True, True, False], [False] * 5])
    for about in (None, Acquisition(kept=kept), Acquisition(channels=NAMES[::-1], kept=kept)):
        torch.testing.assert_close(embed(x, about), reference(embed, x, about), rtol=1e-10, atol=1e-12)
    single = embed.float()(x.float())
    torch.testing.assert_close(single.double(), reference(embed.double(), x), rtol=1e-4, atol=1e-5)


def test_the_order_of_channels_is_free_where_their_names_are_told():
    embed, x = make(), torch.randn(2, 5, 8, 8)
    order = [3, 0, 4, 2, 1]
    about = Acquisition(channels=tuple(NAMES[place] for place in order))
    torch.testing.assert_close(embed(x[:, order], about), embed(x), rtol=1e-5, atol=1e-6)
    assert (embed(x[:, order]) - embed(x)).abs().max() > 0.01  # and matters where they are not


def test_a_lost_channel_equals_the_subset_without_it_and_leaves_no_trace():
    embed, x = make(), torch.randn(2, 5, 8, 8)
    kept = torch.tensor([[True, True, False, True, True]] * 2)
    without = [0, 1, 3, 4]
    subset = embed(x[:, without], Acquisition(channels=tuple(NAMES[place] for place in without)))
    torch.testing.assert_close(embed(x, Acquisition(kept=kept)), subset, rtol=1e-5, atol=1e-6)
    other = x.clone()
    other[:, 2] = 1e4
    assert torch.equal(embed(other, Acquisition(kept=kept)), embed(x, Acquisition(kept=kept)))


def test_a_patch_that_lost_everything_is_the_bias_with_finite_gradients():
    embed, x = make(), torch.randn(1, 5, 4, 4, requires_grad=True)
    torch.nn.init.normal_(embed.out.bias)
    tokens = embed(x, Acquisition(kept=torch.zeros(1, 5, dtype=torch.bool)))
    torch.testing.assert_close(tokens[0, 0], embed.out.bias)
    tokens.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *embed.parameters()) if p.grad is not None)


def test_gradients_reach_every_weight_and_every_channel():
    embed, x = make(), torch.randn(2, 5, 8, 8, requires_grad=True)
    embed(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in embed.parameters())
    assert (x.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("bands", [BANDS[:2], BANDS[4:]], ids=["wavelengths only", "names only"])
def test_no_weight_waits_for_a_gradient_where_channels_are_of_one_kind(bands):
    embed = WavelengthPatchEmbed(bands, 12, 4, 2)
    embed(torch.randn(1, len(bands), 8, 8)).square().sum().backward()
    # Of one channel the attention has nothing to choose.
    idle = {"query", "key.weight"} if len(bands) == 1 else set()
    assert {name for name, p in embed.named_parameters() if p.grad is None or p.grad.abs().max() == 0} <= idle
    assert all(p.grad is not None for p in embed.parameters())


def test_pixels_stay_in_float32_under_bf16():
    embed, x = make(), 1000 + torch.randn(2, 5, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = embed(x)
    assert torch.equal(tokens, embed(x))
    vit = backbone().vit
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = vit(torch.randn(2, 3, 16, 16), about=Acquisition(kept=torch.tensor([[True, False, True], [False] * 3])))
    assert torch.isfinite(features.patches).all()


class Precisions(TorchFunctionMode):
    """How precise float32 products are meant to be at each one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.nn.functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.einsum):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fast_products():
    """As a run on a GPU sets it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("embed", [make(), PatchEmbed(5, 12, 4, 2)], ids=["told", "fixed"])
def test_no_product_of_a_patch_embedding_is_tf32(embed, fast_products):
    with Precisions() as precisions:
        embed(torch.randn(1, 5, 8, 8))
    assert precisions.seen
    assert set(precisions.seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("embed", [make(), PatchEmbed(5, 12, 4, 2)], ids=["told", "fixed"])
def test_pixels_stay_in_float32_where_products_may_be_tf32(embed, fast_products):
    x = 1000 + torch.randn(8, 5, 64, 64)
    exact = copy.deepcopy(embed).double()(x.double())
    tokens = copy.deepcopy(embed).cuda()(x.cuda()).cpu().double()
    # TF32 is off by up to 0.25 in each pixel of 1000, which adds up to several 1e-4 of a token; float32 to less than 1e-6.
    assert (tokens - exact).abs().max() < 1e-5 * exact.abs().max()


def test_what_follows_does_not_see_how_many_channels_there_were():
    one = backbone()
    many = one.with_bands({f"w{place}": 400.0 + 10 * place for place in range(50)})
    few, lots = one.encode(torch.randn(2, 3, 16, 16)), many.encode(torch.randn(2, 50, 16, 16))
    assert few.patches.shape == lots.patches.shape == (2, 16, 16)
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in many.parameters())


def test_channels_are_told_apart_by_wavelength_and_at_one_wavelength_by_polarisation():
    embed = make()
    told = embed.channel()
    assert torch.cdist(told, told)[~torch.eye(5, dtype=torch.bool)].min() > 0.1
    waves = wave_features([560.0, 561.0, 700.0, None])
    near, far = (waves[0] - waves[1]).norm(), (waves[0] - waves[2]).norm()
    assert 0 < near < 0.1 * far
    assert (waves[3] == 0).all()


def test_a_band_beside_a_trained_one_gives_nearly_the_same_tokens():
    embed, x = backbone().vit.patch_embed, torch.randn(4, 3, 16, 16)
    plain = embed(x)
    shifted = embed.with_bands((Band("B02", 492.0), Band("B3a", 561.0), Band("B08", 833.0)))(x)
    swapped = embed(x, Acquisition(channels=("B08", "B03", "B02")))
    assert 0 < (shifted - plain).norm() < 0.1 * (swapped - plain).norm()


def test_unknown_names_are_refused_with_those_that_are_known():
    embed, x = make(), torch.randn(1, 1, 8, 8)
    with pytest.raises(UserError, match=r"about\.channels: B8 not known.*allowed: B02, B08, VV, VH, ct; did you mean 'B08'\?"):
        embed(x, Acquisition(channels=("B8",)))
    with pytest.raises(UserError, match="image: has 1 channels; allowed: 5: B02"):
        embed(x)
    with pytest.raises(UserError, match="names one twice"):
        embed(x.expand(-1, 2, -1, -1), Acquisition(channels=("ct", "ct")))
    with pytest.raises(UserError, match="names 2 channels of an image that has 1"):
        embed(x, Acquisition(channels=("ct", "VV")))
    with pytest.raises(UserError, match=r"about\.kept: is torch\.bool \(1, 2\); allowed: bool \(1, 5\)"):
        embed(x.expand(-1, 5, -1, -1), Acquisition(kept=torch.ones(1, 2, dtype=torch.bool)))
    with pytest.raises(Problems, match=r"'t1' has no wavelength.*allowed: VV, VH, ct.*\n.*'HH' of 5\.5e\+07 nm is told by polarisation"):
        embed.with_bands((Band("t1"), Band("HH", 5.5e7)))
    with pytest.raises(UserError, match="'B1' has a wavelength, the network was trained on named channels only"):
        WavelengthPatchEmbed(BANDS[4:], 12, 4, 2).with_bands((Band("B1", 443.0),))
    with pytest.raises(UserError, match="the wavelength -1"):
        Band("x", -1.0)
    with pytest.raises(UserError, match="bands: are 0 for 3 channels; allowed: 3; give one Band for each channel"):
        make_patch_embed(PLAN, 3, 2)


def test_a_kernel_for_each_channel_takes_its_own_channels_in_any_order_and_no_others():
    embed, x = PatchEmbed(2, 8, 4, 2, ("a", "b")), torch.randn(1, 2, 8, 8)
    assert torch.equal(embed(x.flip(1), Acquisition(channels=("b", "a"))), embed(x))
    assert torch.equal(embed(x, Acquisition(channels=("a", "b"), kept=torch.tensor([[True, False]]))), embed(x))
    with pytest.raises(UserError, match=r"about\.channels: are a; allowed: a, b, in any order; model\.channels=wavelength"):
        embed(x[:, :1], Acquisition(channels=("a",)))
    with pytest.raises(UserError, match="was not told the names"):
        PatchEmbed(2, 8, 4, 2)(x, Acquisition(channels=("a", "b")))


def test_another_sensor_shares_the_weights_and_survives_disk():
    one = backbone()
    other = one.with_bands({"B08": 833.0, "L1": 443.0})
    assert other.channels == ("B08", "L1")
    assert one.channels == tuple(OPTICAL)  # unchanged
    assert other.vit.patch_embed.proj.weight is one.vit.patch_embed.proj.weight
    assert other.normalisation.low == (2.0, 0.0)  # B08 its own, L1 those of B02, the nearest
    x = torch.randn(2, 2, 16, 16)
    twin = Backbone.from_spec(json.loads(json.dumps(other.spec)), other.state_dict())
    assert twin.spec == other.spec
    assert twin.bands == (Band("B08", 833.0), Band("L1", 443.0))
    np.testing.assert_array_equal(twin.features(x), other.features(x))
    assert random_like(other, 1).spec == other.spec
    with pytest.raises(UserError, match="normalisation: names B02, B03, B08; allowed: L1"):
        one.with_bands({"L1": 443.0}, one.normalisation)
    with pytest.raises(UserError, match=r"model\.channels: is fixed"):
        backbone(channels="fixed").with_bands({"L1": 443.0})
    with pytest.raises(UserError, match="bands: are empty"):
        one.with_bands({})


def test_a_named_subset_keeps_what_it_was_trained_with():
    mixed = backbone({"B02": 492.0, "VV": 5.55e7, "ct": None})
    for bands in ({"ct": None}, {"B1": 443.0}):
        part = mixed.with_bands(bands)
        twin = Backbone.from_spec(json.loads(json.dumps(part.spec)), part.state_dict())
        assert twin.with_bands({"VV": 5.55e7, "B9": 940.0}, numbers(("VV", "B9"))).channels == ("VV", "B9")
    with pytest.raises(UserError, match="normalisation: says nothing of 'VV'; give a normalisation"):
        mixed.with_bands({"ct": None}).with_bands({"VV": 5.55e7})


def test_bands_come_from_a_domain_and_windows_have_no_wavelength():
    declared = {"B02": Channel(unit="1", low=0, high=1, wavelength_nm=492.0), "ct": Channel(unit="HU", low=-1000, high=1000)}
    plain = numbers(("B02", "ct", "other"))
    assert bands_of(plain, declared) == (Band("B02", 492.0), Band("ct"), Band("other"))
    windowed = replace(plain, channels=("B02", "B02/dark", "ct/lung"), sources=("B02", "B02", "ct"))
    assert bands_of(windowed, declared) == (Band("B02", 492.0), Band("B02/dark"), Band("ct/lung"))
