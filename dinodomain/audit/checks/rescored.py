"""What copies are worth: the task's score on the test split with and without the images that have a copy in another split.

Part of the duplicate check. n test rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinodomain.audit.evidence import About, Evidence
from dinodomain.audit.finding import Finding, estimate_of
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import MIN_UNITS
from dinodomain.probes.folds import index_units
from dinodomain.probes.ridge import FoldedRidge
from dinodomain.probes.scores import Interval, macro_auroc, percentile_interval, unit_weights

TEST = ("test", "holdout", "val", "valid", "validation")
"""Splits that scores are told of, the first that is there."""


def test_split(splits: np.ndarray) -> str | None:
    """The split that scores are told of; None where none is named so."""
    return next((name for name in TEST if name in splits), None)


def source_splits(data: AuditSet, count: int) -> np.ndarray | None:
    """[S] split of each source of the store as text, "" for those without an audited tile; None without splits."""
    splits = data.splits()
    if splits is None:
        return None
    out = np.full(count, "", dtype=splits.dtype)
    out[data.sources] = splits
    return out


def score_change(about: About, evidence: Evidence, pairs: np.ndarray) -> Finding:
    """Trains the reference probe on all other splits and scores the test split twice.

    Args:
        about: The duplicate check.
        evidence: With a task and splits.
        pairs: [P, 2] rows of copies across splits.
    """
    data, task = evidence.data, evidence.asked.task
    splits = data.splits()
    assert task is not None, "asked by the caller"
    assert splits is not None, "asked by the caller"
    told: dict[str, Any] = {"title": f"How much do copies add to the score of {task} on the test split?"}
    name = test_split(splits)
    target = read_column(data, task)
    if name is None or target.kind != "classes" or len(target.classes) < 2:
        reason = f"{task} has no classes, or no split is called {', '.join(TEST)}"
        return about.unknown("no_test_split", reason, "name splits train and test", "score", **told)
    rows = target.rows
    tested, copied = splits[rows] == name, np.isin(rows, np.unique(pairs))
    clean = tested & ~copied
    if min(_classes(target.values, mask) for mask in (~tested, clean)) < len(target.classes):
        return about.unknown("n_units", "without copies a class is empty", "audit more units", "score", **told)
    folds = np.where(tested, 0, -1)
    truth = np.eye(len(target.classes))[target.values]
    scores = FoldedRidge(data.audited[rows], target.unit_index, folds).scores(truth)
    change, both = _change(scores, target.values, tested, clean, target.unit_index, evidence.effort.bootstraps, evidence.effort.seed)
    told |= {
        "n_units": len(np.unique(target.unit_index[tested])), "n_images": int(tested.sum()),
        "estimate": estimate_of(change, "macro auroc with copies minus without", "percentile bootstrap over units"),
        "counts": {"test images": int(tested.sum()), "without copies": int(clean.sum())},
    }  # fmt: skip
    return _told(about, told, change, both)


def _classes(values: np.ndarray, mask: np.ndarray) -> int:
    return len(np.unique(values[mask]))


def _change(
    scores: np.ndarray, values: np.ndarray, tested: np.ndarray, clean: np.ndarray, units: np.ndarray, draws: int, seed: int
) -> tuple[Interval, tuple[float, float]]:  # fmt: skip
    at = np.flatnonzero(tested)
    found, truth, kept = scores[at], values[at], clean[at].astype(float)
    one = np.ones((1, len(at)))
    both = (float(macro_auroc(found, truth, one)[0]), float(macro_auroc(found, truth, one * kept)[0]))
    pieces = unit_weights(index_units(units[at]), draws, seed)
    changes = np.concatenate([macro_auroc(found, truth, piece) - macro_auroc(found, truth, piece * kept) for piece in pieces])
    return percentile_interval(both[0] - both[1], changes), both


def _told(about: About, told: dict[str, Any], change: Interval, both: tuple[float, float]) -> Finding:
    answer = (
        f"Macro AUROC is {both[0]:.3f} with copies and {both[1]:.3f} without: {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]."
    )
    if told["n_units"] < MIN_UNITS:
        return about.unknown("n_units", f"{told['n_units']} test units", "audit more units", "score", **told, answer=answer)
    if change.low > 0:
        action = "Report the score without copies."
        return about.finding("score", **told, verdict="WARN", answer=answer, action=action, repeat="Without copies both scores are one.")
    if change.high < 0.01:
        return about.finding("score", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)
    return about.unknown(
        "wide_interval", "the change may lie on either side of nothing", "audit more units", "score", **told, answer=answer
    )
