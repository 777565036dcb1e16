"""Errors by group: does a probe for the task work worse for some groups than for everybody else?

Each group is compared with all other rows, never the best with the worst: between ten groups of equal truth the largest gap averages
.12. One reference probe (ridge through folds by unit) stands for the models that will be built on the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from dinodomain.audit.evidence import ATTRIBUTES, TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Forest
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import MISSING, Attribute, read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Reader
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Z95, Interval, auroc, unit_weights

ABOUT = About(
    name="subgroups", code="SUBG", question="Q2", core=True, title="Does a probe for the task work worse for some groups?",
    limits=(
        "One reference probe; a fine-tuned model may fail elsewhere.",
        "A gap can come from harder cases or poorer labels in a group as well as from the features.",
    ),
    maps_to={"EU AI Act": ("Art. 10(2)(f)", "Annex IV 3"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",)},
)  # fmt: skip
MIN_CELL = 50  # units with and without the finding that each side of a comparison needs
_SILENT = "Errors were not compared."


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


def run(evidence: Evidence) -> list[Result]:
    """One finding per attribute: the group whose gap is the surest, and all others in the table."""
    data, task = evidence.probed, evidence.asked.task
    assert task is not None, "needed"
    target = read_attribute(task, data.columns[task], data.label_units)
    told: dict[str, Any] = {"n_units": target.num_units, "n_images": len(target.rows)}
    if target.kind != "classes" or len(target.classes) != 2:
        reason = f"{task} does not hold exactly two classes"
        return [ABOUT.unknown("task_kind", reason, "name a task of two classes (audit.task=COLUMN)", **told, answer=_SILENT)]
    if target.num_minor < MIN_CELL:
        reason = f"{target.num_minor} units in the rarer class of {task}; {MIN_CELL} are the least"
        return [ABOUT.unknown("n_units", reason, "audit more units", **told, answer=_SILENT)]
    scores = _scores(data, target, evidence.effort)
    return [_result(evidence, target, scores, name, told) for name in evidence.asked.attributes]


def _result(evidence: Evidence, target: Attribute, scores: np.ndarray, name: str, told: dict[str, Any]) -> Result:
    gaps = _gaps(evidence.probed, target, scores, name, evidence.effort)
    usable = [gap for gap in gaps if gap.cell >= MIN_CELL]
    told = {**told, "title": f"Does a probe for {target.name} work worse for some groups of {name}?"}
    if not usable:
        need = f"no group has {MIN_CELL} units with and without {target.name}, inside and outside"
        reason = need if gaps else f"{name} does not hold 2 to 20 groups"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told, answer=_SILENT)
    judge = lambda adjusted, _: _finding(name, target.name, gaps, usable, adjusted, evidence.lines, told)  # noqa: E731
    return Draft(p=tuple(gap.p for gap in usable), judge=judge)


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


def _finding(
    name: str, task: str, gaps: list[Gap], usable: list[Gap], adjusted: tuple[float, ...], lines: Thresholds, told: dict[str, Any]
) -> Finding:  # fmt: skip
    worst = min(usable, key=lambda gap: gap.interval.high)
    p, low = adjusted[usable.index(worst)], worst.interval
    metric = f"auroc of {worst.group} minus auroc of the rest"
    told = {
        **told, "estimate": estimate_of(low, metric, "1.96 x SE of unit bootstrap"), "n_minor": worst.cell,
        "plots": (_forest(name, usable, lines),),
        "evidence": {"groups": [_row(gap, value) for gap, value in zip(usable, adjusted)]},
    }  # fmt: skip
    scores = f"{worst.group}: {worst.inside:.2f}, all others: {worst.outside:.2f}, gap {low.value:+.2f} [{low.low:+.2f}, {low.high:+.2f}]"
    if p <= lines.alpha and worst.value < 0:
        verdict: Verdict = "FLAG" if low.high <= -lines.gap_flag else "WARN"
        action = f"Score {task} for {worst.group} apart before use, and find out whether cases, labels or features differ."
        return ABOUT.finding(name, **told, verdict=verdict, answer=f"Yes, AUROC of {scores}.", action=action)
    if all(gap.interval.low > -lines.gap_flag for gap in usable) and len(usable) == len(gaps):
        answer = f"No group falls behind by {lines.gap_flag:.2f}; the lowest is {scores}."
        return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)
    reason = f"gaps of more than {lines.gap_flag:.2f} are not ruled out for every group"
    return ABOUT.unknown("wide_interval", reason, "audit more units", name, **told, answer=f"Undecided: {scores}.")


def _forest(name: str, gaps: list[Gap], lines: Thresholds) -> Forest:
    rows = [Bar(label=gap.group, value=gap.value, low=gap.interval.low, high=gap.interval.high, n_units=gap.cell) for gap in gaps]
    marks = {"flag": -lines.gap_flag, "equal": 0.0}
    return Forest(title=f"AUROC by {name}", axis="AUROC of the group minus AUROC of the rest", rows=tuple(rows), lines=marks)


def _row(gap: Gap, p_adjusted: float) -> dict[str, Any]:
    at = gap.interval
    return {
        "group": gap.group, "auroc": gap.inside, "rest": gap.outside, "gap": at.value, "low": at.low, "high": at.high,
        "units": gap.cell, "p_adjusted": p_adjusted,
    }  # fmt: skip


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


def _groups_of(evidence: Evidence) -> int:
    """Groups that may be compared, 20 of an attribute at most."""
    found = (len({str(value).strip().lower() for value in evidence.probed.columns[name]} - MISSING) for name in evidence.asked.attributes)
    return sum(count for count in found if count <= 20)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TASK, ATTRIBUTES, UNITS), count=_groups_of)
