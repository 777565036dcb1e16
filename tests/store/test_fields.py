"""Whether a source has a valid field is told from the tables, exactly as the writer decided it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dinodomain.store import StorePlan, array_record, build_store
from dinodomain.store.fields import NONE, SOME, UNKNOWN, fields_of


@pytest.mark.parametrize(
    ("shape", "layout"), [((2, 61, 47), "window"), ((1, 20, 37, 41), "window"), ((1, 7, 9), "window"), ((1, 61, 47), "whole")]
)
def test_the_tables_tell_what_the_writer_wrote(tmp_path, make_pixels, shape, layout):
    full = np.maximum(make_pixels(shape, "uint16"), 1)
    holed = full.copy()
    holed[(slice(None), *(size - 1 for size in shape[1:]))] = 0  # one pixel, in the last sliver of a chunk
    empty = np.zeros_like(full)
    sources = {name: array_record(pixels, nodata=0, layout=layout) for name, pixels in (("a", full), ("b", holed), ("c", empty))}
    store = build_store(tmp_path / "s", sources, domain="made-up", plan=StorePlan(chunk=16))
    assert fields_of(store.index, store.chunks).tolist() == [NONE, SOME, SOME]
    assert [store.has_valid(row) for row in range(3)] == [False, True, True]
    folders = [(store.path / store.row(row)["array"]).parent / "valid" for row in range(3)]
    assert [folder.is_dir() for folder in folders] == ([False, True, True] if layout == "window" else [True] * 3)


def test_images_whose_share_is_too_coarse_to_tell_are_looked_up():
    index = pa.table({"item": [0, -1], "shape": [[1, 4096, 4096], [1, 64, 64]], "chunk": [[4096, 4096], [64, 64]]})
    chunks = pa.table({"row": pa.array([0, 1], pa.int32()), "chunk": [[0], [0, 0]], "valid_fraction": pa.array([1.0, 1.0], pa.float32())})
    assert fields_of(index, chunks).tolist() == [UNKNOWN, NONE]
