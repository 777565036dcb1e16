"""Ground metres and resampling hold for any place, size and ratio; oracles: PROJ's scale factors, the ellipsoid, GDAL's warper."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.warp import Resampling, reproject

from dinodomain_remote_sensing.geometry import Grid, ground_spacing, nearest, relate
from dinodomain_remote_sensing.resample import resampled, taken_nearest

A, F = 6378137.0, 1 / 298.257223563
E2 = F * (2 - F)
WKT = {code: pyproj.CRS.from_epsg(code).to_wkt() for code in (3857, 4326, 6933, 32632, 2264)}

quick = settings(max_examples=40, deadline=None, derandomize=True)


def degree_lengths(lat: float) -> tuple[float, float]:
    """Metres per degree of latitude and longitude on WGS 84, from the radii of curvature."""
    w = 1 - E2 * math.sin(math.radians(lat)) ** 2
    meridian, normal = A * (1 - E2) / w**1.5, A / math.sqrt(w)
    return math.radians(1) * meridian, math.radians(1) * normal * math.cos(math.radians(lat))


@quick
@given(lon=st.floats(-179, 179), lat=st.floats(-80, 80), step=st.floats(1e-5, 1e-2))
def test_degrees_follow_the_radii_of_curvature(lon, lat, step):
    grid = Grid(transform=(step, 0.0, lon - 2 * step, 0.0, -step, lat + 2 * step), height=4, width=4)
    assert ground_spacing("a", WKT[4326], grid) == pytest.approx([length * step for length in degree_lengths(lat)], rel=1e-5)


@quick
@given(code=st.sampled_from([3857, 6933]), lon=st.floats(-170, 170), lat=st.floats(-75, 75), metres=st.floats(0.5, 500))
def test_projected_metres_are_divided_by_the_scale_factor(code, lon, lat, metres):
    """Within 1 % of 1 the nominal size is kept. EPSG:3857 draws the ellipsoid's latitudes as if on a sphere: its scale is derived here."""
    crs = pyproj.CRS.from_epsg(code)
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    grid = Grid(transform=(metres, 0.0, x - 2 * metres, 0.0, -metres, y + 2 * metres), height=4, width=4)
    factors = pyproj.Proj(crs).get_factors(lon, lat)
    scale = factors.meridional_scale, factors.parallel_scale
    if code == 3857:
        per_degree = math.radians(1) * A / math.cos(math.radians(lat)), math.radians(1) * A
        scale = tuple(drawn / length for drawn, length in zip(per_degree, degree_lengths(lat)))
    true = metres / scale[0], metres / scale[1]
    allowed = [true, (metres, metres)] if max(abs(metres / t - 1) for t in true) < 0.011 else [true]
    found = ground_spacing("a", WKT[code], grid)
    assert any(found == pytest.approx(values, rel=2e-4) for values in allowed)


@quick
@given(x=st.floats(170000, 830000), y=st.floats(100000, 9000000), metres=st.sampled_from([0.25, 10.0, 20.0, 30.0, 60.0]))
def test_utm_keeps_its_nominal_metres(x, y, metres):
    grid = Grid(transform=(metres, 0.0, x, 0.0, -metres, y), height=4, width=4)
    assert ground_spacing("a", WKT[32632], grid) == (metres, metres)


@st.composite
def two_grids(draw):
    """A band and a target over the same ground, whole or broken ratios, shifted by a part of a pixel."""
    side, gsd = draw(st.integers(12, 40)), draw(st.sampled_from([10.0, 20.0, 30.0]))
    ratio = draw(st.one_of(st.sampled_from([1 / 6, 1 / 3, 0.5, 1.0, 2.0, 3.0]), st.floats(0.3, 3.5)))
    band = Grid(transform=(gsd, 0.0, 600000.0, 0.0, -gsd, 5300040.0), height=side, width=side)
    target = band.scaled(ratio, ratio)
    # A broken ratio leaves out a broken pixel at the end; with a shift besides, footprints would differ by more than is allowed.
    whole = abs(max(ratio, 1 / ratio) - round(max(ratio, 1 / ratio))) < 1e-9
    shift = draw(st.sampled_from([0.0, 0.0, 0.3, -0.25] if whole else [0.0])) * gsd * min(1.0, ratio)
    a, b, c, d, e, f = target.transform
    return band, Grid(transform=(a, b, c + shift, d, e, f - shift), height=target.height, width=target.width)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grids=two_grids(), seed=st.integers(0, 1000), data=st.data())
