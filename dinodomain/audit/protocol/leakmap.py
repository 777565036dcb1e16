"""Where an attribute can be read: one probe for each place, its score out of fold, its null and its draws.

n images, P places, E width, K permutations, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.joint import joint_of, standing
from dinodomain.audit.protocol.leak import Reader, levels, score_found

WIDTH = 96
"""Principal components of the tokens that probes see, found without labels."""
_PENALTY = (1.0,)
"""Components of equal variance are shrunk alike whatever the penalty, so one that no label chose reads as much (experiments.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakMap:
    """Scores by place; NaN where a place has no data.

    Attributes:
        value: [P] out-of-fold scores.
        null: [K, P] scores of permuted values.
        draws: [B, P] scores under resampled units.
        stands: [1 + K, P] how far each stands out, those found first; see ``joint.standing``.
    """

    value: np.ndarray
    null: np.ndarray
    draws: np.ndarray
    stands: np.ndarray

    @classmethod
    def of(cls, value: np.ndarray, null: np.ndarray, draws: np.ndarray) -> LeakMap:
        """The map of these scores."""
        return cls(value=value, null=null, draws=draws, stands=standing(np.vstack([value, null])))

    @property
    def error(self) -> np.ndarray:
        """[P] the larger of the bootstrap's and the null's deviation."""
        out, seen = np.full(len(self.value), np.nan), ~np.isnan(self.value)
        out[seen] = np.maximum(np.nanstd(self.draws[:, seen], axis=0), self.null[:, seen].std(axis=0))
        return out

    @property
    def p(self) -> np.ndarray:
        """[P] chance that any place stands out as much as each does."""
        return joint_of(self.stands)

    @property
    def peak(self) -> int:
        """The place that stands out most."""
        return int(np.nanargmax(self.stands[0]))

    @property
    def reach(self) -> float:
        """Deviations within which all places lie in 95 % of permutations: what 1.96 is for one place."""
        return float(np.quantile(np.nanmax(np.abs(self.stands[1:]), axis=1), 0.95))

    def needed(self, level: float) -> float:
        """Deviations that the largest of all places exceeds in a share of permutations: what 1.64 is for one place at .05."""
        return float(np.quantile(np.nanmax(self.stands[1:], axis=1), 1 - level))


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Leading principal components of tokens, at most 96, found without labels: folds and nulls stay as they are.

    Attributes:
        mean: [E].
        components: [E, W], or None where tokens are narrow already.
    """

    mean: np.ndarray
    components: np.ndarray | None

    @classmethod
    def of(cls, rows: np.ndarray) -> Basis:
        """The components of rows [m, E]."""
        if rows.shape[1] <= WIDTH or len(rows) <= WIDTH:
            return cls(mean=np.zeros(rows.shape[1]), components=None)
        found = PCA(WIDTH, svd_solver="covariance_eigh").fit(rows.astype(np.float64))
        return cls(mean=found.mean_, components=found.components_.T)

    def project(self, rows: np.ndarray) -> np.ndarray:
        """[..., E] rows to [..., W] float32."""
        found = rows if self.components is None else (rows - self.mean) @ self.components
        result: np.ndarray = found.astype(np.float32)
        return result


def filled(tokens: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[n, P, W] tokens of which those without data are their place's mean and say nothing.

    Args:
        tokens: [n, P, W].
        known: [n, P] bool.
    """
    mean = np.where(known[:, :, None], tokens, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)[:, None]
    result: np.ndarray = np.where(known[:, :, None], tokens, mean)
    return result


def read_map(
    tokens: np.ndarray, usable: np.ndarray, attribute: Attribute, folds: np.ndarray, shuffled: np.ndarray, weights: Sequence[np.ndarray]
) -> LeakMap:
    """Reads the attribute at every place.

    Args:
        tokens: [n, P, W] of the attribute's rows, see ``filled``.
        usable: [P] bool, places with enough data; others are NaN.
        attribute: What is read.
        folds: [n].
        shuffled: [K, n] permuted values.
        weights: Pieces [b, n] of the resampled units' weights.
    """
    places, draws = tokens.shape[1], sum(len(piece) for piece in weights)
    value, null, drawn = np.full(places, np.nan), np.full((len(shuffled), places), np.nan), np.full((draws, places), np.nan)
    permuted = levels(attribute.kind, shuffled)

    def read(place: int) -> None:
        reader = Reader(tokens[:, place], attribute, folds, _PENALTY)
        found = reader.predict(attribute.values[None])[0]
        value[place], drawn[:, place] = score_found(attribute, found, weights)
        null[:, place] = reader.score_levels(permuted)

    # Sorting takes as long as the products and has one thread: so places are spread over threads, each product has one.
    threads = torch.get_num_threads()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, np.flatnonzero(usable).tolist()))
    return LeakMap.of(value, null, drawn)


def read_values(tokens: np.ndarray, usable: np.ndarray, attribute: Attribute, folds: np.ndarray) -> np.ndarray:
    """[P] the scores of such a map alone; NaN where a place has no data."""
    value = np.full(tokens.shape[1], np.nan)
    for place in np.flatnonzero(usable):
        value[place] = Reader(tokens[:, place], attribute, folds, _PENALTY).score(attribute.values[None])[0]
    return value
