"""An attribute as a probe sees it: classes or numbers, its level (unit or image), and permutations that respect the level.

n rows, U units, K permutations, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dinodomain.probes.folds import index_units
from dinodomain.probes.ridge import unit_blocks

Kind = Literal["classes", "number"]
Level = Literal["unit", "image"]

MAX_CLASSES = 20  # more distinct numbers than this, or than a half of the units, are a quantity
MIN_CLASS_UNITS = 30  # fewer: nothing but counts
SMALL_CELL = 10  # counts of units below this are not printed
MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A column restricted to the rows that can be used.

    Attributes:
        name: Column name.
        kind: ``classes`` or ``number``.
        rows: [n] row numbers in the audited set.
        values: [n] class indices (int) or numbers (float).
        classes: Names of the classes, in index order; empty for numbers.
        unit_index: [n] units as 0..U-1.
        level: ``unit`` where every unit has one value, else ``image``; found from the data.
        units_per_class: Units in which each class occurs, all classes found, small ones too.
        missing: Share of all rows without a value.
        dropped: Classes left out for having too few units.
    """

    name: str
    kind: Kind
    rows: np.ndarray
    values: np.ndarray
    classes: tuple[str, ...]
    unit_index: np.ndarray
    level: Level
    units_per_class: dict[str, int]
    missing: float
    dropped: tuple[str, ...]

    @property
    def num_units(self) -> int:
        """Units used."""
        return int(self.unit_index.max()) + 1 if len(self.unit_index) else 0

    @property
    def one_class(self) -> bool:
        """Whether there is nothing to tell apart: classes, but fewer than two."""
        return self.kind == "classes" and len(self.classes) < 2

    @property
    def metric(self) -> str:
        """What its score is: .5 is chance and 1 perfect for all."""
        return "(1 + spearman) / 2" if self.kind == "number" else ("auroc" if len(self.classes) == 2 else "macro auroc")

    @property
    def num_minor(self) -> int:
        """Units in the smallest class used; half of all units for a number."""
        if self.kind == "number":
            return self.num_units // 2
        return min((self.units_per_class[name] for name in self.classes), default=0)


def read_attribute(name: str, column: Sequence[object] | np.ndarray, units: np.ndarray) -> Attribute:
    """Reads one column: drops missing values, and classes with fewer than 30 units where two larger ones remain.

    Args:
        name: Column name.
        column: n values; "", nan, none, null, na and unknown count as missing.
        units: [n] unit ids.
    """
    text = np.array([str(value).strip() for value in column])
    known = np.array([item.lower() not in MISSING for item in text], bool)
    rows = np.flatnonzero(known)
    numbers = numbers_of(text[rows])
    if numbers is not None and len(np.unique(numbers)) > min(MAX_CLASSES, max(2, len(np.unique(units[rows])) / 2)):
        return _make(name, "number", rows, numbers, (), units, {}, known, ())
    counts = {str(label): len(np.unique(units[rows][text[rows] == label])) for label in np.unique(text[rows])}
    large = tuple(label for label, count in counts.items() if count >= MIN_CLASS_UNITS)
    used = large if len(large) >= 2 else tuple(counts)
    rows = rows[np.isin(text[rows], used)] if used else rows
    codes = np.searchsorted(np.array(used), text[rows]) if used else np.empty(0, np.int64)
    return _make(name, "classes", rows, codes, used, units, counts, known, tuple(label for label in counts if label not in used))


def _make(
    name: str, kind: Kind, rows: np.ndarray, values: np.ndarray, classes: tuple[str, ...], units: np.ndarray, counts: dict[str, int],
    known: np.ndarray, dropped: tuple[str, ...],
) -> Attribute:  # fmt: skip
    unit_index = index_units(units[rows])
    constant = all((values[block] == values[block[:, :1]]).all() for block in unit_blocks(unit_index)) if len(rows) else True
    return Attribute(
        name=name, kind=kind, rows=rows, values=values, classes=classes, unit_index=unit_index, level="unit" if constant else "image",
        units_per_class=counts, missing=float(1 - known.mean()) if len(known) else 1.0, dropped=dropped,
    )  # fmt: skip


def numbers_of(text: np.ndarray) -> np.ndarray | None:
    """The values as numbers; None where one is none, or there are no values."""
    try:
        numbers = text.astype(np.float64)
    except ValueError:
        return None
    return numbers if len(numbers) and np.isfinite(numbers).all() else None


def within(attribute: Attribute, keep: np.ndarray) -> Attribute:
    """The attribute on some of its rows.

    Args:
        attribute: n rows.
        keep: Positions among them, or [n] bool.
    """
    values, units, names = attribute.values[keep], index_units(attribute.unit_index[keep]), attribute.classes
    counts = {name: len(np.unique(units[values == code])) for code, name in enumerate(names)}
    return replace(attribute, rows=attribute.rows[keep], values=values, unit_index=units, units_per_class=counts)


def printed(count: int | float) -> int | str:
    """A number of units as people may see it; "< 10" for what might point to single people, an empty cell tells of nobody."""
    return int(count) if count == 0 or count >= SMALL_CELL else f"< {SMALL_CELL}"


def counted(units_per_class: Mapping[str, int], words: str = "units with") -> dict[str, int | str]:
    """Units of each class as people may see them: classes of fewer than ten units are told of together, without their names."""
    small = sum(0 < count < SMALL_CELL for count in units_per_class.values())
    found: dict[str, int | str] = {f"{words} {name}": count for name, count in units_per_class.items() if not 0 < count < SMALL_CELL}
    return found | ({f"classes of fewer than {SMALL_CELL} units, not named": small} if small else {})


def identifying(values: Sequence[object] | np.ndarray, units: np.ndarray) -> int:
    """Distinct texts of a column where they tell nearly every unit apart (more than ten, and more than a half of the units); else 0."""
    text = np.array([str(value).strip() for value in values])
    known = np.array([item.lower() not in MISSING for item in text], bool)
    distinct = len(np.unique(text[known]))
    few = distinct <= max(SMALL_CELL, len(np.unique(units[known])) / 2)
    return 0 if few or numbers_of(text[known]) is not None else distinct


def permuted(attribute: Attribute, count: int, seed: int) -> np.ndarray:
    """Draws values under "the attribute says nothing about the features", units kept whole.

    A unit-level attribute is dealt anew to the units. An image-level one moves as whole blocks between units of equal size and is
    shuffled inside each unit, which keeps how alike the values of one unit are (Winkler et al. 2015, multi-level block permutation).

    Returns:
        [K, n] values of the attribute's dtype.
    """
    generator = np.random.default_rng([seed, 0x9E83])
    values, unit_index = attribute.values, attribute.unit_index
    if attribute.level == "unit":
        _, first = np.unique(unit_index, return_index=True)
        dealt = generator.permuted(np.broadcast_to(values[first], (count, len(first))), axis=1)
        return dealt[:, unit_index]
    out = np.empty((count, len(values)), values.dtype)
    for block in unit_blocks(unit_index):
        for draw in out:
            draw[block] = generator.permuted(values[generator.permutation(block)], axis=1)
    return out
