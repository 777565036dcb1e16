"""Stored numbers get the meaning that metadata states; what nothing states is refused or kept as digital numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain_remote_sensing import landsat, sentinel1, sentinel2

B2 = {"descriptions": ("B02",)}
XML = """<?xml version="1.0"?><n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<n1:General_Info><Product_Info><PRODUCT_START_TIME>2022-08-25T10:36:41.024Z</PRODUCT_START_TIME><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE>
<PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL><Datatake><SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME></Datatake></Product_Info>
<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
<BOA_ADD_OFFSET_VALUES_LIST><BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>
<BOA_ADD_OFFSET band_id="8">-900</BOA_ADD_OFFSET></BOA_ADD_OFFSET_VALUES_LIST>
</n1:General_Info></n1:Level-2A_User_Product>"""


def physical(lab, record):
    scale, offset = (np.array(values)[:, None, None] for values in (record.scale, record.offset))
    return lab.everything(record) * scale + offset


def test_reflectance_is_dn_by_ten_thousand(lab):
    record = lab.only(sentinel2, lab.write("a.tif", np.full((2, 2), 2500, "uint16"), per_band=B2))
    assert physical(lab, record) == pytest.approx(0.25)
    assert record.fields["offset_from"] == "not stated"


@pytest.mark.parametrize(
    "tags", [{"BOA_ADD_OFFSET": "-1000"}, {"RADIO_ADD_OFFSET": "-1000"}, {"PROCESSING_BASELINE": "04.00"}, {"PROCESSING_BASELINE": "N0509"}]
)
def test_tags_that_state_the_offset_are_followed(lab, tags):
    record = lab.only(sentinel2, lab.write("a.tif", np.full((2, 2), 3500, "uint16"), per_band=B2, tags=tags))
    assert physical(lab, record) == pytest.approx(0.25)


def test_an_early_baseline_has_no_offset(lab):
    path = lab.write("a.tif", np.full((2, 2), 2500, "uint16"), per_band=B2, tags={"PROCESSING_BASELINE": "02.14"})
    assert physical(lab, lab.only(sentinel2, path)) == pytest.approx(0.25)


def test_one_scene_in_three_encodings_gives_equal_reflectance(lab):
    plain = lab.write("a/a.tif", np.array([[2500, 400]], "uint16"), per_band=B2)
    shifted = lab.write("b/b.tif", np.array([[3500, 1400]], "uint16"), per_band=B2, tags={"PROCESSING_BASELINE": "04.00"})
    scaled = lab.write("c/c.tif", np.array([[3500, 1400]], "uint16"), per_band={**B2, "scales": (1e-4,), "offsets": (-0.1,)})
    one, two, three = (physical(lab, lab.only(sentinel2, path)) for path in (plain, shifted, scaled))
    np.testing.assert_allclose(two, one, atol=1e-12)
    np.testing.assert_allclose(three, one, atol=1e-12)


def test_statements_that_disagree_are_refused(lab):
    lab.write("a.tif", lab.counts(2, 2), per_band={**B2, "scales": (1e-4,)}, tags={"PROCESSING_BASELINE": "04.00"})
    assert "in the file" in lab.refusal(sentinel2)


def test_a_late_baseline_in_the_name_alone_is_refused(lab):
    lab.write("S2A_MSIL1C_20220825T103641_N0400_R008_T32VPH_20220825T173926.tif", lab.counts(2, 2), per_band=B2)
    message = lab.refusal(sentinel2)
    assert "04.00" in message
    assert "MTD_MSIL" in message


def test_floating_point_must_say_what_it_is(lab):
    pixels = np.full((2, 2), 0.25, "float32")
    assert "reflectance or DN" in lab.refusal(sentinel2, lab.write("a/a.tif", pixels, per_band=B2))
    said = lab.write("b/b.tif", pixels, per_band={**B2, "units": ("reflectance",)})
    assert physical(lab, lab.only(sentinel2, said)) == pytest.approx(0.25)


def test_a_safe_folder_is_one_scene_with_the_offsets_of_its_xml(lab):
    product = "S2A_MSIL2A_20220825T103641_N0400_R008_T32VPH_20220825T173926.SAFE"
    images = f"{product}/GRANULE/L2A_T32VPH_A037464/IMG_DATA"
    for res, band, side in (("10", "B02", 8), ("20", "B02", 4), ("20", "B8A", 4), ("20", "SCL", 4), ("10", "TCI", 8)):
        lab.write(f"{images}/R{res}m/T32VPH_20220825T103641_{band}_{res}m.jp2", np.full((side, side), 3500, "uint16"), gsd=float(res),
                  driver="JP2OpenJPEG", quality=100, reversible="yes")  # fmt: skip
    lab.write(f"{product}/GRANULE/L2A_T32VPH_A037464/QI_DATA/MSK_CLDPRB_20m.jp2", lab.counts(4, 4), driver="JP2OpenJPEG", gsd=20.0)
    (lab.folder / product / "MTD_MSIL2A.xml").write_text(XML)
    for source in (lab.folder, lab.folder / product):
        record = lab.only(sentinel2, source)
        assert record.channels == ("B02", "B8A")
        assert record.shape == (2, 8, 8)
        np.testing.assert_allclose(physical(lab, record)[:, 0, 0], [0.25, 0.26])
        assert record.acquired == "2022-08-25T10:36:41"
        assert record.fields["level"] == "L2A"
        assert record.fields["processing_baseline"] == "04.00"
    (ref,) = lab.found(sentinel2)
    assert ref.source_id == product
    (lab.folder / product / "MTD_MSIL2A.xml").unlink()
    assert "nothing says whether that was undone" in lab.refusal(sentinel2)


MTL_L1 = """GROUP = L1_METADATA_FILE
  GROUP = PRODUCT_METADATA
    SPACECRAFT_ID = "LANDSAT_8"
    DATE_ACQUIRED = 2018-01-31
    SCENE_CENTER_TIME = "15:40:10.1234560Z"
  END_GROUP = PRODUCT_METADATA
  GROUP = IMAGE_ATTRIBUTES
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = RADIOMETRIC_RESCALING
    REFLECTANCE_MULT_BAND_4 = 2.0000E-05
    REFLECTANCE_ADD_BAND_4 = -0.100000
  END_GROUP = RADIOMETRIC_RESCALING
