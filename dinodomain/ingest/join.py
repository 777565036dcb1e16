"""Joining a CSV to sources: which rows speak of which source, or a clear error.

A value may name a source by relative path, file name, stem or nearest folder; or, where the column is called like a field
that the domain offers (``PatientID``), by that field. One kind is chosen for the whole CSV: the one that matches most rows.
Path, name and stem name one source each; a folder or a field may stand for many, but a DICOM field only for those of one person: where
two issuers gave one id, a column ``IssuerOfPatientID`` says which is meant. In a personal domain the sources' keys are pseudonyms, and
values are hashed with the same secret before they are compared. Blanks and NULs around values are ignored; leading zeros count.
"""

from __future__ import annotations

import csv
import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dinodomain.errors import UserError
from dinodomain.ingest.secret import find_secret
from dinodomain.lineage import clean_id, pseudonym
from dinodomain.store.read import open_store
from dinodomain.types import Labels

if TYPE_CHECKING:
    from dinodomain.store.read import Store

KINDS = ("path", "name", "stem", "folder")
DICOM_FIELDS = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
"""What a hospital's spreadsheet may name a source by; SOPInstanceUID for sources of a single image only."""

ISSUER = "IssuerOfPatientID"
_ONE_SOURCE = ("path", "name", "stem")
FRAMES_OF = "FramesOf"
"""Key of sources that are frames of one file: a row that names the file speaks of all of them."""

_MOST_DIGITS = 20
_SHOWN = 10
_log = logging.getLogger(__name__)

INSTANCE = "key_instance"
"""Column of the index: the identity of a source's images, which is no kind that a CSV may be joined by."""

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
    """Reads a CSV (or TSV) with a header; semicolons separate where the header has some and no comma, as Excel writes in half of Europe.

    Raises:
        UserError: It cannot be read, has no header or a column twice, or a row with more values than the header.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(place, f"cannot read {str(path)!r}: {error.strerror}", allowed="a CSV file with a header") from None
    except UnicodeDecodeError as error:
        raise UserError(place, f"{str(path)!r} is not UTF-8 (byte {error.start})", remedy="save it as UTF-8") from None
    head = text.partition("\n")[0]
    delimiter = "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ";" if ";" in head and "," not in head else ","
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
            f"{path}: {few('line', broken)} with another number of values than the header ({len(header)})",
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
          units: Sequence[str | None] = (), hash_: Hash = str, gone: Collection[str] = (), place: str = "join") -> Match:  # fmt: skip
    """Joins a table to sources.

    Args:
        table: The CSV.
        column: Column that names the source.
        sources: Per source, key values by kind (``path``, ``name``, ``stem``, ``folder``, fields); hashed if ``hash_`` hashes.
        skipped: The same for sources that could not be read: a row that speaks of one is no error.
        units: Unit of each source, so that one id of two issuers is no error where both are known to be one person.
        hash_: Applied to a value before it is compared.
        gone: Values, as ``withdrawn_row`` hashes them, of rows whose sources were withdrawn: they match nothing, and are no error.
        place: Key that error messages name.

    Raises:
        UserError: The column is missing, or rows match nothing, several sources or people, or a source that another row matches; lists
            them.
    """
    table.require(column, place)
    fields = {kind for keys in (*sources, *skipped) for kind in keys} - set(KINDS)
    kinds = (column,) if column in fields else KINDS
    found = {kind: _Lookup(kind, sources, skipped, hash_) for kind in kinds}
    hits = {kind: [lookup.find(row[column]) for row in table.rows] for kind, lookup in found.items()}
    best = max(kinds, key=lambda kind: sum(bool(hit) for hit in hits[kind]))  # the first of equals
    _refuse_missing(
        table, column, [bool(hit) or _is_gone(row[column], gone, hash_) for hit, row in zip(hits[best], table.rows)], found, place
    )
    chosen = hits[best]
    if best in DICOM_FIELDS:
        people = _People((*sources, *skipped), units, hash_)
        chosen = people.of_issuer(table, hits[best], place)
        people.refuse_several(table, column, chosen, place)
    wholes = [keys.get(FRAMES_OF, "") for keys in (*sources, *skipped)]
    return _one_to_one(table, column, best, chosen, wholes, len(sources), place)


class _Lookup:
    """Numbers of the sources with a value, for one kind of key; skipped sources count on past the readable ones."""

    def __init__(self, kind: str, sources: Sequence[Mapping[str, str]], skipped: Sequence[Mapping[str, str]], hash_: Hash) -> None:
        self._kind, self._hash = kind, hash_
        self._by_value: dict[str, list[int]] = {}
        for number, keys in enumerate((*sources, *skipped)):
            if keys.get(kind):
                self._by_value.setdefault(clean_id(keys[kind]), []).append(number)

    def find(self, value: str) -> list[int]:
        return next((found for form in self._forms(clean_id(value)) if (found := self._by_value.get(self._hash(form)))), [])

    def meant(self, value: str) -> str | None:
        """What a spreadsheet program may have made this value of: a number that lost its leading zeros, or gained decimals."""
        digits = clean_id(value).removesuffix(".0")
        if not (digits.isascii() and digits.isdigit()):
            return None
        bare = digits.lstrip("0")
        return next((form for size in range(len(bare), _MOST_DIGITS + 1) if self._hash(form := bare.zfill(size)) in self._by_value), None)

    def _forms(self, value: str) -> Iterable[str]:
        """A CSV's path may start above or below the source folder: leading folders are dropped one by one; a name is the last part."""
        if not value:
            return ()
        parts = PurePosixPath(value.replace("\\", "/")).parts if self._kind in ("path", "name") else ()
        if self._kind == "path":
            return ("/".join(parts[start:]) for start in range(len(parts)))
        return (parts[-1],) if parts else (value,)


