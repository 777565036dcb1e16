"""Strata of units from columns, and permutations that stay inside them: a leak that is no more than a proxy does not outlive these.

n rows, U units, K permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dinodomain.audit.protocol.attribute import MISSING, Attribute, numbers_of, permuted, within

QUANTILES = 5
MAX_LEVELS = 20  # more distinct numbers than this are cut into quintiles


def unit_strata(columns: Mapping[str, np.ndarray], names: Sequence[str], unit_index: np.ndarray) -> np.ndarray:
    """Stratum of each unit: units agree in every named column, numbers up to their quintile.

    A unit takes the value that most of its rows have, of a number the mean; a missing value is a level of its own.

    Args:
        columns: Name to [n] values.
        names: Those that make the strata; none gives one stratum.
        unit_index: [n] units as 0..U-1.

    Returns:
        [U] integers 0..S-1.
    """
    count = int(unit_index.max()) + 1
    keys = np.zeros(count, np.int64)
    for name in names:
        levels = _levels(np.asarray(columns[name]), unit_index, count)
        keys = np.unique(keys * (int(levels.max()) + 1) + levels, return_inverse=True)[1].reshape(-1)
    return keys


def _levels(column: np.ndarray, unit_index: np.ndarray, count: int) -> np.ndarray:
    text = np.array([str(value).strip().lower() for value in column])
    known = ~np.isin(text, list(MISSING))
    numbers = numbers_of(text[known])
    if numbers is not None and len(np.unique(numbers)) > MAX_LEVELS:
        return _quintiles(numbers, unit_index[known], count)
    names, codes = np.unique(np.where(known, text, ""), return_inverse=True)
    votes = np.bincount(unit_index * len(names) + codes.reshape(-1), minlength=count * len(names))
    result: np.ndarray = votes.reshape(count, len(names)).argmax(axis=1)
    return result


def _quintiles(numbers: np.ndarray, unit_index: np.ndarray, count: int) -> np.ndarray:
    sizes = np.bincount(unit_index, minlength=count)
    means = np.bincount(unit_index, numbers, minlength=count) / np.maximum(sizes, 1)
    edges = np.quantile(means[sizes > 0], np.linspace(0, 1, QUANTILES + 1)[1:-1])
    return np.where(sizes > 0, 1 + np.searchsorted(edges, means, side="right"), 0)


def covered(strata: np.ndarray, least: int) -> float:
    """Share of units in strata of at least so many units."""
    return float((np.bincount(strata)[strata] >= least).mean())


def permuted_within(attribute: Attribute, strata: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Permutations as ``attribute.permuted`` draws them, but between units of one stratum only.

    Args:
        attribute: What is permuted.
        strata: [U].
        count: K.
        seed: Decides the draws.

    Returns:
        [K, n].
    """
    of_rows = strata[attribute.unit_index]
    out = np.empty((count, len(of_rows)), attribute.values.dtype)
    for stratum in np.unique(of_rows):
        rows = np.flatnonzero(of_rows == stratum)
        out[:, rows] = permuted(within(attribute, rows), count, seed + 7919 * int(stratum))
    return out


def movable(attribute: Attribute, strata: np.ndarray) -> int:
    """Units of the smaller classes inside their strata: what permutations can move at all; half the units of larger strata for a number."""
    if attribute.kind == "number":
        sizes = np.bincount(strata)
        return int((sizes[sizes > 1] // 2).sum())
    pairs = np.unique(np.stack([strata[attribute.unit_index], attribute.values, attribute.unit_index]), axis=1)
    table = np.zeros((int(strata.max()) + 1, len(attribute.classes)), np.int64)
    np.add.at(table, (pairs[0], pairs[1]), 1)
    return int((table.sum(axis=1) - table.max(axis=1)).sum())
