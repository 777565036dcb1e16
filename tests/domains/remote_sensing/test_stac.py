"""STAC: items of catalogues and of searches, their statements against files and pixels."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinodomain.errors import BadSource, LeftOut, UserError
from dinodomain.types import SourceRef
from dinodomain_remote_sensing import aerial, landsat, sentinel2
from dinodomain_remote_sensing.stac import resolved

pytest.importorskip("pystac_client")

DARK, BRIGHT = (100, 4000), (1100, 5000)


class Catalogue:
    """Writes items beside rasters."""

    def __init__(self, lab) -> None:
        self.lab = lab
        lab.folder.mkdir(parents=True, exist_ok=True)

    def bands(self, names: dict[str, str], *, low: int, high: int, side: int = 40, **more: Any) -> dict[str, Any]:
        """Band files with numbers between two limits; assets by key."""
        assets = {}
        for number, (key, band) in enumerate(names.items()):
            pixels = np.random.default_rng(number).integers(low, high, (side, side)).astype("uint16")
            self.lab.write(f"item/{band}.tif", pixels, **more)
            assets[key] = {"href": f"./{band}.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}
        return assets

    def item(self, assets: dict[str, Any], name: str = "S2A_32UQU_20230603_0_L2A", **properties: Any) -> Path:
        body = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": "sentinel-2-l2a",
            "bbox": [10.3, 47.8, 10.4, 47.9],
            "geometry": {"type": "Point", "coordinates": [10.35, 47.85]},
            "properties": {"datetime": "2023-06-03T10:10:51.024000Z", "platform": "sentinel-2a", **properties},
            "links": [],
            "assets": assets,
        }
        path = self.lab.folder / "item" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body))
        return path


@pytest.fixture
def catalogue(lab) -> Catalogue:
    return Catalogue(lab)


def raster(assets: dict[str, Any], **numbers: float) -> dict[str, Any]:
    return {key: {**asset, "raster:bands": [{"nodata": 0, "data_type": "uint16", **numbers}]} for key, asset in assets.items()}


EARTH = {"blue": "B02", "red": "B04", "swir22": "B12"}


def test_an_item_gives_bands_reflectance_and_properties(lab, catalogue):
    assets = raster(catalogue.bands(EARTH, low=1050, high=5000), scale=0.0001, offset=-0.1)
    properties = {"s2:processing_baseline": "05.09", "eo:cloud_cover": 12.5, "view:sun_elevation": 60.25, "sat:orbit_state": "descending"}
    assets["thumbnail"] = {"href": "./preview.tif", "roles": ["thumbnail"]}
    path = catalogue.item(assets, **properties)
    (ref,) = lab.found(sentinel2, path)
    assert ref.source_id == "sentinel-2-l2a/S2A_32UQU_20230603_0_L2A"
    assert ref.facts["cloud_cover_percent"] == 12.5
    assert ref.quantity == "L2A reflectance"
    record = sentinel2.read(ref)
    assert record.channels == ("B02", "B04", "B12")
    assert record.acquired == "2023-06-03T10:10:51"
    assert record.scale == (0.0001,) * 3
    assert record.offset == (-0.1,) * 3
    expected = {
        "platform": "Sentinel-2A", "processing_baseline": "05.09", "orbit_direction": "DESCENDING", "sun_elevation_deg": 60.25,
        "level": "L2A", "stac_item": "S2A_32UQU_20230603_0_L2A", "stac_collection": "sentinel-2-l2a", "bands_from": "catalogue",
    }  # fmt: skip
    assert {name: record.fields[name] for name in expected} == expected
    for index, band in enumerate(EARTH.values()):
        np.testing.assert_array_equal(lab.everything(record)[index], read(lab.folder / f"item/{band}.tif"))


def read(path: Path) -> np.ndarray:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize(
    ("numbers", "properties", "limits", "offset"),
    [
        ({"scale": 0.0001, "offset": -0.1}, {"s2:processing_baseline": "04.00"}, BRIGHT, -0.1),
        ({"scale": 0.0001, "offset": 0}, {"s2:processing_baseline": "03.01"}, DARK, 0.0),
        ({"scale": 0.0001, "offset": 0}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, DARK, 0.0),
        ({"scale": 0.0001}, {"s2:processing_baseline": "05.09"}, BRIGHT, -0.1),
        ({"scale": 0.0001}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, BRIGHT, -0.1),
        ({}, {"s2:processing_baseline": "05.09"}, BRIGHT, -0.1),
        ({}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, DARK, 0.0),
        ({}, {"s2:processing_baseline": "02.14"}, DARK, 0.0),
        # Two statements disagree, and the pixels settle it.
        ({"scale": 0.0001, "offset": -0.1}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, DARK, 0.0),
        ({"scale": 0.0001, "offset": 0}, {"s2:processing_baseline": "05.09"}, DARK, 0.0),
    ],
)
def test_statements_about_the_offset_are_believed_where_pixels_allow(lab, catalogue, numbers, properties, limits, offset):
    low, high = limits
    path = catalogue.item(raster(catalogue.bands(EARTH, low=low, high=high), **numbers), **properties)
    record = lab.only(sentinel2, path)
    assert record.offset == (offset,) * 3
    assert record.scale == (0.0001,) * 3


@pytest.mark.parametrize(
    ("numbers", "properties", "limits", "words"),
    [
        (
            {"scale": 0.0001, "offset": -0.1},
            {"s2:processing_baseline": "05.09"},
            DARK,
            "says that numbers are shifted by 1000, the pixels are not",
        ),
        ({}, {"s2:processing_baseline": "05.09"}, DARK, "says that numbers are shifted by 1000, the pixels are not"),
        (
            {"scale": 0.0001, "offset": -0.1},
            {"earthsearch:boa_offset_applied": True},
            BRIGHT,
            "says raster:bands offset -0.1 but earthsearch:boa_offset_applied true; the pixels do not tell",
        ),
        ({"scale": 0.0001, "offset": 0}, {"s2:processing_baseline": "05.09"}, BRIGHT, "offset 0 but processing baseline 05.09"),
    ],
)
def test_an_item_that_contradicts_its_pixels_or_itself_is_refused_with_the_reason(lab, catalogue, numbers, properties, limits, words):
    low, high = limits
    path = catalogue.item(raster(catalogue.bands(EARTH, low=low, high=high), **numbers), **properties)
    assert words in lab.refusal(sentinel2, path)


def test_what_pixels_cannot_tell_is_a_warning(lab, catalogue):
    path = catalogue.item(
        raster(catalogue.bands(EARTH, low=1100, high=5000), scale=0.0001, offset=0), **{"s2:processing_baseline": "03.01"}
    )
    (warning,) = lab.only(sentinel2, path).warnings
    assert "as if an offset of 1000 were still in; a scene of desert, snow or cloud looks the same" in warning


def test_a_settled_contradiction_is_a_warning_and_an_overview_is_looked_at(lab, catalogue):
    rasterio = pytest.importorskip("rasterio")
    assets = raster(catalogue.bands({"B02": "B02"}, low=100, high=4000, side=1100, tiled=True), scale=0.0001, offset=-0.1)
    with rasterio.open(lab.folder / "item/B02.tif", "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    path = catalogue.item(assets, **{"earthsearch:boa_offset_applied": True})
    record = lab.only(sentinel2, path)
    assert "show that no offset is left" in record.warnings[0]
    np.testing.assert_array_equal(lab.everything(record)[0], read(lab.folder / "item/B02.tif"))  # full resolution


def test_a_file_and_its_item_must_say_the_same(lab, catalogue):
    assets = catalogue.bands({"blue": "B02"}, low=1100, high=5000, per_band={"scales": (0.0001,), "offsets": (0.0,)})
    path = catalogue.item(raster(assets, scale=0.0001, offset=-0.1))
    assert "scale and offset 0.0001, 0 in the file, 0.0001, -0.1 in its item" in lab.refusal(sentinel2, path)


def test_choices_are_made_from_the_item_before_a_file_is_opened(lab, catalogue):
    assets = {"blue": {"href": "./nowhere_B02.tif", "type": "image/tiff"}}
    path = catalogue.item(assets, **{"eo:cloud_cover": 71})
    for select, words in (
        ({"max_cloud": 20.0}, "ingest.max_cloud=20 (has 71)"),
        ({"dates": "2024-01-01/.."}, "ingest.dates=2024-01-01/.. (is of 2023-06-03)"),
        ({"aoi": "0,0,1,1"}, "ingest.aoi=0,0,1,1 (lies elsewhere)"),
    ):
        (row,) = lab.found(sentinel2, path, **select)
        assert isinstance(row, LeftOut)
        assert row.reason == f"left out by {words}"
    (row,) = lab.found(sentinel2, path)
    assert not isinstance(row, LeftOut)
    assert "not a readable raster" in row.reason


def test_of_a_band_in_two_formats_the_geotiff_is_taken_and_bands_may_be_chosen(lab, catalogue):
    assets = raster(catalogue.bands(EARTH, low=1100, high=5000), scale=0.0001, offset=-0.1)
    assets["blue-jp2"] = {"href": "./B02.jp2", "type": "image/jp2"}
    path = catalogue.item(assets)
    (ref,) = lab.found(sentinel2, path, bands=("B04", "B02"))
    assert sorted(uri.rpartition("/")[2] for uri in ref.uris) == ["B02.tif", "B04.tif"]
    assert sentinel2.read(ref).channels == ("B04", "B02")
    assert lab.found(sentinel2, path, exclude=("**/*.tif",)) != []
    assert lab.found(sentinel2, path, exclude=("sentinel-2-l2a/S2A*",)) == []


def test_stac_1_1_has_one_list_of_bands(lab, catalogue):
    assets = catalogue.bands({"data": "x_2023"}, low=1100, high=5000)
    assets["data"] |= {"raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0, "bands": [{"name": "B8A", "eo:common_name": "nir08"}]}
    record = lab.only(sentinel2, catalogue.item(assets))
    assert record.channels == ("B8A",)
    assert (record.scale, record.offset) == ((0.0001,), (-0.1,))


def test_a_stack_of_aerial_bands_is_named_by_common_names(lab, catalogue):
    lab.write("item/ortho.tif", lab.counts(4, 20, 20, dtype="uint8"), gsd=1.0)
    bands = [{"name": name, "common_name": name} for name in ("nir", "red", "green", "blue")]
    path = catalogue.item({"image": {"href": "./ortho.tif", "type": "image/tiff", "eo:bands": bands}}, name="m_3008501")
    record = lab.only(aerial, path)
    assert record.channels == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(lab.everything(record)[3], read(lab.folder / "item/ortho.tif"))


def test_landsat_items_are_calibrated_by_their_raster_bands(lab, catalogue):
    assets = {}
    for key, band in (("green", "SR_B3"), ("nir08", "SR_B5")):
        lab.write(f"item/LC08_L2SP_193026_20230603_20230607_02_T1_{band}.TIF", lab.counts(8, 8, first=8000), gsd=30)
        assets[key] = {
            "href": f"LC08_L2SP_193026_20230603_20230607_02_T1_{band}.TIF",
            "type": "image/vnd.stac.geotiff; cloud-optimized=true",
        }
    name = "LC08_L2SP_193026_20230603_02_T1"
    path = catalogue.item(
        raster(assets, scale=2.75e-5, offset=-0.2), name=name, platform="landsat-8", **{"landsat:correction": "L2SP", "eo:cloud_cover": 3}
    )
    record = lab.only(landsat, path)
    assert record.channels == ("OLI_B3", "OLI_B5")
    assert (record.scale, record.offset) == ((2.75e-5,) * 2, (-0.2,) * 2)
    assert record.fields["platform"] == "Landsat-8"
    assert record.fields["cloud_cover_percent"] == 3.0


def test_a_static_catalogue_is_walked_once_and_a_broken_link_is_a_row(lab, catalogue):
    assets = raster(catalogue.bands(EARTH, low=1100, high=5000), scale=0.0001, offset=-0.1)
    catalogue.item(assets, name="a")
    catalogue.item(assets, name="b")
    top = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "top",
        "description": "",
        "links": [{"rel": "child", "href": "./item/collection.json"}],
    }
    links = [{"rel": "root", "href": "../catalog.json"}, *({"rel": "item", "href": f"./{name}.json"} for name in ("a", "b", "gone"))]
    collection = {"type": "Collection", "stac_version": "1.0.0", "id": "c", "links": [*links, {"rel": "child", "href": "../catalog.json"}]}
    (lab.folder / "catalog.json").write_text(json.dumps(top))
    (lab.folder / "item" / "collection.json").write_text(json.dumps(collection))
    rows = lab.found(sentinel2, lab.folder / "catalog.json")
    assert [row.source_id for row in rows[:2]] == ["sentinel-2-l2a/a", "sentinel-2-l2a/b"]
    (broken,) = rows[2:]
    assert isinstance(broken, BadSource)
    assert broken.uri.endswith("gone.json")
    assert len(lab.found(sentinel2, f"stac:{lab.folder / 'catalog.json'}")) == 3


def test_a_changed_statement_changes_the_digest(lab, catalogue):
    assets = catalogue.bands(EARTH, low=1100, high=5000)
    digests = []
    for baseline in ("04.00", "05.09", "05.09"):
        (ref,) = lab.found(sentinel2, catalogue.item(raster(assets, scale=0.0001, offset=-0.1), **{"s2:processing_baseline": baseline}))
        digests.append(ref.digest)
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.parametrize(
    ("base", "href", "expected"),
    [
        ("/a/b/item.json", "./x.tif", "/a/b/x.tif"),
        ("/a/b/item.json", "/data/x.tif", "/data/x.tif"),
        ("/a/b/item.json", "file:///data/x.tif", "/data/x.tif"),
        ("https://h/a/item.json", "../x.tif?sig=1", "https://h/x.tif?sig=1"),
        ("https://h/a/item.json", "/etc/passwd", "https://h/etc/passwd"),
        ("s3://b/a/item.json", "../x.tif", "s3://b/x.tif"),
        ("s3://b/a/item.json", "/x.tif", "s3://b/x.tif"),
        ("s3://b/a/item.json", "https://h/x.tif", "https://h/x.tif"),
    ],
)
def test_links_begin_where_the_item_lies(base, href, expected):
    assert resolved(base, href) == expected


def test_a_catalogue_on_a_server_may_not_point_into_this_machine():
    with pytest.raises(BadSource, match="points to a file of this machine"):
        resolved("https://h/item.json", "file:///etc/passwd")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is no JSON"), ("[1]", "is no STAC catalogue"), ('{"type": "Polygon"}', "is no STAC catalogue")],
)
def test_what_is_no_catalogue_is_refused(lab, catalogue, text, words):
    path = lab.folder / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        lab.found(sentinel2, path)


def test_items_without_a_band_of_the_sensor_are_rows(lab, catalogue):
    path = catalogue.item({"data": {"href": "./x.csv", "type": "text/csv"}})
    assert "has no band of Sentinel-2 (assets: data)" in lab.refusal(sentinel2, path)


class Api:
    """A STAC API of two pages on loopback."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items, self.asked, self.failures = items, [], 0
        self.more = ["https://api.stacspec.org/v1.0.0/item-search#query"]
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.reply(api.landing())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.asked.append(body)
                if api.failures:
                    api.failures -= 1
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.reply(api.page(body))

            def reply(self, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def landing(self) -> dict[str, Any]:
        links = [
            {"rel": rel, "href": f"{self.url}{path}", "type": "application/json", "method": "POST"}
            for rel, path in (("self", ""), ("root", ""))
        ]
        links += [{"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "POST"}]
        conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search", *self.more]
        return {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "x", "conformsTo": conforms, "links": links}

    def page(self, body: dict[str, Any]) -> dict[str, Any]:
        number = int(body.get("token", 0))
        last = number + 1 >= len(self.items)
        link = {"rel": "next", "href": f"{self.url}/search", "method": "POST", "merge": True, "body": {"token": number + 1}}
        return {"type": "FeatureCollection", "features": self.items[number : number + 1], "links": [] if last else [link]}


@pytest.fixture
def api(lab, catalogue) -> Iterator[Api]:
    assets = raster(catalogue.bands(EARTH, low=1100, high=5000), scale=0.0001, offset=-0.1)
    bodies = []
    for name in ("b", "a"):
        body = json.loads(catalogue.item(assets, name=name).read_text())
        for asset in body["assets"].values():
            asset["href"] = str(lab.folder / "item" / asset["href"])
        bodies.append(body)
    made = Api(bodies)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
def test_a_search_is_paged_through_and_survives_a_busy_server(lab, api, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    for body in api.items:
        for asset in body["assets"].values():
            asset["href"] = f"file://{asset['href']}"
    api.failures = 2
    rows = lab.found(
        sentinel2, f"stac:{api.url}?collections=sentinel-2-l2a&bbox=10,47,11,48&query=eo:cloud_cover<20&limit=1", dates="2023-01-01/.."
    )
    assert all(isinstance(row, BadSource) for row in rows)  # a server names files of this machine
    assert len(rows) == 2
    asked = api.asked[-1]
    assert asked["collections"] == ["sentinel-2-l2a"]
    assert asked["bbox"] == [10, 47, 11, 48]
    assert asked["datetime"].startswith("2023-01-01T00:00:00Z/..")
    api.more = []
    with pytest.raises(UserError, match="knows no 'query'"):
        lab.found(sentinel2, f"stac:{api.url}?collections=sentinel-2-l2a&query=eo:cloud_cover<20")
    assert asked["query"] == {"eo:cloud_cover": {"lt": 20}}


@pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
def test_assets_of_a_search_are_read_from_a_server(lab, api, server):
    server.make("stac")
    server.upload(lab.folder / "item", "stac", "x")
    for body in api.items:
        for asset in body["assets"].values():
            asset["href"] = f"{server.url}/stac/x/{asset['href'].rpartition('/')[2]}?X-Amz-Signature=planted"
    refs = lab.found(sentinel2, f"stac:{api.url}?collections=sentinel-2-l2a")
    assert [ref.source_id for ref in refs] == ["sentinel-2-l2a/a", "sentinel-2-l2a/b"]
    assert all(isinstance(ref, SourceRef) for ref in refs)
    assert "planted" not in repr(refs)
    record = sentinel2.read(refs[0])
    np.testing.assert_array_equal(lab.everything(record)[0], read(lab.folder / "item/B02.tif"))


@pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
def test_a_catalogue_in_a_bucket_is_read_there(lab, catalogue, server):
    assets = raster(catalogue.bands(EARTH, low=1100, high=5000), scale=0.0001, offset=-0.1)
    catalogue.item(assets, name="a")
    server.make("static")
    server.upload(lab.folder / "item", "static", "x")
    (ref,) = lab.found(sentinel2, "s3://static/x/a.json")
    assert ref.uris[0] == "s3://static/x/B02.tif"
    np.testing.assert_array_equal(lab.everything(sentinel2.read(ref))[0], read(lab.folder / "item/B02.tif"))


@pytest.mark.parametrize(
    ("query", "words"),
    [("colections=x", "did you mean 'collections'"), ("bbox=1,2", "cannot be read"), ("limit=many", "cannot be read")],
)
def test_a_search_that_cannot_be_is_the_users_error(lab, query, words):
    with pytest.raises(UserError, match=words):
        lab.found(sentinel2, f"stac:https://h.example/v1?{query}")


@pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
def test_a_server_that_is_no_api_is_one_clear_error(lab, server, monkeypatch):
    with pytest.raises(UserError, match="does not answer as one"):
        lab.found(sentinel2, f"stac:{server.s3}/nothing?collections=x")