class _People:
    """Whose sources a row of a DICOM field speaks of."""

    def __init__(self, keys: Sequence[Mapping[str, str]], units: Sequence[str | None], hash_: Hash) -> None:
        self._keys, self._units, self._hash = keys, units, hash_

    def of_issuer(self, table: Table, hits: Sequence[list[int]], place: str) -> list[list[int]]:
        """The sources whose id was given by the issuer that the row states; all of them where it states none."""
        if ISSUER not in table.header:
            return list(hits)
        stated = [clean_id(row[ISSUER]) for row in table.rows]
        kept = [[source for source in hit if not issuer or self._issuer(source) == self._hash(issuer)] for issuer, hit in zip(stated, hits)]
        lost = [f"{stated[number]!r} (line {table.lines[number]})" for number, hit in enumerate(kept) if hits[number] and not hit]
        if lost:
            problem = f"{len(lost)} of {len(table.rows)} rows name an {ISSUER} that their sources do not state: {few('', lost)}"
            raise UserError(place, f"{table.path}: {problem}", remedy="write it as the DICOM headers do, or leave it empty")
        return kept

    def refuse_several(self, table: Table, column: str, hits: Sequence[list[int]], place: str) -> None:
        """One value may stand for many sources, but not for several people."""
        wrong = []
        for number, hit in enumerate(hits):
            people = {(self._keys[source].get("PatientID", ""), self._issuer(source)) for source in hit}
            units = {self._units[source] if source < len(self._units) else None for source in hit}
            if len(people) > 1 and (len(units) > 1 or None in units):
                wrong.append(f"{table.rows[number][column]!r} (line {table.lines[number]}: {len(people)} people)")
        if wrong:
            problem = f"{table.path}: column {column!r} stands for several people: {few('', wrong)}"
            remedy = f"add a column {ISSUER} (and join=PatientID)" if column != "PatientID" else f"add a column {ISSUER}"
            raise UserError(place, problem, remedy=remedy)

    def _issuer(self, source: int) -> str:
        return clean_id(self._keys[source].get(ISSUER, ""))


def withdrawn_row(value: str) -> str:
    """What a store hashes to remember that a row of a list was withdrawn."""
    return f"withdrawn row\0{clean_id(value)}"


def _is_gone(value: str, gone: Collection[str], hash_: Hash) -> bool:
    return bool(gone) and hash_(withdrawn_row(value)) in gone


