"""Shrinking whole images: antialiased, blind to invalid pixels, and recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from dinodomain.ingest.shrink import shrink
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, read_source
from dinodomain.types import CLOUD, NODATA


def valid(shape):
    return np.zeros(shape, np.uint8)


def test_an_image_that_fits_passes_unchanged():
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    small = shrink(pixels, valid((8, 8)), 8)
    assert small.pixels is pixels
    assert (small.factor, small.stage) == ((1.0, 1.0), None)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_it_agrees_with_torch_antialiased_resize(dtype):
    rng = np.random.default_rng(0)
    pixels = (rng.random((2, 90, 61)) * 200).astype(dtype)
    small = shrink(pixels, valid((90, 61)), 40)
    assert small.pixels.shape == (2, 40, 27)
    assert small.pixels.dtype == pixels.dtype
    wanted = functional.interpolate(torch.from_numpy(pixels.astype(np.float32))[None], size=(40, 27), mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(small.pixels.astype(np.float32), wanted.numpy(), atol=1e-3 if dtype == "float32" else 0.51)


def test_stripes_finer_than_the_new_pixel_become_grey_and_not_stripes():
    pixels = np.zeros((1, 64, 640), np.uint8)
    pixels[..., ::2] = 200
    small = shrink(pixels, valid((64, 640)), 64)
    assert small.pixels.std() < 2
    assert small.pixels.mean() == pytest.approx(100, abs=1)


def test_invalid_pixels_never_bleed_into_their_neighbours():
    pixels, bits = np.full((1, 60, 60), 100, np.uint16), valid((60, 60))
    pixels[:, :, :31], bits[:, :31] = 60000, NODATA
    small = shrink(pixels, bits, 20)
    assert set(np.unique(small.pixels[0][small.bits == 0])) == {100}
    assert set(np.unique(small.bits)) == {0, NODATA}
    assert (small.bits == NODATA).sum() == 20 * 10


def test_the_reason_of_invalidity_is_kept():
    bits = valid((60, 60))
    bits[:30], bits[30:45] = NODATA, CLOUD
    small = shrink(np.ones((1, 60, 60), np.uint8), bits, 20)
    assert set(np.unique(small.bits[:9])) == {NODATA}
    assert set(np.unique(small.bits[11:14])) == {CLOUD}
    assert set(np.unique(small.bits[16:])) == {0}


def test_a_large_image_is_shrunk_in_the_store_and_says_so(tmp_path, run):
    affine = np.array([2.0, 0, 100, 0, -2.0, 500, 0, 0, 1])
    pixels = np.full((1, 200, 400), 50, np.uint8)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "big.npz", pixels=pixels, spacing=np.array([2.0, 2.0]), affine=affine)
    run(tmp_path / "in", tmp_path / "store", SyntheticImages(num_channels=1), max_side=100)
    store = open_store(tmp_path / "store")
    facts = store.row(0)
    assert facts["shape"] == [1, 50, 100]
    assert facts["spacing"] == [8.0, 8.0]
    assert facts["affine"] == [8.0, 0, 100, 0, -8.0, 500, 0, 0, 1]
    assert facts["stages"] == ["shrunk 200x400 to 50x100 (bilinear, antialiased)"]
    assert np.unique(read_source(store, 0)).tolist() == [50]


def test_scenes_and_volumes_are_never_shrunk(tmp_path, run):
    run("generate:1", tmp_path / "store", SyntheticImages(layout="window", size=(40, 120)), max_side=64)
    assert open_store(tmp_path / "store").row(0)["shape"] == [3, 40, 120]
