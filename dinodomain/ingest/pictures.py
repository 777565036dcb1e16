"""Pictures of sources for people: the middle slice of a volume in radiological display, rasters north up, images as they are.

Radiological display: the viewer faces the patient, so the patient's right is on the left of an axial or coronal picture, anterior is on
top of an axial one and on the left of a sagittal one, and superior is on top of the others. The slice shown is axial, unless a volume was
acquired in coronal or sagittal slices: then it lies in those. Which array axis is which, and which way it runs, is read from the affine;
sides that lean by 15 degrees or more towards another are named by both (``RA``). Without an affine, slices are shown as stored and their
sides stay unnamed. A radiograph is turned only by what its header says of its rows and columns (field ``patient_orientation``).

Rasters are mirrored and transposed until the grid's north is nearest to the top; a rotated grid is not resampled, its sides are named by
the sixteen-point compass. A scene larger than 512 pixels is shown by its middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinodomain.show.contact_sheet import Picture
from dinodomain.show.sides import compass, letters, volume_directions
from dinodomain.store.read import Store

_SIDE = 512
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("b04", "b03", "b02"), ("b4", "b3", "b2"))
_THICK = 1.5
"""A volume whose slices are so much further apart than its pixels was acquired in those slices."""

_PLANES = {2: (0, 1), 1: (0, 2), 0: (1, 2)}
"""World axis that a slice is cut across (0 left-right, 1 anterior-posterior, 2 inferior-superior): world axes across and down it."""

_TO_RIGHT, _DOWN = {0: -1, 1: -1}, {1: -1, 2: -1}
"""Radiological display: columns run to the patient's left, or to posterior in a sagittal picture; rows to posterior or inferior."""

_OPPOSITE = str.maketrans("RLAPHF", "LRPAFH")
_SHOWN_FIELDS = ("view", "laterality")
_NO_SIDES = ("", "", "", "")


def picture_of(store: Store, row: int) -> Picture:
    """One source of a store, ready to be shown."""
    facts = store.row(row)
    fields = json.loads(facts["fields"] or "{}")
    picture = _slice(store, row, facts) if len(facts["shape"]) == 4 else _image(store, row, facts, fields)
    words = [str(fields[name]) for name in _SHOWN_FIELDS if fields.get(name)]
    title = " ".join([facts["source_id"][-28:], *words])
    return Picture(pixels=picture.pixels, title=title, sides=picture.sides, aspect=picture.aspect)


def _image(store: Store, row: int, facts: Mapping[str, Any], fields: Mapping[str, Any]) -> Picture:
    start, extent = _middle(facts["shape"][1:])
    chosen = _colours(facts["channels"])
    image = np.moveaxis(_stretched(store, row, facts, start, extent)[list(chosen)], 0, -1)
    steps = facts["spacing"]
    aspect = steps[0] / steps[1] if np.isfinite(steps).all() and min(steps) > 0 else 1.0
    if facts["crs"]:
        sides, flips, swap = _north_up(facts["affine"])
    else:
        sides, flips, swap = _patient_up(str(fields.get("patient_orientation") or ""))
    image = np.swapaxes(image, 0, 1) if swap else image
    return Picture(pixels=np.squeeze(image[:: flips[0], :: flips[1]], axis=2) if len(chosen) == 1 else image[:: flips[0], :: flips[1]],
                   title="", sides=sides, aspect=1 / aspect if swap else aspect)  # fmt: skip


_Turn = tuple[tuple[str, str, str, str], tuple[int, int], bool]
"""Names of the sides, steps along rows and columns, and whether the axes must change places first."""


def _north_up(affine: Sequence[float] | None) -> _Turn:
    """The nearest of the eight symmetries of the square; what is left of a rotation shows in the names of the sides."""
    if affine is None:
        return _NO_SIDES, (1, 1), False
    a, b, _, d, e = affine[:5]
    column, line = _unit(a, d), _unit(b, e)  # where columns and rows run to: (east, north)
    swap = abs(line[0]) + abs(column[1]) > abs(column[0]) + abs(line[1])
    across, down = (line, column) if swap else (column, line)
    flips = (-1 if down[1] > 0 else 1, -1 if across[0] < 0 else 1)
    right, bottom = (across[0] * flips[1], across[1] * flips[1]), (down[0] * flips[0], down[1] * flips[0])
    ends = ((-right[0], -right[1]), right, (-bottom[0], -bottom[1]), bottom)
    left_name, right_name, top_name, bottom_name = (compass(east, north) for east, north in ends)
    return (left_name, right_name, top_name, bottom_name), flips, swap


def _unit(east: float, north: float) -> tuple[float, float]:
    length = math.hypot(east, north) or 1.0
    return east / length, north / length


