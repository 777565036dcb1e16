"""Area, dates and cloud cover: which scenes are taken, and which part of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dinodomain.errors import LeftOut, UserError
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.store import open_store
from dinodomain.types import USER_MASK, SourceRef
from dinodomain_remote_sensing import aerial, sentinel1, sentinel2
from dinodomain_remote_sensing.geometry import Grid
from dinodomain_remote_sensing.place import area, cut

rasterio = pytest.importorskip("rasterio")
pyproj = pytest.importorskip("pyproj")
shapely = pytest.importorskip("shapely")

B2 = {"descriptions": ("B02",)}
ORIGIN = (600000.0, 5300040.0)
UTM = "EPSG:32632"


def degrees(x: float, y: float, crs: str = UTM) -> tuple[float, float]:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)


def geojson(lab, shape, name: str = "aoi.geojson", **more: object) -> str:
    path = lab.folder.parent / name
    path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(shape)), **more}))
    return str(path)


def test_pixels_of_a_cut_scene_are_those_of_the_whole_and_lie_where_they_did(lab):
    full = lab.counts(120, 100)
    lab.write("a.tif", full, per_band=B2)
    west, south = degrees(ORIGIN[0] + 300, ORIGIN[1] - 800)
    east, north = degrees(ORIGIN[0] + 600, ORIGIN[1] - 400)
    record = lab.only(sentinel2, aoi=f"{west},{south},{east},{north}")
    rows, columns = record.shape[1:]
    left, top = (round((record.affine[2] - ORIGIN[0]) / 10), round((ORIGIN[1] - record.affine[5]) / 10))
    # The box is slanted in metres: its bounding box is a little larger than the two corners tell.
    assert (abs(left - 30) <= 1, abs(top - 40) <= 1, 30 <= columns <= 32, 40 <= rows <= 42) == (True,) * 4
    np.testing.assert_array_equal(lab.everything(record)[0], full[top : top + rows, left : left + columns])
    assert any(
        stage == f"cut to ingest.aoi: rows {top}:{top + rows}, columns {left}:{left + columns} of 120x100" for stage in record.stages
    )


def test_pixels_outside_the_polygon_carry_the_users_bit_as_rasterio_masks_them(lab):
    features = pytest.importorskip("rasterio.features")
    lab.write("a.tif", lab.counts(80, 90), per_band=B2)
    corners = [(600100, 5299900), (600750, 5299800), (600400, 5299300)]
    shape = shapely.Polygon([degrees(*corner) for corner in corners])
    record = lab.only(sentinel2, aoi=geojson(lab, shape))
    affine = rasterio.Affine(*record.affine[:6])
    # Over 700 m an edge that is straight in degrees is straight in metres to a millimetre.
    expected = features.geometry_mask([shapely.Polygon(corners)], record.shape[1:], affine)
    found = lab.invalid(record)
    assert set(np.unique(found)) == {0, USER_MASK}
    assert np.count_nonzero((found != 0) != expected) <= 2
    top, left = slice(3, 30), slice(5, 40)
    np.testing.assert_array_equal(record.read_valid((top, left)), found[top, left])


def test_a_cut_snaps_to_whole_pixels_of_the_coarsest_band(lab):
    for band, gsd, side in (("B02", 10, 120), ("B05", 20, 60), ("B01", 60, 20)):
        lab.write(f"s/T32VPH_20200113T103641_{band}.tif", lab.counts(side, side), gsd=gsd)
    west, south = degrees(ORIGIN[0] + 250, ORIGIN[1] - 800)
    east, north = degrees(ORIGIN[0] + 610, ORIGIN[1] - 410)
    whole = lab.everything(lab.only(sentinel2))
    record = lab.only(sentinel2, aoi=f"{west},{south},{east},{north}")
    left, top = round((record.affine[2] - ORIGIN[0]) / 10), round((ORIGIN[1] - record.affine[5]) / 10)
    assert [left % 6, top % 6, record.shape[1] % 6, record.shape[2] % 6] == [0, 0, 0, 0]
    np.testing.assert_array_equal(lab.everything(record), whole[:, top : top + record.shape[1], left : left + record.shape[2]])


def test_a_scene_elsewhere_is_left_out_and_one_inside_is_whole(lab):
    lab.write("a.tif", lab.counts(20, 20), per_band=B2)
    (row,) = lab.found(sentinel2, aoi="0,0,1,1")
    assert isinstance(row, LeftOut)
    assert row.reason == "left out by ingest.aoi=0,0,1,1 (lies elsewhere)"
    record = lab.only(sentinel2, aoi="10,47,11,49")
    assert record.shape == (1, 20, 20)
    assert not any("aoi" in stage for stage in record.stages)
    assert lab.found(sentinel2, aoi="10,47,11,49")[0].facts["height"] == 20


def test_a_picture_without_a_place_is_in_no_area(lab):
    image = pytest.importorskip("PIL.Image")
    lab.folder.mkdir(parents=True)
    image.fromarray(lab.counts(16, 16, 3, dtype="uint8")).save(lab.folder / "p.png")
    (row,) = lab.found(aerial, aoi="0,0,1,1")
    assert isinstance(row, LeftOut)
    assert "a picture without a place" in row.reason


@pytest.mark.parametrize(("crs", "x"), [("EPSG:32601", 130000.0), ("EPSG:32660", 770000.0), ("EPSG:4326", 179.5), ("EPSG:4326", -180.5)])
def test_an_area_across_the_antimeridian_meets_scenes_on_either_side(crs, x):
    gsd, y = (0.01, 10.5) if crs == "EPSG:4326" else (1000.0, 1100000.0)
    grid = Grid(transform=(gsd, 0.0, x, 0.0, -gsd, y), height=100, width=100)
    wkt = pyproj.CRS(crs).to_wkt()
    part = cut("a.tif", wkt, grid, "179.8,9.8,-179.8,10.2", 1)
    assert part is not None
    assert 0 < part.grid.width < 100
    assert cut("a.tif", wkt, grid, "170,9.8,175,10.2", 1) is None
    assert shapely.equals(
        area("179.8,9.8,-179.8,10.2"), shapely.union_all([shapely.box(179.8, 9.8, 180, 10.2), shapely.box(-180, 9.8, -179.8, 10.2)])
    )


def test_a_file_that_runs_on_beyond_180_degrees_comes_back_on_the_other_side(lab):
    lab.folder.mkdir(parents=True)
    shape = area(geojson(lab, shapely.box(179, 0, 181, 1)))
    assert shape.equals(shapely.union_all([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)]))


def test_a_scene_around_the_pole_meets_an_area_at_any_longitude():
    grid = Grid(transform=(1000.0, 0.0, -500000.0, 0.0, -1000.0, 500000.0), height=1000, width=1000)
    wkt = pyproj.CRS("EPSG:3413").to_wkt()
    for west in (-170, -45, 0, 100):
        part = cut("a.tif", wkt, grid, f"{west},86.5,{west + 2},88", 1)
        assert part is not None
        # 1.5 degrees of latitude are 167 km, 2 of longitude there at most 14 km.
        assert 100 < np.hypot(part.grid.height, part.grid.width) < 200
    assert cut("a.tif", wkt, grid, "0,60,2,70", 1) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("48,110,49,120", "latitude comes second: exchange the two"),
        ("1,2,3", "is no box and no file"),
        ("1,5,2,5", "is not below north"),
        ("1,5,1,6", "has no width"),
        ("55.2,25,55.1,26", "359.9 degrees wide; exchange the two"),
        ("600000,5300000,600100,5300100", "convert it to degrees"),
        ("190,0,191,1", "between -180 and 180"),
    ],
)
def test_boxes_that_are_none_are_refused_with_a_hint(text, words):
    with pytest.raises(UserError, match=words):
        area(text)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "is no GeoJSON object"),
        ('{"type": "Point", "coordinates": [1, 2]}', "holds a Point"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        ('{"type": "Polygon", "coordinates": [[[0,0],[1,1],[1,0],[0,1],[0,0]]]}', "Self-intersection"),
        ('{"type": "Polygon", "coordinates": [[[0,0],[1]]]}', "cannot be read"),
        ('{"type": "Polygon", "coordinates": [[[48,120],[49,120],[49,121],[48,120]]]}', "exchange the two"),
        (
            '{"type": "Polygon", "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::25832"}}, "coordinates": []}',
            "EPSG::25832",
        ),
    ],
)
def test_geojson_that_is_no_area_in_degrees_is_refused_with_its_reason(tmp_path, body, words):
    path = tmp_path / "a.geojson"
    path.write_text(body)
    with pytest.raises(UserError, match=words):
        area(str(path))


def test_collections_and_old_degree_systems_are_read(tmp_path):
    boxes = [json.loads(shapely.to_geojson(shapely.box(x, 0, x + 1, 1))) for x in (0, 5)]
    body = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
        "features": [{"type": "Feature", "geometry": box} for box in boxes] + [{"type": "Feature", "geometry": None}],
    }
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(body))
    assert area(str(path)).area == pytest.approx(2.0)


def test_a_store_of_an_area_holds_the_cut_and_its_mask(lab, tmp_path):
    lab.write("a.tif", lab.counts(400, 400), per_band=B2)
    lab.write("far.tif", lab.counts(400, 400), per_band=B2, transform=rasterio.Affine(10, 0, 300000, 0, -10, 5000000))
    corners = [degrees(600500, 5299500), degrees(603500, 5299500), degrees(603500, 5296500)]
    plan = {"domain": "sentinel2", "source": str(lab.folder), "store": str(tmp_path / "s"), "workers": 0, "audit_holdout": 0.0}
    ingest(IngestPlan(**plan, aoi=geojson(lab, shapely.Polygon(corners))), domain=sentinel2)
    store = open_store(tmp_path / "s")
    assert store.column("source_id").tolist() == ["a.tif"]
    assert 290 < store.row(0)["shape"][1] < 310
    (row,) = store.manifest["skipped"]
    assert row["kind"] == "left out"
    valid = float(np.sum(store.chunks["valid_fraction"].to_numpy())) * 256**2
    assert valid == pytest.approx(300 * 300 / 2, rel=0.02)


def test_dates_and_cloud_cover_leave_out_what_is_not_stated_too(lab):
    for name, cloud in (("a_2020-01-31", "12.5"), ("b_2020-02-01", "80"), ("c_2020-02-02", None), ("d", "1")):
        tags = {} if cloud is None else {"CLOUD_COVERAGE_ASSESSMENT": cloud}
        lab.write(f"{name}.tif", lab.counts(4, 4), per_band=B2, tags=tags)

    def taken(**select: object) -> dict[str, str]:
        rows = lab.found(sentinel2, **select)
        assert all(isinstance(row, SourceRef | LeftOut) for row in rows)
        return {
            row.source_id[0] if isinstance(row, SourceRef) else row.uri.rpartition("/")[2][0]: getattr(row, "reason", "") for row in rows
        }

    assert taken(dates="2020-02-01/..") == {
        "a": "left out by ingest.dates=2020-02-01/.. (is of 2020-01-31)",
        "b": "",
        "c": "",
        "d": "left out by ingest.dates=2020-02-01/.. (date not stated)",
    }
    assert [name for name, why in taken(dates="../2020-02-01").items() if not why] == ["a", "b"]
    assert taken(max_cloud=20.0) == {
        "a": "",
        "b": "left out by ingest.max_cloud=20 (has 80)",
        "c": "left out by ingest.max_cloud=20 (cloud cover not stated)",
        "d": "",
    }


def test_cloud_cover_of_a_radar_is_the_users_error(lab):
    lab.write("a.tif", np.full((2, 2), -10, "float32"), per_band={"descriptions": ("VV",)})
    with pytest.raises(UserError, match="Sentinel-1 products state no cloud cover"):
        lab.found(sentinel1, max_cloud=5.0, sar="db")
