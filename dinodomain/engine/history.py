"""The columns of a run's rows as arrays, with their running means; what is missing or not finite is NaN. n rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WINDOW = 20
"""Rows looked at together; one odd step is no verdict."""


def finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


class History:
    """Rows of a run, oldest first, column by column.

    Args:
        rows: At least one, each with its ``step``.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self.steps = np.array([int(row["step"]) for row in rows])
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def names(self, prefix: str) -> list[str]:
        """Columns of the last row that begin so."""
        return sorted(name for name in self._rows[-1] if name.startswith(prefix))

    def column(self, name: str) -> np.ndarray:
        """[n] float64."""
        if name not in self._columns:
            values = np.array([row.get(name) for row in self._rows], dtype=np.float64)  # None becomes NaN
            self._columns[name] = np.where(np.isfinite(values), values, math.nan)
        return self._columns[name]

    def mean(self, name: str) -> np.ndarray:
        """[n] mean of the last ``WINDOW`` rows at each row; NaN where there are fewer, or half of them lack the value."""
        total, count = _running(self.column(name))
        enough = (count * 2 >= WINDOW) & (np.arange(len(self)) >= WINDOW - 1)
        return np.where(enough, total / np.maximum(count, 1), math.nan)

    def known(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the rows that have a value: looks at the teacher are not in every row."""
        values = self.column(name)
        there = np.isfinite(values)
        return self.steps[there], values[there]

    def since(self, bad: np.ndarray, raw: np.ndarray | None = None) -> int | None:
        """The step since when a condition has held until the last row; None where it does not hold there.

        Args:
            bad: [n] bool, of running means.
            raw: [n] bool, the same of single rows: tells the step inside the first window more sharply.
        """
        if not len(bad) or not bad[-1]:
            return None
        good = np.flatnonzero(~bad)
        first = int(good[-1]) + 1 if len(good) else 0
        if raw is not None:
            window = np.arange(max(0, first - WINDOW + 1), first + 1)
            known = window[raw[window]]
            first = int(known[0]) if len(known) else first
        return int(self.steps[first])


def _running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n] sums and counts of the finite values of the last ``WINDOW`` rows."""
    there = np.isfinite(values)
    # Differences of running sums lose a small value behind a huge one; sums of each window do not.
    padded = np.concatenate([np.zeros(WINDOW - 1), np.where(there, values, 0.0)])
    counted = np.concatenate([np.zeros(WINDOW - 1), there.astype(float)])
    view = np.lib.stride_tricks.sliding_window_view
    return view(padded, WINDOW).sum(axis=1), view(counted, WINDOW).sum(axis=1)
