"""Slices: parts of the data in which the task fails more often, found without anybody naming them.

Units are split into halves. Candidates come from the first alone: clusters of features and errors together, and conjunctions of up to two
metadata values. Each is tested once on the second half, where clusters are recognised by features only: the search cannot have seen what
confirms it. Slice discovery without a held-out test finds slices in noise; with one, 36 % of 1,235 planted slices were found (Domino,
arXiv 2203.14960).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinodomain.audit.evidence import TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import Attribute, read_attribute
from dinodomain.audit.protocol.slicing import MOST, SEEN_SHARE, Halves, Ratio, detectable, enrichment, measure, search, split
from dinodomain.audit.protocol.task import decided, out_of_fold, read_column
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.audit.trail.groups import grouped

ABOUT = About(
    name="slices", code="SLICE", question="Q2", title="Are there unnamed parts of the data in which the task fails?",
    limits=(
        "Slices that neither clusters of the features nor two metadata values single out stay unseen.",
        "A slice may hold poorer labels rather than harder images.",
    ),
    maps_to={"EU AI Act": ("Art. 10(2)(f)", "Art. 10(2)(g)"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",)},
)  # fmt: skip
MIN_ALL, MIN_ERRORS = 200, 30
UNLEARNT = 0.9  # share of the errors of guessing from which on nothing was learnt


def run(evidence: Evidence) -> list[Result]:
    """One finding."""
    task = evidence.asked.task
    assert task is not None, "needed"
    target = read_column(evidence.probed, task)
    told: dict[str, Any] = {"n_units": target.num_units, "n_images": len(target.rows)}
    if target.kind != "classes" or len(target.classes) < 2:
        return [ABOUT.unknown("task_kind", f"{task} does not hold 2 to 20 classes", "name a task of classes", **told)]
    scores, folds = out_of_fold(evidence.probed, target, evidence.effort)
    wrong = decided(scores, target.values, folds) != target.values
    bad = len(np.unique(target.unit_index[wrong]))
    if target.num_units < MIN_ALL or bad < MIN_ERRORS:
        reason = f"{target.num_units} units and {bad} with an error; {MIN_ALL} and {MIN_ERRORS} are the least"
        return [ABOUT.unknown("n_units", reason, "audit more units", **told)]
    chance = 1 - 1 / len(target.classes)
    if (errors := _balanced(wrong, target)) >= UNLEARNT * chance:
        reason = f"the probe errs in {errors:.0%} of each class, {chance:.0%} would be guessing: where all fails, no slice stands out"
        return [ABOUT.unknown("not_learnt", reason, "name a task that these features tell", **told)]
    halves = split(target, wrong, evidence.effort.bootstraps, evidence.effort.seed)
    found = search(evidence.probed.audited[target.rows], _metadata(evidence, target), halves, evidence.effort.seed)
    tested = [ratio for one in found if (ratio := measure(one, halves, halves.first)).units >= MIN_UNITS]
    told |= {"n_minor": min((ratio.units for ratio in tested), default=None)}
    if not tested:
        reason = f"no candidate holds {MIN_UNITS} units in the second half"
        return [ABOUT.unknown("n_units", reason, "audit more units, or name metadata columns", **told)]
    judge = lambda p, _: _finding(evidence, halves, tested, p, told)  # noqa: E731
    return [Draft(p=tuple(ratio.p for ratio in tested), judge=judge)]


def _balanced(wrong: np.ndarray, target: Attribute) -> float:
    """Mean over the classes of the share of their rows that are wrong."""
    return float(np.mean([wrong[target.values == code].mean() for code in range(len(target.classes))]))


def _metadata(evidence: Evidence, target: Attribute) -> dict[str, np.ndarray]:
    """Columns that were named for anything, and the task itself, with at most 20 values each."""
    asked = evidence.asked
    names = dict.fromkeys([target.name, *asked.attributes, *asked.domains, *asked.strata])
    columns = {name: grouped(evidence.probed.columns[name])[target.rows] for name in names}
    return {name: column for name, column in columns.items() if len(np.unique(column)) <= 21}


def _finding(evidence: Evidence, halves: Halves, tested: list[Ratio], p: tuple[float, ...], told: dict[str, Any]) -> Finding:
    lines, metadata = evidence.lines, _metadata(evidence, halves.target)
    confirmed = [ratio for ratio, one in zip(tested, p) if one <= lines.alpha]
    surest = max(confirmed or tested, key=lambda ratio: ratio.interval.low)
    visible = detectable(halves, lines.alpha / len(tested))
    verdict, code, reason = _verdict(confirmed, visible, lines)
    told |= {
        "estimate": estimate_of(surest.interval, f"error ratio of {surest.slice.name}", "unit bootstrap on the log scale, second half"),
        "tables": (_table(tested, p, metadata),), "plots": (_forest(tested, lines),),
        "evidence": {"confirmed": [ratio.slice.name for ratio in confirmed], "tested": len(tested), "detectable_ratio": visible},
    }  # fmt: skip
    poor = verdict in ("FLAG", "WARN")
    return ABOUT.finding(
        **told, verdict=verdict, reason_code=code, reason=reason, answer=_answer(surest, confirmed, verdict, len(tested), metadata),
        remedy="audit more units" if verdict == "NOT_ASSESSABLE" else "",
        action=f"Look at the images of {surest.slice.name} and at their labels before use for {halves.target.name}." if poor else "",
        repeat="The error ratio of the same slice on new units." if poor else "",
    )  # fmt: skip


def _verdict(confirmed: list[Ratio], visible: float, lines: Thresholds) -> tuple[Verdict, str, str]:
    low = max((ratio.interval.low for ratio in confirmed), default=0.0)
    if low > lines.slice_flag:
        return "FLAG", "", ""
    if low > lines.slice_warn:
        return "WARN", "", ""
    if visible <= lines.slice_flag:
        return "CLEAR_WITHIN_LIMITS", "", ""
    least = "no ratio at all" if not np.isfinite(visible) else f"only a ratio of {visible:.1f} and more"
    return "NOT_ASSESSABLE", "low_power", f"in a slice of {SEEN_SHARE:.0%} of the units {least} would have been confirmed"


def _answer(surest: Ratio, confirmed: list[Ratio], verdict: Verdict, tested: int, metadata: dict[str, np.ndarray]) -> str:
    at = surest.interval
    told = (
        f"{surest.slice.name}: {surest.inside:.0%} errors against {surest.outside:.0%}, ratio {at.value:.1f} [{at.low:.1f}, {at.high:.1f}]"
    )
    if verdict in ("FLAG", "WARN"):
        marks = enrichment(surest.slice, metadata)
        return f"Yes, {len(confirmed)} of {tested} candidates were confirmed on other units; {told}{f'; rich in {marks}' if marks else ''}."
    if verdict == "CLEAR_WITHIN_LIMITS":
        return f"None of {tested} candidates was confirmed above the line; the surest is {told}."
    return f"Undecided: {len(confirmed)} of {tested} candidates were confirmed to fail more often, none surely above the line; {told}."


def _table(tested: list[Ratio], p: tuple[float, ...], metadata: dict[str, np.ndarray]) -> Table:
    rows = tuple(
        (
            ratio.slice.name, ratio.units, ratio.inside, ratio.outside, ratio.value, ratio.interval.low, ratio.interval.high, one,
            enrichment(ratio.slice, metadata) or None,
        )
        for ratio, one in sorted(zip(tested, p), key=lambda pair: -pair[0].interval.low)
    )  # fmt: skip
    heads = ("slice", "units", "errors", "errors elsewhere", "ratio", "low", "high", "p after Holm", "rich in")
    return Table(title="Candidates of the first half, tested on the second", columns=heads, rows=rows)


def _forest(tested: list[Ratio], lines: Thresholds) -> Forest:
    best = sorted(tested, key=lambda ratio: -ratio.interval.low)[:10]
    bars = tuple(
        Bar(label=ratio.slice.name, value=at.value, low=at.low, high=at.high, n_units=ratio.units)
        for ratio in best
        for at in (ratio.interval,)
    )
    marks = {"warn": lines.slice_warn, "flag": lines.slice_flag, "equal": 1.0}
    return Forest(title="Error ratio of slices", axis="errors in the slice over errors elsewhere", rows=bars, lines=marks)


def self_test() -> SelfTest:
    """A corner of the features where errors are planted, and the same errors dealt at random."""
    generator = np.random.default_rng(12)
    x = generator.normal(size=(600, 6))
    corner = x[:, 0] > 1.0
    planted = generator.random(600) < np.where(corner, 0.6, 0.08)
    found, silent = (_least_p(x, wrong) for wrong in (planted, generator.permutation(planted)))
    return SelfTest(
        positive="pass" if found <= 0.01 else "fail", negative="pass" if silent > 0.01 else "fail",
        detail=f"made-up errors: smallest p times tests {found:.2g} planted, {silent:.2f} clean",
    )  # fmt: skip


def _least_p(x: np.ndarray, wrong: np.ndarray) -> float:
    """Smallest p of the tested slices times their number (Bonferroni)."""
    halves = split(read_attribute("y", wrong.astype(int), np.arange(len(x))), wrong, 100, 0)
    ratios = [measure(one, halves, halves.first) for one in search(x, {}, halves, 0)]
    p = [ratio.p for ratio in ratios if ratio.units >= MIN_UNITS]
    return min(1.0, len(p) * min(p, default=1.0))


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TASK, UNITS), count=lambda _: 2 * MOST)
