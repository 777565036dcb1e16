"""The tables and the manifest of a store. Fixed writer options, no times, no hosts: equal rows give equal bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinodomain.lineage import Lineage, canonical, digest, digest_file, write_bytes, write_json
from dinodomain.store.codec import group_metadata
from dinodomain.store.format import CHUNKS, FORMAT, INDEX, LINEAGE, MANIFEST
from dinodomain.store.schema import CHUNK_SCHEMA, INDEX_SCHEMA
from dinodomain.store.write import Written
from dinodomain.types import Record

Json = Any


def index_columns(record: Record, written: Written, array: str, item: int = -1) -> dict[str, Json]:
    """The columns of an index row that follow from record and array; ingest adds ids, keys, place, unit, split, licence and holdout.

    Args:
        record: The source.
        written: What the writer said of it.
        array: Path of the zarr array below the store.
        item: Position in a stack; -1 for window arrays.
    """
    return {
        "array": array,
        "item": item,
        "layout": record.layout,
        "channels": list(record.channels),
        "dtype": record.dtype,
        "shape": list(record.shape),
        "extent": list(written.extent),
        "chunk": list(written.chunk),
        "spacing": list(record.spacing),
        "affine": None if record.affine is None else list(record.affine),
        "original_affine": None if record.original_affine is None else list(record.original_affine),
        "crs": record.crs,
        "scale": list(record.scale),
        "offset": list(record.offset),
        "nodata": [math.nan if value is None else value for value in record.nodata],
        "low": list(written.stats.low),
        "high": list(written.stats.high),
        "mean": list(written.stats.mean),
        "std": list(written.stats.std),
        "acquired": record.acquired,
        "fields": canonical(record.fields),
        "stages": [*record.stages, *written.stages],
        "content_hash": written.content_hash,
    }


def chunk_table(
    row: int,
    valid_fraction: np.ndarray,
    *,
    unit: str | Sequence[str],
    holdout: bool | np.ndarray,
    acquired: str | None,
    item: int = -1,
) -> pa.Table:
    """Rows of the chunk table for one source.

    Args:
        row: Row of the index.
        valid_fraction: ``Written.valid_fraction``.
        unit: One unit for all chunks, or one per chunk in C order.
        holdout: The same for the holdout flag.
        acquired: ISO date, or None.
        item: Position in a stack for a whole image, -1 for window arrays.
    """
    count = valid_fraction.size
    cells = np.array([[item]]) if item >= 0 else np.indices(valid_fraction.shape).reshape(valid_fraction.ndim, -1).T
    offsets = np.arange(count + 1, dtype=np.int32) * cells.shape[1]
    columns = [
        pa.array(np.full(count, row, dtype=np.int32)),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(cells.reshape(-1).astype(np.int32))),
        pa.array([unit] * count if isinstance(unit, str) else list(unit), pa.string()),
        pa.array(np.broadcast_to(holdout, count)),
        pa.array(valid_fraction.reshape(-1).astype(np.float32)),
        pa.array([acquired] * count, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=CHUNK_SCHEMA)


def whole_table(first_row: int, items: Sequence[int], *, units: Sequence[str], holdout: Sequence[bool], valid_fraction: Sequence[float],
                acquired: Sequence[str | None]) -> pa.Table:  # fmt: skip
    """Rows of the chunk table for whole images in consecutive rows of the index, all values one per image: ``chunk_table`` in one go.

    Args:
        first_row: Row of the first one.
        items: Position in its stack.
        units: Unit.
        holdout: Holdout flag.
        valid_fraction: Share of valid pixels.
        acquired: ISO date, or None.
    """
    count = len(items)
    columns = [
        pa.array(np.arange(first_row, first_row + count, dtype=np.int32)),
        pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), pa.array(items, pa.int32())),
        pa.array(units, pa.string()),
        pa.array(holdout, pa.bool_()),
        pa.array(valid_fraction, pa.float32()),
        pa.array(acquired, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=CHUNK_SCHEMA)


def index_schema(names: Iterable[str]) -> pa.Schema:
    """Schema of an index with these columns; ``key_<Field>`` columns beyond the fixed ones follow by name, as strings."""
    extra = sorted(set(names) - set(INDEX_SCHEMA.names))
    assert all(name.startswith("key_") for name in extra), f"unknown index columns {extra}"
    return pa.schema([*INDEX_SCHEMA, *(pa.field(name, pa.string()) for name in extra)])


def write_index(path: Path, rows: Iterable[Mapping[str, Json]]) -> None:
    """Writes ``index.parquet``, sorted by ``source_id``; columns named ``key_<Field>`` beyond the schema are added as strings."""
    ordered = sorted(rows, key=lambda row: str(row["source_id"]))
    schema = index_schema(name for row in ordered for name in row)
    write_index_table(path, pa.Table.from_pylist([dict(row) for row in ordered], schema=schema))


def write_index_table(path: Path, table: pa.Table) -> None:
    """Writes ``index.parquet`` from a table that is sorted by ``source_id`` and has an ``index_schema``."""
    _write_table(path, [table.combine_chunks()], table.schema)


def write_chunks(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes ``chunks.parquet`` from tables in the order of the index, holding few of them at a time."""
    _write_table(path, _gathered(tables), CHUNK_SCHEMA)


def _gathered(tables: Iterable[pa.Table], least: int = 2**18) -> Iterable[pa.Table]:
    """Joins small tables: a row group per image would cost more than its rows."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count >= least:
            yield pa.concat_tables(held).combine_chunks()
            held, count = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3, version="2.6", write_statistics=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=2**20)
    write_bytes(path, sink.getvalue())


def write_manifest(
    store: Path,
    *,
    domain: str,
    ndim: int,
    lineage: Lineage,
    arrays: Mapping[str, str],
    skipped: Sequence[Mapping[str, str]] = (),
    extra: Mapping[str, Json] | None = None,
) -> None:
    """Writes the group metadata, ``lineage.json`` and, last, ``manifest.json``: only then the folder is a store.

    Args:
        store: Folder that already holds arrays, index and chunk table.
        domain: Entry-point name of the domain.
        ndim: Number of spatial axes.
        lineage: Record of what the store was made from.
        arrays: Digest of each array by its folder below the store.
        skipped: ``{"uri", "reason", "remedy"}`` of each source that was left out.
        extra: Further plain values (counts, fingerprint of the secret ...).
    """
    for folder in _group_folders(store):
        write_bytes(folder / "zarr.json", group_metadata({"dinodomain": {"format": FORMAT}}))
    write_json(store / LINEAGE, lineage.as_json())
    digests = {name: digest_file(store / name) for name in (INDEX, CHUNKS, LINEAGE)}
    body = {
        **(extra or {}),
        "format": FORMAT,
        "domain": domain,
        "ndim": ndim,
        "digests": digests,
        "digest": digest([digests[INDEX], digests[CHUNKS]]),
        "arrays": dict(arrays),
        "skipped": list(skipped),
    }
    write_json(store / MANIFEST, body)


def _group_folders(store: Path) -> list[Path]:
    """The store and the folders between it and the source folders; Zarr v3 has no implicit groups."""
    tops = [store / name for name in ("scenes", "volumes", "stacks") if (store / name).is_dir()]
    stacks = sorted(path for path in (store / "stacks").glob("*") if path.is_dir())
    return [store, *tops, *stacks]
