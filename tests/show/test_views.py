"""The figure of tiles and views: the right way up, boxes on the right tile, unknown pixels hatched, equal views give equal bytes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinodomain.domain import Channel, linear_to_unit
from dinodomain.policy import Rotation, ViewPolicy
from dinodomain.show.captions import Scale, Setting, chosen_bands, number, operation_words, scale_of
from dinodomain.show.sides import Frame, convention, frame_of, planes_of, side_names
from dinodomain.show.sight import Sight, display_range, unit_crop, unit_tiles
from dinodomain.show.views import _outline, draw_views
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, render
from dinodomain.views.normalise import source_channels

ORANGE = (255, 127, 14)


def made_up(channels: int, extent: tuple[int, ...]) -> tuple[Batch, Normalisation]:
    ones, ids = torch.ones(2, channels), torch.arange(2)
    torch.manual_seed(0)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=255 * ones, spacing=torch.ones(2, len(extent)),
        valid_box=torch.tensor([[0, side] for side in extent]).expand(2, -1, -1),
    )  # fmt: skip
    batch = Batch(
        pixels=torch.randint(0, 255, (2, 1, channels, *extent), dtype=torch.uint8), valid=None, info=info,
        channels=tuple("abcd"[:channels]), tile_ids=ids, epochs=0 * ids, draws=0 * ids, rows=ids,
        origins=torch.zeros(2, len(extent), dtype=torch.int64), slots=ids,
    )  # fmt: skip
    column = (1.0,) * channels
    norm = Normalisation(
        mode="domain", channels=batch.channels, low=(0.0,) * channels, high=(255.0,) * channels, mean=tuple(0.5 * c for c in column),
        std=tuple(0.25 * c for c in column),
    )  # fmt: skip
    return batch, norm


def seen(norm: Normalisation, axes: tuple[str, ...], images: int, bands: tuple[int, ...] = (0,)) -> Sight:
    frame = Frame(kind="unknown", directions=None, axes=axes)
    return Sight(
        to_float=linear_to_unit, normalisation=norm, bands=bands, frames=(frame,) * images, scale=Scale(span=255.0, unit=""), low=0.0
    )


def picture(path: Path, batch: Batch, norm: Normalisation, policy: ViewPolicy, plan: ViewsPlan, **keys: object) -> np.ndarray:
    params = draw_batch(policy, plan, batch, seed=0, normalisation=norm)
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    sight = seen(norm, policy.axes, len(batch.rows), (0, 1, 2) if len(norm.channels) > 2 else (0,))
    draw_views(batch, views, params, path, sight=sight, blur=1.0, title="t", **keys)
    return np.asarray(Image.open(path).convert("RGB"))


def has(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(image.astype(int) - colour).sum(axis=-1) < 30).any())


@pytest.mark.parametrize(("channels", "extent"), [(1, (40, 50)), (4, (40, 50)), (1, (20, 24, 28))])
def test_figure_has_rows_per_sample_and_equal_bytes(tmp_path: Path, channels, extent):
    batch, norm = made_up(channels, extent)
    plan = ViewsPlan(global_size=16, local_size=8, num_local=1)
    policy = ViewPolicy(axes=("z", "y", "x")[-len(extent) :], quarter_turns=True)
    found = [picture(tmp_path / name, batch, norm, policy, plan) for name in ("a.png", "b.png")]
    assert np.array_equal(*found)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert found[0].shape[1] == 4 * 190, "a column for the tile and each crop"
    assert found[0].shape[0] // 190 == 2 * (3 if len(extent) == 3 else 1), "a row for each plane of each sample"
    assert has(found[0], ORANGE)


def two_dates(path: Path, plan: ViewsPlan, **keys: object) -> np.ndarray:
    """Two samples of two dates, columns of 190 pixels."""
    one, norm = made_up(1, (40, 50))
    pair = {item.name: getattr(one.info, item.name).repeat_interleave(2, dim=0) for item in fields(TileInfo)}
    batch = replace(one, pixels=torch.cat([one.pixels, 255 - one.pixels], dim=1), info=TileInfo(**pair), rows=torch.arange(4))
    return picture(path, batch, norm, ViewPolicy(axes=("y", "x")), plan, **keys)


def test_every_box_is_drawn_on_the_date_it_was_cut_from(tmp_path: Path):
    both = two_dates(tmp_path / "a.png", ViewsPlan(global_size=16, num_global=2, num_local=0))
    first = two_dates(tmp_path / "b.png", ViewsPlan(global_size=16, num_global=1, num_local=0))
    for image, columns, boxed in ((both, 4, [True, True]), (first, 3, [True, False])):
        assert image.shape[1] == columns * 190
        assert [has(image[70:, 190 * date : 190 * (date + 1)], ORANGE) for date in range(2)] == boxed


def test_dates_are_named_by_their_labels_or_numbers(tmp_path: Path):
    plan = ViewsPlan(global_size=16, num_global=1, num_local=0)
    labels = ["2020-03-01", "2021-08-30", "2020-03-01", "2021-08-30"]
    pictures = [two_dates(tmp_path / f"{i}.png", plan, labels=keys) for i, keys in enumerate((labels, [], [""] * 4))]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[1], pictures[2]), "an image without a date is told by its number"


RAS = np.diag([2.0, 3.0, 4.0, 1.0]).ravel().tolist()
VOLUME = {"affine": RAS, "crs": None}


def test_volumes_are_shown_in_radiological_display():
    frame = frame_of(VOLUME, {}, ("IS", "AP", "LR"))
    axial, coronal, sagittal = planes_of(frame)
    assert [plane.name for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert [side_names(frame, plane) for plane in (axial, coronal, sagittal)] == [
        ("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I"),
    ]  # fmt: skip
    volume = np.zeros((1, 5, 7, 9))
    volume[0, 2, 6, 8] = 1.0  # the middle of z, the most anterior and most right voxel
    assert axial.cut(volume)[0, 0, 0] == 1.0, "anterior on top, the patient's right on the left"
    volume[0, 4, 3, 8] = 2.0
    assert coronal.cut(volume)[0, 0, 0] == 2.0, "superior on top"
    assert "right (R) is on the left" in convention(frame)


def test_a_flipped_volume_is_shown_the_same_way_up():
    turned = np.array(RAS).reshape(4, 4) @ np.diag([-1.0, 1, -1, 1])
    frame = frame_of({"affine": turned.ravel().tolist(), "crs": None}, {}, ("IS", "AP", "LR"))
    assert [side_names(frame, plane) for plane in planes_of(frame)] == [("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]
    assert not planes_of(frame)[0].flip_across


def test_a_crop_that_was_flipped_or_turned_has_sides_of_its_own():
    frame = frame_of(VOLUME, {}, ("IS", "AP", "LR"))
    axial = planes_of(frame)[0]
    assert side_names(frame, axial, np.diag([1.0, 1.0, -1.0])) == ("L", "R", "A", "P")
    scene = frame_of({"affine": [10.0, 0, 0, 0, -10, 0, 0, 0, 1], "crs": "x"}, {}, ("NS", "EW"))
    (plane,) = planes_of(scene)
    assert side_names(scene, plane) == ("W", "E", "N", "S")
    assert side_names(scene, plane, np.array([[0.0, 1.0], [1.0, 0.0]])) == ("N", "S", "W", "E"), "axes exchanged"


def test_rasters_are_shown_north_up_whichever_way_they_are_stored():
    for affine in ([10.0, 0, 0, 0, 10, 0, 0, 0, 1], [0.0, 10, 0, 10, 0, 0, 0, 0, 1], [-10.0, 0, 0, 0, -10, 0, 0, 0, 1]):
        frame = frame_of({"affine": affine, "crs": "x"}, {}, ("NS", "EW"))
        (plane,) = planes_of(frame)
        assert side_names(frame, plane) == ("W", "E", "N", "S"), affine
        north_east = np.argmax([affine[0] * x + affine[1] * y + affine[3] * x + affine[4] * y for y in range(3) for x in range(3)])
        image = np.zeros((1, 3, 3))
        image.ravel()[north_east] = 1.0
        assert plane.cut(image)[0, -1, 0] == 1.0


def test_a_radiograph_is_turned_by_its_header_and_left_alone_without():
    told = frame_of({"affine": None, "crs": None}, {"patient_orientation": "R\\F"}, ("IS", "LR"))
    assert side_names(told, planes_of(told)[0]) == ("R", "L", "S", "I")
    assert planes_of(told)[0].flip_across
    silent = frame_of({"affine": None, "crs": None}, {}, ("IS", "LR"))
    assert (side_names(silent, planes_of(silent)[0]), "shown as stored" in convention(silent)) == (("", "", "", ""), True)


def test_places_follow_the_picture():
    frame = frame_of({"affine": [0.0, 10, 0, 10, 0, 0, 0, 0, 1], "crs": "x"}, {}, ("NS", "EW"))
    (plane,) = planes_of(frame)
    image = np.zeros((1, 4, 6))
    image[0, 1, 2] = 1.0
    x, y = plane.place(np.array([1.0, 2.0]), (4, 6))
    assert plane.cut(image)[int(y), int(x), 0] == 1.0


def test_a_rotated_crop_is_drawn_by_its_four_corners():
    batch, norm = made_up(1, (40, 50))
    policy = ViewPolicy(axes=("y", "x"), rotation=Rotation(probability=1.0, degrees=(20.0, 20.0)))
    params = draw_batch(policy, ViewsPlan(global_size=16, num_local=0), batch, seed=0, normalisation=norm)
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    (plane,) = planes_of(Frame(kind="unknown", directions=None, axes=("y", "x")))
    corners = _outline(views.groups[0].to_tile[0].numpy().astype(float), 16, plane)
    edge = corners[1] - corners[0]
    assert np.allclose(corners[0], corners[-1])
    assert abs(np.degrees(np.arctan2(edge[0], edge[1]))) == pytest.approx(20.0, abs=6.0), "about 20 degrees: the crop may be oblong"


def test_unknown_pixels_of_tiles_and_crops_are_told_apart_from_dark_ones():
    batch, norm = made_up(2, (40, 40))
    valid = torch.zeros(2, 1, 40, 40, dtype=torch.uint8)
    valid[..., :20] = 1
    batch = replace(batch, valid=valid, pixels=batch.pixels * 0)
    sight = seen(norm, ("y", "x"), 2)
    assert [image[1].mean() for image in unit_tiles(sight, batch)] == [0.5, 0.5]
    policy = ViewPolicy(axes=("y", "x"), min_valid=0.0, global_scale=(1.0, 1.0), blur=None, jitter=None, gamma=None, noise=None)
    params = draw_batch(policy, ViewsPlan(global_size=16, num_local=0), batch, seed=0, normalisation=norm)
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    pixels, known = unit_crop(sight, views.groups[0], 0)
    assert known.mean() == 0.5
    assert np.allclose(pixels[:, known], 0.0, atol=1e-6)


def test_tiles_are_shown_without_padding_and_in_the_networks_channels():
    batch, norm = made_up(1, (40, 50))
    batch = replace(batch, info=replace(batch.info, valid_box=torch.tensor([[8, 40], [0, 30]]).expand(2, -1, -1)))
    windows = replace(
        norm, channels=("a/one", "a/two"), sources=("a", "a"), low=(0.0, 0.0), high=(255.0, 100.0), mean=(0.5,) * 2, std=(0.25,) * 2
    )
    first, second = (unit_tiles(seen(windows, ("y", "x"), 2, (band,)), batch)[0][0] for band in (0, 1))
    assert source_channels(windows, batch.channels) == (0, 0)
    assert first.shape == (1, 32, 30)
    assert np.allclose(second, np.clip(first * 2.55, 0, 1), atol=1e-5)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.1, 0.4, (0.0, 0.4)), (0.4, 0.7, (0.4, 0.7)), (0.5, 0.5, (0.0, 1.0))])
def test_black_is_the_lower_end_of_the_range_unless_that_wastes_the_greys(low, high, expected):
    pixels = np.linspace(low, high, 10_000)[None]
    assert display_range([(pixels, np.ones(10_000, bool))]) == pytest.approx(expected, abs=3e-3)


def test_numbers_are_told_in_the_channels_unit():
    hu = scale_of(Channel(unit="HU", low=-1000.0, high=3000.0), -1000.0, 3000.0)
    plain = scale_of(Channel(unit="1", low=0.0, high=4095.0), 0.0, 4095.0)
    assert (hu.shift(0.01), hu.amount(0.01), hu.value(0.25, -1000.0)) == ("+40 HU", "40 HU", "0 HU")
    assert (plain.shift(-0.05), plain.value(0.5, 0.0)) == ("-5 % of range", "50 % of range")
    assert [number(value) for value in (0.0, 1234.5, 12.34, 0.001234)] == ["0", "1234", "12.3", "0.00123"]
    setting = Setting(scale=hu, policy=ViewPolicy(axes=("NS", "EW")), spacing=(10.0, 10.0), blur=0.5, length="m")
    told = {
        "window": ({"centre": [0.01], "width": [1.0]}, "window centre +40 HU"),
        "blur": ({"sigma": [2.0]}, "blur 1 px"),
        "coarser_pixels": ({"factor": [2.0]}, "sensor x2 = 20 m"),
        "jitter": ({"brightness": [0.0], "contrast": [1.1]}, "contrast x1.1"),
        "brand_new": ({"size": [2.0]}, "brand new size 2"),
    }
    assert {name: operation_words(name, values, setting) for name, (values, _) in told.items()} == {
        n: words for n, (_, words) in told.items()
    }
    assert operation_words("haze", {}, replace(setting, light=False)) == "haze: no wavelength, no effect"


def test_bands_are_red_green_blue_by_wavelength_or_name_else_vv_else_the_first():
    s2 = {"B02": 492.0, "B03": 560.0, "B04": 665.0, "B08": 833.0}
    assert chosen_bands(tuple(s2), s2) == ("B04", "B03", "B02")
    assert chosen_bands(("B08", "B11"), {"B08": 833.0, "B11": 1614.0}) == ("B08",)
    assert chosen_bands(("red", "green", "blue"), {}) == ("red", "green", "blue")
    assert chosen_bands(("VH", "VV"), {}) == ("VV",)
    assert chosen_bands(("ct",), {}) == ("ct",)
