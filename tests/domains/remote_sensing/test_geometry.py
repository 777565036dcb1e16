"""Place: exact CRS and affine, spacing in ground metres."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio

from dinodomain_remote_sensing import aerial, landsat, sentinel2

NAMES = {"descriptions": ("B02", "B03")}


def test_crs_and_affine_are_kept_exactly_even_turned(lab):
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    turned = rasterio.Affine(10 * cos, -20 * sin, 600000.1, -10 * sin, -20 * cos, 5300040.7)
    path = lab.write("turned.tif", lab.counts(2, 8, 9), transform=turned, per_band=NAMES)
    record = lab.only(sentinel2)
    with rasterio.open(path) as dataset:
        assert record.affine == tuple(dataset.transform)
        assert rasterio.crs.CRS.from_wkt(record.crs) == dataset.crs
        np.testing.assert_array_equal(lab.everything(record), dataset.read())
    assert record.spacing == pytest.approx((20.0, 10.0))


def test_degrees_become_metres_at_the_centre(lab):
    place = rasterio.Affine(1e-4, 0, 10.0, 0, -1e-4, 60.0004)
    record = lab.only(sentinel2, lab.write("a.tif", lab.counts(2, 8, 8), crs="EPSG:4326", transform=place, per_band=NAMES))
    assert record.spacing[0] == pytest.approx(11.14, abs=0.01)  # meridian degree at 60 N: 111.41 km
    assert record.spacing[1] == pytest.approx(5.58, abs=0.01)  # parallel degree at 60 N: 55.80 km


def test_web_mercator_is_divided_by_its_scale_factor(lab):
    y = 6378137 * math.log(math.tan(math.pi / 4 + math.radians(60) / 2))
    place = rasterio.Affine(10, 0, 1e6, 0, -10, y + 40)
    record = lab.only(sentinel2, lab.write("a.tif", lab.counts(2, 8, 8), crs="EPSG:3857", transform=place, per_band=NAMES))
    assert record.spacing == pytest.approx((5.0, 5.0), rel=0.01)
    assert record.affine[:2] == (10.0, 0.0)


def test_utm_keeps_its_nominal_pixel_and_feet_become_metres(lab):
    assert lab.only(sentinel2, lab.write("a/a.tif", lab.counts(2, 8, 8), per_band=NAMES)).spacing == (10.0, 10.0)
    place = rasterio.Affine(10, 0, 2e6, 0, -10, 7e5)
    feet = lab.write("b/b.tif", lab.counts(3, 8, 8, dtype="uint8"), crs="EPSG:2264", transform=place)
    assert lab.only(aerial, feet).spacing == pytest.approx((3.048, 3.048), rel=1e-4)


@pytest.mark.parametrize("domain", [sentinel2, landsat], ids=lambda domain: domain.name)
def test_a_raster_without_crs_is_refused_with_the_remedy(lab, domain):
    lab.write("landsat8_a.tif", lab.counts(2, 8, 8), crs=None, per_band={"descriptions": ("B2", "B3")})
    message = lab.refusal(domain)
    assert "GeoTIFF without CRS" in message
    assert "-a_srs" in message


def test_a_crs_without_geotransform_is_refused(lab):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        lab.write("a.tif", lab.counts(2, 8, 8), transform=rasterio.Affine.identity(), per_band=NAMES)
    assert "no geotransform" in lab.refusal(sentinel2)


def test_a_place_outside_the_domain_of_its_crs_is_refused(lab):
    swapped = rasterio.Affine(1e-4, 0, 60.0, 0, -1e-4, 160.0)
    lab.write("a.tif", lab.counts(2, 8, 8), crs="EPSG:4326", transform=swapped, per_band=NAMES)
    assert "outside the domain of its CRS" in lab.refusal(sentinel2)


def test_small_rasters_are_whole_and_large_ones_windows(lab):
    assert lab.only(sentinel2, lab.write("s.tif", lab.counts(2, 256, 256), per_band=NAMES)).layout == "whole"
    large = lab.only(sentinel2, lab.write("l.tif", lab.counts(2, 8, 257), per_band=NAMES))
    assert large.layout == "window"
    assert large.affine is not None
