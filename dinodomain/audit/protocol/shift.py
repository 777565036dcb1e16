"""The task fitted on units in which class and domain go together more and more, tested where they are unrelated.

Two classes, two domains. With association V the four cells hold shares (1 + V) / 4 on one diagonal and (1 - V) / 4 on the other, which
makes Cramer's V exactly V and keeps classes and domains balanced; both diagonals are tried and averaged. The number of units is the same
at every V. The test weighs the four cells equally. Source: average performance drop, PathoROB (arXiv 2507.17845).
n rows, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dinodomain.audit.protocol.attribute import Attribute, within
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import transferred, units_in
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval, around, auroc, unit_weights

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Scores of a balanced test by how closely class and domain went together in training.

    Attributes:
        domains: The two domains.
        strengths: Cramer's V in training.
        intervals: AUROC at each, over units.
        drop: Mean over V > 0 of the AUROC at 0 minus that at V.
        fitted: Units each probe was fitted on.
    """

    domains: tuple[str, str]
    strengths: tuple[float, ...]
    intervals: tuple[Interval, ...]
    drop: Interval
    fitted: int

    @property
    def scores(self) -> tuple[float, ...]:
        """AUROC at each strength."""
        return tuple(at.value for at in self.intervals)

    def as_evidence(self) -> dict[str, Any]:
        """Plain values."""
        drop = [self.drop.value, self.drop.low, self.drop.high]
        return {"domains": self.domains, "cramers_v": self.strengths, "auroc": self.scores, "drop": drop, "units_fitted": self.fitted}


def mix_curve(features: np.ndarray, target: Attribute, place: np.ndarray, effort: Effort) -> Mixed | None:
    """The curve of the two domains whose smallest cell is largest; None without two classes or 30 units in every cell.

    Args:
        features: [N, E].
        target: n rows of them.
        place: [n] domain of each row, "" where unknown.
        effort: Folds, draws, seed.
    """
    if target.kind != "classes" or len(target.classes) != 2:
        return None
    pairs = [(str(one), str(other)) for one, other in combinations(np.unique(place[place != ""])[:20], 2)]
    sizes = {pair: min(units_in(target.unit_index, rows) for rows in _cells(target, place, pair)) for pair in pairs}
    best = max(sizes, key=lambda pair: sizes[pair], default=None)
    if best is None or sizes[best] < MIN_UNITS:
        return None
    keep = np.isin(place, best)
    return _curve(features, within(target, keep), (place[keep] == best[1]).astype(int), best, effort)


def _cells(target: Attribute, place: np.ndarray, pair: tuple[str, str]) -> Iterator[np.ndarray]:
    for name in pair:
        for code in (0, 1):
            yield (place == name) & (target.values == code)


def _curve(features: np.ndarray, target: Attribute, domain: np.ndarray, names: tuple[str, str], effort: Effort) -> Mixed:
    cells = 2 * target.values + domain
    folds = grouped_folds(target.unit_index, cells, effort.folds, effort.seed)
    share = 1 / np.bincount(cells)[cells]
    weights = list(unit_weights(target.unit_index, effort.bootstraps, effort.seed))
    values, draws, fitted = [], [], 0
    for strength in STRENGTHS:
        found = [_scores(features, target, cells, folds, strength, flip, effort.seed) for flip in (False, True)]
        fitted = found[0][1]
        values.append(np.mean([auroc(scores, target.values, share[None])[0] for scores, _ in found]))
        each = [np.concatenate([auroc(scores, target.values, piece * share) for piece in weights]) for scores, _ in found]
        draws.append(np.mean(each, axis=0))
    lost = np.array(values[0]) - np.mean(values[1:])
    return Mixed(
        domains=names, strengths=STRENGTHS, fitted=fitted,
        intervals=tuple(_interval(float(value), draw) for value, draw in zip(values, draws)),
        drop=_interval(float(lost), draws[0] - np.mean(draws[1:], axis=0)),
    )  # fmt: skip


def _interval(value: float, draws: np.ndarray) -> Interval:
    return around(value, float(np.nanstd(draws)))


def _scores(
    features: np.ndarray, target: Attribute, cells: np.ndarray, folds: np.ndarray, strength: float, flip: bool, seed: int
) -> tuple[np.ndarray, int]:  # fmt: skip
    """[n] out-of-fold scores of the second class by probes fitted at one strength, and their number of units."""
    out, fitted = np.empty(len(cells)), []
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        chosen = train[drawn(cells[train], target.unit_index[train], strength, flip, np.random.default_rng([seed, int(fold), 0xA9D]))]
        out[test] = transferred(features, target, chosen, test)[:, 1]
        fitted.append(len(np.unique(target.unit_index[chosen])))
    return out, round(float(np.mean(fitted)))


def drawn(cells: np.ndarray, units: np.ndarray, strength: float, flip: bool, generator: np.random.Generator) -> np.ndarray:
    """Positions of the rows of units drawn so that Cramer's V of class and domain is ``strength``, equally many units at every strength.

    Args:
        cells: [m] 2 * class + domain.
        units: [m].
        strength: V.
        flip: Favours class 0 with domain 1 and class 1 with domain 0 instead of the reverse.
        generator: Decides the draw.
    """
    by_cell = [np.unique(units[cells == cell]) for cell in range(4)]
    favoured = (1, 2) if flip else (0, 3)
    half = min(len(found) for found in by_cell)  # what a diagonal cell holds at V = 1
    kept = []
    for cell, found in enumerate(by_cell):
        count = round(half * (1 + strength if cell in favoured else 1 - strength) / 2)
        mine = np.isin(units, generator.permutation(found)[:count]) & (cells == cell)
        kept.append(np.flatnonzero(mine))
    return np.concatenate(kept)
