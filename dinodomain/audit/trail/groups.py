"""Columns as groups of units, for counting: text as it is, quantities in quartiles, small cells not printed. n rows, U units, G groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.audit.protocol.attribute import MISSING

MAX_GROUPS = 20
OTHER = "all others"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGroups:
    """Which units have which values of a column.

    Attributes:
        units: [U] ids, sorted.
        names: Of the groups.
        shares: [U, G] share of a unit's rows with a known value that are of the group; 0 everywhere where none is known.
    """

    units: np.ndarray
    names: tuple[str, ...]
    shares: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """[U] whether some row of the unit has a value."""
        found: np.ndarray = self.shares.sum(axis=1) > 0
        return found

    def counts(self) -> np.ndarray:
        """[G] units with any row of each group; a unit with two values counts in both."""
        found: np.ndarray = (self.shares > 0).sum(axis=0)
        return found


def as_groups(values: Sequence[object] | np.ndarray) -> np.ndarray:
    """[n] group of each row as text, "" where missing. Above 20 values numbers become quartiles, texts the commonest 19 and all others."""
    text = np.array([str(value).strip() for value in values], dtype=np.str_)
    known = np.array([item.lower() not in MISSING for item in text], bool)
    out = np.where(known, text, "")
    names, counts = np.unique(text[known], return_counts=True)
    if len(names) <= MAX_GROUPS:
        return out
    numbers = numbers_of(text[known])
    if numbers is not None:
        out = out.astype(object)
        out[known] = quarters(numbers)
        return out.astype(np.str_)
    common = names[np.argsort(-counts, kind="stable")[: MAX_GROUPS - 1]]
    result: np.ndarray = np.where(known & ~np.isin(out, common), OTHER, out)
    return result


def group_units(units: np.ndarray, groups: np.ndarray) -> UnitGroups:
    """Groups of units from groups of rows; rows without a unit are left out."""
    use = units != ""
    names, place = np.unique(units[use], return_inverse=True)
    labels = sorted({str(name) for name in groups[use]} - {""}, key=_in_order)
    counts = np.zeros((len(names), len(labels)))
    for column, label in enumerate(labels):
        counts[:, column] = np.bincount(place.reshape(-1), weights=groups[use] == label, minlength=len(names))
    total = counts.sum(axis=1, keepdims=True)
    return UnitGroups(units=names, names=tuple(labels), shares=counts / np.maximum(total, 1))


def _in_order(name: str) -> tuple[bool, float, str]:
    """Numbers and ranges by their first number, before text."""
    head = name.partition(" to ")[0]
    numbers = numbers_of(np.array([head]))
    return (True, 0.0, name) if numbers is None else (False, float(numbers[0]), name)


def numbers_of(text: np.ndarray) -> np.ndarray | None:
    """[n] float64, or None where a text is no finite number."""
    try:
        numbers = text.astype(np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def quarters(numbers: np.ndarray) -> list[str]:
    """The quarter of each number by name; an edge belongs to the upper quarter, the largest number to the last."""
    edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    return [f"{edges[at]:g} to {edges[at + 1]:g}" for at in place]
