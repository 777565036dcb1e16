"""What the policies of CT, MR and radiographs do to real scans: tissue stays tissue, left stays left, a magnitude stays positive."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from dinodomain import cli
from dinodomain.policy import without_augmentation
from dinodomain.views import effective_policy
from dinodomain_medical import ct, mri, xray

DOMAINS = (ct, mri, xray)
FOLDERS = {
    "lung1_half": "medical_ingest/dev/ct_nifti/lung1_half.nii.gz",
    "ts_example_ct": "medical_ingest/dev/ct_nifti/ts_example_ct.nii.gz",
    "ts_pulmonary_crop": "medical_ingest/dev/ct_nifti/ts_pulmonary_crop.nii.gz",
    "ct_dicom_j2k": "medical_ingest/dev/ct_dicom_j2k",
}


@pytest.fixture(scope="module")
def chest(real_data, open_one):
    return open_one(ct, real_data / FOLDERS["ts_pulmonary_crop"])


@pytest.fixture(scope="module")
def brain(real_data, open_one):
    return open_one(mri, real_data / "ixi_t1_2mm" / "dev" / "IXI013-HH-1212" / "IXI013-HH-1212_T1w.nii.gz")


@pytest.fixture(scope="module")
def radiograph(real_data, open_one):
    (path,) = sorted((real_data / "cxr_nih_hannover" / "dev" / "images" / "NIH_CC").glob("*.jpg"))[:1]
    return open_one(xray, path)


def _pointwise(policy):
    """What changes each pixel by its own value alone."""
    return replace(policy, blur=None, thickness=None, bias_field=None, rician=None, value_noise=None, noise=None)


def _ordered(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether no pixel that was brighter became darker; what was clipped has no order."""
    inside = (before > 0) & (before < 1)
    return bool((np.diff(after[inside][np.argsort(before[inside])]) >= -1e-5).all())


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_no_axis_is_flipped_and_the_domain_pickles_with_its_policy(domain):
    policy = domain.view_policy()
    assert not policy.flip
    assert not policy.quarter_turns
    copy = pickle.loads(pickle.dumps(domain))
    assert copy.view_policy() == policy
    assert dict(copy.channels) == dict(domain.channels)


def test_fat_is_never_shown_brighter_than_muscle_in_ct():
    """All corners of gain and window: -100 HU (fat) in the brightest view against 50 HU (muscle) in the darkest."""
    policy, channel = ct.view_policy(), ct.channels["ct"]
    middle, span = (channel.low + channel.high) / 2, channel.high - channel.low
    shown = {"fat": [], "muscle": []}
    corners = product(policy.gain.gain, policy.gain.offset, policy.window.centre, policy.window.width)
    for gain, offset, centre, width in corners:
        low, wide = middle + centre * span - width * span / 2, width * span
        for tissue, value in (("fat", -100.0), ("muscle", 50.0)):
            shown[tissue].append((gain * value + offset - low) / wide)
    assert max(shown["fat"]) < min(shown["muscle"])


def test_ct_windows_have_the_statistics_of_the_real_scans(real_data, open_one, physical):
    moments = {name: [] for name in ct.channels["ct"].windows}
    for folder in FOLDERS.values():
        values = physical(open_one(ct, real_data / folder))
        for name, window in ct.channels["ct"].windows.items():
            unit = np.clip((values - window.centre) / window.width + 0.5, 0, 1)
            moments[name].append((unit.mean(), (unit**2).mean()))
    for name, window in ct.channels["ct"].windows.items():
        mean, square = np.mean(moments[name], axis=0)
        assert window.mean == pytest.approx(mean, abs=1e-3), name
        assert window.std == pytest.approx(np.sqrt(square - mean**2), abs=1e-3), name


@pytest.mark.parametrize("windows", [(), ("lung", "soft_tissue", "bone", "brain")], ids=["full", "windows"])
def test_the_order_of_hounsfield_units_survives_every_draw(chest, draw_many, strong, windows):
    policy = ct.view_policy()
    plain = draw_many(chest, ct, without_augmentation(policy), windows=windows)
    moved = draw_many(chest, ct, _pointwise(strong(policy)), windows=windows)
    full = draw_many(chest, ct, without_augmentation(policy))
    assert moved.channels == (tuple(f"ct/{name}" for name in windows) or ("ct",))
    for draw, channel in product(range(64), range(len(moved.channels))):
        assert _ordered(full.unit[draw, 0], moved.unit[draw, channel])
    assert np.abs(moved.unit - plain.unit).max() > 0.005, "nothing moved"


