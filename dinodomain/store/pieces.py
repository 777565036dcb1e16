"""Which inner chunks of an array a box touches, and which part of each goes where. The same for files and for servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from dinodomain.store.format import Grid

Box = tuple[slice, ...]
Cell = tuple[int, ...]
Piece = tuple[Cell, Box, Box]
"""Inner chunk within its shard; where its part of the box lies in the box; and in the chunk."""


def pieces(grid: Grid, start: Sequence[int], extent: Sequence[int]) -> dict[Cell, list[Piece]]:
    """The chunks under the part of a box that lies inside the array, by shard, in C order.

    Everything is reckoned once per axis: a box of a volume touches dozens of chunks, which share a handful of spans.

    Args:
        grid: Of the array.
        start: First pixel per axis; may lie outside.
        extent: Pixels per axis.
    """
    found: dict[Cell, list[Piece]] = {}
    axes = [_spans(*of) for of in zip(start, extent, grid.shape, grid.chunk, grid.shard)]
    for spans in itertools.product(*axes):
        shard, cell, target, part = zip(*spans)
        found.setdefault(shard, []).append((cell, target, part))
    return found


def _spans(begin: int, extent: int, size: int, side: int, outer: int) -> list[tuple[int, int, slice, slice]]:
    """Per chunk along one axis: shard, chunk within it, span of the box, span of the chunk."""
    stop, per_shard, found = begin + extent, outer // side, []
    for i in range(max(begin, 0) // side, -(-min(stop, size) // side)):
        low, high = max(i * side, begin), min((i + 1) * side, stop)
        found.append((i // per_shard, i % per_shard, slice(low - begin, high - begin), slice(low - i * side, high - i * side)))
    return found


def outside_boxes(start: Sequence[int], extent: Sequence[int], shape: Sequence[int]) -> Iterator[Box]:
    """Parts of a box of ``extent`` at ``start`` that lie outside an array of ``shape``, in box coordinates; they may overlap."""
    for axis, (begin, size, whole) in enumerate(zip(start, extent, shape)):
        lead = (slice(None),) * axis
        if begin < 0:
            yield (*lead, slice(0, min(-begin, size)))
        if begin + size > whole:
            yield (*lead, slice(max(whole - begin, 0), size))
