"""Columns of the store's tables as flat arrays: whole columns at once, because a Python value per source or chunk is what costs time.

Codes are small integers that stand for values: equal values, equal codes. Nothing here knows what a column means.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def matrix(table: pa.Table, name: str) -> np.ndarray:
    """A list column whose lists are equally long, as [n, k] int64."""
    column = _one(table[name])
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1).astype(np.int64)


def ragged(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column as all its values one after the other, and [n] int64 how many each row has (0 where it is null)."""
    column = _one(table[name])
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False), lengths.astype(np.int64)


def text_codes(values: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n] int64 of strings and what they stand for (object array); code -1 for null."""
    encoded = _one(values).cast(pa.string()).dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, np.array([*encoded.dictionary.to_pylist(), None], dtype=object)[:-1]


def row_codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the rows of a matrix, in order of first appearance.

    Args:
        values: [n, k] int64, or float64 (compared bit by bit).

    Returns:
        [n] int64 codes, and [codes] int64 the first row that has each.
    """
    rows = np.ascontiguousarray(values)
    kind = pa.binary(rows.shape[1] * rows.itemsize)
    encoded = pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)]).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.full(len(encoded.dictionary), len(rows), dtype=np.int64)
    np.minimum.at(first, codes, np.arange(len(rows)))
    return codes, first


def list_codes(table: pa.Table, name: str) -> np.ndarray:
    """[n] int64 codes of a column of string lists, which may differ in length."""
    column = _one(table[name])
    items, _ = text_codes(column.flatten())
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    codes, used = np.empty(len(column), dtype=np.int64), 0
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        found, first = row_codes(items[starts[rows, None] + np.arange(length)]) if length else (np.zeros(len(rows), np.int64), [0])
        codes[rows] = found + used
        used += len(first)
    return codes


def expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For groups of ``counts`` members: [sum] int64 the group of each member, and its place within the group."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)


def slabs(counts: np.ndarray, most: int) -> list[slice]:
    """Runs of groups with about ``most`` members together, so that what is made of them stays small."""
    if not len(counts):
        return []
    run = np.cumsum(counts) // most
    edges = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(counts)]
    return [slice(low, high) for low, high in pairwise(edges)]


def _one(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
