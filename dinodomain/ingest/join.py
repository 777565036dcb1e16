"""Joining a CSV to sources: which rows speak of which source, or a clear error.

A value may name a source by relative path, file name, stem or nearest folder; or, where the column is called like a field
that the domain offers (``PatientID``), by that field. One kind is chosen for the whole CSV: the one that matches most rows.
Path, name and stem name one source each; a folder or a field may stand for many. In a personal domain the sources' keys are
pseudonyms, and values are hashed with the same secret before they are compared.
"""

from __future__ import annotations

import csv
import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dinodomain.errors import UserError
from dinodomain.ingest.secret import find_secret
from dinodomain.lineage import pseudonym
from dinodomain.store.read import open_store
from dinodomain.types import Labels

if TYPE_CHECKING:
    from dinodomain.store.read import Store

KINDS = ("path", "name", "stem", "folder")
_ONE_SOURCE = ("path", "name", "stem")
_SHOWN = 10
_log = logging.getLogger(__name__)

Hash = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A CSV as read.

    Attributes:
        path: Where it lies.
        header: Column names.
        rows: Values by column, one mapping per row.
        lines: Line of the file that each row ends on, from 1.
    """

    path: str
    header: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    lines: tuple[int, ...]

    def require(self, column: str, place: str) -> None:
        """Raises a UserError unless there is such a column."""
        if column not in self.header:
            near = difflib.get_close_matches(column, self.header, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"set {place}=COLUMN"
            raise UserError(place, f"{self.path} has no column {column!r}", allowed=", ".join(self.header), remedy=hint)


def read_table(path: str | Path, place: str = "metadata") -> Table:
    """Reads a CSV (or TSV) with a header.

    Raises:
        UserError: It cannot be read, has no header or a column twice, or a row with more values than the header.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(place, f"cannot read {str(path)!r}: {error.strerror}", allowed="a CSV file with a header") from None
    except UnicodeDecodeError as error:
        raise UserError(place, f"{str(path)!r} is not UTF-8 (byte {error.start})", remedy="save it as UTF-8") from None
    delimiter = "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        return _table(str(path), [(reader.line_num, row) for row in reader if row], place)
    except csv.Error as error:
        raise UserError(place, f"{path}: line {reader.line_num}: {error}", remedy="check quotes and separators") from None


