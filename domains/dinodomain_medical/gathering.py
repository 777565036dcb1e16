"""Joining the files of a DICOM series, wherever they lie below a source: one folder, a folder each, or a million in one.

Headers wait in a temporary database on disk, compressed, so that memory holds one series at a time. Files of one SeriesInstanceUID
are joined across folders if patient and study agree. A second set of folders with exactly the same SOPInstanceUIDs is a copy: it
becomes a source of its own, for ingest to compare. Files without SeriesInstanceUID are joined within their folder only.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import sqlite3
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dinodomain_medical.dicom_header import Header
from dinodomain_medical.sources import Gathered

_TABLE = "CREATE TABLE header (uid TEXT, folder TEXT, owner TEXT, sop TEXT, body BLOB)"
_BY_SERIES = "CREATE INDEX by_series ON header (uid, folder, owner)"


class PackedHeader(NamedTuple):
    """A header as it waits for the others of its series; small, and quick to send to another process.

    Attributes:
        modality: As in ``Header``.
        series: SeriesInstanceUID, or an empty string.
        owner: Issuer, patient and study.
        sop: SOPInstanceUID, or an empty string.
        body: The whole header.
    """

    modality: str
    series: str
    owner: str
    sop: str
    body: bytes


def pack(header: Header) -> PackedHeader:
    """The header for ``SeriesStore.add``."""
    keys = header.keys
    owner = f"{keys.get('IssuerOfPatientID', '')}\\{keys.get('PatientID', '')}\\{keys.get('StudyInstanceUID', '')}"
    body = zlib.compress(pickle.dumps(header, protocol=5), 1)
    return PackedHeader(header.modality, keys.get("SeriesInstanceUID", ""), owner, keys.get("SOPInstanceUID", ""), body)


@dataclass(frozen=True, slots=True)
class _File:
    folder: str
    owner: str
    sop: str


class SeriesStore:
    """Headers on their way to ``Gathered``; closed, it leaves nothing behind.

    Args:
        scratch: Folder for the database; empty takes the system's own temporary folder.
    """

    def __init__(self, scratch: str) -> None:
        self._file = ""  # a database without a name is SQLite's own temporary file, which no kill leaves behind
        if scratch:
            handle, self._file = tempfile.mkstemp(prefix="headers-", suffix=".sqlite", dir=scratch)
            os.close(handle)
        self._database = sqlite3.connect(self._file, check_same_thread=False, isolation_level=None)
        for line in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA temp_store=FILE", _TABLE, "BEGIN"):
            self._database.execute(line)
        self._num = 0

    def close(self) -> None:
        """Removes the database."""
        self._database.close()
        if self._file:
            Path(self._file).unlink(missing_ok=True)

    def add(self, header: PackedHeader, relative: str, folder: str) -> None:
        """Takes the header of a file at a path below the root, and the folder it counts to."""
        row = (header.series, folder, header.owner, header.sop or f"no uid: {relative}", header.body)
        try:
            self._database.execute("INSERT INTO header VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            raise OSError(errno.ENOSPC, "no room for the headers of all files", self._file or tempfile.gettempdir()) from error
        self._num += 1

    def gathered(self, root: Path) -> Iterator[Gathered]:
        """All series, each once, in order of their UIDs."""
        if not self._num:
            return
        self._database.execute(_BY_SERIES)
        held: Counter[str] = Counter()
        for uid, rows in self._series("folder, owner, sop"):
            held.update(map(_common, _clusters(uid, [_File(*row) for row in rows])))
        for uid, rows in self._series("folder, owner, sop, body"):
            for cluster in _clusters(uid, [_File(*row[:3]) for row in rows]):
                place = _common(cluster)
                inside = set(cluster)
                headers = [_header(row[3]) for row in rows if row[0] in inside]
                yield Gathered(
                    root=root,
                    place=place,
                    uri=str(root / place),
                    alone=held[place] == 1,
                    headers=tuple(sorted(headers, key=lambda header: header.path)),
                )

    def _series(self, columns: str) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        rows = self._database.execute(f"SELECT uid, {columns} FROM header ORDER BY uid, folder")
        for uid, members in itertools.groupby(rows, key=lambda row: row[0]):
            yield uid, [row[1:] for row in members]


def _header(body: str) -> Header:
    header: Header = pickle.loads(zlib.decompress(body))  # type: ignore[arg-type]  # written by this very process
    return header


def _common(folders: Sequence[str]) -> str:
    return folders[0] if len(folders) == 1 else os.path.commonpath(folders)


def _clusters(uid: str, files: Sequence[_File]) -> list[list[str]]:
    """Folders whose files make one series, sorted; copies of a whole series are clusters of their own."""
    owners: dict[str, set[str]] = defaultdict(set)
    held: dict[str, set[str]] = defaultdict(set)
    for file in files:
        owners[file.folder].add(file.owner)
        held[file.folder].add(file.sop)
    if len(held) == 1 or not uid:
        return [[folder] for folder in sorted(held)]
    by_owner: dict[frozenset[str], list[str]] = defaultdict(list)
    for folder in sorted(held):
        by_owner[frozenset(owners[folder])].append(folder)
    return [cluster for folders in by_owner.values() for cluster in _copies_apart(folders, held)]


def _copies_apart(folders: Sequence[str], held: dict[str, set[str]]) -> list[list[str]]:
    met: Counter[frozenset[str]] = Counter()
    layers: dict[int, list[str]] = defaultdict(list)
    for folder in folders:
        images = frozenset(held[folder])
        layers[met[images]].append(folder)
        met[images] += 1
    whole = set().union(*(held[folder] for folder in layers[0]))
    joined, copies = layers[0], []
    for number in range(1, len(layers)):
        if set().union(*(held[folder] for folder in layers[number])) == whole:
            copies.append(layers[number])
        else:
            joined = sorted(joined + layers[number])
    return [joined, *copies]
