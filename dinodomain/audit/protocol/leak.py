"""How well an attribute is read from features: estimate, unit-level null and interval, by multi-target ridge through fixed folds.

Scores: AUROC for classes (mean of one-against-rest with more than two), for numbers (1 + Spearman) / 2: .5 is chance, 1 perfect for all.
Does not decide a verdict. n rows, K permutations, B bootstrap draws, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.decomposition import PCA

from dinodomain.audit.protocol.attribute import Attribute, permuted
from dinodomain.errors import UserError
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.ridge import PENALTIES, FoldedRidge
from dinodomain.probes.scores import Z95, Interval, around, macro_auroc, spearman, unit_weights

LOGIT_ABOVE = 0.8  # intervals of higher scores are made on the logit scale
MAX_WIDTH, COMPONENTS = 2048, 1024
BASELINE_PERMUTATIONS = 250  # a baseline's null only gives a width, no p value
_PIECE = 128  # permutations scored together


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to look.

    Attributes:
        folds: Folds by unit.
        permutations: K.
        joint_permutations: K where many places or regions are read as one test.
        bootstraps: B.
        seed: Decides folds, permutations and draws.
        attackers: Whether to try stronger attackers than the linear probe; they take most of the time.
    """

    folds: int = 5
    permutations: int = 1000
    joint_permutations: int = 200
    bootstraps: int = 2000
    seed: int = 0
    attackers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One attribute read from one kind of features.

    Attributes:
        value: Score of the out-of-fold predictions.
        draws: [B] the score under resampled units.
        null: [K] the score of permuted values.
        predictions: [n, C] or [n] out-of-fold predictions.
        num_minor: Units in the smaller class.
    """

    value: float
    draws: np.ndarray
    null: np.ndarray
    predictions: np.ndarray
    num_minor: int

    @property
    def p(self) -> float:
        """Chance of such an estimate where the attribute says nothing."""
        return p_value(self.value, self.null)

    @property
    def interval(self) -> Interval:
        """95 %, from the larger of the bootstrap's and the null's deviation: each alone covers too rarely (.75-.87 for .95)."""
        return interval_of(self.value, float(np.nanstd(self.draws)), float(np.std(self.null)), self.num_minor)


def p_value(value: float, null: np.ndarray) -> float:
    """(1 + permutations [K] that reach the estimate) / (1 + K). Source: Phipson and Smyth 2010."""
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def interval_of(value: float, bootstrap: float, null: float, num_minor: int) -> Interval:
    """Estimate +- 1.96 max(bootstrap SE, null SD); above .8 on the logit scale, each deviation taken there at its own place.

    A score's deviation shrinks towards 1; on the logit scale it is about the same everywhere. The null's deviation belongs to .5, where
    the scale's slope is 4. A perfect score is pulled in by half a unit of the smaller class: it does not prove that all others follow.
    """
    if value <= LOGIT_ABOVE:
        half = Z95 * max(bootstrap, null)
        return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
    inside = min(value, 1 - 0.5 / max(num_minor, 1))
    half = Z95 * max(bootstrap / (inside * (1 - inside)), null / 0.25)
    high = 1.0 if inside < value else float(expit(logit(inside) + half))
    return Interval(value=value, low=float(expit(logit(inside) - half)), high=high)


class Reader:
    """Reads any values of one attribute's shape from the same features through the same folds.

    Args:
        features: [n, E] of the attribute's rows.
        attribute: What is read.
        folds: [n].
        penalties: Of ridge, per training row, to choose from.
    """

    def __init__(self, features: np.ndarray, attribute: Attribute, folds: np.ndarray, penalties: Sequence[float] = PENALTIES) -> None:
        self._attribute, self._width = attribute, features.shape[1]
        self._ridge = FoldedRidge(narrow(features), attribute.unit_index, folds, penalties)

    def predict(self, values: np.ndarray) -> np.ndarray:
        """Out-of-fold predictions of K versions of the values: [K, n] to [K, n, C] (classes) or [K, n] (numbers)."""
        return self._predict(levels(self._attribute.kind, values), ())[0]

    def altered(self, values: np.ndarray, versions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predictions of the plain rows, then of altered versions of them [n, E] by the very same probes; shapes as in ``predict``."""
        if versions and self._width > MAX_WIDTH:
            raise UserError("features", f"are {self._width} wide", allowed=f"{MAX_WIDTH} at most, where images are altered",
                            remedy="audit with a smaller pooling of the backbone (cls)")  # fmt: skip
        return self._predict(levels(self._attribute.kind, values), versions)

    def _predict(self, found: np.ndarray, versions: Sequence[np.ndarray]) -> list[np.ndarray]:
        predicted = self._ridge.altered(self._targets(found), versions, centre=True)
        return [self._shaped(rows, len(found)) for rows in predicted]

    def _targets(self, found: np.ndarray) -> np.ndarray:
        """[n, K or K C] what ridge is fitted to, of levels [K, n]."""
        num_classes, (count, rows) = len(self._attribute.classes), found.shape
        if self._attribute.kind == "number":
            ranks: np.ndarray = found.T / rows
            return ranks
        if num_classes == 2:
            return found.T.astype(np.float64)
        hot: np.ndarray = (found[:, :, None] == np.arange(num_classes)).transpose(1, 0, 2).reshape(rows, count * num_classes)
        return hot

    def _shaped(self, found: np.ndarray, count: int) -> np.ndarray:
        num_classes = len(self._attribute.classes)
        if self._attribute.kind == "number":
            return found.T
        if num_classes == 2:
            return np.stack([-found.T, found.T], axis=2)
        return found.reshape(len(found), count, num_classes).transpose(1, 0, 2)

    def score(self, values: np.ndarray) -> np.ndarray:
        """Scores of K versions of the values: [K, n] to [K]."""
        return self._scores(values, lambda part: levels(self._attribute.kind, part))

    def score_levels(self, found: np.ndarray) -> np.ndarray:
        """The same of their levels [K, n], which readers of other features can share."""
        return self._scores(found, lambda part: part)

    def _scores(self, versions: np.ndarray, levelled: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        parts = (levelled(versions[start : start + _PIECE]) for start in range(0, len(versions), _PIECE))
        return np.concatenate([_score_levels(self._attribute.kind, self._predict(part, ())[0], part) for part in parts])


def narrow(features: np.ndarray) -> np.ndarray:
    """The leading principal components of very wide features: found without labels, so folds and nulls stay as they are."""
    if features.shape[1] <= MAX_WIDTH:
        return features
    result: np.ndarray = PCA(min(COMPONENTS, *features.shape), svd_solver="randomized", random_state=0).fit_transform(
        np.asarray(features, np.float64)
    )
    return result


def levels(kind: str, values: np.ndarray) -> np.ndarray:
    """[K, n] what of the values [K, n] is read and scored: ranks of numbers, classes as they are."""
    return mean_ranks(values) if kind == "number" else values


def score_many(kind: str, predictions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Unweighted scores of K predictions [K, n, C] or [K, n] against K values [K, n]; the rank-sum form of the AUROC."""
    return _score_levels(kind, predictions, levels(kind, values))


def _score_levels(kind: str, predictions: np.ndarray, values: np.ndarray) -> np.ndarray:
    if kind == "number":
        return _rank_correlation(predictions, values)
    num_classes = predictions.shape[2]
    columns = (1,) if num_classes == 2 else range(num_classes)
    result: np.ndarray = np.mean([_rank_auroc(predictions[:, :, column], values == column) for column in columns], axis=0)
    return result


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """[K, n] ranks 1..n along each row, ties sharing their mean: those of ``scipy.stats.rankdata``, in a third of its time without ties."""
    values = np.ascontiguousarray(values)  # values of a row that lie apart in memory sort more slowly
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, np.arange(1.0, values.shape[1] + 1)[None], axis=1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | np.isnan(ordered[:, -1])
    if tied.any():
        ranks[tied] = rankdata(values[tied], axis=1)
    return ranks


def _rank_correlation(predictions: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(1 + Spearman) / 2 per row, of predictions with values of these ranks."""
    a, b = mean_ranks(predictions), ranks
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    result: np.ndarray = 0.5 + 0.5 * (a * b).sum(axis=1) / np.maximum(norm, 1e-300)
    return result


def _rank_auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    ups = positive.sum(axis=1)
    ranks = np.einsum("kn,kn->k", positive, mean_ranks(scores))
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = (ranks - ups * (ups + 1) / 2) / (ups * (positive.shape[1] - ups))
        return result


def weighted_score(kind: str, predictions: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The score under row weights [B, n]: [B]."""
    if kind == "number":
        return 0.5 + 0.5 * spearman(predictions, values, weights)
    return macro_auroc(predictions, values, weights)


def score_found(attribute: Attribute, found: np.ndarray, weights: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """The score of one prediction, and [B] its scores under resampled units.

    Args:
        attribute: What was read.
        found: [n, C] or [n] predictions.
        weights: Pieces [b, n] of the resampled units' row weights, B in all.
    """
    draws = np.concatenate([weighted_score(attribute.kind, found, attribute.values, piece) for piece in weights])
    return float(score_many(attribute.kind, found[None], attribute.values[None])[0]), draws


def read_leaks(features: Mapping[str, np.ndarray], attribute: Attribute, effort: Effort) -> tuple[dict[str, Leak], Reader]:
    """Reads one attribute from several kinds of features, through the same folds, permutations and resampled units.

    Kinds after the first are baselines and see the first 250 permutations.

    Args:
        features: Kind to [N, width] of the whole audited set; the first kind is the audited one.
        attribute: What to read.
        effort: Folds, permutations, draws.

    Returns:
        A leak per kind, and the reader of the first kind, for planting.
    """
    folds = grouped_folds(attribute.unit_index, attribute.values, effort.folds, effort.seed)
    shuffled = permuted(attribute, effort.permutations, effort.seed)
    weights = list(unit_weights(attribute.unit_index, effort.bootstraps, effort.seed))
    leaks: dict[str, Leak] = {}
    readers = []
    for name, rows in features.items():
        reader = Reader(rows[attribute.rows], attribute, folds)
        readers.append(reader)
        leaks[name] = read_leak(reader, attribute, shuffled[: BASELINE_PERMUTATIONS if leaks else None], weights)
    return leaks, readers[0]


def read_leak(reader: Reader, attribute: Attribute, shuffled: np.ndarray, weights: Sequence[np.ndarray]) -> Leak:
    """Reads one attribute through one reader.

    Args:
        reader: Of the attribute's rows.
        attribute: What to read.
        shuffled: [K, n] permuted values.
        weights: Pieces [b, n] of the resampled units' row weights, B in all.
    """
    found = reader.predict(attribute.values[None])[0]
    value, draws = score_found(attribute, found, weights)
    return Leak(value=value, draws=draws, null=reader.score(shuffled), predictions=found, num_minor=attribute.num_minor)


def excess(ours: Leak, baseline: Leak) -> Interval:
    """Audited minus baseline, paired: the same resampled units and the same permutations on both sides."""
    value = ours.value - baseline.value
    shared = min(len(ours.null), len(baseline.null))
    null = float(np.std(ours.null[:shared] - baseline.null[:shared]))
    error = max(float(np.nanstd(ours.draws - baseline.draws)), null)
    return around(value, error)
