"""The tables of a store, from a folder or a server: read whole, checked against the manifest, parsed from the very bytes checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dinodomain.errors import UserError
from dinodomain.store.format import CHUNKS, FORMAT, INDEX, LINEAGE, MANIFEST, PENDING
from dinodomain.store.place import is_remote, shown
from dinodomain.store.remote import OPENING_RETRIES, Objects
from dinodomain.store.shard import RESTORE

Json = Any
_Read = Callable[[str], bytes | None]
"""Bytes of a file by its name below the store; None where there is none."""
_FINISH = "run the same `dinodomain ingest` again: it goes on where it stopped"
_NOT_THERE = "check the bucket and the path: they name the folder of a finished store"
_NO_STORE = f"give the folder of a finished store; if it was one, {RESTORE}"


class Tables(NamedTuple):
    """What an opened store knows.

    Attributes:
        manifest: Plain values of ``manifest.json``.
        index: ``schema.INDEX_SCHEMA``.
        chunks: ``schema.CHUNK_SCHEMA``.
        lineage: Plain values of ``lineage.json``.
    """

    manifest: Mapping[str, Json]
    index: pa.Table
    chunks: pa.Table
    lineage: Mapping[str, Json]


def load_tables(location: str) -> Tables:
    """The tables that hold.

    Args:
        location: Absolute path or URL of the store.

    Raises:
        UserError: It is no store, is half written, was written by a newer version, its tables were altered, or a server refuses.
    """
    place = shown(location)
    if not is_remote(location) and not Path(location).is_dir():
        raise UserError(place, "is no folder", allowed="the folder of a store, or its URL", remedy="make one with `dinodomain ingest`")
    read = partial(_from_server, Objects(OPENING_RETRIES), location) if is_remote(location) else partial(_from_folder, location)
    # A withdrawal holds from the moment its tables are there, whatever is left to be done to the pixels.
    found, lead = read(f"{PENDING}/{MANIFEST}"), f"{PENDING}/"
    if found is None:
        found, lead = read(MANIFEST), ""
    if found is None:
        remedy = _FINISH if place.rstrip("/").endswith(".partial") else _NOT_THERE if is_remote(location) else _NO_STORE
        raise UserError(place, f"has no {MANIFEST}: no store, or one that was never finished", remedy=remedy)
    manifest = _manifest(found, place, f"{place}/{lead}{MANIFEST}")
    tables = _tables(read, place, lead, manifest["digests"])
    return Tables(manifest, _parsed(tables[INDEX]), _parsed(tables[CHUNKS]), json.loads(tables[LINEAGE]))


def _from_folder(root: str, name: str) -> bytes | None:
    try:
        return Path(root, name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{root}/{name}", f"cannot be read ({error.strerror})", remedy="check its permissions") from None


def _from_server(objects: Objects, root: str, name: str) -> bytes | None:
    # Who may not list a bucket is told that what is missing is forbidden: the manifest itself, which comes next, says which it is.
    return objects.whole_or_none(f"{root}/{name}", refused_is_missing=name.startswith(PENDING))


def _manifest(data: bytes, place: str, name: str) -> dict[str, Json]:
    try:
        manifest: dict[str, Json] = json.loads(data)
        found = int(manifest["format"])
        manifest["digests"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(name, f"is not a manifest ({error!r})", remedy=RESTORE) from error
    if found != FORMAT:
        remedy = "upgrade dinodomain" if found > FORMAT else "ingest its sources into a new store"
        raise UserError(place, f"has store format {found}", allowed=str(FORMAT), remedy=remedy)
    return manifest


def _tables(read: _Read, place: str, lead: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    with ThreadPoolExecutor(len(digests)) as pool:
        tables = dict(zip(digests, pool.map(read, [f"{lead}{name}" for name in digests])))
    for name, expected in digests.items():
        data = tables[name]
        if data is None or hashlib.sha256(data).hexdigest() != expected:
            raise UserError(f"{place}/{lead}{name}", "is missing or not what the manifest says", remedy=RESTORE)
    return {name: data for name, data in tables.items() if data is not None}


def _parsed(data: bytes) -> pa.Table:
    """Not by ``pq.read_table``: its dataset layer loads pandas, a third of a second and 60 MB in every process that opens a store.

    Nor by Arrow's threads: one may still hold ``data`` when all is read, and lets go of it while Python exits, which aborts the process.
    """
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(use_threads=False)
