"""The chunk table by place: how much of any box of any source is valid, and whether the box touches the audit holdout.

Whole boxes are judged from the chunk table alone, without opening an array. A chunk knows how many of its pixels are valid, not which:
a box that covers a part of a chunk is taken to hold that part of its valid pixels. S sources, N chunks, D spatial axes; units: pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa

from dinodomain.loader.columns import matrix, slabs, text_codes
from dinodomain.store import Store

_SLAB = 2**20
"""Cells that are looked at in one go: 8 MB per intermediate array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the chunk table says of n boxes.

    Attributes:
        share: [n] float32 estimated valid pixels / min(box, source) pixels.
        held: [n] bool, a pixel of the box lies in a chunk that touches a held-out unit or its buffer.
    """

    share: np.ndarray
    held: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGrid:
    """The chunk grids of all sources of a store; a whole image is a grid of one chunk.

    Attributes:
        first: [S] int64 row of the chunk table where a source begins.
        cells: [S, D] int64 chunks per axis.
        side: [S, D] int64 pixels per chunk.
        size: [S, D] int64 pixels per axis, without padding.
        valid: [N] float32 valid pixels / min(chunk, source) pixels.
        held: [N] bool, see ``Measured``.
        units: [N] int64 position in ``unit_names``.
        unit_names: Names of units.
    """

    first: np.ndarray
    cells: np.ndarray
    side: np.ndarray
    size: np.ndarray
    valid: np.ndarray
    held: np.ndarray
    units: np.ndarray
    unit_names: np.ndarray

    @staticmethod
    def of(store: Store) -> ChunkGrid:
        """The grids of a store."""
        rows = store.chunks["row"].to_numpy()
        size, side = matrix(store.index, "shape")[:, 1:], matrix(store.index, "chunk")
        ends = np.searchsorted(rows, np.arange(len(store) + 1))
        cells = -(-size // side)
        assert (np.diff(ends) == cells.prod(axis=1)).all(), "a row of the chunk table per chunk"
        units, names = _units(store, rows)
        return ChunkGrid(
            first=ends[:-1],
            cells=cells,
            side=side,
            size=size,
            valid=store.chunks["valid_fraction"].to_numpy(),
            held=store.chunks["holdout"].to_numpy() | store.column("holdout").astype(bool)[rows],
            units=units,
            unit_names=names,
        )

    def index(self, rows: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """[n] int64 row of the chunk table of cells [n, D] of sources ``rows`` [n]."""
        found: np.ndarray = self.first[rows] + self.within(rows, cells)
        return found

    def within(self, rows: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """[n] int64 number of a cell in its source, in C order."""
        counts = self.cells[rows]
        number: np.ndarray = cells[:, 0]
        for axis in range(1, cells.shape[1]):
            number = number * counts[:, axis] + cells[:, axis]
        return number

    def measure(self, rows: np.ndarray, starts: np.ndarray, extents: np.ndarray) -> Measured:
        """Judges boxes.

        The valid pixels of a box are summed over the chunks it touches, those of each chunk times the share of the chunk's real
        pixels that lie in the box. For boxes of whole chunks that is exact.

        Args:
            rows: [n] int64 rows of the index.
            starts: [n, D] int64 first pixels; boxes may reach outside their source.
            extents: [n, D] int64 sizes.
        """
        share, held = np.zeros(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=bool)
        if not len(rows):
            return Measured(share=share, held=held)
        size, side = self.size[rows], self.side[rows]
        low, high = np.clip(starts, 0, size), np.clip(starts + extents, 0, size)
        begin = low // side
        touched = tuple(np.maximum(((high - 1) // side - begin + 1).max(axis=0), 1).tolist())
        fullest = np.minimum(size, side).prod(axis=1, dtype=np.float64) / np.minimum(size, extents).prod(axis=1, dtype=np.float64)
        for part in slabs(np.full(len(rows), math.prod(touched)), _SLAB):
            where, weight = self._cells(rows[part], begin[part], low[part], high[part], touched)
            share[part] = _summed(self.valid[where] * weight) * fullest[part]
            held[part] = (self.held[where] & (weight > 0)).reshape(len(where), -1).any(axis=1)
        return Measured(share=share, held=held)

    def _cells(
        self, rows: np.ndarray, begin: np.ndarray, low: np.ndarray, high: np.ndarray, touched: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """[n, *touched] rows of the chunk table from cell ``begin`` on, and the share (float64) of each that [low, high) covers."""
        where, weights = self.first[rows], []
        axes = len(touched)
        strides = np.cumprod(np.concatenate([self.cells[rows], np.ones((len(rows), 1), np.int64)], axis=1)[:, :0:-1], axis=1)[:, ::-1]
        where = where.reshape(-1, *(1,) * axes)
        for axis, count in enumerate(touched):
            cell = begin[:, axis, None] + np.arange(count)
            left = cell * self.side[rows, axis, None]
            right = np.minimum(left + self.side[rows, axis, None], self.size[rows, axis, None])
            covered = np.minimum(right, high[:, axis, None]) - np.maximum(left, low[:, axis, None])
            shape = (len(rows), *(count if i == axis else 1 for i in range(axes)))
            weights.append((np.maximum(covered, 0) / np.maximum(right - left, 1)).reshape(shape))
            cell = np.minimum(cell, self.cells[rows, axis, None] - 1)
            where = where + (cell * strides[:, axis, None]).reshape(shape)
        return where, reduce(np.multiply, weights)


def _summed(values: np.ndarray) -> np.ndarray:
    summed: np.ndarray = values.reshape(len(values), -1).sum(axis=1)
    return summed


def _units(store: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit of each chunk: that of its source where the source has one."""
    texts = [column.combine_chunks().cast(pa.string()).fill_null("") for column in (store.index["unit"], store.chunks["unit"])]
    codes, names = text_codes(pa.concat_arrays(texts))
    of_source, of_chunk = codes[: len(store)][rows], codes[len(store) :]
    return np.where(names[of_source] != "", of_source, of_chunk), names
