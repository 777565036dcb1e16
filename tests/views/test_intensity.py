"""Each operation by hand, in the unit range."""

from __future__ import annotations

import pytest
import torch

from dinodomain.views import intensity


def image() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 8, 8) * 0.6 + 0.2


def test_contrast_turns_about_each_channels_mean():
    unit = image()
    before = unit.clone()
    intensity.brightness_contrast_(unit, None, torch.zeros(2, 3), torch.tensor([[0.5] * 3, [1.0] * 3]))
    assert torch.allclose(unit.mean(dim=(2, 3)), before.mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(unit[0].std(dim=(1, 2)), before[0].std(dim=(1, 2)) / 2, atol=1e-6)
    assert torch.equal(unit[1], before[1])  # factor 1 and shift 0 are no change, to the bit


def test_contrast_leaves_unknown_pixels_out_of_the_mean():
    unit = image()
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = False
    known = unit[..., :4].clone()
    unit[..., 4:] = 123.0
    assert torch.allclose(intensity.crop_mean(unit, mask), known.mean(dim=(2, 3)))


def test_brightness_shifts_and_clips():
    unit = image()
    before = unit.clone()
    intensity.brightness_contrast_(unit, None, torch.full((2, 3), 0.5), torch.ones(2, 3))
    assert torch.allclose(unit, (before + 0.5).clamp(0, 1))


def test_gamma_is_a_power_and_keeps_zero_and_one():
    unit = image()
    unit[0, 0, 0, 0], unit[0, 0, 0, 1] = 0.0, 1.0
    before = unit.clone()
    intensity.gamma_(unit, torch.tensor([1.25, 0.8]))
    assert torch.allclose(unit, before ** torch.tensor([1.25, 0.8]).reshape(2, 1, 1, 1), atol=1e-6)
    assert unit[0, 0, 0, :2].tolist() == [0.0, 1.0]


def test_noise_has_the_asked_strength_and_spares_other_rows():
    unit = torch.zeros(2, 1, 128, 128)
    intensity.noise_(unit, torch.tensor([0.0, 0.05]), torch.tensor([1, 2]))
    assert (unit[0] == 0).all()
    assert float(unit[1].std()) == pytest.approx(0.05, rel=0.03)
    assert float(unit[1].mean()) == pytest.approx(0, abs=0.002)


def test_solarisation_turns_bright_pixels_of_chosen_rows():
    unit = torch.tensor([0.2, 0.5, 0.9]).reshape(1, 1, 3).repeat(2, 1, 1)
    intensity.solarise_(unit, torch.tensor([True, False]))
    assert unit[0, 0].tolist() == pytest.approx([0.2, 0.5, 0.1])
    assert unit[1, 0].tolist() == pytest.approx([0.2, 0.5, 0.9])


def test_dropped_channels_take_their_mean():
    unit = image()
    before = unit.clone()
    keep = torch.tensor([[True, False, True], [True, True, True]])
    intensity.drop_channels_(unit, keep, torch.tensor([0.1, 0.2, 0.3]))
    assert (unit[0, 1] == 0.2).all()
    assert torch.equal(unit[keep], before[keep])
