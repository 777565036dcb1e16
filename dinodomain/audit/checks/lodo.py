"""Unseen domains: what does a task lose on a site, scanner, sensor or season that it was not fitted on?

Per domain, a probe fitted on all other domains against one fitted inside the domain, on as many units and as alike in classes: more units
elsewhere would hide the loss. The second question turns it round: fitted where class and domain go together more and more, how far does
the score fall on a test in which they are unrelated (the performance drop of PathoROB, arXiv 2507.17845)?
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinodomain.audit.evidence import DOMAINS, TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Curves, Forest, Plot, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import Attribute, read_attribute
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.shift import Mixed, mix_curve
from dinodomain.audit.protocol.task import mean_interval, pooled, read_column, units_in
from dinodomain.audit.protocol.unseen import Drop, leave_out, shared_classes
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.audit.trail.groups import MAX_GROUPS, text_of
from dinodomain.probes.scores import Interval

ABOUT = About(
    name="lodo", code="LODO", question="Q2", core=True, title="What does the task lose on a domain it was not fitted on?",
    limits=(
        "One reference probe on frozen features; a fine-tuned model may lose more or less.",
        "An unseen domain that resembles none of these may cost more.",
        "Domains may differ in how labels were made as well as in images.",
    ),
    maps_to={
        "EU AI Act": ("Art. 15", "Annex IV 3"), "NIST AI RMF": ("MEASURE 2.5", "MEASURE 2.6"),
        "FUTURE-AI": ("Universality 3", "Universality 4"),
    },
)  # fmt: skip
MIN_DOMAINS = 4
_SILENT = "No domain could be left out."


def run(evidence: Evidence) -> list[Result]:
    """A finding per column."""
    task = evidence.asked.task
    assert task is not None, "needed"
    target = read_column(evidence.probed, task)
    told: dict[str, Any] = {"n_units": target.num_units, "n_images": len(target.rows)}
    if target.one_class:
        return [ABOUT.unknown("task_kind", f"{task} holds one class", "name a task of two classes", **told, answer=_SILENT)]
    return [_result(evidence, target, name, told) for name in evidence.asked.domains]


def _result(evidence: Evidence, target: Attribute, name: str, told: dict[str, Any]) -> Result:
    place = pooled(evidence.probed.columns[name], evidence.probed.label_units)[target.rows]
    told = {**told, "title": f"What does {target.name} lose on an unseen {name}?"}
    target, place, left_out = shared_classes(target, place)
    drops = [leave_out(evidence.probed.audited, target, place == one, place != "", one, evidence.effort) for one in _usable(target, place)]
    if not drops:
        reason = f"no two domains of {name} hold {MIN_UNITS} units of two classes of {target.name}"
        return ABOUT.unknown("confounded", reason, "add images of the rare classes from those domains", name, **told, answer=_SILENT)
    if left_out:
        told["limits"] = (*ABOUT.limits, f"Without {', '.join(left_out)}: fewer than {MIN_UNITS} units outside one domain.")
    mixed = mix_curve(evidence.probed.audited, target, place, evidence.effort)
    judge = lambda p, _: _finding(name, target, drops, mixed, p, evidence.lines, told)  # noqa: E731
    return Draft(p=tuple(drop.p for drop in drops), judge=judge)


def _usable(target: Attribute, place: np.ndarray) -> list[str]:
    """Domains with enough units of every class, where there are two of them and 20 at most."""
    names = [str(one) for one in np.unique(place[place != ""])]
    enough = [one for one in names if len(names) <= MAX_GROUPS and _rarest(target, place == one) >= MIN_UNITS]
    return enough if len(enough) >= 2 else []


def _rarest(target: Attribute, rows: np.ndarray) -> int:
    if target.kind == "number":
        return units_in(target.unit_index, rows)
    return min(units_in(target.unit_index, rows & (target.values == code)) for code in range(len(target.classes)))


def _finding(
    name: str, target: Attribute, drops: list[Drop], mixed: Mixed | None, p: tuple[float, ...], lines: Thresholds, told: dict[str, Any]
) -> Finding:  # fmt: skip
    mean = mean_interval(np.array([drop.interval.value for drop in drops])) if len(drops) >= MIN_DOMAINS else None
    worst = max(drops, key=lambda drop: drop.interval.low)
    poor = [drop for drop, one in zip(drops, p) if one <= lines.alpha and drop.interval.low > lines.unseen_domain_flag]
    verdict, code, reason = _verdict(mean, drops, poor, lines)
    shown, metric = (mean, "mean drop of the score") if mean is not None else (worst.interval, f"drop of the score on {worst.domain}")
    method = "Student's t over domains" if mean is not None else "1.96 x SE of unit bootstrap and training draws"
    told |= {
        "estimate": estimate_of(shown, metric, method), "n_minor": min(drop.units for drop in drops),
        "counts": {f"units of {drop.domain}": drop.units for drop in drops}, "tables": (_table(name, drops, p),),
        "plots": _plots(name, target, drops, mixed, lines), "evidence": {"mixed": None if mixed is None else mixed.as_evidence()},
    }  # fmt: skip
    return ABOUT.finding(
        name, **told, verdict=verdict, reason_code=code, reason=reason, answer=_answer(name, mean, worst, verdict),
        remedy=f"add domains: {MIN_DOMAINS} are the least, more units narrow the interval" if verdict == "NOT_ASSESSABLE" else "",
        **_advice(name, target.name, verdict, poor),
    )  # fmt: skip


def _verdict(mean: Interval | None, drops: list[Drop], poor: list[Drop], lines: Thresholds) -> tuple[Verdict, str, str]:
    if poor or (mean is not None and mean.low > lines.unseen_mean_flag):
        return "FLAG", "", ""
    if mean is None:
        reason = f"{len(drops)} domains could be left out; fewer than {MIN_DOMAINS} say nothing about further ones"
        return "NOT_ASSESSABLE", "generalisation", reason
    if mean.low > 0:
        return "WARN", "", f"a drop was shown, and it may be smaller than {lines.unseen_mean_flag:.2f}"
    if mean.high < lines.unseen_mean_flag and all(drop.interval.high < lines.unseen_domain_flag for drop in drops):
        return "CLEAR_WITHIN_LIMITS", "", ""
    reason = f"drops of {lines.unseen_mean_flag:.2f} on average or {lines.unseen_domain_flag:.2f} on one domain are not ruled out"
    return "NOT_ASSESSABLE", "wide_interval", reason


def _answer(name: str, mean: Interval | None, worst: Drop, verdict: Verdict) -> str:
    at = worst.interval
    one = f"on {worst.domain} {worst.outside:.2f} instead of {worst.inside:.2f}, drop {at.value:+.2f} [{at.low:+.2f}, {at.high:+.2f}]"
    if mean is None:
        return f"{'A loss' if verdict == 'FLAG' else 'Undecided'}: {one}."
    whole = f"mean drop {mean.value:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}] over each {name} left out"
    return f"No loss was found: {whole}." if verdict == "CLEAR_WITHIN_LIMITS" else f"{whole.capitalize()}; {one}."


def _advice(name: str, task: str, verdict: Verdict, poor: list[Drop]) -> dict[str, str]:
    if verdict not in ("FLAG", "WARN"):
        return {}
    where = ", ".join(drop.domain for drop in poor) or f"every new {name}"
    return {
        "action": f"Before use for {task} on {where}, score it there on labelled images, or fit on images from there.",
        "repeat": "The drop with images of that domain in pretraining or in the head's training data.",
    }


def _table(name: str, drops: list[Drop], p: tuple[float, ...]) -> Table:
    rows = tuple(
        (drop.domain, drop.units, drop.fitted, drop.inside, drop.outside, drop.everything, at.value, at.low, at.high, one)
        for drop, one in zip(drops, p)
        for at in (drop.interval,)
    )
    heads = (name, "units", "units fitted on", "fitted inside", "elsewhere", "on all others", "drop", "low", "high", "p after Holm")
    return Table(title="Score of the task by domain", columns=heads, rows=rows, note="Drop: inside minus elsewhere, as many units each.")


def _plots(name: str, target: Attribute, drops: list[Drop], mixed: Mixed | None, lines: Thresholds) -> tuple[Plot, ...]:
    bars = tuple(
        Bar(label=drop.domain, value=at.value, low=at.low, high=at.high, n_units=drop.units) for drop in drops for at in (drop.interval,)
    )
    marks = {"flag": lines.unseen_domain_flag, "equal": 0.0}
    forest = Forest(title=f"Drop on each {name} left out", axis="score fitted inside minus fitted elsewhere", rows=bars, lines=marks)
    if mixed is None:
        return (forest,)
    curve = Series(
        name="balanced test", x=mixed.strengths, y=mixed.scores, low=tuple(at.low for at in mixed.intervals),
        high=tuple(at.high for at in mixed.intervals),
    )  # fmt: skip
    title = f"{target.name} fitted where class and {name} go together ({mixed.domains[0]}, {mixed.domains[1]})"
    axis = "Cramer's V of class and domain in training"
    return (forest, Curves(title=title, x_axis=axis, y_axis="AUROC, test balanced", series=(curve,), lines={"chance": 0.5}))


def self_test() -> SelfTest:
    """A domain in which the class points the other way, and one that differs in nothing."""
    generator = np.random.default_rng(3)
    y, place = np.tile([0, 1], 150), np.repeat(["a", "b", "c"], 100)
    rows = generator.normal(size=(300, 8))
    turned = rows + 1.5 * (np.where(place == "c", 1 - y, y))[:, None] * (np.arange(8) < 3)
    straight = rows + 1.5 * y[:, None] * (np.arange(8) < 3)
    planted, clean = (_one(features, y, place) for features in (turned, straight))
    return SelfTest(
        positive="pass" if planted.interval.low > 0.1 else "fail", negative="pass" if clean.interval.low < 0.05 else "fail",
        detail=f"made-up domains: drop {planted.interval.value:.2f} planted, {clean.interval.value:+.2f} clean",
    )  # fmt: skip


def _one(features: np.ndarray, y: np.ndarray, place: np.ndarray) -> Drop:
    target = read_attribute("y", y, np.arange(len(y)))
    return leave_out(features, target, place == "c", place != "", "c", Effort(bootstraps=100))


def _domains_of(evidence: Evidence) -> int:
    """Domains that may be left out, 20 of a column at most."""
    found = (len(np.unique(text_of(evidence.probed.columns[name]))) for name in evidence.asked.domains)
    return sum(count for count in found if count <= MAX_GROUPS + 1)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(DOMAINS, TASK, UNITS), count=_domains_of)
