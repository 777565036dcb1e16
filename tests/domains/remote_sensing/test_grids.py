"""Bands of several resolutions come to one grid: replicated without loss, else resampled as stated."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject

from dinodomain.errors import UserError
from dinodomain_remote_sensing import landsat, sentinel1, sentinel2


@pytest.fixture
def three_grids(lab):
    """B02 at 10 m, B05 at 20 m, B01 at 60 m over 480 m, numbers that tell every pixel."""
    pixels = {"B02": lab.counts(48, 48), "B05": lab.counts(24, 24, first=5000), "B01": lab.counts(8, 8, first=9000)}
    for band, gsd in (("B02", 10), ("B05", 20), ("B01", 60)):
        lab.write(f"T32_20200113T103000_{band}_{gsd}m.tif", pixels[band], gsd=gsd)
    return pixels


def test_whole_ratios_are_replicated_and_every_stored_pixel_comes_back(lab, three_grids):
    record = lab.only(sentinel2)
    assert record.channels == ("B01", "B02", "B05")
    assert record.shape == (3, 48, 48)
    stored = lab.everything(record)
    np.testing.assert_array_equal(stored[0], np.kron(three_grids["B01"], np.ones((6, 6), "uint16")))
    np.testing.assert_array_equal(stored[1], three_grids["B02"])
    np.testing.assert_array_equal(stored[2][::2, ::2], three_grids["B05"])
    assert record.fields["resampling.B01"] == "replicate 6x6"
    assert record.fields["gsd_m.B01"] == 60.0
    assert record.fields["resampling.B02"] == "native"


@pytest.mark.parametrize("grid", ["finest", "B05", "30", "25", "7"])
def test_a_window_is_a_cut_of_the_whole_on_every_grid(lab, three_grids, grid):
    record = lab.only(sentinel2, grid=grid)
    whole = lab.everything(record)
    rows, columns = record.shape[1:]
    for window in ((slice(3, 8), slice(5, 7)), (slice(rows - 5, rows), slice(0, columns)), (slice(1, 2), slice(columns - 1, columns))):
        np.testing.assert_array_equal(record.read(window), whole[(slice(None), *window)])


def test_the_grid_of_a_named_band_averages_finer_bands(lab, three_grids):
    record = lab.only(sentinel2, grid="B05")
    assert record.shape[1:] == (24, 24)
    assert record.spacing == (20.0, 20.0)
    expected = np.rint(three_grids["B02"].reshape(24, 2, 24, 2).mean((1, 3)))
    np.testing.assert_array_equal(lab.everything(record)[1], expected)
    assert record.fields["resampling.B02"] == "average 2x2"


def test_metres_make_a_grid_of_their_own(lab, three_grids):
    record = lab.only(sentinel2, grid="25", bands=("B02",))
    assert record.spacing == (25.0, 25.0)
    assert record.fields["resampling.B02"] == "area"
    assert record.affine == pytest.approx((25, 0, 600000, 0, -25, 5300040, 0, 0, 1))


@pytest.mark.parametrize(("grid", "method", "name"), [("7", Resampling.bilinear, "bilinear"), ("25", Resampling.average, "area")])
def test_broken_ratios_agree_with_gdal(lab, three_grids, grid, method, name):
    record = lab.only(sentinel2, grid=grid, bands=("B02",))
    assert record.fields["resampling.B02"] == name
    ours = lab.everything(record)[0].astype(float)
    theirs = np.zeros_like(ours)
    source = rasterio.Affine(10, 0, 600000, 0, -10, 5300040)
    reproject(three_grids["B02"].astype(float), theirs, src_transform=source, src_crs="EPSG:32632",
              dst_transform=rasterio.Affine(*record.affine[:6]), dst_crs="EPSG:32632", resampling=method)  # fmt: skip
    np.testing.assert_allclose(ours[1:-1, 1:-1], theirs[1:-1, 1:-1], atol=0.51)


def test_a_half_pixel_shift_is_interpolated_not_replicated(lab):
    """Landsat's panchromatic grid begins half a pixel off the 30 m grid."""
    lab.write("LC08_L1TP_013032_20180131_B2.TIF", lab.counts(8, 8), gsd=30)
    shifted = rasterio.Affine(15, 0, 600007.5, 0, -15, 5300032.5)
    lab.write("LC08_L1TP_013032_20180131_B8.TIF", lab.counts(16, 16), transform=shifted)
    record = lab.only(landsat)
    assert record.fields["resampling.OLI_B2_DN"] == "bilinear"
    assert record.affine[2] == 600007.5


def test_missing_pixels_take_no_part_in_a_mean(lab):
    pixels = np.full((4, 4), 100, "uint16")
    pixels[0, 0] = 0
    pixels[2:, 2:] = 0
    lab.write("B02.tif", pixels)
    record = lab.only(sentinel2, grid="20")
    np.testing.assert_array_equal(lab.everything(record)[0], [[100, 100], [100, 0]])
    np.testing.assert_array_equal(lab.invalid(record), [[0, 0], [0, 1]])


def test_decibels_are_averaged_as_power(lab):
    lab.write("a_VV.tif", np.array([[0.0, -10.0]] * 2, "float32"), nodata=float("nan"))
    value = lab.everything(lab.only(sentinel1, grid="20", sar="db"))[0, 0, 0]
    assert value == pytest.approx(10 * np.log10((1 + 0.1) / 2), abs=1e-5)


def test_only_chosen_bands_decide_the_finest_grid(lab, three_grids):
    record = lab.only(sentinel2, bands=("B05", "B01"))
    assert record.channels == ("B05", "B01")
    assert record.spacing == (20.0, 20.0)


def test_footprints_that_do_not_match_are_refused(lab):
    lab.write("B02.tif", lab.counts(12, 12))
    lab.write("B05.tif", lab.counts(12, 12), gsd=20)
    assert "footprint does not match" in lab.refusal(sentinel2)


def test_bands_of_two_systems_are_refused(lab):
    lab.write("B02.tif", lab.counts(12, 12))
    lab.write("B03.tif", lab.counts(12, 12), crs="EPSG:32633")
    assert "not all of one CRS" in lab.refusal(sentinel2)


def test_grids_turned_against_each_other_are_refused(lab):
    lab.write("B02.tif", lab.counts(12, 12))
    lab.write("B03.tif", lab.counts(12, 12), transform=rasterio.Affine(8, 6, 600000, 6, -8, 5300040))
    assert "turned against" in lab.refusal(sentinel2)


@pytest.mark.parametrize("grid", ["coarse", "-3", "nan", "B99"])
def test_an_impossible_grid_is_the_users_error(lab, three_grids, grid):
    with pytest.raises(UserError, match=r"ingest\.grid"):
        lab.found(sentinel2, grid=grid)
