"""Counts of what many sources state: values by name, commonest first, and ranges of numbers. Streams; holds distinct values only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dinodomain.types import FactValue

MOST_VALUES = 200
"""Values listed in JSON; what is beyond is counted."""

_FEW_NUMBERS = 12
_FEW_MEMBERS = 3
_MOST_PARTS = 16
_MOST_DISTINCT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How one field is spread over the sources.

    Attributes:
        known: Sources that state it.
        missing: Sources that do not.
        values: Sources by value, commonest first, at most ``MOST_VALUES``; empty for numbers of many different values.
        more: Different values beyond those.
        low: Lowest number, None where it is no number.
        median: Median.
        high: Highest.
    """

    known: int
    missing: int
    values: Mapping[str, int]
    more: int = 0
    low: float | None = None
    median: float | None = None
    high: float | None = None

    def text(self, top: int) -> str:
        """One line: the commonest values, or a range."""
        if self.values:
            shown = [f"{_short(name)} ({count})" for name, count in list(self.values.items())[:top]]
            rest = len(self.values) - len(shown) + self.more
            line = ", ".join(shown) + (f" and {rest} more" if rest else "")
        elif self.low is not None:
            line = f"{self.low:.6g} to {self.high:.6g}, median {self.median:.6g}"
        else:
            return "not stated"
        return f"{line}; not stated by {self.missing}" if self.missing else line


def spread_lines(spreads: Mapping[str, Spread], top: int) -> list[str]:
    """A line a field; the many members of a field that each channel has (``gsd_m.B02``) share one.

    Args:
        spreads: By field name.
        top: Values shown per field, and names shown per list of names.
    """
    groups: dict[str, dict[str, Spread]] = {}
    for name, spread in spreads.items():
        groups.setdefault(name.partition(".")[0], {})[name] = spread
    lines: list[str] = []
    for name, members in groups.items():
        if len(members) <= _FEW_MEMBERS:
            lines += [f"{member}: {spread.text(top)}" for member, spread in members.items()]
        else:
            lines.append(f"{name} of {len(members)} channels: {_shared(members, top)}")
    return lines


def _shared(members: Mapping[str, Spread], top: int) -> str:
    """Members by the line they have in common; where that tells them apart one by one and they are numbers, their range."""
    by_line: dict[str, list[str]] = {}
    for name, spread in members.items():
        by_line.setdefault(spread.text(top), []).append(name.partition(".")[2])
    if len(by_line) > top:
        ends = [end for spread in members.values() for end in (spread.low, spread.high) if end is not None]
        return f"{min(ends):.6g} to {max(ends):.6g}" if ends else f"{len(by_line)} kinds, listed in the JSON"
    return "; ".join(f"{line}: {_names(names, top)}" for line, names in by_line.items())


def _names(names: list[str], top: int) -> str:
    return ", ".join(names[:top]) + (f" and {len(names) - top} more" if len(names) > top else "")


class Tally:
    """Counts of the fields of sources, added one by one."""

    def __init__(self) -> None:
        self._total = 0
        self._values: dict[str, Counter[str | float]] = {}

    def add(self, fields: Mapping[str, FactValue]) -> None:
        """Counts one source."""
        self._total += 1
        for name, value in fields.items():
            plain = _plain(value)
            if plain is None:
                continue
            counter = self._values.setdefault(name, Counter())
            if plain in counter or len(counter) < _MOST_DISTINCT:
                counter[plain] += 1
            else:
                counter["(other)"] += 1

    def spreads(self, order: Iterable[str] = ()) -> dict[str, Spread]:
        """By field: those of ``order`` first, the others by name."""
        first = [name for name in order if name in self._values]
        names = [*first, *sorted(set(self._values) - set(first))]
        return {name: self._spread(self._values[name]) for name in names}

    def _spread(self, counter: Counter[str | float]) -> Spread:
        known = counter.total()
        numbers = {value: count for value, count in counter.items() if isinstance(value, float)}
        ends = _ends(numbers) if len(numbers) == len(counter) else (None, None, None)
        if ends[0] is not None and len(counter) > _FEW_NUMBERS:
            return Spread(known=known, missing=self._total - known, values={}, low=ends[0], median=ends[1], high=ends[2])
        ranked = sorted(counter.items(), key=lambda item: (-item[1], _key(item[0])))
        listed: dict[str, int] = {}
        for value, count in ranked[:MOST_VALUES]:
            name = _name(value)
            listed[name] = listed.get(name, 0) + count
        more = max(0, len(ranked) - MOST_VALUES)
        return Spread(known=known, missing=self._total - known, values=listed, more=more, low=ends[0], median=ends[1], high=ends[2])


def _short(name: str) -> str:
    """A value that is a list of many is shown by its ends."""
    parts = name.split("/")
    return name if len(parts) <= _MOST_PARTS else f"{'/'.join(parts[:3])}/.../{parts[-1]} ({len(parts)} in all)"


def _plain(value: FactValue) -> str | float | None:
    """A value to count by: numbers as float, lists joined by a slash, blanks as nothing."""
    if value is None or isinstance(value, bool):
        return None if value is None else ("yes" if value else "no")
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (tuple, list)):
        return "/".join(f"{part:.6g}" if isinstance(part, float) else str(part) for part in value) or None
    return str(value).strip() or None


def _ends(numbers: Mapping[float, int]) -> tuple[float | None, float | None, float | None]:
    if not numbers:
        return None, None, None
    middle, seen = sum(numbers.values()) / 2, 0
    ordered = sorted(numbers)
    for value in ordered:
        seen += numbers[value]
        if seen >= middle:
            return ordered[0], value, ordered[-1]
    return ordered[0], ordered[-1], ordered[-1]


def _key(value: str | float) -> tuple[int, float, str]:
    return (0, value, "") if isinstance(value, float) else (1, 0.0, value)


def _name(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value
