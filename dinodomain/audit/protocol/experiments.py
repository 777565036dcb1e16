"""Both experiments on whether a task rests on an attribute: take it out of the features, and offer it as a shortcut. Judges nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import linregress

from dinodomain.audit.protocol.attribute import Attribute, read_attribute, within
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Leak, Reader, read_leaks
from dinodomain.audit.protocol.reliance import Closing, closings, erase, left_over, smallest_cells, task_change
from dinodomain.audit.protocol.shift import Mixed, mix_curve
from dinodomain.audit.trail.groups import MAX_GROUPS, grouped, text_of
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Z95, Interval, unit_weights

MIN_CELL = 50  # units with and without the finding that each side of a gap needs
MIN_LEVELS = 5  # encoding levels for a slope
_PERMUTATIONS = 199  # for the width of the encoding's interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """Both experiments on one attribute.

    Attributes:
        encoding: How well the attribute is read before erasure.
        left: How well after it, by units that had no part in it.
        auroc: Of the task before and after erasure.
        change: After minus before.
        gaps: Of groups with enough units.
        untested: Groups with too few.
        mixed: Task scores by association in training; None where a cell is too small.
        slope: Of the gap over the encoding, across fine-tuned versions, or why there is none.
    """

    encoding: Leak
    left: Interval
    auroc: tuple[float, float]
    change: Interval
    gaps: list[Closing]
    untested: tuple[str, ...]
    mixed: Mixed | None
    slope: dict[str, Any]

    @property
    def injected_error(self) -> float:
        """Standard error of the drop by injection."""
        assert self.mixed is not None, "asked only where it was mixed"
        return (self.mixed.drop.high - self.mixed.drop.value) / Z95


def joint(data: AuditSet, target: Attribute, name: str) -> tuple[Attribute, Attribute] | None:
    """Task and attribute on the rows that have both; an attribute that is a number is cut into quarters."""
    column = grouped(text_of(np.asarray(data.columns[name])[target.rows]))
    if not 2 <= len(np.unique(column[column != ""])) <= MAX_GROUPS:
        return None
    keep = np.flatnonzero(column != "")
    groups = read_attribute(name, column[keep], target.unit_index[keep])
    if groups.kind != "classes" or len(groups.classes) < 2:
        return None
    task = within(target, keep[groups.rows])
    return task, replace(groups, rows=task.rows, unit_index=task.unit_index)


def run_both(data: AuditSet, task: Attribute, groups: Attribute, effort: Effort) -> Tested:
    """Runs both experiments.

    Args:
        data: Features.
        task: Two classes.
        groups: The attribute on the same rows.
        effort: Folds, draws, seed.
    """
    folds = grouped_folds(task.unit_index, task.values * len(groups.classes) + groups.values, effort.folds, effort.seed)
    weights = list(unit_weights(task.unit_index, effort.bootstraps, effort.seed))
    features = data.audited[task.rows]
    found = erase(features, task, groups, folds, effort.seed)
    short = replace(effort, permutations=min(_PERMUTATIONS, effort.permutations))
    encoding = read_leaks({"audited": data.audited}, groups, short)[0]["audited"]
    before, after, change = task_change(found, task, folds, weights)
    small = tuple(name for name, cell in smallest_cells(task, groups).items() if cell < MIN_CELL)
    return Tested(
        encoding=encoding, left=left_over(found, groups, float(np.std(encoding.null)), weights), auroc=(before, after), change=change,
        gaps=closings(found, task, groups, folds, weights, MIN_CELL), untested=small, slope=slope_of(data, task, groups, folds),
        mixed=mix_curve(data.audited, task, np.array(groups.classes)[groups.values], effort),
    )  # fmt: skip


def slope_of(data: AuditSet, task: Attribute, groups: Attribute, folds: np.ndarray) -> dict[str, Any]:
    """Gap of the largest group over encoding, across fine-tuned versions of the features (ShorT, Brown et al. 2023)."""
    kinds = sorted(name for name in data.features if name.startswith("finetuned"))
    if len(kinds) < MIN_LEVELS:
        return {"tested": False, "why": f"{len(kinds)} of {MIN_LEVELS} fine-tuned versions were given"}
    largest = int(np.bincount(groups.values).argmax())
    points = []
    for kind in kinds:
        rows = data.features[kind][task.rows]
        encoding = float(Reader(rows, groups, folds).score(groups.values[None])[0])
        scores = Reader(rows, task, folds).predict(task.values[None])[0, :, 1]
        inside = groups.values == largest
        gap = np.mean([scores[inside & (task.values == v)].mean() - scores[~inside & (task.values == v)].mean() for v in (0, 1)])
        points.append((encoding, abs(float(gap)) / float(scores.std())))
    line = linregress(*np.array(points).T)
    return {"tested": True, "points": points, "slope": float(line.slope), "error": float(line.stderr), "p": float(line.pvalue)}
