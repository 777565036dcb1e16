"""Warping by ``ingest.crs``: where pixels come to lie and what they hold, against rasterio."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dinodomain.errors import BadSource, UserError
from dinodomain.types import CLOUD, NODATA, Record
from dinodomain_remote_sensing import aerial, sentinel1, sentinel2

rasterio = pytest.importorskip("rasterio")
warp = pytest.importorskip("rasterio.warp")
pyproj = pytest.importorskip("pyproj")

B2 = {"descriptions": ("B02",)}
OTHER = "EPSG:32633"


def smooth(rows: int, columns: int, *, top: float = 4000.0) -> np.ndarray:
    """Waves of at least 12 pixels, so that kernels may be compared apart from aliasing."""
    y, x = np.mgrid[:rows, :columns]
    return (top / 2 + top / 4 * np.sin(2 * math.pi * y / 17) + top / 5 * np.cos(2 * math.pi * (x + y / 2) / 23)).astype("float64")


def reprojected(record: Record, pixels: np.ndarray, lab_affine: object, method: str, crs: str = "EPSG:32632", **more: object) -> np.ndarray:
    out = np.full(record.shape[1:], np.nan)
    warp.reproject(
        pixels.astype("float64"), out, src_transform=lab_affine, src_crs=crs, dst_transform=rasterio.Affine(*record.affine[:6]),
        dst_crs=record.crs, resampling=rasterio.enums.Resampling[method], dst_nodata=np.nan, tolerance=0, **more,
    )  # fmt: skip
    return out


def source_affine(gsd: float = 10.0) -> object:
    return rasterio.Affine(gsd, 0, 600000.0, 0, -gsd, 5300040.0)


def interior(bits: np.ndarray, margin: int = 3) -> np.ndarray:
    """Pixels whose neighbourhood is valid."""
    valid = bits == 0
    for _ in range(margin):
        padded = np.pad(valid, 1)
        valid = valid & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return valid


def test_a_scene_in_another_zone_equals_rasterio_and_lies_on_whole_multiples(lab):
    pixels = np.rint(smooth(140, 160)).astype("uint16")
    lab.write("a.tif", pixels, per_band=B2)
    record = lab.only(sentinel2, crs=OTHER)
    assert pyproj.CRS(record.crs).to_epsg() == 32633
    assert record.spacing == (10.0, 10.0)
    assert [value % 10 for value in (record.affine[2], record.affine[5])] == [0, 0]
    expected = reprojected(record, pixels, source_affine(), "bilinear")
    bits = lab.invalid(record)
    inside = interior(bits)
    assert 0.7 < inside.sum() / pixels.size < 1.0
    np.testing.assert_allclose(lab.everything(record)[0][inside], expected[inside], atol=0.51 + 0.5)
    # What GDAL could not fill is missing here, but for pixels at the very edge.
    assert np.count_nonzero((bits != 0) != np.isnan(expected)) < 2 * sum(record.shape[1:])
    assert "warped from EPSG:32632 to EPSG:32633 in pixels of 10: bilinear" in record.stages
    assert (record.fields["native_crs"], record.fields["native_gsd_m"]) == ("EPSG:32632", 10.0)
    assert record.fields["resampling.B02"] == "bilinear"


def test_windows_give_the_pixels_of_the_whole(lab):
    lab.write("a.tif", np.rint(smooth(90, 700)).astype("uint16"), per_band=B2)
    record = lab.only(sentinel2, crs=OTHER)
    whole, bits = lab.everything(record), lab.invalid(record)
    for rows, columns in ((slice(0, 7), slice(0, 40)), (slice(33, 90), slice(500, 611)), (slice(5, 60), slice(17, 695))):
        np.testing.assert_array_equal(record.read((rows, columns)), whole[:, rows, columns])
        np.testing.assert_array_equal(record.read_valid((rows, columns)), bits[rows, columns])


def test_a_scene_that_is_there_already_is_not_touched(lab):
    pixels = lab.counts(40, 30)
    lab.write("a.tif", pixels, per_band=B2)
    for crs in ("EPSG:32632", "utm"):
        record = lab.only(sentinel2, crs=crs)
        np.testing.assert_array_equal(lab.everything(record)[0], pixels)
        assert not any("warped" in stage for stage in record.stages)
        assert "native_crs" not in record.fields


def test_utm_takes_the_zone_of_the_centre_on_both_hemispheres(lab):
    for name, lon, lat, code in (("a", 10.5, 47.8, 32632), ("b", -60.1, -12.0, 32720), ("c", 179.9, -17.0, 32760)):
        lab.write(f"{name}.tif", lab.counts(60, 60), crs="EPSG:4326", transform=rasterio.Affine(1e-4, 0, lon, 0, -1e-4, lat), per_band=B2)
        record = lab.only(sentinel2, lab.folder / f"{name}.tif", crs="utm", grid="10")
        assert pyproj.CRS(record.crs).to_epsg() == code
        assert record.spacing == (10.0, 10.0)


def test_coarser_pixels_are_means_as_gdal_averages(lab):
    pixels = np.rint(smooth(240, 240) + 300 * (np.indices((240, 240)).sum(0) % 2)).astype("uint16")  # a checkerboard must vanish
    lab.write("a.tif", pixels, per_band=B2)
    record = lab.only(sentinel2, crs=OTHER, grid="40")
    assert record.spacing == (40.0, 40.0)
    expected = reprojected(record, pixels, source_affine(), "average")
    inside = interior(lab.invalid(record), 2)
    assert inside.sum() > 1000
    difference = lab.everything(record)[0][inside] - expected[inside]
    assert np.sqrt(np.mean(difference**2)) < 0.02 * expected[inside].mean()
    assert record.fields["resampling.B02"] == "average"


def test_decibels_are_warped_in_power(lab):
    power = 10 ** (smooth(120, 120, top=10.0) / 10) / 100
    lab.write("a.tif", (10 * np.log10(power)).astype("float32"), per_band={"descriptions": ("VV",)})
    record = lab.only(sentinel1, crs=OTHER, sar="db")
    expected = 10 * np.log10(reprojected(record, power, source_affine(), "bilinear"))
    inside = interior(lab.invalid(record))
    np.testing.assert_allclose(lab.everything(record)[0][inside], expected[inside], atol=0.02)


def test_missing_pixels_take_no_part_and_classes_come_nearest(lab):
    pixels = np.rint(smooth(120, 120)).astype("uint16")
    pixels[40:60, 40:60] = 0
    classes = np.full((60, 60), 4, np.uint8)
    classes[:, 30:] = 9
    lab.write("s/T32VPH_20200113T103641_B02.tif", pixels)
    lab.write("s/T32VPH_20200113T103641_SCL.tif", classes, gsd=20)
    record = lab.only(sentinel2, crs=OTHER)
    bits, values = lab.invalid(record), lab.everything(record)[0]
    assert {0, NODATA, CLOUD} <= set(np.unique(bits)) <= {0, NODATA, CLOUD, NODATA | CLOUD}
    assert values[bits == 0].min() > 190  # the darkest wave; a missing pixel would have dragged its neighbours below
    cloudy = (bits & CLOUD) != 0
    expected = reprojected(record, np.kron(classes, np.ones((2, 2))), source_affine(), "nearest")
    agree = cloudy == (expected == 9)
    assert agree[interior(np.isnan(expected).astype(np.uint8), 2)].mean() > 0.995


def test_bands_of_several_resolutions_are_warped_each_from_its_own_grid(lab):
    fine, coarse = smooth(120, 120), smooth(60, 60)
    lab.write("s/T32VPH_20200113T103641_B02.tif", np.rint(fine).astype("uint16"))
    lab.write("s/T32VPH_20200113T103641_B05.tif", np.rint(coarse).astype("uint16"), gsd=20)
    record = lab.only(sentinel2, crs=OTHER)
    assert record.channels == ("B02", "B05")
    expected = reprojected(record, np.rint(coarse), source_affine(20.0), "bilinear")
    inside = interior(lab.invalid(record))
    np.testing.assert_allclose(lab.everything(record)[1][inside], expected[inside], atol=1.5)


def test_alpha_and_full_pictures_are_warped_too(lab):
    pixels = np.stack([np.rint(smooth(80, 80, top=200.0)).astype("uint8")] * 3 + [np.full((80, 80), 255, "uint8")])
    pixels[3, :20] = 0
    lab.write("a.tif", pixels, colours=("red", "green", "blue", "alpha"))
    record = lab.only(aerial, crs=OTHER)
    expected = reprojected(record, pixels[3], source_affine(), "nearest")
    bits = lab.invalid(record)
    assert ((bits == 0) == (expected == 255)).mean() > 0.97


def test_metres_are_ground_metres_in_web_mercator(lab):
    lab.write("a.tif", np.rint(smooth(100, 100)).astype("uint16"), per_band=B2)
    record = lab.only(sentinel2, crs="EPSG:3857", grid="20")
    assert record.spacing == pytest.approx((20.0, 20.0), rel=0.005)
    assert record.affine[0] == pytest.approx(20 / math.cos(math.radians(47.84)), rel=0.005)


def test_an_area_cuts_what_was_warped(lab):
    lab.write("a.tif", np.rint(smooth(140, 160)).astype("uint16"), per_band=B2)
    whole = lab.only(sentinel2, crs=OTHER)
    to_degrees = pyproj.Transformer.from_crs(OTHER, "EPSG:4326", always_xy=True)
    x, y = whole.affine[2] + 500, whole.affine[5] - 500
    (west, south), (east, north) = to_degrees.transform(x, y - 400), to_degrees.transform(x + 400, y)
    part = lab.only(sentinel2, crs=OTHER, aoi=f"{west},{south},{east},{north}")
    left, top = round((part.affine[2] - whole.affine[2]) / 10), round((whole.affine[5] - part.affine[5]) / 10)
    window = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
    np.testing.assert_array_equal(lab.everything(part), whole.read(window))


@pytest.mark.parametrize(("crs", "words"), [("EPSG:4326", "counts in degrees"), ("EPSG:99999", "is no coordinate reference system")])
def test_systems_that_cannot_be_are_the_users_error(lab, crs, words):
    lab.write("a.tif", lab.counts(4, 4), per_band=B2)
    with pytest.raises(UserError, match=words) as caught:
        lab.found(sentinel2, crs=crs)
    assert not isinstance(caught.value, BadSource)


def test_a_scene_that_another_system_tears_or_lacks_is_refused(lab):
    lab.write("a.tif", lab.counts(100, 400), crs="EPSG:4326", transform=rasterio.Affine(0.01, 0, 178, 0, -0.01, 10), per_band=B2)
    assert "does not lie in one piece in EPSG:3857" in lab.refusal(sentinel2, crs="EPSG:3857")


def test_a_picture_without_a_place_cannot_be_warped(lab):
    image = pytest.importorskip("PIL.Image")
    lab.folder.mkdir(parents=True)
    image.fromarray(lab.counts(16, 16, 3, dtype="uint8")).save(lab.folder / "p.png")
    assert "a picture without georeference cannot be warped" in lab.refusal(aerial, crs="utm")
