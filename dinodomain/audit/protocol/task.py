"""The reference probe of a task, which stands for the models that will be built on the features, and what checks of domains share.

Decides no verdict. N rows audited, n rows of a target, U units, B draws, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t as student
from scipy.stats.contingency import association

from dinodomain.audit.finding import Baseline
from dinodomain.audit.protocol.attribute import MIN_CLASS_UNITS, Attribute, read_attribute, within
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Leak, Reader, excess, weighted_score
from dinodomain.audit.trail.groups import text_of
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval, unit_weights

OTHERS = "others"  # small domains together


def read_column(data: AuditSet, name: str) -> Attribute:
    """A column as a probe sees it; sources share its value."""
    return read_attribute(name, data.columns[name], data.label_units)


def only_classes(attribute: Attribute, codes: Sequence[int]) -> Attribute:
    """The attribute on the rows of some of its classes, numbered anew in the given order."""
    part = within(attribute, np.isin(attribute.values, codes))
    values = (part.values[:, None] == np.asarray(codes)).argmax(axis=1)
    return replace(part, values=values, classes=tuple(attribute.classes[code] for code in codes))


def out_of_fold(data: AuditSet, target: Attribute, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n, C] or [n] of every row by a probe that never saw its unit, and the folds [n]."""
    folds = grouped_folds(target.unit_index, target.values, effort.folds, effort.seed)
    return Reader(data.audited[target.rows], target, folds).predict(target.values[None])[0], folds


def transferred(features: np.ndarray, target: Attribute, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of the test rows by a probe fitted on the training rows; rows of a unit may lie on one side only.

    Args:
        features: [N, E].
        target: n rows of them.
        train: Positions among the n rows.
        test: The same.

    Returns:
        [len(test), C] or [len(test)], mean 0.
    """
    part = within(target, np.concatenate([train, test]))
    folds = np.repeat([-1, 0], [len(train), len(test)])
    found: np.ndarray = Reader(features[part.rows], part, folds).predict(part.values[None])[0][len(train) :]
    return found


def scored(kind: str, predictions: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The score [B] under weights [B, n], or [1] of the rows as they are; .5 is chance."""
    weights = np.ones((1, len(values))) if weights is None else weights
    return weighted_score(kind, predictions, values, weights)


def decided(scores: np.ndarray, values: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Class of each row: the highest score; of two classes, score above a threshold fixed on the other folds (Youden 1950).

    Args:
        scores: [n, C] out of fold.
        values: [n] class indices.
        folds: [n].
    """
    if scores.shape[1] != 2:
        result: np.ndarray = scores.argmax(axis=1)
        return result
    out = np.zeros(len(values), np.int64)
    for fold in np.unique(folds):
        others = folds != fold
        out[~others] = scores[~others, 1] >= cut_point(scores[others, 1], values[others])
    return out


def cut_point(scores: np.ndarray, positive: np.ndarray) -> float:
    """The score from which on rows are called positive so that sensitivity + specificity is largest. Source: Youden 1950."""
    order = np.argsort(-scores, kind="stable")
    truth = positive[order] != 0
    gain = np.cumsum(truth) / max(1, truth.sum()) - np.cumsum(~truth) / max(1, (~truth).sum())
    gain[:-1][np.diff(scores[order]) == 0] = -np.inf  # equal scores fall on one side
    return float(scores[order][int(gain.argmax())])


def pooled(column: np.ndarray, units: np.ndarray) -> np.ndarray:
    """[N] domain of each row; where only one domain has 30 units, the small ones together are another, ``others``."""
    words = text_of(column)
    sizes = {str(one): len(np.unique(units[words == one])) for one in np.unique(words[words != ""])}
    small = [one for one, count in sizes.items() if count < MIN_CLASS_UNITS]
    if len(sizes) - len(small) != 1 or len(small) < 2:
        return words
    return np.where(np.isin(words, small), OTHERS, words)


def units_in(unit_index: np.ndarray, rows: np.ndarray) -> int:
    """How many units have one of the rows [n] bool."""
    return len(np.unique(unit_index[rows]))


def by_unit(unit_index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of values [n, m] over the rows of each unit: [U, m]."""
    return np.stack([np.bincount(unit_index, column) for column in values.T], axis=1)


def unit_counts(num_units: int, draws: int, seed: int) -> np.ndarray:
    """How often each unit is drawn, [B, U]; row weights are these at each row's unit."""
    return np.concatenate(list(unit_weights(np.arange(num_units), draws, seed)))


def cramers_v(first: np.ndarray, second: np.ndarray, unit_index: np.ndarray) -> float:
    """Association of two columns counted in units, 0 to 1; NaN where either is constant. Source: Cramer 1946."""
    table = cross_table(first, second, unit_index)[2]
    return float("nan") if min(table.shape) < 2 else float(association(table, method="cramer"))


def cross_table(first: np.ndarray, second: np.ndarray, unit_index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of both, and the units [V1, V2] in which they occur together."""
    rows, columns = np.unique(first), np.unique(second)
    codes = np.stack([np.searchsorted(rows, first), np.searchsorted(columns, second), unit_index], axis=1)
    pairs = np.unique(codes, axis=0)
    table = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
    return rows, columns, table


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of independent values with the 95 % interval of Student's t (1908)."""
    value = float(np.mean(values))
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(value=value, low=value - half, high=value + half)


def baselines(leaks: Mapping[str, Leak]) -> tuple[Baseline, ...]:
    """Pixels and untrained encoder beside the audited one, where there are any."""
    out = []
    for name in ("pixels", "untrained"):
        if name in leaks:
            at, over = leaks[name].interval, excess(leaks["audited"], leaks[name])
            out.append(
                Baseline(name=name, value=at.value, low=at.low, high=at.high, excess=over.value, excess_low=over.low, excess_high=over.high)
            )  # fmt: skip
    return tuple(out)
