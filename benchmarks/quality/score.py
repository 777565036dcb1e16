"""Features, labels and units in; scores with intervals out: the package's own probes, the same for everybody. n rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from dinodomain.probes.folds import grouped_folds, index_units
from dinodomain.probes.knn import knn
from dinodomain.probes.linear import linear
from dinodomain.probes.run import CLASSIFY
from dinodomain.probes.scores import percentile_interval, plain, unit_weights

BOOTSTRAPS = 500
MAX_FOLDS = 5


def scores(
    features: np.ndarray, y: np.ndarray, units: np.ndarray, metrics: Sequence[tuple[str, str]], seed: int
) -> dict[str, dict[str, float]]:
    """Out-of-fold scores; folds by unit, of this seed.

    Args:
        features: [n, E].
        y: [n] class indices.
        units: [n] what folds keep together and the bootstrap draws.
        metrics: Probe and metric.
        seed: Of the folds.

    Returns:
        ``"knn accuracy"`` to ``value``, ``low`` and ``high`` (bootstrap of units).
    """
    classes, folds = int(y.max()) + 1, grouped_folds(units, y, min(MAX_FOLDS, len(np.unique(units))), seed)
    rows, found = np.asarray(features, np.float64), {}
    predictions = {probe: _predict(probe, rows, y, units, folds, classes, seed) for probe in dict.fromkeys(probe for probe, _ in metrics)}
    for probe, name in metrics:
        metric, predicted = CLASSIFY[name], predictions[probe]
        draws = np.concatenate([metric(predicted, y, weights) for weights in unit_weights(index_units(units), BOOTSTRAPS, seed=0)])
        interval = percentile_interval(plain(metric, predicted, y), draws)
        found[f"{probe} {name}"] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def _predict(probe: str, rows: np.ndarray, y: np.ndarray, units: np.ndarray, folds: np.ndarray, classes: int, seed: int) -> np.ndarray:
    out = np.zeros((len(rows), classes))
    for fold in np.unique(folds):
        test, train = folds == fold, folds != fold
        if probe == "knn":
            out[test] = knn(rows[train], y[train], rows[test], classes=classes)
        else:
            out[test] = linear(rows[train], y[train], units[train], rows[test], classes=classes, seed=seed)
    return out


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval of the mean over seeds (Student's t); no interval for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}
