"""Brings a band to a grid in another coordinate reference system, one window at a time. Only ``ingest.crs`` asks for it.

Every target pixel's centre is carried to the band (exactly on a lattice of 16 pixels that is fixed to the target grid, linearly
between), so that the pixels of a window never depend on how a scene is cut into windows. ``bilinear`` weighs the four band pixels around
it, ``average`` is the mean of several such points per pixel, where pixels grow by more than half; ``nearest``, for classes, takes the
pixel that holds it. Missing pixels take no part; an output pixel that is missing more than half of its weight is missing. Values that
must be mixed in linear power come in linear power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from dinodomain.errors import BadSource, UserError, require
from dinodomain_remote_sensing.geometry import Grid, ground_spacing, lonlat, nine
from dinodomain_remote_sensing.header import EXTRA, WANTED_BY

LATTICE = 16
COARSER = 1.5
"""Pixels that grow by more than this factor are means, lest detail between the points be lost and alias."""

BLOCK = 512
"""Target columns that are read at once: where grids are turned against each other, a wide row of them would touch most of a band."""

LARGEST = 3.0
"""A target grid with more than this many times the pixels that the ground needs is torn: it crosses the edge of its system."""

EDGE = 1e-6
"""A point this far outside a band, in its pixels, still lies on its edge."""

Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """How a band in one system comes to a grid in another; stands where ``geometry.Relation`` stands for bands of one system.

    Attributes:
        source: The band's own grid.
        source_crs: WKT.
        target: The grid it comes to.
        target_crs: WKT.
        method: What is done to its pixels.
        points: Points per side of a target pixel for ``average``, else 1.
        factor: (1, 1); there is no whole ratio.
    """

    source: Grid
    source_crs: str
    target: Grid
    target_crs: str
    method: Literal["bilinear", "average", "nearest"]
    points: int = 1
    factor: tuple[int, int] = (1, 1)


def warp_of(source: Grid, source_crs: str, target: Grid, target_crs: str, ratio: float) -> Warp:
    """The warp of a band whose pixels grow by ``ratio``."""
    coarser = ratio > COARSER
    return Warp(
        source=source,
        source_crs=source_crs,
        target=target,
        target_crs=target_crs,
        method="average" if coarser else "bilinear",
        points=math.ceil(ratio) if coarser else 1,
    )


def system(path: str, text: str, crs: str, grid: Grid) -> str:
    """WKT of the system that ``ingest.crs`` names for a scene.

    Args:
        path: Named in errors.
        text: ``EPSG:CODE`` or ``utm`` (the zone of the scene's centre).
        crs: WKT of the scene.
        grid: Its pixels.

    Raises:
        UserError: There is no such system, or it is not one of metres or feet.
    """
    pyproj = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY)
    if text == "utm":
        lon, lat = lonlat(path, crs, grid.transform, np.array([[grid.width / 2, grid.height / 2]]))
        text = f"EPSG:{32600 + 100 * (lat[0] < 0) + int((lon[0] + 180) % 360 // 6) + 1}"
    try:
        found = pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError:
        raise UserError("ingest.crs", f"{text} is no coordinate reference system", allowed="EPSG:CODE or utm") from None
    if not found.is_projected:
        raise UserError(
            "ingest.crs", f"{text} counts in degrees: its pixels are no squares on the ground", allowed="a projected system, or utm"
        )
    wkt: str = require("rasterio.crs", extra=EXTRA, wanted_by=WANTED_BY).CRS.from_user_input(text).to_wkt()
    return wkt


def system_name(wkt: str) -> str:
    """``EPSG:CODE`` where it has one, else its name."""
    crs = require("rasterio.crs", extra=EXTRA, wanted_by=WANTED_BY).CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else wkt.split('"')[1] if '"' in wkt else wkt


def target_grid(path: str, crs: str, grid: Grid, target_crs: str, metres: float) -> Grid:
    """The north-up grid in another system that holds a scene, its edges at whole multiples of the pixel size.

    Args:
        path: Named in errors.
        crs: WKT of the scene.
        grid: Its pixels.
        target_crs: WKT of the other system.
        metres: Ground sample distance; divided by the scale of the system where that is off by more than 1 % (EPSG:3857).

    Raises:
        BadSource: The scene lies outside the other system, or not in one piece.
    """
    x, y = _carried(path, crs, target_crs, _outline(grid), grid)
    step = metres / _scale(path, crs, grid, target_crs)
    left, bottom, right, top = (_whole(value / step) for value in (x.min(), y.min(), x.max(), y.max()))
    first, last = math.floor(left), math.ceil(right)
    low, high = math.floor(bottom), math.ceil(top)
    made = Grid(transform=(step, 0.0, first * step, 0.0, -step, high * step), height=max(1, high - low), width=max(1, last - first))
    rows, columns = ground_spacing(path, crs, grid)
    needed = grid.height * rows / metres * grid.width * columns / metres + made.height + made.width
    if made.height * made.width > LARGEST * needed:
        raise BadSource(path, f"does not lie in one piece in {system_name(target_crs)}", "choose a system for that place: ingest.crs=utm")
    return made


def _whole(value: float) -> float:
    """A whole number where it is one but for rounding, so that a scene that is aligned already gets no extra line."""
    return float(round(value)) if abs(value - round(value)) < 1e-6 else float(value)


def _outline(grid: Grid) -> np.ndarray:
    along = np.linspace(0.0, 1.0, 41)
    x, y = along * grid.width, along * grid.height
    low, wide, high = np.zeros_like(along), np.full_like(along, grid.width), np.full_like(along, grid.height)
    return np.concatenate([np.stack(pair, 1) for pair in ((x, low), (wide, y), (x[::-1], high), (low, y[::-1]))])


def _scale(path: str, crs: str, grid: Grid, target_crs: str) -> float:
    """Ground metres per unit of the target system at the scene's centre."""
    pyproj = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY)
    unit = float(pyproj.CRS.from_wkt(target_crs).axis_info[0].unit_conversion_factor)
    middle = np.array([[grid.width / 2, grid.height / 2]])
    (x,), (y,) = _carried(path, crs, target_crs, middle, grid)
    half = 50.0 / unit
    geographic = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(target_crs), "EPSG:4326", always_xy=True)
    lon, lat = geographic.transform([x - half, x + half], [y, y])
    ground = pyproj.Geod(ellps="WGS84").inv(lon[0], lat[0], lon[1], lat[1])[2] / (2 * half)
    return unit if abs(ground / unit - 1.0) <= 0.01 else float(ground)


