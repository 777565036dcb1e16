"""Cloud outlines of older Sentinel-2 Level-1C products (``MSK_CLOUDS_B00.gml``): polygons in the granule's CRS, drawn by window.

A pixel is inside where its centre is, as GDAL rasterises.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.header import EXTRA, SIX, WANTED_BY

_EPSG = re.compile(r"EPSG[:/]+(?:[\d.]+[:/]+)?(\d{4,6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """One polygon.

    Attributes:
        kind: ``OPAQUE`` or ``CIRRUS``.
        rings: Outer ring first, then holes; each [n, 2] x and y.
        bounds: (west, south, east, north).
    """

    kind: str
    rings: tuple[tuple[tuple[float, float], ...], ...]
    bounds: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """All polygons of a mask.

    Attributes:
        path: The file.
        epsg: Code of their CRS, or None where it states none (an empty mask).
        outlines: The polygons.
    """

    path: str
    epsg: int | None
    outlines: tuple[Outline, ...]

    def drawn(self, transform: SIX, rows: slice, columns: slice) -> np.ndarray:
        """uint8 [y, x]: 1 inside any polygon.

        Args:
            transform: Pixel to CRS of the grid that ``rows`` and ``columns`` count.
            rows: Rows.
            columns: Columns.
        """
        features = require("rasterio.features", extra=EXTRA, wanted_by=WANTED_BY)
        affine = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY).Affine
        a, b, c, d, e, f = transform
        left, top = a * columns.start + b * rows.start + c, d * columns.start + e * rows.start + f
        shape = rows.stop - rows.start, columns.stop - columns.start
        right, bottom = left + a * shape[1] + b * shape[0], top + d * shape[1] + e * shape[0]
        box = min(left, right), min(top, bottom), max(left, right), max(top, bottom)
        near = [({"type": "Polygon", "coordinates": one.rings}, 1) for one in self.outlines if _meet(one.bounds, box)]
        if not near:
            return np.zeros(shape, np.uint8)
        drawn: np.ndarray = features.rasterize(near, out_shape=shape, transform=affine(a, b, left, d, e, top), dtype="uint8")
        return drawn


def read_outlines(path: str) -> Outlines:
    """Reads a mask.

    Raises:
        BadSource: It is damaged.
    """
    data = vfs.read_bytes(path)
    try:
        if b"<!ENTITY" in data or b"<!DOCTYPE" in data[:2048]:
            raise ValueError("entities of its own")
        root = ElementTree.fromstring(data)
        outlines = tuple(_outline(feature) for feature in root.iter() if _tag(feature) == "MaskFeature")
    except (ElementTree.ParseError, ValueError) as error:
        raise BadSource(path, f"not a readable mask ({error})", "copy the product again") from None
    code = _EPSG.search(data[:20000].decode("utf-8", errors="replace"))
    return Outlines(path=path, epsg=int(code[1]) if code else None, outlines=outlines)


def is_epsg(wkt: str, code: int) -> bool:
    """Whether a system is the registered one."""
    crs = require("rasterio.crs", extra=EXTRA, wanted_by=WANTED_BY).CRS
    return bool(crs.from_wkt(wkt) == crs.from_epsg(code))


def _outline(feature: ElementTree.Element) -> Outline:
    kind = next(((element.text or "").strip().upper() for element in feature.iter() if _tag(element) == "maskType"), "OPAQUE")
    rings = tuple(_ring(element) for element in feature.iter() if _tag(element) == "posList")
    if not rings:
        raise ValueError("a polygon without points")
    x, y = zip(*rings[0])
    return Outline(kind=kind, rings=rings, bounds=(min(x), min(y), max(x), max(y)))


def _ring(element: ElementTree.Element) -> tuple[tuple[float, float], ...]:
    numbers = [float(text) for text in (element.text or "").split()]
    dimension = int(element.get("srsDimension", "2"))
    points = tuple((numbers[n], numbers[n + 1]) for n in range(0, len(numbers) - dimension + 1, dimension))
    if len(points) < 4:
        raise ValueError("a ring of fewer than four points")
    return points


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