def _patient_up(orientation: str) -> _Turn:
    r"""A radiograph by DICOM's PatientOrientation, for example ``L\F``: where its columns run to, and its rows.

    Mirrored to the patient's right on the left, head (or, in a picture that shows neither, anterior) on top; never transposed.
    """
    parts = [part.strip().upper() for part in orientation.replace("/", "\\").split("\\")]
    if len(parts) != 2 or not all(part and set(part) <= set("RLAPHF") for part in parts):
        return _NO_SIDES, (1, 1), False
    flips = (-1 if parts[1][0] in "HA" else 1, -1 if parts[0][0] == "R" else 1)
    right = parts[0] if flips[1] > 0 else parts[0].translate(_OPPOSITE)
    bottom = parts[1] if flips[0] > 0 else parts[1].translate(_OPPOSITE)
    return (right.translate(_OPPOSITE), right, bottom.translate(_OPPOSITE), bottom), flips, False


def _colours(channels: Sequence[str]) -> tuple[int, ...]:
    """Red, green and blue where channels are called so; else the first channel in grey."""
    lower = [name.lower() for name in channels]
    for wanted in _COLOURS:
        if all(name in lower for name in wanted):
            return tuple(lower.index(name) for name in wanted)
    return (0,)


def _slice(store: Store, row: int, facts: Mapping[str, Any]) -> Picture:
    """The middle slice of the plane it was acquired in; across z where the affine is unknown."""
    directions = volume_directions(facts["affine"])
    axes = _anatomy(directions)
    spacing = facts["spacing"]
    known = bool(np.isfinite(spacing).all()) and min(spacing) > 0
    world = _plane([spacing[axis] for axis in axes]) if known and directions is not None else 2
    through, (across, down) = axes[world], (axes[_PLANES[world][0]], axes[_PLANES[world][1]])
    flat = _cut(store, row, facts, (through, down, across))
    aspect = spacing[down] / spacing[across] if known else 1.0
    if directions is None:
        return Picture(pixels=flat, title="", aspect=aspect)
    along, below = directions[across], directions[down]
    flips = [-1 if along[_PLANES[world][0]] * _TO_RIGHT[_PLANES[world][0]] < 0 else 1,
             -1 if below[_PLANES[world][1]] * _DOWN[_PLANES[world][1]] < 0 else 1]  # fmt: skip
    right, bottom = along * flips[0], below * flips[1]
    sides = (letters(-right), letters(right), letters(-bottom), letters(bottom))
    return Picture(pixels=flat[:: flips[1], :: flips[0]], title="", sides=sides, aspect=aspect)


def _cut(store: Store, row: int, facts: Mapping[str, Any], axes: tuple[int, int, int]) -> np.ndarray:
    """The middle slice across the first of three array axes, the other two as rows and columns; of the first channel."""
    shape = np.array(facts["shape"][1:])
    start, extent = np.zeros(3, int), shape.copy()
    start[axes[0]], extent[axes[0]] = shape[axes[0]] // 2, 1
    volume = _stretched(store, row, facts, start.tolist(), extent.tolist())[0]
    flat: np.ndarray = np.moveaxis(volume, axes, (0, 1, 2))[0]
    return flat


def _anatomy(directions: np.ndarray | None) -> tuple[int, int, int]:
    """Array axis (0 z, 1 y, 2 x) that runs most nearly left-right, anterior-posterior and inferior-superior."""
    if directions is None:
        return 2, 1, 0
    axes, free = [0, 0, 0], {0, 1, 2}
    for world in np.argsort(-np.abs(directions).max(axis=0)).tolist():
        axes[world] = max(free, key=lambda axis: (abs(directions[axis, world]), axis))
        free.discard(axes[world])
    return axes[0], axes[1], axes[2]


def _plane(steps: Sequence[float]) -> int:
    """World axis to cut across: the one of the widest steps where these are slices, else inferior-superior."""
    widest = int(np.argmax(steps))
    others = [step for world, step in enumerate(steps) if world != widest]
    return widest if steps[widest] >= _THICK * max(others) else 2


def _middle(shape: Sequence[int]) -> tuple[list[int], list[int]]:
    extent = [min(size, _SIDE) for size in shape]
    return [(size - side) // 2 for size, side in zip(shape, extent)], extent


def _stretched(store: Store, row: int, facts: Mapping[str, Any], start: Sequence[int], extent: Sequence[int]) -> np.ndarray:
    """[C, ...] float in 0..1 between the source's 0.5 and 99.5 percentile; 0 where invalid."""
    stored = np.zeros((facts["shape"][0], *extent), facts["dtype"])
    bits = np.zeros(tuple(extent), np.uint8)
    store.read_box(row, start, stored)
    store.read_valid(row, start, bits)
    shape = (-1, *(1,) * len(extent))
    scale, offset, low, high = (np.reshape(facts[name], shape) for name in ("scale", "offset", "low", "high"))
    unit = (stored * scale + offset - low) / np.maximum(high - low, 1e-12)
    return np.where(bits == 0, np.clip(np.nan_to_num(unit), 0, 1), 0)
