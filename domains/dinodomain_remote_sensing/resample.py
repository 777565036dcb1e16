"""Pixels of one band on the target grid of its scene, for one window, with their validity.

Every method works on a window alone: the pixels of a window never depend on how a scene is cut into windows. Missing pixels take no
part in a mean; an output pixel whose missing share of weight exceeds one half is missing. Values are widened to float64 in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dinodomain_remote_sensing.geometry import Axis, Relation
from dinodomain_remote_sensing.warp import Warp, warped, warped_nearest

Block = Callable[[slice, slice], tuple[np.ndarray, np.ndarray, np.ndarray | None]]
"""Reads (values [y, x], missing [y, x] bool, saturated [y, x] bool or None) of a window of a band on its own grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Sparse-in-spirit resampling matrix of one axis.

    Attributes:
        source: Band pixels that are needed.
        matrix: [target, source] float64, rows sum to 1.
    """

    source: slice
    matrix: np.ndarray


def resampled(block: Block, relation: Relation | Warp, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Values, missing and saturated pixels of a window of the target grid.

    Args:
        block: Reader of the band on its own grid.
        relation: How the band relates to the target grid.
        rows: Target rows.
        columns: Target columns.

    Returns:
        Values [y, x] (the band's dtype where the method is lossless, else float64), missing [y, x] bool, and saturated [y, x] bool:
        where any pixel that takes part is; None where none can be.
    """
    if isinstance(relation, Warp):
        return warped(block, relation, rows, columns)
    if relation.method == "native":
        return block(rows, columns)
    if relation.method == "replicate":
        return _replicated(block, relation, rows, columns)
    down = relation.method in ("average", "area")
    y = _weights(_snapped(relation.rows, relation, 0), rows, area=down)
    x = _weights(_snapped(relation.columns, relation, 1), columns, area=down)
    values, missing, full = block(y.source, x.source)
    present = (~missing).astype(np.float64)
    weight = y.matrix @ present @ x.matrix.T
    # A missing pixel may hold anything, NaN included, and 0 * NaN is NaN.
    total = y.matrix @ np.where(missing, 0.0, values.astype(np.float64)) @ x.matrix.T
    gone = weight < 0.5
    share = None if full is None else y.matrix @ (full & ~missing).astype(np.float64) @ x.matrix.T > 0
    return np.where(gone, 0.0, total / np.where(gone, 1.0, weight)), gone, share


def taken_nearest(
    read: Callable[[slice, slice], np.ndarray], relation: Relation | Warp, rows: slice, columns: slice, *, outside: int = 0
) -> np.ndarray:
    """Classes or bits of the band pixel in which each target pixel's centre lies.

    Args:
        read: Reader [y, x] of the band on its own grid.
        relation: How the band relates to the target grid.
        rows: Target rows.
        columns: Target columns.
        outside: Value where no pixel of the band lies, which warping alone can bring about.

    Returns:
        Values [y, x].
    """
    if isinstance(relation, Warp):
        return warped_nearest(read, relation, rows, columns, outside=outside)
    y, x = _nearest(relation.rows, rows), _nearest(relation.columns, columns)
    block = read(slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1))
    return block[np.ix_(y - y[0], x - x[0])]


def _nearest(axis: Axis, window: slice) -> np.ndarray:
    centre = axis.scale * (np.arange(window.start, window.stop) + 0.5) + axis.shift
    # A hair's breadth, so that a centre on an edge falls on one side whatever the rounding of georeferences.
    return np.clip(np.floor(centre + 1e-6), 0, axis.size - 1).astype(int)


def _replicated(block: Block, relation: Relation, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    windows, cuts = [], []
    for window, axis, k in zip((rows, columns), (relation.rows, relation.columns), relation.factor):
        first, last = window.start // k, min(-(-window.stop // k), axis.size)
        windows.append(slice(first, last))
        cuts.append(slice(window.start - first * k, window.stop - first * k))
    fy, fx = relation.factor
    parts = block(windows[0], windows[1])
    values, missing, full = (None if part is None else part.repeat(fy, 0).repeat(fx, 1)[tuple(cuts)] for part in parts)
    assert values is not None
    assert missing is not None
    return values, missing, full


def _snapped(axis: Axis, relation: Relation, index: int) -> Axis:
    """A whole ratio is meant where the method is ``average``: rounding of georeferences must not leak in a neighbour."""
    if relation.method != "average":
        return axis
    return Axis(scale=float(relation.factor[index]), shift=0.0, size=axis.size)


def _weights(axis: Axis, window: slice, *, area: bool) -> Weights:
    target = np.arange(window.start, window.stop, dtype=np.float64)
    # One axis may grow while the other shrinks; a mean over less than one pixel would be nearest neighbour.
    return _overlap(axis, target) if area and axis.scale > 1.0 else _linear(axis, target)


def _overlap(axis: Axis, target: np.ndarray) -> Weights:
    start = np.clip(axis.scale * target + axis.shift, 0, axis.size - 1e-9)
    stop = np.clip(axis.scale * (target + 1) + axis.shift, start + 1e-9, axis.size)
    first, last = int(np.floor(start[0])), int(np.ceil(stop[-1]))
    pixel = np.arange(first, last, dtype=np.float64)
    shared = np.minimum(stop[:, None], pixel + 1) - np.maximum(start[:, None], pixel)
    matrix = shared.clip(min=0.0)
    return Weights(source=slice(first, last), matrix=matrix / matrix.sum(1, keepdims=True))


def _linear(axis: Axis, target: np.ndarray) -> Weights:
    centre = np.clip(axis.scale * (target + 0.5) + axis.shift - 0.5, 0, axis.size - 1)
    low = np.minimum(np.floor(centre).astype(int), max(axis.size - 2, 0))
    high = np.minimum(low + 1, axis.size - 1)
    first, last = int(low[0]), int(high[-1]) + 1
    matrix = np.zeros((len(target), last - first))
    row = np.arange(len(target))
    np.add.at(matrix, (row, low - first), 1.0 - (centre - low))
    np.add.at(matrix, (row, high - first), centre - low)
    return Weights(source=slice(first, last), matrix=matrix)
