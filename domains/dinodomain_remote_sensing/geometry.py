"""Where pixels lie: ground spacing, and how the grids of two bands of one scene relate.

Affines are six numbers ``(a, b, c, d, e, f)`` of the pixel-corner convention. Ground lengths are metres. Nothing is warped here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_remote_sensing.header import EXTRA, SIX, WANTED_BY

Method = Literal["native", "replicate", "average", "bilinear", "area", "nearest"]
"""``native`` as stored; ``replicate`` each pixel k x k times (lossless); ``average`` over k x k pixels; ``bilinear`` between pixel
centres; ``area`` mean weighted by overlap, where the target is coarser by a broken ratio; ``nearest`` for classes, which have no mean."""

NOMINAL_TOLERANCE = 0.01
"""A projected CRS whose scale at the scene's centre is within this of 1 keeps its nominal pixel size (UTM: 10 m stays 10 m)."""

DRIFT = 0.1
"""Grids are taken as aligned if no edge is off by more than this share of the finer pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A pixel grid on the ground.

    Attributes:
        transform: Pixel (column, row) to CRS.
        height: Rows.
        width: Columns.
    """

    transform: SIX
    height: int
    width: int

    def scaled(self, rows: float, columns: float) -> Grid:
        """The same footprint with pixels that are ``rows`` x ``columns`` times as large; a broken edge pixel is left out."""
        a, b, c, d, e, f = self.transform
        height, width = (max(1, math.floor(n / k + 1e-6)) for n, k in ((self.height, rows), (self.width, columns)))
        return Grid(transform=(a * columns, b * rows, c, d * columns, e * rows, f), height=height, width=width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a target grid seen from a band: band coordinate = scale * target coordinate + shift, both in pixel edges.

    Attributes:
        scale: Band pixels per target pixel.
        shift: Band coordinate of the target's first edge.
        size: Number of band pixels.
    """

    scale: float
    shift: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """How a band is brought to the target grid.

    Attributes:
        rows: The row axis.
        columns: The column axis.
        method: What is done to the pixels.
        factor: Whole ratio (rows, columns) for ``replicate`` and ``average``, else (1, 1).
    """

    rows: Axis
    columns: Axis
    method: Method
    factor: tuple[int, int]


def nine(transform: SIX) -> tuple[float, ...]:
    """The 3x3 row-major form."""
    return (*transform, 0.0, 0.0, 1.0)


def ground_spacing(path: str, crs_wkt: str, grid: Grid) -> tuple[float, float]:
    """Pixel size in ground metres at the centre of the grid.

    Projected systems keep their nominal pixel size times the length of their unit unless their scale there is off by more than
    1 % (EPSG:3857 away from the equator, EPSG:6933 away from 30 degrees); then, and in degrees, geodesic lengths are used.

    Args:
        path: Named in errors.
        crs_wkt: WKT.
        grid: The pixels.

    Returns:
        (y, x) spacing in metres.

    Raises:
        BadSource: The system has no place on Earth, or the centre lies outside its domain.
    """
    geodesic = _geodesic(path, crs_wkt, grid)
    nominal = _nominal(crs_wkt, grid)
    if nominal is None or any(abs(g / n - 1.0) > NOMINAL_TOLERANCE for g, n in zip(geodesic, nominal)):
        return geodesic
    return nominal


def _nominal(crs_wkt: str, grid: Grid) -> tuple[float, float] | None:
    pyproj = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY)
    crs = pyproj.CRS.from_wkt(crs_wkt)
    if not crs.is_projected:
        return None
    metres = float(crs.axis_info[0].unit_conversion_factor)
    a, b, _, d, e, _ = grid.transform
    return math.hypot(b, e) * metres, math.hypot(a, d) * metres


def _geodesic(path: str, crs_wkt: str, grid: Grid) -> tuple[float, float]:
    row, column = grid.height / 2, grid.width / 2
    points = [(column, row - 0.5), (column, row + 0.5), (column - 0.5, row), (column + 0.5, row)]
    lon, lat = lonlat(path, crs_wkt, grid.transform, np.array(points))
    geod = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY).Geod(ellps="WGS84")
    _, _, length = geod.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    return float(length[0]), float(length[1])


def lonlat(path: str, crs_wkt: str, transform: SIX, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """WGS 84 longitude and latitude of pixel coordinates.

    Args:
        path: Named in errors.
        crs_wkt: WKT.
        transform: Pixel to CRS.
        points: [n, 2] (column, row) pixel-edge coordinates.

    Returns:
        Two [n] arrays in degrees.

    Raises:
        BadSource: See ``ground_spacing``.
    """
    a, b, c, d, e, f = transform
    x, y = a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f
    lon, lat = _transformer(path, crs_wkt).transform(x, y)
    lon, lat = np.asarray(lon, dtype=float), np.asarray(lat, dtype=float)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and (np.abs(lat) <= 90).all()):
        raise BadSource(
            path, "its affine places it outside the domain of its CRS", "check CRS and geotransform (gdalinfo); axes may be swapped"
        )
    return lon, lat


def _transformer(path: str, crs_wkt: str) -> Any:
    pyproj = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY)
    try:
        return pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(crs_wkt), "EPSG:4326", always_xy=True)
    except pyproj.exceptions.ProjError:
        raise BadSource(path, "its CRS has no place on Earth", "assign the real one: gdal_edit.py -a_srs EPSG:CODE FILE") from None


def relate(path: str, band: Grid, target: Grid) -> Relation:
    """How a band's grid relates to the target grid of its scene.

    Args:
        path: The band's file, named in errors.
        band: The band's own grid.
        target: The grid that all bands are brought to.

    Returns:
        The relation, with the mildest method that fits.

    Raises:
        BadSource: The grids are turned against each other, or the footprints differ by more than half of the coarser pixel.
    """
    rows, columns = _axes(path, band, target)
    for axis, length in ((rows, target.height), (columns, target.width)):
        edge = max(1.0, axis.scale) / 2 + 1e-6
        # A target made coarser may stop short of the band's end by a broken pixel; it may never reach beyond it.
        beyond = max(-axis.shift, axis.scale * length + axis.shift - axis.size)
        short = max(axis.shift, axis.size - axis.scale * length - axis.shift)
        if beyond > edge or short > max(edge, axis.scale):
            raise BadSource(
                path,
                "its footprint does not match the other bands of the scene",
                "crop all bands to one extent (gdalwarp -te), or choose matching ones with ingest.bands",
            )
    return _method(rows, columns, target)


def nearest(path: str, band: Grid, target: Grid) -> Relation:
    """How a raster of classes relates to the target grid; see ``relate``."""
    return replace(relate(path, band, target), method="nearest", factor=(1, 1))


def _axes(path: str, band: Grid, target: Grid) -> tuple[Axis, Axis]:
    inverse = np.linalg.inv(np.array(nine(band.transform)).reshape(3, 3))
    matrix = inverse @ np.array(nine(target.transform)).reshape(3, 3)
    shear = max(abs(matrix[0, 1]) * target.height, abs(matrix[1, 0]) * target.width)
    if shear > 0.5 or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise BadSource(path, "its grid is turned against the other bands of the scene", "bring all bands to one orientation (gdalwarp)")
    return (
        Axis(scale=float(matrix[1, 1]), shift=float(matrix[1, 2]), size=band.height),
        Axis(scale=float(matrix[0, 0]), shift=float(matrix[0, 2]), size=band.width),
    )


def _method(rows: Axis, columns: Axis, target: Grid) -> Relation:
    pairs = ((rows, target.height), (columns, target.width))
    up = tuple(round(1 / axis.scale) for axis, _ in pairs)
    down = tuple(round(axis.scale) for axis, _ in pairs)
    factor = (1, 1)
    if all(_aligned(axis, 1 / max(k, 1), length) for (axis, length), k in zip(pairs, up)):
        factor = (up[0], up[1])
        method: Method = "native" if factor == (1, 1) else "replicate"
    elif all(_aligned(axis, max(k, 1), length) for (axis, length), k in zip(pairs, down)):
        factor, method = (down[0], down[1]), "average"
    else:
        method = "area" if max(rows.scale, columns.scale) > 1.0 + 1e-9 else "bilinear"
    return Relation(rows=rows, columns=columns, method=method, factor=factor)


def _aligned(axis: Axis, scale: float, length: int) -> bool:
    """Whether neither the first nor the last edge is off by more than ``DRIFT`` of the finer pixel, were the ratio ``scale``."""
    fine = min(1.0, scale)
    return abs(axis.shift) <= DRIFT * fine and abs((axis.scale - scale) * length + axis.shift) <= DRIFT * fine
