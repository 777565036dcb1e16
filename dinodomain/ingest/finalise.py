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
from dinodomain.ingest.cells import BUFFER, CellGrid
from dinodomain.ingest.holdout import Holdout, decide, kept
from dinodomain.ingest.join import INSTANCE
from dinodomain.ingest.partial import Partial
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.quantities import FIELD, quantities_of
from dinodomain.ingest.sources import LEFT_OUT, Metadata, Names
from dinodomain.ingest.stage import Task, source_columns
from dinodomain.ingest.summary import counts_by_reason
from dinodomain.ingest.withdraw import memory_of
from dinodomain.lineage import Json, Lineage, canonical, content_hash, digest_file, fingerprint
from dinodomain.store.format import CHUNKS, INDEX, array_name, bucket_of, source_folder, stack_folder
from dinodomain.store.read import Store
from dinodomain.store.tables import chunk_table, whole_table, write_chunks, write_index, write_manifest
from dinodomain.store.write import write_stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """One new source, ready for the tables.

    Attributes:
        row: Its index row, but for ``holdout``.
        units: Unit of each of its chunks.
        touched: Units that each chunk touches, itself included.
        valid_fraction: Over its chunk grid; [1] for whole images.
    """

    row: dict[str, Json]
    units: list[str]
    touched: list[list[str]]
    valid_fraction: np.ndarray


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
        records = {task.source_id: self._record(task) for task in sorted(tasks, key=lambda task: task.source_id)}
        arrays = self._pack(records)
        added = {source_id: self._added(task.ref.source_id, task, records[source_id]) for source_id, task in _by_id(tasks)}
        rule = self._holdout(added)
        rows = self._rows(added, rule)
        write_index(self.partial.tree / INDEX, rows.values())
        write_chunks(self.partial.tree / CHUNKS, self._chunks(rows, added, rule))
        counts = self._manifest(rows, added, rule, arrays, skipped, self._warnings(records))
        self.partial.commit()
        return counts

    def _record(self, task: Task) -> dict[str, Any]:
        done = self.partial.read_done(task.stored)
        assert done is not None, "a source is finalised only once it is staged"
        return {**done, "stored": task.stored, "columns": source_columns(done)}

    def _warnings(self, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
        """What readers warned of, then and now, by stored id."""
        new = [{"uri": source_id, "warning": text} for source_id, record in records.items() for text in record.get("warnings", ())]
        old = [] if self.old is None else self.old.manifest.get("warnings", [])
        return sorted((*old, *new), key=lambda row: (row["uri"], row["warning"]))

    def _pack(self, records: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        """Packs whole images bucket by bucket, notes where each went, and gives the digest of every new array by folder."""
        buckets: dict[str, list[dict[str, Any]]] = {}
        arrays = {}
        for record in records.values():
            columns = record["columns"]
            if columns["layout"] == "window":
                arrays[str(Path(columns["array"]).parent)] = record["files"]
            else:
                buckets.setdefault(bucket_of(columns["dtype"], columns["channels"], columns["extent"]), []).append(record)
        for bucket, members in sorted(buckets.items()):
            folder = stack_folder(bucket, self._next_number(bucket))
            arrays[folder] = self._stack(folder, members)
        return arrays

    def _next_number(self, bucket: str) -> int:
        """Stacks are never rewritten: a later ingest takes the next number."""
        arrays = () if self.old is None else self.old.manifest["arrays"]
        return sum(1 for folder in arrays if folder.startswith(f"stacks/{bucket}/"))

    def _stack(self, folder: str, members: Sequence[dict[str, Any]]) -> str:
        columns = members[0]["columns"]
        digest = write_stack(
            self.partial.tree / folder,
            (self._image(member) for member in members),
            count=len(members),
            channels=columns["channels"],
            extent=columns["extent"],
            dtype=columns["dtype"],
            codec=self.plan.storage.codec,
        )
        name = array_name("whole", len(columns["extent"]))
        for item, member in enumerate(members):
            member["columns"] |= {"array": f"{folder}/{name}", "item": item}
        return digest

    def _image(self, member: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        stored, columns = member["stored"], member["columns"]
        try:
            pixels, bits = self.partial.load_image(stored)
            whole = content_hash(pixels, tuple(columns["channels"])) == columns["content_hash"]
        except (ValueError, EOFError):
            whole = False
        if not whole:
            self.partial.forget(stored)
            raise UserError("store", f"a staged image in {str(self.partial.root)!r} is damaged", remedy="run again: it is staged anew")
        return pixels, bits

    def _added(self, clear_id: str, task: Task, record: Mapping[str, Any]) -> Added:
        csv_row = self.metadata.rows.get(clear_id, {})
        quantity = {FIELD: task.ref.quantity} if task.ref.quantity else {}
        own = {**quantity, **json.loads(record["columns"]["fields"]), **self.names.places(task.ref)}
        fields = {**own, **{name: csv_row[name] for name in self.plan.fields if name in csv_row}}
        group = csv_row.get(self.plan.group, "") if self.plan.group else ""
        place = None if group else record["place"]
        unit = "" if place else self._unit(group or task.ref.unit, task)
        valid = np.asarray(record["valid_fraction"], np.float32)
        units = place["units"] if place else [unit] * valid.size
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
        return Added(row=columns, units=units, touched=place["touched"] if place else [[unit]] * valid.size, valid_fraction=valid)

    def _unit(self, clear: str | None, task: Task) -> str:
        """A source that belongs to nobody known is its own unit."""
        return self.names.stored(clear) if clear else task.source_id

    def _holdout(self, added: Mapping[str, Added]) -> Holdout:
        if self.old is not None:
            return kept(self.old.manifest)
        return decide(len({unit for source in added.values() for unit in source.units}), self.plan.audit_holdout)

    def _rows(self, added: Mapping[str, Added], rule: Holdout) -> dict[str, dict[str, Json]]:
        """All index rows by source id, in order; rows of an existing store pass unchanged."""
        rows = {} if self.old is None else {row["source_id"]: row for row in self.old.index.to_pylist()}
        for source_id, source in added.items():
            rows[source_id] = {**source.row, "holdout": bool(self._flags(source, rule).all())}
        return dict(sorted(rows.items()))

    def _flags(self, source: Added, rule: Holdout) -> np.ndarray:
        """Per chunk: touches a held-out unit or its buffer."""
        held = {unit: rule.holds(self.names.secret, unit) for unit in {unit for units in source.touched for unit in units}}
        return np.array([any(held[unit] for unit in units) for units in source.touched], bool)

    def _chunks(self, rows: Mapping[str, Mapping[str, Json]], added: Mapping[str, Added], rule: Holdout) -> Iterator[pa.Table]:
        old, numbered = _OldChunks(self.old), enumerate(rows)
        for whole, run in itertools.groupby(numbered, key=lambda one: one[1] in added and rows[one[1]]["item"] >= 0):
            if whole:
                yield _whole_chunks(list(run), rows, added)
                continue
            for number, source_id in run:
                source = added.get(source_id)
                if source is None:
                    yield old.moved(source_id, number)
                else:
                    flags, acquired = self._flags(source, rule), rows[source_id]["acquired"]
                    yield chunk_table(number, source.valid_fraction, unit=source.units, holdout=flags, acquired=acquired)

    def _manifest(self, rows: Mapping[str, Mapping[str, Json]], added: Mapping[str, Added], rule: Holdout, arrays: Mapping[str, str],
                  skipped: Sequence[Mapping[str, str]], warnings: Sequence[Mapping[str, str]]) -> dict[str, Json]:  # fmt: skip
        units = {unit for source in added.values() for unit in source.units}
        units |= set() if self.old is None else set(self.old.chunks["unit"].unique().to_pylist())
        held = rule.held(self.names.secret, units)
        left_out = sum(row.get("kind") == LEFT_OUT for row in skipped)
        counts = {
            "sources": len(rows),
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
                "quantities": quantities_of(row["fields"] for row in rows.values()),
                "warnings": list(warnings),
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


def _whole_chunks(run: Sequence[tuple[int, str]], rows: Mapping[str, Mapping[str, Json]], added: Mapping[str, Added]) -> pa.Table:
    """A whole image has one chunk, whose flag is that of its row."""
    names = [source_id for _, source_id in run]
    return whole_table(
        run[0][0],
        [rows[name]["item"] for name in names],
        units=[added[name].units[0] for name in names],
        holdout=[rows[name]["holdout"] for name in names],
        valid_fraction=[float(added[name].valid_fraction[0]) for name in names],
        acquired=[rows[name]["acquired"] for name in names],
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
