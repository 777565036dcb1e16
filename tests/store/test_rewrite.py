"""Whole images taken out of a stack: gone for every reader, all else bit-identical, digests as the writers reckon them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from dinodomain.errors import UserError
from dinodomain.store.rewrite import clear_items, folder_digest
from dinodomain.store.write import write_stack


def images(count, extent, dtype, bits=True):
    made = np.random.default_rng(0)
    for number in range(count):
        pixels = made.integers(1, 200, (2, *extent)).astype(dtype)
        field = made.integers(0, 2, extent).astype(np.uint8) if bits and number % 2 else None
        yield pixels, field


@pytest.fixture
def stack(tmp_path):
    def make(count=7, extent=(64, 64), dtype="uint8", codec="fast", name="stack"):
        folder = tmp_path / name
        items = list(images(count, extent, dtype))
        digest = write_stack(folder, iter(items), count=count, channels=("a", "b"), extent=extent, dtype=dtype, codec=codec)
        return folder, items, digest

    return make


def arrays(folder):
    return {name: zarr.open_array(str(folder / name), mode="r")[:] for name in ("data", "valid")}


@pytest.mark.parametrize("codec", ["fast", "small", "none"])
@pytest.mark.parametrize(("extent", "dtype"), [((64, 64), "uint8"), ((32, 32, 32), "int16"), ((32, 32), "float32")])
def test_items_read_as_fill_value_and_all_others_as_before(stack, codec, extent, dtype):
    folder, _, digest = stack(extent=extent, dtype=dtype, codec=codec)
    assert folder_digest(folder) == digest
    before = arrays(folder)
    assert clear_items(folder, [1, 4]) == folder_digest(folder) != digest
    after = arrays(folder)
    for name in ("data", "valid"):
        assert not after[name][[1, 4]].any()
        rest = [0, 2, 3, 5, 6]
        assert np.array_equal(after[name][rest], before[name][rest])


@pytest.mark.parametrize("cleared", [[0], [2, 5], range(7)])
def test_the_bytes_are_those_of_a_stack_written_with_empty_images(stack, tmp_path, cleared):
    """But for the validity of an array that would not have been begun, and for chunks that lie in the same order."""
    folder, items, _ = stack()
    clear_items(folder, cleared)
    empty = [(pixels * 0, None) if number in cleared else (pixels, bits) for number, (pixels, bits) in enumerate(items)]
    other = tmp_path / "other"
    digest = write_stack(other, iter(empty), count=len(empty), channels=("a", "b"), extent=(64, 64), dtype="uint8")
    assert (folder / "data" / "c").exists()
    shards = sorted(path.relative_to(folder) for path in (folder / "data").rglob("*") if path.is_file())
    assert all((folder / path).read_bytes() == (other / path).read_bytes() for path in shards)
    assert folder_digest(folder)[:64] == digest[:64]


def test_doing_it_twice_writes_nothing_more(stack):
    folder, _, _ = stack()
    first = clear_items(folder, [3])
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert clear_items(folder, [3]) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


def test_what_a_killed_run_left_is_removed(stack):
    folder, _, _ = stack()
    left = folder / "data" / "c" / "0" / "0" / "0" / ".0.tmp"
    left.write_bytes(b"part of a shard")
    clear_items(folder, [3])
    assert not left.exists()


def test_an_array_of_another_writer_is_refused(stack):
    folder, _, _ = stack()
    path = folder / "data" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"][0]["configuration"]["codecs"][1]["name"] = "gzip"
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="was not written by dinodomain"):
        clear_items(folder, [3])


@pytest.mark.parametrize("damage", ["cut", "missing", "flipped index"])
def test_a_damaged_shard_is_named(stack, damage):
    folder, _, _ = stack()
    shard = next(path for path in sorted((folder / "data" / "c").rglob("*")) if path.is_file())
    whole = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(whole[:-9] if damage == "cut" else whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    with pytest.raises(UserError, match=f"{shard.name}: .*; restore the file from a copy"):
        clear_items(folder, [3])
