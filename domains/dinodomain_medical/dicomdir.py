"""DICOMDIR, the inventory on exchange media (PS3.10, 8.6): what it lists and nobody finds is told, nothing else is believed.

Files are found by content all the same, since an inventory is often older than its folder. Names on media are upper case and may
carry ISO 9660 versions (``IM0001.;1``); mounted, they may have become lower case or lost them. All are one name here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_medical.dicom_header import load, quiet_pydicom
from dinodomain_medical.sources import Item, is_selected

_IMAGE, _UNDEFINED = "IMAGE", 0xFFFFFFFF


def is_named(name: str) -> bool:
    """Whether a file is a DICOMDIR by its name."""
    return _plain(name) == "DICOMDIR"


def missing(path: Path, relative: str, select: Select) -> Iterator[tuple[str, Item]]:
    """Rows for images that a DICOMDIR lists and that are not there, or one row for a DICOMDIR that cannot be read.

    Args:
        path: The DICOMDIR.
        relative: Its name below the source.
        select: Which files are taken.
    """
    try:
        listed = [*_listed(path)]
    except BadSource as refusal:
        yield relative, refusal
        return
    prefix, folders = relative.rpartition("/")[0], _Folders()
    for parts in listed:
        if folders.find(path.parent, parts) is None:
            name = "/".join(parts)
            key = f"{prefix}/{name}" if prefix else name
            if is_selected(key, select):
                yield key, BadSource(str(path.parent / name), "listed in DICOMDIR, missing", "copy the medium again, as a whole")


def _listed(path: Path) -> Iterator[tuple[str, ...]]:
    """Parts of the path of each image in use."""
    with quiet_pydicom():
        try:
            dataset = load(path)
            if "DirectoryRecordSequence" not in dataset:
                raise _damaged(path, "without records")
            raw = dataset.get_item("DirectoryRecordSequence")
            if raw.is_raw and raw.length not in (_UNDEFINED, len(raw.value or b"")):
                raise _damaged(path, "truncated")  # pydicom would give what is there
            for record in dataset.DirectoryRecordSequence or ():
                parts = _parts(record)
                if parts:
                    yield parts
        except BadSource:
            raise
        except Exception as error:  # a damaged sequence makes pydicom raise whatever its parser meets
            raise _damaged(path, type(error).__name__) from error


def _damaged(path: Path, how: str) -> BadSource:
    remedy = "nothing need be done: its files are found without it; exclude it to be rid of this row"
    return BadSource(str(path), f"a damaged DICOMDIR ({how})", remedy)


def _parts(record: Any) -> tuple[str, ...]:
    if str(record.get("DirectoryRecordType") or "").strip().upper() != _IMAGE or record.get("RecordInUseFlag") == 0:
        return ()
    value = record.get("ReferencedFileID") or ()
    parts = (value,) if isinstance(value, str) else tuple(value)
    return tuple(str(part).strip() for part in parts if str(part).strip() not in ("", ".", ".."))


def _plain(name: str) -> str:
    return name.upper().partition(";")[0].rstrip(".")


class _Folders:
    """Listings of folders, each read once, by plain names."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, parts: tuple[str, ...]) -> Path | None:
        for part in parts:
            name = self._listing(folder).get(_plain(part))
            if name is None:
                return None
            folder = folder / name
        return folder

    def _listing(self, folder: Path) -> dict[str, str]:
        if folder not in self._known:
            try:
                self._known[folder] = {_plain(name): name for name in sorted(os.listdir(folder))}
            except OSError:
                self._known[folder] = {}
        return self._known[folder]
