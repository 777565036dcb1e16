"""Every item of the real collection is read equal to rasterio or refused for the stated reason."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from dinodomain.errors import BadSource
from dinodomain_remote_sensing import aerial, landsat, sentinel1, sentinel2

EXPECTED = {  # folder: (domain, selection, reason of refusal or "")
    "oscd_dubai": (sentinel2, {}, ""),
    "bigearthnet_s2": (sentinel2, {}, ""),
    "bigearthnet_s1": (sentinel1, {"sar": "db"}, ""),
    "s2_ships": (sentinel2, {}, ""),
    "s2_boadella_timeseries": (sentinel2, {}, ""),
    "eurosat_ms": (sentinel2, {}, ""),
    "landsat8_ny": (landsat, {}, ""),
    "landsat7_nc": (landsat, {}, ""),
    "landsat8_overlap": (landsat, {}, ""),
    "landsat5_amazon": (landsat, {}, ""),
    "enmap_potsdam": (sentinel2, {}, "hyperspectral"),
}


@pytest.fixture(scope="module")
def collection(real_data: Path) -> Path:
    root = real_data / "sat_multispectral"
    if not root.is_dir():
        pytest.skip("no sat_multispectral")
    return root


def expectation(path: str, sensor: str):
    if "sen1floods11" in path:
        return (sentinel1, {"sar": "db"}, "") if sensor.startswith("Sentinel-1") else (sentinel2, {}, "")
    return EXPECTED[path.split("/")[1]]


def code_of(channel: str) -> str:
    return channel.removesuffix("_DN").removeprefix("TM_").removeprefix("ETM_").removeprefix("OLI_").removeprefix("TIRS_")


def band_pixels(item: Path, channel: str) -> np.ndarray:
    """The band as rasterio reads it, found by its name alone."""
    names = {code_of(channel), channel.replace("B0", "B")}
    if item.is_file():
        with rasterio.open(item) as dataset:
            return dataset.read(next(i for i, name in enumerate(dataset.descriptions, 1) if name in names))
    path = next(path for path in item.iterdir() if path.suffix.lower() == ".tif" and path.stem.rsplit("_")[-1] in names)
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_every_indexed_item_is_equal_to_rasterio_or_refused_for_its_reason(collection: Path, lab):
    seen = 0
    with open(collection / "dev" / "index.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        item = collection / row["path"]
        domain, select, reason = expectation(row["path"], row["sensor"])
        if reason:
            assert reason in lab.refusal(domain, item, **select), row["path"]
            continue
        record = lab.only(domain, item, **select)
        stored = lab.everything(record)
        for index, channel in enumerate(record.channels):
            expected = band_pixels(item, channel)
            method = str(record.fields[f"resampling.{channel}"])
            if method.startswith("replicate"):
                expected = expected.repeat(int(method[10]), 0).repeat(int(method[-1]), 1)
            if method != "bilinear":
                np.testing.assert_array_equal(stored[index], np.nan_to_num(expected), err_msg=f"{row['path']} {channel}")
        if row["date"] and "T94161" not in row["path"] and "T93" not in row["path"]:
            digits = row["date"].replace("-", "").replace(" ", "").replace(":", "").replace("T", "")[:8]
            assert record.acquired is not None, row["path"]
            assert record.acquired.replace("-", "")[:8] == digits, row["path"]
        seen += 1
    assert seen == len(rows) - 4


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
