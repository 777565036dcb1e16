"""How many labelled units an encoder saves: k-shot curves of several encoders on the same draws, and the ratio of labels at equal score.

Decides no verdict. n rows of a column, R draws, K sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.task import scored, transferred
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval

SIZES = (1, 5, 10, 50, 200)
"""Labelled units of each class."""

DRAWS = 10
MAX_TEST = 4000  # rows scored per draw
LEAST = 0.6  # a score below this is too near to chance to count labels for
_RESAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Scores of one encoder.

    Attributes:
        sizes: [K] labelled units of each class.
        scores: [R, K].
    """

    sizes: tuple[int, ...]
    scores: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[K] over draws."""
        result: np.ndarray = self.scores.mean(axis=0)
        return result

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """[K] 2.5th and 97.5th percentile over draws."""
        low, high = np.percentile(self.scores, [2.5, 97.5], axis=0)
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Labels one encoder needs over those another needs at equal score.

    Attributes:
        ratio: More than 1 where the first saves labels; its interval is over draws of labelled and tested units.
        score: The score at which both are compared.
        bound: Whether the other never reached that score, so that the ratio is a least value.
    """

    ratio: Interval
    score: float
    bound: bool


def as_classes(column: Attribute) -> Attribute:
    """A number is cut at its median; classes stay."""
    if column.kind == "classes":
        return column
    values = (column.values > np.median(column.values)).astype(np.int64)
    names = ("lower half", "upper half")
    counts = {name: len(np.unique(column.unit_index[values == place])) for place, name in enumerate(names)}
    return replace(column, kind="classes", values=values, classes=names, units_per_class=counts)


def sizes_for(column: Attribute) -> tuple[int, ...]:
    """Sizes that half of the units, those not tested, can supply."""
    units = [len(np.unique(column.unit_index[column.values == value])) for value in range(len(column.classes))]
    return tuple(size for size in SIZES if size <= min(units, default=0) // 2)


def curves(features: Mapping[str, np.ndarray], column: Attribute, seed: int, draws: int = DRAWS) -> dict[str, Curve]:
    """Scores of few-label probes: per draw half of the units are tested, labelled ones come from the other half.

    Args:
        features: Encoder to [N, E] of the whole audited set.
        column: What is read, in classes.
        seed: Decides units.
        draws: R.
    """
    sizes = sizes_for(column)
    found = {name: np.full((draws, len(sizes)), np.nan) for name in features}
    for draw in range(draws):
        test = grouped_folds(column.unit_index, column.values, 2, seed + draw) == 0
        generator = np.random.default_rng([seed, 0x5407, draw])
        tested = np.flatnonzero(test)
        tested = tested if len(tested) <= MAX_TEST else np.sort(generator.choice(tested, MAX_TEST, replace=False))
        order = {value: generator.permutation(np.unique(column.unit_index[~test & (column.values == value)])) for value in
                 range(len(column.classes))}  # fmt: skip
        for place, size in enumerate(sizes):
            train = np.flatnonzero(~test & _chosen(column, order, size))
            for name, rows in features.items():
                predictions = transferred(rows, column, train, tested)
                found[name][draw, place] = scored("classes", predictions, column.values[tested])[0]
    return {name: Curve(sizes=sizes, scores=scores) for name, scores in found.items()}


def _chosen(column: Attribute, order: Mapping[int, np.ndarray], size: int) -> np.ndarray:
    """[n] rows of the first units of each class; smaller sizes are part of larger ones, so that curves rise by labels alone."""
    out = np.zeros(len(column.rows), bool)
    for value, units in order.items():
        out |= (column.values == value) & np.isin(column.unit_index, units[:size])
    return out


def saving(ours: Curve, other: Curve, seed: int) -> Saving | None:
    """Labels the other needs over those we need, at the highest score that both reach; None where neither gets away from chance.

    Where the other alone stays near chance, both are compared at the least score that counts, with its largest number of labels as bound.
    """
    score = _level(ours.mean, other.mean)
    if score is None:
        return None
    generator = np.random.default_rng([seed, 0x5A7E])
    picks = generator.integers(0, len(ours.scores), (_RESAMPLES, len(ours.scores)))
    ratios = [_ratio(ours.sizes, ours.scores[pick].mean(axis=0), other.scores[pick].mean(axis=0), score) for pick in picks]
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = _ratio(ours.sizes, ours.mean, other.mean, score)
    return Saving(ratio=Interval(value=value, low=float(low), high=float(high)), score=score, bound=bool(other.mean.max() < score))


def _level(ours: np.ndarray, other: np.ndarray) -> float | None:
    common = float(min(ours.max(), other.max()))
    if common >= LEAST:
        return common
    return LEAST if max(ours.max(), other.max()) >= LEAST else None


def _ratio(sizes: tuple[int, ...], ours: np.ndarray, other: np.ndarray, score: float) -> float:
    return labels_needed(sizes, other, score) / labels_needed(sizes, ours, score)


def labels_needed(sizes: tuple[int, ...], scores: np.ndarray, score: float) -> float:
    """Labelled units of each class at which a rising curve reaches a score: linear in log k; the largest size where it never does."""
    rising = np.maximum.accumulate(scores)
    if rising[0] >= score:
        return float(sizes[0])
    if rising[-1] < score:
        return float(sizes[-1])
    after = int(np.argmax(rising >= score))
    share = (score - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(np.exp(np.log(sizes[after - 1]) + share * (np.log(sizes[after]) - np.log(sizes[after - 1]))))