END_GROUP = L1_METADATA_FILE
"""
MTL_L2 = """GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    PROCESSING_LEVEL = "L2SP"
  END_GROUP = PRODUCT_CONTENTS
  GROUP = IMAGE_ATTRIBUTES
    SPACECRAFT_ID = "LANDSAT_9"
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
    REFLECTANCE_MULT_BAND_4 = 2.75e-05
    REFLECTANCE_ADD_BAND_4 = -0.2
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
  GROUP = LEVEL2_SURFACE_TEMPERATURE_PARAMETERS
    TEMPERATURE_MULT_BAND_ST_B10 = 0.00341802
    TEMPERATURE_ADD_BAND_ST_B10 = 149.0
  END_GROUP = LEVEL2_SURFACE_TEMPERATURE_PARAMETERS
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
    REFLECTANCE_MULT_BAND_4 = 2.0E-05
    REFLECTANCE_ADD_BAND_4 = -0.1
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
"""


def test_level_1_reflectance_is_corrected_for_the_sun(lab):
    lab.write("LC08_L1TP_013032_20180131_20180207_01_T1_B4.TIF", np.full((2, 2), 15000, "uint16"))
    lab.write("LC08_L1TP_013032_20180131_20180207_01_T1_B10.TIF", np.full((2, 2), 15000, "uint16"))
    (lab.folder / "LC08_L1TP_013032_20180131_20180207_01_T1_MTL.txt").write_text(MTL_L1)
    record = lab.only(landsat)
    assert record.channels == ("OLI_B4", "TIRS_B10_DN")
    assert physical(lab, record)[0] == pytest.approx((15000 * 2e-5 - 0.1) / math.sin(math.radians(30)))
    assert record.acquired == "2018-01-31T15:40:10"
    assert landsat.channels["TIRS_B10_DN"].unit == "DN"


def test_level_2_uses_its_own_group_of_the_mtl(lab):
    name = "LC09_L2SP_013032_20220131_20220207_02_T1"
    lab.write(f"{name}_SR_B4.TIF", np.full((2, 2), 15000, "uint16"))
    lab.write(f"{name}_ST_B10.TIF", np.full((2, 2), 42000, "uint16"))
    lab.write(f"{name}_QA_PIXEL.TIF", np.full((2, 2), 21824, "uint16"))
    (lab.folder / f"{name}_MTL.txt").write_text(MTL_L2)
    record = lab.only(landsat)
    assert record.channels == ("OLI_B4", "TIRS_B10")
    assert physical(lab, record)[:, 0, 0] == pytest.approx([15000 * 2.75e-5 - 0.2, 42000 * 0.00341802 + 149.0])
    assert record.fields["level"] == "L2SP"


def test_level_2_of_an_unknown_collection_needs_its_mtl(lab):
    lab.write("LC09_013032_20220131_SR_B4.TIF", lab.counts(2, 2))
    assert "without MTL" in lab.refusal(landsat)


def test_radar_values_must_be_stated(lab):
    path = lab.write("a_VV.tif", np.full((2, 2), -12.0, "float32"))
    message = lab.refusal(sentinel1, path)
    assert "ingest.sar=db" in message
    record = lab.only(sentinel1, path, sar="sigma0_db")
    assert physical(lab, record) == pytest.approx(-12.0)
    assert record.fields["sar_calibration"] == "sigma0"
    with pytest.raises(UserError, match=r"ingest\.sar"):
        lab.found(sentinel1, path, sar="decibel")


@pytest.mark.parametrize(("unit", "value"), [("dB", -20.0), ("power", 0.01), ("intensity", 0.01), ("amplitude", 0.1)])
def test_every_quantity_becomes_decibels(lab, unit, value):
    path = lab.write("a_VH.tif", np.full((2, 2), value, "float32"), per_band={"units": (unit,)})
    assert physical(lab, lab.only(sentinel1, path)) == pytest.approx(-20.0, abs=1e-5)


def test_tags_and_the_users_word_must_agree(lab):
    path = lab.write("a_VV.tif", np.full((2, 2), -12.0, "float32"), per_band={"units": ("dB",)})
    assert "ingest.sar says power" in lab.refusal(sentinel1, path, sar="power")


def test_raw_radar_is_refused(lab):
    assert "raw GRD or SLC" in lab.refusal(sentinel1, lab.write("a/a_VV.tif", lab.counts(2, 2)), sar="db")
    assert "raw GRD or SLC" in lab.refusal(sentinel1, lab.write("b/b_VV.tif", np.ones((2, 2), "complex64")), sar="db")


def test_zero_power_is_missing_not_minus_infinity(lab):
    path = lab.write("a_VV.tif", np.array([[0.01, 0.0]], "float32"))
    record = lab.only(sentinel1, path, sar="power")
    np.testing.assert_array_equal(lab.invalid(record), [[0, 1]])
    np.testing.assert_allclose(lab.everything(record), [[[-20.0, 0.0]]], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("S2B_MSIL2A_20180502T093039_43_14", "2018-05-02T09:30:39"),
        ("S2B_MSIL2A_20180204T94161_57_38", "2018-02-04"),
        ("boadella_2020-01-13", "2020-01-13"),
        ("x_20180131_20180207_y", "2018-01-31"),
        ("ship_210223000_x", None),
        ("S2A_OPER_MSI_L1C_TL_EPA__20170604T010049_A002448_T40RCN", None),
        ("tile_12345678", None),
    ],
)
def test_dates_in_names(lab, name, day):
    assert lab.only(sentinel2, lab.write(f"{name}.tif", lab.counts(2, 2), per_band=B2)).acquired == day
