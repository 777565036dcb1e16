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


def text_of(column: Sequence[object] | np.ndarray) -> np.ndarray:
    """[n] text, "" where the value is missing."""
    words = np.array([str(value).strip() for value in column], dtype=np.str_)
    return np.where(np.isin(np.char.lower(words), list(MISSING)), "", words)


def grouped(column: Sequence[object] | np.ndarray) -> np.ndarray:
    """[n] group of each row as text: the value, or its quarter where more than 20 different numbers are found; "" where missing."""
    words = text_of(column)
    known = words != ""
    if len(np.unique(words[known])) <= MAX_GROUPS or (numbers := _numbers(words[known])) is None:
        return words
    out = words.astype(object)
    out[known] = _quarters(numbers)
    return out.astype(np.str_)


def as_groups(values: Sequence[object] | np.ndarray) -> np.ndarray:
    """[n] ``grouped``, and of more than 20 texts the commonest 19 and all others."""
    words = grouped(values)
    names, counts = np.unique(words[words != ""], return_counts=True)
    if len(names) <= MAX_GROUPS:
        return words
    common = names[np.argsort(-counts, kind="stable")[: MAX_GROUPS - 1]]
    result: np.ndarray = np.where((words != "") & ~np.isin(words, common), OTHER, words)
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
    numbers = _numbers(np.array([head]))
    return (True, 0.0, name) if numbers is None else (False, float(numbers[0]), name)


def _numbers(text: np.ndarray) -> np.ndarray | None:
    try:
        numbers = text.astype(np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _quarters(numbers: np.ndarray) -> list[str]:
    """The quarter of each number by name; an edge belongs to the upper quarter, the largest number to the last."""
    edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    return [f"{edges[at]:g} to {edges[at + 1]:g}" for at in place]
