"""Ground cells: the units of georeferenced rasters, equal across dates, sensors, tiles and map zones.

The grid is laid over EPSG:6933 (cylindrical equal-area, metres). The number of columns is rounded so that whole cells
wrap at the antimeridian; rows are counted from the equator. Footprints are taken as bounding boxes of their densified
outline in that projection: never smaller than the truth, so that a holdout can only be kept too clean.
Affines here are 3x3, row-major, (column, row) of pixel corners to CRS.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require

HALF_WIDTH_M = 17367530.445161372
"""x of 180 degrees east in EPSG:6933."""
HALF_HEIGHT_M = 7342230.13649868
"""y of the north pole in EPSG:6933."""
BUFFER = 0.1
"""Width of the belt around a held-out cell that is never trained on, as a share of the cell's side."""

_EDGE_POINTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprints:
    """Boxes in EPSG:6933 metres, one row each. ``x`` may run past 180 degrees on either side; the grid wraps it.

    Attributes:
        centre: [n, 2] x, y of the middle.
        x: [n, 2] smallest and largest x.
        y: [n, 2] smallest and largest y.
    """

    centre: np.ndarray
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """An equal-area grid whose columns wrap.

    Attributes:
        cell_m: Height of a cell in metres; its width is the nearest one that divides the equator.
    """

    cell_m: float

    @property
    def columns(self) -> int:
        """Number of cells around the globe."""
        return max(1, round(2 * HALF_WIDTH_M / self.cell_m))

    @property
    def width_m(self) -> float:
        """Width of a cell in metres."""
        return 2 * HALF_WIDTH_M / self.columns

    def cell_of(self, x: float, y: float) -> str:
        """Name of the cell that holds a point."""
        return self._name(math.floor((x + HALF_WIDTH_M) / self.width_m), math.floor(y / self.cell_m))

    def of_places(self, lon: Sequence[float], lat: Sequence[float]) -> list[str]:
        """Per place (WGS 84, degrees), the cell that holds it."""
        if not len(lon):
            return []
        across, up = _transformer("EPSG:4326", "EPSG:6933").transform(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
        return [self.cell_of(x, y) for x, y in zip(across.tolist(), up.tolist())]

    def units(self, boxes: Footprints) -> list[str]:
        """Per box, the cell of its centre."""
        return [self.cell_of(x, y) for x, y in boxes.centre.tolist()]

    def count(self, boxes: Footprints) -> int:
        """About how many names ``touched`` would give: reckoned, not made."""
        across = np.minimum(np.ptp(boxes.x, axis=1) / self.width_m + 1, self.columns)
        return int((across * (np.ptp(boxes.y, axis=1) / self.cell_m + 1)).sum())

    def touched(self, boxes: Footprints, buffer: float = BUFFER) -> list[list[str]]:
        """Per box, the cells it touches once each cell is widened by ``buffer`` of its side; sorted."""
        return [self._touched(x, y, buffer) for x, y in zip(boxes.x.tolist(), boxes.y.tolist())]

    def _touched(self, x: list[float], y: list[float], buffer: float) -> list[str]:
        columns = _span((x[0] + HALF_WIDTH_M) / self.width_m, (x[1] + HALF_WIDTH_M) / self.width_m, buffer)[: self.columns]
        rows = _span(y[0] / self.cell_m, y[1] / self.cell_m, buffer)
        return sorted({self._name(column, row) for column in columns for row in rows})

    def _name(self, column: int, row: int) -> str:
        return f"cell{self.cell_m:g}/{row}/{column % self.columns}"


def _span(low: float, high: float, buffer: float) -> range:
    return range(math.floor(low - buffer), math.floor(high + buffer) + 1)


@functools.lru_cache(maxsize=64)
def _transformer(crs: str, target: str) -> Any:
    pyproj = require("pyproj", extra="remote-sensing", wanted_by="a georeferenced source")
    return pyproj.Transformer.from_crs(crs, target, always_xy=True)


def chunk_boxes(shape: Sequence[int], chunk: Sequence[int]) -> np.ndarray:
    """[n, 4] first row, first column, row stop, column stop of every cell of a chunk grid over (Y, X), in C order."""
    tops, lefts = np.meshgrid(np.arange(0, shape[0], chunk[0]), np.arange(0, shape[1], chunk[1]), indexing="ij")
    stops = np.minimum(tops + chunk[0], shape[0]), np.minimum(lefts + chunk[1], shape[1])
    return np.stack([tops, lefts, *stops], axis=-1).reshape(-1, 4).astype(np.float64)


def footprints(crs: str, affine: Sequence[float] | np.ndarray, boxes: np.ndarray, uri: str = "") -> Footprints:
    """Where pixel boxes lie on the equal-area map.

    Args:
        crs: WKT of the raster's coordinate reference system.
        affine: 3x3, (column, row) to CRS, row-major; [n, 9] where every box has its own.
        boxes: [n, 4] first row, first column, row stop, column stop.
        uri: Named in errors.

    Raises:
        BadSource: A box has no place on the map (a wrong CRS or affine).
    """
    corners = np.asarray(affine, dtype=np.float64).reshape(-1, 9).T[:, :, None]
    x, y = _project(crs, corners, *_outline(boxes))
    centre = boxes[:, [0, 2]].mean(axis=1, keepdims=True), boxes[:, [1, 3]].mean(axis=1, keepdims=True)
    middle = np.concatenate(_project(crs, corners, *centre), axis=1)
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(middle).all()):
        raise BadSource(uri, "its corners have no place on the map", "check its coordinate reference system and geotransform")
    x = np.unwrap(x, axis=1, period=2 * HALF_WIDTH_M)
    across, up = np.stack([x.min(axis=1), x.max(axis=1)], axis=1), np.stack([y.min(axis=1), y.max(axis=1)], axis=1)
    polar = np.abs(x[:, -1] - x[:, 0]) > HALF_WIDTH_M  # the outline goes around a pole: all columns, and the rows up to it
    across[polar] = (-HALF_WIDTH_M, HALF_WIDTH_M)
    up[polar & (middle[:, 1] > 0), 1] = HALF_HEIGHT_M
    up[polar & (middle[:, 1] < 0), 0] = -HALF_HEIGHT_M
    return Footprints(centre=middle, x=across, y=up)


def lon_lat(crs: str, affine: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
    """Longitude and latitude (WGS 84, degrees) of the middle of a raster of ``shape`` rows and columns."""
    x, y = _to_crs(np.asarray(affine), np.array([shape[0] / 2]), np.array([shape[1] / 2]))
    lon, lat = _transformer(crs, "EPSG:4326").transform(x, y)
    return float(lon[0]), float(lat[0])


def _outline(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns [n, 4 * points + 1] of closed outlines, clockwise: map projections bend straight edges."""
    step = np.arange(_EDGE_POINTS) / _EDGE_POINTS
    zero, one = np.zeros(_EDGE_POINTS), np.ones(_EDGE_POINTS)
    down, across = np.concatenate([zero, step, one, 1 - step, [0]]), np.concatenate([step, one, 1 - step, zero, [0]])
    top, left, bottom, right = (boxes[:, [side]] for side in range(4))
    return top + down * (bottom - top), left + across * (right - left)


def _project(crs: str, affine: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _to_crs(affine, rows, columns)
    across, up = _transformer(crs, "EPSG:6933").transform(x, y)
    return np.asarray(across), np.asarray(up)


def _to_crs(affine: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = affine[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f
