"""Landsat products in USGS's layout: scale by level, MTL in three formats, quality bits as validity."""

from __future__ import annotations

import json
import math
import tarfile
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from dinodomain.types import CLOUD, NODATA, SATURATED, SHADOW_SNOW
from dinodomain_remote_sensing import landsat

L2 = "LC09_L2SP_013032_20220131_20220207_02_T1"
GROUPS = {
    "PRODUCT_CONTENTS": {"PROCESSING_LEVEL": "L2SP", "COLLECTION_NUMBER": "02", "COLLECTION_CATEGORY": "T1"},
    "IMAGE_ATTRIBUTES": {
        "SPACECRAFT_ID": "LANDSAT_9",
        "WRS_PATH": "13",
        "WRS_ROW": "32",
        "DATE_ACQUIRED": "2022-01-31",
        "SCENE_CENTER_TIME": "15:40:10.1234560Z",
        "CLOUD_COVER": "21.5",
        "SUN_AZIMUTH": "155.25",
        "SUN_ELEVATION": "30.0",
    },
    "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {"REFLECTANCE_MULT_BAND_4": "2.75e-05", "REFLECTANCE_ADD_BAND_4": "-0.2"},
    "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS": {"TEMPERATURE_MULT_BAND_ST_B10": "0.00341802", "TEMPERATURE_ADD_BAND_ST_B10": "149.0"},
    "LEVEL1_PROCESSING_RECORD": {"PROCESSING_LEVEL": "L1TP"},
    "LEVEL1_RADIOMETRIC_RESCALING": {"REFLECTANCE_MULT_BAND_4": "2.0E-05", "REFLECTANCE_ADD_BAND_4": "-0.1"},
}


def as_text(groups) -> str:
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for group, body in groups.items():
        lines += [f"  GROUP = {group}", *(f'    {key} = "{value}"' for key, value in body.items()), f"  END_GROUP = {group}"]
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END"])


def as_json(groups) -> str:
    return json.dumps({"LANDSAT_METADATA_FILE": groups})


def as_xml(groups) -> str:
    root = ElementTree.Element("LANDSAT_METADATA_FILE")
    for group, body in groups.items():
        inside = ElementTree.SubElement(root, group)
        for key, value in body.items():
            ElementTree.SubElement(inside, key).text = value
    return ElementTree.tostring(root, encoding="unicode")


WRITERS = {"txt": as_text, "json": as_json, "xml": as_xml}


def make_level_2(lab, mtl=("txt",), qa=None, below=""):
    lab.write(f"{below}{L2}_SR_B4.TIF", np.full((4, 4), 15000, "uint16"), gsd=30)
    lab.write(f"{below}{L2}_ST_B10.TIF", np.full((4, 4), 42000, "uint16"), gsd=30)
    lab.write(f"{below}{L2}_QA_PIXEL.TIF", np.full((4, 4), 21824, "uint16") if qa is None else qa, gsd=30)
    lab.write(f"{below}{L2}_SR_QA_AEROSOL.TIF", np.full((4, 4), 1, "uint8"), gsd=30)
    for kind in mtl:
        (lab.folder / below / f"{L2}_MTL.{kind}").write_text(WRITERS[kind](GROUPS))


def physical(lab, record):
    scale, offset = (np.array(values)[:, None, None] for values in (record.scale, record.offset))
    return lab.everything(record) * scale + offset


