"""Readers side by side: who takes turns with whom, CPU-seconds, medians and the rows of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Reader = Callable[[int], int]
"""Reads its share of round n and returns how many samples it read."""

LOWER = ("requests", "MB", "bytes")
"""Units of which less is better; targets of such rows are upper bounds."""


def rates(readers: Mapping[str, Reader], rounds: int) -> dict[str, list[float]]:
    """Samples per CPU-second (process time: every thread, system time included) of each reader in each round.

    Readers take turns within a round, so that what else the machine does meets all of them; the first turn alternates its direction.
    """
    found: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds):
        order = list(readers.items()) if turn % 2 == 0 else list(readers.items())[::-1]
        for name, read in order:
            begun = time.process_time()
            count = read(turn)
            found[name].append(count / (time.process_time() - begun))
    return found


def row(measure: str, given: str, ours: Sequence[float], peer: str, theirs: Sequence[float], unit: str, target: float | None = None) -> Row:
    """A row of the table; the ratio is the median over rounds of the rounds' own ratios, which a busy machine disturbs least."""
    return {
        "measure": measure,
        "input": given,
        "ours": round(statistics.median(ours), 3),
        "peer": peer,
        "peer_value": round(statistics.median(theirs), 3),
        "unit": unit,
        "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs) if b), 3) if any(theirs) else None,
        "target": target,
        "rounds": len(ours),
    }


def met(found: Row) -> bool | None:
    """Whether a row reaches its target; None where it has none."""
    if found["target"] is None or found["ratio"] is None:
        return None
    if found["unit"].startswith(LOWER):
        return bool(found["ratio"] <= found["target"])
    return bool(found["ratio"] >= found["target"])


def line(found: Row) -> str:
    """A row for people."""
    sign = "<=" if found["unit"].startswith(LOWER) else ">="
    verdict = {None: "", True: f"{sign} {found['target']}", False: f"{sign} {found['target']} MISSED"}[met(found)]
    ratio = "   -   " if found["ratio"] is None else f"{found['ratio']:7.2f}"
    return f"  {found['ours']:10.2f} | {found['peer_value']:10.2f} {found['unit']:16} | x{ratio} {verdict:16} | {found['peer']}"


def show(rows: Sequence[Row]) -> None:
    """Prints rows, those of one measure and input under one heading."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for found in rows:
        groups.setdefault((found["measure"], found["input"]), []).append(found)
    for (measure, given), members in groups.items():
        print(f"\n{measure}: {given}, {members[0]['rounds']} rounds\n  {'ours':>10} | {'peer':>10}")
        for found in members:
            print(line(found), flush=True)
