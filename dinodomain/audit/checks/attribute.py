"""Attributes: can sex, site or scanner be read from the features, and better than from pixels or an untrained encoder?

Reading is a linear probe; "encoded" is neither "used" nor "harmful".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ATTRIBUTES, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.finding import Baseline, Estimate, Finding, Null, SelfTest, estimate_of
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import MIN_CLASS_UNITS, Attribute, read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Leak, excess, read_leaks
from dinodomain.audit.protocol.planting import Sensitivity, plant
from dinodomain.audit.protocol.verdict import MIN_UNITS, judge

ABOUT = About(
    name="attribute", code="ATTR", question="Q3", core=True, title="Can sensitive attributes be read from the features?",
    limits=(
        "One attacker: a ridge probe on pooled features; another attacker may read more.",
        "Readable does not mean used, and not readable by this probe does not mean absent.",
        "Holds for these images and labels; labels are taken as given.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(f)", "Art. 10(2)(g)", "Annex IV 2(g)"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",),
    },
)  # fmt: skip
METHOD = "1.96 x max(SE of unit bootstrap, SD of unit-permutation null), above .8 on the logit scale"
SMALL_CELL = 10  # counts below this are not printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An attribute measured, before correction and verdict.

    Attributes:
        attribute: What was read.
        leaks: Leak per kind of features; empty where there were too few units.
        sensitivity: What planted leaks would have been found, or None.
    """

    attribute: Attribute
    leaks: Mapping[str, Leak]
    sensitivity: Sensitivity | None


def run(evidence: Evidence) -> list[Result]:
    """A finding for each attribute."""
    return [_result(evidence, name) for name in evidence.asked.attributes]


def _result(evidence: Evidence, name: str) -> Result:
    reading = measure(evidence.probed, name, effort=evidence.effort, alpha=evidence.alpha("Q3"))
    if not reading.leaks:
        return _unmeasured(reading.attribute)
    judge = lambda p, family: _finding(reading, p[0], family, evidence.policy)  # noqa: E731
    return Draft(p=(reading.leaks["audited"].p,), judge=judge)


def measure(data: AuditSet, name: str, *, effort: Effort, alpha: float) -> Reading:
    """Reads one column from every kind of features and plants leaks of its shape into the audited ones."""
    attribute = read_attribute(name, data.columns[name], data.label_units)
    if _too_few(attribute) or attribute.num_units < effort.folds:
        return Reading(attribute=attribute, leaks={}, sensitivity=None)
    ordered = {"audited": data.audited, **data.features}
    leaks, reader = read_leaks(ordered, attribute, effort)
    sensitivity = plant(reader, data.audited[attribute.rows], attribute, leaks["audited"].null, alpha=alpha, seed=effort.seed)
    return Reading(attribute=attribute, leaks=leaks, sensitivity=sensitivity)


def _too_few(attribute: Attribute) -> bool:
    return (attribute.kind == "classes" and len(attribute.classes) < 2) or attribute.num_minor < MIN_UNITS


def _finding(reading: Reading, p_adjusted: float, family: int, policy: Policy) -> Finding:
    attribute, leak, sensitivity = reading.attribute, reading.leaks["audited"], reading.sensitivity
    assert sensitivity is not None, "planted wherever it was read"
    verdict, code, reason = judge(leak.interval, p_adjusted, sensitivity.mdl, attribute.num_minor, thresholds=policy.thresholds)
    if verdict == "FLAG" and attribute.name in policy.expected:
        verdict, code, reason = "WARN", "expected", f"expected by the policy: {policy.expected[attribute.name]}"
    return ABOUT.finding(
        attribute.name, **_told(attribute), **evidence_of(reading, p_adjusted, family), verdict=verdict, reason_code=code, reason=reason,
        remedy="audit more units" if verdict == "NOT_ASSESSABLE" else "", answer=_answer(attribute, leak, verdict, reading.leaks),
        action=_action(attribute, verdict), encoded={"FLAG": True, "WARN": True, "CLEAR_WITHIN_LIMITS": False}.get(verdict),
    )  # fmt: skip


def _told(attribute: Attribute) -> dict[str, Any]:
    return {
        "title": f"Can {attribute.name} be read from the features?", "n_units": attribute.num_units, "n_minor": attribute.num_minor,
        "n_images": len(attribute.rows), "counts": _counts(attribute),
    }  # fmt: skip


def _unmeasured(attribute: Attribute) -> Finding:
    told = {**_told(attribute), "answer": "Nothing but counts can be given."}
    if attribute.kind == "classes" and len(attribute.classes) < 2:
        return ABOUT.unknown(
            "one_class", "the column holds fewer than two classes", "audit a set that holds both", attribute.name, **told
        )  # fmt: skip
    reason = f"{attribute.num_minor} units in the smaller class; {MIN_CLASS_UNITS} are the least for an estimate"
    return ABOUT.unknown("n_units", reason, "audit more units of the smaller class", attribute.name, **told)


