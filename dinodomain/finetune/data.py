"""Labels of a store, split by unit: which sources are trained on, which are scored, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.finetune.plan import FinetunePlan
from dinodomain.ingest import join_labels
from dinodomain.loader import LoaderPlan, find_tiles
from dinodomain.probes import Target, draw_labelled, grouped_folds, read_target
from dinodomain.probes.frozen import group_column, linked_units
from dinodomain.store import Store
from dinodomain.types import Labels


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
    labels = join_labels(store, plan.labels, plan.join, plan.target, secret=plan.secret)
    held = store.column("holdout").astype(bool)[labels.rows]
    tiles = find_tiles(store, LoaderPlan())
    kept = ~held & np.isin(labels.rows, tiles.rows)
    if not kept.any():
        problem = f"{len(kept)} sources have a label, none of them lies outside the audit holdout and has enough valid pixels"
        raise UserError("labels", problem, remedy="label more sources")
    rows, target = labels.rows[kept], read_target(np.asarray(labels.values)[kept], plan.task, plan.target)
    units = linked_units(tiles.rows, tiles.units, rows) if plan.group is None else _grouped(labels, plan)[kept]
    train, test = _divide(units, target, plan)
    reasons = {"audit holdout": int(held.sum()), "too few valid pixels": int((~held & ~kept).sum())}
    left_out = {reason: count for reason, count in reasons.items() if count}
    return Split(rows=rows, units=units, target=target, train=train, test=test, left_out=left_out)


def _grouped(labels: Labels, plan: FinetunePlan) -> np.ndarray:
    assert plan.group is not None, "asked for by the caller"
    return np.asarray(group_column(labels, plan.group, plan.labels))


def _divide(units: np.ndarray, target: Target, plan: FinetunePlan) -> tuple[np.ndarray, np.ndarray]:
    """Positions that are trained on and scored."""
    num_folds, num_units = max(2, round(1 / plan.test_share)), len(np.unique(units))
    if num_units < num_folds:
        problem = f"{len(units)} labelled sources are of {num_units} units (a patient, or places that share a ground cell)"
        allowed = f"{num_folds} units or more for finetune.test_share={plan.test_share:g}"
        raise UserError("labels", problem, allowed=allowed, remedy="label more units")
    folds = grouped_folds(units, target.y, num_folds, plan.seed)
    train, test = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    _check_classes(target, train, plan)
    if plan.labels_per_class is not None:
        train = train[draw_labelled(target.y[train], units[train], plan.labels_per_class, names=target.classes, seed=(plan.seed,))]
    return train, test


def _check_classes(target: Target, train: np.ndarray, plan: FinetunePlan) -> None:
    counts = {name: int((target.y[train] == index).sum()) for index, name in enumerate(target.classes)}
    missing = [name for name, count in counts.items() if count == 0]
    if missing:
        problem = f"no training unit has class {', '.join(map(repr, missing))}"
        raise UserError("target", problem, remedy="label more units, or lower finetune.test_share")
    wanted, rarest = plan.labels_per_class, min(counts, key=lambda name: counts[name], default="")
    if wanted is not None and counts[rarest] < wanted:
        problem = f"{wanted}, but the training units have {counts[rarest]} sources of class {rarest!r}"
        raise UserError("finetune.labels_per_class", problem, allowed=f"1 to {counts[rarest]}")