@pytest.mark.parametrize("kinds", [("txt",), ("json",), ("xml",), ("txt", "json", "xml")])
def test_every_format_of_the_metadata_says_the_same(lab, kinds):
    make_level_2(lab, kinds)
    (ref,) = lab.found(landsat)
    record = landsat.read(ref)
    assert record.channels == ("OLI_B4", "TIRS_B10")
    assert physical(lab, record)[:, 0, 0] == pytest.approx([15000 * 2.75e-5 - 0.2, 42000 * 0.00341802 + 149.0])
    assert record.acquired == "2022-01-31T15:40:10"
    expected = {
        "platform": "Landsat-9",
        "level": "L2SP",
        "wrs_path": 13,
        "wrs_row": 32,
        "cloud_cover_percent": 21.5,
        "sun_elevation_deg": 30.0,
        "sun_zenith_deg": 60.0,
        "sun_azimuth_deg": 155.25,
        "collection": 2,
        "collection_category": "T1",
        "masks": "QA_PIXEL",
    }
    assert {name: record.fields[name] for name in expected} == expected
    assert {name: ref.facts[name] for name in expected} == expected
    assert ref.quantity == "Level-2 reflectance"


def test_the_product_id_alone_states_the_constants_of_collection_2(lab):
    make_level_2(lab, mtl=())
    record = lab.only(landsat)
    assert physical(lab, record)[:, 0, 0] == pytest.approx([15000 * 2.75e-5 - 0.2, 42000 * 0.00341802 + 149.0])
    assert (record.fields["level"], record.fields["wrs_path"], record.fields["collection_category"]) == ("L2SP", 13, "T1")


def test_metadata_of_two_products_is_refused(lab):
    make_level_2(lab)
    (lab.folder / "LC08_L2SP_013032_20220131_20220207_02_T1_MTL.json").write_text(as_json(GROUPS))
    assert "several MTL files" in lab.refusal(landsat)


@pytest.mark.parametrize(("kind", "text"), [("json", "{"), ("json", "[1]"), ("xml", "<a"), ("txt", "nothing")])
def test_damaged_metadata_is_refused(lab, kind, text):
    make_level_2(lab, mtl=())
    (lab.folder / f"{L2}_MTL.{kind}").write_text(text)
    assert "not an MTL" in lab.refusal(landsat)


def test_a_tar_of_usgs_is_read_in_place(lab):
    make_level_2(lab, below=f"{L2}/")
    plain = lab.everything(lab.only(landsat))
    archive = lab.folder / f"{L2}.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted((lab.folder / L2).iterdir()):
            tar.add(path, path.name)
            path.unlink()
    (ref,) = lab.found(landsat)
    assert ref.source_id == archive.name
    record = landsat.read(ref)
    assert record.fields["level"] == "L2SP"
    np.testing.assert_array_equal(lab.everything(record), plain)


def test_level_1_reflectance_is_another_quantity_and_corrected_for_the_sun(lab):
    name = "LC08_L1TP_013032_20220131_20220207_02_T1"
    lab.write(f"{name}_B4.TIF", np.full((4, 4), 15000, "uint16"), gsd=30)
    groups = {key: value for key, value in GROUPS.items() if not key.startswith(("LEVEL2", "PRODUCT", "LEVEL1_PROCESSING"))}
    groups["PRODUCT_CONTENTS"] = {"PROCESSING_LEVEL": "L1TP"}
    (lab.folder / f"{name}_MTL.txt").write_text(as_text(groups))
    (ref,) = lab.found(landsat)
    assert ref.quantity == "Level-1 reflectance"
    assert physical(lab, landsat.read(ref)) == pytest.approx((15000 * 2e-5 - 0.1) / math.sin(math.radians(30)))
    (lab.folder / f"{name}_MTL.txt").unlink()
    (ref,) = lab.found(landsat)
    assert ref.quantity == "digital numbers"


@pytest.mark.parametrize(
    ("bit", "expected"),
    [(0, NODATA), (1, CLOUD), (2, CLOUD), (3, CLOUD), (4, SHADOW_SNOW), (5, SHADOW_SNOW), (6, 0), (7, 0), (9, 0), (15, 0)],
)
def test_every_quality_bit_of_collection_2(lab, bit, expected):
    qa = np.full((4, 4), 64, "uint16")
    qa[1, 2] = 1 << bit
    make_level_2(lab, qa=qa)
    bits = lab.invalid(lab.only(landsat))
    assert bits[1, 2] == expected
    assert np.count_nonzero(bits) == (expected != 0)


