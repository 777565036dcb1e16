"""Orthophotos and plain pictures: fractions of full scale, upright, with validity."""

from __future__ import annotations

import numpy as np
import pytest
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
