"""Errors by group: does a probe for the task work worse for some groups than for everybody else?

Ranking (AUROC), errors at one threshold for all, and calibration, per group and per pair of attributes (``protocol/groups.py``). One
reference probe (ridge through folds by unit) stands for the models that will be built on the features. A gap is told in people too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ATTRIBUTES, TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Cell, Curves, Forest, Plot, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import Attribute, printed, read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.groups import METRICS, Gap, Scored, cells, compare, reliability, score_task
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.audit.trail.groups import MAX_GROUPS, grouped

ABOUT = About(
    name="subgroups", code="SUBG", question="Q2", core=True, title="Does a probe for the task work worse for some groups?",
    limits=(
        "One reference probe; a fine-tuned model may fail elsewhere.",
        "A gap can come from harder cases or poorer labels in a group as well as from the features.",
    ),
    maps_to={"EU AI Act": ("Art. 10(2)(f)", "Annex IV 3"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",)},
)  # fmt: skip
MIN_CELL = 50  # units with and without the finding that each side of a comparison needs
MAX_ORIGIN_SHIFT = 0.1  # total variation between the origins of a group's labels and of the rest's
_CROSSED = "intersections"
_SILENT = "Errors were not compared."


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A group and the rest, on the task's rows.

    Attributes:
        group: Its name.
        inside: [n] bool.
        outside: [n] bool.
        cell: Fewest units with or without the finding on either side.
    """

    group: str
    inside: np.ndarray
    outside: np.ndarray
    cell: int


def run(evidence: Evidence) -> list[Result]:
    """One finding per attribute, and one for all pairs of attributes."""
    data, task = evidence.probed, evidence.asked.task
    assert task is not None, "needed"
    target = read_column(data, task)
    told: dict[str, Any] = {"n_units": target.num_units, "n_images": len(target.rows)}
    if target.kind != "classes" or len(target.classes) != 2:
        reason = f"{task} does not hold exactly two classes"
        return [ABOUT.unknown("task_kind", reason, "name a task of two classes (audit.task=COLUMN)", **told, answer=_SILENT)]
    if target.num_minor < MIN_CELL:
        reason = f"{target.num_minor} units in the rarer class of {task}; {MIN_CELL} are the least"
        return [ABOUT.unknown("n_units", reason, "audit more units", **told, answer=_SILENT)]
    scored = score_task(data, target, evidence.effort)
    asked = {name: contrasts(data, target, (name,)) for name in evidence.asked.attributes}
    if len(asked) > 1:
        asked[_CROSSED] = [one for pair in combinations(asked, 2) for one in contrasts(data, target, pair)]
    return [_result(evidence, scored, name, found, told) for name, found in asked.items()]


def contrasts(data: AuditSet, target: Attribute, names: tuple[str, ...]) -> list[Contrast]:
    """Every group of one attribute, or every pair of groups of two, against all other rows whose group is known."""
    columns = [grouped(data.columns[name])[target.rows] for name in names]
    known = np.all([column != "" for column in columns], axis=0)
    values = [np.unique(column[column != ""]) for column in columns]
    if any(not 2 <= len(found) <= MAX_GROUPS for found in values):
        return []
    out = []
    for at in np.ndindex(*(len(found) for found in values)):
        chosen = [str(found[place]) for found, place in zip(values, at)]
        inside = np.all([column == one for column, one in zip(columns, chosen)], axis=0)
        name = chosen[0] if len(names) == 1 else " and ".join(f"{column} {one}" for column, one in zip(names, chosen))
        out.append(Contrast(group=name, inside=inside, outside=known & ~inside, cell=min(cells(target, inside, known & ~inside))))
    return out


