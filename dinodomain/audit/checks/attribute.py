"""Attributes: can sex, site or scanner be read from the features, and better than from pixels or an untrained encoder?

Reading is a linear probe; "encoded" is neither "used" nor "harmful". One family per audit: Holm's correction runs over all attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.finding import Baseline, Estimate, Finding, Null, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import MIN_CLASS_UNITS, Attribute, read_attribute
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort, Leak, excess, read_leaks
from dinodomain.audit.protocol.planting import Sensitivity, plant
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, holm, judge

CHECK = "attribute"
METHOD = "1.96 x max(SE of unit bootstrap, SD of unit-permutation null), above .8 on the logit scale"
LIMITS = (
    "One attacker: a ridge probe on pooled features; another attacker may read more.",
    "Readable does not mean used, and not readable by this probe does not mean absent.",
    "Holds for these images and labels; labels are taken as given.",
)
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


def attributes(
    data: AuditSet, names: Sequence[str], *, effort: Effort, thresholds: Thresholds, expected: Mapping[str, str] | None = None
) -> tuple[Finding, ...]:
    """One finding per attribute.

    Args:
        data: The audited set.
        names: Columns to read.
        effort: Folds, permutations, draws.
        thresholds: Where the lines are.
        expected: Attribute to reason, for those that a good encoder must show (age in anatomy): flagged milder, never dropped.
    """
    if not names:
        return ()
    test = self_test()
    readings = [measure(data, name, effort=effort, alpha=thresholds.alpha / len(names)) for name in names]
    measured = [reading for reading in readings if reading.leaks]
    adjusted = dict(zip((reading.attribute.name for reading in measured), holm([reading.leaks["audited"].p for reading in measured])))
    return tuple(
        _finding(data, reading, adjusted.get(reading.attribute.name), len(measured), test, thresholds, expected or {})
        for reading in readings
    )


def measure(data: AuditSet, name: str, *, effort: Effort, alpha: float) -> Reading:
    """Reads one column from every kind of features and plants leaks of its shape into the audited ones."""
    attribute = read_attribute(name, data.columns[name], data.units)
    if not data.units_known or _too_few(attribute) or attribute.num_units < effort.folds:
        return Reading(attribute=attribute, leaks={}, sensitivity=None)
    ordered = {"audited": data.audited, **data.features}
    leaks, reader = read_leaks(ordered, attribute, effort)
    sensitivity = plant(reader, data.audited[attribute.rows], attribute, leaks["audited"].null, alpha=alpha, seed=effort.seed)
    return Reading(attribute=attribute, leaks=leaks, sensitivity=sensitivity)


def _too_few(attribute: Attribute) -> bool:
    return (attribute.kind == "classes" and len(attribute.classes) < 2) or attribute.num_minor < MIN_UNITS


def _finding(
    data: AuditSet,
    reading: Reading,
    p_adjusted: float | None,
    family: int,
    test: SelfTest,
    thresholds: Thresholds,
    expected: Mapping[str, str],
) -> Finding:
    attribute = reading.attribute
    common: dict[str, Any] = {
        "id": f"{CHECK}/{attribute.name}",
        "check": CHECK,
        "question": "Q3",
        "title": f"Can {attribute.name} be read from the features?",
        "n_units": attribute.num_units,
        "n_minor": attribute.num_minor,
        "n_images": len(attribute.rows),
        "counts": _counts(attribute),
        "limits": LIMITS,
    }
    if p_adjusted is None or reading.sensitivity is None:
        return _unmeasured(data, attribute, common, test)
    sensitivity, leak = reading.sensitivity, reading.leaks["audited"]
    test = _join_tests(test, sensitivity)
    common |= evidence_of(reading, p_adjusted, family) | {"self_test": test}
    if test.failed:
        return Finding(**common, verdict="ERROR", answer="The check failed its own controls.", reason_code="self_test", reason=test.detail)
    verdict, code, reason = judge(leak.interval, p_adjusted, sensitivity.mdl, attribute.num_minor, thresholds=thresholds)
    if verdict == "FLAG" and attribute.name in expected:
        verdict, code, reason = "WARN", "expected", f"expected by the policy: {expected[attribute.name]}"
    remedy = "audit more units" if verdict == "NOT_ASSESSABLE" else ""
    answer = _answer(attribute, leak, verdict, reading.leaks)
    return Finding(
        **common, verdict=verdict, reason_code=code, reason=reason, remedy=remedy, answer=answer, action=_action(attribute, verdict)
    )


def _unmeasured(data: AuditSet, attribute: Attribute, common: dict[str, Any], test: SelfTest) -> Finding:
    common |= {"verdict": "ERROR" if test.failed else "NOT_ASSESSABLE", "self_test": test, "answer": "Nothing but counts can be given."}
    if test.failed:
        return Finding(**common, reason_code="self_test", reason=test.detail)
    if not data.units_known:
        return Finding(
            **common, reason_code="no_unit_key", reason=f"{int((data.units == '').sum())} images have no unit id",
            remedy="give the column that names the patient or place (group=COLUMN)",
        )  # fmt: skip
    if attribute.kind == "classes" and len(attribute.classes) < 2:
        return Finding(
            **common, reason_code="one_class", reason="the column holds fewer than two classes", remedy="audit a set that holds both"
        )
    reason = f"{attribute.num_minor} units in the smaller class; {MIN_CLASS_UNITS} are the least for an estimate"
    return Finding(**common, reason_code="n_units", reason=reason, remedy="audit more units of the smaller class")


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


def _join_tests(test: SelfTest, sensitivity: Sensitivity) -> SelfTest:
    """Adds the clean control on the real features; a plant that was not found there is low power, not a broken check."""
    real = f"on these features {sensitivity.alarm_rate:.0%} of unplanted labels came out below .05"
    return SelfTest(positive=test.positive, negative=test.negative if sensitivity.clean else "fail", detail=f"{test.detail}; {real}")


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
