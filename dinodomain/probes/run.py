"""Runs probes on frozen features: pretrained beside an untrained encoder and pixels, the same folds, labels and draws for all of them.

A run that began with published weights has one more baseline, and the hardest one: those weights as they were before its first step.

``run_probe`` works on arrays; ``probe`` (in ``verb.py``) loads checkpoint, store and labels for it.
n rows, C classes, S seeds, F folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinodomain.errors import UserError
from dinodomain.probes.few_label import draw_labelled
from dinodomain.probes.folds import grouped_folds, index_units
from dinodomain.probes.knn import knn
from dinodomain.probes.linear import linear
from dinodomain.probes.report import Difference, ProbeReport, Score
from dinodomain.probes.scores import (
    Metric,
    accuracy,
    balanced_accuracy,
    macro_auroc,
    mean_absolute_error,
    percentile_interval,
    plain,
    r_squared,
    spearman,
    unit_weights,
)

Kind = Literal["knn", "linear"]
Task = Literal["auto", "classify", "regress"]

CLASSIFY: Mapping[str, Metric] = {"balanced_accuracy": balanced_accuracy, "accuracy": accuracy, "auroc": macro_auroc}
REGRESS: Mapping[str, Metric] = {"r2": r_squared, "mae": mean_absolute_error, "spearman": spearman}
REFERENCE = "pretrained"
BASELINES = ("random_init", "pixels")
WARM_START = "warm_start"
"""Features of the backbone that the run began with; there only where it began with weights."""
_MAX_CLASSES = 20  # more distinct numbers than this are a quantity, not classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target ready to be fitted.

    Attributes:
        y: [n] class indices or floats.
        classes: Class names; empty for regression.
    """

    y: np.ndarray
    classes: tuple[str, ...]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics of this task, headline first."""
        return CLASSIFY if self.classes else REGRESS


def read_target(values: Sequence[object] | np.ndarray, task: Task, name: str = "target") -> Target:
    """Reads a column as classes or numbers; ``auto`` takes numbers with more than 20 distinct values as a quantity.

    Raises:
        UserError: One class only, or a number is wanted and a value is none.
    """
    text = np.array([str(value) for value in values])
    numbers = _as_numbers(text)
    distinct = np.unique(text)
    if task == "regress" and numbers is None:
        raise UserError(name, f"holds values that are not finite numbers, e.g. {_first_text(text)!r}", allowed="numbers for task=regress")
    if len(distinct) < 2:
        problem = f"has one value only ({str(distinct[0])!r})" if len(distinct) else "has no values"
        raise UserError(name, problem, allowed="two or more classes")
    if numbers is not None and (task == "regress" or (task == "auto" and len(distinct) > _MAX_CLASSES)):
        return Target(y=numbers, classes=())
    return Target(y=np.searchsorted(distinct, text), classes=tuple(distinct.tolist()))


def _as_numbers(text: np.ndarray) -> np.ndarray | None:
    try:
        numbers = text.astype(np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _first_text(text: np.ndarray) -> str:
    return next((str(item) for item in text if _as_numbers(np.array([item])) is None), "")


def run_probe(
    features: Mapping[str, np.ndarray],
    values: Sequence[object] | np.ndarray,
    units: np.ndarray,
    *,
    target: str = "target",
    kinds: Sequence[Kind] = ("knn", "linear"),
    task: Task = "auto",
    labels_per_class: int | None = None,
    num_folds: int = 5,
    seeds: Sequence[int] = (0,),
    bootstraps: int = 1000,
    left_out: Mapping[str, int] | None = None,
) -> ProbeReport:
    """Scores probes by cross-validation over units.

    Args:
        features: ``pretrained``, ``random_init`` and ``pixels``, each [n, width]; all three, because a score alone says nothing. Where
            there is ``warm_start``, it is a baseline like the others.
        values: n values of the target.
        units: [n] unit ids.
        target: Name of the column.
        kinds: Probes to run.
        task: Classes or numbers.
        labels_per_class: Fit on this many labels per class, drawn from the training folds.
        num_folds: Folds by unit.
        seeds: Repeats with other folds and draws.
        bootstraps: Resamples of units for the intervals.
        left_out: Reason to rows already left out, passed on to the report.

    Returns:
        Scores with intervals and paired differences.

    Raises:
        UserError: Baselines missing, lengths unequal, too few units or labels.
    """
    _check(features, len(values), units, labels_per_class)
    what = read_target(values, task, target)
    if labels_per_class is not None and not what.classes:
        raise UserError("labels_per_class", "set for a target of numbers", allowed="classes only")
    folds = [grouped_folds(units, what.y, num_folds, seed) for seed in seeds]
    predictions = {
        (name, kind): [_predict(rows, what, units, fold_of, kind, labels_per_class, seed) for fold_of, seed in zip(folds, seeds)]
        for kind in kinds
        for name, rows in _finite(features).items()
    }
    draws = _bootstrap(predictions, what, units, bootstraps)
    return ProbeReport(
        target=target,
        task="classify" if what.classes else "regress",
        headline=next(iter(what.metrics)),
        classes={name: int((what.y == index).sum()) for index, name in enumerate(what.classes)},
        num_images=len(what.y),
        num_units=len(np.unique(units)),
        num_folds=num_folds,
        labels_per_class=labels_per_class,
        seeds=tuple(seeds),
        left_out=dict(left_out or {}),
        scores=tuple(_score(key, predictions[key], what, draws[key], folds) for key in predictions),
        differences=_differences(predictions, what, draws, kinds),
        notes=("Intervals resample units with the folds kept; they do not cover another choice of folds or labels.",),
    )


def _check(features: Mapping[str, np.ndarray], num_rows: int, units: np.ndarray, labels_per_class: int | None) -> None:
    missing = [name for name in (REFERENCE, *BASELINES) if name not in features]
    if missing:
        raise UserError("features", f"without {', '.join(missing)}", allowed="pretrained, random_init and pixels together")
    lengths = {**{name: len(rows) for name, rows in features.items()}, "units": len(units)}
    wrong = {name: length for name, length in lengths.items() if length != num_rows}
    if wrong:
        raise UserError("features", f"rows differ from the {num_rows} labels: {wrong}", allowed="one row per label")
    if labels_per_class is not None and labels_per_class < 1:
        raise UserError("labels_per_class", str(labels_per_class), allowed="1 or more")


def _finite(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {name: np.asarray(rows, np.float64) for name, rows in features.items()}
    for name, rows in out.items():
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            raise UserError(f"features.{name}", f"{bad} rows hold NaN or infinity", remedy="embed again with fp32, or leave the rows out")
    return out


def _predict(
    rows: np.ndarray, what: Target, units: np.ndarray, folds: np.ndarray, kind: Kind, labels_per_class: int | None, seed: int
) -> np.ndarray:
    """Out-of-fold predictions of one kind of features: [n, C] or [n]."""
    classes = len(what.classes) or None
    out = np.zeros((len(rows), classes) if classes else len(rows))
    for fold in np.unique(folds):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if labels_per_class is not None:
            drawn = draw_labelled(what.y[train], units[train], labels_per_class, names=what.classes, seed=(seed, int(fold)))
            train = train[drawn]
        if kind == "knn":
            out[test] = knn(rows[train], what.y[train], rows[test], classes=classes)
        else:
            out[test] = linear(rows[train], what.y[train], units[train], rows[test], classes=classes, seed=seed)
    return out


Key = tuple[str, Kind]


def _bootstrap(
    predictions: Mapping[Key, list[np.ndarray]], what: Target, units: np.ndarray, bootstraps: int
) -> dict[Key, dict[str, np.ndarray]]:
    """Draws per features, probe and metric; the same resampled units for all, so that differences are paired."""
    pieces: dict[Key, dict[str, list[np.ndarray]]] = {key: {name: [] for name in what.metrics} for key in predictions}
    for weights in unit_weights(index_units(units), bootstraps, seed=0):
        for key, of_seeds in predictions.items():
            for name, metric in what.metrics.items():
                pieces[key][name].append(np.mean([metric(found, what.y, weights) for found in of_seeds], axis=0))
    return {key: {name: np.concatenate(parts) for name, parts in named.items()} for key, named in pieces.items()}


def _value(metric: Metric, of_seeds: list[np.ndarray], y: np.ndarray) -> float:
    return float(np.mean([plain(metric, found, y) for found in of_seeds]))


def _score(key: Key, of_seeds: list[np.ndarray], what: Target, draws: Mapping[str, np.ndarray], folds: list[np.ndarray]) -> Score:
    metrics = {name: percentile_interval(_value(metric, of_seeds, what.y), draws[name]) for name, metric in what.metrics.items()}
    headline = next(iter(what.metrics.values()))
    each = [[plain(headline, found[of == fold], what.y[of == fold]) for fold in np.unique(of)] for found, of in zip(of_seeds, folds)]
    per_fold = tuple(float(value) if np.isfinite(value) else None for value in np.mean(each, axis=0))
    return Score(features=key[0], probe=key[1], metrics=metrics, per_fold=per_fold)


def _differences(
    predictions: Mapping[Key, list[np.ndarray]], what: Target, draws: Mapping[Key, Mapping[str, np.ndarray]], kinds: Sequence[Kind]
) -> tuple[Difference, ...]:
    name, metric = next(iter(what.metrics.items()))
    found = []
    for kind in kinds:
        ours = (REFERENCE, kind)
        for baseline in (name for name in (*BASELINES, WARM_START) if (name, kind) in predictions):
            theirs: Key = (baseline, kind)
            value = _value(metric, predictions[ours], what.y) - _value(metric, predictions[theirs], what.y)
            interval = percentile_interval(value, draws[ours][name] - draws[theirs][name])
            found.append(Difference(probe=kind, baseline=baseline, interval=interval))
    return tuple(found)
