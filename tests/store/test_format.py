"""Layout rules: shapes on disk and names of buckets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.store.format import SIDES, StorePlan, bucket_of, extent_of, source_folder, stack_grid, window_grid


def test_scenes_have_chunks_of_256_in_shards_of_2048():
    grid = window_grid((12, 10980, 10980), "uint16")
    assert (grid.chunk, grid.shard, grid.cells) == ((12, 256, 256), (12, 2048, 2048), (1, 43, 43))


def test_volumes_have_chunks_of_32_in_one_shard_and_no_axis_for_one_channel():
    grid = window_grid((1, 100, 512, 700), "int16")
    assert (grid.shape, grid.chunk, grid.shard) == ((100, 512, 700), (32, 32, 32), (128, 512, 512))
    assert window_grid((2, 40, 40, 40), "int16").chunk == (2, 32, 32, 32)


@pytest.mark.parametrize("shape", [(200, 500, 500), (13, 300, 300), (1, 90, 90, 90), (64, 70, 70, 70)])
@pytest.mark.parametrize("chunk", [None, 100, 256])
def test_a_chunk_stays_within_4_mib_and_divides_its_shard(shape, chunk):
    grid = window_grid(shape, "float32", chunk)
    assert math.prod(grid.chunk) * 4 <= 4 * 2**20
    assert all(shard % side == 0 for shard, side in zip(grid.shard, grid.chunk))


def test_small_images_share_chunks_of_64_kib_and_files_of_64_mib():
    grid = stack_grid(100_000, 3, (64, 64), "uint8")
    assert grid.chunk == (5, 3, 64, 64)
    files = -(-100_000 // grid.shard[0])
    assert files == 19


def test_one_large_image_is_one_chunk():
    assert stack_grid(7, 3, (1024, 1024), "uint8").chunk == (1, 3, 1024, 1024)


def test_extents_round_up_to_the_bucket_sides():
    assert [extent_of((side,))[0] for side in SIDES] == list(SIDES)
    assert extent_of((1, 33, 385, 1025)) == (32, 64, 512, 1536)


def test_bucket_names_tell_dtype_channels_and_extent_apart():
    names = {
        bucket_of("uint8", ("r", "g"), (64, 64)),
        bucket_of("uint16", ("r", "g"), (64, 64)),
        bucket_of("uint8", ("g", "r"), (64, 64)),
        bucket_of("uint8", ("r", "g"), (64, 128)),
    }
    assert len(names) == 4
    assert all("/" not in name for name in names)


def test_source_folders_do_not_show_the_source():
    folder = source_folder("patients/Doe^John.dcm", 3)
    assert folder.startswith("volumes/")
    assert len(folder.split("/")[1]) == 16
    assert "Doe" not in folder


def test_an_impossible_chunk_and_dtype_are_refused():
    with pytest.raises(UserError, match="chunk: 4 pixels; allowed: 8 to 2048"):
        StorePlan(chunk=4)
    with pytest.raises(UserError, match=r"dtype: int64 cannot be stored; allowed: uint8, uint16, int16, float32"):
        window_grid((1, 8, 8), np.dtype("int64").name)
