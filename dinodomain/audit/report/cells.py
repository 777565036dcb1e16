"""Findings per ground cell as a GeoPackage: how many units and images each cell holds, and how many of them the findings name.

A cell is one of a grid of whole degrees; a cell with fewer than ten units shows only that there are fewer than ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.audit.evidence import Private
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.errors import UserError, require

LEAST_UNITS = 10
_NAMES = (("lon", "lat"), ("longitude", "latitude"))
_LAYER = "audit_cells"


def ground_cells(body: Mapping[str, Any], data: AuditSet | None, private: Sequence[Private], path: Path) -> None:
    """Writes the cells.

    Args:
        body: ``audit.json`` as plain values.
        data: The audited rows.
        private: Tables whose column ``row`` names audited rows: how many of these lie in a cell is told, never which.
        path: The GeoPackage.

    Raises:
        UserError: No audited row has longitude and latitude.
    """
    assert data is not None, "checked before the audit"
    check_places(data)
    places = _places(data)
    assert places is not None, "just checked"
    rows = [row | {"audit_id": body["audit_id"]} for row in _rows(data, *places, private)]
    geopandas = require("geopandas", extra="audit", wanted_by="audit.formats=[cells]")
    boxes = require("shapely", extra="audit", wanted_by="audit.formats=[cells]").box
    shapes = [boxes(row["lon"], row["lat"], row["lon"] + 1, row["lat"] + 1) for row in rows]
    frame = geopandas.GeoDataFrame(rows, geometry=shapes, crs="EPSG:4326")
    frame.to_file(path, layer=_LAYER, driver="GPKG")


def check_places(data: AuditSet) -> None:
    """Refuses rows of which none has a place.

    Raises:
        UserError: No audited row has longitude and latitude.
    """
    places = _places(data)
    if places is None or not places[1].any():
        raise UserError("audit.formats", "cells need longitude and latitude, which no audited image has", remedy="leave out cells")


def _places(data: AuditSet) -> tuple[np.ndarray, np.ndarray] | None:
    """[N, 2] south-west corner of each row's cell in whole degrees, and [N] whether it is known."""
    names = next((pair for pair in _NAMES if all(name in data.columns for name in pair)), None)
    if names is None:
        return None
    values = np.stack([_numbers(data.columns[name]) for name in names], axis=1)
    known = np.isfinite(values).all(axis=1)
    return np.floor(np.where(known[:, None], values, 0)).astype(np.int64), known


def _numbers(column: np.ndarray) -> np.ndarray:
    return np.array([_number(value) for value in column])


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def _rows(data: AuditSet, corners: np.ndarray, known: np.ndarray, private: Sequence[Private]) -> list[dict[str, Any]]:
    named = {table.name: _named(table, len(data.units)) for table in private}
    found = []
    for lon, lat in np.unique(corners[known], axis=0):
        inside = known & (corners == (lon, lat)).all(axis=1)
        units = len(np.unique(data.units[inside]))
        row: dict[str, Any] = {"lon": int(lon), "lat": int(lat), "units": f"< {LEAST_UNITS}", "images": None}
        row |= {f"in_{name}": None for name in named}
        if units >= LEAST_UNITS:
            row |= {"units": str(units), "images": len(np.unique(data.sources[inside]))}
            row |= {f"in_{name}": int((inside & rows).sum()) for name, rows in named.items()}
        found.append(row)
    return found


def _named(table: Private, count: int) -> np.ndarray:
    """[N] whether a table names each audited row."""
    out = np.zeros(count, bool)
    rows = np.array([int(row) for row in table.columns.get("row", ())], np.int64)
    out[rows[(rows >= 0) & (rows < count)]] = True
    return out
