"""What a run writes while it goes: metrics.jsonl and log.txt. One row a step, no duplicates and no torn rows after a kill.

No torch arithmetic happens here; values arrive as plain floats.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dinodomain import lineage

logger = logging.getLogger("dinodomain")
steps = logging.getLogger("dinodomain.steps")

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file, in order; stops at the first torn one (the process was killed while writing it)."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_bytes().splitlines(keepends=True):
        row = _parse(line)
        if row is None:
            break
        rows.append(row)
    return rows


def truncate_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops torn rows and rows at or beyond ``step``, which a resumed run writes again; returns those that stay."""
    rows = [row for row in read_rows(path) if row["step"] < step]
    lineage.write_bytes(path, "".join(_line(row) for row in rows).encode())
    return rows


class MetricsFile:
    """Appends rows to metrics.jsonl; each is handed to the system as one write, so a kill tears the last row at most.

    What the disk does not take waits in memory for the next row or the next ``sync``, so a disk that is full for a while costs no row.
    """

    def __init__(self, path: Path) -> None:
        self._handle = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
        self._waiting = b""
        self._lock = threading.Lock()  # rows come from the trainer, ``sync`` from the writer of checkpoints

    def write(self, row: Row) -> None:
        """Appends one row, as soon as the disk takes it."""
        with self._lock, suppress(OSError):
            self._waiting += _line(row).encode()
            self._flush()

    def sync(self) -> None:
        """Makes the rows durable; called before a checkpoint that relies on them is announced.

        Raises:
            OSError: The disk does not take them.
        """
        with self._lock:
            self._flush()
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Closes the file."""
        with self._lock, suppress(OSError):
            self._flush()
        self._handle.close()

    def _flush(self) -> None:
        while self._waiting:  # a disk that is nearly full may take a part of a row
            self._waiting = self._waiting[self._handle.write(self._waiting) :]


def scalars(row: Row) -> dict[str, float]:
    """The plain numbers of a row but its step."""
    return {name: float(value) for name, value in row.items() if name != "step" and isinstance(value, (int, float))}


@contextmanager
def log_to(path: Path, *, quiet: bool = False) -> Iterator[None]:
    """Sends what the package logs to a file as well, without hosts or process ids.

    Args:
        path: Appended to.
        quiet: Keep step lines out of the terminal, where a progress bar shows the same.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    logger.addHandler(handler)
    if quiet:
        steps.propagate = False
        steps.addHandler(handler)
    try:
        yield
    finally:
        steps.propagate = True
        for holder in (logger, steps):
            holder.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def write_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Writes plan.yaml as JSON, which is YAML too, so that reading it needs no YAML package."""
    lineage.write_json(path, plan)


def read_plan(path: Path) -> dict[str, Any]:
    """The plan of ``write_plan``."""
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan


def format_row(row: Row, names: Sequence[str]) -> str:
    """One plain line for the log."""
    parts = [f"{name} {row[name]:.4g}" for name in names if isinstance(row.get(name), (int, float))]
    return f"step {row['step']}: " + ", ".join(parts)


def _line(row: Row) -> str:
    return json.dumps(lineage.to_json(row), ensure_ascii=False) + "\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
