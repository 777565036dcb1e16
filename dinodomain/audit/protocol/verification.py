"""Do two visits of one unit resemble each other more than visits of two units? Scores of genuine pairs against impostors.

Each unit gives two visits, so genuine pairs weigh equally and none is of one visit. Units are compared within blocks (all units for the raw
metric; each half for a metric learnt from the other half). U units, P impostor pairs, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import gammaln
from sklearn.covariance import ledoit_wolf

from dinodomain.probes.scores import Z95, Interval, wilson

FALSE_ACCEPT = (1e-2, 1e-3, 1e-4)
GALLERIES = (100, 1000, 10_000)
PAIRS_PER_RATE = 10  # a false accept rate is reported with at least 10 / rate impostor pairs
_COMPONENTS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Units compared with one another.

    Attributes:
        scores: [U, U] similarity of each unit's first visit (rows) to each unit's second (columns); genuine pairs on the diagonal.
        allowed: [U, U] bool, the impostor pairs that count.
    """

    scores: np.ndarray
    allowed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Genuine and impostor scores of one metric.

    Attributes:
        blocks: Together they hold every unit once.
        draws: [B, U] how often each unit is drawn, in the order of the blocks.
    """

    blocks: Sequence[Block]
    draws: np.ndarray

    @cached_property
    def genuine(self) -> np.ndarray:
        """[U]."""
        return np.concatenate([np.diagonal(block.scores) for block in self.blocks])

    @cached_property
    def impostors(self) -> np.ndarray:
        """[P], ascending."""
        return np.sort(np.concatenate([block.scores[block.allowed] for block in self.blocks]))

    @property
    def auroc(self) -> Interval:
        """Share of impostors below a genuine pair, ties half; the impostors are held fixed in the resamples."""
        low, high = (np.searchsorted(self.impostors, self.genuine, side=side) for side in ("left", "right"))
        return self._mean((low + high) / (2 * len(self.impostors)), binary=False)

    def assessable(self, rate: float) -> bool:
        """Whether there are impostor pairs enough for a false accept rate."""
        return len(self.impostors) >= PAIRS_PER_RATE / rate

    def accepted(self, rate: float) -> Interval:
        """Share of units recognised at the threshold that lets so many impostors pass."""
        return self._mean((self.genuine > self._threshold(rate)).astype(np.float64), binary=True)

    def _threshold(self, rate: float) -> float:
        return float(self.impostors[len(self.impostors) - 1 - int(rate * len(self.impostors))])

    @cached_property
    def better(self) -> tuple[np.ndarray, np.ndarray]:
        """[U] allowed impostors that score as high as the unit's own second visit or higher, and [U] allowed impostors."""
        above = [(block.allowed & (block.scores >= np.diagonal(block.scores)[:, None])).sum(axis=1) for block in self.blocks]
        return np.concatenate(above), np.concatenate([block.allowed.sum(axis=1) for block in self.blocks])

    def rank_one(self, gallery: int) -> Interval | None:
        """Share of units found first in a gallery of their own second visit and so many minus one others, over all such galleries.

        Exact: with k of m others scoring higher, the chance that none of g - 1 drawn ones does is C(m - k, g - 1) / C(m, g - 1).
        None where units have fewer others.
        """
        above, others = self.better
        if others.min() < gallery - 1:
            return None
        left = others - above - (gallery - 1)
        found = np.zeros(len(above))
        fits = left >= 0
        found[fits] = np.exp(_choose(others[fits] - above[fits], gallery - 1) - _choose(others[fits], gallery - 1))
        return self._mean(found, binary=True)

    def _mean(self, values: np.ndarray, *, binary: bool) -> Interval:
        """Mean over units with the 95 % unit bootstrap; for shares no narrower than Wilson's, which knows that 0 of n is not none."""
        value = float(values.mean())
        half = Z95 * float((self.draws @ values / self.draws.sum(axis=1)).std())
        low, high = value - half, value + half
        if binary:
            plain = wilson(round(value * len(values)), len(values))
            low, high = min(low, plain.low), max(high, plain.high)
        return Interval(value=value, low=max(0.0, low), high=min(1.0, high))

    def curve(self, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
        """False accept rates, ascending, and the share of genuine pairs missed at each."""
        least = PAIRS_PER_RATE / len(self.impostors)
        rates = np.geomspace(min(least, 0.5), 0.5, points)
        return rates, np.array([float((self.genuine <= self._threshold(rate)).mean()) for rate in rates])


def _choose(n: np.ndarray, k: int) -> np.ndarray:
    result: np.ndarray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return result


def trials(
    first: np.ndarray, second: np.ndarray, visits: np.ndarray, owners: np.ndarray, keys: np.ndarray, draws: int, seed: int
) -> dict[str, Trial]:  # fmt: skip
    """Every metric against all impostors, and against matched ones.

    Args:
        first: [U, E] features of one visit of each unit.
        second: [U, E] of another.
        visits: [V, E] all visits of these units, from which the metric is learnt.
        owners: [V] their units, 0..U-1.
        keys: [U]; impostors with the same key are matched.
        draws: B.
        seed: Decides halves and draws.

    Returns:
        ``raw``, ``raw matched``, ``learnt`` and ``learnt matched``; matched ones only where keys differ.
    """
    generator = np.random.default_rng([seed, 0x1D])
    count = len(first)
    counts = generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    halves = np.array_split(generator.permutation(count), 2)
    learnt = [_learnt(visits, owners, np.setdiff1d(np.arange(count), half), first[half], second[half]) for half in halves]
    raw = [_cosine(first - visits.mean(axis=0), second - visits.mean(axis=0))]
    parts = {"raw": ([np.arange(count)], raw), "learnt": (halves, learnt)}
    out = {}
    for name, (groups, scores) in parts.items():
        order = np.concatenate(groups)
        free = [_scaled(block, ~np.eye(len(group), dtype=bool)) for group, block in zip(groups, scores)]
        out[name] = Trial(blocks=free, draws=counts[:, order])
        if len(np.unique(keys)) > 1:
            alike = [
                Block(scores=block.scores, allowed=block.allowed & (keys[group][:, None] == keys[group]))
                for group, block in zip(groups, free)
            ]
            out[f"{name} matched"] = Trial(blocks=alike, draws=counts[:, order])
    return out


def _scaled(scores: np.ndarray, allowed: np.ndarray) -> Block:
    """Scores in units of the block's impostors, so that blocks share thresholds."""
    others = scores[allowed]
    return Block(scores=(scores - others.mean()) / max(float(others.std()), 1e-12), allowed=allowed)


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, other = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (first, second))
    result: np.ndarray = one @ other.T
    return result


def _learnt(visits: np.ndarray, owners: np.ndarray, units: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine after whitening what varies within units and keeping what varies between them, learnt from other units (LDA)."""
    rows = np.isin(owners, units)
    x, who = visits[rows], np.unique(owners[rows], return_inverse=True)[1]
    sizes = np.bincount(who)
    means = np.zeros((len(sizes), x.shape[1]))
    np.add.at(means, who, x)
    means /= sizes[:, None]
    spread = np.where(x.std(axis=0) > 0, x.std(axis=0), np.inf)
    within = (x - means[who])[sizes[who] > 1] / spread
    values, vectors = np.linalg.eigh(ledoit_wolf(within, assume_centered=True)[0])
    whiten = vectors / np.sqrt(np.maximum(values, 1e-12))
    centre = means.mean(axis=0)
    between = (means - centre) / spread @ whiten
    _, _, axes = np.linalg.svd(between, full_matrices=False)
    kept = whiten @ axes[: min(_COMPONENTS, len(axes))].T
    return _cosine((first - centre) / spread @ kept, (second - centre) / spread @ kept)
