"""Validity, statistics, valid shares and the content hash."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.lineage import ContentHash, content_hash
from dinodomain.store import array_record, measure
from dinodomain.store.measure import PixelSample, ValidShare, read_slab, slabs
from dinodomain.types import CLOUD, NODATA


def window(record):
    return tuple(slice(0, size) for size in record.shape[1:])


def test_content_hash_is_the_same_for_any_height_of_slab(make_pixels):
    pixels = make_pixels((3, 50, 20), "uint16")
    whole = content_hash(pixels, ("r", "g", "b"))
    for lines in (1, 7, 32, 50):
        running = ContentHash("u2", pixels.shape, ("r", "g", "b"))
        for first in range(0, 50, lines):
            running.update(pixels[:, first : first + lines])
        assert running.hexdigest() == whole


def test_content_hash_depends_on_pixels_dtype_shape_and_names(make_pixels):
    pixels = make_pixels((2, 8, 9), "uint8")
    changed = pixels.copy()
    changed[1, 7, 8] ^= 1
    hashes = [content_hash(pixels, ("a", "b")), content_hash(changed, ("a", "b")), content_hash(pixels, ("b", "a"))]
    hashes += [content_hash(pixels.reshape(2, 9, 8), ("a", "b")), content_hash(pixels.view("int8"), ("a", "b"))]
    assert len(set(hashes)) == 5


@pytest.mark.parametrize("worth", [0, 2**30], ids=["counted", "kept"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_statistics_of_a_small_source_are_exact(make_pixels, monkeypatch, dtype, worth):
    monkeypatch.setattr(measure, "_WORTH_COUNTING", worth)
    pixels = make_pixels((2, 120, 90), dtype)
    pixels[0, :2, :3] = np.iinfo(dtype).min
    pixels[1, :2, :3] = np.iinfo(dtype).max
    bits = (pixels[0] % 3 == 0).astype(np.uint8)
    sample = PixelSample(pixels.shape, dtype)
    for first in range(0, 120, 32):
        sample.add(first, pixels[:, first : first + 32], bits[first : first + 32])
    found = sample.stats((2.0, -1.0), (5.0, 0.0))
    valid = pixels[:, bits == 0].astype(float) * np.array([[2.0], [-1.0]]) + np.array([[5.0], [0.0]])
    np.testing.assert_allclose(found.low, np.percentile(valid, 0.5, axis=1))
    np.testing.assert_allclose(found.high, np.percentile(valid, 99.5, axis=1))
    np.testing.assert_allclose(found.mean, valid.mean(axis=1))
    np.testing.assert_allclose(found.std, valid.std(axis=1))


def test_statistics_of_a_large_source_come_from_a_sample_that_ignores_slabs(make_pixels, monkeypatch):
    monkeypatch.setattr(measure, "_SAMPLE_LEAST", 2**12)
    monkeypatch.setattr(measure, "_SAMPLE_PER_CHANNEL", 2**13)
    pixels = make_pixels((2, 300, 400), "float32")
    bits = np.zeros((300, 400), np.uint8)
    found = []
    for lines in (300, 64):
        sample = PixelSample(pixels.shape, "float32")
        for first in range(0, 300, lines):
            sample.add(first, pixels[:, first : first + lines], bits[first : first + lines])
        found.append(sample.stats((1.0, 1.0), (0.0, 0.0)))
    assert found[0] == found[1]
    spread = pixels.std(axis=(1, 2))
    np.testing.assert_allclose(found[0].mean, pixels.mean(axis=(1, 2)), atol=0.05 * spread.min())
    np.testing.assert_allclose(found[0].low, np.percentile(pixels, 0.5, axis=(1, 2)), atol=0.2 * spread.min())


@pytest.mark.parametrize("worth", [0, 2**30], ids=["counted", "kept"])
def test_statistics_without_a_valid_pixel_are_nan(monkeypatch, worth):
    monkeypatch.setattr(measure, "_WORTH_COUNTING", worth)
    sample = PixelSample((1, 4, 4), "uint8")
    sample.add(0, np.zeros((1, 4, 4), np.uint8), np.ones((4, 4), np.uint8))
    assert all(math.isnan(value) for value in sample.stats((1.0,), (0.0,)).low)


def test_a_nodata_value_in_any_channel_marks_the_pixel(make_pixels):
    pixels = make_pixels((3, 6, 6), "uint16")
    pixels[1, 2, 3] = 0
    slab = read_slab(array_record(pixels, nodata=0), (slice(0, 6), slice(0, 6)))
    assert np.argwhere(slab.bits == NODATA).tolist() == [[2, 3]]
    assert slab.pixels[1, 2, 3] == 0


@pytest.mark.parametrize("nodata", [-9999.0, 70000.0, 0.5, math.nan, math.inf, 1e40])
def test_a_nodata_value_that_the_dtype_cannot_hold_marks_nothing(make_pixels, nodata):
    for dtype in ("uint8", "float32"):
        record = array_record(make_pixels((1, 5, 5), dtype), nodata=nodata)
        assert not read_slab(record, window(record)).bits.any()


def test_pixels_that_are_not_finite_become_0_and_nodata():
    pixels = np.ones((2, 4, 4), np.float32)
    pixels[0, 1, 1], pixels[1, 2, 2] = np.nan, -np.inf
    record = array_record(pixels)
    slab = read_slab(record, window(record))
    assert np.isfinite(slab.pixels).all()
    assert slab.mended == 2
    assert np.argwhere(slab.bits).tolist() == [[1, 1], [2, 2]]


def test_given_bits_are_kept_beside_derived_ones():
    valid = np.zeros((4, 4), np.uint8)
    valid[0] = CLOUD
    record = array_record(np.eye(4, dtype=np.uint8)[None], nodata=1, valid=valid)
    assert read_slab(record, window(record)).bits[0, 0] == CLOUD | NODATA


def test_valid_share_counts_slivers_against_a_full_chunk_and_small_sources_against_themselves():
    share = ValidShare((9, 5), (4, 4))
    for first in (0, 4, 8):
        share.add(first, np.zeros((min(4, 9 - first), 5), np.uint8))
    np.testing.assert_allclose(share.fractions(), [[1, 0.25], [1, 0.25], [0.25, 0.0625]])
    small = ValidShare((2, 3), (4, 4))
    small.add(0, np.array([[0, 0, 0], [1, 0, 0]], np.uint8))
    np.testing.assert_allclose(small.fractions(), [[5 / 6]])


def test_valid_share_agrees_with_a_plain_loop_in_3d():
    bits = np.random.default_rng(0).integers(0, 2, (10, 9, 7)).astype(np.uint8)
    share = ValidShare(bits.shape, (4, 4, 4))
    for first in range(0, 10, 4):
        share.add(first, bits[first : first + 4])
    for z, y, x in np.ndindex(3, 3, 2):
        block = bits[4 * z : 4 * z + 4, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert share.fractions()[z, y, x] == pytest.approx(np.sum(block == 0) / 64)


def test_a_reader_that_breaks_its_word_is_named(make_pixels):
    record = array_record(make_pixels((1, 6, 6), "uint8"))
    with pytest.raises(UserError, match=r"read gave uint8 \(1, 6, 6\); allowed: uint16"):
        next(slabs(replace(record, dtype="uint16"), 6))
    with pytest.raises(UserError, match="read_valid gave float64"):
        next(slabs(replace(record, read_valid=lambda w: np.zeros((6, 6))), 6))
