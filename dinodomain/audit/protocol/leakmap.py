"""Where an attribute can be read: one probe per place, and a null of the largest score over all places (max-T).

With hundreds of places the best one always looks good; the largest score of permuted values says how good by chance (Westfall and Young
1993, 2.8). n images, P places, E width, K permutations, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.leak import Reader, score_found

WIDTH = 96
"""Principal components of the tokens that probes see, found without labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakMap:
    """Scores by place; NaN where a place has no data.

    Attributes:
        value: [P] out-of-fold scores.
        null: [K, P] scores of permuted values.
        draws: [B, P] scores under resampled units.
    """

    value: np.ndarray
    null: np.ndarray
    draws: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """[P] the larger of the bootstrap's and the null's deviation."""
        out, seen = np.full(len(self.value), np.nan), ~np.isnan(self.value)
        out[seen] = np.maximum(np.nanstd(self.draws[:, seen], axis=0), self.null[:, seen].std(axis=0))
        return out

    @property
    def _excess(self) -> tuple[np.ndarray, np.ndarray]:
        """[P] and [K, P] distance from the null's mean in its deviations."""
        mean, spread = self.null.mean(axis=0), np.maximum(self.null.std(axis=0), 1e-9)
        return (self.value - mean) / spread, (self.null - mean) / spread

    @property
    def p(self) -> float:
        """Chance that any place of permuted values stands out as much as the one that stands out most here."""
        found, null = self._excess
        return float((1 + (np.nanmax(null, axis=1) >= np.nanmax(found)).sum()) / (1 + len(null)))

    @property
    def peak(self) -> int:
        """The place that stands out most."""
        return int(np.nanargmax(self._excess[0]))

    @property
    def reach(self) -> float:
        """Deviations that the largest of all places exceeds in 5 % of permutations: what 1.64 is for one place."""
        return float(np.quantile(np.nanmax(self._excess[1], axis=1), 0.95))

    @property
    def low(self) -> np.ndarray:
        """[P] lower ends that hold for all places at once (95 %)."""
        result: np.ndarray = self.value - self.reach * self.error
        return result

    @property
    def marked(self) -> np.ndarray:
        """[P] bool, places that stand out more than chance allows anywhere."""
        found = self._excess[0]
        return np.where(np.isnan(found), -np.inf, found) > self.reach


def narrow(tokens: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[n, P, at most 96] leading principal components; tokens without data become their place's mean and say nothing.

    Args:
        tokens: [n, P, E].
        known: [n, P] bool.
    """
    count, places, width = tokens.shape
    mean = np.where(known[:, :, None], tokens, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)[:, None]
    rows = np.where(known[:, :, None], tokens, mean).reshape(-1, width).astype(np.float64)
    if width > WIDTH:
        rows = PCA(WIDTH, svd_solver="randomized", random_state=0).fit_transform(rows)
    result: np.ndarray = rows.reshape(count, places, -1)
    return result


def read_map(
    tokens: np.ndarray, usable: np.ndarray, attribute: Attribute, folds: np.ndarray, shuffled: np.ndarray, weights: Sequence[np.ndarray]
) -> LeakMap:
    """Reads the attribute at every place.

    Args:
        tokens: [n, P, E] of the attribute's rows, see ``narrow``.
        usable: [P] bool, places with enough data; others are NaN.
        attribute: What is read.
        folds: [n].
        shuffled: [K, n] permuted values.
        weights: Pieces [b, n] of the resampled units' weights.
    """
    places, draws = tokens.shape[1], sum(len(piece) for piece in weights)
    value, null, drawn = np.full(places, np.nan), np.full((len(shuffled), places), np.nan), np.full((draws, places), np.nan)
    for place in np.flatnonzero(usable):
        reader = Reader(tokens[:, place], attribute, folds)
        found = reader.predict(attribute.values[None])[0]
        value[place], drawn[:, place] = score_found(attribute, found, weights)
        null[:, place] = reader.score(shuffled)
    return LeakMap(value=value, null=null, draws=drawn)
