"""Smooth weighted round robin without end: who comes at each place and how often each came before, at the same cost for any place.

Knows nothing of tiles: the same cycle deals steps to buckets and places of a bucket's stream to stores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LENGTH = 4096


class Cycle:
    """An endless dealing out, turn after turn.

    Args:
        counts: [n] int64, how often each entry comes in one turn; as evenly spread as can be.
        shift: Place of the turn at which it begins.
    """

    def __init__(self, counts: np.ndarray, shift: int = 0) -> None:
        self._turn = _smooth(counts)
        seen = np.zeros((len(self._turn) + 1, len(counts)), dtype=np.int64)
        np.add.at(seen, (np.arange(1, len(self._turn) + 1), self._turn), 1)
        self._seen = seen.cumsum(axis=0)
        self._shift = shift % max(1, len(self._turn))

    def at(self, places: np.ndarray) -> np.ndarray:
        """[n] int64, the entry at each place."""
        found: np.ndarray = self._turn[(places + self._shift) % len(self._turn)]
        return found

    def before(self, place: int) -> np.ndarray:
        """[entries] int64, how often each entry came at places 0..place-1."""
        counted: np.ndarray = self._total(place + self._shift) - self._total(self._shift)
        return counted

    def _total(self, place: int) -> np.ndarray:
        turns, rest = divmod(place, len(self._turn))
        total: np.ndarray = turns * self._seen[-1] + self._seen[rest]
        return total

    def earlier(self, places: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """[n] int64, how often ``entries[i]`` came before ``places[i]``."""
        turns, rest = np.divmod(places + self._shift, len(self._turn))
        found: np.ndarray = turns * self._seen[-1][entries] + self._seen[rest, entries] - self._total(self._shift)[entries]
        return found


def nearly(shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Whole numbers in the proportion of ``shares``: largest remainders of some 4096, at least one for every share above 0.

    Args:
        shares: [n] 0 or more, of any sum above 0.
    """
    wanted = np.asarray(shares, dtype=np.float64)
    used = int((wanted > 0).sum())
    assert used, "nobody to deal to"
    if used == 1:
        return (wanted > 0).astype(np.int64)
    length = max(_LENGTH, 16 * used)
    exact = wanted / wanted.sum() * length
    counts = np.where(wanted > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    missing = max(0, length - int(counts.sum()))
    counts[np.argsort(np.floor(exact) - exact, kind="stable")[:missing]] += 1
    divisor: int = np.gcd.reduce(counts)
    return counts // divisor


def closely(shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Like ``nearly``, but of the length up to 4096 that meets the shares best, the shortest of equals: 0.7 and 0.3 become 7 and 3."""
    wanted = np.asarray(shares, dtype=np.float64)
    used = np.flatnonzero(wanted > 0)
    parts = wanted[used] / wanted[used].sum()
    lengths = np.arange(1, _LENGTH + 1)
    rounded = np.rint(lengths[:, None] * parts)
    error = np.abs(rounded / lengths[:, None] - parts).max(axis=1)
    error[(rounded < 1).any(axis=1) | (rounded.sum(axis=1) != lengths)] = np.inf
    best = int(np.argmax(error <= error.min() + 1e-12))
    if not np.isfinite(error[best]):
        return nearly(wanted)
    counts = np.zeros(len(wanted), dtype=np.int64)
    counts[used] = rounded[best].astype(np.int64)
    return counts


def _smooth(counts: np.ndarray) -> np.ndarray:
    """One turn of the smooth weighted round robin: each entry ``counts`` times, as evenly spread as can be."""
    credit, total = np.zeros(len(counts), dtype=np.int64), int(counts.sum())
    turn = np.empty(total, dtype=np.int64)
    for place in range(total):
        credit += counts
        turn[place] = np.argmax(credit)
        credit[turn[place]] -= total
    return turn
