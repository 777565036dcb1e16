"""From staged sources to a store: pack whole images, settle units and holdout, write tables, lineage and, last, the manifest.

Everything is sorted by stored source id and nothing depends on who staged what when, so that any number of workers, and any number of
interruptions, give the same bytes. Runs in the parent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinodomain import __version__
from dinodomain.domain import Domain
from dinodomain.errors import UserError
from dinodomain.ingest.holdout import Holdout, decide, kept
from dinodomain.ingest.index_rows import IndexRows, merged
from dinodomain.ingest.join import INSTANCE
from dinodomain.ingest.partial import Partial
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.quantities import FIELD, quantities_of
from dinodomain.ingest.sources import LEFT_OUT, Metadata, Names
from dinodomain.ingest.stage import Task, source_columns
from dinodomain.ingest.summary import counts_by_reason
from dinodomain.ingest.withdraw import memory_of
from dinodomain.lineage import Json, Lineage, canonical, digest_file, fingerprint
from dinodomain.store.cells import BUFFER, CellGrid
from dinodomain.store.format import CHUNKS, INDEX, array_name, bucket_of, source_folder, stack_folder
from dinodomain.store.read import Store
from dinodomain.store.tables import chunk_table, whole_table, write_chunks, write_index_table, write_manifest
from dinodomain.store.write import write_stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What the tables need to know of one new source beyond its index row.

    Attributes:
        task: The source.
        units: Unit of each of its chunks.
        touched: Units that each chunk touches, itself included; None where that is its own unit alone.
        valid_fraction: Over its chunk grid; [1] for whole images.
        bucket: Bucket of a whole image; empty for a window array.
        kind: Channels, extent and dtype of a whole image; shared by all of its bucket.
    """

    task: Task
    units: list[str]
    touched: list[list[str]] | None
    valid_fraction: np.ndarray
    bucket: str
    kind: tuple[tuple[str, ...], tuple[int, ...], str]


