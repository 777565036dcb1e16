"""torchgeo's raster datasets on disk: its files and names, our pixels."""

from __future__ import annotations

import numpy as np
import pytest

from dinodomain.errors import MissingExtra, UserError
from dinodomain_remote_sensing import aerial, landsat, sentinel2, torchgeo_source

datasets = pytest.importorskip("torchgeo.datasets")


def test_files_and_band_names_of_a_dataset_are_read_by_our_reader(lab):
    pixels = lab.counts(4, 30, 40, dtype="uint8")
    lab.write("a/m_3807511_ne_18_060_20181104.tif", pixels, gsd=0.6)
    lab.write("a/other.tif", pixels, gsd=0.6)  # no file of the dataset
    (ref,) = lab.found(aerial, f"torchgeo:NAIP?root={lab.folder}")
    assert ref.source_id == "a/m_3807511_ne_18_060_20181104.tif"
    record = aerial.read(ref)
    assert record.channels == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(lab.everything(record), pixels)
    assert record.acquired == "2018-11-04"


def test_a_dataset_of_band_files_makes_scenes_in_their_own_resolution(lab):
    for band, gsd, side in (("B02", 10, 60), ("B05", 20, 30), ("B01", 60, 10)):
        lab.write(f"T32VPH_20200113T103641_{band}.tif", lab.counts(side, side), gsd=gsd)
    lab.write("readme_B03.tif", lab.counts(60, 60))
    source = f"torchgeo:Sentinel2?root={lab.folder}&bands=B02,B05"
    record = lab.only(sentinel2, source)
    folder = lab.only(sentinel2, include=("T32*B02*", "T32*B05*"))
    assert record.channels == ("B02", "B05") == folder.channels
    np.testing.assert_array_equal(lab.everything(record), lab.everything(folder))
    *_, lost = lab.found(sentinel2, source.replace("B05", "B05,B06"))
    assert "a band file that torchgeo's Sentinel2 expects is not there" in str(lost)


def test_landsat_of_torchgeo_is_ours_too(lab):
    for band in (1, 2, 3, 4, 5, 6, 7):
        lab.write(f"LC08_L2SP_023032_20230620_20230630_02_T1_SR_B{band}.TIF", lab.counts(20, 20, first=7000), gsd=30)
    (lab.folder / "LC08_L2SP_023032_20230620_20230630_02_T1_MTL.txt").write_text("")
    refs = lab.found(landsat, f"torchgeo:Landsat8?root={lab.folder}&bands=SR_B2,SR_B3")
    assert len(refs) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EuroSAT", "has no georeference of its own"),
        ("Sentinel3", "did you mean 'Sentinel"),
        ("os", "torchgeo has no raster dataset 'os'"),
        ("__import__", "torchgeo has no raster dataset"),
        ("RasterDataset", "torchgeo has no raster dataset"),
        ("CDL", "holds masks; labels never enter a store"),
    ],
)
def test_what_is_no_raster_dataset_of_images_is_refused(lab, name, words):
    lab.folder.mkdir(parents=True)
    with pytest.raises(UserError, match=words):
        lab.found(sentinel2, f"torchgeo:{name}?root={lab.folder}")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("root=/nowhere/at/all", "names no folder that exists"),
        ("", "names no folder that exists"),
        ("root={root}", "holds no file of torchgeo's Sentinel2"),
        ("root={root}&bandz=B02", "did you mean 'bands'"),
        ("root={root}&download=true", "has no 'download'"),
    ],
)
def test_arguments_that_cannot_be_are_the_users_error(lab, query, words):
    lab.folder.mkdir(parents=True)
    with pytest.raises(UserError, match=words):
        lab.found(sentinel2, f"torchgeo:Sentinel2?{query.format(root=lab.folder)}")


def test_without_torchgeo_the_remedy_is_named(lab, monkeypatch):
    lab.folder.mkdir(parents=True)

    def absent(module: str, **told: str) -> None:
        raise MissingExtra(told["wanted_by"], "torchgeo", told["extra"])

    monkeypatch.setattr(torchgeo_source, "require", absent)
    with pytest.raises(MissingExtra, match=r'needs torchgeo: pip install "dinodomain\[torchgeo\]"'):
        lab.found(sentinel2, f"torchgeo:Sentinel2?root={lab.folder}")