def test_ct_stays_within_its_stated_number_of_hounsfield_units(chest, draw_many, strong):
    """Water and soft tissue, -100 to 100 HU: 41 HU of the centre, 22 of the width, 10 of the calibration."""
    policy = ct.view_policy()
    plain = draw_many(chest, ct, without_augmentation(policy)).physical
    moved = draw_many(chest, ct, _pointwise(strong(policy))).physical
    shift = np.abs(moved - plain)[(plain > -100) & (plain < 100)]
    assert 30 < shift.max() < 41 + 24 + 10


def test_noise_and_softer_kernels_leave_ct_finite_and_in_range(chest, draw_many, strong):
    policy = ct.view_policy()
    plain, moved = (draw_many(chest, ct, item) for item in (without_augmentation(policy), strong(policy)))
    assert np.isfinite(moved.network).all()
    assert moved.unit.min() > -0.06
    assert moved.unit.max() < 1.06
    assert np.abs(moved.unit.mean(axis=(1, 2, 3, 4)) - plain.unit.mean(axis=(1, 2, 3, 4))).max() < 0.02
    assert not moved.flips.any()
    assert not moved.turned.any()


def test_thicker_slices_blur_along_the_body_axis_only(chest, draw_many):
    off, thickness = without_augmentation(ct.view_policy()), ct.view_policy().thickness
    thick = replace(off, thickness=replace(thickness, probability=1.0, mm=(thickness.mm[1], thickness.mm[1])))
    before, after = (draw_many(chest, ct, policy, scale=(0.05, 0.1)).physical[:, 0] for policy in (off, thick))
    steps = [np.abs(np.diff(after, axis=1 + axis)).mean() / np.abs(np.diff(before, axis=1 + axis)).mean() for axis in range(3)]
    assert steps[0] < 0.9 * min(steps[1:])


def test_no_mr_voxel_falls_below_zero_and_air_gets_a_noise_floor(brain, draw_many, strong):
    policy = mri.view_policy()
    plain = draw_many(brain, mri, without_augmentation(policy), mode="source")
    moved = draw_many(brain, mri, strong(policy), mode="source")
    assert np.isfinite(moved.network).all()
    assert moved.unit.min() >= -1e-6
    assert not moved.flips.any()
    assert not moved.turned.any()
    noisy = draw_many(brain, mri, replace(without_augmentation(policy), rician=strong(policy).rician), mode="source")
    air = plain.unit < 0.005
    assert air.mean() > 0.1
    assert noisy.unit.min() >= -1e-6
    assert 0.01 < noisy.unit[air].mean() < 0.05  # Rayleigh: 1.25 of a deviation of 0 to 0.04, the mean over draws


def test_the_bias_field_is_a_smooth_gain(brain, draw_many, strong):
    policy = mri.view_policy()
    plain = draw_many(brain, mri, without_augmentation(policy), mode="source").unit
    moved = draw_many(brain, mri, replace(without_augmentation(policy), bias_field=strong(policy).bias_field), mode="source").unit
    tissue = (plain > 0.2) & (plain < 0.6)
    field = np.log(moved[tissue] / plain[tissue])
    assert 0.03 < field.std() < 0.2
    assert np.abs(field).max() < 1.0
    assert moved[plain == 0].max() < 1e-6, "a gain of nothing is nothing"


def test_grey_values_of_a_radiograph_keep_their_order_and_stay_finite(radiograph, draw_many, strong):
    policy = xray.view_policy()
    plain = draw_many(radiograph, xray, without_augmentation(policy), mode="source")
    moved = draw_many(radiograph, xray, _pointwise(strong(policy)), mode="source")
    for draw in range(64):
        assert _ordered(plain.unit[draw], moved.unit[draw])
    full = draw_many(radiograph, xray, strong(policy), mode="source")
    assert np.isfinite(full.network).all()
    likeness = [np.corrcoef(plain.unit[draw].ravel(), full.unit[draw].ravel())[0, 1] for draw in range(64)]
    assert min(likeness) > 0.8
    assert not full.flips.any()


def test_the_example_config_shows_ct_through_its_windows():
    plan = cli.make_plan(cli.find_verb("pretrain"), cli.split_words(["domain=ct", "store=s", "out=o", "views=ct_windows"])).views
    assert set(plan.windows) < set(ct.channels["ct"].windows)
    policy = effective_policy(ct.view_policy(), plan)
    assert policy.window.centre == (-0.05, 0.05)
    assert policy.gain == ct.view_policy().gain