@dataclass(slots=True)
class _Gathered:
    """One pass over the done records.

    Attributes:
        rows: Index rows of the new sources, but for ``array`` and ``item`` of whole images, and ``holdout``.
        added: The new sources by stored id, sorted.
        arrays: Digest of each window array by folder.
        paths: Path of each source's array, in order; of whole images once they are packed.
        warnings: What readers warned of.
    """

    rows: IndexRows = field(default_factory=IndexRows)
    added: dict[str, Added] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    paths: dict[str, tuple[str, int]] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finaliser:
    """The last step of one ingest.

    Attributes:
        plan: The plan.
        domain: The domain.
        names: How clear names become stored ones.
        partial: Where the staged sources lie.
        old: The store that is added to, or None.
        metadata: What the CSV says.
    """

    plan: IngestPlan
    domain: Domain
    names: Names
    partial: Partial
    old: Store | None
    metadata: Metadata = field(default_factory=Metadata)

    def run(self, tasks: Sequence[Task], skipped: Sequence[Mapping[str, str]]) -> dict[str, Json]:
        """Completes the tree and moves it into place; gives back the counts of the store."""
        self.partial.clear_tree({source_folder(task.source_id, self.domain.ndim) for task in tasks})
        new = self._gather(tasks)
        arrays = {**new.arrays, **self._pack(new)}
        rule = self._holdout(new.added)
        flags = {source_id: self._flags(source, rule) for source_id, source in new.added.items()}
        places = [new.paths[source_id] for source_id in new.added]
        known: dict[str, list[Json]] = {
            "array": [path for path, _ in places],
            "item": [item for _, item in places],
            "holdout": [bool(flag.all()) for flag in flags.values()],
        }
        index = merged(new.rows.finish(known), None if self.old is None else self.old.index)
        write_index_table(self.partial.tree / INDEX, index)
        write_chunks(self.partial.tree / CHUNKS, self._chunks(index, new, flags))
        counts = self._manifest(index, new, rule, arrays, skipped)
        self.partial.commit()
        return counts

    def _gather(self, tasks: Sequence[Task]) -> _Gathered:
        new = _Gathered()
        kinds: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]] = {}
        for source_id, task in _by_id(tasks):
            done = self.partial.read_done(task.stored)
            assert done is not None, "a source is finalised only once it is staged"
            columns, whole = source_columns(done), done["columns"]["layout"] == "whole"
            bucket = bucket_of(columns["dtype"], columns["channels"], columns["extent"]) if whole else ""
            kind = kinds.setdefault(bucket, (tuple(columns["channels"]), tuple(columns["extent"]), columns["dtype"]))
            if not whole:
                new.arrays[str(Path(columns["array"]).parent)] = done["files"]
                new.paths[source_id] = (columns["array"], -1)
            new.warnings += [{"uri": source_id, "warning": text} for text in done.get("warnings", ())]
            self._add(new, task, {**done, "columns": columns}, bucket, kind)
        return new

    def _pack(self, new: _Gathered) -> dict[str, str]:
        """Packs whole images bucket by bucket, notes where each went, and gives the digest of every new stack by folder."""
        buckets: dict[str, list[Added]] = {}
        for source in new.added.values():
            if source.bucket:
                buckets.setdefault(source.bucket, []).append(source)
        arrays = {}
        for bucket, members in sorted(buckets.items()):
            folder = stack_folder(bucket, self._next_number(bucket))
            arrays[folder] = self._stack(folder, members)
            name = f"{folder}/{array_name('whole', len(members[0].kind[1]))}"
            new.paths.update((member.task.source_id, (name, item)) for item, member in enumerate(members))
        return arrays

    def _next_number(self, bucket: str) -> int:
        """Stacks are never rewritten: a later ingest takes the next number."""
        arrays = () if self.old is None else self.old.manifest["arrays"]
        return sum(1 for folder in arrays if folder.startswith(f"stacks/{bucket}/"))

    def _stack(self, folder: str, members: Sequence[Added]) -> str:
        channels, extent, dtype = members[0].kind
        return write_stack(
            self.partial.tree / folder,
            (self._image(member) for member in members),
            count=len(members),
            channels=channels,
            extent=extent,
            dtype=dtype,
            codec=self.plan.storage.codec,
        )

    def _image(self, member: Added) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            return self.partial.load_image(member.task.stored)
        except (ValueError, EOFError):
            self.partial.forget(member.task.stored)
            problem = f"a staged image in {str(self.partial.root)!r} is damaged"
            raise UserError("store", problem, remedy="run again: it is staged anew") from None

    def _add(self, new: _Gathered, task: Task, record: Mapping[str, Any], bucket: str, kind: tuple[Any, ...]) -> None:
        csv_row = self.metadata.rows.get(task.ref.source_id, {})
        quantity = {FIELD: task.ref.quantity} if task.ref.quantity else {}
        own = {**quantity, **json.loads(record["columns"]["fields"]), **self.names.places(task.ref)}
        fields = {**own, **{name: csv_row[name] for name in self.plan.fields if name in csv_row}}
        group = csv_row.get(self.plan.group, "") if self.plan.group else ""
        place = None if group else record["place"]
        unit = "" if place else self._unit(group or task.ref.unit, task)
        valid = np.asarray(record["valid_fraction"], np.float32)
        columns = {
            **record["columns"],
            "source_id": task.source_id,
            "source_digest": task.digest,
            "fields": canonical(fields),
            "lon": (record["place"] or {}).get("lon"),
            "lat": (record["place"] or {}).get("lat"),
            "unit": unit,
            "split": _text(fields.get("split")),
            "licence": self.plan.licence or _text(fields.get("licence")),
            **({INSTANCE: task.instance} if task.instance else {}),
            **{f"key_{kind}": self.names.stored(value) for kind, value in sorted(task.ref.keys.items()) if value},
        }
        new.rows.add(columns)
        new.added[task.source_id] = Added(
            task=task,
            units=place["units"] if place else [unit] * valid.size,
            touched=place["touched"] if place else None,
            valid_fraction=valid,
            bucket=bucket,
            kind=kind,
        )

    def _unit(self, clear: str | None, task: Task) -> str:
        """A source that belongs to nobody known is its own unit."""
        return self.names.stored(clear) if clear else task.source_id

    def _holdout(self, added: Mapping[str, Added]) -> Holdout:
        if self.old is not None:
            return kept(self.old.manifest)
        return decide(len({unit for source in added.values() for unit in source.units}), self.plan.audit_holdout)

    def _flags(self, source: Added, rule: Holdout) -> np.ndarray:
        """Per chunk: touches a held-out unit or its buffer."""
        if source.touched is None:
            return np.full(source.valid_fraction.size, rule.holds(self.names.secret, source.units[0]))
        held = {unit: rule.holds(self.names.secret, unit) for unit in {unit for units in source.touched for unit in units}}
        return np.array([any(held[unit] for unit in units) for units in source.touched], bool)

    def _chunks(self, index: pa.Table, new: _Gathered, flags: Mapping[str, np.ndarray]) -> Iterator[pa.Table]:
        """Chunk rows in the order of the index; runs of whole images in one go."""
        old, acquired = _OldChunks(self.old), index["acquired"].to_pylist()
        numbered = enumerate(index["source_id"].to_pylist())
        for whole, run in itertools.groupby(numbered, key=lambda one: one[1] in new.added and new.added[one[1]].bucket != ""):
            if whole:
                yield _whole_chunks(list(run), new, flags, acquired)
                continue
            for number, source_id in run:
                source = new.added.get(source_id)
                if source is None:
                    yield old.moved(source_id, number)
                else:
                    dates = acquired[number]
                    yield chunk_table(number, source.valid_fraction, unit=source.units, holdout=flags[source_id], acquired=dates)

    def _manifest(self, index: pa.Table, new: _Gathered, rule: Holdout, arrays: Mapping[str, str],
                  skipped: Sequence[Mapping[str, str]]) -> dict[str, Json]:  # fmt: skip
        units = {unit for source in new.added.values() for unit in source.units}
        units |= set() if self.old is None else set(self.old.chunks["unit"].unique().to_pylist())
        held = rule.held(self.names.secret, units)
        before = [] if self.old is None else self.old.manifest.get("warnings", [])
        warnings = sorted((*before, *new.warnings), key=lambda row: (row["uri"], row["warning"]))
        left_out = sum(row.get("kind") == LEFT_OUT for row in skipped)
        counts = {
            "sources": index.num_rows,
            "units": len(units),
            "held_out_units": len(held),
            "skipped": len(skipped),
            "refused": len(skipped) - left_out,
            "left_out": left_out,
            "skipped_by_reason": counts_by_reason(row["reason"] for row in skipped),
            "warnings": len(warnings),
        }
        write_manifest(
            self.partial.tree,
            domain=self.domain.name,
            ndim=self.domain.ndim,
            lineage=self._lineage(counts),
            arrays={**({} if self.old is None else self.old.manifest["arrays"]), **arrays},
            skipped=skipped,
            extra={
                "personal": self.domain.personal,
                "patient_map": self.plan.patient_map is not None or (self.old is not None and bool(self.old.manifest.get("patient_map"))),
                "secret_fingerprint": fingerprint(self.names.secret),
                "holdout": rule.as_json(units, held),
                "cells": {
                    "cell_m": self.plan.cell,
                    "columns": CellGrid(cell_m=self.plan.cell).columns,
                    "buffer_m": BUFFER * self.plan.cell,
                },
                "settings": self.plan.signature(),
                "quantities": quantities_of(index["fields"].to_pylist()),
                "warnings": warnings,
                "counts": counts,
                **memory_of(self.old),
            },
        )
        return counts

    def _lineage(self, counts: Mapping[str, Json]) -> Lineage:
        csv = {} if self.plan.metadata is None else {"metadata": digest_file(self.plan.metadata)}
        versions = {"dinodomain": __version__, **{name: version(name) for name in ("numcodecs", "numpy", "zarr")}}
        history = () if self.old is None else (self.old.lineage,)
        plan = dict(self.plan.record(personal=self.domain.personal))
        if self.plan.select is None and self.domain.default_select:
            plan["select"] = self.domain.default_select
        return Lineage(kind="store", parents=csv, plan=plan, counts=counts, versions=versions, history=history)


