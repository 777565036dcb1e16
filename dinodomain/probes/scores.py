"""Scores of predictions under row weights, and intervals from resampling units.

Every metric takes weights [B, n] and gives [B] values, so that one call scores the data (weights 1) or B bootstrap draws.
Does not fit anything. n rows, B weightings, C classes, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(predictions [n, C] or [n], truth [n], weights [B, n]) to [B] scores; NaN where a draw left a class empty."""

Z95 = float(norm.ppf(0.975))
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def around(value: float, error: float) -> Interval:
    """The normal 95 % interval of an estimate with this standard error."""
    return Interval(value=value, low=value - Z95 * error, high=value + Z95 * error)


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the weighted share of (positive, negative) pairs in the right order, ties half.

    Args:
        scores: [n], higher means positive.
        positive: [n] truth, non-zero is positive.
        weights: [B, n] non-negative.

    Returns:
        [B]; NaN where a class has no weight. Source: Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    order = np.argsort(scores, kind="stable")
    truth = np.asarray(positive)[order] != 0
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ordered = np.take(weights, order, axis=1)
    ups = ordered * truth
    downs = ordered - ups
    if len(starts) < len(order):  # without ties, which is nearly always, half of the time
        ups, downs = (np.add.reduceat(part, starts, axis=1) for part in (ups, downs))
    total = ups.sum(axis=1) * downs.sum(axis=1)
    below = np.cumsum(downs, axis=1)
    if len(starts) < len(order):
        below = below - downs / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = np.einsum("bn,bn->b", ups, below) / total
        return result


def macro_auroc(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of one-against-rest AUROC; with two classes the plain AUROC of column 1."""
    if predictions.shape[1] == 2:
        return auroc(predictions[:, 1], truth == 1, weights)
    each = [auroc(predictions[:, column], truth == column, weights) for column in range(predictions.shape[1])]
    result: np.ndarray = np.mean(each, axis=0)
    return result


def accuracy(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of rows whose highest column is the true class."""
    result: np.ndarray = weights @ (predictions.argmax(axis=1) == truth) / weights.sum(axis=1)
    return result


def balanced_accuracy(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the share found (recall); chance is 1 / C whatever the class shares."""
    correct = predictions.argmax(axis=1) == truth
    classes = truth[:, None] == np.arange(predictions.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = (weights @ (classes & correct[:, None])) / (weights @ classes)
    result: np.ndarray = recall.mean(axis=1)
    return result


def r_squared(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 - residual / total sum of squares; 0 is the mean, below 0 worse than it."""
    total = weights.sum(axis=1)
    mean = weights @ truth / total
    spread = weights @ np.square(truth) - total * np.square(mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = 1.0 - weights @ np.square(truth - predictions) / spread
        return result


def mean_absolute_error(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of |truth - prediction|, in the target's unit."""
    result: np.ndarray = weights @ np.abs(truth - predictions) / weights.sum(axis=1)
    return result


def spearman(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank correlation; the ranks are those of the whole data in every weighting (Spearman 1904)."""
    a, b = rankdata(predictions), rankdata(truth)
    a, b = a - a.mean(), b - b.mean()
    share = weights / weights.sum(axis=1, keepdims=True)
    mean_a, mean_b = share @ a, share @ b
    covariance = share @ (a * b) - mean_a * mean_b
    variance = (share @ np.square(a) - np.square(mean_a)) * (share @ np.square(b) - np.square(mean_b))
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = covariance / np.sqrt(variance)
        return result


def plain(metric: Metric, predictions: np.ndarray, truth: np.ndarray) -> float:
    """The metric of the data as they are."""
    return float(metric(predictions, truth, np.ones((1, len(truth))))[0])


def unit_weights(unit_index: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap of whole units: how often each row appears when U units are drawn with replacement.

    Args:
        unit_index: [n] integers 0..U-1.
        draws: Number of bootstrap draws.
        seed: Decides the draws.

    Yields:
        [b, n] float64 counts, in pieces of at most 64 MiB, ``draws`` in all. Source: Efron 1979; whole clusters, Davison and Hinkley
        1997, 3.8.
    """
    num_units = int(unit_index.max()) + 1
    generator = np.random.default_rng([seed, 0xB007])
    piece = max(1, _CHUNK_BYTES // (8 * len(unit_index)))
    for start in range(0, draws, piece):
        counts = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=min(piece, draws - start))
        yield counts[:, unit_index].astype(np.float64)


def percentile_interval(value: float, draws: np.ndarray) -> Interval:
    """The 2.5 and 97.5 percentiles of the draws; draws that left a class empty are passed over."""
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.percentile(kept, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def wilson(successes: int, trials: int) -> Interval:
    """95 % score interval of a share: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Source: Wilson 1927; Brown, Cai and DasGupta 2001.
    """
    if trials == 0:
        return Interval(value=float("nan"), low=0.0, high=1.0)
    share, z2 = successes / trials, Z95 * Z95 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * share * (1 - share) + z2 * z2 / 4) / (1 + z2)
    return Interval(value=share, low=max(0.0, float(centre - half)), high=min(1.0, float(centre + half)))
