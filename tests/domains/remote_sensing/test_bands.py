"""Bands get their names from files, descriptions, the user or a certain count, never from a guess."""

from __future__ import annotations

import pytest
import rasterio

from dinodomain.errors import BadSource, UserError
from dinodomain_remote_sensing import aerial, landsat, sentinel1, sentinel2

THIRTEEN = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
EUROSAT = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")


def test_unnamed_stacks_of_thirteen_and_twelve_have_b8a_in_its_place(lab):
    record = lab.only(sentinel2, lab.write("a/a.tif", lab.counts(13, 4, 4)))
    assert record.channels == THIRTEEN
    assert record.fields["bands_from"] == "count"
    record = lab.only(sentinel2, lab.write("b/b.tif", lab.counts(12, 4, 4)))
    assert record.channels == tuple(band for band in THIRTEEN if band != "B10")


def test_descriptions_win_over_the_count_and_pixels_follow_their_names(lab):
    pixels = lab.counts(13, 4, 4)
    record = lab.only(sentinel2, lab.write("a.tif", pixels, per_band={"descriptions": EUROSAT}))
    assert record.channels == THIRTEEN
    assert (lab.everything(record)[8] == pixels[12]).all()


def test_numbers_that_software_gave_are_no_names(lab):
    """'Band 9' of thirteen is B8A's successor by position, not ESA's band 9."""
    path = lab.write("a.tif", lab.counts(13, 4, 4), per_band={"descriptions": [f"Band {n}" for n in range(1, 14)]})
    record = lab.only(sentinel2, path)
    assert record.channels == THIRTEEN
    assert record.fields["bands_from"] == "count"


def test_an_uncertain_count_is_refused_until_all_bands_are_named(lab):
    path = lab.write("a.tif", lab.counts(4, 4, 4))
    message = lab.refusal(sentinel2, path)
    assert "4 bands without names" in message
    assert "ingest.bands=[...]" in message
    record = lab.only(sentinel2, path, bands=("B02", "B03", "B04", "B08"))
    assert record.channels == ("B02", "B03", "B04", "B08")
    assert record.fields["bands_from"] == "ingest.bands"


def test_descriptions_of_something_else_are_not_replaced_by_the_count(lab):
    lab.write("a.tif", lab.counts(3, 4, 4), per_band={"descriptions": ("B2", "B3", "B4")})
    assert "described as B2, B3, B4" in lab.refusal(aerial)


def test_bands_are_kept_and_ordered_as_asked_in_short_or_long_form(lab):
    pixels = lab.counts(13, 4, 4)
    path = lab.write("a.tif", pixels, per_band={"descriptions": THIRTEEN})
    record = lab.only(sentinel2, path, bands=("B8A", "b2"))
    assert record.channels == ("B8A", "B02")
    assert (lab.everything(record) == pixels[[8, 1]]).all()


def test_a_band_that_the_source_lacks_and_one_that_the_sensor_lacks(lab):
    path = lab.write("a.tif", lab.counts(2, 4, 4), per_band={"descriptions": ("B02", "B03")})
    assert "has no band B04" in lab.refusal(sentinel2, path, bands=("B04",))
    with pytest.raises(UserError, match="Sentinel-2 has no band 'B13'"):
        lab.found(sentinel2, path, bands=("B13",))


def test_quality_bands_and_indices_are_no_channels(lab):
    path = lab.write("s/a.tif", lab.counts(3, 4, 4), per_band={"descriptions": ("B02", "SCL", "NDVI")})
    record = lab.only(sentinel2, path)
    assert record.channels == ("B02",)
    assert record.fields["left_out"] == "SCL,NDVI"
    for name in ("B4", "BQA"):
        lab.write(f"l/LC08_L1TP_013032_20180131_{name}.TIF", lab.counts(4, 4))
    assert lab.only(landsat, lab.folder / "l").channels == ("OLI_B4_DN",)


def test_a_band_named_twice_is_refused(lab):
    lab.write("a.tif", lab.counts(2, 4, 4), per_band={"descriptions": ("B02", "b2")})
    assert "band B02 twice" in lab.refusal(sentinel2)