def _result(evidence: Evidence, scored: Scored, name: str, found: list[Contrast], told: dict[str, Any]) -> Result:
    task, crossed = scored.target.name, name == _CROSSED
    told = {**told, "title": f"Does a probe for {task} work worse for some groups of {'two attributes' if crossed else name}?"}
    usable = [one for one in found if one.cell >= MIN_CELL]
    if not usable:
        need = f"no group has {MIN_CELL} units with and without {task}, inside and outside"
        reason = need if found else f"{name} does not hold 2 to {MAX_GROUPS} groups"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told, answer=_SILENT)
    mixed = _mixed_origin(evidence.policy, evidence.probed, scored.target, usable)
    if mixed:
        reason = f"where labels of {task} come from differs by {mixed}, so a gap may be one between sources of labels"
        return ABOUT.unknown("label_origin", reason, "audit labels of one origin", name, **told, answer=_SILENT)
    strata = _strata(evidence, scored.target)
    gaps = [compare(scored, one.group, one.inside, one.outside, strata) for one in usable]
    told |= {
        "tables": _tables(gaps, evidence.alpha("Q2")), "plots": _plots(name, scored, usable, gaps, evidence.lines),
        "counts": {f"units of {gap.group} with the finding": gap.inside.positive for gap in gaps},
        "limits": (*ABOUT.limits, _origin(evidence.policy, task)),
    }  # fmt: skip
    judge = lambda p, _: _finding(name, task, found, gaps, p, evidence.lines, told)  # noqa: E731
    return Draft(p=tuple(gap.p for gap in gaps), judge=judge)


def _strata(evidence: Evidence, target: Attribute) -> np.ndarray:
    """[n] joint value of the legitimate covariates; 0 where none were named."""
    columns = [grouped(evidence.probed.columns[name])[target.rows] for name in evidence.asked.strata]
    if not columns:
        return np.zeros(len(target.rows), np.int64)
    joint: np.ndarray = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return joint


def _origin(policy: Policy, task: str) -> str:
    origin = policy.origins.get(task)
    if origin is None:
        return f"Where the labels of {task} come from was not stated."
    words = origin if isinstance(origin, str) else "several origins, alike in all groups compared"
    return f"Labels of {task}: {words.replace('_', ' ')}."


def _mixed_origin(policy: Policy, data: AuditSet, target: Attribute, usable: Sequence[Contrast]) -> str:
    """The first group whose labels come from elsewhere than the rest's, and by how much, or nothing."""
    origin = policy.origins.get(target.name)
    for column, by_value in origin.items() if isinstance(origin, dict) else ():
        if column not in data.columns:
            continue
        rows = np.array([by_value.get(str(value).strip(), "not stated") for value in data.columns[column][target.rows]])
        for one in usable:
            shares = [np.mean(rows[side][:, None] == np.unique(rows), axis=0) for side in (one.inside, one.outside)]
            shift = float(np.abs(shares[0] - shares[1]).sum() / 2)
            if shift > MAX_ORIGIN_SHIFT:
                return f"{shift:.0%} between {one.group} and the rest"
    return ""


def _line(metric: str, lines: Thresholds) -> float:
    return lines.gap_flag if metric == "auroc" else lines.error_gap_flag


