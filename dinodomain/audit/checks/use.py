"""Use: does a task probe on the features rest on a sensitive attribute, or only carry it along?

Two experiments. The attribute is erased from the features (LEACE, Belrose et al. 2023) and the task refitted: if a gap between groups
closes, the probe used it. And the task is refitted where attribute and finding go together more and more, then tested where they are
unrelated: what is lost shows how readily the features offer the shortcut. Encoding alone is no use (Glocker et al. 2023; Brown et al.
2023), so "encoded, use not shown" is a full answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import norm

from dinodomain.audit.evidence import ATTRIBUTES, TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Curves, Forest, Plot, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.experiments import MIN_CELL, Tested, joint, run_both
from dinodomain.audit.protocol.reliance import Closing, closings, erase
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds
from dinodomain.audit.trail.groups import MAX_GROUPS, grouped, text_of
from dinodomain.probes.scores import Interval, unit_weights

ABOUT = About(
    name="use", code="USE", question="Q3", core=True, title="Does a probe for the task rest on a sensitive attribute?",
    limits=(
        "One reference probe; a fine-tuned model may use what this one does not.",
        "Erasure is linear: what only a nonlinear probe reads may still be used.",
        "A gap can be true: groups may differ in how plainly the finding occurs.",
        "Erasure also takes what the finding shares with the attribute; a gap that turns over instead of closing counts as not closed.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(f)", "Art. 10(2)(g)", "Annex IV 2(g)"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",),
    },
)  # fmt: skip
METHOD = "1.96 x max(SE of unit bootstrap, SD where the attribute adds nothing)"
_SILENT = "Whether it is used was not tested."


def run(evidence: Evidence) -> list[Result]:
    """A finding for each attribute."""
    task = evidence.asked.task
    assert task is not None, "needed"
    target = read_column(evidence.probed, task)
    told: dict[str, Any] = {"n_units": target.num_units, "n_images": len(target.rows), "answer": _SILENT, "used": "not_tested"}
    if target.kind != "classes" or len(target.classes) != 2:
        reason = f"{task} does not hold exactly two classes"
        return [ABOUT.unknown("task_kind", reason, "name a task of two classes (audit.task=COLUMN)", **told)]
    return [_result(evidence, target, name, told) for name in evidence.asked.attributes]


def _result(evidence: Evidence, target: Attribute, name: str, told: dict[str, Any]) -> Result:
    told = {**told, "title": f"Does a probe for {target.name} rest on {name}?"}
    if name == target.name:
        return ABOUT.finding(name, **told, verdict="NOT_APPLICABLE", reason_code="is_task", reason=f"{name} is itself the task")
    both = joint(evidence.probed, target, name)
    if both is None:
        return ABOUT.unknown("one_class", f"{name} does not hold 2 to {MAX_GROUPS} groups", "name a column that does", name, **told)
    told |= {"n_units": both[0].num_units, "n_minor": both[1].num_minor, "n_images": len(both[0].rows)}
    if min(both[0].num_minor, both[1].num_minor) < MIN_UNITS or both[0].num_units < evidence.effort.folds:
        reason = f"fewer than {MIN_UNITS} units in the rarer class of {target.name} or in a group of {name}"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told)
    found = run_both(evidence.probed, *both, evidence.effort)
    if not found.gaps and found.mixed is None:
        reason = f"no group of {name} has {MIN_CELL} units with and without {target.name}, nor two groups {MIN_UNITS} in every cell"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told)
    injected = () if found.mixed is None else (_injected_p(found, evidence.lines),)
    judge = lambda p, _: _finding(name, target.name, found, p, evidence.lines, told)  # noqa: E731
    return Draft(p=(*(gap.p for gap in found.gaps), *injected), judge=judge)


def _injected_p(found: Tested, lines: Thresholds) -> float:
    """That injection costs no more than the line allows."""
    assert found.mixed is not None, "asked only where it was mixed"
    return float(norm.sf((found.mixed.drop.value - lines.injected_flag) / max(found.injected_error, 1e-12)))


def _finding(name: str, task: str, found: Tested, p: tuple[float, ...], lines: Thresholds, told: dict[str, Any]) -> Finding:
    shown = [
        gap for gap, value in zip(found.gaps, p) if value <= lines.alpha and gap.share >= lines.erasure_closes
    ]  # fmt: skip
    injected = found.mixed is not None and p[-1] <= lines.alpha
    encoded = found.encoding.p <= lines.alpha
    at = found.encoding.interval
    read = f"{name} is read with {at.value:.2f} [{at.low:.2f}, {at.high:.2f}]"
    told = {
        **told, "evidence": _evidence(found), "tables": (_table(found, task),), "plots": _plots(name, found, lines),
        "encoded": encoded or None,
        "estimate": estimate_of(*_headline(found, shown), METHOD),
    }  # fmt: skip
    if shown or injected:
        words = [f"erasing {name} closes {gap.share:.0%} of the gap of {gap.group} ({gap.before.value:+.2f})" for gap in shown]
        words += (
            [f"a probe fitted where {name} and {task} go together loses {found.mixed.drop.value:.2f} AUROC"]
            if found.mixed and injected
            else []
        )
        told |= {
            "answer": f"{'Yes' if shown else 'It would be, where offered'}: {'; '.join(words)}.",
            "used": "shown" if shown else "not_shown",
        }
        return ABOUT.finding(
            name, **told, verdict="FLAG", action=_action(name, task),
            repeat=f"After the change, no gap that erasing {name} closes, and a loss below {lines.injected_flag:.2f}.",
        )  # fmt: skip
    told |= {"used": "not_shown", "answer": f"{'Encoded' if encoded else 'Not shown to be encoded'}, use not shown: {read}."}
    if (open_ := _open(name, found, lines)) is not None:
        return ABOUT.unknown(*open_, name, **told)
    return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS")


def _action(name: str, task: str) -> str:
    return f"Fit {task} on data where {name} and {task} are unrelated, or on erased features, and score both groups apart."


def _open(name: str, found: Tested, lines: Thresholds) -> tuple[str, str, str] | None:
    """Why nothing follows from not having shown use: reason code, reason and remedy; None where it is ruled out."""
    if found.mixed is None or not found.gaps:
        what = "gaps between groups" if found.mixed is not None else "the shortcut"
        return "n_units", f"too few units in some cells to test {what}", "audit more units"
    if found.untested:
        return "n_units", f"too few units to test the gap of {', '.join(found.untested)}", "audit more units of these groups"
    if found.left.low >= lines.tau_clear:
        at = found.left
        reason = f"erasure does not carry over to other units: {name} is still read with {at.value:.2f} [{at.low:.2f}, {at.high:.2f}]"
        return "control_failed", reason, "audit more units, so that the attribute's directions are better known"
    if found.mixed.drop.high >= lines.injected_flag:
        return "wide_interval", f"a loss of {lines.injected_flag:.2f} through the shortcut is not ruled out", "audit more units"
    if max(gap.closed.high for gap in found.gaps) >= lines.error_gap_flag:
        return "wide_interval", f"that erasure closes a gap of {lines.error_gap_flag:.2f} is not ruled out", "audit more units"
    return None


def _headline(found: Tested, shown: list[Closing]) -> tuple[Interval, str]:
    if shown or found.mixed is None:
        gap = max(shown or found.gaps, key=lambda one: one.closed.value)
        return gap.closed, f"gap of {gap.group} closed by erasure (average odds difference)"
    return found.mixed.drop, "AUROC lost where attribute and task go together in training"


def _evidence(found: Tested) -> dict[str, Any]:
    at, left, change = found.encoding.interval, found.left, found.change
    gaps = [
        {
            "group": gap.group, "before": gap.before.value, "after": gap.after.value, "p": gap.p, "units": gap.cell,
            "closed": [gap.closed.value, gap.closed.low, gap.closed.high], "calibration": list(gap.calibration),
        }
        for gap in found.gaps
    ]  # fmt: skip
    return {
        "encoding": [at.value, at.low, at.high], "after_erasure": [left.value, left.low, left.high], "task_auroc": list(found.auroc),
        "task_change": [change.value, change.low, change.high], "gaps": gaps, "slope": found.slope,
        "injection": None if found.mixed is None else found.mixed.as_evidence(),
    }  # fmt: skip


def _table(found: Tested, task: str) -> Table:
    rows = [
        (f"attribute read where {task} is known", str(found.encoding.interval), str(found.left), None),
        ("AUROC of the task", f"{found.auroc[0]:.3f}", f"{found.auroc[1]:.3f}", str(found.change)),
    ]
    for gap in found.gaps:
        rows.append((f"gap of {gap.group} at one threshold", str(gap.before), str(gap.after), f"{gap.share:.0%} closed, {gap.closed}"))
        before, after = gap.calibration
        rows.append((f"calibration of {gap.group} against the rest", f"{before:+.3f}", f"{after:+.3f}", f"{after - before:+.3f}"))
    note = "Gap: share called positive in the group minus in the rest, mean of those with and without the finding."
    return Table(title="With the attribute and without it", columns=("measure", "with", "erased", "change"), rows=tuple(rows), note=note)


def _plots(name: str, found: Tested, lines: Thresholds) -> tuple[Plot, ...]:
    plots: list[Plot] = []
    if found.gaps:
        bars = []
        for gap in found.gaps:
            for label, at in (("with", gap.before), ("erased", gap.after)):
                bars.append(Bar(label=f"{gap.group}, {label}", value=at.value, low=at.low, high=at.high, n_units=gap.cell))
        axis = "share called positive, group minus rest"
        plots.append(Forest(title=f"Gaps with {name} and without", axis=axis, rows=tuple(bars), lines={"equal": 0.0}))
    if found.mixed is not None:
        lows, highs = (tuple(getattr(at, end) for at in found.mixed.intervals) for end in ("low", "high"))
        curve = Series(name="balanced test", x=found.mixed.strengths, y=found.mixed.scores, low=lows, high=highs)
        marks = {"flag below": found.mixed.scores[0] - lines.injected_flag}
        axis = f"association of {name} and task in training (Cramer's V)"
        plots.append(Curves(title="The shortcut offered", x_axis=axis, y_axis="AUROC of the task", series=(curve,), lines=marks))
    return tuple(plots)


def self_test() -> SelfTest:
    """A finding made of content that is hard to see and of the attribute, whose gap erasure closes; and one without the attribute."""
    generator = np.random.default_rng(4)
    sex = np.repeat([0, 1], 400)
    content = generator.normal(size=800)
    features = generator.normal(size=(800, 6))
    features[:, 0] = content + 3.0 * features[:, 0]
    mixed = (content + 1.4 * (sex - 0.5) + 0.3 * generator.normal(size=800) > 0).astype(int)
    alone = (content + 0.3 * generator.normal(size=800) > 0).astype(int)
    features[:, 1] += 2.0 * sex
    columns = {"mixed": mixed, "alone": alone, "sex": np.where(sex, "M", "F")}
    names = np.arange(800).astype(str)
    data = AuditSet(features={"audited": features}, units=names, content_hash=None, sources=np.arange(800), columns=columns)
    planted, clean = (_gap(data, name) for name in ("mixed", "alone"))
    good = planted.p <= 0.01 and planted.share >= Thresholds().erasure_closes
    return SelfTest(
        positive="pass" if good else "fail", negative="pass" if clean.p > 0.01 else "fail",
        detail=f"made-up units: of a planted gap of {planted.before.value:.2f} erasure closes {planted.share:.0%}; clean p = {clean.p:.2f}",
    )  # fmt: skip


def _gap(data: AuditSet, task: str) -> Closing:
    both = joint(data, read_column(data, task), "sex")
    assert both is not None, "two groups"
    folds = both[0].unit_index % 5
    weights = list(unit_weights(both[0].unit_index, 100, 0))
    return closings(erase(data.audited, *both, folds, 0, nulls=50), *both, folds, weights, MIN_CELL)[0]


def _tests_of(evidence: Evidence) -> int:
    """A test per group (one of two) and one of the shortcut, for each attribute."""
    total = 0
    for name in evidence.asked.attributes:
        found = len(set(grouped(text_of(evidence.probed.columns[name])).tolist()) - {""})
        total += 1 + (1 if found == 2 else min(found, MAX_GROUPS))
    return total


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TASK, ATTRIBUTES, UNITS), count=_tests_of)
