"""Imaging spectrometers: channels by wavelength, bad bands left out, scale as stated, EnMAP products and ENVI cubes."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from dinodomain.errors import BadSource, UserError
from dinodomain.types import CLOUD
from dinodomain_remote_sensing import hyperspectral
from dinodomain_remote_sensing.wavelengths import nanometres

ENMAP_BANDS = (418.24, 550.6, 911.715, 911.872)


def envi(lab, name, pixels, extra, suffix=".bsq"):
    """An ENVI cube with more lines in its header."""
    path = lab.write(f"{name}{suffix}", pixels, driver="ENVI")
    header = path.with_suffix(".hdr")
    header.write_text(header.read_text() + extra)
    return path


def physical(lab, record):
    scale, offset = (np.array(values)[:, None, None] for values in (record.scale, record.offset))
    return lab.everything(record) * scale + offset


def test_descriptions_state_wavelengths_and_overlapping_detectors_get_tenths(lab):
    pixels = lab.counts(4, 3, 3, dtype="int16")
    texts = [f"band {n} ({nm} Nanometers)" for n, nm in enumerate(ENMAP_BANDS, 1)]
    record = lab.only(hyperspectral, lab.write("ENMAP_20220724_tile.tif", pixels, per_band={"descriptions": texts, "scales": (1e-4,) * 4}))
    assert record.channels == ("nm0418", "nm0551", "nm0911_7", "nm0911_9")
    assert [record.fields[f"wavelength_nm.{channel}"] for channel in record.channels] == list(ENMAP_BANDS)
    assert [hyperspectral.channels[channel].wavelength_nm for channel in record.channels] == [418.0, 551.0, 911.7, 911.9]
    np.testing.assert_array_equal(lab.everything(record), pixels)
    assert physical(lab, record)[0, 0, 0] == pytest.approx(1e-4)
    assert record.acquired == "2022-07-24"


def test_channels_come_in_order_of_wavelength_whatever_the_order_of_the_file(lab):
    pixels = lab.counts(3, 2, 2, dtype="int16")
    record = lab.only(hyperspectral, lab.write("a.tif", pixels, per_band={"descriptions": ("2200 nm", "0.55 um", "1650 nm")}))
    assert record.channels == ("nm0550_DN", "nm1650_DN", "nm2200_DN")
    np.testing.assert_array_equal(lab.everything(record), pixels[[1, 2, 0]])


@pytest.mark.parametrize("suffix", [".bsq", ".img", ".dat", ""])
def test_an_envi_header_states_wavelengths_bad_bands_and_scale(lab, suffix):
    pixels = lab.counts(4, 3, 5, dtype="int16")
    envi(lab, "cube", pixels,
         "wavelength units = Micrometers\nwavelength = {0.4238, 0.5501, 1.3902,\n 2.2006}\nbbl = {1, 1, 0, 1}\n"
         "reflectance scale factor = 10000\ndata ignore value = 7\nacquisition time = 2022-07-24T10:20:30Z\n", suffix)  # fmt: skip
    record = lab.only(hyperspectral)
    assert record.channels == ("nm0424", "nm0550", "nm2201")
    assert record.fields["wavelength_nm.nm0424"] == 423.8  # GDAL's own tag says 424.0
    assert "bad bands left out (bbl): 1" in record.stages
    assert record.scale == (1e-4,) * 3
    assert record.acquired == "2022-07-24T10:20:30"
    np.testing.assert_array_equal(lab.everything(record), pixels[[0, 1, 3]])
    bits = lab.invalid(record)
    assert bits[1, 1] == 1
    assert bits.sum() == 1


def test_an_edited_envi_header_changes_the_digest(lab):
    path = envi(lab, "cube", lab.counts(1, 3, 5, dtype="int16"), "wavelength units = Nanometers\nwavelength = {550}\n")
    (before,) = lab.found(hyperspectral)
    header = path.with_suffix(".hdr")
    header.write_text(header.read_text().replace("{550}", "{560}"))
    (after,) = lab.found(hyperspectral)
    assert before.digest != after.digest


def test_the_imagery_domain_of_gdal_is_read(lab):
    path = lab.write("a.tif", lab.counts(2, 2, 2, dtype="int16"))
    with rasterio.open(path, "r+") as dataset:
        for band, micrometres in ((1, "0.660"), (2, "0.865")):
            dataset.update_tags(band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=micrometres)
    assert lab.only(hyperspectral).channels == ("nm0660_DN", "nm0865_DN")


@pytest.mark.parametrize(
    ("text", "nm"),
    [("423.8 nm", 423.8), ("band 1 (418.24 Nanometers)", 418.24), ("0.4238 um", 423.8), ("0.4238", 423.8), ("651", 651.0), ("12", None),
     ("B02", None), ("Band 9", None), ("nm", None), ("1.2 mm", None)],
)  # fmt: skip
def test_wavelengths_are_read_only_where_they_are_certain(text, nm):
    assert nanometres(text) == nm


def test_bands_are_chosen_by_name_or_wavelength(lab):
    pixels = lab.counts(3, 2, 2, dtype="int16")
    path = lab.write("a.tif", pixels, per_band={"descriptions": ("450 nm", "550 nm", "650 nm")})
    record = lab.only(hyperspectral, path, bands=("650 nm", "nm0450"))
    assert record.channels == ("nm0650_DN", "nm0450_DN")
    assert "has no band nm0700" in lab.refusal(hyperspectral, path, bands=("nm0700",))
    with pytest.raises(UserError, match=r"nm0350 to nm2600"):
        lab.found(hyperspectral, path, bands=("B02",))


def test_a_band_without_data_anywhere_is_no_channel_and_a_scattered_gap_is_invalid(lab):
    pixels = lab.counts(3, 40, 40, dtype="int16")
    pixels[1] = -32768
    pixels[2, 3, 4] = -32768
    path = lab.write("a.tif", pixels, nodata=-32768, per_band={"descriptions": ("1300 nm", "1380 nm", "1600 nm")})
    record = lab.only(hyperspectral, path)
    assert record.channels == ("nm1300_DN", "nm1600_DN")
    assert "bands without any data left out: nm1380_DN" in record.stages
    assert np.argwhere(lab.invalid(record)).tolist() == [[3, 4]]
    assert "no data anywhere in nm1380_DN" in lab.refusal(hyperspectral, path, bands=("nm1380",))


def test_digital_numbers_reflectance_and_radiance_are_told_apart(lab):
    one = {"descriptions": ("550 nm",)}
    quantities = {}
    for name, per_band in (("dn", {}), ("scaled", {"scales": (1e-4,)})):
        (ref,) = lab.found(hyperspectral, lab.write(f"{name}/a_L2A_b.tif", lab.counts(2, 2, dtype="int16"), per_band={**one, **per_band}))
        quantities[name] = ref.quantity
    assert quantities == {"dn": "digital numbers", "scaled": "L2A reflectance"}
    pixels = np.full((2, 2), 0.25, "float32")
    assert "reflectance or DN" in lab.refusal(hyperspectral, lab.write("f/a.tif", pixels, per_band=one))
    said = lab.write("g/a.tif", pixels, per_band={**one, "units": ("reflectance",)})
    assert physical(lab, lab.only(hyperspectral, said)) == pytest.approx(0.25)
    radiance = lab.write("h/a.tif", pixels, per_band={**one, "units": ("W/m2/sr/um",)})
    assert "radiance" in lab.refusal(hyperspectral, radiance)


def test_scales_that_disagree_are_refused(lab):
    lab.write("a.tif", lab.counts(2, 2, dtype="int16"), per_band={"descriptions": ("550 nm",), "scales": (1e-3,)},
              tags={"reflectance_scale_factor": "10000"})  # fmt: skip
    assert "in the file" in lab.refusal(hyperspectral)


def test_cubes_without_wavelengths_or_with_two_bands_at_one_are_refused(lab):
    assert "without wavelengths" in lab.refusal(hyperspectral, lab.write("a/a.tif", lab.counts(40, 2, 2, dtype="int16")))
    twice = lab.write("b/b.tif", lab.counts(2, 2, 2, dtype="int16"), per_band={"descriptions": ("550.01 nm", "550.02 nm")})
    assert "two bands at 550 nm" in lab.refusal(hyperspectral, twice)
    thermal = lab.write("c/c.tif", lab.counts(2, 2, 2, dtype="int16"), per_band={"descriptions": ("9.5 um", "10.5 um")})
    assert "no good band between 350 and 2600 nm" in lab.refusal(hyperspectral, thermal)


ENMAP = "ENMAP01-____L2A-DT0000002950_20220724T103033Z_001_V010111_20220830T000000Z"
METADATA = """<?xml version="1.0"?><level_X xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><metadata/><base><level>{level}</level>
<temporalCoverage><startTime>2022-07-24T10:30:33.120Z</startTime></temporalCoverage></base><specific><backgroundValue>-32768</backgroundValue>
<qualityFlag><cloudCover>7</cloudCover></qualityFlag><sunElevationAngle><center>55.5</center></sunElevationAngle>
<sunAzimuthAngle><center>150.25</center></sunAzimuthAngle><bandCharacterisation>
<bandID number="1">
<wavelengthCenterOfBand>418.416</wavelengthCenterOfBand><GainOfBand>0.0001</GainOfBand><OffsetOfBand>0</OffsetOfBand></bandID>
<bandID number="2">
<wavelengthCenterOfBand>424.043</wavelengthCenterOfBand><GainOfBand>0.0001</GainOfBand><OffsetOfBand>0</OffsetOfBand></bandID>
</bandCharacterisation></specific></level_X>"""


def make_enmap(lab, level="L2A"):
    pixels = lab.counts(2, 4, 4, dtype="int16", first=100)
    lab.write(f"{ENMAP}-SPECTRAL_IMAGE.TIF", pixels, gsd=30, nodata=-32768)
    cloud = np.zeros((4, 4), "uint8")
    cloud[1, 1] = 1
    lab.write(f"{ENMAP}-QL_QUALITY_CLOUD.TIF", cloud, gsd=30)
    lab.write(f"{ENMAP}-QL_QUALITY_CLASSES.TIF", cloud + 1, gsd=30)
    lab.write(f"{ENMAP}-QL_VNIR.TIF", lab.counts(3, 4, 4, dtype="uint8"), gsd=30)
    (lab.folder / f"{ENMAP}-METADATA.XML").write_text(METADATA.format(level=level))
    return pixels


def test_an_enmap_product_is_one_scene_with_its_gains_and_clouds(lab):
    pixels = make_enmap(lab)
    (ref,) = lab.found(hyperspectral)
    record = hyperspectral.read(ref)
    assert record.channels == ("nm0418", "nm0424")
    assert record.fields["wavelength_nm.nm0418"] == 418.416
    np.testing.assert_allclose(physical(lab, record), pixels * 1e-4)
    assert record.acquired == "2022-07-24T10:30:33"
    assert ref.quantity == "L2A reflectance"
    expected = {"level": "L2A", "platform": "EnMAP", "cloud_cover_percent": 7.0, "sun_elevation_deg": 55.5, "sun_azimuth_deg": 150.25}
    assert {name: record.fields[name] for name in expected} == expected
    assert np.argwhere(lab.invalid(record) == CLOUD).tolist() == [[1, 1]]


def test_enmap_of_level_1_is_refused(lab):
    make_enmap(lab, level="L1C")
    assert "radiance" in lab.refusal(hyperspectral)


def test_three_hundred_bands_are_read(lab):
    pixels = lab.counts(300, 3, 3, dtype="int16")
    record = lab.only(hyperspectral, lab.write("a.tif", pixels, per_band={"descriptions": [f"{400 + 7 * n} nm" for n in range(300)]}))
    assert len(record.channels) == 300
    np.testing.assert_array_equal(lab.everything(record), pixels)


def test_the_channels_know_every_name_and_nothing_else():
    channels = hyperspectral.channels
    assert "nm0350" in channels
    assert "nm2600_DN" in channels
    assert "nm0911_7" in channels
    for name in ("nm0349", "nm2601", "nm2600_1", "nm911", "B02", "nm0500_DN_DN"):
        assert name not in channels
    names = list(channels)
    assert len(names) == len(channels) == len(set(names))
    assert all(name in channels for name in names)


def test_real_enmap_tiles_equal_rasterio(real_data, lab):
    root = real_data / "sat_multispectral" / "dev" / "enmap_potsdam"
    if not root.is_dir():
        pytest.skip("no enmap_potsdam")
    rows = lab.found(hyperspectral, root)
    refs = [row for row in rows if not isinstance(row, BadSource)]
    assert len(refs) == 4
    for ref in refs:
        record = hyperspectral.read(ref)
        with rasterio.open(ref.uris[0]) as dataset:
            texts, pixels = dataset.descriptions, dataset.read()
            assert record.affine == tuple(dataset.transform)
        stated = np.array([float(text.partition("(")[2].split()[0]) for text in texts])
        kept = np.flatnonzero((pixels != -32768).any((1, 2)))
        order = kept[np.argsort(stated[kept])]
        assert len(record.channels) == len(order) == 218
        np.testing.assert_array_equal(lab.everything(record), pixels[order])
        assert [record.fields[f"wavelength_nm.{channel}"] for channel in record.channels] == stated[order].tolist()
        rounded = [hyperspectral.channels[channel].wavelength_nm for channel in record.channels]
        np.testing.assert_allclose(rounded, stated[order], atol=0.5)
        assert all(channel.endswith("_DN") for channel in record.channels)  # nothing in the files states the scale
