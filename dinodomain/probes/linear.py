"""Linear probe: standardised features, class-balanced logistic regression or ridge, the penalty chosen by units in the training rows.

Wide inputs are first reduced to 256 principal components of the training rows. Nothing is fitted on held-out rows.
m training rows, q test rows, C classes.
"""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from dinodomain.probes.folds import grouped_folds, index_units
from dinodomain.probes.ridge import FoldedRidge, standardise

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse penalties C of scikit-learn's logistic regression, for standardised features."""

DEFAULT_PENALTY = 1e-2  # where too few labels are there to choose
MAX_WIDTH, COMPONENTS = 512, 256
_INNER_FOLDS, _MIN_UNITS = 4, 12


def linear(train: np.ndarray, y: np.ndarray, units: np.ndarray, test: np.ndarray, *, classes: int | None, seed: int = 0) -> np.ndarray:
    """Fits on the training rows, predicts the test rows.

    Args:
        train: [m, E] features.
        y: [m] class indices, or numbers when ``classes`` is None.
        units: [m] unit ids; the penalty is chosen on units that the inner fit did not see.
        test: [q, E] features.
        classes: C, or None for regression.
        seed: Decides the inner split.

    Returns:
        [q, C] class probabilities, or [q] predictions.
    """
    scaled_train, scaled_test = standardise(np.asarray(train, np.float64), np.asarray(test, np.float64))
    train, test = _narrow(scaled_train, scaled_test, seed)
    if classes is None:
        return _regress(train, np.asarray(y, np.float64), units, test)
    return _classify(train, y, units, test, classes, seed)


def _narrow(train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the training rows, at their natural scale: re-scaling them would blow up noise directions."""
    if train.shape[1] <= MAX_WIDTH:
        return train, test
    reduce = PCA(min(COMPONENTS, *train.shape), svd_solver="randomized", random_state=seed).fit(train)
    scale = np.sqrt(reduce.explained_variance_.mean())
    return reduce.transform(train) / scale, reduce.transform(test) / scale


def _regress(train: np.ndarray, y: np.ndarray, units: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Ridge through a single fold: all training rows fit, all test rows held out."""
    stacked = np.concatenate([train, test])
    folds = np.where(np.arange(len(stacked)) < len(train), -1, 0)
    apart = np.r_[index_units(units), np.arange(len(test)) + len(train)]
    target = np.r_[y, np.zeros(len(test))][:, None]
    return FoldedRidge(stacked, apart, folds).scores(target)[len(train) :, 0]


def _classify(train: np.ndarray, y: np.ndarray, units: np.ndarray, test: np.ndarray, classes: int, seed: int) -> np.ndarray:
    seen = np.unique(y)
    out = np.zeros((len(test), classes))
    if len(seen) == 1:
        out[:, seen[0]] = 1.0
        return out
    model = _logistic(_choose(train, y, units, seed)).fit(train, y)
    out[:, seen] = model.predict_proba(test)
    return out


def _choose(train: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int) -> float:
    """The inverse penalty with the smallest log-loss on one inner fold of units, going up a warm-started path."""
    if len(np.unique(units)) < _MIN_UNITS:
        return DEFAULT_PENALTY
    inner = grouped_folds(units, y, _INNER_FOLDS, seed) == 0
    seen = np.unique(y[~inner])
    judged = inner & np.isin(y, seen)
    if len(seen) < 2 or not judged.any():
        return DEFAULT_PENALTY
    model, losses = _logistic(PENALTIES[0], warm_start=True), []
    truth = np.searchsorted(seen, y[judged])
    for penalty in PENALTIES:
        model.set_params(C=penalty).fit(train[~inner], y[~inner])
        chance = model.predict_proba(train[judged])[np.arange(len(truth)), truth]
        losses.append(-np.log(np.maximum(chance, 1e-12)).mean())
    return PENALTIES[int(np.argmin(losses))]


def _logistic(penalty: float, *, warm_start: bool = False) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=2000, tol=1e-3, warm_start=warm_start, class_weight="balanced")
