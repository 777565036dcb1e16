"""``ingest store=STORE withdraw=IDS.csv``: takes sources out of a store for good, whole units at a time.

The order, which a kill at any moment leaves sound:

1. ``STORE/withdrawal/``, moved into place in one rename, holds the tables and the manifest without those rows, and ``journal.json`` with
   what is left to do. From then on no reader can draw them: ``open_store`` takes the tables from there.
2. The same tables take the place of the old ones; staged work in ``STORE.partial`` is thrown away.
3. Folders of scenes and volumes are deleted; items of stacks are overwritten (``store/rewrite.py``): item numbers, and the pixels of all
   others, stay as they are. Rows of tables in ``STORE.private`` that name them go.
4. The manifest gets the new digests, and ``STORE/withdrawal`` goes.

Whatever is left is done by the next withdrawal or ingest. Holdout flags of other units never change. The manifest keeps ``withdrawn``
(date and counts), ``withdrawn_units`` (stored ids of units that are gone, so that an audit can tell which of them a model has seen) and, as
keyed hashes, ``withdrawn_sources`` (they stay out of this store) and ``withdrawn_rows`` (so that a list may grow). Not touched: copies,
backups, checkpoints and features made before; a training that runs must be restarted, because it may hold old shards open.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinodomain import __version__
from dinodomain.errors import LeftOut, UserError
from dinodomain.ingest.holdout import kept
from dinodomain.ingest.join import ISSUER, Table, keys_of, match, read_table, skipped_keys, store_hash, units_of, withdrawn_row
from dinodomain.ingest.partial import Partial, disk_errors
from dinodomain.ingest.patients import unit_of
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.private import read_private_table, write_private_table
from dinodomain.ingest.quantities import quantities_of
from dinodomain.ingest.secret import find_secret, private_folder
from dinodomain.ingest.sources import LEFT_OUT, Found, Metadata, Names, Skipped, refused
from dinodomain.ingest.summary import counts_by_reason
from dinodomain.lineage import Json, Lineage, digest, digest_file, pseudonym, sync_folder, to_json, write_bytes, write_json
from dinodomain.store.format import CHUNKS, INDEX, LINEAGE, MANIFEST, PENDING
from dinodomain.store.read import Store, open_store
from dinodomain.store.rewrite import clear_items
from dinodomain.store.tables import write_chunks, write_index
from dinodomain.types import SourceRef

JOURNAL = "journal.json"
_CHOICE = "ingest: unit was withdrawn from this store"
_REMEDY = "it stays out of this store; only a new store can take it"
_TABLES = (INDEX, CHUNKS, LINEAGE, MANIFEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What was taken out of a store.

    Attributes:
        store: Folder of the store.
        sources: Sources taken out now.
        units: Units that are gone now.
        rows: Rows of the list that name them.
        known: Rows that name what was taken out before.
        skipped: Entries of sources that had never been read, and that were taken off the lists.
        joined_by: What the list was matched against, or "".
        date: ISO date that the manifest keeps.
        finished: An earlier withdrawal had been interrupted, and was finished first.
        counts: Sources, units and held-out units that remain.
    """

    store: str
    sources: int = 0
    units: int = 0
    rows: int = 0
    known: int = 0
    skipped: int = 0
    joined_by: str = ""
    date: str = ""
    finished: bool = False
    counts: Mapping[str, Json] = field(default_factory=dict)

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        return body

    def text(self) -> str:
        """A few lines for a person."""
        lines = ["an interrupted withdrawal was finished first"] if self.finished else []
        lines.append(f"{self.sources} sources of {self.units} units withdrawn for {self.rows} rows of the list")
        if self.known:
            lines.append(f"{self.known} rows name what was withdrawn before")
        if self.skipped:
            lines.append(
                f"{self.skipped} entries of sources that had never been read were taken off the lists; leave them out with ingest.exclude"
            )
        lines.append(f"{self.counts['sources']} sources of {self.counts['units']} units remain")
        if self.sources:
            lines.append("restart trainings that use this store; checkpoints, features, copies and backups made before are as they were")
        lines.append(f"store: {self.store}")
        return "\n".join(lines)


