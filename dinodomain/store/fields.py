"""Which sources have pixels that are not valid, told from the tables: no file has to be looked for, which on a server costs a request."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

NONE, SOME, UNKNOWN = 0, 1, 2
_EXACT = 2**23
"""Up to so many pixels a float32 share tells one pixel that is missing from none."""


def fields_of(index: pa.Table, chunks: pa.Table) -> np.ndarray:
    """[n_sources] uint8: ``NONE`` where every pixel is valid, ``SOME`` where not, ``UNKNOWN`` where the share is too coarse to tell.

    A share counts against the chunk (or a source smaller than it), so chunks at the edge of a source are full below 1.

    Args:
        index: ``schema.INDEX_SCHEMA``.
        chunks: ``schema.CHUNK_SCHEMA``.
    """
    found = np.full(index.num_rows, NONE, dtype=np.uint8)
    if index.num_rows == 0 or chunks.num_rows == 0:
        return found
    whole = index["item"].to_numpy() >= 0
    shapes, sides = _matrix(index["shape"])[:, 1:], _matrix(index["chunk"])
    rows, share = chunks["row"].to_numpy(), chunks["valid_fraction"].to_numpy()
    full = np.minimum(shapes, sides).prod(axis=1)
    inside = full[rows].astype(np.float64)
    window = ~whole[rows]
    if window.any():
        cells = _matrix(chunks["chunk"].filter(pa.array(window)))
        of = rows[window]
        inside[window] = np.clip(shapes[of] - cells * sides[of], 0, sides[of]).prod(axis=1)
    expected = (inside / full[rows]).astype(np.float32)
    found[rows[share != expected]] = SOME
    coarse = (full > _EXACT) & (found == NONE)
    found[coarse] = UNKNOWN
    return found


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """[n, D] int64 of a list column whose lists have one length."""
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy().astype(np.int64)
    return flat.reshape(len(column), -1)
