"""Which runs, checkpoints, features and exports drew a unit, by their lineage records. Reads no weights and claims nothing of forgetting.

A network keeps no list of what it saw; the records beside it do. What lies elsewhere, or lost its record, is not found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

from dinodomain.audit.trail.record import training_record
from dinodomain.checkpoint import origin
from dinodomain.errors import UserError
from dinodomain.ingest.join import store_hash
from dinodomain.store import Store, open_store

Json = Any
RECORD, STATE, WEIGHTS = "lineage.json", "state.json", ".safetensors"
_PARTS = frozenset({"student", "teacher", "optimizer", "objective", "tokens", "watch"})
"""Names of weights that are parts of something else."""

CLAIM = "Records tell what was drawn; they do not tell what a network remembers, and nothing here shows that one forgot."


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """Something that draws of the unit went into.

    Attributes:
        path: Below the folder that was searched.
        kind: ``run``, ``checkpoint``, ``features``, ``export`` ...
        draws: Samples of the unit that it was trained with.
        steps: Steps of that training.
        embedded: Whether it holds features of the unit's own images, too.
        digest: Of its record.
    """

    path: str
    kind: str
    draws: int
    steps: int
    embedded: bool
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTrace:
    """Where a unit went.

    Attributes:
        unit: Stored id.
        found: Artefacts that drew it, or hold features of it.
        read: How many records were read.
        unread: Files whose records could not be read.
        state: ``withdrawn``, ``present`` or ``absent`` in the named store; empty where none was named.
    """

    unit: str
    found: tuple[Artefact, ...]
    read: int
    unread: tuple[str, ...] = ()
    state: str = ""

    def text(self) -> str:
        """A line per artefact."""
        title = f"unit {self.unit}: {len(self.found)} of {self.read} artefacts drew it or hold features of it"
        lines = [f"  {one.kind:<11} {one.draws:>7} draws in {one.steps} steps{_own(one)}  {one.path}" for one in self.found]
        state = [f"in the store: {self.state}"] if self.state else []
        if self.state == "absent" and not self.found:
            state.append("neither the store nor any of these records knows this unit: is its name spelt as in the data that were ingested?")
        missing = [f"no readable record: {path}" for path in self.unread]
        return "\n".join([title, *lines, *state, *missing, CLAIM])

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        return {**asdict(self), "claim": CLAIM}


def _own(one: Artefact) -> str:
    return ", features of its images" if one.embedded else ""


def trace_unit(unit: str, folders: Sequence[str], *, store: str | None = None, secret: str | None = None) -> UnitTrace:
    """Lists every artefact below some folders that drew a unit.

    Args:
        unit: Stored id; or the clear name, where ``store`` (and, in a personal domain, its secret) tells how ids are made.
        folders: Where to look, at any depth.
        store: The store the unit is, or was, in.
        secret: File with the store's secret; None looks beside the store.

    Raises:
        UserError: A folder is not there, the store or its secret cannot be used, or no record knows the unit and no store was named to
            tell how clear names are stored.
    """
    names, state = {unit}, ""
    if store is not None:
        opened = open_store(store)
        names |= {store_hash(opened, secret)(unit)}
        state = _state(opened, names)
    found, read, unread = [], 0, []
    for folder in folders:
        for path, record in _records(Path(folder)):
            if record is None:
                unread.append(str(path))
                continue
            read += 1
            found += _drawn_by(path, record, names)
    if store is None and not found:
        raise UserError(
            "audit.unit", f"none of {read} records knows {unit!r}, and whether it is a clear name cannot be told without the store",
            remedy="add store=STORE, which tells how names are stored",
        )  # fmt: skip
    stored = next((name for name in sorted(names) if name != unit), unit)
    return UnitTrace(unit=stored, found=tuple(found), read=read, unread=tuple(unread), state=state)


def _state(store: Store, names: set[str]) -> str:
    if names & set(store.manifest.get("withdrawn_units", ())):
        return "withdrawn"
    return "present" if names & set(store.chunks["unit"].unique().to_pylist()) else "absent"


def _drawn_by(path: Path, record: Mapping[str, Json], names: set[str]) -> list[Artefact]:
    counts = training_record(record).get("counts", {})
    draws = sum(counts.get("units_drawn", {}).get(name, 0) for name in names)
    embedded = record.get("kind") == "features" and _holds(path, names)
    if not draws and not embedded:
        return []
    kind, digest = str(record.get("kind", "unknown")), str(record.get("digest", ""))
    return [Artefact(path=str(path), kind=kind, draws=draws, steps=int(counts.get("steps", 0)), embedded=embedded, digest=digest)]


def _holds(folder: Path, names: set[str]) -> bool:
    """Whether a table of features has a row of the unit."""
    from pyarrow import parquet

    file = folder / "features.parquet"
    return file.is_file() and not names.isdisjoint(parquet.read_table(file, columns=["unit"])["unit"].unique().to_pylist())


def _records(folder: Path) -> Iterator[tuple[Path, Mapping[str, Json] | None]]:
    """Every artefact below a folder with its record; None where it has none that can be read."""
    if not folder.is_dir():
        raise UserError("audit.runs", f"{folder} is no folder", allowed="folders of runs, features and exports")
    for root, folders, files in sorted(os.walk(folder)):
        folders.sort()
        place = Path(root)
        if "manifest.json" in files and "index.parquet" in files:  # a store: what is in it is not what drew it
            folders.clear()
            continue
        if RECORD in files:
            yield place, _json(place / RECORD)
        elif STATE in files:
            yield place, _of(place)
        for name in sorted(files):
            alone = RECORD not in files and STATE not in files
            if name.endswith(WEIGHTS) and Path(name).stem not in _PARTS and alone:
                yield place / name, _of(place / name)


def _json(path: Path) -> Mapping[str, Json] | None:
    try:
        body = loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, JSONDecodeError):
        return None
    record = body.get("record", body) if isinstance(body, dict) else None
    return record if isinstance(record, dict) and "kind" in record else None


def _of(path: Path) -> Mapping[str, Json] | None:
    try:
        return origin(path) or None
    except (UserError, OSError, KeyError):
        return None
