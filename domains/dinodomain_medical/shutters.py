"""Shutters and collimators of radiographs as masks: what lies outside is no image. Numbers of the header only, never pixels.

Both modules (Display Shutter, PS3.3 C.7.6.11; X-Ray Collimator, C.8.7.3) use the same shapes: rectangle, circle, polygon, each at most
once, and what is seen lies inside all of them. Rows and columns count from 1, as everywhere in DICOM; an edge belongs to what is
seen. The radius is in pixels along a row, so where pixels are not square the circle is an ellipse of rows and columns. Does not
read bitmap shutters (overlay planes of presentation states), nor the value that a shutter is to be drawn with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_SNAP = 1e-9  # pixels: keeps a centre that lies on a slanted edge inside, whatever the rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Aperture:
    """What a shutter or a collimator leaves to be seen.

    Attributes:
        hidden: (row, column) bool, True where nothing is to be seen; None where everything is.
        shapes: Names of the shapes that took part, sorted.
        warnings: What was wrong with shapes that were left out.
    """

    hidden: np.ndarray | None
    shapes: tuple[str, ...]
    warnings: tuple[str, ...]


class Unusable(Exception):
    """A shape that cannot be drawn, and why."""


def aperture(dataset: Any, kind: Literal["Shutter", "Collimator"], shape: tuple[int, int], row_to_column: float = 1.0) -> Aperture:
    """Draws the shutter or the collimator of a header.

    Args:
        dataset: Anything with ``get(keyword)``, as a pydicom dataset.
        kind: Which of the two modules.
        shape: Rows and columns of the image.
        row_to_column: Distance between rows divided by distance between columns.

    Returns:
        The mask. A shape is left out, with a warning, if a number is missing, it has no area, or it would hide the whole image.
    """
    seen = np.ones(shape, dtype=bool)
    taken: list[str] = []
    warnings: list[str] = []
    for name in sorted(set(_words(dataset.get(f"{kind}Shape")))):
        try:
            part = _draw(name, dataset, kind, shape, row_to_column)
        except Unusable as problem:
            warnings.append(f"{kind.lower()} ignored: {problem}")
            continue
        if not (seen & part).any():
            warnings.append(f"{kind.lower()} ignored: its {name.lower()} would hide the whole image")
            continue
        seen &= part
        taken.append(name.lower())
    hidden = None if seen.all() else ~seen
    return Aperture(hidden=hidden, shapes=tuple(taken), warnings=tuple(warnings))


def _draw(name: str, dataset: Any, kind: str, shape: tuple[int, int], row_to_column: float) -> np.ndarray:
    if name == "RECTANGULAR":
        sides = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
        left, right, upper, lower = (_numbers(dataset, f"{kind}{side}", 1)[0] for side in sides)
        return rectangle(shape, left=left, right=right, upper=upper, lower=lower)
    if name == "CIRCULAR":
        centre = _numbers(dataset, f"CenterOfCircular{kind}", 2)
        radius = _numbers(dataset, f"RadiusOfCircular{kind}", 1)[0]
        return circle(shape, row=centre[0], column=centre[1], radius=radius, row_to_column=row_to_column)
    if name == "POLYGONAL":
        flat = _numbers(dataset, f"VerticesOfThePolygonal{kind}", None)
        if len(flat) % 2:
            raise Unusable(f"{len(flat)} numbers are no pairs of row and column")
        return polygon(shape, list(zip(flat[::2], flat[1::2])))
    raise Unusable("a shape that only presentation states have" if name == "BITMAP" else "a shape of an unknown name")


def rectangle(shape: tuple[int, int], *, left: float, right: float, upper: float, lower: float) -> np.ndarray:
    """(row, column) bool of a rectangle; all four edges belong to it.

    Raises:
        Unusable: It has no area.
    """
    if right < left or lower < upper:
        raise Unusable(f"columns {left:g}..{right:g} and rows {upper:g}..{lower:g} are no rectangle")
    rows, columns = _axes(shape)
    return ((rows >= upper) & (rows <= lower))[:, None] & ((columns >= left) & (columns <= right))[None]


def circle(shape: tuple[int, int], *, row: float, column: float, radius: float, row_to_column: float = 1.0) -> np.ndarray:
    """(row, column) bool of a circle; pixels whose centres lie on it belong to it.

    Raises:
        Unusable: The radius is not positive.
    """
    if radius <= 0:
        raise Unusable(f"a circle of radius {radius:g}")
    rows, columns = _axes(shape)
    down, across = (rows - row) * row_to_column, columns - column
    return np.asarray(down[:, None] ** 2 + across[None] ** 2 <= radius**2 * (1 + _SNAP))


def polygon(shape: tuple[int, int], vertices: Sequence[tuple[float, float]]) -> np.ndarray:
    """(row, column) bool of a polygon, closed from the last vertex to the first; pixels whose centres lie on an edge belong to it.

    Args:
        shape: Rows and columns.
        vertices: (row, column) pairs in order; edges do not cross.

    Raises:
        Unusable: Fewer than three vertices, or no area.
    """
    if len(vertices) > 1 and vertices[0] == vertices[-1]:
        vertices = vertices[:-1]
    if len(vertices) < 3:
        raise Unusable(f"a polygon of {len(vertices)} vertices")
    if _area(vertices) < _SNAP:
        raise Unusable("a polygon without area")
    seen = np.zeros(shape, dtype=bool)
    edges = list(zip(vertices, [*vertices[1:], vertices[0]]))
    first = max(math.ceil(min(row for row, _ in vertices)), 1)
    last = min(math.floor(max(row for row, _ in vertices)), shape[0])
    for row in range(first, last + 1):
        for start, stop in _runs(row, edges):
            low, high = max(math.ceil(start - _SNAP), 1), min(math.floor(stop + _SNAP), shape[1])
            if low <= high:
                seen[row - 1, low - 1 : high] = True
    return seen


def _runs(row: int, edges: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> Iterator[tuple[float, float]]:
    """Column ranges of a row inside the polygon (even-odd rule), and those that lie on its edges."""
    crossings: list[float] = []
    for (row_a, column_a), (row_b, column_b) in edges:
        if row_a == row_b:
            if row_a == row:
                yield min(column_a, column_b), max(column_a, column_b)
            continue
        if min(row_a, row_b) <= row <= max(row_a, row_b):
            column = column_a + (row - row_a) * (column_b - column_a) / (row_b - row_a)
            yield column, column
            if row < max(row_a, row_b):  # half open: a vertex counts for one of its two edges
                crossings.append(column)
    crossings.sort()
    yield from zip(crossings[::2], crossings[1::2])


def _area(vertices: Sequence[tuple[float, float]]) -> float:
    """Shoelace formula."""
    following = [*vertices[1:], vertices[0]]
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(vertices, following))) / 2


def _axes(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, shape[0] + 1, dtype=float), np.arange(1, shape[1] + 1, dtype=float)


def _words(value: Any) -> list[str]:
    parts = [] if value is None else [value] if isinstance(value, str) else list(value)
    return [str(part).strip().upper() for part in parts if str(part).strip()]


def _numbers(dataset: Any, keyword: str, count: int | None) -> list[float]:
    value = dataset.get(keyword)
    is_one = isinstance(value, (str, int, float))
    parts = [] if value in (None, "") else [value] if is_one else list(value)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise Unusable(f"{keyword} is no number") from None
    if not numbers or (count is not None and len(numbers) != count) or not all(map(math.isfinite, numbers)):
        raise Unusable(f"{keyword} is missing or incomplete")
    return numbers
