"""Which sources show the same ground, by georeference alone: no pixel is read. Areas are compared on EPSG:6933 (equal area). S sources."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.trail.kept import Kept
from dinodomain.errors import require

LEAST = 0.001
"""Share of the smaller footprint that two must have in common: below, only edges touch."""

_EDGE = 8  # points per side: map projections bend straight edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Pairs of sources over the same ground.

    Attributes:
        pairs: [P, 2] rows of the index, first < second.
        shares: [P] area in common over that of the smaller one.
        placed: How many sources have a place at all.
    """

    pairs: np.ndarray
    shares: np.ndarray
    placed: int


def same_ground(kept: Kept) -> Ground:
    """All pairs of georeferenced sources whose footprints overlap.

    Raises:
        MissingExtra: shapely or pyproj is not installed.
    """
    shapely = require("shapely", extra="remote-sensing", wanted_by="check duplicates")
    index = kept.index
    placed = [row for row in range(len(kept)) if index["crs"][row] and index["affine"][row] is not None and len(index["affine"][row]) == 9]
    if len(placed) < 2:
        return Ground(pairs=np.empty((0, 2), np.int64), shares=np.empty(0), placed=len(placed))
    shapes = np.array([_outline(shapely, str(index["crs"][row]), index["affine"][row], index["shape"][row]) for row in placed])
    tree = shapely.STRtree(shapes)
    first, second = tree.query(shapes, predicate="intersects")
    keep = first < second
    first, second = first[keep], second[keep]
    common = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    share = common / np.minimum(shapely.area(shapes[first]), shapely.area(shapes[second]))
    real = share >= LEAST
    rows = np.array(placed)
    pairs = np.stack([rows[first[real]], rows[second[real]]], axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Ground(pairs=pairs[order], shares=share[real][order], placed=len(placed))


def _outline(shapely: Any, crs: str, affine: Any, shape: Any) -> Any:
    """Footprint of a raster of ``shape`` (C, Y, X)."""
    a, b, c, d, e, f = list(affine)[:6]
    height, width = shape[-2], shape[-1]
    step, zero, one = np.arange(_EDGE) / _EDGE, np.zeros(_EDGE), np.ones(_EDGE)
    rows, columns = np.concatenate([zero, step, one, 1 - step]) * height, np.concatenate([step, one, 1 - step, zero]) * width
    x, y = _to_equal_area(crs).transform(a * columns + b * rows + c, d * columns + e * rows + f)
    polygon = shapely.Polygon(np.stack([x, y], axis=1))
    return polygon if polygon.is_valid else polygon.buffer(0)


@functools.lru_cache(maxsize=64)
def _to_equal_area(crs: str) -> Any:
    pyproj = require("pyproj", extra="remote-sensing", wanted_by="check duplicates")
    return pyproj.Transformer.from_crs(crs, "EPSG:6933", always_xy=True)
