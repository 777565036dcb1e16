"""An area of interest: which scenes it meets, the window of a scene that holds it, and the pixels of that window outside it.

Areas are polygons of longitude and latitude (WGS 84, edges straight in degrees, as RFC 7946 says), scenes lie anywhere. A scene is cut to
the bounding box of its part of the area, snapped outwards to whole pixels of its coarsest band; a pixel whose centre lies outside the
polygon carries the user's bit of validity. Nothing is warped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import UserError, require
from dinodomain.types import USER_MASK, Window
from dinodomain_remote_sensing.geometry import Grid, lonlat, nine
from dinodomain_remote_sensing.header import EXTRA, WANTED_BY

KEY = "ingest.aoi"
ALLOWED = "WEST,SOUTH,EAST,NORTH in degrees (WEST > EAST crosses the antimeridian), or a GeoJSON file of polygons"
EDGE_POINTS = 41
"""Points along each edge of a scene by which its outline in degrees is known."""

STEP_DEGREES = 0.05
"""Longest straight step when an edge of the area is carried to the system of a scene: straight in degrees is not straight there."""

_DEGREES = ("CRS84", "EPSG::4326", "EPSG:4326")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The part of a scene that is taken.

    Attributes:
        rows: Rows of the scene's grid.
        columns: Columns of it.
        grid: The grid of the part.
        polygon: The area in pixel coordinates of the part (x columns, y rows, corners at whole numbers), a shapely geometry; None where
            every pixel lies inside.
    """

    rows: slice
    columns: slice
    grid: Grid
    polygon: Any = field(default=None, repr=False)

    def outer(self, window: Window) -> Window:
        """The window of the scene that a window of the part is."""
        return tuple(slice(part.start + own.start, part.stop + own.start) for part, own in zip(window, (self.rows, self.columns)))

    def outside(self, window: Window) -> np.ndarray:
        """uint8 over a window of the part: the user's bit where a pixel's centre lies outside the area."""
        rows, columns = window
        shape = rows.stop - rows.start, columns.stop - columns.start
        if self.polygon is None:
            return np.zeros(shape, np.uint8)
        features = require("rasterio.features", extra=EXTRA, wanted_by=WANTED_BY)
        rasterio = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY)
        place = rasterio.Affine.translation(columns.start, rows.start)
        inside: np.ndarray = features.rasterize([(self.polygon, 1)], out_shape=shape, transform=place, fill=0, dtype="uint8")
        return np.where(inside == 0, np.uint8(USER_MASK), np.uint8(0))


def area(text: str) -> Any:
    """The area that ``ingest.aoi`` names, as a shapely geometry with longitudes of -180 to 180.

    Raises:
        UserError: It is no box and no GeoJSON of polygons in degrees.
    """
    path = Path(text).expanduser()
    if path.is_file():
        state = path.stat()
        return _from_file(str(path), (state.st_size, state.st_mtime_ns))
    return _from_box(text)


@lru_cache(maxsize=4)
def _from_box(text: str) -> Any:
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(KEY, f"{text!r} is no box and no file", allowed=ALLOWED) from None
    _check_degrees(np.array([[west, south], [east, north]]), text)
    if not -180 <= west <= 180 or not -180 <= east <= 180:
        raise UserError(KEY, f"{text!r}: longitudes of a box lie between -180 and 180", allowed=ALLOWED)
    if south >= north:
        raise UserError(KEY, f"{text!r}: south {south:g} is not below north {north:g}", allowed=ALLOWED)
    if west == east:
        raise UserError(KEY, f"{text!r} has no width", allowed=ALLOWED)
    if west < east:
        return shapely.box(west, south, east, north)
    if east + 360 - west > 180:
        problem = f"{text!r}: west {west:g} lies east of {east:g}; across the antimeridian that is {east + 360 - west:g} degrees wide"
        raise UserError(KEY, problem, remedy="exchange the two, or give an area of more than half the globe as GeoJSON")
    halves = [shapely.box(*sides) for sides in ((west, south, 180.0, north), (-180.0, south, east, north)) if sides[0] < sides[2]]
    return shapely.MultiPolygon(halves)


@lru_cache(maxsize=4)
def _from_file(path: str, stamp: tuple[int, int]) -> Any:
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(KEY, f"{path} is no JSON ({error})", allowed=ALLOWED) from None
    if not isinstance(body, dict):
        raise UserError(KEY, f"{path} is no GeoJSON object", allowed=ALLOWED)
    _check_crs(body, path)
    polygons = [_polygon(geometry, path) for geometry in _geometries(body, path)]
    if not polygons:
        raise UserError(KEY, f"{path} holds no polygon", allowed=ALLOWED)
    return _wrapped(shapely.union_all(polygons))