def _carried(path: str, crs: str, target_crs: str, points: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates [n, 2] of a grid in another system."""
    a, b, c, d, e, f = grid.transform
    x, y = a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f
    moved = tuple(np.asarray(part, dtype=float) for part in _transformer(crs, target_crs).transform(x, y))
    if not all(np.isfinite(part).all() for part in moved):
        raise BadSource(path, f"lies outside {system_name(target_crs)}", "choose a system for that place: ingest.crs=utm")
    return moved[0], moved[1]


@lru_cache(maxsize=16)
def _transformer(source: str, target: str) -> Any:
    pyproj = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY)
    return pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(source), pyproj.CRS.from_wkt(target), always_xy=True)


def warped(block: Callable[[slice, slice], Parts], warp: Warp, rows: slice, columns: slice) -> Parts:
    """Values, missing and saturated pixels of a window of the target grid; arguments and result as ``resample.resampled``."""
    parts = [_piece(block, warp, rows, piece) for piece in _pieces(columns)]
    values, missing = (np.concatenate([part[index] for part in parts], axis=1) for index in (0, 1))
    full = None if any(part[2] is None for part in parts) else np.concatenate([part[2] for part in parts], axis=1)
    return values, missing, full


def _pieces(columns: slice) -> Iterator[slice]:
    for first in range(columns.start, columns.stop, BLOCK):
        yield slice(first, min(first + BLOCK, columns.stop))


def _piece(block: Callable[[slice, slice], Parts], warp: Warp, rows: slice, columns: slice) -> Parts:
    shape = rows.stop - rows.start, columns.stop - columns.start
    total, weight, share = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    shifts = (np.arange(warp.points) + 0.5) / warp.points
    places = [_places(warp, rows, columns, y, x) for y in shifts for x in shifts]
    window = _window(warp.source, places)
    if window is None:
        return total, np.ones(shape, bool), share
    values, missing, full = block(*window)
    # A missing pixel may hold anything, NaN included, and 0 * NaN is NaN.
    known = np.where(missing, 0.0, values.astype(np.float64)).ravel()
    present = None if not missing.any() else np.where(missing, 0.0, 1.0).ravel()
    bright = None if full is None or not full.any() else (full & ~missing).ravel()
    for y, x in places:
        for at, part in _corners(y, x, window):
            total += part * known.take(at)
            weight += part if present is None else part * present.take(at)
            if bright is not None:
                share |= (part > 0) & bright.take(at)
    weight /= len(places)
    gone = weight < 0.5
    mean = np.where(gone, 0.0, total / len(places) / np.where(gone, 1.0, weight))
    return mean, gone, None if full is None else share & ~gone


def warped_nearest(read: Callable[[slice, slice], np.ndarray], warp: Warp, rows: slice, columns: slice, *, outside: int = 0) -> np.ndarray:
    """Classes or bits of the band pixel that holds each target pixel's centre; ``outside`` where none does."""
    return np.concatenate([_nearest(read, warp, rows, piece, outside) for piece in _pieces(columns)], axis=1)


def _nearest(read: Callable[[slice, slice], np.ndarray], warp: Warp, rows: slice, columns: slice, outside: int) -> np.ndarray:
    y, x = _places(warp, rows, columns, 0.5, 0.5)
    window = _window(warp.source, [(y, x)])
    if window is None:
        return np.full(y.shape, outside, dtype=read(slice(0, 1), slice(0, 1)).dtype)
    block = read(*window)
    inside = _inside(y, x, warp.source)
    # A hair's breadth, so that a centre on an edge falls on one side whatever the rounding.
    row = np.clip(np.floor(y + 1e-6), window[0].start, window[0].stop - 1).astype(int) - window[0].start
    column = np.clip(np.floor(x + 1e-6), window[1].start, window[1].stop - 1).astype(int) - window[1].start
    return np.asarray(np.where(inside, block[row, column], block.dtype.type(outside)))


def _places(warp: Warp, rows: slice, columns: slice, y: float, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Band coordinates (rows, columns; pixel edges at whole numbers) of one point of every target pixel of a window."""
    across, lines = np.arange(columns.start, columns.stop) + x, np.arange(rows.start, rows.stop) + y
    first = [int(part.start // LATTICE) for part in (rows, columns)]
    last = [int(-(-part.stop // LATTICE)) for part in (rows, columns)]
    nodes = [np.arange(a, b + 1) * float(LATTICE) for a, b in zip(first, last)]
    grid_y, grid_x = np.meshgrid(*nodes, indexing="ij")
    band_y, band_x = _exact(warp, grid_y.ravel(), grid_x.ravel())
    at_y, at_x = lines / LATTICE - first[0], across / LATTICE - first[1]
    return tuple(_between(part.reshape(grid_y.shape), at_y, at_x) for part in (band_y, band_x))  # type: ignore[return-value]


def _exact(warp: Warp, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = warp.target.transform
    moved = _transformer(warp.target_crs, warp.source_crs).transform(a * x + b * y + c, d * x + e * y + f)
    # Points beyond the system are infinitely far: outside the band.
    east, north = (np.where(np.isfinite(part), part, 1e12) for part in (np.asarray(moved[0], float), np.asarray(moved[1], float)))
    i = np.linalg.inv(np.array(nine(warp.source.transform)).reshape(3, 3))
    # Element by element: a matrix product rounds by its length, and a window would show.
    return i[1, 0] * east + i[1, 1] * north + i[1, 2], i[0, 0] * east + i[0, 1] * north + i[0, 2]


def _between(nodes: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Linear interpolation of a lattice at rows ``y`` and columns ``x`` (in lattice steps)."""
    row, column = np.minimum(y.astype(int), nodes.shape[0] - 2), np.minimum(x.astype(int), nodes.shape[1] - 2)
    dy, dx = (y - row)[:, None], (x - column)[None, :]
    top = nodes[row][:, column] * (1 - dx) + nodes[row][:, column + 1] * dx
    low = nodes[row + 1][:, column] * (1 - dx) + nodes[row + 1][:, column + 1] * dx
    return np.asarray(top * (1 - dy) + low * dy)


def _inside(y: np.ndarray, x: np.ndarray, grid: Grid) -> np.ndarray:
    return np.asarray((y >= -EDGE) & (y <= grid.height + EDGE) & (x >= -EDGE) & (x <= grid.width + EDGE))


def _window(grid: Grid, places: list[tuple[np.ndarray, np.ndarray]]) -> tuple[slice, slice] | None:
    """The band pixels that points of a window need; None where no point lies in the band."""
    masks = [_inside(y, x, grid) for y, x in places]
    if not any(mask.any() for mask in masks):
        return None
    rows = np.concatenate([y[mask] for (y, _), mask in zip(places, masks)])
    columns = np.concatenate([x[mask] for (_, x), mask in zip(places, masks)])
    return _span(rows, grid.height), _span(columns, grid.width)


def _span(values: np.ndarray, size: int) -> slice:
    return slice(max(0, math.floor(values.min() - 0.5)), min(size, math.floor(values.max() + 0.5) + 1))


def _corners(y: np.ndarray, x: np.ndarray, window: tuple[slice, slice]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Flat indexes into a window, and weights, of the four band pixels around each point; weight 0 where the point lies outside.

    The window ends with the band wherever a point needs a pixel beyond it, so clipping to it repeats the band's edge.
    """
    rows, columns = window
    height, width = rows.stop - rows.start, columns.stop - columns.start
    down, right = y - (0.5 + rows.start), x - (0.5 + columns.start)
    inside = (down >= -0.5 - EDGE) & (down <= height - 0.5 + EDGE) & (right >= -0.5 - EDGE) & (right <= width - 0.5 + EDGE)
    down, right = np.where(inside, down, 0.0), np.where(inside, right, 0.0)
    top, left = np.floor(down), np.floor(right)
    dy, dx = down - top, right - left
    first_row, first_column = np.maximum(top, 0).astype(np.intp) * width, np.maximum(left, 0).astype(np.intp)
    next_row = np.minimum(top + 1, height - 1).astype(np.intp) * width
    next_column = np.minimum(left + 1, width - 1).astype(np.intp)
    dx = np.where(inside, dx, 0.0)
    over, under = np.where(inside, 1 - dy, 0.0), np.where(inside, dy, 0.0)
    yield first_row + first_column, over * (1 - dx)
    yield first_row + next_column, over * dx
    yield next_row + first_column, under * (1 - dx)
    yield next_row + next_column, under * dx
