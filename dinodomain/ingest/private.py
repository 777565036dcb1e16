"""Tables beside a store, in ``STORE.private``: clear names, readable by their owner only, whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dinodomain.ingest.secret import private_folder
from dinodomain.lineage import write_bytes

SKIPPED_COLUMNS = ("uri", "stored", "kind", "reason", "remedy")
"""Columns of the clear list of skipped sources."""

_CODING = {"encoding": "utf-8", "errors": "surrogateescape"}
"""File names need not be UTF-8; their bytes survive."""


def skipped_file(store: Path) -> Path:
    """Where the clear names of a store's skipped sources lie."""
    return private_folder(store) / "skipped.csv"


def write_private(path: Path, data: bytes) -> None:
    """Writes a file of mode 600 in a folder that, where it is made here, has mode 700."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(path, data, mode=0o600)


def write_private_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Writes a CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_private(path, text.getvalue().encode(**_CODING))


def read_private_table(path: Path) -> list[dict[str, str]]:
    """The rows of such a CSV; none where there is no file."""
    if not path.is_file():
        return []
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(**_CODING), newline="")))
