"""Errors by group: does a probe for the task work worse for some groups than for everybody else?

Each group is compared with all other rows, never the best with the worst: between ten groups of equal truth the largest gap averages
.12. One reference probe (ridge through folds by unit) stands for the models that will be built on the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import MISSING, Attribute, read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Reader
from dinodomain.audit.protocol.verdict import Thresholds, Verdict, holm
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Z95, Interval, auroc, unit_weights

CHECK = "subgroups"
MIN_CELL = 50  # units with and without the finding that each side of a comparison needs
LIMITS = (
    "One reference probe; a fine-tuned model may fail elsewhere.",
    "A gap can come from harder cases or poorer labels in a group as well as from the features.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One group against the rest.

    Attributes:
        group: Name of the class.
        value: AUROC within the group minus AUROC among the rest.
        error: Its bootstrap standard error, over units.
        inside: AUROC within the group.
        outside: AUROC among the rest.
        cell: Fewest units with or without the finding on either side.
    """

    group: str
    value: float
    error: float
    inside: float
    outside: float
    cell: int

    @property
    def interval(self) -> Interval:
        """95 %, normal."""
        return Interval(value=self.value, low=self.value - Z95 * self.error, high=self.value + Z95 * self.error)

    @property
    def p(self) -> float:
        """Two-sided, by the normal."""
        return float(2 * norm.sf(abs(self.value) / max(self.error, 1e-12)))


def subgroups(data: AuditSet, task: str, attributes: Sequence[str], *, effort: Effort, thresholds: Thresholds) -> tuple[Finding, ...]:
    """One finding per attribute: the group whose gap is the surest, and all others in the evidence."""
    test = self_test()
    target = read_attribute(task, data.columns[task], data.units)
    common: dict[str, Any] = {
        "check": CHECK,
        "question": "Q2",
        "self_test": test,
        "limits": LIMITS,
        "n_units": target.num_units,
        "n_images": len(target.rows),
    }
    title = f"Does a probe for {task} work worse for some groups?"
    obstacle = _obstacle(data, target, attributes, test)
    if obstacle is not None:
        verdict, code, reason, remedy = obstacle
        return (
            Finding(
                **common,
                id=CHECK,
                title=title,
                verdict=verdict,
                answer="Errors were not compared.",
                reason_code=code,
                reason=reason,
                remedy=remedy,
            ),
        )
    scores = _scores(data, target, effort)
    found = {name: _gaps(data, target, scores, name, effort) for name in attributes}
    flat = [gap for gaps in found.values() for gap in gaps if gap.cell >= MIN_CELL]
    adjusted = dict(zip(map(id, flat), holm([gap.p for gap in flat])))
    return tuple(_finding(name, task, gaps, adjusted, thresholds, {**common, "id": f"{CHECK}/{name}"}) for name, gaps in found.items())


def _obstacle(data: AuditSet, target: Attribute, attributes: Sequence[str], test: SelfTest) -> tuple[Any, str, str, str] | None:
    if test.failed:
        return "ERROR", "self_test", test.detail, ""
    if not data.units_known:
        return (
            "NOT_ASSESSABLE",
            "no_unit_key",
            "some images have no unit id",
            "give the column that names the patient or place (group=COLUMN)",
        )
    if target.kind != "classes" or len(target.classes) != 2:
        return (
            "NOT_ASSESSABLE",
            "task_kind",
            f"{target.name} does not hold exactly two classes",
            "name a task of two classes (audit.task=COLUMN)",
        )
    if not attributes:
        return "NOT_ASSESSABLE", "no_groups", "no attribute was named, so there are no groups", "name columns with audit.attributes=[...]"
    if target.num_minor < MIN_CELL:
        return (
            "NOT_ASSESSABLE",
            "n_units",
            f"{target.num_minor} units in the rarer class of {target.name}; {MIN_CELL} are the least",
            "audit more units",
        )
    return None


def _scores(data: AuditSet, target: Attribute, effort: Effort) -> np.ndarray:
    """[n] out-of-fold scores of the task's second class."""
    folds = grouped_folds(target.unit_index, target.values, effort.folds, effort.seed)
    return Reader(data.audited[target.rows], target, folds).predict(target.values[None])[0, :, 1]


def _gaps(data: AuditSet, target: Attribute, scores: np.ndarray, name: str, effort: Effort) -> list[Gap]:
    column = np.array([str(value).strip() for value in np.asarray(data.columns[name])[target.rows]])
    known = np.array([value.lower() not in MISSING for value in column])
    groups = [str(group) for group in np.unique(column[known])]
    if len(groups) > 20 or len(groups) < 2:
        return []
    weights = list(unit_weights(target.unit_index, effort.bootstraps, effort.seed))
    return [_gap(group, column == group, known & (column != group), target, scores, weights) for group in groups]