def withdraw(plan: IngestPlan, *, today: datetime.date | None = None) -> Withdrawal:
    """Takes the sources that a CSV names out of a store, with all others of their units.

    Args:
        plan: ``store``, ``withdraw``, ``join`` and, where the store does not use its own, ``secret``.
        today: The date that the manifest keeps; today's unless given.

    Returns:
        What was taken out. Staged work of an unfinished ingest is thrown away: it may hold more of the same.

    Raises:
        UserError: There is no such store, a row matches nothing, nothing would be left, or the disk refuses. What was begun is finished by
            the next withdrawal or ingest.
    """
    assert plan.withdraw is not None, "the plan names a list"
    store, date = Path(os.path.abspath(plan.store)), today or datetime.date.today()
    table = read_table(plan.withdraw, "withdraw")
    table.require(plan.join, "ingest.join")
    open_store(store)  # refuses what is none before anything is made beside it
    partial = Partial(store)
    with disk_errors(store), partial.open_after_commit(), _unused_removed(partial):
        finished = finish_withdrawal(partial)
        opened = open_store(store)
        memory = Memory.of(opened, _secret(opened, plan))
        new = _new_rows(table, plan.join, memory)
        if not new.rows:
            partial.remove_if_unused()
            found = Withdrawal(store=str(store), known=len(table.rows), date=date.isoformat(), finished=finished)
            return replace(found, counts=opened.manifest["counts"])
        chosen = _choose(opened, new, plan)
        _begin(opened, chosen, memory, [row[plan.join] for row in new.rows], date.isoformat())
        finish_withdrawal(partial)
        partial.remove()
    return Withdrawal(
        store=str(store),
        sources=len(chosen.rows),
        units=len(chosen.units),
        rows=len(new.rows),
        known=len(table.rows) - len(new.rows),
        skipped=len(chosen.skipped),
        joined_by=chosen.kind,
        date=date.isoformat(),
        finished=finished,
        counts=open_store(store).manifest["counts"],
    )


