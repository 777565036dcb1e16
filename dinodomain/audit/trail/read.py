"""Reads the trail of an audit: the lineage record of the checkpoint, and tables and manifest of the audited store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from dinodomain.audit.trail.heads import read_heads
from dinodomain.audit.trail.kept import Kept, Left, fields_of
from dinodomain.audit.trail.parts import read_volumes
from dinodomain.audit.trail.record import Trail, training_record, training_trail
from dinodomain.errors import UserError
from dinodomain.ingest.join import keys_of, match, read_table, skipped_keys, store_hash
from dinodomain.lineage import ContentHash
from dinodomain.loader import LoaderPlan, find_tiles
from dinodomain.probes.frozen import column_of
from dinodomain.store import Store
from dinodomain.types import Labels

Json = Any
COLUMNS = (
    "source_id", "unit", "split", "licence", "source_digest", "content_hash", "acquired", "lon", "lat", "crs", "affine", "shape", "spacing",
    "channels", "fields", "stages",
)  # fmt: skip


def read_trail(
    origin: Mapping[str, Json], store: Store, *, labels: Labels | None = None, csv: str | None = None, join: str = "id",
    secret: str | None = None,
) -> Trail:  # fmt: skip
    """What is recorded from sources to samples.

    Args:
        origin: Lineage record of the audited checkpoint, or of what was made from it.
        store: The audited store.
        labels: The CSV as joined to its sources.
        csv: Where that CSV lies, for what it says of skipped sources.
        join: Its column that names the source.
        secret: File with the store's secret.
    """
    trail = training_trail(origin)
    groups = {**fields_of(store.column("fields")), **({} if labels is None else _labelled(store, labels))}
    skipped, joined = _skipped(store, csv, join, secret)
    kept = replace(
        _kept(store, training_record(origin).get("plan", {}).get("loader", {}), groups), skipped=skipped, groups_of_skipped=joined
    )
    return replace(trail, kept=kept, trained=any(one.digest == store.digest for one in trail.stores))


def _kept(store: Store, loader: Mapping[str, Json], groups: Mapping[str, np.ndarray]) -> Kept:
    rows, units = store.chunks["row"].to_numpy(), np.asarray(store.chunks["unit"].to_pylist(), dtype=np.str_)
    held = store.chunks["holdout"].to_numpy(zero_copy_only=False)
    pairs = np.unique(np.stack([rows.astype(np.str_), units]), axis=1)
    eligible, eligible_units = _eligible(store, loader)
    free = np.zeros(len(store), bool)
    free[rows[~held]] = True
    manifest = store.manifest
    return Kept(
        digest=store.digest, domain=store.domain, ndim=store.ndim, personal=bool(manifest.get("personal", False)),
        index={name: store.column(name) for name in COLUMNS}, groups=groups,
        unit_rows=pairs[0].astype(np.int64), unit_names=pairs[1],
        held_units=frozenset(manifest.get("holdout", {}).get("units", ())), held_sources=~free,
        eligible_sources=eligible, eligible_units=eligible_units,
        withdrawn_units=frozenset(manifest.get("withdrawn_units", ())),
        withdrawn_sources=len(manifest.get("withdrawn_sources", ())),
        rehash=lambda chosen: np.array([_same_pixels(store, int(row)) for row in chosen], bool),
        volumes=(lambda: read_volumes(store)) if store.ndim == 3 else None,
        heads=(lambda rows: read_heads(store, rows)) if store.ndim == 3 else None,
    )  # fmt: skip


def _eligible(store: Store, loader: Mapping[str, Json]) -> tuple[np.ndarray, frozenset[str]]:
    """Sources and units that the training could draw from, by the loader settings it recorded; by the defaults where there are none."""
    names = {one.name for one in fields(LoaderPlan)} & {"tile", "min_valid", "aligned", "pairs", "dates", "min_days"}
    mask = np.zeros(len(store), bool)
    try:
        tiles = find_tiles(store, LoaderPlan(**{name: loader[name] for name in names & loader.keys()}), holdout="exclude")
    except UserError:  # nothing is eligible
        return mask, frozenset()
    mask[np.unique(tiles.rows)] = True
    return mask, frozenset(np.unique(tiles.units.astype(str)).tolist())


def _labelled(store: Store, labels: Labels) -> dict[str, np.ndarray]:
    rows = np.arange(len(store))
    return {name: column_of(labels, rows, values) for name, values in labels.columns.items()}


def _skipped(store: Store, csv: str | None, join: str, secret: str | None) -> tuple[tuple[Left, ...], bool]:
    """The skipped sources with what the CSV says of them, and whether it could be asked."""
    rows = store.manifest.get("skipped", ())
    found = {} if csv is None or not rows else _rows_of_skipped(store, csv, join, secret)
    listed = [Left(reason=row["reason"], kind=row.get("kind", ""), groups=(found or {}).get(place, {})) for place, row in enumerate(rows)]
    return tuple(listed), bool(found) or not rows


def _rows_of_skipped(store: Store, csv: str, join: str, secret: str | None) -> dict[int, Mapping[str, str]] | None:
    """Rows of the CSV by number of the skipped source; None where it cannot be told which row speaks of which."""
    table = read_table(csv, "labels")
    gone = frozenset(store.manifest.get("withdrawn_rows", ()))
    try:
        found = match(table, join, skipped_keys(store), keys_of(store), hash_=store_hash(store, secret), gone=gone)
    except UserError:
        return None
    return {source: table.rows[row] for source, row in found.rows.items()}


def _same_pixels(store: Store, row: int) -> bool:
    """Reads a source slab by slab and hashes it anew; a source that cannot be read is not the same."""
    facts = store.row(row)
    shape, lines = tuple(facts["shape"]), max(1, int(facts["chunk"][0]))
    running = ContentHash(np.dtype(facts["dtype"]).str[1:], shape, tuple(facts["channels"]))
    try:
        for start in range(0, shape[1], lines):
            slab = np.zeros((shape[0], min(lines, shape[1] - start), *shape[2:]), facts["dtype"])
            store.read_box(row, (start,) + (0,) * (len(shape) - 2), slab)
            running.update(slab)
    except UserError:
        return False
    return bool(running.hexdigest() == facts["content_hash"])