def test_of_a_band_at_several_resolutions_the_finest_is_taken(lab):
    lab.write("T32_B02_10m.tif", lab.counts(8, 8))
    lab.write("T32_B02_20m.tif", lab.counts(4, 4), gsd=20)
    assert lab.only(sentinel2).shape == (1, 8, 8)


def test_hyperspectral_cubes_are_refused_by_all_four(lab):
    lab.write("a.tif", lab.counts(40, 2, 2))
    for domain in (sentinel2, sentinel1, landsat, aerial):
        assert "hyperspectral" in lab.refusal(domain)


def test_palette_images_are_refused(lab):
    path = lab.write("a.tif", lab.counts(4, 4, dtype="uint8"), photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (0, 0, 0, 255), 1: (255, 0, 0, 255)})
    for domain in (sentinel2, aerial):
        assert "palette" in lab.refusal(domain)


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("LT05_L1TP_224063_19880814_B1.TIF", "TM_B1_DN"),
        ("LE07_L1TP_224063_20000814_B1.TIF", "ETM_B1_DN"),
        ("LC08_L1TP_224063_20180814_B1.TIF", "OLI_B1_DN"),
    ],
)
def test_one_band_number_is_another_channel_on_every_landsat(lab, name, channel):
    lab.write(name, lab.counts(4, 4, dtype="uint8"))
    assert lab.only(landsat).channels == (channel,)


def test_wavelengths_follow_the_sensor():
    nm = {name: landsat.channels[name].wavelength_nm for name in ("TM_B1", "OLI_B1", "OLI_B2", "ETM_B8", "TIRS_B10")}
    assert nm == {"TM_B1": 485.0, "OLI_B1": 443.0, "OLI_B2": 482.0, "ETM_B8": 710.0, "TIRS_B10": 10895.0}


def test_a_landsat_of_unknown_number_is_refused_until_its_channels_are_named(lab):
    path = lab.write("scene.tif", lab.counts(2, 4, 4, dtype="uint8"), per_band={"descriptions": ("B3", "B4")})
    assert "which Landsat" in lab.refusal(landsat, path)
    assert lab.only(landsat, path, bands=("ETM_B4", "ETM_B3")).channels == ("ETM_B4_DN", "ETM_B3_DN")


def test_a_band_is_asked_for_once(lab):
    lab.write("a.tif", lab.counts(2, 4, 4), per_band={"descriptions": ("B02", "B03")})
    with pytest.raises(UserError, match="B02 named more than once"):
        lab.found(sentinel2, bands=("B02", "B03", "B2"))


def test_eight_bits_are_no_reflectance_unless_they_have_a_scale(lab):
    path = lab.write("a.tif", lab.counts(2, 4, 4, dtype="uint8"), per_band={"descriptions": ("B02", "B03")})
    assert "8-bit numbers without a scale" in lab.refusal(sentinel2)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (0.004, 0.004)
    assert lab.only(sentinel2).scale == (0.004, 0.004)


def test_products_of_other_sensors_are_refused_by_name(lab):
    lab.write("LC08_L1TP_013032_20180131_B10.TIF", lab.counts(4, 4))
    assert "another sensor" in lab.refusal(sentinel2)


def test_polarisations_are_found_in_names_and_descriptions(lab):
    for name in ("VH", "VV"):
        lab.write(f"p/S1A_IW_GRDH_1SDV_20170617T064724_x_{name}.tif", lab.counts(4, 4, dtype="float32"))
    assert lab.only(sentinel1, lab.folder / "p", sar="db").channels == ("VV", "VH")
    lab.write("q/a.tif", lab.counts(2, 4, 4, dtype="float32"), per_band={"descriptions": ("Sigma0_VH_db", "Sigma0_VV_db")})
    assert lab.only(sentinel1, lab.folder / "q").channels == ("VV", "VH")
    lab.write("r/a.tif", lab.counts(2, 4, 4, dtype="float32"))
    (row,) = lab.found(sentinel1, lab.folder / "r", sar="db")
    assert isinstance(row, BadSource)
