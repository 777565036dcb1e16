"""Attributes: can sex, site or scanner be read from the features, and better than from pixels or an untrained encoder?

The headline is a linear probe with its permutation null; stronger attackers climb the same folds and can only make the verdict worse.
"Encoded" is neither "used" nor "harmful". Histograms alone carry race (Burns et al. 2023), hence the pixel baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ATTRIBUTES, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Estimate, Finding, SelfTest, estimate_of, null_of
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import MIN_CLASS_UNITS, Attribute, counted, read_attribute
from dinodomain.audit.protocol.ladder import ATTACKER
from dinodomain.audit.protocol.leak import Effort, Leak, read_leaks
from dinodomain.audit.protocol.measures import precision_lift
from dinodomain.audit.protocol.planting import Sensitivity
from dinodomain.audit.protocol.reading import Reading, climbed, measure
from dinodomain.audit.protocol.task import baselines
from dinodomain.audit.protocol.verdict import Verdict, by_policy, judge, raised

ABOUT = About(
    name="attribute", code="ATTR", question="Q3", core=True, title="Can sensitive attributes be read from the features?",
    limits=(
        "A few attackers on pooled features (linear probes, neighbours, a small network); another may read more.",
        "Readable does not mean used, and not readable by this probe does not mean absent.",
        "Holds for these images and labels; labels are taken as given.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(f)", "Art. 10(2)(g)", "Annex IV 2(g)"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",),
    },
)  # fmt: skip
METHOD = "1.96 x max(SE of unit bootstrap, SD of unit-permutation null), above .8 on the logit scale"
_KINDS = {"audited": "audited encoder", "pixels": "pixels", "untrained": "untrained encoder"}


def run(evidence: Evidence) -> list[Result]:
    """A finding for each attribute."""
    return [_result(evidence, name) for name in evidence.asked.attributes]


def _result(evidence: Evidence, name: str) -> Result:
    reading = measure(evidence.probed, name, effort=evidence.effort, alpha=evidence.alpha("Q3"))
    if not reading.leaks:
        return _unmeasured(reading.attribute)
    reading = climbed(reading, evidence.probed, evidence.effort)
    judge = lambda p, family: _finding(reading, p[0], family, evidence.policy)  # noqa: E731
    return Draft(p=(reading.leaks["audited"].p,), judge=judge)


def _finding(reading: Reading, p_adjusted: float, family: int, policy: Policy) -> Finding:
    attribute = reading.attribute
    verdict, code, reason = _verdict(reading, p_adjusted, policy)
    told = {**_told(attribute), **evidence_of(reading, p_adjusted, family)}
    told["evidence"] |= _more(reading)
    return ABOUT.finding(
        attribute.name, **told, verdict=verdict, reason_code=code, reason=reason,
        answer=_answer(attribute, reading, verdict, linear=p_adjusted <= policy.thresholds.alpha),
        tables=(_table(reading),), plots=(_forest(reading, policy),), remedy="audit more units" if verdict == "NOT_ASSESSABLE" else "",
        action=_action(attribute, verdict), repeat=_repeat(attribute, verdict), special_category=attribute.name in policy.special_category,
        encoded={"FLAG": True, "WARN": True, "CLEAR_WITHIN_LIMITS": False}.get(verdict),
    )  # fmt: skip


def _verdict(reading: Reading, p_adjusted: float, policy: Policy) -> tuple[Verdict, str, str]:
    """The headline's verdict, then what a stronger attacker, the kind of data and the policy's expectation make of it, in this order."""
    attribute, lines, sensitivity = reading.attribute, policy.thresholds, reading.sensitivity
    assert sensitivity is not None, "planted wherever it was read"
    verdict, code, reason = judge(reading.leaks["audited"].interval, p_adjusted, sensitivity.mdl, attribute.num_minor, thresholds=lines)
    if (ladder := reading.ladders.get("audited")) is not None:
        after = raised(verdict, ladder.attacker.interval, ladder.gain, thresholds=lines)
        verdict, code, reason = after if after[0] != verdict else (verdict, code, reason)
    special, expected = attribute.name in policy.special_category, policy.expected.get(attribute.name)
    final, why, words = by_policy(verdict, attribute.name, special=special, expected=expected)
    return (final, why, words) if why else (final, code, reason)


def _more(reading: Reading) -> dict[str, Any]:
    """What is worth keeping beside the headline."""
    leak, attribute = reading.leaks["audited"], reading.attribute
    found: dict[str, Any] = {"selectivity": reading.selectivity, "score_through_other_folds": reading.again}
    if (ladder := reading.ladders.get("audited")) is None:
        return found
    at, gain = ladder.attacker.interval, ladder.gain
    found["attacker"] = {
        "value": at.value, "low": at.low, "high": at.high, "over_headline": [gain.value, gain.low, gain.high],
        "chosen": dict(ladder.chosen), "rows": ladder.num_rows,
    }  # fmt: skip
    if ladder.bits is not None:
        found["usable_bits"] = [ladder.bits.value, ladder.bits.low, ladder.bits.high]
        found["balanced_accuracy_beyond_chance"] = ladder.balanced
        lifts = {name: precision_lift(leak.predictions[:, code], attribute.values == code) for code, name in enumerate(attribute.classes)}
        found["average_precision_lift"] = {name: lift for name, lift in lifts.items() if lift is not None}
    return found


def _table(reading: Reading) -> Table:
    """Rungs against kinds of features."""
    kinds = [name for name in _KINDS if name in reading.leaks]
    rows = [_cells("chance (prior)", ["0.50" for _ in kinds])]
    rows.append(_cells("ridge, all rows (headline)", [str(reading.leaks[name].interval) for name in kinds]))
    words = {"ridge": "ridge", "logistic": "logistic regression", "neighbours": "nearest neighbours", "network": "small network"}
    words[ATTACKER] = "attacker: best of these inside each training part"
    for rung, label in words.items():
        found = [ladder.rungs.get(rung) if (ladder := reading.ladders.get(name)) else None for name in kinds]
        if any(found):
            rows.append(_cells(label, [str(one.interval) if one else None for one in found]))
    note = (
        f"Attackers see at most {most:,} rows."
        if (most := max((ladder.num_rows for ladder in reading.ladders.values()), default=0))
        else ""
    )
    return Table(title="Who reads how much", columns=("probe", *(_KINDS[name] for name in kinds)), rows=tuple(rows), note=note)


def _cells(label: str, values: Sequence[str | None]) -> tuple[str | None, ...]:
    return (label, *values)


def _forest(reading: Reading, policy: Policy) -> Forest:
    """Headline per kind of features, and the attacker, in the band of chance, with the minimum detectable leak."""
    leak, attribute, lines = reading.leaks["audited"], reading.attribute, policy.thresholds
    at = {_KINDS[name]: found.interval for name, found in reading.leaks.items()}
    if "audited" in reading.ladders:
        at["attacker on the audited encoder"] = reading.ladders["audited"].attacker.interval
    low, high = np.percentile(leak.null, [2.5, 97.5])
    marks = {"clear below": lines.tau_clear, "flag above": lines.tau_flag}
    if reading.sensitivity is not None and reading.sensitivity.mdl is not None:
        marks["least leak that would be found"] = reading.sensitivity.mdl
    bars = [Bar(label=name, value=one.value, low=one.low, high=one.high, n_units=attribute.num_units) for name, one in at.items()]
    return Forest(
        title=f"How well {attribute.name} is read", axis=f"score ({attribute.metric})", rows=tuple(bars), lines=marks,
        band=(float(low), float(high)),
    )  # fmt: skip


def _told(attribute: Attribute) -> dict[str, Any]:
    return {
        "title": f"Can {attribute.name} be read from the features?", "n_units": attribute.num_units, "n_minor": attribute.num_minor,
        "n_images": len(attribute.rows), "counts": _counts(attribute),
    }  # fmt: skip


def _unmeasured(attribute: Attribute) -> Finding:
    told = {**_told(attribute), "answer": "Nothing but counts can be given."}
    if attribute.one_class:
        return ABOUT.unknown(
            "one_class", "the column holds fewer than two classes", "audit a set that holds both", attribute.name, **told
        )  # fmt: skip
    reason = f"{attribute.num_minor} units in the smaller class; {MIN_CLASS_UNITS} are the least for an estimate"
    return ABOUT.unknown("n_units", reason, "audit more units of the smaller class", attribute.name, **told)


def evidence_of(reading: Reading, p_adjusted: float, family: int) -> dict[str, Any]:
    """Estimate, null, baselines, minimum detectable leak and planting curve as fields of a finding."""
    leak, sensitivity, attribute = reading.leaks["audited"], reading.sensitivity, reading.attribute
    assert sensitivity is not None
    null = null_of(f"{attribute.level}-level permutation, units kept whole", leak.null, leak.p, p_adjusted, family)
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
        "baselines": baselines(reading.leaks),
        "mdl": sensitivity.mdl,
        "evidence": evidence,
        "self_test": _on_these(sensitivity),
    }


def _estimate(attribute: Attribute, leak: Leak) -> Estimate:
    return estimate_of(leak.interval, attribute.metric, METHOD)


def _on_these(sensitivity: Sensitivity) -> SelfTest:
    """The clean control on the real features; a plant that was not found there is low power, not a broken check."""
    told = f"on these features {sensitivity.alarm_rate:.0%} of unplanted labels came out below .05"
    return SelfTest(positive="not_run", negative="pass" if sensitivity.clean else "fail", detail=told)


def _counts(attribute: Attribute) -> dict[str, int | str]:
    counts = counted(attribute.units_per_class)
    if attribute.dropped:
        counts["classes left out, too few units"] = len(attribute.dropped)
    return counts


def _answer(attribute: Attribute, reading: Reading, verdict: str, *, linear: bool) -> str:
    leak = reading.leaks["audited"]
    interval = leak.interval
    score = f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}], chance {leak.null.mean():.2f}"
    ladder = reading.ladders.get("audited")
    attacker = f"a stronger attacker with {ladder.attacker.value:.2f}" if ladder is not None and ladder.gain.low > 0 else ""
    if verdict in ("FLAG", "WARN") and not linear:
        return f"Yes: not by a linear probe ({score}), but {attacker}."
    if verdict in ("FLAG", "WARN"):
        beside = _beside(reading.leaks) + (f"; {attacker}" if attacker else "")
        return f"Yes: a linear probe reads {attribute.name} with a score of {score}{beside}."
    if verdict == "CLEAR_WITHIN_LIMITS":
        return f"Not by this probe: {score}."
    return f"Undecided: {score}."


def _beside(leaks: Mapping[str, Leak]) -> str:
    words = {"pixels": "pixel statistics", "untrained": "an untrained encoder"}
    parts = [f"{words[name]} {leaks[name].value:.2f}" for name in ("pixels", "untrained") if name in leaks]
    return f" ({', '.join(parts)})" if parts else ""


def _repeat(attribute: Attribute, verdict: str) -> str:
    if verdict in ("FLAG", "WARN"):
        return (
            f"After erasure or another release layer, a score for {attribute.name} whose interval holds .5 and ends below the clear line."
        )
    return ""


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
