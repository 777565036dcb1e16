"""Every item of the real collection is read equal to rasterio or refused for the stated reason."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
from PIL import Image

from dinodomain.errors import BadSource
from dinodomain.types import CLOUD
from dinodomain_remote_sensing import aerial, hyperspectral, landsat, sentinel1, sentinel2


@pytest.fixture(scope="module")
def collection(real_data: Path) -> Path:
    root = real_data / "sat_multispectral"
    if not root.is_dir():
        pytest.skip("no sat_multispectral")
    return root


@pytest.fixture(scope="module")
def items() -> ModuleType:
    """The benchmark that makes the table of items."""
    spec = importlib.util.spec_from_file_location("items", Path(__file__).parents[3] / "benchmarks" / "items.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_indexed_item_equals_rasterio_in_place_and_values(collection: Path, items):
    rows = items.satellite_rows(collection.parent)
    with open(collection / "dev" / "index.csv", newline="") as table:
        assert len(rows) == sum(1 for _ in csv.DictReader(table)) == 90
    wrong = [row for row in rows if not row["right"]]
    assert not wrong, items.as_markdown(wrong)
    assert {row["outcome"] for row in rows} == {"ingested"}


def test_every_indexed_date_is_found(collection: Path, lab):
    domains = {"Sen": sentinel2, "Lan": landsat, "EnM": hyperspectral}
    with open(collection / "dev" / "index.csv", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["date"] and "Sentinel-1" not in row["sensor"]]
    for row in rows:
        if "T94161" in row["path"] or "T93" in row["path"]:
            continue  # the collection dropped a digit of the time
        (ref,) = lab.found(domains[row["sensor"][:3]], collection / row["path"])
        if row["sensor"].startswith("EnMAP"):
            continue  # its tiles name no date
        digits = row["date"].translate(str.maketrans("", "", "- :T"))[:8]
        assert str(ref.facts["acquired"]).replace("-", "")[:8] == digits, row["path"]


def test_facts_place_every_scene_where_the_index_says(collection: Path, lab):
    with open(collection / "dev" / "index.csv", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["lon"] and row["sensor"].startswith("Sentinel-2")]
    for row in rows[::5]:
        (ref,) = lab.found(sentinel2, collection / row["path"])
        assert (ref.facts["lon"], ref.facts["lat"]) == pytest.approx((float(row["lon"]), float(row["lat"])), abs=2e-3), row["path"]


def test_a_hyperspectral_cube_is_no_multispectral_scene(collection: Path, lab):
    assert "domain=hyperspectral" in lab.refusal(sentinel2, collection / "dev" / "enmap_potsdam" / "enmap_potsdam_tile_64_0.tif")


def test_quality_of_new_york_marks_its_clouds(collection: Path, lab):
    scene = "LC08_L1TP_013032_20180131_20180207_01_T1"
    record = lab.only(landsat, collection / "dev" / "landsat8_ny" / scene)
    with rasterio.open(collection / "dev" / "landsat8_ny" / scene / "LC08_L1TP_013032_20180131_BQA.TIF") as dataset:
        quality = dataset.read(1)
    cloudy = ((quality >> 4) & 1 == 1) | ((quality >> 11) & 3 == 3)
    share = (lab.invalid(record) & CLOUD > 0).mean()
    assert share == pytest.approx(cloudy.mean(), abs=0.01)
    assert share > 0.01


def test_the_three_grids_of_dubai_come_to_the_finest(collection: Path, lab):
    record = lab.only(sentinel2, collection / "dev" / "oscd_dubai" / "date1")
    assert record.shape == (13, 384, 384)
    assert record.fields["resampling.B05"] == "replicate 2x2"
    assert record.fields["resampling.B01"] == "bilinear"  # its georeference says 5.98 x 6
    assert record.spacing == pytest.approx((10.51, 9.56), abs=0.02)


def test_every_date_of_the_reservoir_is_a_source_and_its_water_masks_are_not(collection: Path, lab):
    rows = lab.found(sentinel2, collection / "dev" / "s2_boadella_timeseries")
    refs = [row for row in rows if not isinstance(row, BadSource)]
    assert [sentinel2.read(ref).acquired for ref in refs] == ["2020-01-13", "2020-01-18", "2020-02-02", "2020-06-21"]
    assert all("label raster" in str(row) for row in rows if isinstance(row, BadSource))
    assert len(rows) == 7


def test_new_york_has_fourteen_scenes_of_eleven_bands_without_quality(collection: Path, lab):
    refs = lab.found(landsat, collection / "dev" / "landsat8_ny")
    assert len(refs) == 14
    record = landsat.read(refs[0])
    assert len(record.channels) == 11
    assert record.channels[0] == "OLI_B1_DN"
    assert record.fields["platform"] == "Landsat-8"


def test_the_frame_around_carolina_is_invalid(collection: Path, lab):
    record = lab.only(landsat, collection / "dev" / "landsat7_nc" / "lsat7_2000_6band.tif")
    missing = lab.invalid(record)
    np.testing.assert_array_equal(missing == 1, (lab.everything(record) == 0).any(0))
    assert 0.35 < missing.mean() < 0.40
    assert record.spacing == (28.5, 28.5)


def test_aerial_pictures_of_merced_are_whole(real_data: Path, lab):
    root = real_data / "ucmerced_rgb128" / "dev" / "beach"
    refs = lab.found(aerial, root)
    assert len(refs) > 50
    record = aerial.read(refs[0])
    assert (record.shape, record.layout) == ((3, 128, 128), "whole")
    with Image.open(refs[0].uris[0]) as image:
        difference = lab.everything(record).transpose(1, 2, 0).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).max() <= 8  # two decoders that enlarge subsampled colour differently


def test_radar_patches_ask_what_they_hold(collection: Path, lab):
    assert all("ingest.sar=db" in str(row) for row in lab.found(sentinel1, collection / "dev" / "bigearthnet_s1"))