def _refuse_missing(table: Table, column: str, hits: Sequence[bool], lookups: Mapping[str, _Lookup], place: str) -> None:
    missing = [number for number, hit in enumerate(hits) if not hit]
    if not missing:
        return
    values = [table.rows[number][column] for number in missing]
    shown = [f"{value!r} (line {table.lines[number]})" for value, number in zip(values, missing)]
    problem = f"{table.path}: {len(missing)} of {len(table.rows)} rows match no source by column {column!r}: {few('', shown)}"
    allowed = f"the {', '.join(lookups)} of a source"
    if column in DICOM_FIELDS and column not in lookups:
        single = " (sources of a single image only)" if column == "SOPInstanceUID" else ""
        allowed += f"; no source has a {column}{single}"
    meant = [(value, form) for value in values for lookup in lookups.values() if (form := lookup.meant(value)) is not None]
    remedy = "choose another column, or remove these rows"
    if meant:
        remedy = f"{len(meant)} of them are numbers that lost leading zeros (or gained decimals) in a spreadsheet: {meant[0][0]!r} "
        remedy += f"would match as {meant[0][1]!r}; format that column as text"
    raise UserError(place, problem, allowed=allowed, remedy=remedy)


def _one_to_one(
    table: Table, column: str, kind: str, hits: Sequence[list[int]], wholes: Sequence[str], num_sources: int, place: str
) -> Match:
    rows: dict[int, int] = {}
    wrong, skipped = [], []
    for number, hit in enumerate(hits):
        where = f"{table.rows[number][column]!r} (line {table.lines[number]}"
        frames_of_one = len({wholes[source] for source in hit}) == 1 and bool(wholes[hit[0]]) if hit else False
        if kind in _ONE_SOURCE and len(hit) > 1 and not frames_of_one:
            wrong.append(f"{where}: {len(hit)} sources)")
        taken = next((rows[source] for source in hit if source in rows), None)
        if taken is not None:
            wrong.append(f"{where}: same source as line {table.lines[taken]})")
        rows |= dict.fromkeys(hit, number)
        if all(source >= num_sources for source in hit):
            skipped.append(number)
    if wrong:
        problem = f"{table.path}: column {column!r} is ambiguous by {kind}: {few('', wrong)}"
        raise UserError(place, problem, remedy="choose a column that names each source once, for example a relative path")
    return Match(kind=kind, rows={source: row for source, row in rows.items() if source < num_sources}, skipped=tuple(skipped))


def few(noun: str, items: Sequence[str]) -> str:
    """The first of a list, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{noun} {', '.join(items[:_SHOWN])}{more}".strip()


def units_of(store: Store) -> list[str | None]:
    """Unit of every row of a store's index; None where units are per chunk."""
    return [unit or None for unit in store.index["unit"].to_pylist()]


def keys_of(store: Store) -> list[dict[str, str]]:
    """Key values of every row of a store's index, by kind."""
    names = [name for name in store.index.column_names if name.startswith("key_") and name != INSTANCE]
    columns = {name.removeprefix("key_"): store.index.column(name).to_pylist() for name in names}
    return [{kind: values[row] for kind, values in columns.items() if values[row]} for row in range(store.index.num_rows)]


def skipped_keys(store: Store) -> list[dict[str, str]]:
    """Key values of every skipped source that a store's manifest lists."""
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
    gone = frozenset(opened.manifest.get("withdrawn_rows", ())) if opened.manifest.get("personal", False) else frozenset()
    hash_ = store_hash(opened, secret)
    found = match(table, join, keys_of(opened), skipped_keys(opened), units=units_of(opened), hash_=hash_, gone=gone)
    if found.skipped:
        _log.info("%s: %d rows speak of sources that were refused, left out or withdrawn", table.path, len(found.skipped))
    pairs = [(row, table.rows[number]) for row, number in sorted(found.rows.items())]
    kept = [(row, values) for row, values in pairs if target is None or values[target] != ""]
    _log.info("%s: joined by %s; %d of %d sources have a label", table.path, found.kind, len(kept), opened.index.num_rows)
    values = np.array(["" if target is None else values[target] for _, values in kept], dtype=np.str_)
    columns = {name: [values[name] for _, values in kept] for name in table.header}
    return Labels(rows=np.array([row for row, _ in kept], np.int64), values=values, columns=columns)


def store_hash(store: Store, given: str | None) -> Hash:
    """What turns a clear value of a CSV into the one that a store's keys hold.

    Raises:
        UserError: The store's secret is missing, or another one is given.
    """
    if not store.manifest.get("personal", False):
        return str
    # A secret that is given opens a store on a server, too; without one it is looked for beside the store.
    secret = find_secret(
        store.path if given is None else Path(store.location), given, personal=True, known=store.manifest["secret_fingerprint"]
    )
    assert secret is not None, "find_secret raises where a known secret is missing"
    return lambda value: pseudonym(secret, value)
