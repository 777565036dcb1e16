"""Slices of a tilted gantry, or unevenly apart, brought to a straight and even grid. Linear, in float32, and stated.

The new grid keeps the first slice's pixels and directions; it is as large as all slices together, so that no pixel is cut off, and
its slices lie evenly from the first to the last, as near to the usual gap as the whole number of steps allows. In the plane each
slice is shifted by linear interpolation; between slices the linear interpolant is read, averaged over what the new step is wider
than the local gap (so that finer slices do not alias). Padding takes no part: a new voxel is the weighted mean of measured ones, and
is no data where they make up less than half of its weight. Integers are rounded to whole stored numbers, of the same type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dinodomain.errors import BadSource
from dinodomain.types import NODATA

if TYPE_CHECKING:
    from dinodomain_medical.dicom_header import Header

MAX_MISSING = 1
"""Slices that may be missing at one place and are interpolated over; more are refused."""

_SLACK = 1.05
_SAMPLES = 16
_WHOLE_PIXEL = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class StraightGrid:
    """The grid, and how each slice lies in it.

    Attributes:
        affine: 4x4, index (column, row, slice) of the new grid to LPS mm.
        size: Columns and rows of the new grid beyond those of a slice.
        start: [n, 2] where the first pixel (column, row) of each slice lies in the new grid, in pixels; not whole as a rule.
        weights: [new slices, n] share of each slice in each new one; rows sum to 1.
        stage: What is done, in words and numbers.
    """

    affine: np.ndarray
    size: tuple[int, int]
    start: np.ndarray
    weights: np.ndarray
    stage: str


def straighten(
    places: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    spacing: tuple[float, float],
    headers: Sequence[Header],
    fault: str,
    uri: str,
) -> StraightGrid:
    """Lays a straight grid through slices.

    Args:
        places: [n, 3] LPS mm of the first pixel of each slice, in order along the normal.
        across: Direction of rising columns.
        down: Direction of rising rows.
        spacing: mm between rows, between columns.
        headers: A header per slice, for its thickness.
        fault: What is irregular, for the stage.
        uri: Name of the series for messages.

    Raises:
        BadSource: More than ``MAX_MISSING`` slices are missing at one place.
    """
    normal = np.cross(across, down)
    steps = places - places[0]
    depth = steps @ normal
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    refuse_holes(places, normal, headers, uri)
    shift = np.stack([steps @ across / spacing[1], steps @ down / spacing[0]], axis=1)
    shift = np.where(np.abs(shift - np.rint(shift)) < _WHOLE_PIXEL, np.rint(shift), shift)
    low, high = np.floor(shift.min(axis=0)), np.ceil(shift.max(axis=0))
    count = max(round(float(depth[-1]) / usual), 1)
    step = float(depth[-1]) / count
    new = np.arange(count + 1) * step
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = across * spacing[1], down * spacing[0], normal * step
    affine[:3, 3] = places[0] + across * (low[0] * spacing[1]) + down * (low[1] * spacing[0])
    return StraightGrid(
        affine=affine,
        size=(int(high[0] - low[0]), int(high[1] - low[1])),
        start=shift - low,
        weights=_weights(depth, new, step),
        stage=_stage(fault, gaps, usual, depth, new, step),
    )


def refuse_holes(places: np.ndarray, normal: np.ndarray, headers: Sequence[Header], uri: str) -> None:
    """Refuses series that no grid is laid through; arguments as in ``straighten``.

    Thick slices may lie far apart; what is wider than both the usual gap and the slices there is a hole.

    Raises:
        BadSource: More than ``MAX_MISSING`` slices are missing at one place.
    """
    gaps = np.diff(places @ normal)
    usual = float(np.median(gaps))
    for at, gap in enumerate(gaps):
        thick = max(headers[at].thickness or 0.0, headers[at + 1].thickness or 0.0)
        if gap > (MAX_MISSING + 1) * _SLACK * max(usual, thick):
            raise BadSource(
                uri,
                f"{round(float(gap) / usual) - 1} missing between slices {at + 1} and {at + 2} (gap {gap:.2f} mm, usually {usual:.2f} mm)",
                f"bring the missing slices, or exclude the series: no more than {MAX_MISSING} is interpolated",
            )


def _weights(depth: np.ndarray, new: np.ndarray, step: float) -> np.ndarray:
    """Average of the linear interpolant over a window about each new slice that never leaves the old ones."""
    gaps = np.diff(depth)
    after = np.clip(np.searchsorted(depth, new + 1e-6 * step), 1, len(gaps))
    before = np.clip(np.searchsorted(depth, new - 1e-6 * step), 1, len(gaps))
    local = (gaps[after - 1] + gaps[before - 1]) / 2
    width = np.minimum(np.maximum(step - local, 0), 2 * np.minimum(new, depth[-1] - new).clip(0))
    width[width < 1e-6 * step] = 0.0
    offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES - 0.5
    at = (new[:, None] + width[:, None] * offsets).ravel()
    one = np.eye(len(depth))
    read = np.stack([np.interp(at, depth, row) for row in one], axis=1)
    weights: np.ndarray = read.reshape(len(new), _SAMPLES, len(depth)).mean(axis=1)
    weights[weights < 1e-9] = 0.0
    shares: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def _stage(fault: str, gaps: np.ndarray, usual: float, depth: np.ndarray, new: np.ndarray, step: float) -> str:
    text = (
        f"resampled linearly to a straight grid: {fault}; {len(depth)} slices {gaps.min():.2f}..{gaps.max():.2f} mm apart"
        f" -> {len(new)} slices {step:.3f} mm apart"
    )
    wide = np.flatnonzero(gaps > 1.5 * usual)
    made = [str(k) for k, z in enumerate(new) if any(depth[g] + 0.25 * usual < z < depth[g + 1] - 0.25 * usual for g in wide)]
    return text + (f"; interpolated over a missing slice: {', '.join(made)} in the order of the normal" if made else "")


def resample(array: np.ndarray, missing: np.ndarray | None, grid: StraightGrid, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """Reads slices on the straight grid.

    Args:
        array: [n, rows, columns] stored values in the order of the grid's ``start``.
        missing: [n, rows, columns] non-zero where a voxel was not measured, or None.
        grid: The grid.
        fill: Stored value of voxels without data.

    Returns:
        The new array of the same type, and its valid bit field (bit 1 outside the slices' field and where padding prevails).
    """
    rows, columns = array.shape[1] + grid.size[1], array.shape[2] + grid.size[0]
    shape = (len(grid.weights), rows, columns)
    out, valid = np.full(shape, fill, dtype=array.dtype), np.full(shape, NODATA, dtype=np.uint8)
    held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for number, weights in enumerate(grid.weights):
        used = np.flatnonzero(weights)
        held = {at: held[at] if at in held else _shifted(array, missing, at, grid.start[at], (rows, columns)) for at in map(int, used)}
        total, weight = np.zeros((rows, columns), np.float32), np.zeros((rows, columns), np.float32)
        for at in used:
            total += weights[at] * held[int(at)][0]
            weight += weights[at] * held[int(at)][1]
        good = weight >= 0.5
        values = total[good] / weight[good]
        out[number][good] = values if array.dtype.kind == "f" else np.rint(values)
        valid[number][good] = 0
    return out, valid


def _shifted(
    array: np.ndarray, missing: np.ndarray | None, at: int, start: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """One slice at its place in the new plane: values times weight, and weight."""
    plane = array[at].astype(np.float32)
    known = np.ones(plane.shape, np.float32) if missing is None else (missing[at] == 0).astype(np.float32)
    values, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    column, row = np.floor(start).astype(int)
    right, below = (start - np.floor(start)).astype(np.float32)
    height, width = plane.shape
    for row_step, row_share in ((0, 1 - below), (1, below)):
        for column_step, column_share in ((0, 1 - right), (1, right)):
            share = np.float32(row_share * column_share)
            if share > 0:
                top, left = row + row_step, column + column_step
                values[top : top + height, left : left + width] += share * plane * known
                weight[top : top + height, left : left + width] += share * known
    return values, weight