def _whole_chunks(
    run: Sequence[tuple[int, str]], new: _Gathered, flags: Mapping[str, np.ndarray], acquired: Sequence[str | None]
) -> pa.Table:
    """A whole image has one chunk."""
    names = [source_id for _, source_id in run]
    return whole_table(
        run[0][0],
        [new.paths[name][1] for name in names],
        units=[new.added[name].units[0] for name in names],
        holdout=[bool(flags[name][0]) for name in names],
        valid_fraction=[float(new.added[name].valid_fraction[0]) for name in names],
        acquired=acquired[run[0][0] : run[0][0] + len(run)],
    )


class _OldChunks:
    """Chunk rows of the store that is added to, by source."""

    def __init__(self, old: Store | None) -> None:
        self._table = None if old is None else old.chunks
        self._spans: dict[str, tuple[int, int]] = {}
        if old is not None:
            bounds = np.searchsorted(old.chunks["row"].to_numpy(), np.arange(old.index.num_rows + 1))
            self._spans = {name: (int(a), int(b)) for name, a, b in zip(old.index["source_id"].to_pylist(), bounds, bounds[1:])}

    def moved(self, source_id: str, number: int) -> pa.Table:
        """The rows of one source under its new row number."""
        assert self._table is not None, "an old row comes from an old store"
        start, stop = self._spans[source_id]
        part = self._table.slice(start, stop - start)
        place = part.schema.get_field_index("row")
        return part.set_column(place, part.schema.field(place), pa.array(np.full(stop - start, number, np.int32)))


def _by_id(tasks: Sequence[Task]) -> list[tuple[str, Task]]:
    return sorted((task.source_id, task) for task in tasks)


def _text(value: Json) -> str | None:
    return None if value in (None, "") else str(value)
