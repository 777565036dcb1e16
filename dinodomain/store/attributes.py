"""Zarr attributes that let other tools place an array: GeoZarr for rasters, OME-Zarr 0.5 for volumes, and our own namespace.

Both conventions are young (GeoZarr ``spatial:`` and ``proj:`` v1 are proposals; ``orientation`` is OME RFC-4), so reading never depends on
them: the same facts lie under ``dinodomain`` and in the index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dinodomain.lineage import to_json
from dinodomain.store.format import FORMAT
from dinodomain.types import Record

Attributes = dict[str, Any]

_SPATIAL = {"uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "name": "spatial", "description": "Spatial coordinate information"}
_PROJ = {"uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f", "name": "proj", "description": "Coordinate reference system information"}
# Canonical volumes grow towards right, anterior, superior (RAS+).
_RAS = {"x": "left-to-right", "y": "posterior-to-anterior", "z": "inferior-to-superior"}


def own_attributes(record: Record) -> Attributes:
    """What every source folder says about itself, under ``dinodomain``."""
    facts = {
        "format": FORMAT,
        "channels": record.channels,
        "spacing": record.spacing,
        "affine": record.affine,
        "original_affine": record.original_affine,
        "crs": record.crs,
        "scale": record.scale,
        "offset": record.offset,
        "nodata": record.nodata,
    }
    return {"dinodomain": to_json(facts)}


def scene_attributes(record: Record) -> Attributes:
    """Group attributes of a raster."""
    conventions: list[Mapping[str, str]] = []
    found = own_attributes(record)
    if record.affine is not None:
        conventions.append(_SPATIAL)
        found |= _placed(record.affine, record.shape[1:])
    if record.crs is not None:
        conventions.append(_PROJ)
        found["proj:wkt2"] = record.crs
    return found | ({"zarr_conventions": conventions} if conventions else {})


def _placed(affine: tuple[float, ...], shape: tuple[int, ...]) -> Attributes:
    a, b, c, d, e, f = affine[:6]
    rows, columns = shape
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, columns) for y in (0, rows)]
    xs, ys = zip(*corners)
    return {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": [a, b, c, d, e, f],
        "spatial:shape": [rows, columns],
        "spatial:bbox": [min(xs), min(ys), max(xs), max(ys)],
    }


def volume_attributes(record: Record) -> Attributes:
    """Group attributes of a volume: one resolution level named ``0``."""
    lead = [] if record.shape[0] == 1 else [{"name": "c", "type": "channel"}]
    space = [_space_axis(name, spacing, record.affine is not None) for name, spacing in zip("zyx", record.spacing)]
    scale = [1.0] * len(lead) + [spacing if math.isfinite(spacing) else 1.0 for spacing in record.spacing]
    moves: list[Attributes] = [{"type": "scale", "scale": scale}]
    if record.affine is not None:
        x, y, z = record.affine[3], record.affine[7], record.affine[11]
        moves.append({"type": "translation", "translation": [0.0] * len(lead) + [z, y, x]})
    level = {"path": "0", "coordinateTransformations": moves}
    return own_attributes(record) | {"ome": {"version": "0.5", "multiscales": [{"axes": [*lead, *space], "datasets": [level]}]}}


def _space_axis(name: str, spacing: float, oriented: bool) -> Attributes:
    axis: Attributes = {"name": name, "type": "space"}
    if math.isfinite(spacing):
        axis["unit"] = "millimeter"
    if oriented:
        axis["orientation"] = {"type": "anatomical", "value": _RAS[name]}
    return axis
