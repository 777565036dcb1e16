"""Affine changes of intensity: values worked out by hand, neutral values, and that nothing is clipped on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dinodomain.domain import linear_to_unit
from dinodomain.types import TileInfo
from dinodomain.views.draw import OpParams
from dinodomain.views.operations import crop_mean
from dinodomain.views.radiometry import gain, haze, jitter, retold, window

NAN = float("nan")


def info_of(low: list[list[float]], high: list[list[float]], scale: float = 1.0, offset: float = 0.0) -> TileInfo:
    low_, high_ = torch.tensor(low), torch.tensor(high)
    ones = torch.ones_like(low_)
    return TileInfo(
        scale=scale * ones, offset=offset * ones, nodata=NAN * ones, low=low_, high=high_, spacing=torch.ones(len(low), 2),
        valid_box=torch.tensor([[0, 4], [0, 4]]).expand(len(low), -1, -1),
    )  # fmt: skip


def units(info: TileInfo, stored: list[float]) -> torch.Tensor:
    """[n, C, len(stored)] unit values of the same stored values in every row and channel."""
    values = torch.tensor(stored).expand(*info.low.shape, -1)
    return linear_to_unit(values, info)


def test_gain_and_offset_act_on_physical_values_of_each_channel():
    # Stored 3000 of a Sentinel-2 band means 0.3 - 0.1 = 0.2; 1.1 x 0.2 + 0.05 = 0.27, and 0.5 x 0.2 = 0.1.
    info = info_of([[0.0, 0.0]], [[1.0, 1.0]], scale=1e-4, offset=-0.1)
    told = gain(info, gain=torch.tensor([[1.1, 0.5]]), offset=torch.tensor([[0.05, 0.0]]))
    assert units(told, [3000.0])[0, :, 0].tolist() == pytest.approx([0.27, 0.1], abs=1e-6)


def test_haze_is_an_offset_that_grows_to_short_wavelengths_and_dims_the_ground():
    # At 490 nm R = 0.08: 0.08 + 0.92^2 x 0.25 = 0.2916. At 980 nm and exponent 4 R = 0.08 / 16 = 0.005: 0.005 + 0.995^2 x 0.25.
    info = info_of([[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]], scale=0.5, offset=0.05)
    told = haze(info, amount=torch.tensor([0.08]), exponent=torch.tensor([4.0]), wavelengths=[490.0, 980.0, NAN])
    assert units(told, [0.4])[0, :, 0].tolist() == pytest.approx([0.2916, 0.25250625, 0.25], abs=1e-6)
    black = units(told, [-0.1])[0, :, 0]
    assert black.tolist() == pytest.approx([0.08, 0.005, 0.0], abs=1e-6)


def test_haze_falls_with_the_drawn_power_of_the_wavelength():
    info = info_of([[0.0]], [[1.0]])
    told = haze(info, amount=torch.tensor([0.05]), exponent=torch.tensor([0.5]), wavelengths=[4 * 490.0])
    assert float(told.offset) == pytest.approx(0.025, abs=1e-7)


def test_window_moves_centre_and_width_in_hounsfield_units():
    # Soft tissue, centre 40 and width 400: a tenth of the width further and half as wide is centre 80, width 200.
    told = window(info_of([[-160.0]], [[240.0]]), centre=torch.tensor([0.1]), width=torch.tensor([0.5]))
    assert (float(told.low), float(told.high)) == pytest.approx((-20.0, 180.0))
    assert units(told, [-100.0, -20.0, 80.0, 180.0, 300.0])[0, 0].tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0], abs=1e-6)
    assert float(told.scale) == 1.0
    assert float(told.offset) == 0.0


@pytest.mark.parametrize("per_channel", [False, True])
def test_jitter_turns_about_the_mean_of_the_crop(per_channel):
    # Range 0..200, mean 80 = 0.4: 0.4 + 1.5 x (0.5 - 0.4) + 0.1 = 0.65; a channel of its own: 0.4 + 0.5 x 0.1 - 0.2 = 0.25.
    info = info_of([[0.0, 0.0]], [[200.0, 200.0]])
    shift, factor = ([[0.1, -0.2]], [[1.5, 0.5]]) if per_channel else ([0.1], [1.5])
    told = jitter(info, torch.full((1, 2), 80.0), brightness=torch.tensor(shift), contrast=torch.tensor(factor))
    assert units(told, [100.0])[0, :, 0].tolist() == pytest.approx([0.65, 0.25 if per_channel else 0.65], abs=1e-6)


def test_mean_of_a_crop_counts_known_pixels_only():
    values = torch.tensor([[[1.0, 2.0, 9.0], [4.0, 0.0, 8.0]], [[5.0, 5.0, 5.0], [1.0, 1.0, 1.0]]])
    mask = torch.tensor([[[True, True, False]], [[False, False, False]]])
    assert crop_mean(values, mask).tolist() == [[1.5, 2.0], [0.0, 0.0]]
    assert crop_mean(values, None)[0].tolist() == pytest.approx([4.0, 4.0])


def test_all_of_them_clip_once_and_last():
    # Gain takes 0.8 to 1.6, beyond the range; a window twice as wide (-0.5..1.5) and half the contrast about 0.65 bring it back.
    info = info_of([[0.0]], [[1.0]])
    on = torch.ones(1, dtype=torch.bool)
    ops = {
        "gain": OpParams(on=on, values={"gain": torch.tensor([[2.0]]), "offset": torch.tensor([[0.0]])}),
        "window": OpParams(on=on, values={"centre": torch.tensor([0.0]), "width": torch.tensor([2.0])}),
        "jitter": OpParams(on=on, values={"brightness": torch.tensor([0.0]), "contrast": torch.tensor([0.5])}),
    }
    told = retold(info, ops, torch.tensor([[0.4]]), [NAN])
    # Mean 0.4 becomes 0.8, in the window 0.65; 0.8 becomes 1.6, in the window 1.05; 0.65 + 0.5 x 0.4 = 0.85.
    assert float(units(told, [0.8])) == pytest.approx(0.85, abs=1e-6)


def test_neutral_values_change_no_bit():
    torch.manual_seed(0)
    low = torch.rand(50, 2) * 1000 - 500
    info = replace(info_of(low.tolist(), (low + torch.rand(50, 2) * 900 + 1).tolist()), scale=torch.rand(50, 2), offset=torch.randn(50, 2))
    one, none = torch.ones(50), torch.zeros(50)
    told = gain(info, gain=torch.ones(50, 2), offset=torch.zeros(50, 2))
    told = haze(told, amount=none, exponent=one, wavelengths=[443.0, NAN])
    told = window(told, centre=none, width=one)
    told = jitter(told, torch.randn(50, 2), brightness=none, contrast=one)
    for name in ("scale", "offset", "low", "high"):
        assert torch.equal(getattr(told, name), getattr(info, name)), name


def test_rows_do_not_see_each_other():
    torch.manual_seed(0)
    info = info_of([[0.0, -1.0]] * 4, [[1.0, 2.0]] * 4)
    mean, drawn = torch.rand(4, 2), {name: torch.rand(4) * 0.1 for name in ("amount", "exponent", "centre", "brightness")}
    on = torch.ones(4, dtype=torch.bool)
    ops = {
        "gain": OpParams(on=on, values={"gain": 1 + torch.rand(4, 2), "offset": torch.rand(4, 2)}),
        "haze": OpParams(on=on, values={name: drawn[name] for name in ("amount", "exponent")}),
        "window": OpParams(on=on, values={"centre": drawn["centre"], "width": 1 + drawn["centre"]}),
        "jitter": OpParams(on=on, values={"brightness": drawn["brightness"], "contrast": 1 + drawn["brightness"]}),
    }
    whole = retold(info, ops, mean, [500.0, 900.0])
    for row in range(4):
        own = {name: item.map(lambda t, row=row: t[row : row + 1]) for name, item in ops.items()}
        single = retold(info_of([[0.0, -1.0]], [[1.0, 2.0]]), own, mean[row : row + 1], [500.0, 900.0])
        for name in ("scale", "offset", "low", "high"):
            assert torch.equal(getattr(whole, name)[row : row + 1], getattr(single, name)), name
