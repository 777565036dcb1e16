"""Whether the tissue of a face stands in a volume of a head: how far its profile falls back from the forehead to nose and mouth.

A face that was removed, or a brain that was cut out, leaves a profile that falls back by centimetres; nose and mouth of a face stand about
as far forward as the forehead. Nothing is rendered and nobody recognised. Volumes [Z, Y, X] grow towards superior, anterior and right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from dinodomain.audit.masks.regions import otsu
from dinodomain.errors import UserError
from dinodomain.store import Store

State = Literal["stands", "removed", "undecided", "no head"]

CELL = 3.0
"""Millimetres: what volumes are averaged to."""
FOREHEAD, NOSE = (40.0, 90.0), (130.0, 180.0)
"""Millimetres below the top of the head."""
STANDS, REMOVED = 15.0, 30.0
"""Millimetres that the profile falls back by, at most where a face stands and at least where it was removed (experiments.md)."""
SEEN = 40.0
"""Millimetres of the stretch from nose to mouth that must lie in the volume."""
_CLOSED = 2  # cells: smaller gaps in tissue are closed
_MIDDLE = 15.0  # millimetres to either side of the middle that make the profile
_TOP_AREA, _OPEN_AREA = 4.0, 30.0  # square centimetres: where a head begins, and what the uppermost slice holds where the top is cut off
_WIDTH = (100.0, 200.0)  # millimetres that heads are wide at the forehead


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a volume shows.

    Attributes:
        state: Whether a face stands in it; ``no head`` where it holds no top of a head.
        fall: Millimetres from the foremost point of the forehead back to that of nose and mouth; NaN where they are not both there.
    """

    state: State
    fall: float = float("nan")


def read_heads(store: Store, rows: np.ndarray) -> dict[int, Head]:
    """Row of the index to what it shows, first channel; rows that cannot be read are left out, volumes without a spacing are undecided."""
    found = {}
    for row in rows.tolist():
        facts = store.row(row)
        whole = np.zeros(tuple(facts["shape"]), facts["dtype"])
        try:
            store.read_box(row, (0, 0, 0), whole)
        except UserError:  # a damaged file is what rehashing tells
            continue
        oriented = facts["affine"] is not None and np.isfinite(facts["spacing"]).all()
        found[row] = look(whole[0], facts["spacing"]) if oriented else Head(state="undecided")
    return found


def look(volume: np.ndarray, spacing: Sequence[float]) -> Head:
    """Finds the profile of a head.

    Args:
        volume: [Z, Y, X] of any intensity in which tissue is brighter than air.
        spacing: Millimetres along each axis.
    """
    cells, sides = _cells(volume, spacing)
    body = _body(cells)
    area = body.sum(axis=(1, 2)) * sides[1] * sides[2] / 100
    if not (area > _TOP_AREA).any() or area[-1] > _OPEN_AREA:
        return Head(state="no head")
    top = int(np.flatnonzero(area > _TOP_AREA)[-1])
    forehead, nose = (_below(top, stretch, sides[0]) for stretch in (FOREHEAD, NOSE))
    width = max((np.flatnonzero(part.any(axis=0)).size * sides[2] for part in body[forehead] if part.any()), default=0.0)
    if not _WIDTH[0] <= width <= _WIDTH[1]:
        return Head(state="no head")
    reach = _profile(body, sides[2]) * sides[1]
    if (nose.stop - nose.start) * sides[0] < SEEN:
        return Head(state="undecided")
    fall = float(reach[forehead].max() - reach[nose].max())
    return Head(state="stands" if fall <= STANDS else "removed" if fall >= REMOVED else "undecided", fall=fall)


def _cells(volume: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, list[float]]:
    """Means over cells of about three millimetres, and the sides of a cell."""
    steps = [max(1, round(CELL / side)) for side in spacing]
    kept = [size // step for size, step in zip(volume.shape, steps)]
    cut = volume[tuple(slice(0, size * step) for size, step in zip(kept, steps))].astype(np.float32)
    split = cut.reshape(kept[0], steps[0], kept[1], steps[1], kept[2], steps[2])
    return split.mean(axis=(1, 3, 5)), [side * step for side, step in zip(spacing, steps)]


def _body(cells: np.ndarray) -> np.ndarray:
    """The largest bright object, holes filled. Half way to Otsu's threshold: dark tissue is tissue, too."""
    low, high = np.percentile(cells, [1, 99])
    if high <= low:
        return np.zeros(cells.shape, bool)
    clipped = np.clip(cells, low, high)
    light = np.pad(clipped > low + 0.5 * (otsu(clipped.ravel()) - low), _CLOSED, mode="edge")
    bright = ndimage.binary_closing(light, iterations=_CLOSED)[(slice(_CLOSED, -_CLOSED),) * 3]
    parts, count = ndimage.label(bright)
    if not count:
        return np.zeros(cells.shape, bool)
    largest = 1 + int(np.argmax(ndimage.sum_labels(bright, parts, np.arange(1, count + 1))))
    found: np.ndarray = ndimage.binary_fill_holes(parts == largest)
    return found


def _below(top: int, stretch: tuple[float, float], side: float) -> slice:
    """Slices between two distances below the top, as far as the volume goes."""
    return slice(max(0, top - round(stretch[1] / side)), max(0, top - round(stretch[0] / side) + 1))


def _profile(body: np.ndarray, side: float) -> np.ndarray:
    """[Z] the foremost cell of the middle of the head, -1 where there is none."""
    middle = round(np.average(np.arange(body.shape[2]), weights=body.sum(axis=(0, 1))))
    half = round(_MIDDLE / side)
    seen = np.any(body[:, :, max(0, middle - half) : middle + half + 1], axis=2)
    return np.where(seen.any(axis=1), seen.shape[1] - 1 - np.argmax(seen[:, ::-1], axis=1), -1)


def made_up(*, face: bool) -> np.ndarray:
    """[80, 80, 60] a head of cells of three millimetres, for tests: a skull on a neck, with nose and jaw or cut off below the brow."""
    z, y, x = np.indices((80, 80, 60)) * 3.0
    skull = ((z - 160) / 65) ** 2 + ((y - 110) / 90) ** 2 + ((x - 90) / 70) ** 2 < 1
    neck = (z < 140) & (((y - 90) / 50) ** 2 + ((x - 90) / 55) ** 2 < 1)
    front = (z > 25) & (z < 140) & (y > 90) & (y < 195) & (abs(x - 90) < 50)
    nose = (z > 70) & (z < 100) & (y >= 195) & (y < 215) & (abs(x - 90) < 12)
    body = np.where((z < 130) & (y > 120), False, skull | neck)
    return np.where(body | (face & (front | nose)), 100.0, 2.0).astype(np.float32)