def _table(path: str, lines: list[tuple[int, list[str]]], place: str) -> Table:
    if not lines:
        raise UserError(place, f"{path} is empty", allowed="a CSV file with a header")
    header = tuple(name.strip() for name in lines[0][1])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(place, f"{path} has columns twice: {', '.join(twice)}", remedy="rename one of each")
    broken = [str(number) for number, row in lines[1:] if len(row) != len(header)]
    if broken:
        raise UserError(
            place,
            f"{path}: {_few('line', broken)} with another number of values than the header ({len(header)})",
            remedy="check separators",
        )
    rows = tuple(dict(zip(header, (value.strip() for value in row))) for _, row in lines[1:])
    return Table(path=path, header=header, rows=rows, lines=tuple(number for number, _ in lines[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which row speaks of which source.

    Attributes:
        kind: What the column was matched against: ``path``, ``name``, ``stem``, ``folder`` or a field.
        rows: Source number to row number of the table.
        skipped: Rows that speak only of sources that could not be read.
    """

    kind: str
    rows: Mapping[int, int]
    skipped: tuple[int, ...]


def match(table: Table, column: str, sources: Sequence[Mapping[str, str]], skipped: Sequence[Mapping[str, str]] = (), *,
          hash_: Hash = str, place: str = "join") -> Match:  # fmt: skip
    """Joins a table to sources.

    Args:
        table: The CSV.
        column: Column that names the source.
        sources: Per source, key values by kind (``path``, ``name``, ``stem``, ``folder``, fields); hashed if ``hash_`` hashes.
        skipped: The same for sources that could not be read: a row that speaks of one is no error.
        hash_: Applied to a value before it is compared.
        place: Key that error messages name.

    Raises:
        UserError: The column is missing, or rows match nothing, several sources, or a source that another row matches; lists them.
    """
    table.require(column, place)
    fields = {kind for keys in (*sources, *skipped) for kind in keys} - set(KINDS)
    kinds = (column,) if column in fields else KINDS
    found = {kind: _Lookup(kind, sources, skipped, hash_) for kind in kinds}
    hits = {kind: [lookup.find(row[column]) for row in table.rows] for kind, lookup in found.items()}
    best = max(kinds, key=lambda kind: sum(bool(hit) for hit in hits[kind]))  # the first of equals
    _refuse_missing(table, column, hits[best], kinds, place)
    return _one_to_one(table, column, best, hits[best], len(sources), place)


class _Lookup:
    """Numbers of the sources with a value, for one kind of key; skipped sources count on past the readable ones."""

    def __init__(self, kind: str, sources: Sequence[Mapping[str, str]], skipped: Sequence[Mapping[str, str]], hash_: Hash) -> None:
        self._kind, self._hash = kind, hash_
        self._by_value: dict[str, list[int]] = {}
        for number, keys in enumerate((*sources, *skipped)):
            if keys.get(kind):
                self._by_value.setdefault(keys[kind], []).append(number)

    def find(self, value: str) -> list[int]:
        return next((found for form in self._forms(value) if (found := self._by_value.get(self._hash(form)))), [])

    def _forms(self, value: str) -> Iterable[str]:
        """A CSV's path may start above or below the source folder: leading folders are dropped one by one; a name is the last part."""
        if not value:
            return ()
        parts = PurePosixPath(value.replace("\\", "/")).parts if self._kind in ("path", "name") else ()
        if self._kind == "path":
            return ("/".join(parts[start:]) for start in range(len(parts)))
        return (parts[-1],) if parts else (value,)


def _refuse_missing(table: Table, column: str, hits: Sequence[list[int]], kinds: Sequence[str], place: str) -> None:
    missing = [number for number, hit in enumerate(hits) if not hit]
    if missing:
        shown = [f"{table.rows[number][column]!r} (line {table.lines[number]})" for number in missing]
        problem = f"{table.path}: {len(missing)} of {len(table.rows)} rows match no source by column {column!r}: {_few('', shown)}"
        raise UserError(place, problem, allowed=f"the {', '.join(kinds)} of a source", remedy="choose another column, or remove these rows")


def _one_to_one(table: Table, column: str, kind: str, hits: Sequence[list[int]], num_sources: int, place: str) -> Match:
    rows: dict[int, int] = {}
    wrong, skipped = [], []
    for number, hit in enumerate(hits):
        where = f"{table.rows[number][column]!r} (line {table.lines[number]}"
        if kind in _ONE_SOURCE and len(hit) > 1:
            wrong.append(f"{where}: {len(hit)} sources)")
        taken = next((rows[source] for source in hit if source in rows), None)
        if taken is not None:
            wrong.append(f"{where}: same source as line {table.lines[taken]})")
        rows |= dict.fromkeys(hit, number)
        if all(source >= num_sources for source in hit):
            skipped.append(number)
    if wrong:
        problem = f"{table.path}: column {column!r} is ambiguous by {kind}: {_few('', wrong)}"
        raise UserError(place, problem, remedy="choose a column that names each source once, for example a relative path")
    return Match(kind=kind, rows={source: row for source, row in rows.items() if source < num_sources}, skipped=tuple(skipped))


def _few(noun: str, items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{noun} {', '.join(items[:_SHOWN])}{more}".strip()


def keys_of(store: Store) -> list[dict[str, str]]:
    """Key values of every row of a store's index, by kind."""
    names = [name for name in store.index.column_names if name.startswith("key_")]
    columns = {name.removeprefix("key_"): store.index.column(name).to_pylist() for name in names}
    return [{kind: values[row] for kind, values in columns.items() if values[row]} for row in range(store.index.num_rows)]


def _skipped_keys(store: Store) -> list[dict[str, str]]:
    return [
        {name.removeprefix("key_"): value for name, value in row.items() if name.startswith("key_")} for row in store.manifest["skipped"]
    ]


def join_labels(store: str | Path | Store, csv_path: str | Path, join: str, target: str | None, *, secret: str | None = None) -> Labels:
    """Joins the labels of a CSV to the rows of a store.

    Args:
        store: The store, or its folder.
        csv_path: CSV with a header.
        join: Column that names the source.
        target: Column of the labels; None where only the other columns are wanted, the values are empty then.
        secret: File with the store's secret; None looks at ``STORE.private/secret``. Used in personal domains only.

    Returns:
        Rows of the index (sorted) with a label, their values as read, and all columns of the CSV. Rows without a value are left out.

    Raises:
        UserError: A column is missing, or a row matches nothing or several sources; the message lists the rows.
    """
    opened = open_store(store) if isinstance(store, (str, Path)) else store
    table = read_table(csv_path, "labels")
    if target is not None:
        table.require(target, "target")
    found = match(table, join, keys_of(opened), _skipped_keys(opened), hash_=_hash(opened, secret))
    if found.skipped:
        _log.info("%s: %d rows speak of sources that could not be read at ingest", table.path, len(found.skipped))
    pairs = [(row, table.rows[number]) for row, number in sorted(found.rows.items())]
    kept = [(row, values) for row, values in pairs if target is None or values[target] != ""]
    _log.info("%s: joined by %s; %d of %d sources have a label", table.path, found.kind, len(kept), opened.index.num_rows)
    values = np.array(["" if target is None else values[target] for _, values in kept], dtype=np.str_)
    columns = {name: [values[name] for _, values in kept] for name in table.header}
    return Labels(rows=np.array([row for row, _ in kept], np.int64), values=values, columns=columns)


def _hash(store: Store, given: str | None) -> Hash:
    if not store.manifest["personal"]:
        return str
    secret = find_secret(Path(store.path), given, personal=True, known=store.manifest["secret_fingerprint"])
    assert secret is not None, "find_secret raises where a known secret is missing"
    return lambda value: pseudonym(secret, value)