def _finding(
    name: str, task: str, found: list[Contrast], gaps: list[Gap], adjusted: tuple[float, ...], lines: Thresholds, told: dict[str, Any]
) -> Finding:  # fmt: skip
    worst, metric = min(
        ((gap, metric) for gap in gaps for metric in METRICS), key=lambda one: one[0].interval(one[1]).high / _line(one[1], lines)
    )  # fmt: skip
    p, at = adjusted[gaps.index(worst)], worst.interval(metric)
    told = {
        **told, "estimate": estimate_of(at, f"{metric} of {worst.group} minus {metric} of the rest", "1.96 x SE of unit bootstrap"),
        "n_minor": worst.cell, "evidence": {"groups": [_row(gap, value) for gap, value in zip(gaps, adjusted)]},
    }  # fmt: skip
    words = f"AUROC of {_in_words(worst)}{_people(worst, task)}"
    if p <= lines.alpha and at.value < 0 and at.high < 0:
        verdict: Verdict = "FLAG" if at.high <= -_line(metric, lines) else "WARN"
        action = f"Score {task} for {worst.group} apart before use, and find out whether cases, labels or features differ."
        repeat = f"The gap of {worst.group} with more of its images in training, or with its labels read again."
        return ABOUT.finding(name, **told, verdict=verdict, answer=f"Yes, {words}.", action=action, repeat=repeat)
    within = all(gap.interval(metric).low > -_line(metric, lines) for gap in gaps for metric in METRICS)
    if within and len(gaps) == len(found):
        answer = f"No group falls behind by {lines.gap_flag:.2f} AUROC or {lines.error_gap_flag:.2f} of its errors; the lowest is {words}."
        return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)
    few = len(found) - len(gaps)
    reason = f"gaps of {lines.gap_flag:.2f} AUROC or {lines.error_gap_flag:.2f} in errors are not ruled out for every group"
    reason += f"; {few} of {len(found)} groups have fewer than {MIN_CELL} units with or without the finding" if few else ""
    return ABOUT.unknown("wide_interval", reason, "audit more units", name, **told, answer=f"Undecided: AUROC of {_in_words(worst)}.")


def _in_words(gap: Gap) -> str:
    at, inside, outside = gap.interval("auroc"), gap.inside.values["auroc"], gap.outside.values["auroc"]
    return f"{gap.group}: {inside:.2f}, all others: {outside:.2f}, gap {at.value:+.2f} [{at.low:+.2f}, {at.high:+.2f}]"


def _people(gap: Gap, task: str) -> str:
    """Gaps of errors as people, where they go against the group."""
    found = []
    for metric, words in (("sensitivity", f"with {task} {{}} more are missed"), ("specificity", f"without {task} {{}} more are called")):
        at = gap.interval(metric)
        if at.value < 0:
            found.append(words.format(f"{-1000 * at.value:.0f} [{-1000 * at.high:.0f} to {-1000 * at.low:.0f}]"))
    return f"; of 1,000 of {gap.group} {', of 1,000 '.join(found)} than among the rest" if found else ""


def _row(gap: Gap, p_adjusted: float) -> dict[str, Any]:
    at = gap.interval("auroc")
    return {
        "group": gap.group, "auroc": gap.inside.values["auroc"], "rest": gap.outside.values["auroc"], "gap": at.value, "low": at.low,
        "high": at.high, "units": gap.cell, "p_adjusted": p_adjusted,
    }  # fmt: skip


def _tables(gaps: list[Gap], alpha: float) -> tuple[Table, ...]:
    served: list[tuple[Cell, ...]] = [
        (
            gap.group, printed(gap.inside.positive), printed(gap.inside.negative), *(gap.inside.values[metric] for metric in METRICS),
            gap.inside.calibration.value, gap.inside.calibration.low, gap.inside.calibration.high, gap.inside.ece, gap.inside.ece_floor,
        )
        for gap in gaps
    ]  # fmt: skip
    behind: list[tuple[Cell, ...]] = [
        (gap.group, *(end for metric in METRICS for at in (gap.interval(metric),) for end in (at.value, at.low, at.high))) for gap in gaps
    ]
    checked: list[tuple[Cell, ...]] = [
        (
            gap.group, gap.interval("auroc").value, _cell(gap.matched.value), _cell(gap.matched.low), _cell(gap.matched.high),
            _cell(gap.matched_calibration), *(gap.detectable(metric, alpha) for metric in METRICS),
        )
        for gap in gaps
    ]  # fmt: skip
    heads = (
        "group", "units with", "units without", "AUROC", "sensitivity", "specificity", "observed minus predicted", "low", "high", "ECE",
        "ECE if calibrated",
    )  # fmt: skip
    ends = tuple(f"{metric} {end}".strip() for metric in ("AUROC", "sensitivity", "specificity") for end in ("", "low", "high"))
    detectable = tuple(f"detectable, {metric}" for metric in ("AUROC", "sensitivity", "specificity"))
    return (
        Table(title="How each group is served", columns=heads, rows=tuple(served), note="One threshold for all, fixed on other units."),
        Table(title="Group minus the rest", columns=("group", *ends), rows=tuple(behind)),
        Table(
            title="Matched and detectable", rows=tuple(checked),
            columns=("group", "AUROC gap", "matched", "low", "high", "calibration, matched", *detectable),
            note="Matched: the rest weighted to the group's mix of finding and strata. Detectable: found in 80 % of such samples.",
        ),
    )  # fmt: skip


