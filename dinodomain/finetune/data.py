"""Labels of a store, split by unit: which sources are trained on, which are scored, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.finetune.plan import FinetunePlan
from dinodomain.ingest import join_labels
from dinodomain.loader import LoaderPlan, find_tiles
from dinodomain.probes import Target, draw_labelled, grouped_folds, read_target
from dinodomain.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Labelled sources, divided by unit.

    Attributes:
        rows: [m] int64 rows of the store index.
        units: [m] unit of each.
        target: Class indices or numbers, and class names.
        train: Positions in ``rows`` that are trained on.
        test: Positions in ``rows`` that are scored.
        left_out: Reason to number of labelled sources that were left out.
    """

    rows: np.ndarray
    units: np.ndarray
    target: Target
    train: np.ndarray
    test: np.ndarray
    left_out: Mapping[str, int]


def split_labels(store: Store, plan: FinetunePlan) -> Split:
    """Joins labels to sources and divides them by unit; units of the audit holdout are left alone.

    Raises:
        UserError: Labels do not join, too few units, or a class is missing from the training units.
    """
    labels = join_labels(store, plan.labels, plan.join, plan.target)
    held = store.column("holdout").astype(bool)[labels.rows]
    drawable = np.isin(labels.rows, find_tiles(store, LoaderPlan()).rows)
    kept = ~held & drawable
    rows, values = labels.rows[kept], np.asarray(labels.values)[kept]
    units = _units(store, plan, rows, labels.columns, kept)
    target = read_target(values, plan.task, plan.target)
    folds = grouped_folds(units, target.y, max(2, round(1 / plan.test_share)), plan.seed)
    train, test = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    if plan.labels_per_class is not None:
        drawn = draw_labelled(target.y[train], units[train], plan.labels_per_class, names=target.classes, seed=(plan.seed,))
        train = train[drawn]
    _check_classes(target, train, plan)
    reasons = {"audit holdout": int(held.sum()), "too few valid pixels": int((~held & ~drawable).sum())}
    left_out = {reason: count for reason, count in reasons.items() if count}
    return Split(rows=rows, units=units, target=target, train=train, test=test, left_out=left_out)


def _units(store: Store, plan: FinetunePlan, rows: np.ndarray, columns: Mapping[str, Sequence[str]], kept: np.ndarray) -> np.ndarray:
    if plan.group is not None:
        if plan.group not in columns:
            raise UserError("group", f"{plan.labels} has no column {plan.group!r}", allowed=", ".join(columns))
        chosen: np.ndarray = np.asarray(columns[plan.group])[kept]
        return chosen
    own, sources = store.column("unit").astype(str)[rows], store.column("source_id").astype(str)[rows]
    # A source without a unit stands for itself: the split is then by source, which is all that is known.
    units: np.ndarray = np.where(own == "", sources, own)
    return units


def _check_classes(target: Target, train: np.ndarray, plan: FinetunePlan) -> None:
    missing = [name for index, name in enumerate(target.classes) if not (target.y[train] == index).any()]
    if missing:
        raise UserError(
            "target", f"no training unit has class {', '.join(map(repr, missing))}", remedy="label more units, or lower finetune.test_share"
        )
