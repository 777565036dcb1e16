"""Ground cells: equal area, the same for one place in every projection, whole at the antimeridian, and holdout chunks touch them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dinodomain.errors import BadSource
from dinodomain.store.cells import HALF_HEIGHT_M, HALF_WIDTH_M, CellGrid, chunk_boxes, footprints, lon_lat

pyproj = pytest.importorskip("pyproj")
GRID = CellGrid(cell_m=20000.0)


def scene(epsg, lon, lat, metres=10.0):
    """CRS and affine of a north-up scene whose first pixel lies at a place."""
    crs = pyproj.CRS.from_epsg(epsg).to_wkt()
    x, y = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True).transform(lon, lat)
    return crs, (metres, 0.0, x, 0.0, -metres, y, 0.0, 0.0, 1.0)


def cell_at(epsg, lon, lat):
    crs, affine = scene(epsg, lon, lat)
    return GRID.units(footprints(crs, affine, np.array([[-0.5, -0.5, 0.5, 0.5]])))[0]


def test_the_borders_of_the_map_are_those_of_the_projection():
    project = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True).transform
    assert project(180.0, 0.0)[0] == pytest.approx(HALF_WIDTH_M, abs=1e-3)
    assert project(0.0, 90.0)[1] == pytest.approx(HALF_HEIGHT_M, abs=1e-3)


def test_one_place_has_one_cell_in_every_projection():
    assert len({cell_at(epsg, 11.97, 48.1) for epsg in (32632, 32633, 3857, 4326, 3035)}) == 1


def test_a_whole_number_of_cells_goes_around_the_globe():
    assert GRID.columns * GRID.width_m == pytest.approx(2 * HALF_WIDTH_M)
    assert GRID.width_m == pytest.approx(20000, rel=1e-3)


def test_cells_have_equal_area_on_the_ellipsoid():
    back = pyproj.Transformer.from_crs("EPSG:6933", "EPSG:4326", always_xy=True).transform
    areas = []
    for row in (0, 150, 300):
        x, y = np.array([0, 1, 1, 0]) * GRID.width_m, (row + np.array([0, 0, 1, 1])) * GRID.cell_m
        lon, lat = back(x, y)
        # The edges are parallels, not geodesics: many points keep the oracle from cutting corners.
        t = np.linspace(0, 1, 200)
        ring_lon = np.concatenate([lon[0] + (lon[1] - lon[0]) * t, lon[2] + (lon[3] - lon[2]) * t])
        ring_lat = np.concatenate([np.full(200, lat[0]), np.full(200, lat[2])])
        areas.append(abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(ring_lon, ring_lat)[0]))
    assert areas == pytest.approx([GRID.width_m * GRID.cell_m] * 3, rel=1e-3)


def test_the_cell_at_the_antimeridian_is_met_from_both_sides():
    east, west = cell_at(4326, 179.99999, 0.1), cell_at(4326, -179.99999, 0.1)
    assert int(east.split("/")[2]) == GRID.columns - 1
    assert int(west.split("/")[2]) == 0
    crs, affine = scene(32660, 179.98, 5.0)  # UTM zone 60 N, runs across 180 degrees
    boxes = footprints(crs, affine, np.array([[0.0, 0.0, 256.0, 1024.0]]))
    columns = {int(name.split("/")[2]) for name in GRID.touched(boxes)[0]}
    assert columns == {GRID.columns - 1, 0}
    assert boxes.x[0, 1] - boxes.x[0, 0] < 12000


def test_a_chunk_over_the_pole_touches_every_column_and_reaches_the_pole():
    crs = pyproj.CRS.from_epsg(3413).to_wkt()
    boxes = footprints(crs, (100.0, 0.0, -12800.0, 0.0, -100.0, 12800.0, 0.0, 0.0, 1.0), np.array([[0.0, 0.0, 256.0, 256.0]]))
    assert boxes.x.tolist() == [[-HALF_WIDTH_M, HALF_WIDTH_M]]
    assert boxes.y[0, 1] == HALF_HEIGHT_M
    coarse = CellGrid(cell_m=1_000_000.0)
    assert {name.split("/")[2] for name in coarse.touched(boxes)[0]} == {str(column) for column in range(coarse.columns)}


@pytest.mark.parametrize(("epsg", "lon", "lat"), [(32632, 9.3, 48.0), (32733, 14.2, -33.0), (32601, -179.9, 66.0), (3857, 100.0, 71.0)])
def test_a_footprint_holds_every_pixel_of_its_chunk(epsg, lon, lat):
    crs, affine = scene(epsg, lon, lat, 30.0)
    box = footprints(crs, affine, np.array([[0.0, 0.0, 256.0, 256.0]]))
    rows, columns = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 256, 33), np.linspace(0, 256, 33)))
    x, y = affine[0] * columns + affine[2], affine[4] * rows + affine[5]
    across, up = pyproj.Transformer.from_crs(crs, "EPSG:6933", always_xy=True).transform(x, y)
    across = across + 2 * HALF_WIDTH_M * np.round((box.x.mean() - across) / (2 * HALF_WIDTH_M))
    slack = 30.0  # a bent edge may bulge between outline points, by far less than a pixel's tenth of a buffer
    assert across.min() > box.x[0, 0] - slack
    assert across.max() < box.x[0, 1] + slack
    assert up.min() > box.y[0, 0] - slack
    assert up.max() < box.y[0, 1] + slack


def test_boxes_with_affines_of_their_own_lie_where_each_alone_does():
    crs, first = scene(32633, 14.2, 48.0)
    second = (20.0, 1.0, first[2] + 5e4, -1.0, -20.0, first[5] - 3e4, 0.0, 0.0, 1.0)
    boxes = np.array([[0, 0, 256, 256], [256, 512, 300, 700]], float)
    both = footprints(crs, np.array([first, second]), boxes)
    for i, affine in enumerate((first, second)):
        alone = footprints(crs, affine, boxes[i : i + 1])
        for name in ("centre", "x", "y"):
            np.testing.assert_array_equal(getattr(both, name)[i], getattr(alone, name)[0])


def test_the_buffer_widens_a_cell_by_a_tenth_of_its_side():
    def touched(x):
        boxes = footprints(
            pyproj.CRS.from_epsg(6933).to_wkt(), (1.0, 0.0, x, 0.0, -1.0, 15000.0, 0.0, 0.0, 1.0), np.array([[0.0, 0.0, 10.0, 10.0]])
        )
        return {int(name.split("/")[2]) - column for name in GRID.touched(boxes)[0]}

    edge = math.ceil((HALF_WIDTH_M + 100000) / GRID.width_m) * GRID.width_m - HALF_WIDTH_M
    column = round((edge + HALF_WIDTH_M) / GRID.width_m)
    assert touched(edge + 5000) == {0}
    assert touched(edge + 0.1 * GRID.width_m - 15) == {-1, 0}
    assert touched(edge + 0.1 * GRID.width_m + 5) == {0}
    assert touched(edge - 0.1 * GRID.width_m - 5) == {-1, 0}


def test_cells_far_smaller_than_the_chunks_are_reckoned_before_they_are_named():
    crs, affine = scene(32632, 9.3, 48.0, 1000.0)
    boxes = footprints(crs, affine, np.array([[0.0, 0.0, 256.0, 256.0], [0.0, 0.0, 8.0, 8.0]]))
    grid = CellGrid(cell_m=2000.0)
    assert grid.count(boxes) == pytest.approx(sum(map(len, grid.touched(boxes))), rel=0.05)
    assert CellGrid(cell_m=50.0).count(boxes) > 4_000_000


def test_chunk_boxes_cover_the_raster_in_chunk_order():
    assert chunk_boxes((300, 520), (256, 256)).tolist() == [
        [0, 0, 256, 256], [0, 256, 256, 512], [0, 512, 256, 520], [256, 0, 300, 256], [256, 256, 300, 512], [256, 512, 300, 520],
    ]  # fmt: skip


def test_the_middle_of_a_raster_is_its_longitude_and_latitude():
    crs, affine = scene(4326, 10.0, 50.0, 0.01)
    assert lon_lat(crs, affine, (100, 200)) == pytest.approx((11.0, 49.5))


def test_a_place_that_is_not_on_the_map_is_refused():
    with pytest.raises(BadSource, match="no place on the map"):
        footprints(
            pyproj.CRS.from_epsg(32632).to_wkt(),
            (10.0, 0.0, 1e30, 0.0, -10.0, 1e30, 0.0, 0.0, 1.0),
            np.array([[0.0, 0.0, 9.0, 9.0]]),
            "a.tif",
        )
