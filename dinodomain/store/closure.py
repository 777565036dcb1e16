"""What may never be trained on where several stores are mixed: a unit that one of them holds out is held out in all.

By name: patients, groups and ground cells carry the same name in stores that share a secret. By place: what touches a held-out ground cell
or the belt around it is held out too, also in a store whose own rule or cell size differs. Reads tables only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinodomain.store.cells import BUFFER, CellGrid, chunk_boxes, footprints

if TYPE_CHECKING:
    from dinodomain.store.read import Store

_CELL = re.compile(r"cell([0-9.e+-]+)/-?\d+/\d+")
_AT_ONCE = 2**14
_MARGIN = 0.05
"""Added to the belt when whole sources are sifted: their outline is sampled more coarsely than that of their chunks."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held out of one store.

    Attributes:
        sources: [sources] bool.
        chunks: [chunks] bool.
    """

    sources: np.ndarray
    chunks: np.ndarray


def close(stores: Sequence[Store]) -> list[Held]:
    """Per store, its own flags and those that follow from the others."""
    units = [_held_units(store) for store in stores]
    everything = set().union(*units)
    return [_closed(store, everything, _foreign_cells(number, stores, units)) for number, store in enumerate(stores)]


def own_held(store: Store) -> int:
    """Number of chunks that a store holds out by itself."""
    flags = store.chunks["holdout"].to_numpy() | store.column("holdout").astype(bool)[store.chunks["row"].to_numpy()]
    return int(flags.sum())


def _held_units(store: Store) -> set[str]:
    """Names of the held-out units of a store."""
    if "holdout" in store.manifest:
        return set(store.manifest["holdout"]["units"])
    return set(store.column("unit")[store.column("holdout").astype(bool)].tolist()) - {"", None}


def _foreign_cells(number: int, stores: Sequence[Store], units: Sequence[set[str]]) -> set[str]:
    """Held-out cells of the other stores whose surroundings store ``number`` has not held out by its own rule."""
    found: set[str] = set()
    for store, held in zip(stores, units):
        if store is not stores[number] and not _covers(stores[number], store):
            found |= {unit for unit in held if _CELL.fullmatch(unit)}
    return found


def _covers(store: Store, other: Store) -> bool:
    """Whether a store's rule holds out every cell that the other's does: same secret, same grid, no smaller share."""
    mine, theirs = store.manifest, other.manifest
    if any(name not in manifest for manifest in (mine, theirs) for name in ("holdout", "cells", "secret_fingerprint")):
        return False
    same = mine["cells"] == theirs["cells"] and mine["secret_fingerprint"] == theirs["secret_fingerprint"]
    return same and float(mine["holdout"]["share"]) >= float(theirs["holdout"]["share"])


def _closed(store: Store, units: set[str], cells: set[str]) -> Held:
    rows = store.chunks["row"].to_numpy()
    names = pa.array(sorted(units), pa.string())
    sources = store.column("holdout").astype(bool) | _among(store.index["unit"], names)
    chunks = store.chunks["holdout"].to_numpy() | _among(store.chunks["unit"], names) | sources[rows]
    if cells and store.ndim == 2:
        chunks = chunks | _touching(store, cells)
    # A source is held out as a whole where all of it is; the flag of a source says so in every store.
    free = np.zeros(len(store), dtype=bool)
    free[rows[~chunks]] = True
    return Held(sources | ~free, chunks)


def _among(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.is_in(column, value_set=names).to_numpy().astype(bool)
    return found


def _touching(store: Store, cells: set[str]) -> np.ndarray:
    """[chunks] bool, whether a chunk touches one of the cells or the belt around it."""
    flags = np.zeros(store.chunks.num_rows, dtype=bool)
    ends = np.searchsorted(store.chunks["row"].to_numpy(), np.arange(len(store) + 1))
    for grid, names in _by_grid(cells):
        for row in _near(store, grid, names):
            facts = store.row(row)
            boxes = footprints(facts["crs"], facts["affine"], _boxes(facts), str(facts["source_id"]))
            flags[ends[row] : ends[row + 1]] |= [bool(names & set(touched)) for touched in grid.touched(boxes)]
    return flags


def _by_grid(cells: set[str]) -> Iterable[tuple[CellGrid, set[str]]]:
    sides = {name: match[1] for name in cells if (match := _CELL.fullmatch(name)) is not None}
    for side in sorted(set(sides.values())):
        yield CellGrid(cell_m=float(side)), {name for name, own in sides.items() if own == side}


def _near(store: Store, grid: CellGrid, names: set[str]) -> list[int]:
    """Rows of placed sources whose outline comes near one of the cells."""
    table = store.index.select(["crs", "affine", "shape"])
    placed = np.flatnonzero(pc.is_valid(table["crs"]).to_numpy() & (pc.list_value_length(table["affine"]).fill_null(0).to_numpy() == 9))
    codes = table["crs"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)[placed]
    found: list[int] = []
    for code in np.unique(codes):
        rows = placed[codes == code]
        for part in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE)):
            found += part[_comes_near(table.take(part), grid, names)].tolist()
    return sorted(found)


def _comes_near(table: pa.Table, grid: CellGrid, names: set[str]) -> np.ndarray:
    """[n] bool of sources of one reference system."""
    affines = np.array(table["affine"].to_pylist(), dtype=np.float64)
    sizes = np.array([shape[1:] for shape in table["shape"].to_pylist()], dtype=np.float64)
    boxes = footprints(table["crs"][0].as_py(), affines, np.concatenate([np.zeros_like(sizes), sizes], axis=1))
    return np.array([not names.isdisjoint(touched) for touched in grid.touched(boxes, BUFFER + _MARGIN)], dtype=bool)


def _boxes(facts: dict[str, Any]) -> np.ndarray:
    """Pixel boxes of a source's rows of the chunk table; a whole image has one."""
    shape = facts["shape"][1:]
    return chunk_boxes(shape, shape if facts["layout"] == "whole" else facts["chunk"])