@contextlib.contextmanager
def _unused_removed(partial: Partial) -> Iterator[None]:
    """Leaves no empty folder behind an error."""
    try:
        yield
    except UserError:
        partial.remove_if_unused()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a store remembers of what was withdrawn from it.

    Attributes:
        secret: The store's secret.
        units: Stored ids of units that are gone.
        sources: Keyed hashes of stored ids of sources.
        rows: Keyed hashes of the values that lists named them by.
    """

    secret: bytes = field(repr=False)
    units: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    @classmethod
    def of(cls, store: Store | None, secret: bytes) -> Memory:
        """The memory of a store; an empty one where there is none yet."""
        manifest = {} if store is None else store.manifest
        names = ("withdrawn_units", "withdrawn_sources", "withdrawn_rows")
        units, sources, rows = (frozenset(manifest.get(name, ())) for name in names)
        return cls(secret=secret, units=units, sources=sources, rows=rows)

    def holds(self, source_id: str, units: Collection[str]) -> bool:
        """Whether a source, by its stored id and the stored ids of whatever may be its unit, was withdrawn."""
        return bool(self.units.intersection((source_id, *units))) or self.of_source(source_id) in self.sources

    def of_source(self, source_id: str) -> str:
        """How a source is remembered."""
        return pseudonym(self.secret, f"withdrawn source\0{source_id}")

    def of_row(self, value: str) -> str:
        """How a row of a list is remembered."""
        return pseudonym(self.secret, withdrawn_row(value))


def leave_out_withdrawn(plan: IngestPlan, found: Found, metadata: Metadata, names: Names, old: Store | None) -> tuple[Found, list[Skipped]]:
    """What was withdrawn from a store stays out of it, whatever its files are called by now.

    Args:
        plan: The plan of an ingest.
        found: What discovery found.
        metadata: What the CSV says.
        names: How clear names become stored ones.
        old: The store that is added to, or None.

    Returns:
        What was never withdrawn; and what was, for the user's eyes only: a manifest that listed it would name it again.
    """
    memory = Memory.of(old, names.secret)
    if not (memory.units or memory.sources):
        return found, []
    refs: list[SourceRef] = []
    skipped: list[Skipped] = []
    gone: list[Skipped] = []
    for ref in found.refs:
        clear = (ref.unit, metadata.rows.get(ref.source_id, {}).get(plan.group or ""))
        if memory.holds(names.stored(ref.source_id), [names.stored(unit) for unit in clear if unit]):
            gone.append(refused(plan.source, LeftOut(ref.uris[0], _CHOICE, _REMEDY), ref.keys))
        else:
            refs.append(ref)
    for item in found.skipped:
        unit = unit_of(item.keys.get(ISSUER, ""), item.keys.get("PatientID", ""))
        (gone if unit and names.stored(unit) in memory.units else skipped).append(item)
    return replace(found, refs=tuple(refs), skipped=tuple(skipped)), gone


def memory_of(store: Store | None) -> dict[str, Json]:
    """What a manifest says of withdrawals, for the next manifest of the same store."""
    names = ("withdrawn", "withdrawn_units", "withdrawn_sources", "withdrawn_rows")
    return {} if store is None else {name: store.manifest[name] for name in names if name in store.manifest}


def _secret(store: Store, plan: IngestPlan) -> bytes:
    manifest = store.manifest
    secret = find_secret(Path(store.path), plan.secret, personal=manifest["personal"], known=manifest["secret_fingerprint"])
    assert secret is not None, "find_secret raises where a known secret is missing"
    return secret


def _new_rows(table: Table, column: str, memory: Memory) -> Table:
    """The rows that no earlier withdrawal has seen, so that one list may grow over the years."""
    fresh = [number for number, row in enumerate(table.rows) if memory.of_row(row[column]) not in memory.rows]
    return replace(table, rows=tuple(table.rows[number] for number in fresh), lines=tuple(table.lines[number] for number in fresh))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """What goes.

    Attributes:
        rows: Rows of the index, sorted.
        units: Stored ids of units that no remaining source has.
        skipped: ``uri`` of rows of the manifest's list of skipped sources.
        kind: What the list was matched against.
    """

    rows: tuple[int, ...]
    units: frozenset[str]
    skipped: frozenset[str]
    kind: str


def _choose(store: Store, table: Table, plan: IngestPlan) -> _Chosen:
    """The sources that the list names, and all others of their units.

    Raises:
        UserError: A row matches nothing or is ambiguous, or nothing would be left.
    """
    keys, listed, units = keys_of(store), store.manifest["skipped"], units_of(store)
    everyone = [*keys, *skipped_keys(store)]
    found = match(table, plan.join, everyone, units=units, hash_=store_hash(store, plan.secret), place="ingest.join")
    named = {number for number in found.rows if number < len(keys)}
    whole = {units[number] for number in named} - {None}
    rows = tuple(number for number, unit in enumerate(units) if number in named or unit in whole)
    if len(rows) == len(keys):
        remedy = f"delete the store instead: {store.path}, with its .private and .partial folders"
        raise UserError("withdraw", f"{table.path} names every source of {str(store.path)!r}; nothing would be left", remedy=remedy)
    people = {_person(keys[number]) for number in rows} - {None}
    skipped = {
        str(row["uri"]) for number, row in enumerate(listed, len(keys)) if number in found.rows or _person(everyone[number]) in people
    }
    return _Chosen(rows=rows, units=_vanishing(store, rows), skipped=frozenset(skipped), kind=found.kind)


def _person(keys: Mapping[str, str]) -> tuple[str, str] | None:
    return (keys["PatientID"], keys.get(ISSUER, "")) if keys.get("PatientID") else None


def _vanishing(store: Store, rows: Sequence[int]) -> frozenset[str]:
    """Units that only these rows have; a ground cell that another scene covers stays."""
    goes = np.isin(store.chunks["row"].to_numpy(), np.array(rows, np.int32))
    of = [set(store.chunks["unit"].filter(pa.array(mask)).unique().to_pylist()) for mask in (goes, ~goes)]
    return frozenset(of[0] - of[1])


def _begin(store: Store, chosen: _Chosen, memory: Memory, values: Sequence[str], date: str) -> None:
    """Step 1: once the folder is in its place, the withdrawal holds."""
    root = Path(store.path)
    work = root / f".{PENDING}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    goes = np.zeros(len(store), bool)
    goes[list(chosen.rows)] = True
    gone = store.index.filter(pa.array(goes)).to_pylist()
    write_index(work / INDEX, store.index.filter(pa.array(~goes)).to_pylist())
    write_chunks(work / CHUNKS, [_chunks_without(store.chunks, goes)])
    folders = sorted(str(Path(row["array"]).parent) for row in gone if row["item"] < 0)
    items: dict[str, list[int]] = {}
    for row in gone:
        if row["item"] >= 0:
            items.setdefault(str(Path(row["array"]).parent), []).append(int(row["item"]))
    _write_manifest(store, work, chosen, gone, folders, _remembered(store, chosen, memory, gone, values, date))
    names = sorted({row["source_id"] for row in gone} | chosen.units | chosen.skipped)
    write_json(work / JOURNAL, {"folders": folders, "items": items, "names": names})
    sync_folder(work)
    work.rename(root / PENDING)
    sync_folder(root)


def _chunks_without(chunks: pa.Table, goes: np.ndarray) -> pa.Table:
    """The chunk table without these rows of the index, and with the new numbers of those that stay."""
    rows = chunks["row"].to_numpy()
    stay = chunks.filter(pa.array(~goes[rows]))
    numbers = (np.cumsum(~goes) - 1).astype(np.int32)[rows[~goes[rows]]]
    return stay.set_column(0, stay.schema.field(0), pa.array(numbers))


def _remembered(
    store: Store, chosen: _Chosen, memory: Memory, gone: Sequence[Mapping[str, Any]], values: Sequence[str], date: str
) -> dict[str, Json]:
    """What the manifest says of withdrawals, this one included."""
    event = [{"date": date, "sources": len(gone), "units": len(chosen.units)}] if gone else []
    return {
        "withdrawn": [*store.manifest.get("withdrawn", ()), *event],
        "withdrawn_units": sorted(memory.units | chosen.units),
        "withdrawn_sources": sorted(memory.sources | {memory.of_source(row["source_id"]) for row in gone}),
        "withdrawn_rows": sorted(memory.rows | {memory.of_row(value) for value in values}),
    }


def _write_manifest(store: Store, work: Path, chosen: _Chosen, gone: Sequence[Mapping[str, Any]], folders: Collection[str],
                    remembered: Mapping[str, Json]) -> None:  # fmt: skip
    """Lineage and manifest of what stays; digests of stacks follow once they are rewritten."""
    manifest = dict(store.manifest)
    names = {row["source_id"] for row in gone} | chosen.skipped
    manifest["skipped"] = [row for row in manifest["skipped"] if row["uri"] not in chosen.skipped]
    manifest["arrays"] = {folder: found for folder, found in manifest["arrays"].items() if folder not in folders}
    manifest["warnings"] = [row for row in manifest.get("warnings", ()) if row["uri"] not in names]
    stays = set(store.index["source_id"].to_pylist()) - names
    fields = zip(store.index["source_id"].to_pylist(), store.index["fields"].to_pylist())
    manifest["quantities"] = quantities_of(field for source_id, field in fields if source_id in stays)
    left_out = sum(row.get("kind") == LEFT_OUT for row in manifest["skipped"])
    units = set(store.chunks["unit"].unique().to_pylist()) - chosen.units
    held = sorted(set(manifest["holdout"]["units"]) - chosen.units)
    manifest["holdout"] = {**manifest["holdout"], **kept(manifest).as_json(units, held)}
    manifest["counts"] = {
        **manifest["counts"],
        "sources": len(store) - len(gone),
        "units": len(units),
        "held_out_units": len(held),
        "skipped": len(manifest["skipped"]),
        "refused": len(manifest["skipped"]) - left_out,
        "left_out": left_out,
        "skipped_by_reason": counts_by_reason(row["reason"] for row in manifest["skipped"]),
        "warnings": len(manifest["warnings"]),
    }
    versions = {"dinodomain": __version__, **{name: version(name) for name in ("numcodecs", "numpy", "zarr")}}
    made = Lineage(kind="store", parents={"store": store.digest}, plan=store.lineage["plan"], counts=manifest["counts"], versions=versions,
                   history=(store.lineage,))  # fmt: skip
    write_json(work / LINEAGE, made.as_json())
    digests = {name: digest_file(work / name) for name in (INDEX, CHUNKS, LINEAGE)}
    write_json(work / MANIFEST, {**manifest, **remembered, "digests": digests, "digest": digest([digests[INDEX], digests[CHUNKS]])})


def is_pending(store: Path) -> bool:
    """Whether a withdrawal has begun and is not finished."""
    return (store / PENDING / MANIFEST).is_file()


def finish_withdrawal(partial: Partial) -> bool:
    """Steps 2 to 4, as far as they are not done; called with the store's lock held.

    Returns:
        Whether there was something to finish.
    """
    store = partial.store
    for left in {*store.glob(f".{PENDING}.*"), *store.glob(".*.tmp")}:  # of a run that was killed
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    if not is_pending(store):
        return False
    pending = store / PENDING
    journal = json.loads((pending / JOURNAL).read_bytes())
    partial.forget_all()
    for name in _TABLES:
        write_bytes(store / name, (pending / name).read_bytes())
    for folder in journal["folders"]:
        if (store / folder).exists():
            shutil.rmtree(store / folder)
            sync_folder((store / folder).parent)
    rewritten = {folder: clear_items(store / folder, items) for folder, items in journal["items"].items()}
    _clean_private(private_folder(store), set(journal["names"]))
    manifest = json.loads((pending / MANIFEST).read_bytes())
    write_json(store / MANIFEST, {**manifest, "arrays": {**manifest["arrays"], **rewritten}})
    done = store / f".{PENDING}.done"
    pending.rename(done)
    sync_folder(store)
    shutil.rmtree(done)
    return True


def _clean_private(folder: Path, names: set[str]) -> None:
    """Takes rows that name a withdrawn source or unit out of the tables beside the store."""
    for left in folder.glob(".*.tmp"):
        left.unlink()
    for path in sorted(folder.glob("*.csv")):
        rows = read_private_table(path)
        kept_rows = [row for row in rows if not names & set(row.values())]
        if kept_rows != rows:
            write_private_table(path, list(rows[0]), kept_rows)
