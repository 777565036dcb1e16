"""Places on the globe: blocks of ground, folds that keep a distance, and how alike near residuals are.

Decides no verdict. n rows, P places; lon and lat in degrees, distances in km.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from sklearn.neighbors import BallTree

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import transferred
from dinodomain.probes.folds import grouped_folds, index_units

EARTH_KM = 6371.0088
SIZES_KM = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_BUFFER = 0.5  # of the block's side


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way to keep training and test apart, and the plain random one on the same rows.

    Attributes:
        kept: [m] rows that both could score.
        apart: [m, C] or [m] scores with training rows near the test left out.
        random: The same with rows dealt at random and equally many training rows.
        units: [m] what is resampled: blocks, or units.
        share: Mean share of the rows that was trained on.
    """

    kept: np.ndarray
    apart: np.ndarray
    random: np.ndarray
    units: np.ndarray
    share: float


def blocks(lon: np.ndarray, lat: np.ndarray, side: float) -> np.ndarray:
    """[n] block of each row as 0..: rows of latitude one side high, cut into columns about one side wide at their middle."""
    step = np.degrees(side / EARTH_KM)
    band = np.floor(lat / step)
    width = step / np.maximum(np.cos(np.radians(np.clip((band + 0.5) * step, -89.0, 89.0))), 1e-3)
    column = np.floor((lon % 360.0) / width)
    return np.unique(np.stack([band, column], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def block_trial(features: np.ndarray, target: Attribute, lon: np.ndarray, lat: np.ndarray, side: float, effort: Effort) -> Trial | None:
    """Blocks of one side held out with a buffer of half a side around each; None where a fold cannot be trained.

    Args:
        features: [N, E].
        target: n rows of them.
        lon: [n].
        lat: [n].
        side: Of a block.
        effort: Folds, seed.
    """
    block = blocks(lon, lat, side)
    folds = grouped_folds(block, target.values, effort.folds, effort.seed)
    points = np.radians(np.stack([lat, lon], axis=1))
    tests = [np.flatnonzero(folds == fold) for fold in range(effort.folds)]
    trains = []
    for fold, test in enumerate(tests):
        others = np.flatnonzero(folds != fold)
        distance = BallTree(points[test], metric="haversine").query(points[others])[0][:, 0] * EARTH_KM
        trains.append(others[distance > _BUFFER * side])
    return _against_random(features, target, tests, trains, index_units(block), effort)


def forward_trial(features: np.ndarray, target: Attribute, when: np.ndarray, effort: Effort) -> Trial | None:
    """Three later stretches of time, each by a probe of all rows before it; units that lie on both sides are not trained on.

    Args:
        features: [N, E].
        target: n rows of them.
        when: [n] sortable times.
        effort: Seed.
    """
    rank = np.unique(when, return_inverse=True)[1].reshape(-1)
    edges = np.quantile(rank, [0.4, 0.6, 0.8, 1.0])
    tests = [np.flatnonzero((rank > low) & (rank <= high)) for low, high in pairwise(edges)]
    tests = [test for test in tests if len(test)]
    if not tests:
        return None
    before = [np.flatnonzero(rank < rank[test].min()) for test in tests]
    trains = [early[~np.isin(target.unit_index[early], target.unit_index[test])] for early, test in zip(before, tests)]
    return _against_random(features, target, tests, trains, target.unit_index, effort)


def _against_random(
    features: np.ndarray, target: Attribute, tests: Sequence[np.ndarray], trains: Sequence[np.ndarray], units: np.ndarray, effort: Effort
) -> Trial | None:  # fmt: skip
    """Scores the test rows by the given training rows, and by as many rows dealt at random, units and places ignored."""
    if any(not _trainable(target, train) for train in trains):
        return None
    rows = np.concatenate(tests)
    apart = np.concatenate([_rows_only(features, target, train, test) for train, test in zip(trains, tests)])
    generator = np.random.default_rng([effort.seed, 0x6E0])
    dealt = np.array_split(generator.permutation(rows), len(tests))
    found = []
    for test, train in zip(dealt, trains):
        others = np.setdiff1d(np.arange(len(target.rows)), test)
        chosen = generator.choice(others, size=min(len(train), len(others)), replace=False)
        found.append(_rows_only(features, target, chosen, test))
    order, shuffled = np.argsort(rows), np.argsort(np.concatenate(dealt))
    return Trial(
        kept=rows[order], apart=apart[order], random=np.concatenate(found)[shuffled], units=index_units(units[rows[order]]),
        share=float(np.mean([len(train) for train in trains]) / len(target.rows)),
    )  # fmt: skip


def _trainable(target: Attribute, train: np.ndarray) -> bool:
    if target.kind == "number":
        return len(train) >= 30
    return bool(min(np.bincount(target.values[train], minlength=len(target.classes))) >= 10)


def _rows_only(features: np.ndarray, target: Attribute, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Like ``transferred``; every row is its own unit, as whoever splits at random has it."""
    return transferred(features, replace(target, unit_index=np.arange(len(target.rows))), train, test)


def moran(values: np.ndarray, lon: np.ndarray, lat: np.ndarray, *, neighbours: int, permutations: int, seed: int) -> tuple[float, float]:
    """Moran's I of values at places and its one-sided permutation p; weights 1 / k for each place's k nearest (rows sum to 1).

    I = sum_ij w_ij z_i z_j / sum_i z_i^2 with centred z; without order its mean is -1 / (P - 1). Source: Moran 1950; Cliff and Ord 1981.

    Args:
        values: [P].
        lon: [P].
        lat: [P].
        neighbours: k.
        permutations: K.
        seed: Decides the permutations.
    """
    points = np.radians(np.stack([lat, lon], axis=1))
    near = BallTree(points, metric="haversine").query(points, k=neighbours + 1)[1]
    near = np.array([row[row != at][:neighbours] for at, row in enumerate(near)])
    z = values - values.mean()
    total = float(np.square(z).sum())
    if total == 0:
        return 0.0, 1.0
    found = float((z * z[near].mean(axis=1)).sum() / total)
    generator = np.random.default_rng([seed, 0x304A])
    drawn = (generator.permutation(z) for _ in range(permutations))
    reached = sum(float((one * one[near].mean(axis=1)).sum() / total) >= found for one in drawn)
    return found, (1 + reached) / (1 + permutations)
