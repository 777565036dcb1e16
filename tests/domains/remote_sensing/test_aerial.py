"""Orthophotos and plain pictures: fractions of full scale, upright, with validity."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image, ImageOps

from dinodomain_remote_sensing import aerial


def test_orthophotos_keep_place_and_depth(lab):
    pixels = lab.counts(4, 8, 9)
    record = lab.only(aerial, lab.write("a.tif", pixels, colours=("red", "green", "blue", "undefined"), gsd=0.25))
    assert record.channels == ("red", "green", "blue", "nir")
    assert record.scale == (1 / 65535,) * 4
    assert record.spacing == (0.25, 0.25)
    np.testing.assert_array_equal(lab.everything(record), pixels)


def test_bits_in_use_set_full_scale(lab):
    record = lab.only(aerial, lab.write("a.tif", lab.counts(3, 4, 4), photometric="RGB", nbits=12))
    assert record.scale == (1 / 4095,) * 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_plain_pictures_are_whole_and_nowhere(lab, suffix):
    lab.folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 40, 3), dtype=np.uint8)
    options = {"subsampling": 0} if suffix == "jpg" else {}  # decoders differ in how they enlarge subsampled colour
    Image.fromarray(pixels).save(lab.folder / f"a.{suffix}", **options)
    record = lab.only(aerial)
    assert record.layout == "whole"
    assert record.crs is None
    assert record.affine is None
    assert np.isnan(record.spacing).all()
    expected = np.asarray(Image.open(lab.folder / f"a.{suffix}"))
    rounding = 1 if suffix == "jpg" else 0  # two JPEG decoders
    np.testing.assert_allclose(lab.everything(record).transpose(1, 2, 0).astype(int), expected.astype(int), rtol=0, atol=rounding)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_in_every_window(lab, orientation):
    lab.folder.mkdir()
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(lab.folder / "a.png", exif=exif)
    with Image.open(lab.folder / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    record = lab.only(aerial)
    np.testing.assert_array_equal(lab.everything(record), expected)
    np.testing.assert_array_equal(record.read((slice(1, 3), slice(2, 5))), expected[:, 1:3, 2:5])
    assert bool(record.stages) == (orientation != 1)


def test_alpha_of_a_picture_turns_with_it(lab):
    lab.folder.mkdir()
    pixels = np.full((2, 3, 4), 255, np.uint8)
    pixels[0, 2, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(lab.folder / "a.png", exif=exif)
    np.testing.assert_array_equal(lab.invalid(lab.only(aerial)), [[0, 0], [0, 0], [0, 1]])


def test_ink_grey_and_float_are_refused(lab):
    path = lab.write("ink.tif", lab.counts(4, 4, 4, dtype="uint8"), photometric="CMYK")
    assert "ink or hue" in lab.refusal(aerial, path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).convert("CMYK").save(lab.folder / "ink.jpg")
    assert "ink or hue" in lab.refusal(aerial, lab.folder / "ink.jpg")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(lab.folder / "grey.png")
    assert "1 band without names" in lab.refusal(aerial, lab.folder / "grey.png")
    path = lab.write("f.tif", np.zeros((3, 4, 4), "float32"), photometric="RGB")
    assert "8 or 16 bit" in lab.refusal(aerial, path)


def test_a_tiff_with_a_grid_but_no_crs_is_refused(lab):
    lab.write("a.tif", lab.counts(3, 4, 4, dtype="uint8"), crs=None, photometric="RGB")
    assert "GeoTIFF without CRS" in lab.refusal(aerial)


def test_near_infrared_written_as_alpha_is_remarked_and_taken_when_named(lab):
    pixels = np.random.default_rng(0).integers(1, 255, (4, 20, 20), dtype=np.uint8)
    path = lab.write("a.tif", pixels, photometric="RGB", alpha="YES")
    record = lab.only(aerial, path)
    assert record.channels == ("red", "green", "blue")
    assert "ingest.bands=[red,green,blue,nir]" in record.warnings[0]
    named = lab.only(aerial, path, bands=("red", "green", "blue", "nir"))
    assert named.channels == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(lab.everything(named), pixels)
    assert not named.warnings


def test_an_alpha_that_only_cuts_out_is_no_matter_of_warning(lab):
    pixels = lab.counts(4, 20, 20, dtype="uint8")
    pixels[3] = np.where(np.eye(20), 0, 255)
    assert not lab.only(aerial, lab.write("a.tif", pixels, photometric="RGB", alpha="YES")).warnings


def test_jpeg_inside_a_tiff_comes_as_rgb(lab):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(30, 220, (3, 4, 4)), np.ones((16, 16))).astype("uint8")
    path = lab.write("a.tif", pixels, photometric="YCbCr", compress="JPEG", tiled=True, blockxsize=64, blockysize=64, gsd=0.2)
    record = lab.only(aerial, path)
    assert record.channels == ("red", "green", "blue")
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(lab.everything(record), dataset.read())
    assert np.abs(lab.everything(record).astype(int) - pixels).mean() < 6  # lossy, but these colours


def test_a_cloud_optimised_file_is_read_at_full_resolution(lab):
    pixels = np.random.default_rng(1).integers(0, 65535, (4, 600, 520), dtype=np.uint16)
    plain = lab.write("plain.tif", pixels, colours=("red", "green", "blue", "undefined"), gsd=0.5)
    with rasterio.open(plain) as source:
        rasterio.shutil.copy(source, lab.folder / "cog.tif", driver="COG", compress="deflate", overview_resampling="average", blocksize=128)
    with rasterio.open(lab.folder / "cog.tif") as dataset:
        assert dataset.overviews(1)
    record = lab.only(aerial, lab.folder / "cog.tif")
    np.testing.assert_array_equal(record.read((slice(100, 420), slice(7, 501))), pixels[:, 100:420, 7:501])


def test_a_world_file_alone_gives_no_system(lab):
    """A grid without a CRS may lie anywhere: of a TIFF it is refused, a PNG stays a picture."""
    pixels = lab.counts(3, 8, 8, dtype="uint8")
    world = "0.5\n0\n0\n-0.5\n600000.25\n5300039.75\n"
    lab.folder.mkdir()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(lab.folder / "a.tif")
    (lab.folder / "a.tfw").write_text(world)
    assert "without CRS" in lab.refusal(aerial, lab.folder / "a.tif")
    Image.fromarray(pixels.transpose(1, 2, 0)).save(lab.folder / "b.png")
    (lab.folder / "b.pgw").write_text(world)
    assert lab.only(aerial, lab.folder / "b.png").crs is None


def test_a_world_file_and_a_system_beside_a_picture_place_it(lab):
    lab.folder.mkdir()
    pixels = lab.counts(3, 8, 8, dtype="uint8")
    Image.fromarray(pixels.transpose(1, 2, 0)).save(lab.folder / "a.png")
    (lab.folder / "a.pgw").write_text("0.5\n0\n0\n-0.5\n600000.25\n5300039.75\n")
    (lab.folder / "a.png.aux.xml").write_text(f"<PAMDataset><SRS>{rasterio.crs.CRS.from_epsg(32632).to_wkt()}</SRS></PAMDataset>")
    (ref,) = lab.found(aerial)
    record = aerial.read(ref)
    assert record.affine[:6] == (0.5, 0.0, 600000.0, 0.0, -0.5, 5300040.0)
    assert record.spacing == (0.5, 0.5)
    (lab.folder / "a.pgw").write_text("0.5\n0\n0\n-0.5\n700000.25\n5300039.75\n")
    (moved,) = lab.found(aerial)
    assert moved.digest != ref.digest  # another place is another source
