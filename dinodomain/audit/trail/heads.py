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
from dinodomain.types import NODATA

State = Literal["stands", "removed", "undecided", "no head"]

AIR = -1000.0
"""HU; no other modality goes as low."""
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
_TOUCHED = 260.0  # as wide as a head with a board or a coil that touches it; shoulders are wider


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a volume shows.

    Attributes:
        state: Whether a face stands in it; ``no head`` where it holds no top of a head, one narrower than 10 cm or wider than
            26; between 20 and 26 cm something may touch it, and nothing is decided.
        fall: Millimetres from the foremost point of the forehead back to that of nose and mouth; NaN where they are not both there.
    """

    state: State
    fall: float = float("nan")


def read_heads(store: Store, rows: np.ndarray) -> dict[int, Head]:
    """Row of the index to what it shows, first channel; rows that cannot be read are left out, those of unknown orientation undecided."""
    found = {}
    for row in rows.tolist():
        spacing = store.row(row)["spacing"]
        placed = store.row(row)["affine"] is not None and bool(np.isfinite(spacing).all()) and min(spacing) > 0
        try:
            found[row] = look_at(*_read_cells(store, row)) if placed else Head(state="undecided")
        except UserError:  # a damaged file is what rehashing tells
            continue
    return found


def _read_cells(store: Store, row: int) -> tuple[np.ndarray, list[float]]:
    """Cells of a volume, slab by slab; voxels without data count as the darkest that has some."""
    facts = store.row(row)
    shape, steps = tuple(facts["shape"]), _steps(facts["shape"][1:], facts["spacing"])
    lines = steps[0] * max(1, int(facts["chunk"][0]) // steps[0])
    pieces = []
    for start in range(0, shape[1] - shape[1] % steps[0], lines):
        size = (min(lines, shape[1] - shape[1] % steps[0] - start), *shape[2:])
        slab, bits = np.zeros((shape[0], *size), facts["dtype"]), np.zeros(size, np.uint8)
        store.read_box(row, (start, 0, 0), slab)
        store.read_valid(row, (start, 0, 0), bits)
        pieces.append(_averaged(np.where(bits & NODATA, np.nan, slab[0].astype(np.float32)), steps))
    return np.concatenate(pieces), [side * step for side, step in zip(facts["spacing"], steps)]


def look(volume: np.ndarray, spacing: Sequence[float]) -> Head:
    """Finds the profile of a head.

    Args:
        volume: [Z, Y, X] of any intensity in which tissue is brighter than air; NaN where there are no data.
        spacing: Millimetres along each axis.
    """
    steps = _steps(volume.shape, spacing)
    return look_at(_averaged(volume, steps), [side * step for side, step in zip(spacing, steps)])


def look_at(cells: np.ndarray, sides: Sequence[float]) -> Head:
    """The same of a volume's cells and their sides in millimetres."""
    body = _body(cells)
    area = body.sum(axis=(1, 2)) * sides[1] * sides[2] / 100
    if not (area > _TOP_AREA).any() or area[-1] > _OPEN_AREA:
        return Head(state="no head")
    top = int(np.flatnonzero(area > _TOP_AREA)[-1])
    forehead, nose = (_below(top, stretch, sides[0]) for stretch in (FOREHEAD, NOSE))
    width = max((np.flatnonzero(part.any(axis=0)).size * sides[2] for part in body[forehead] if part.any()), default=0.0)
    if not _WIDTH[0] <= width <= _WIDTH[1]:
        return Head(state="undecided" if _WIDTH[1] < width <= _TOUCHED else "no head")
    reach = _profile(body, sides[2]) * sides[1]
    if (nose.stop - nose.start) * sides[0] < SEEN:
        return Head(state="undecided")
    fall = float(reach[forehead].max() - reach[nose].max())
    return Head(state="stands" if fall <= STANDS else "removed" if fall >= REMOVED else "undecided", fall=fall)


def _steps(shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Voxels a cell has along each axis: about three millimetres, and never more than there are."""
    return [min(size, max(1, round(CELL / side))) for size, side in zip(shape, spacing)]


def _averaged(volume: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means over cells; what does not fill one is left out."""
    kept = [size // step for size, step in zip(volume.shape, steps)]
    cut = volume[tuple(slice(0, size * step) for size, step in zip(kept, steps))].astype(np.float32)
    found: np.ndarray = cut.reshape(kept[0], steps[0], kept[1], steps[1], kept[2], steps[2]).mean(axis=(1, 3, 5))
    return found


def _body(cells: np.ndarray) -> np.ndarray:
    """The largest bright object, holes filled. Half way to Otsu's threshold: dark tissue is tissue, too.

    Nothing is darker than air: padding around the field of a CT, -1024 to -3024 HU, counts as air, as do cells without data.
    """
    if np.isnan(cells).all():
        return np.zeros(cells.shape, bool)
    cells = np.maximum(np.nan_to_num(cells, nan=float(np.nanmin(cells))), AIR)
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
