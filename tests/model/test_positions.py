"""Position embeddings on other grids, against the framework's own resizes."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn import functional

from dinodomain.model.positions import resample, sincos


@pytest.mark.parametrize("new", [(6, 6), (20, 20), (7, 16), (14, 6)])
def test_images_resample_like_an_antialiased_bicubic_resize(new):
    positions = torch.randn(1, 14 * 14, 8)
    ours = resample(positions, (14, 14), new)
    theirs = resample_abs_pos_embed(positions, list(new), [14, 14], num_prefix_tokens=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_volumes_resample_like_a_trilinear_resize_where_nothing_can_alias():
    positions = torch.randn(1, 4 * 5 * 6, 8)
    ours = resample(positions, (4, 5, 6), (8, 9, 7))
    field = positions.reshape(1, 4, 5, 6, 8).permute(0, 4, 1, 2, 3)
    theirs = functional.interpolate(field, size=(8, 9, 7), mode="trilinear").permute(0, 2, 3, 4, 1).reshape(1, -1, 8)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_a_halved_volume_averages_instead_of_skipping():
    spike = torch.zeros(1, 8**3, 1)
    spike[0, 3 * 64 + 3 * 8 + 3] = 1.0
    assert resample(spike, (8, 8, 8), (4, 4, 4)).sum() == pytest.approx(1 / 8, abs=1e-5)


def test_constant_positions_stay_constant():
    for old, new in (((14, 14), (6, 6)), ((4, 4, 4), (7, 3, 5))):
        positions = torch.full((1, torch.Size(old).numel(), 4), 2.5)
        torch.testing.assert_close(resample(positions, old, new), torch.full((1, torch.Size(new).numel(), 4), 2.5))


def test_an_equal_grid_returns_the_same_tensor():
    positions = torch.randn(1, 16, 4)
    assert resample(positions, (4, 4), (4, 4)) is positions


def test_resampling_is_usable_in_training_after_inference_mode_filled_its_cache():
    positions = torch.randn(1, 11 * 11, 4, requires_grad=True)
    with torch.inference_mode():
        resample(positions, (11, 11), (5, 5))
    resample(positions, (11, 11), (5, 5)).sum().backward()
    assert positions.grad is not None
    assert positions.grad.sum() == pytest.approx(25 * 4, rel=1e-4)


def test_sincos_by_hand():
    table = sincos((2, 3), 8)
    # Token (y=1, x=2), two rates per axis: 1 and 1 / 100.
    y, x = torch.tensor([1.0, 0.01]), torch.tensor([2.0, 0.02])
    torch.testing.assert_close(table[5], torch.cat([y.sin(), y.cos(), x.sin(), x.cos()]))


def test_sincos_tokens_differ_and_leftover_channels_are_zero():
    table = sincos((3, 4, 5), 64)
    assert len(torch.unique(table, dim=0)) == 60
    assert torch.equal(table[:, 60:], torch.zeros(60, 4))
