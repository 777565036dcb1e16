"""Operations on every pixel: values worked out by hand, distributions, rates, neutral values, independence, and the plain twin."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from dinodomain.domain import (
    BiasField,
    Blur,
    DropChannels,
    Gain,
    Gamma,
    Haze,
    Jitter,
    Noise,
    Rician,
    Shadow,
    Solarise,
    Speckle,
    SubsetChannels,
    ValueNoise,
    ViewPolicy,
    Window,
    linear_to_unit,
)
from dinodomain.errors import Problems
from dinodomain.policy import chances, operations, parameters
from dinodomain.types import Normalisation
from dinodomain.views import ViewsPlan, draw, render
from dinodomain.views.alone import one_sample
from dinodomain.views.draw import channels_kept
from dinodomain.views.fields import log_gamma_noise, log_gamma_quantile, smooth_field
from dinodomain.views.noise import noise
from dinodomain.views.operations import (
    bias_field_,
    gamma_,
    lose_channels_,
    noise_,
    own_key,
    physical_,
    rician_,
    shadow_,
    skylight,
    solarise_,
    speckle_,
    unit_,
)
from dinodomain.views.reference import plain_field, reference_view

SMALL = ViewsPlan(global_size=32, local_size=16, num_local=3)
KEY = torch.tensor([20_230_517])
PLAIN = ViewPolicy(axes=("NS", "EW"), blur=None, jitter=None, gamma=None, noise=None)
NAN = float("nan")


def many(policy: ViewPolicy, count: int = 4000, sources=(0, 1)):
    """The first global views of many tiles."""
    ids = torch.arange(count) * 104729
    box = torch.tensor([[0, 300]] * len(policy.axes)).expand(count, -1, -1)
    plan = ViewsPlan(global_size=64, local_size=32, num_global=1)
    spacing = torch.ones(count, len(policy.axes))
    params = draw(
        policy, plan, seed=3, tile_ids=ids, epochs=0 * ids, draws=0 * ids, valid_box=box, spacing=spacing, sources=sources
    )  # fmt: skip
    return params.groups[0]


# --- smooth fields -----------------------------------------------------------------------------------------------------


def test_smooth_field_of_two_nodes_by_hand():
    # Two pixels lie a quarter and three quarters of the way: B(1/4) = 47/76.8, B(3/4) = 24.2/76.8, squares made to sum to one.
    near, far = 2 / 3 - 1 / 16 + 1 / 128, 2 / 3 - 9 / 16 + 27 / 128
    a, b = noise(KEY, 2)[0].tolist()
    length = math.hypot(near, far)
    wanted = [(near * a + far * b) / length, (far * a + near * b) / length]
    assert smooth_field(KEY, nodes=2, size=2, ndim=1).flatten().tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("ndim", "nodes", "size"), [(2, 4, 24), (3, 3, 12), (2, 7, 9)])
def test_smooth_field_is_the_plain_one(ndim, nodes, size):
    found = smooth_field(KEY, nodes=nodes, size=size, ndim=ndim)[0, 0].double().numpy()
    assert np.abs(found - plain_field(KEY, nodes, (size,) * ndim)).max() < 1e-5


@pytest.mark.parametrize(("ndim", "nodes"), [(2, 4), (3, 3)])
def test_smooth_field_has_deviation_one_at_every_pixel_and_is_smooth(ndim, nodes):
    size = 20 if ndim == 2 else 10
    field = smooth_field(torch.arange(20_000) * 104729, nodes=nodes, size=size, ndim=ndim).double()
    assert float(field.mean(dim=0).abs().max()) < 0.04  # five standard errors
    assert float((field.std(dim=0) - 1).abs().max()) < 0.03
    step = field.diff(dim=-1).square().mean().sqrt()
    assert float(step) < 1.5 * (nodes - 1) / size


# --- bias field --------------------------------------------------------------------------------------------------------


def test_bias_field_is_the_exponential_of_a_field_for_all_channels():
    values = torch.full((1, 2, 16, 16), 100.0)
    values[:, 1] = -3.0
    bias_field_(values, torch.tensor([0.2]), KEY, nodes=4)
    gain = np.exp(0.2 * plain_field(KEY, 4, (16, 16)))
    assert np.allclose(values[0, 0].numpy(), 100 * gain, rtol=1e-5)
    assert np.allclose(values[0, 1].numpy(), -3 * gain, rtol=1e-5)


def test_deviation_of_the_bias_field_is_its_strength():
    values = torch.ones(5000, 1, 12, 12)
    bias_field_(values, torch.full((5000,), 0.25), torch.arange(5000) * 7919, nodes=4)
    assert float(values.log().std(dim=0).mean()) == pytest.approx(0.25, rel=0.02)
    assert float(values.log().mean()) == pytest.approx(0.0, abs=0.005)


# --- shadow ------------------------------------------------------------------------------------------------------------


def test_skylight_falls_with_the_fourth_power_of_the_wavelength():
    found = skylight(0.25, [490.0, 980.0, 245.0, NAN])
    assert found == pytest.approx((0.25, 0.25 / 16, 1.0, 1.0))


def test_in_full_shadow_only_skylight_and_the_share_that_is_left_remain():
    # Depth 0.6 takes 0.6 of the direct 0.75 in blue: 1 - 0.45 = 0.55; in infrared nearly all light is direct; no wavelength, no shadow.
    values = torch.full((1, 3, 8, 8), 0.4)
    shadow_(values, torch.tensor([0.6]), torch.tensor([1.0]), KEY, skylight=torch.tensor([0.25, 0.0, 1.0]), nodes=4, edge=0.1)
    assert values[0].mean(dim=(1, 2)).tolist() == pytest.approx([0.4 * 0.55, 0.4 * 0.4, 0.4], abs=1e-6)
    assert float(values.std(dim=(2, 3)).max()) < 1e-7


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("edge", [0.05, 0.5])
def test_shadow_covers_its_share_of_the_ground_with_a_soft_edge(share, edge):
    count = 4000
    values = torch.ones(count, 1, 12, 12)
    shade = {"skylight": torch.zeros(1), "nodes": 5, "edge": edge}
    shadow_(values, torch.ones(count), torch.full((count,), share), torch.arange(count) * 7919, **shade)
    lost = 1 - values
    assert float(lost.mean()) == pytest.approx(share, abs=0.01)
    assert float(lost.min()) >= 0
    assert float(lost.max()) <= 1
    # Between sun and shadow the light falls over about two edge widths of a field of deviation one.
    half = float(((lost > 0.16) & (lost < 0.84)).float().mean())
    threshold = stats.norm.isf(share) * math.sqrt(1 + edge**2)
    wanted = stats.norm.cdf(threshold + 0.9945 * edge) - stats.norm.cdf(threshold - 0.9945 * edge)
    assert half == pytest.approx(wanted, abs=0.015)


# --- speckle -----------------------------------------------------------------------------------------------------------

LOOKS = [1.0, 1.7, 4.0, 12.5, 50.0, 1000.0]


@pytest.mark.parametrize("looks", LOOKS)
def test_exact_quantile_is_scipys(looks):
    z = np.linspace(-4.62, 4.62, 301)
    tail = np.where(z < 0, stats.gamma.ppf(stats.norm.cdf(z), looks), stats.gamma.isf(stats.norm.sf(z), looks))
    found = log_gamma_quantile(torch.from_numpy(z), torch.full((301,), looks, dtype=torch.float64)).numpy()
    assert np.abs(found - np.log(tail / looks)).max() < 1e-8


@pytest.mark.parametrize("looks", LOOKS)
def test_speckle_is_a_gamma_number_of_mean_one(looks):
    count = 400_000
    log = log_gamma_noise(KEY, torch.tensor([looks]), (count,))[0].double().numpy()
    assert stats.kstest(np.exp(log), stats.gamma(looks, scale=1 / looks).cdf).statistic < 0.0025  # 1.6 standard errors of the sample
    assert np.exp(log).mean() == pytest.approx(1.0, abs=4 / math.sqrt(looks * count))
    assert np.exp(log).var() * looks == pytest.approx(1.0, abs=0.02)
    order = noise(KEY, count)[0].double().sort()
    some = torch.cat([order.values[:500], order.values[::100], order.values[-500:]])
    place = torch.cat([order.indices[:500], order.indices[::100], order.indices[-500:]])
    exact = log_gamma_quantile(some, torch.full_like(some, looks)).numpy()
    assert 10 / math.log(10) * np.abs(log[place.numpy()] - exact).max() < 0.005  # decibels


def test_speckle_acts_on_linear_power_whatever_is_stored():
    looks, power = torch.tensor([3.0]), torch.rand(1, 2, 16, 16) + 0.1
    stored = {"power": power.clone(), "db": 10 * power.log10(), "amplitude": power.sqrt()}
    for scale, values in stored.items():
        speckle_(values, looks, KEY, scale=scale)
    assert torch.allclose(stored["db"], 10 * stored["power"].log10(), atol=1e-4)
    assert torch.allclose(stored["amplitude"].square(), stored["power"], rtol=1e-5)
    factor = (stored["power"] / power)[0].flatten(1)
    assert abs(float(torch.corrcoef(factor)[0, 1])) < 0.25  # of 256 pixels: channels have speckle of their own


def test_looks_are_drawn_log_uniformly_for_each_view():
    group = many(replace(PLAIN, speckle=Speckle(probability=1.0, looks=(2.0, 32.0))))
    octave = torch.log2(group.operations["speckle"].values["looks"]).numpy()
    assert stats.kstest(octave, stats.uniform(1, 4).cdf).statistic < 0.026


# --- Rician ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signal", "std"), [(0.0, 2.0), (3.0, 2.0), (50.0, 2.0)])
def test_noise_of_a_magnitude_is_rician(signal, std):
    values = torch.full((1, 1, 300, 300), signal)
    rician_(values, torch.tensor([[std]]), KEY)
    assert stats.kstest(values.flatten().double().numpy(), stats.rice(signal / std, scale=std).cdf).statistic < 0.005
    if signal == 0:
        assert float(values.mean()) == pytest.approx(std * math.sqrt(math.pi / 2), rel=0.01)  # Rayleigh


def test_rician_by_hand():
    a, b = noise(KEY, 2)[0].tolist()
    values = torch.full((1, 1, 1), 4.0)
    rician_(values, torch.tensor([[0.5]]), KEY)
    assert float(values) == pytest.approx(math.hypot(4 + 0.5 * a, 0.5 * b), abs=1e-6)


def test_rician_noise_is_a_share_of_the_range_that_the_source_states(make_batch):
    batch = make_batch(1, 2, (64, 64), torch.float32)
    info = replace(batch.info, low=torch.tensor([[0.0, 100.0]]), high=torch.tensor([[1000.0, 300.0]]))
    policy = replace(PLAIN, rician=Rician(probability=1.0, std=(0.05, 0.05)))
    values = torch.full((1, 2, 64, 64), 5000.0)
    physical_(values, many(policy, 1).operations, KEY, policy, info, [NAN, NAN])
    assert values.std(dim=(2, 3))[0].tolist() == pytest.approx([50.0, 10.0], rel=0.05)


def test_rician_noise_leaves_signed_channels_alone(make_batch):
    batch = make_batch(1, 2, (16, 16), torch.float32)
    info = replace(batch.info, low=torch.tensor([[0.0, -100.0]]), high=torch.tensor([[1000.0, 300.0]]))
    policy = replace(PLAIN, rician=Rician(probability=1.0, std=(0.05, 0.05)))
    values = torch.full((1, 2, 16, 16), -5.0)
    physical_(values, many(policy, 1).operations, KEY, policy, info, [NAN, NAN])
    assert (values[0, 0] > 0).all()
    assert (values[0, 1] == -5.0).all()


def test_value_noise_is_in_the_channels_unit_and_the_same_in_every_window(make_batch):
    batch = make_batch(1, 1, (64, 64), torch.float32)
    info = replace(batch.info, low=torch.tensor([[-1024.0]]), high=torch.tensor([[3071.0]]))
    policy = replace(PLAIN, value_noise=ValueNoise(probability=1.0, std=(25.0, 25.0)))
    values = torch.full((1, 1, 64, 64), 40.0)
    physical_(values, many(policy, 1).operations, KEY, policy, info, [NAN])
    assert float(values.std()) == pytest.approx(25.0, rel=0.05)
    assert float(values.mean()) == pytest.approx(40.0, abs=2.0)


# --- unit range --------------------------------------------------------------------------------------------------------


def test_gamma_solarise_and_lost_channels_by_hand():
    unit = torch.tensor([[[0.0, 0.25, 1.0]], [[0.0, 0.25, 1.0]]])
    gamma_(unit, torch.tensor([0.5, 2.0]))
    assert torch.allclose(unit[:, 0], torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0625, 1.0]]), atol=1e-6)
    solarise_(unit, torch.tensor([0.5, math.inf]))
    assert torch.allclose(unit[:, 0], torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0625, 1.0]]), atol=1e-6)
    many_channels = torch.arange(8.0).reshape(2, 2, 2)
    lose_channels_(many_channels, torch.tensor([[True, False], [True, True]]), torch.tensor([0.1, 0.4]))
    assert torch.allclose(many_channels, torch.tensor([[[0.0, 1.0], [0.4, 0.4]], [[4.0, 5.0], [6.0, 7.0]]]))


def test_detector_noise_by_hand():
    # sqrt(0.3^2 + 0.4^2 x u): 0.3 in the dark, 0.5 at unit 1, sqrt(0.09 + 0.04) at a quarter.
    grain = noise(KEY, 3)
    unit = torch.tensor([[[0.0, 0.25, 1.0]]])
    noise_(unit, torch.tensor([0.3]), KEY, torch.tensor([0.4]))
    wanted = torch.tensor([0.0, 0.25, 1.0]) + torch.tensor([0.3, math.sqrt(0.13), 0.5]) * grain[0]
    assert torch.allclose(unit[0, 0], wanted, atol=1e-6)
    plain = torch.tensor([[[0.0, 0.25, 1.0]]])
    noise_(plain, torch.tensor([0.3]), KEY)
    assert torch.allclose(plain[0, 0], torch.tensor([0.0, 0.25, 1.0]) + 0.3 * grain[0], atol=1e-6)


def test_shot_noise_grows_with_the_signal():
    for level, wanted in ((0.0, 0.02), (0.5, math.sqrt(0.02**2 + 0.1**2 / 2)), (1.0, math.hypot(0.02, 0.1))):
        unit = torch.full((1, 1, 400, 400), level)
        noise_(unit, torch.tensor([0.02]), KEY, torch.tensor([0.1]))
        assert float(unit.std()) == pytest.approx(wanted, rel=0.02)
        assert float(unit.mean()) == pytest.approx(level, abs=0.002)


# --- lost channels -----------------------------------------------------------------------------------------------------


def test_drop_channels_takes_each_at_its_rate_and_leaves_one():
    policy = replace(PLAIN, drop_channels=DropChannels(probability=0.5, share=(0.3, 0.3)))
    kept = channels_kept(policy, many(policy), 6).float()
    assert float(1 - kept.mean()) == pytest.approx(0.15, abs=0.012)
    assert torch.allclose(1 - kept.mean(dim=0), torch.full((6,), 0.15), atol=0.025)
    assert abs(float(torch.corrcoef(kept[kept.sum(dim=1) < 6].T)[0, 3])) < 0.15
    harsh = replace(PLAIN, drop_channels=DropChannels(share=(1.0, 1.0)))
    assert Counter(channels_kept(harsh, many(harsh), 6).sum(dim=1).tolist()) == {1: 4000}


def test_subset_channels_keeps_a_share_of_them_each_alike():
    policy = replace(PLAIN, subset_channels=SubsetChannels(probability=1.0, keep=(0.3, 0.3)))
    kept = channels_kept(policy, many(policy), 10)
    assert set(kept.sum(dim=1).tolist()) == {3}
    assert torch.allclose(kept.float().mean(dim=0), torch.full((10,), 0.3), atol=0.035)
    wide = replace(PLAIN, subset_channels=SubsetChannels(probability=0.5, keep=(0.0, 1.0)))
    counts = channels_kept(wide, many(wide), 4).sum(dim=1).tolist()
    share = {count: found / 4000 for count, found in Counter(counts).items()}
    assert share == pytest.approx({1: 0.125, 2: 0.125, 3: 0.125, 4: 0.625}, abs=0.03)


def test_lost_channels_do_not_depend_on_the_other_samples():
    policy = replace(PLAIN, drop_channels=DropChannels(share=(0.5, 0.5)), subset_channels=SubsetChannels(probability=0.5))
    whole, few = many(policy, 40), many(policy, 7)
    assert torch.equal(channels_kept(policy, whole, 5)[:7], channels_kept(policy, few, 5))
    assert torch.equal(channels_kept(policy, whole, 5)[3:4], channels_kept(policy, whole.rows(3, 4), 5))
    assert (channels_kept(policy, whole, 5).sum(dim=1) >= 1).all()


def test_views_say_which_channels_they_kept_and_show_the_mean_elsewhere(make_batch, draw_for, normalisation):
    batch = make_batch(6, 5)
    policy = replace(PLAIN, drop_channels=DropChannels(share=(0.4, 0.4)), subset_channels=SubsetChannels(probability=0.5))
    views = render(batch, draw_for(batch, policy, SMALL), to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    for group in views.groups:
        assert torch.equal(group.kept, (group.pixels != 0).flatten(2).any(dim=2))
        assert not group.kept.all()


# --- neutral values, rates, independence -------------------------------------------------------------------------------


def test_neutral_values_change_no_bit():
    values = torch.randn(3, 2, 16, 16) * 1000
    before, keys = values.clone(), torch.arange(3)
    none, one = torch.zeros(3), torch.ones(3)
    bias_field_(values, none, keys, nodes=4)
    shadow_(values, none, none, keys, skylight=torch.tensor([0.2, 1.0]), nodes=4, edge=0.1)
    for scale in ("db", "power", "amplitude"):
        speckle_(values, one / none, keys, scale=scale)
    rician_(values, torch.zeros(3, 2), keys)
    noise_(values, none, keys)
    solarise_(values, one / none)
    assert torch.equal(values, before)
    unit = before.abs() / 5000
    same = unit.clone()
    noise_(same, none, keys, none)
    assert torch.equal(same, unit)
    gamma_(same, one)
    assert torch.allclose(same, unit, rtol=0, atol=1e-6)


OFF = {
    "bias_field": BiasField(probability=0.0), "shadow": Shadow(probability=0.0), "speckle": Speckle(probability=0.0),
    "rician": Rician(probability=0.0), "gain": Gain(probability=0.0), "haze": Haze(probability=0.0), "window": Window(probability=0.0),
    "jitter": Jitter(probability=0.0), "gamma": Gamma(probability=0.0), "noise": Noise(probability=0.0, shot=(0.0, 0.1)),
    "solarise": Solarise(probability=0.0), "drop_channels": DropChannels(probability=0.0), "blur": Blur(probability=0.0),
    "subset_channels": SubsetChannels(probability=0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_a_row_on_which_an_operation_is_off_is_as_without_it(make_batch, draw_for, normalisation, name):
    batch = make_batch(2, 3, dtype=torch.uint16)
    found = []
    for operation in (None, OFF[name]):
        policy = replace(PLAIN, **{name: operation}, wavelengths_nm={"band 0": 490.0})
        params = draw_for(batch, policy, SMALL)
        found.append(render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8))
    for without, off in zip(*(views.groups for views in found)):
        assert torch.equal(without.pixels, off.pixels)


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_operation_acts_at_its_rate_within_its_range(every_operation, ndim):
    policy = every_operation(ndim)
    group = many(policy)
    assert len(group.operations) == 17
    for name, operation in operations(policy).items():
        drawn = group.operations[name]
        assert float(drawn.on.float().mean()) == pytest.approx(chances(operation)[0], abs=0.025), name
        for item in parameters(operation):
            on, off = drawn.values[item.name][drawn.on], drawn.values[item.name][~drawn.on]
            assert float(on.min()) >= item.low - 1e-6, (name, item.name)
            assert float(on.max()) <= item.high + 1e-6, (name, item.name)
            assert (off == item.neutral).all(), (name, item.name)
            if item.high > item.low:
                low, high = (math.log(item.low), math.log(item.high)) if item.log else (item.low, item.high)
                place = ((on.double().log() if item.log else on.double()) - low) / (high - low)
                assert float(place.mean()) == pytest.approx(0.5, abs=0.04), (name, item.name)


def test_operations_do_not_share_random_numbers():
    keys = [int(own_key(KEY, name)) for name in ("bias_field", "shadow", "speckle", "rician", "value_noise", "noise")]
    assert len(set(keys)) == 6
    fields = torch.stack([smooth_field(torch.tensor([key]), nodes=16, size=64, ndim=2).flatten() for key in keys])
    assert float(torch.corrcoef(fields).fill_diagonal_(0).abs().max()) < 0.3


@pytest.mark.parametrize("ndim", [2, 3])
def test_rows_do_not_see_each_other(make_batch, draw_for, every_operation, ndim):
    extent = (12,) * ndim
    batch, policy = make_batch(5, 2, extent, torch.float32), every_operation(ndim)
    group = draw_for(batch, policy, replace(SMALL, num_global=1)).groups[0]
    assert all(int(group.operations[name].on.sum()) > 0 for name in ("bias_field", "rician", "noise"))
    whole = torch.rand(5, 2, *extent)
    single = whole.clone()
    physical_(whole, group.operations, group.key, policy, batch.info, [443.0, NAN])
    unit_(whole.clamp_(0, 1), group.operations, group.key, policy)
    for row in range(5):
        own = group.rows(row, row + 1)
        info = replace(batch.info, low=batch.info.low[row : row + 1], high=batch.info.high[row : row + 1])
        physical_(single[row : row + 1], own.operations, own.key, policy, info, [443.0, NAN])
        unit_(single[row : row + 1].clamp_(0, 1), own.operations, own.key, policy)
    assert torch.equal(whole, single)


@pytest.mark.parametrize("extent", [(40, 50), (14, 15, 16)])
def test_views_of_every_operation_are_bit_equal_alone_and_with_any_seed(make_batch, draw_for, normalisation, every_operation, extent):
    whole = make_batch(4, 2, extent, torch.float32)
    alone = one_sample(whole, 2)
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(whole), "patch_size": 8}
    torch.manual_seed(0)
    large = render(whole, draw_for(whole, every_operation(len(extent)), SMALL), **shared)
    torch.manual_seed(1)
    small = render(alone, draw_for(alone, every_operation(len(extent)), SMALL), **shared)
    for a, b in zip(large.groups, small.groups):
        assert torch.equal(a.pixels.unflatten(0, (a.num_views, 4))[:, 2], b.pixels)
        assert torch.isfinite(a.pixels).all()


@pytest.mark.parametrize("extent", [(70, 80), (20, 22, 24)])
def test_what_stands_in_unknown_pixels_changes_nothing(make_batch, draw_for, normalisation, every_operation, extent):
    valid = (torch.rand(2, 1, *extent, generator=torch.Generator().manual_seed(5)) < 0.3).to(torch.uint8)
    batch = make_batch(2, 2, extent, torch.float32, valid=valid)
    filled = replace(batch, pixels=torch.where(valid[:, :, None] > 0, 77.0, batch.pixels))
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
    views = [render(b, draw_for(b, every_operation(len(extent)), SMALL), **shared) for b in (batch, filled)]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(*(v.groups for v in views)))


# --- the plain twin ----------------------------------------------------------------------------------------------------

OPTICAL = ViewPolicy(
    axes=("NS", "EW"), flip={"NS": 0.5, "EW": 0.5}, quarter_turns=True, shadow=Shadow(probability=0.8),
    gain=Gain(probability=0.8, offset=(-0.01, 0.01)), haze=Haze(probability=0.8), jitter=Jitter(per_channel=True),
    noise=Noise(probability=0.8, std=(0.0, 0.02), shot=(0.0, 0.05)), drop_channels=DropChannels(), subset_channels=SubsetChannels(),
    wavelengths_nm={"band 0": 443.0, "band 1": 665.0, "band 2": 2190.0},
)  # fmt: skip
RADAR = ViewPolicy(
    axes=("NS", "EW"), speckle=Speckle(probability=0.9, looks=(1.0, 32.0)), gamma=None, gain=Gain(gain=(1.0, 1.0), offset=(-1.0, 1.0))
)
MR = ViewPolicy(
    axes=("IS", "AP", "LR"), bias_field=BiasField(probability=0.8), rician=Rician(probability=0.8),
    jitter=Jitter(brightness=(-0.1, 0.1)), gamma=Gamma(exponent=(0.8, 1.5)), noise=None,
)  # fmt: skip
CT = ViewPolicy(
    axes=("IS", "AP", "LR"), gain=Gain(gain=(0.97, 1.03), offset=(-7.0, 7.0)), window=Window(centre=(-0.1, 0.1), width=(0.8, 1.2)),
    jitter=None, gamma=None, noise=None, value_noise=ValueNoise(probability=0.8),
)  # fmt: skip

# Policy, extent, dtype, scale, offset, own range, declared range, bound on the unit range times its width, in the channel's unit.
KINDS = {
    "reflectance": (OPTICAL, (70, 80), torch.uint16, 1e-4, -0.1, (0.0, 1.0), (0.0, 0.4), 1e-4),
    "decibels": (RADAR, (70, 80), torch.int16, 0.01, -20.0, (-30.0, 5.0), (-30.0, 5.0), 0.05),
    "signal": (MR, (24, 26, 28), torch.int16, 1.0, 0.0, (0.0, 2500.0), None, 1e-4 * 2500),
    "hounsfield": (CT, (24, 26, 28), torch.int16, 1.0, -1024.0, (-200.0, 300.0), (-1024.0, 3071.0), 1.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renderer", ["fastest", "matmul"])
@pytest.mark.parametrize("masked", [False, True])
def test_views_of_each_kind_of_instrument_are_the_plain_twin(make_batch, draw_for, kind, renderer, masked):
    policy, extent, dtype, scale, offset, own, declared, bound = KINDS[kind]
    valid = (torch.rand(3, 1, *extent, generator=torch.Generator().manual_seed(2)) < 0.2).to(torch.uint8) if masked else None
    batch = make_batch(3, 4, extent, dtype, valid=valid)
    ones = torch.ones(3, 4)
    info = replace(batch.info, scale=scale * ones, offset=offset * ones, low=own[0] * ones, high=own[1] * ones)
    batch = replace(batch, info=info)
    low, high = declared or (0.0, 1.0)
    normalisation = Normalisation(
        mode="domain" if declared else "source", channels=batch.channels, low=(low,) * 4, high=(high,) * 4, mean=(0.0,) * 4, std=(1.0,) * 4
    )
    params = draw_for(batch, policy, replace(SMALL, renderer=renderer))
    views = render(batch, params, to_float=linear_to_unit, normalisation=normalisation, patch_size=8)
    low, high = declared or own
    for index, group in enumerate(views.groups):
        for row in range(group.pixels.shape[0]):
            wanted, _ = reference_view(batch, params, index, row, to_float=linear_to_unit, normalisation=normalisation)
            error = np.abs(group.pixels[row].numpy() - wanted) * (high - low)
            # A weight of one half may count as known on one side and as unknown on the other.
            assert np.quantile(error, 0.999 if masked else 1.0) <= bound
    assert all(group.pixels.std() > 0.02 for group in views.groups)


@pytest.mark.parametrize("extent", [(70, 80), (24, 26, 28)])
@pytest.mark.parametrize("renderer", ["fastest", "matmul"])
def test_views_of_every_operation_are_the_plain_twin(make_batch, draw_for, normalisation, every_operation, extent, renderer):
    batch = make_batch(3, 3, extent, torch.float32)
    batch = replace(batch, info=replace(batch.info, scale=batch.info.scale * 0.9, offset=batch.info.offset + 0.05))
    params = draw_for(batch, every_operation(len(extent)), replace(SMALL, renderer=renderer))
    views = render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    for index, group in enumerate(views.groups):
        for row in range(group.pixels.shape[0]):
            wanted, _ = reference_view(batch, params, index, row, to_float=linear_to_unit, normalisation=normalisation(batch))
            error = np.abs(group.pixels[row].numpy() - wanted) * 0.25
            # One look of speckle is fitted to 0.004 dB, a thousandth of the power; solarisation may fall on either side of its threshold.
            assert np.quantile(error, 0.999) <= 1e-3


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"shadow": Shadow(depth=(0.2, 1.5))}, r"shadow\.depth: is \(0\.2, 1\.5\); allowed: .* none above 1"),
        ({"shadow": Shadow(share=(-0.1, 0.5))}, r"shadow\.share: .* none below 0"),
        ({"shadow": Shadow(edge=0.0)}, r"shadow\.edge: is 0\.0"),
        ({"shadow": Shadow(nodes=1)}, r"shadow\.nodes: is 1; allowed: 2 to 32"),
        ({"bias_field": BiasField(nodes=64)}, r"bias_field\.nodes: is 64; allowed: 2 to 32"),
        ({"speckle": Speckle(looks=(0.5, 4.0))}, r"speckle\.looks: .* none below 1"),
        ({"drop_channels": DropChannels(share=(0.5, 2.0))}, r"drop_channels\.share: .* none above 1"),
        ({"subset_channels": SubsetChannels(keep=(0.5, 2.0))}, r"subset_channels\.keep: .* none above 1"),
        ({"haze": Haze(amount=(0.0, 8.0))}, r"haze\.amount: .* none above 1"),
    ],
)
def test_values_without_a_meaning_are_refused(wrong, text):
    with pytest.raises(Problems, match=text):
        ViewPolicy(axes=("NS", "EW"), **wrong)


@pytest.mark.parametrize("extent", [(240, 250), (60, 62, 64)])
def test_one_channel_has_the_same_bits_in_any_batch_with_several_threads(make_batch, draw_for, normalisation, extent):
    """A lone long sum is split over threads; a power depends on a number's place in its vector."""
    batch = make_batch(11, 1, extent, torch.uint16 if len(extent) == 2 else torch.int16)
    axes = ("IS", "AP", "LR")[-len(extent) :]
    policy = ViewPolicy(axes=axes, haze=Haze(probability=1.0), jitter=Jitter(probability=1.0), wavelengths_nm={"band 0": 443.0})
    plan = ViewsPlan(global_size=224, local_size=96, num_local=2) if len(extent) == 2 else ViewsPlan(global_size=48, local_size=24)
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = render(batch, draw_for(batch, policy, plan), **shared)
        for row in (0, 6, 10):
            alone = one_sample(batch, row)
            own = render(alone, draw_for(alone, policy, plan), **shared)
            for a, b in zip(whole.groups, own.groups):
                assert torch.equal(a.pixels.unflatten(0, (a.num_views, 11))[:, row], b.pixels)
    finally:
        torch.set_num_threads(threads)