def _check_crs(body: Mapping[str, Any], path: str) -> None:
    """GeoJSON is WGS 84 by definition; files of an older standard may name another system."""
    crs = body.get("crs")
    name = str(crs.get("properties", {}).get("name", crs)) if isinstance(crs, dict) else str(crs)
    if crs is not None and not name.upper().endswith(_DEGREES):
        raise UserError(KEY, f"{path} is in {name}, not in degrees", remedy="convert it: ogr2ogr -t_srs EPSG:4326 -lco RFC7946=YES")


def _geometries(body: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    kind = body.get("type")
    if kind == "FeatureCollection":
        return [geometry for feature in body.get("features") or [] for geometry in _geometries(feature, path)]
    if kind == "Feature":
        return _geometries(body["geometry"], path) if body.get("geometry") else []
    if kind == "GeometryCollection":
        return [geometry for part in body.get("geometries") or [] for geometry in _geometries(part, path)]
    if kind not in ("Polygon", "MultiPolygon"):
        raise UserError(KEY, f"{path} holds a {kind}", allowed="polygons: Polygon, MultiPolygon, Feature, FeatureCollection")
    return [body]


def _polygon(geometry: Mapping[str, Any], path: str) -> Any:
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    validation = require("shapely.validation", extra=EXTRA, wanted_by=KEY)
    try:
        made = shapely.force_2d(shapely.from_geojson(json.dumps(geometry)))
    except shapely.errors.ShapelyError as error:
        raise UserError(KEY, f"{path} holds a geometry that cannot be read ({error})", allowed=ALLOWED) from None
    if made.is_empty:
        raise UserError(KEY, f"{path} holds an empty polygon", allowed=ALLOWED)
    _check_degrees(shapely.get_coordinates(made), path)
    if not made.is_valid:
        raise UserError(KEY, f"{path}: {validation.explain_validity(made)}", remedy="repair it: ogr2ogr -makevalid")
    return made


def _check_degrees(points: np.ndarray, place: str) -> None:
    """Latitudes beyond 90 are most often the two axes exchanged."""
    if not np.isfinite(points).all():
        raise UserError(KEY, f"{place} holds a position that is no number", allowed=ALLOWED)
    if (np.abs(points[:, 1]) <= 90).all() and (np.abs(points[:, 0]) <= 360).all():
        return
    swapped = (np.abs(points[:, 0]) <= 90).all() and (np.abs(points[:, 1]) <= 180).all()
    remedy = "latitude comes second: exchange the two" if swapped else "convert it to degrees: ogr2ogr -t_srs EPSG:4326"
    worst = points[np.argmax(np.abs(points[:, 1]))]
    raise UserError(KEY, f"{place} holds the position {worst[0]:g},{worst[1]:g}, which is no longitude,latitude", remedy=remedy)


def _wrapped(shape: Any) -> Any:
    """The part beyond 180 degrees, which some programs write for areas across the antimeridian, on its own side."""
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    parts = []
    for turn in (-360, 0, 360):
        part = shapely.intersection(shape, shapely.box(-180 + turn, -90, 180 + turn, 90))
        if not part.is_empty:
            parts.append(_shifted(part, -turn, 0))
    return shapely.union_all(parts)


def meets(text: str, bbox: Sequence[float]) -> bool:
    """Whether an area meets the bounding box that a catalogue states (west, south, east, north; west > east crosses the antimeridian)."""
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    west, south, east, north = bbox
    box = shapely.box(west, south, east if west <= east else east + 360, north)
    return any(bool(shapely.intersects(_shifted(area(text), turn, 0), box)) for turn in (-360, 0, 360))


def _shifted(shape: Any, x: float, y: float) -> Any:
    return require("shapely", extra=EXTRA, wanted_by=KEY).transform(shape, lambda points: points + np.array([x, y]))


def cut(path: str, crs: str, grid: Grid, text: str, snap: int) -> Cut | None:
    """The part of a scene that an area takes.

    Args:
        path: Named in errors.
        crs: WKT of the scene.
        grid: Its pixels.
        text: ``ingest.aoi``.
        snap: Pixels of the grid under one pixel of the coarsest band.

    Returns:
        The part, or None where they do not meet.

    Raises:
        UserError: The area is not well-formed.
        BadSource: The scene has no place on Earth.
    """
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    near = _near(path, crs, grid, area(text))
    frame = shapely.box(0, 0, grid.width, grid.height)
    inside = shapely.intersection(_in_pixels(near, crs, grid), frame) if not near.is_empty else near
    if inside.is_empty or inside.area <= 0:
        return None
    left, top, right, bottom = inside.bounds
    columns, rows = _snapped(left, right, snap, grid.width), _snapped(top, bottom, snap, grid.height)
    whole = inside.area >= frame.area * (1 - 1e-9)
    shifted = None if whole else _shifted(inside, -columns.start, -rows.start)
    return Cut(rows=rows, columns=columns, grid=part_of(grid, rows, columns), polygon=shifted)


def part_of(grid: Grid, rows: slice, columns: slice) -> Grid:
    """A window of a grid as a grid of its own."""
    a, b, c, d, e, f = grid.transform
    x, y = a * columns.start + b * rows.start + c, d * columns.start + e * rows.start + f
    return Grid(transform=(a, b, x, d, e, y), height=rows.stop - rows.start, width=columns.stop - columns.start)


def _snapped(low: float, high: float, snap: int, size: int) -> slice:
    """Outwards to whole multiples; an edge that lies on a pixel border but for rounding stays there."""
    first = math.floor((low + 1e-6) / snap) * snap
    last = math.ceil((high - 1e-6) / snap) * snap
    return slice(max(0, first), min(size, max(last, first + 1)))


def _near(path: str, crs: str, grid: Grid, shape: Any) -> Any:
    """The area around a scene, with longitudes that run on across the antimeridian where the scene does."""
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    west, south, east, north = _outline(path, crs, grid)
    margin = max(0.02, 0.01 * (east - west), 0.01 * (north - south))
    # The poles themselves lie at infinity in some projections.
    frame = shapely.box(west - margin, max(-89.999, south - margin), east + margin, min(89.999, north + margin))
    parts = [shapely.intersection(_shifted(shape, turn, 0), frame) for turn in (-360, 0, 360)]
    return shapely.union_all([part for part in parts if part.area > 0])


def _outline(path: str, crs: str, grid: Grid) -> tuple[float, float, float, float]:
    """West, south, east, north of a scene; east may exceed 180. A scene around a pole reaches all longitudes."""
    along = np.linspace(0.0, 1.0, EDGE_POINTS)
    x, y = along * grid.width, along * grid.height
    low, wide, high = np.zeros_like(along), np.full_like(along, grid.width), np.full_like(along, grid.height)
    ring = np.concatenate([np.stack(pair, 1) for pair in ((x, low), (wide, y), (x[::-1], high), (low, y[::-1]))])
    lon, lat = lonlat(path, crs, grid.transform, ring)
    steps = (np.diff(lon) + 180) % 360 - 180
    run = lon[0] + np.concatenate([[0.0], np.cumsum(steps)])
    if abs(run[-1] - run[0]) > 180:  # once around: a pole lies inside
        south, north = (-90.0, float(lat.max())) if lat.mean() < 0 else (float(lat.min()), 90.0)
        return -180.0, south, 180.0, north
    inner = _inner_latitudes(path, crs, grid)
    return float(run.min()), min(float(lat.min()), *inner), float(run.max()), max(float(lat.max()), *inner)


def _inner_latitudes(path: str, crs: str, grid: Grid) -> tuple[float, ...]:
    """Latitudes inside a scene: edges of wide polar scenes may lie all on one side of the middle."""
    share = np.linspace(0.1, 0.9, 5)
    points = np.stack(np.meshgrid(share * grid.width, share * grid.height), -1).reshape(-1, 2)
    return tuple(float(value) for value in lonlat(path, crs, grid.transform, points)[1])


def _in_pixels(shape: Any, crs: str, grid: Grid) -> Any:
    """An area near a scene in pixel coordinates of its grid."""
    shapely = require("shapely", extra=EXTRA, wanted_by=KEY)
    pyproj = require("pyproj", extra=EXTRA, wanted_by=WANTED_BY)
    transformer = pyproj.Transformer.from_crs("EPSG:4326", pyproj.CRS.from_wkt(crs), always_xy=True)
    inverse = np.linalg.inv(np.array(nine(grid.transform)).reshape(3, 3))

    def carried(points: np.ndarray) -> np.ndarray:
        x, y = transformer.transform(points[:, 0], points[:, 1])
        return np.stack([np.asarray(x), np.asarray(y), np.ones(len(points))], 1) @ inverse.T[:, :2]

    dense = shapely.segmentize(shape, STEP_DEGREES)
    made = shapely.transform(dense, carried)
    return made if made.is_valid else shapely.make_valid(made)
