"""Pictures of sources for people: the middle axial slice of a volume in radiological display, rasters north up, images as they are.

Radiological display: the viewer faces the patient, so the patient's right is on the left of the picture and anterior is on top. Which
array axis is which, and which way it runs, is read from the affine; without one, slices are shown as stored and their sides stay unnamed.
Nothing is resampled; a scene larger than 512 pixels is shown by its middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinodomain.show.contact_sheet import Picture
from dinodomain.store.read import Store

_SIDE = 512
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("b04", "b03", "b02"), ("b4", "b3", "b2"))


def picture_of(store: Store, row: int) -> Picture:
    """One source of a store, ready to be shown."""
    facts = store.row(row)
    picture = _slice(store, row, facts) if len(facts["shape"]) == 4 else _image(store, row, facts)
    return Picture(pixels=picture.pixels, title=facts["source_id"][-28:], sides=picture.sides, aspect=picture.aspect)


def _image(store: Store, row: int, facts: Mapping[str, Any]) -> Picture:
    start, extent = _middle(facts["shape"][1:])
    chosen = _colours(facts["channels"])
    image = np.moveaxis(_stretched(store, row, facts, start, extent)[list(chosen)], 0, -1)
    steps = facts["spacing"]
    aspect = steps[0] / steps[1] if np.isfinite(steps).all() and min(steps) > 0 else 1.0
    sides, flips, swap = _north_up(facts["affine"]) if facts["crs"] else (("", "", "", ""), (1, 1), False)
    image = np.swapaxes(image, 0, 1) if swap else image
    return Picture(pixels=np.squeeze(image[:: flips[0], :: flips[1]]), title="", sides=sides, aspect=1 / aspect if swap else aspect)


def _north_up(affine: Sequence[float] | None) -> tuple[tuple[str, str, str, str], tuple[int, int], bool]:
    """Names of the sides, steps along rows and columns, and whether the axes must change places first."""
    if affine is None:
        return ("", "", "", ""), (1, 1), False
    a, b, _, d, e = affine[:5]
    swap = abs(b) > abs(a) and abs(d) > abs(e)
    east, north = (b, d) if swap else (a, e)
    return ("W", "E", "N", "S"), (-1 if north > 0 else 1, -1 if east < 0 else 1), swap


def _colours(channels: Sequence[str]) -> tuple[int, ...]:
    """Red, green and blue where channels are called so; else the first channel in grey."""
    lower = [name.lower() for name in channels]
    for wanted in _COLOURS:
        if all(name in lower for name in wanted):
            return tuple(lower.index(name) for name in wanted)
    return (0,)


def _slice(store: Store, row: int, facts: Mapping[str, Any]) -> Picture:
    """The middle slice across the inferior-superior axis; across z where the affine is unknown."""
    axes, signs = _anatomy(facts["affine"])
    through, (down, across) = axes[2], (axes[1], axes[0])
    shape = np.array(facts["shape"][1:])
    start, extent = np.zeros(3, int), shape.copy()
    start[through], extent[through] = shape[through] // 2, 1
    volume = _stretched(store, row, facts, start.tolist(), extent.tolist())[0]
    flat = np.moveaxis(volume, (through, down, across), (0, 1, 2))[0]
    spacing = facts["spacing"]
    aspect = spacing[down] / spacing[across] if np.isfinite(spacing).all() and min(spacing) > 0 else 1.0
    if facts["affine"] is None:
        return Picture(pixels=flat, title="", aspect=aspect)
    # Rows must run from anterior to posterior, columns from the patient's right to left.
    flat = flat[:: -1 if signs[1] > 0 else 1, :: -1 if signs[0] > 0 else 1]
    return Picture(pixels=flat, title="", sides=("R", "L", "A", "P"), aspect=aspect)


def _anatomy(affine: Sequence[float] | None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Array axis (0 z, 1 y, 2 x) that runs along each of R, A, S, and whether it runs towards it (1) or away (-1)."""
    if affine is None:
        return (2, 1, 0), (1, 1, 1)
    directions = np.reshape(affine, (4, 4))[:3, :3]
    directions = directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-12)
    axes, signs, free = [0, 0, 0], [1, 1, 1], {0, 1, 2}
    for world in np.argsort(-np.abs(directions).max(axis=1)):
        column = max(free, key=lambda column: abs(directions[world, column]))
        free.discard(column)
        axes[world], signs[world] = 2 - column, 1 if directions[world, column] > 0 else -1
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


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