def _gap(group: str, inside: np.ndarray, outside: np.ndarray, target: Attribute, scores: np.ndarray, weights: list[np.ndarray]) -> Gap:
    cell = min(_cells(target, inside, outside))
    if cell == 0:  # one side holds one class only: nothing to rank
        return Gap(group=group, value=np.nan, error=np.nan, inside=np.nan, outside=np.nan, cell=0)
    sides = []
    for rows in (inside, outside):
        one = np.ones((1, int(rows.sum())))
        draws = np.concatenate([auroc(scores[rows], target.values[rows], piece[:, rows]) for piece in weights])
        sides.append((float(auroc(scores[rows], target.values[rows], one)[0]), draws))
    (within, draws_in), (rest, draws_out) = sides
    return Gap(group=group, value=within - rest, error=float(np.nanstd(draws_in - draws_out)), inside=within, outside=rest, cell=cell)


def _cells(target: Attribute, *sides: np.ndarray) -> Iterator[int]:
    for rows in sides:
        for value in (0, 1):
            yield len(np.unique(target.unit_index[rows & (target.values == value)]))


def _finding(name: str, task: str, gaps: list[Gap], adjusted: dict[int, float], thresholds: Thresholds, common: dict[str, Any]) -> Finding:
    common["title"] = f"Does a probe for {task} work worse for some groups of {name}?"
    usable = [gap for gap in gaps if id(gap) in adjusted]
    common["evidence"] = {"groups": [_row(gap) for gap in usable]}
    if not usable:
        reason = (
            f"no group has {MIN_CELL} units with and without {task}, inside and outside" if gaps else f"{name} does not hold 2 to 20 groups"
        )
        return Finding(
            **common,
            verdict="NOT_ASSESSABLE",
            answer="Errors were not compared.",
            reason_code="n_units",
            reason=reason,
            remedy="audit more units",
        )
    worst = min(usable, key=lambda gap: gap.interval.high)
    common |= {
        "estimate": estimate_of(worst.interval, f"auroc of {worst.group} minus auroc of the rest", "1.96 x SE of unit bootstrap"),
        "n_minor": worst.cell,
    }
    low, p = worst.interval, adjusted[id(worst)]
    scores = f"{worst.group}: {worst.inside:.2f}, all others: {worst.outside:.2f}, gap {low.value:+.2f} [{low.low:+.2f}, {low.high:+.2f}]"
    if p <= thresholds.alpha and worst.value < 0:
        verdict: Verdict = "FLAG" if low.high <= -thresholds.gap_flag else "WARN"
        action = f"Score {task} for {worst.group} apart before use, and find out whether cases, labels or features differ."
        return Finding(**common, verdict=verdict, answer=f"Yes, AUROC of {scores}.", action=action)
    if all(gap.interval.low > -thresholds.gap_flag for gap in usable) and len(usable) == len(gaps):
        return Finding(
            **common, verdict="CLEAR_WITHIN_LIMITS", answer=f"No group falls behind by {thresholds.gap_flag:.2f}; the lowest is {scores}."
        )
    reason = f"gaps of more than {thresholds.gap_flag:.2f} are not ruled out for every group"
    return Finding(
        **common,
        verdict="NOT_ASSESSABLE",
        answer=f"Undecided: {scores}.",
        reason_code="wide_interval",
        reason=reason,
        remedy="audit more units",
    )


def _row(gap: Gap) -> dict[str, Any]:
    at = gap.interval
    return {
        "group": gap.group,
        "auroc": gap.inside,
        "rest": gap.outside,
        "gap": at.value,
        "low": at.low,
        "high": at.high,
        "units": gap.cell,
    }


def self_test() -> SelfTest:
    """Plants a group whose labels are noise, and a group that differs in nothing."""
    generator = np.random.default_rng(5)
    group, truth = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    features = generator.normal(size=(400, 8)) + 1.5 * truth[:, None]
    noisy = np.where((group == 1) & (generator.random(400) < 0.4), 1 - truth, truth)
    columns = {"truth": truth, "noisy": noisy, "group": np.where(group, "b", "a")}
    names = np.array([f"u{i}" for i in range(400)])
    data = AuditSet(features={"audited": features}, units=names, content_hash=None, sources=np.arange(400), columns=columns)
    effort = Effort(bootstraps=200)
    planted, clean = (_worst(data, name, effort) for name in ("noisy", "truth"))
    return SelfTest(
        positive="pass" if planted.p <= 0.01 and planted.value < 0 else "fail", negative="pass" if clean.p > 0.01 else "fail",
        detail=f"made-up groups: planted gap p = {planted.p:.3g}, clean p = {clean.p:.2f}",
    )  # fmt: skip


def _worst(data: AuditSet, task: str, effort: Effort) -> Gap:
    target = read_attribute(task, data.columns[task], data.units)
    return min(_gaps(data, target, _scores(data, target, effort), "group", effort), key=lambda gap: gap.value)
