"""The way back from stored ids to clear ones, for those who may know them: ``STORE.private/crosswalk.csv``.

Made by ``ingest.crosswalk=true``; once there, every later ingest keeps it up to date. One row per source of the store. A table of results
(predictions, features) that names sources or units by their stored ids gets the clear columns beside them; where a unit stands for
several ids of one patient they are joined by ``;``. The file never enters a store, and the tables made with it must not lie in one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dinodomain.errors import UserError
from dinodomain.ingest.join import few, read_table
from dinodomain.ingest.private import read_private_table, write_private, write_private_table
from dinodomain.ingest.secret import private_folder
from dinodomain.lineage import Json
from dinodomain.store.read import Store, open_store
from dinodomain.types import SourceRef

KEYS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber")
COLUMNS = ("source_id", "unit", "path", *KEYS)
_OF_UNIT = ("PatientID", "IssuerOfPatientID")
_PLACE = "crosswalk"
_REMEDY = "run the same ingest again with ingest.crosswalk=true: it reads headers only and adds nothing"


def crosswalk_file(store: Path) -> Path:
    """Where the crosswalk of a store lies."""
    return private_folder(store) / "crosswalk.csv"


def update_crosswalk(store: Store, clear: Iterable[tuple[str, SourceRef]]) -> None:
    """Adds sources to the crosswalk, and drops those that the store no longer holds.

    Args:
        store: The finished store.
        clear: Stored id and clear reference of every source that was found; those that are not in the store are passed over.
    """
    path = crosswalk_file(Path(store.path))
    units = dict(zip(store.index["source_id"].to_pylist(), store.index["unit"].to_pylist()))
    before = read_private_table(path)
    rows = {row["source_id"]: row for row in before}
    for stored, ref in clear:
        rows[stored] = {"source_id": stored, "path": ref.keys.get("path", ref.source_id), **{key: ref.keys.get(key, "") for key in KEYS}}
    kept = [{**rows[stored], "unit": units[stored]} for stored in sorted(rows) if stored in units]
    if kept != before or not path.exists():
        write_private_table(path, COLUMNS, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """A table of results with clear names.

    Attributes:
        table: The file written, mode 600.
        rows: Its rows.
        by: Column that it was mapped by, ``source_id`` or ``unit``.
    """

    table: str
    rows: int
    by: str

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        return {"table": self.table, "rows": self.rows, "by": self.by}

    def text(self) -> str:
        """Two lines for a person."""
        return f"{self.rows} rows mapped back by {self.by}\n{self.table} (it names people: readable by you only)"


def map_back(store: str | Path | Store, table: str | Path, out: str | Path) -> Mapped:
    """Writes a table of results again with clear names beside the stored ids.

    Args:
        store: The store, or its folder.
        table: CSV or parquet with a column ``source_id`` or ``unit`` (the former is used where both are there).
        out: Folder of the result, ``NAME.clear.csv`` or ``NAME.clear.parquet``; not inside the store.

    Raises:
        UserError: There is no crosswalk, the table has no such column or already has a clear one, ids are unknown (rows are listed), or
            the result would lie in the store.
    """
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    root, source, folder = Path(opened.path), Path(table), Path(out)
    if folder.resolve().is_relative_to(root.resolve()):
        raise UserError("out", f"{str(folder)!r} lies in the store, which must not hold clear names", allowed="a folder elsewhere")
    known = read_private_table(crosswalk_file(root))
    if not known:
        raise UserError(_PLACE, f"there is no crosswalk at {str(crosswalk_file(root))!r}", remedy=_REMEDY)
    content, by = _read(source)
    lookup = _clear_columns(known, by)
    missing = [f"{value!r} (row {number})" for number, value in enumerate(content[by].to_pylist(), 1) if str(value) not in lookup]
    if missing:
        raise UserError(_PLACE, f"{source}: {len(missing)} values of {by} are not in the crosswalk: {few('', missing)}", remedy=_REMEDY)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{source.stem}.clear{source.suffix.lower()}"
    _write(target, _with_clear(content, by, lookup))
    return Mapped(table=str(target), rows=content.num_rows, by=by)


def _read(path: Path) -> tuple[pa.Table, str]:
    if path.suffix.lower() == ".parquet":
        try:
            content = pq.read_table(path, memory_map=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(_PLACE, f"cannot read {str(path)!r}: {error}", allowed="a CSV or parquet table of results") from None
    else:
        read = read_table(path, _PLACE)
        content = pa.table({name: pa.array([row[name] for row in read.rows], pa.string()) for name in read.header})
    by = next((name for name in ("source_id", "unit") if name in content.column_names), None)
    if by is None:
        problem = f"{path} has neither a column source_id nor unit"
        raise UserError(_PLACE, problem, allowed=", ".join(content.column_names), remedy="keep the stored ids in tables of results")
    twice = sorted({*_names(by)} & {*content.column_names})
    if twice:
        raise UserError(_PLACE, f"{path} already has columns {', '.join(twice)}", remedy="rename them")
    return content, by


def _names(by: str) -> Sequence[str]:
    return ("path", *KEYS) if by == "source_id" else _OF_UNIT


def _clear_columns(known: Sequence[Mapping[str, str]], by: str) -> dict[str, dict[str, str]]:
    """Clear values by stored id."""
    gathered: dict[str, dict[str, set[str]]] = {}
    for row in known:
        found = gathered.setdefault(row[by], {name: set() for name in _names(by)})
        for name, values in found.items():
            values |= {row.get(name, "")} - {""}
    return {stored: {name: ";".join(sorted(values)) for name, values in found.items()} for stored, found in gathered.items()}


def _with_clear(content: pa.Table, by: str, lookup: Mapping[str, Mapping[str, str]]) -> pa.Table:
    stored = [str(value) for value in content[by].to_pylist()]
    for name in _names(by):
        content = content.append_column(name, pa.array([lookup[value][name] for value in stored], pa.string()))
    return content


def _write(target: Path, content: pa.Table) -> None:
    if target.suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(content, buffer)
        write_private(target, buffer.getvalue())
    else:
        write_private_table(target, content.column_names, content.to_pylist())
