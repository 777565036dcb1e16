"""What the policies of sensors do to real scenes: vegetation stays green, water stays dark, backscatter keeps its power."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dinodomain import cli
from dinodomain.domain import BiasField, Channel, Gain, Gamma, Haze, Jitter, Rician, Shadow, Speckle, Thickness, ViewPolicy, Window
from dinodomain.policy import changed, without_augmentation
from dinodomain.testing import check_policy
from dinodomain.types import TileInfo
from dinodomain.views import effective_policy
from dinodomain.views.radiometry import haze
from dinodomain_remote_sensing import aerial, hyperspectral, landsat, sentinel1, sentinel2
from dinodomain_remote_sensing.sensors.policies import multispectral

NADIR = (sentinel2, landsat, hyperspectral, aerial)


@pytest.fixture(scope="module")
def scenes(real_data):
    root = real_data / "sat_multispectral" / "dev"
    if not root.is_dir():
        pytest.skip("no sat_multispectral")
    return root


@pytest.fixture
def flooded(scenes, lab):
    """Fields and water of a Level-1C scene in Spain."""
    return lab.only(sentinel2, scenes / "sen1floods11_spain", include=("*S2Hand.tif",))


@pytest.fixture
def backscatter(scenes, lab):
    return lab.only(sentinel1, scenes / "bigearthnet_s1" / "S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35", sar="db")


def _without_losses(policy: ViewPolicy) -> ViewPolicy:
    return replace(policy, drop_channels=None, subset_channels=None)


def _bands(drawn, *names: str) -> list[np.ndarray]:
    return [drawn.physical[:, drawn.channels.index(name)] for name in names]


@pytest.mark.parametrize("domain", [*NADIR, sentinel1], ids=lambda domain: domain.name)
def test_the_domain_pickles_with_its_policy(domain):
    assert pickle.loads(pickle.dumps(domain)).view_policy() == domain.view_policy()


@pytest.mark.parametrize("domain", NADIR, ids=lambda domain: domain.name)
def test_a_sensor_that_looks_down_has_the_eight_symmetries_unless_told(domain):
    policy = domain.view_policy()
    assert dict(policy.flip) == {"NS": 0.5, "EW": 0.5}
    assert policy.quarter_turns
    oblique = changed(policy, {"flip": [], "quarter_turns": False})
    assert not oblique.flip
    assert not oblique.quarter_turns


def test_haze_and_shadow_see_reflectance_of_the_ground_only():
    assert set(sentinel2.view_policy().wavelengths_nm) == set(sentinel2.channels) - {"B10"}
    seen = set(landsat.view_policy().wavelengths_nm)
    assert {"OLI_B2", "TM_B1", "ETM_B8"} <= seen
    assert not any(name.endswith("_DN") for name in seen)
    assert not seen & {"TIRS_B10", "TIRS_B11", "TM_B6", "ETM_B6_VCID_1", "OLI_B9"}
    spectrum = hyperspectral.view_policy().wavelengths_nm
    assert spectrum["nm0651"] == 651.0
    assert "nm0651_DN" not in spectrum
    assert "nm1400" not in spectrum
    assert not aerial.view_policy().wavelengths_nm


def test_haze_leaves_the_thermal_bands_of_landsat_alone():
    names = ("OLI_B2", "OLI_B5", "TIRS_B10", "OLI_B2_DN")
    policy, ones = landsat.view_policy(), torch.ones(1, len(names))
    info = TileInfo(scale=ones, offset=0 * ones, nodata=ones, low=ones, high=ones, spacing=ones, valid_box=ones)
    lengths = [policy.wavelengths_nm.get(name, np.nan) for name in names]
    amount, exponent = torch.tensor([policy.haze.amount[1]]), torch.tensor([policy.haze.exponent[0]])  # the thickest
    blue, near_infrared, thermal, number = haze(info, amount=amount, exponent=exponent, wavelengths=lengths).offset[0].tolist()
    assert blue > near_infrared > 0.03
    assert thermal == number == 0


def test_vegetation_stays_vegetation_and_water_darker_than_land(flooded, draw_many, strong):
    policy = sentinel2.view_policy()
    plain = draw_many(flooded, sentinel2, without_augmentation(replace(policy, flip={})))
    moved = draw_many(
        flooded, sentinel2, _without_losses(replace(strong(policy), flip={}, quarter_turns=False, blur=None, coarser_pixels=None))
    )
    assert np.isfinite(moved.network).all()
    green, red, infrared = _bands(plain, "B03", "B04", "B08")
    red_after, infrared_after = _bands(moved, "B04", "B08")
    plants = (infrared - red) / (infrared + red) > 0.3
    assert plants.mean() > 0.1
    assert (infrared_after > red_after)[plants].mean() > 0.99
    water = (green > 1.3 * infrared) & (infrared < 0.08)
    both = (water.mean(axis=(1, 2)) > 0.02) & (plants.mean(axis=(1, 2)) > 0.02)
    assert both.sum() > 32
    for draw in np.flatnonzero(both):
        assert np.median(infrared_after[draw][water[draw]]) < np.median(infrared_after[draw][plants[draw]])


def test_ratios_of_bands_survive_calibration(flooded, draw_many, strong):
    """Gain and offset alone: a ratio moves by two gains of 5 % and two offsets of 0.005."""
    policy = sentinel2.view_policy()
    off = without_augmentation(policy)
    plain, moved = (draw_many(flooded, sentinel2, item) for item in (off, replace(off, gain=strong(policy).gain)))
    before, after = (np.divide(*_bands(drawn, "B08", "B04")) for drawn in (plain, moved))
    bright = (_bands(plain, "B04")[0] > 0.1) & (_bands(plain, "B04")[0] < 0.35) & (_bands(plain, "B08")[0] > 0.1)
    change = np.abs(np.log(after / before))[bright]
    assert 0.05 < change.max() < 2 * 0.052 + 2 * 0.053


def test_some_views_of_a_scene_lack_bands_but_never_all(flooded, draw_many, strong):
    policy = sentinel2.view_policy()
    off = without_augmentation(policy)
    losing = replace(off, drop_channels=strong(policy).drop_channels, subset_channels=strong(policy).subset_channels)
    lost = (draw_many(flooded, sentinel2, losing).network == 0).all(axis=(2, 3)).sum(axis=1)
    assert lost.min() < 3
    assert 4 < lost.max() < 13
    first = draw_many(flooded, sentinel2, replace(off, drop_channels=policy.drop_channels, subset_channels=policy.subset_channels))
    assert not (first.network == 0).all(axis=(2, 3)).any(), "the first view keeps its bands"


def test_all_symmetries_occur_from_above_and_none_from_the_side(flooded, backscatter, draw_many):
    above = draw_many(flooded, sentinel2, sentinel2.view_policy())
    assert len(set(zip(*above.flips.T.tolist(), above.turned.tolist()))) == 8
    aside = draw_many(backscatter, sentinel1, sentinel1.view_policy())
    assert not aside.flips.any()
    assert not aside.turned.any()


def test_speckle_keeps_the_mean_power_and_roughens_it(backscatter, draw_many, strong):
    policy = sentinel1.view_policy()
    off = without_augmentation(policy)
    plain, moved = (draw_many(backscatter, sentinel1, item).physical for item in (off, replace(off, speckle=strong(policy).speckle)))
    before, after = (10 ** (values / 10) for values in (plain, moved))
    ratio = after.mean(axis=(2, 3)) / before.mean(axis=(2, 3))
    assert np.isfinite(moved).all()
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert np.abs(ratio - 1).max() < 0.1
    spread = (after / before).std(axis=(2, 3))
    assert spread.min() > 0.17  # 32 looks
    assert spread.max() < 0.53  # 4 looks


def test_a_gain_of_backscatter_is_at_most_one_decibel(backscatter, draw_many, strong):
    policy = sentinel1.view_policy()
    off = without_augmentation(policy)
    plain, moved = (draw_many(backscatter, sentinel1, item) for item in (off, replace(off, gain=strong(policy).gain)))
    inside = (plain.unit > 0.1) & (plain.unit < 0.9)
    shift = np.abs(moved.physical - plain.physical)[inside]
    assert 0.9 < shift.max() < 1.001


def test_strong_radar_views_are_finite(backscatter, draw_many, strong):
    assert np.isfinite(draw_many(backscatter, sentinel1, strong(sentinel1.view_policy())).network).all()


_REFLECTANCE = {"B02": Channel(unit="reflectance", low=0, high=1, wavelength_nm=490.0), "B10": Channel(unit="reflectance", low=0, high=1)}
_HU = {"ct": Channel(unit="HU", low=-1024, high=3071)}
_DECIBELS = {"VV": Channel(unit="dB", low=-30, high=5)}
_MIXED = {**_REFLECTANCE, "T": Channel(unit="K", low=240, high=330, wavelength_nm=10900.0)}
_FLAT, _DEEP = ("NS", "EW"), ("IS", "AP", "LR")
_OFF = {"jitter": None, "gamma": None, "noise": None}


@pytest.mark.parametrize(
    ("channels", "policy", "words"),
    [
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, haze=Haze()), "wavelengths"),
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, shadow=Shadow()), "wavelengths"),
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, haze=Haze(), wavelengths_nm={"B03": 560.0}), "B03"),
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, haze=Haze(), wavelengths_nm={"B02": 560.0}), "B02"),
        (_MIXED, ViewPolicy(axes=_FLAT, haze=Haze(), wavelengths_nm={"T": 10900.0}), "T"),
        (_MIXED, ViewPolicy(axes=_FLAT, gain=Gain(offset=(-0.1, 0.1))), "offset"),
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, speckle=Speckle()), "dB"),
        (_DECIBELS, ViewPolicy(axes=_FLAT, **_OFF, speckle=Speckle(scale="power")), "power"),
        (_DECIBELS, ViewPolicy(axes=_FLAT, jitter=None, gamma=Gamma()), "gamma"),
        (_DECIBELS, ViewPolicy(axes=_FLAT, gamma=None, jitter=Jitter()), "jitter"),
        (_HU, ViewPolicy(axes=_DEEP, jitter=None, gamma=Gamma()), "gamma"),
        (_HU, ViewPolicy(axes=_DEEP, gamma=None, jitter=Jitter()), "jitter"),
        (_HU, ViewPolicy(axes=_DEEP, **_OFF, rician=Rician()), "rician"),
        (_HU, ViewPolicy(axes=_DEEP, **_OFF, bias_field=BiasField()), "bias_field"),
        (_MIXED, ViewPolicy(axes=_FLAT, window=Window()), "window"),
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, thickness=Thickness(axis="NS")), "thickness"),
        (_HU, ViewPolicy(axes=_DEEP, **_OFF, flip={"LR": 0.5}), "LR"),
        (_REFLECTANCE, ViewPolicy(axes=_FLAT, quarter_turns=True), "quarter"),
    ],
)
def test_the_conformance_suite_refuses_operations_on_the_wrong_unit(channels, policy, words):
    with pytest.raises(AssertionError, match=words):
        check_policy(policy, channels)


def test_the_conformance_suite_takes_what_fits():
    check_policy(multispectral(sentinel2.channels), sentinel2.channels)
    check_policy(ViewPolicy(axes=_DEEP, **_OFF, window=Window(), gain=Gain(offset=(-5.0, 5.0)), thickness=Thickness()), _HU)


def test_the_example_config_of_oblique_views_has_no_symmetry():
    plan = cli.make_plan(cli.find_verb("pretrain"), cli.split_words(["domain=aerial", "store=s", "out=o", "views=oblique"])).views
    policy = effective_policy(aerial.view_policy(), plan)
    assert not policy.flip
    assert not policy.quarter_turns
    assert policy.jitter == aerial.view_policy().jitter
