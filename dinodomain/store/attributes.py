"""Zarr attributes that let other tools place an array: GeoZarr and CF for rasters, OME-Zarr 0.5 for volumes, and our own namespace.

The conventions are young (GeoZarr ``spatial:`` and ``proj:`` v1 are proposals; ``orientation`` is OME RFC-4), so reading never depends on
them: the same facts lie under ``dinodomain`` and in the index.

CF's ``_FillValue``, ``scale_factor`` and ``add_offset`` are left out on purpose: xarray would turn stored integers into floats with NaN
without being asked, which neither rasterio nor rioxarray does to an image. ``nodata`` says the same and changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinodomain.lineage import to_json
from dinodomain.store.coordinates import GRID_MAPPING
from dinodomain.store.format import FORMAT
from dinodomain.store.measure import ChannelStats
from dinodomain.types import CLOUD, NODATA, OUTSIDE_BODY, SATURATED, SHADOW_SNOW, USER_MASK, Record

Attributes = dict[str, Any]

_SPATIAL = {"uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "name": "spatial", "description": "Spatial coordinate information"}
_PROJ = {"uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f", "name": "proj", "description": "Coordinate reference system information"}
# Canonical volumes grow towards right, anterior, superior (RAS+).
_RAS = {"x": "left-to-right", "y": "posterior-to-anterior", "z": "inferior-to-superior"}
_FLAGS = {
    NODATA: "nodata",
    CLOUD: "cloud",
    SHADOW_SNOW: "shadow_or_snow",
    OUTSIDE_BODY: "outside_body",
    USER_MASK: "user_mask",
    SATURATED: "saturated",
}
_WKT2 = ("PROJCRS", "GEOGCRS", "GEODCRS", "BOUNDCRS", "COMPOUNDCRS", "ENGCRS", "DERIVEDPROJCRS")
# The authority of the whole system is the last thing before the last bracket; that of a part has more brackets after it.
_AUTHORITY = re.compile(r'(?:AUTHORITY\["(\w+)","(\w+)"\]|\bID\["(\w+)",\s*"?(\w+)"?\])\s*\]\s*$')
_COLOURS = ("FFFFFF", "FF0000", "00FF00", "0000FF", "FFFF00", "FF00FF", "00FFFF")


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
    return own_attributes(record) | placement(record)


def pixel_attributes(record: Record) -> Attributes:
    """Attributes of the pixels of a raster: where they lie (GDAL looks for it here, xarray in the grid mapping), and their nodata value."""
    return _placed_array(record) | _nodata(record)


def valid_attributes(record: Record | None = None) -> Attributes:
    """Attributes of a ``valid`` field; for a raster also where it lies."""
    flags = {"long_name": "why a pixel is not valid; 0 is valid", "standard_name": "status_flag"}
    meanings = {"flag_masks": list(_FLAGS), "flag_meanings": " ".join(_FLAGS.values())}
    return {**flags, **meanings} | ({} if record is None else _placed_array(record))


def placement(record: Record) -> Attributes:
    """GeoZarr ``spatial:`` and ``proj:`` of a raster, as far as they are known."""
    conventions: list[Mapping[str, str]] = []
    found: Attributes = {}
    if record.affine is not None:
        conventions.append(_SPATIAL)
        found |= _placed(record.affine, record.shape[1:])
    system = _system(record.crs)
    if system:
        conventions.append(_PROJ)
    return found | system | ({"zarr_conventions": conventions} if conventions else {})


def _system(crs: str | None) -> Attributes:
    """``proj:code`` where the WKT names an authority, ``proj:wkt2`` where it is of that version; neither for older WKT without a code."""
    if crs is None:
        return {}
    found: Attributes = {}
    authority = _AUTHORITY.search(crs)
    if authority:
        found["proj:code"] = ":".join(part for part in authority.groups() if part)
    if crs.lstrip().startswith(_WKT2):
        found["proj:wkt2"] = crs
    return found


def _placed_array(record: Record) -> Attributes:
    """Where an array lies, for readers that open it alone and for those that open its group."""
    if record.crs is None and record.affine is None:
        return {}
    # ``coordinates`` makes xarray take it for a coordinate without being told ``decode_coords="all"``.
    found = placement(record) | {"grid_mapping": GRID_MAPPING, "coordinates": GRID_MAPPING}
    if record.crs is not None and not _system(record.crs):
        found["_CRS"] = {"wkt": record.crs}  # GDAL's own, which takes WKT of any version
    return found


def _nodata(record: Record) -> Attributes:
    """One value for all channels, or nothing. NaN is never stored (it becomes 0 and a flag in ``valid``)."""
    value = record.nodata[0]
    if value is None or math.isnan(value) or any(other != value for other in record.nodata):
        return {}
    return {"nodata": float(value) if np.dtype(record.dtype).kind == "f" else int(value)}


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


def volume_attributes(record: Record, stats: ChannelStats | None = None) -> Attributes:
    """Group attributes of a volume: one resolution level named ``0``; with statistics also how a viewer may show it."""
    lead = [] if record.shape[0] == 1 else [{"name": "c", "type": "channel"}]
    space = [_space_axis(name, spacing, record.affine is not None) for name, spacing in zip("zyx", record.spacing)]
    scale = [1.0] * len(lead) + [spacing if math.isfinite(spacing) else 1.0 for spacing in record.spacing]
    moves: list[Attributes] = [{"type": "scale", "scale": scale}]
    if record.affine is not None:
        x, y, z = record.affine[3], record.affine[7], record.affine[11]
        moves.append({"type": "translation", "translation": [0.0] * len(lead) + [z, y, x]})
    level = {"path": "0", "coordinateTransformations": moves}
    shown = {} if stats is None else _shown(record, stats)
    return own_attributes(record) | {"ome": {"version": "0.5", "multiscales": [{"axes": [*lead, *space], "datasets": [level]}], **shown}}


def _shown(record: Record, stats: ChannelStats) -> Attributes:
    """OME's ``omero``: name, colour and window of each channel in stored values; nothing where a channel has no valid pixel."""
    stored = [
        sorted(((low - offset) / scale, (high - offset) / scale)) if scale else [math.nan, math.nan]
        for low, high, scale, offset in zip(stats.low, stats.high, record.scale, record.offset)
    ]
    if not all(math.isfinite(end) for window in stored for end in window):
        return {}
    channels = [
        {
            "label": name,
            "color": _COLOURS[number % len(_COLOURS)],
            "active": number == 0,
            "window": {"min": start, "max": end, "start": start, "end": end},
        }
        for number, (name, (start, end)) in enumerate(zip(record.channels, stored))
    ]
    return {"omero": {"channels": channels}}


def _space_axis(name: str, spacing: float, oriented: bool) -> Attributes:
    axis: Attributes = {"name": name, "type": "space"}
    if math.isfinite(spacing):
        axis["unit"] = "millimeter"
    if oriented:
        axis["orientation"] = {"type": "anatomical", "value": _RAS[name]}
    return axis