def _cell(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plots(name: str, scored: Scored, usable: list[Contrast], gaps: list[Gap], lines: Thresholds) -> tuple[Plot, ...]:
    forests = []
    for metric, words in (("auroc", "AUROC"), ("sensitivity", "Sensitivity"), ("specificity", "Specificity")):
        rows = [
            Bar(label=gap.group, value=at.value, low=at.low, high=at.high, n_units=gap.cell)
            for gap in gaps
            for at in (gap.interval(metric),)
        ]
        marks = {"flag": -_line(metric, lines), "equal": 0.0}
        forests.append(Forest(title=f"{words} by {name}", axis=f"{words} of the group minus the rest", rows=tuple(rows), lines=marks))
    curves = []
    for one in usable[:6]:
        predicted, observed = reliability(scored, one.inside)
        curves.append(Series(name=one.group, x=predicted, y=observed))
    drawn = Curves(title=f"Reliability by {name}", x_axis="predicted share", y_axis="observed share", series=tuple(curves))
    return (*forests, drawn)


def self_test() -> SelfTest:
    """Plants a group whose labels are noise, and a group that differs in nothing."""
    generator = np.random.default_rng(5)
    group, truth = np.repeat([0, 1], 120), np.tile([0, 1], 120)
    features = generator.normal(size=(240, 8)) + 1.5 * truth[:, None]
    noisy = np.where((group == 1) & (generator.random(240) < 0.4), 1 - truth, truth)
    columns = {"truth": truth, "noisy": noisy, "group": np.where(group, "b", "a")}
    names = np.array([f"u{i}" for i in range(240)])
    data = AuditSet(features={"audited": features}, units=names, content_hash=None, sources=np.arange(240), columns=columns)
    planted, clean = (_lowest(data, name, Effort(bootstraps=200)) for name in ("noisy", "truth"))
    return SelfTest(
        positive="pass" if planted.p <= 0.01 and planted.values["auroc"] < 0 else "fail", negative="pass" if clean.p > 0.01 else "fail",
        detail=f"made-up groups: planted gap p = {planted.p:.3g}, clean p = {clean.p:.2f}",
    )  # fmt: skip


def _lowest(data: AuditSet, task: str, effort: Effort) -> Gap:
    target = read_attribute(task, data.columns[task], data.units)
    scored, strata = score_task(data, target, effort), np.zeros(len(target.rows), np.int64)
    gaps = [compare(scored, one.group, one.inside, one.outside, strata) for one in contrasts(data, target, ("group",))]
    return min(gaps, key=lambda gap: gap.values["auroc"])


def _compared(evidence: Evidence) -> int:
    """Groups and pairs of groups that hold enough units to be compared."""
    assert evidence.asked.task is not None, "needed"
    target = read_column(evidence.probed, evidence.asked.task)
    if target.kind != "classes" or len(target.classes) != 2:
        return 0
    names = evidence.asked.attributes
    wanted = [(name,) for name in names] + list(combinations(names, 2))
    return sum(one.cell >= MIN_CELL for group in wanted for one in contrasts(evidence.probed, target, group))


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TASK, ATTRIBUTES, UNITS), count=_compared)
