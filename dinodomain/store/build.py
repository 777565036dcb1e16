"""A store from records in one process: for arrays that are in memory already, tests and benchmarks.

Unlike ingest it reads no files, hashes no names, decides no holdout and cannot be resumed; the store it leaves is the same format.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dinodomain.errors import UserError
from dinodomain.lineage import Lineage, digest
from dinodomain.store.format import CHUNKS as CHUNK_FILE
from dinodomain.store.format import INDEX, StorePlan, bucket_of, source_folder, stack_folder
from dinodomain.store.read import Store, open_store
from dinodomain.store.tables import Json, chunk_table, index_columns, write_chunks, write_index, write_manifest
from dinodomain.store.write import Written, prepare_whole, write_scene, write_stack, write_volume
from dinodomain.types import Layout, Record, Window


def array_record(
    pixels: np.ndarray,
    *,
    channels: Sequence[str] | None = None,
    layout: Layout = "window",
    spacing: Sequence[float] | None = None,
    nodata: float | None = None,
    valid: np.ndarray | None = None,
) -> Record:
    """A record over an array in memory.

    Args:
        pixels: [C, (Z,) Y, X].
        channels: Names; ``0``, ``1`` ... by default.
        layout: How it is read back.
        spacing: Pixel size per spatial axis; unknown by default.
        nodata: Stored value that means "no data" in every channel.
        valid: [(Z,) Y, X] uint8 bit field.
    """

    def read(window: Window) -> np.ndarray:
        return pixels[(slice(None), *window)]

    def read_valid(window: Window) -> np.ndarray:
        assert valid is not None
        return valid[window]

    count, ndim = pixels.shape[0], pixels.ndim - 1
    return Record(
        channels=tuple(channels or (str(i) for i in range(count))),
        shape=pixels.shape,
        dtype=pixels.dtype.name,
        spacing=tuple(spacing or (float("nan"),) * ndim),
        affine=None,
        crs=None,
        scale=(1.0,) * count,
        offset=(0.0,) * count,
        nodata=(nodata,) * count,
        layout=layout,
        read=read,
        read_valid=None if valid is None else read_valid,
    )


def build_store(
    path: Path,
    sources: Mapping[str, Record],
    *,
    domain: str,
    units: Mapping[str, str] | None = None,
    holdout: Collection[str] = (),
    plan: StorePlan | None = None,
) -> Store:
    """Writes and opens a store.

    Args:
        path: Folder of the store; must not exist.
        sources: Records by source id, all with the same number of spatial axes.
        domain: Name of the domain.
        units: Unit of each source; the source id where it is not named.
        holdout: Units of the audit holdout.
        plan: Layout.

    Raises:
        UserError: The folder exists, there is nothing to write, or a record cannot be stored.
    """
    if path.exists():
        raise UserError(str(path), "exists already", remedy="choose another folder")
    if not sources:
        raise UserError("sources", "is empty", remedy="give at least one record")
    staged = path.with_name(path.name + ".partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    plan, units = plan or StorePlan(), units or {}
    placed, arrays = _write_arrays(staged, sources, plan)
    names = sorted(sources)
    owner = {name: units.get(name, name) for name in names}
    write_index(staged / INDEX, [_row(name, sources[name], *placed[name], owner[name], owner[name] in holdout) for name in names])
    write_chunks(staged / CHUNK_FILE, _chunk_tables(names, placed, owner, holdout))
    write_manifest(
        staged,
        domain=domain,
        ndim=len(sources[names[0]].shape) - 1,
        lineage=Lineage(kind="store", counts={"sources": len(names), "units": len(set(owner.values()))}),
        arrays=arrays,
    )
    os.replace(staged, path)
    return open_store(path)


_Placed = tuple[Written, str, int]


def _write_arrays(root: Path, sources: Mapping[str, Record], plan: StorePlan) -> tuple[dict[str, _Placed], dict[str, str]]:
    """Where each source went (description, array path, item), and the digest of each array folder."""
    placed: dict[str, _Placed] = {}
    arrays: dict[str, str] = {}
    for name in sorted(sources):
        record = sources[name]
        if record.layout == "window":
            folder = source_folder(name, len(record.shape) - 1)
            written = (write_scene if len(record.shape) == 3 else write_volume)(root / folder, record, plan)
            placed[name], arrays[folder] = (written, f"{folder}/{written.array}", -1), written.digest
    _write_stacks(root, {name: record for name, record in sources.items() if record.layout == "whole"}, plan, placed, arrays)
    return placed, arrays


def _write_stacks(root: Path, sources: Mapping[str, Record], plan: StorePlan, placed: dict[str, _Placed], arrays: dict[str, str]) -> None:
    wholes = {name: prepare_whole(sources[name]) for name in sorted(sources)}
    buckets: dict[str, list[str]] = {}
    for name, whole in wholes.items():
        bucket = bucket_of(sources[name].dtype, sources[name].channels, whole.written.extent)
        buckets.setdefault(bucket, []).append(name)
    for bucket, names in buckets.items():
        folder, record = stack_folder(bucket, 0), sources[names[0]]
        arrays[folder] = write_stack(
            root / folder,
            ((wholes[name].pixels, wholes[name].bits) for name in names),
            count=len(names),
            channels=record.channels,
            extent=wholes[names[0]].written.extent,
            dtype=record.dtype,
            codec=plan.codec,
        )
        for item, name in enumerate(names):
            placed[name] = (wholes[name].written, f"{folder}/data", item)


def _row(name: str, record: Record, written: Written, array: str, item: int, unit: str, held: bool) -> dict[str, Json]:
    given = {"source_id": name, "unit": unit, "holdout": held, "source_digest": digest([name, written.content_hash]), "key_path": name}
    return {**index_columns(record, written, array, item), **given}


def _chunk_tables(
    names: Sequence[str], placed: Mapping[str, _Placed], owner: Mapping[str, str], holdout: Collection[str]
) -> Iterator[pa.Table]:
    for row, name in enumerate(names):
        written, _, item = placed[name]
        held = owner[name] in holdout
        yield chunk_table(row, written.valid_fraction, unit=owner[name], holdout=held, acquired=None, item=item)
