"""Whose neighbours are rows of the features: of their own class elsewhere, or of another class made in the same place?

Robustness index RI = SO / (SO + OS) over the k nearest rows of other units: SO counts neighbours of the same class and another domain, OS
those of another class and the same domain. Source: PathoROB (arXiv 2507.17845). Two things differ from it: the bootstrap draws units,
not images, and each OS is divided by (classes - 1), so that features without either kind of order give .5 whatever the number of classes.
m rows of a pair of domains, U units, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from dinodomain.probes.folds import turns
from dinodomain.probes.scores import Z95, Interval

NEIGHBOURS = (5, 10, 20, 50)
_BLOCK = 2048  # query rows at a time: bounds the similarity matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two domains with the classes that both hold, as many rows of each class in each domain.

    Attributes:
        names: Of the two domains.
        classes: Number of classes.
        units: [m] unit of each row.
        near: [m, k] positions of the nearest rows of other units, nearest first.
        y: [m] class.
        domain: [m] 0 or 1.
        cell: Fewest units of a class in a domain.
    """

    names: tuple[str, str]
    classes: int
    units: np.ndarray
    near: np.ndarray
    y: np.ndarray
    domain: np.ndarray
    cell: int

    def kinds(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """[m, k] whether a neighbour is an SO, and whether it is an OS."""
        near = self.near[:, :k]
        same = self.y[near] == self.y[:, None]
        elsewhere = self.domain[near] != self.domain[:, None]
        return same & elsewhere, ~same & ~elsewhere

    def counts(self, k: int, weights: np.ndarray | None = None) -> np.ndarray:
        """SO and OS, [2] or [B, 2] under weights [B, U] of units as queries and as neighbours."""
        same, other = self.kinds(k)
        scale = np.array([1.0, 1.0 / (self.classes - 1)])
        if weights is None:
            plain: np.ndarray = scale * np.array([same.sum(), other.sum()])
            return plain
        found = [self._weighted(kind, k, weights) for kind in (same, other)]
        drawn: np.ndarray = scale * np.stack(found, axis=1)
        return drawn

    def _weighted(self, kind: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
        rows, places = np.nonzero(kind)
        at = (self.units[rows], self.units[self.near[rows, places]])
        edges = coo_array((np.ones(len(rows)), at), shape=(weights.shape[1],) * 2).tocsr()
        result: np.ndarray = ((weights @ edges) * weights).sum(axis=1)
        return result

    def permuted(self, k: int, count: int, seed: int) -> np.ndarray:
        """SO and OS [K, 2] where the domain is dealt anew to the units of each class: what the class's own order gives."""
        near, blocks = self.near[:, :k], self._exchangeable()
        same = self.y[near] == self.y[:, None]
        generator, out = np.random.default_rng([seed, 0x9E4]), np.empty((count, 2))
        for draw in out:
            domain = self.domain.copy()
            for rows, first, inverse in blocks:
                domain[rows] = generator.permutation(self.domain[rows][first])[inverse]
            elsewhere = domain[near] != domain[:, None]
            draw[:] = (same & elsewhere).sum(), (~same & ~elsewhere).sum()
        scaled: np.ndarray = out * [1.0, 1.0 / (self.classes - 1)]
        return scaled

    def _exchangeable(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per class: its rows, and the first row and number of each unit among them; rows stand for units that lie in both domains."""
        out = []
        for one in range(self.classes):
            rows = np.flatnonzero(self.y == one)
            keys = 2 * self.units[rows] + self.domain[rows]
            whole = len(np.unique(keys)) == len(np.unique(self.units[rows]))
            _, first, inverse = np.unique(keys if whole else np.arange(len(rows)), return_index=True, return_inverse=True)
            out.append((rows, first, inverse.reshape(-1)))
        return out

    def accuracy(self, k: int) -> float:
        """Balanced accuracy of the class by majority of k neighbours of other units (cells are equal, so it is the plain one)."""
        votes = (self.y[self.near[:, :k]][:, :, None] == np.arange(self.classes)).sum(axis=1)
        return float(np.mean(votes.argmax(axis=1) == self.y))


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The robustness index, where class and domain can be told apart.

    Attributes:
        value: Over all pairs that can be compared, with its interval.
        k: Neighbours.
        accuracy: Of the class by these neighbours.
        null: [K] index where the domain is dealt anew to units: what the order by class alone gives.
        curve: Index by k.
        by_pair: Index of each pair of domains.
        pairs: What they rest on.
        complete: Whether every pair of domains was compared on every class.
    """

    value: Interval
    k: int
    accuracy: float
    null: np.ndarray
    curve: dict[int, float]
    by_pair: dict[tuple[str, str], Interval]
    pairs: tuple[Pair, ...]
    complete: bool

    @property
    def p(self) -> float:
        """That the domain orders nothing, one-sided. Source: Phipson and Smyth 2010."""
        return float((1 + (self.null <= self.value.value).sum()) / (1 + len(self.null)))


def make_pair(
    features: np.ndarray, *, names: tuple[str, str], y: np.ndarray, domain: np.ndarray, units: np.ndarray, cell: int, seed: int
) -> Pair:  # fmt: skip
    """Draws as many rows of each class in each domain, spread over units, and finds their neighbours.

    Args:
        features: [m, E] of both domains.
        names: Of the domains.
        y: [m] classes 0..C-1, each found in both domains.
        domain: [m] 0 or 1.
        units: [m] unit of each row, 0..U-1 of the whole set.
        cell: Fewest units of a class in a domain.
        seed: Decides the draw.
    """
    kept = _balanced(2 * y + domain, units, seed)
    chosen = units[kept]
    near = _nearest(np.asarray(features[kept], np.float32), chosen, NEIGHBOURS[-1])
    return Pair(names=names, classes=int(y.max()) + 1, units=chosen, near=near, y=y[kept], domain=domain[kept], cell=cell)


def robustness(pairs: Sequence[Pair], k: int, weights: np.ndarray | None = None) -> np.ndarray:
    """RI over all pairs together: [] or [B]."""
    total = np.sum([pair.counts(k, weights) for pair in pairs], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = total[..., 0] / total.sum(axis=-1)
        return result


def expected(pairs: Sequence[Pair], k: int, count: int, seed: int) -> np.ndarray:
    """[K] RI over all pairs where the domain means nothing: near the share of neighbours of the same class, not near 1."""
    total = np.sum([pair.permuted(k, count, seed + at) for at, pair in enumerate(pairs)], axis=0)
    result: np.ndarray = total[:, 0] / np.maximum(total.sum(axis=1), 1e-12)
    return result


def best_k(pairs: Sequence[Pair]) -> int:
    """The number of neighbours by which the class is told best, over all pairs."""
    usable = [k for k in NEIGHBOURS if all(k <= pair.near.shape[1] for pair in pairs)] or [min(pair.near.shape[1] for pair in pairs)]
    return max(usable, key=lambda k: np.mean([pair.accuracy(k) for pair in pairs]))


def measure_index(pairs: tuple[Pair, ...], complete: bool, weights: np.ndarray, permutations: int, seed: int) -> Index:
    """The index of all pairs, at the number of neighbours that tells the class best.

    Args:
        pairs: At least one.
        complete: Whether they are all that were wanted.
        weights: [B, U] how often each unit is drawn.
        permutations: K.
        seed: Decides the permutations.
    """
    k = best_k(pairs)
    curve = {one: float(robustness(pairs, one)) for one in NEIGHBOURS if all(one <= pair.near.shape[1] for pair in pairs)}
    return Index(
        value=index_interval(pairs, k, weights), k=k, accuracy=float(np.mean([pair.accuracy(k) for pair in pairs])), curve=curve,
        null=expected(pairs, k, permutations, seed),
        by_pair={pair.names: index_interval((pair,), k, weights) for pair in pairs}, pairs=pairs, complete=complete,
    )  # fmt: skip


def index_interval(pairs: tuple[Pair, ...], k: int, weights: np.ndarray) -> Interval:
    """The index with the 95 % interval of its bootstrap."""
    value, half = float(robustness(pairs, k)), Z95 * float(np.nanstd(robustness(pairs, k, weights)))
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _balanced(cells: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """Positions of equally many rows per cell; a unit gives a second row only when all units of its cell have given one."""
    generator = np.random.default_rng([seed, 0x4E16])
    order = generator.permutation(len(cells))
    least = np.bincount(cells)[np.unique(cells)].min()
    kept = []
    for cell in np.unique(cells):
        rows = order[cells[order] == cell]
        kept.append(rows[np.argsort(turns(units[rows]), kind="stable")][:least])
    return np.sort(np.concatenate(kept))


def _nearest(rows: np.ndarray, units: np.ndarray, most: int) -> np.ndarray:
    """[m, k] most similar rows of other units by cosine, after centring; k at most what the most crowded unit leaves over."""
    centred = rows - rows.mean(axis=0)
    unit_length = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    k = int(min(most, len(rows) - np.unique(units, return_counts=True)[1].max()))
    near = np.empty((len(rows), k), np.int64)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity = unit_length[part] @ unit_length.T
        similarity[units[part, None] == units] = -np.inf
        found = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        closeness = np.take_along_axis(similarity, found, axis=1)
        near[part] = np.take_along_axis(found, np.argsort(-closeness, axis=1, kind="stable"), axis=1)
    return near