def evidence_of(reading: Reading, p_adjusted: float, family: int) -> dict[str, Any]:
    """Estimate, null, baselines, minimum detectable leak and planting curve as fields of a finding."""
    leak, sensitivity, attribute = reading.leaks["audited"], reading.sensitivity, reading.attribute
    assert sensitivity is not None
    low, high = np.percentile(leak.null, [2.5, 97.5])
    null = Null(
        kind=f"{attribute.level}-level permutation, units kept whole", count=len(leak.null), mean=float(leak.null.mean()),
        sd=float(leak.null.std()), low=float(low), high=float(high), p=leak.p, p_adjusted=p_adjusted, family=family,
    )  # fmt: skip
    evidence: dict[str, Any] = {
        "level": attribute.level,
        "kind": attribute.kind,
        "classes": list(attribute.classes),
        "missing_share": attribute.missing,
    }
    evidence["planted"] = {"oracle": sensitivity.oracle, "detected": sensitivity.detected, "components": sensitivity.components}
    return {
        "estimate": _estimate(attribute, leak),
        "null": null,
        "baselines": _baselines(reading.leaks),
        "mdl": sensitivity.mdl,
        "evidence": evidence,
        "self_test": _on_these(sensitivity),
    }


def _estimate(attribute: Attribute, leak: Leak) -> Estimate:
    metric = "(1 + spearman) / 2" if attribute.kind == "number" else ("auroc" if len(attribute.classes) == 2 else "macro auroc")
    return estimate_of(leak.interval, metric, METHOD)


def _baselines(leaks: Mapping[str, Leak]) -> tuple[Baseline, ...]:
    out = []
    for name in ("pixels", "untrained"):
        if name in leaks:
            at, over = leaks[name].interval, excess(leaks["audited"], leaks[name])
            out.append(
                Baseline(name=name, value=at.value, low=at.low, high=at.high, excess=over.value, excess_low=over.low, excess_high=over.high)
            )
    return tuple(out)


def _on_these(sensitivity: Sensitivity) -> SelfTest:
    """The clean control on the real features; a plant that was not found there is low power, not a broken check."""
    told = f"on these features {sensitivity.alarm_rate:.0%} of unplanted labels came out below .05"
    return SelfTest(positive="not_run", negative="pass" if sensitivity.clean else "fail", detail=told)


def _counts(attribute: Attribute) -> dict[str, int | str]:
    counts: dict[str, int | str] = {
        f"units with {name}": count if count >= SMALL_CELL else f"< {SMALL_CELL}" for name, count in attribute.units_per_class.items()
    }
    if attribute.dropped:
        counts["classes left out, too few units"] = len(attribute.dropped)
    return counts


def _answer(attribute: Attribute, leak: Leak, verdict: str, leaks: Mapping[str, Leak]) -> str:
    interval = leak.interval
    score = f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}], chance {leak.null.mean():.2f}"
    if verdict in ("FLAG", "WARN"):
        return f"Yes: a linear probe reads {attribute.name} with a score of {score}{_beside(leaks)}."
    if verdict == "CLEAR_WITHIN_LIMITS":
        return f"Not by this probe: {score}."
    return f"Undecided: {score}."


def _beside(leaks: Mapping[str, Leak]) -> str:
    words = {"pixels": "pixel statistics", "untrained": "an untrained encoder"}
    parts = [f"{words[name]} {leaks[name].value:.2f}" for name in ("pixels", "untrained") if name in leaks]
    return f" ({', '.join(parts)})" if parts else ""


def _action(attribute: Attribute, verdict: str) -> str:
    if verdict in ("FLAG", "WARN"):
        name = attribute.name
        return f"Check whether a downstream task uses {name}: score it within groups, and on data where {name} and target are unrelated."
    return ""


def self_test() -> SelfTest:
    """Reads a planted and a random attribute of made-up units, two images each."""
    generator = np.random.default_rng(20)
    units = np.repeat(np.arange(160), 2)
    labels = np.arange(160) % 2
    base = generator.normal(size=(160, 24))[units] + generator.normal(size=(320, 24))
    planted = base + 1.5 * (labels[units, None] * (np.arange(24) < 4))
    effort = Effort(permutations=199, bootstraps=50)
    found, silent = (_p(rows, labels[units], units, effort) for rows in (planted, base))
    return SelfTest(
        positive="pass" if found <= 0.01 else "fail", negative="pass" if silent > 0.01 else "fail",
        detail=f"made-up units: planted p = {found:.3f}, clean p = {silent:.3f}",
    )  # fmt: skip


def _p(rows: np.ndarray, labels: np.ndarray, units: np.ndarray, effort: Effort) -> float:
    attribute = read_attribute("planted", labels, units)
    return read_leaks({"audited": rows}, attribute, effort)[0]["audited"].p


CHECK = Check(
    about=ABOUT, run=run, self_test=self_test, needs=(ATTRIBUTES, UNITS), count=lambda evidence: len(evidence.asked.attributes)
)  # fmt: skip