def test_any_window_is_a_cut_of_the_whole_and_agrees_with_gdal(grids, seed, data):
    band, target = grids
    pixels = np.random.default_rng(seed).uniform(1, 1000, (band.height, band.width))
    relation = relate("a", band, target)

    def block(rows, columns):
        return pixels[rows, columns], np.zeros(pixels[rows, columns].shape, bool), None

    whole = resampled(block, relation, slice(0, target.height), slice(0, target.width))[0]
    row, column = data.draw(st.integers(0, target.height - 1)), data.draw(st.integers(0, target.width - 1))
    window = slice(row, data.draw(st.integers(row + 1, target.height))), slice(column, data.draw(st.integers(column + 1, target.width)))
    np.testing.assert_allclose(resampled(block, relation, *window)[0], whole[window], rtol=1e-12)
    larger = max(relation.rows.scale, 1 / relation.rows.scale)
    # A drift of less than a tenth of a pixel over the whole scene counts as none; GDAL knows no such tolerance.
    assume(relation.method in ("area", "bilinear") or (abs(larger - round(larger)) < 1e-9 and relation.rows.shift == 0))
    method = {"bilinear": Resampling.bilinear, "native": Resampling.nearest, "replicate": Resampling.nearest}.get(
        relation.method, Resampling.average
    )
    theirs = np.zeros(whole.shape)
    reproject(pixels, theirs, src_transform=rasterio.Affine(*band.transform), src_crs="EPSG:32632",
              dst_transform=rasterio.Affine(*target.transform), dst_crs="EPSG:32632", resampling=method)  # fmt: skip
    rim = max(1, math.ceil(1 / relation.rows.scale))
    inside = (slice(rim, -rim),) * 2
    np.testing.assert_allclose(whole[inside], theirs[inside], rtol=1e-3, atol=2.0)  # GDAL's weights have fewer digits


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grids=two_grids(), seed=st.integers(0, 1000))
def test_a_mean_stays_within_its_pixels_and_keeps_the_total(grids, seed):
    band, target = grids
    pixels = np.random.default_rng(seed).uniform(1, 1000, (band.height, band.width))
    missing = np.random.default_rng(seed + 1).random(pixels.shape) < 0.2
    holed = np.where(missing, np.nan, pixels)

    def block(rows, columns):
        return holed[rows, columns], missing[rows, columns], missing[rows, columns]

    values, gone, full = resampled(block, relate("a", band, target), slice(0, target.height), slice(0, target.width))
    kept = values[~gone]
    assert kept.size == 0 or (pixels[~missing].min() - 1e-9 <= kept.min() and kept.max() <= pixels[~missing].max() + 1e-9)
    assert full is not None
    assert full.shape == values.shape


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grids=two_grids(), seed=st.integers(0, 1000))
def test_classes_are_taken_from_the_pixel_under_each_centre(grids, seed):
    band, target = grids
    classes = np.random.default_rng(seed).integers(0, 12, (band.height, band.width))
    ours = taken_nearest(
        lambda rows, columns: classes[rows, columns], nearest("a", band, target), slice(0, target.height), slice(0, target.width)
    )
    a, _, c, _, e, f = target.transform
    x, y = c + a * (np.arange(target.width) + 0.5), f + e * (np.arange(target.height) + 0.5)
    column = np.clip(np.floor((x - band.transform[2]) / band.transform[0] + 1e-6), 0, band.width - 1).astype(int)
    row = np.clip(np.floor((y - band.transform[5]) / band.transform[4] + 1e-6), 0, band.height - 1).astype(int)
    np.testing.assert_array_equal(ours, classes[np.ix_(row, column)])