def test_saturation_counts_for_the_bands_that_are_taken(lab):
    make_level_2(lab)
    radsat = np.zeros((4, 4), "uint16")
    radsat[0, 0], radsat[0, 1] = 1 << 3, 1 << 6  # bands 4 and 7
    lab.write(f"{L2}_QA_RADSAT.TIF", radsat, gsd=30)
    bits = lab.invalid(lab.only(landsat))
    assert (bits[0, 0], bits[0, 1]) == (SATURATED, 0)
    assert not lab.invalid(lab.only(landsat, bands=("TIRS_B10",))).any()


# Values and meanings: USGS, LSDS-1656, table "Pixel value interpretations" of Landsat 8 OLI/TIRS Collection 1.
COLLECTION_1 = {1: NODATA, 2720: 0, 2724: SATURATED, 2800: CLOUD, 2976: SHADOW_SNOW, 3744: SHADOW_SNOW, 6816: CLOUD, 2752: 0}


def test_quality_of_collection_1_is_read_by_confidence(lab):
    name = "LC08_L1TP_013032_20180131_20180207_01_T1"
    lab.write(f"{name}_B4.TIF", np.full((1, 8), 9000, "uint16"), gsd=30)
    lab.write(f"{name}_BQA.TIF", np.array([list(COLLECTION_1)], "uint16"), gsd=30)
    record = lab.only(landsat)
    np.testing.assert_array_equal(lab.invalid(record)[0], list(COLLECTION_1.values()))
    assert record.fields["masks"] == "BQA"


def test_a_dropped_pixel_of_older_sensors_is_missing(lab):
    name = "LE07_L1TP_013032_20010131_20180207_01_T1"
    lab.write(f"{name}_B4.TIF", np.full((1, 3), 90, "uint8"), gsd=30)
    lab.write(f"{name}_BQA.TIF", np.array([[672, 674, 680]], "uint16"), gsd=30)
    np.testing.assert_array_equal(lab.invalid(lab.only(landsat))[0], [0, NODATA, SATURATED])


def test_quality_of_another_scene_in_the_folder_is_left_alone(lab):
    other = L2.replace("20220131_", "20220216_")
    qa = np.full((4, 4), 8, "uint16")
    lab.write(f"{other}_SR_B4.TIF", np.full((4, 4), 15000, "uint16"), gsd=30)
    lab.write(f"{other}_QA_PIXEL.TIF", np.where(np.eye(4), 64, qa).astype("uint16"), gsd=30)
    make_level_2(lab, mtl=())
    first, second = lab.found(landsat)
    assert "20220131" in first.source_id
    assert not lab.invalid(landsat.read(first)).any()
    assert (lab.invalid(landsat.read(second)) == CLOUD).sum() == 12


def test_a_mask_in_another_system_is_refused(lab):
    make_level_2(lab)
    lab.write(f"{L2}_QA_PIXEL.TIF", np.full((4, 4), 64, "uint16"), gsd=30, crs="EPSG:32633")
    assert "another CRS than its scene" in lab.refusal(landsat)


def test_one_file_named_as_the_source_takes_along_what_is_its_own(lab):
    make_level_2(lab, qa=np.full((4, 4), 21824, "uint16"))
    other = L2.replace("20220131_", "20220216_")
    lab.write(f"{other}_SR_B4.TIF", np.full((4, 4), 15000, "uint16"), gsd=30)
    (lab.folder / f"{other}_MTL.txt").write_text(as_text(GROUPS).replace("2022-01-31", "2022-02-16"))
    record = lab.only(landsat, lab.folder / f"{L2}_SR_B4.TIF")
    assert record.channels == ("OLI_B4",)
    assert record.acquired == "2022-01-31T15:40:10"
    assert record.fields["masks"] == "QA_PIXEL"
