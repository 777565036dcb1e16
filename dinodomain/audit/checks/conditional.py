"""Conditional leaks: is an attribute read from the features beyond what legitimate covariates (age, view, finding, site) explain?

The labels are permuted within strata of the covariates, units kept whole, through the very folds of the attribute check: a proxy does as
well after that as before. A random label per unit keeps none of the strata, so the ordinary null calls every proxy a leak (Glocker et al.
2023 found sex and race to shift with disease prevalence).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinodomain.audit.evidence import ATTRIBUTES, UNITS, About, Check, Draft, Evidence, Need, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of, null_of
from dinodomain.audit.protocol.attribute import Attribute, read_attribute
from dinodomain.audit.protocol.leak import Effort, Leak, read_leaks
from dinodomain.audit.protocol.planting import Sensitivity, plant
from dinodomain.audit.protocol.strata import covered, movable, permuted_within, unit_strata
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict, severe
from dinodomain.probes.scores import Interval, around

ABOUT = About(
    name="conditional", code="COND", question="Q3", title="Is an attribute read beyond what legitimate covariates explain?",
    limits=(
        "Only the named covariates are accounted for, numbers among them only up to their quintile.",
        "One attacker: a ridge probe on pooled features.",
        "A leak beyond the strata is neither used nor harmful for that.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(f)", "Art. 10(2)(g)", "Annex IV 2(g)"), "NIST AI RMF": ("MEASURE 2.11",), "FUTURE-AI": ("Fairness 3",),
    },
)  # fmt: skip
STRATUM_UNITS, COVERAGE = 20, 0.8
METHOD = "1.96 x max(SE of unit bootstrap, SD of unit-permutation null within strata)"
_SILENT = "Whether it is more than a proxy cannot be said."

STRATA = Need(
    there=lambda evidence: bool(evidence.asked.strata), code="no_strata",
    reason="no column was named that may rightly explain an attribute", remedy="name columns with audit.strata=[age, view, finding, ...]",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditional:
    """One attribute against chance, and against chance within strata.

    Attributes:
        marginal: The leak with the null of units dealt anew.
        within: The same leak with the null of units dealt anew inside their strata.
        sensitivity: What planted leaks would have been found.
    """

    marginal: Leak
    within: Leak
    sensitivity: Sensitivity


def over_null(leak: Leak) -> Interval:
    """Score minus what its null gives on average, 95 %."""
    value = leak.value - float(leak.null.mean())
    return around(value, max(float(np.nanstd(leak.draws)), float(np.std(leak.null))))


def run(evidence: Evidence) -> list[Result]:
    """A finding for each attribute."""
    return [_result(evidence, name) for name in evidence.asked.attributes]


def _result(evidence: Evidence, name: str) -> Result:
    data, names = evidence.probed, evidence.asked.strata
    told: dict[str, Any] = {"title": f"Is {name} read beyond what {', '.join(names)} explain?"}
    if name in names:
        reason = f"{name} is itself one of the strata"
        return ABOUT.finding(name, **told, verdict="NOT_APPLICABLE", answer="Not asked.", reason_code="is_stratum", reason=reason)
    attribute = read_column(data, name)
    told |= {"n_units": attribute.num_units, "n_minor": attribute.num_minor, "n_images": len(attribute.rows), "answer": _SILENT}
    if attribute.num_minor < MIN_UNITS or attribute.one_class:
        reason = f"{attribute.num_minor} units in the smaller class; {MIN_UNITS} are the least for an estimate"
        return ABOUT.unknown("n_units", reason, "audit more units of the smaller class", name, **told)
    columns = {column: np.asarray(data.columns[column])[attribute.rows] for column in names}
    strata = unit_strata(columns, names, attribute.unit_index)
    told["counts"] = {"strata": len(np.unique(strata))}
    if (share := covered(strata, STRATUM_UNITS)) < COVERAGE:
        reason = f"strata of at least {STRATUM_UNITS} units hold {share:.0%} of the units; {COVERAGE:.0%} are asked for"
        return ABOUT.unknown("small_strata", reason, "name fewer covariates, or audit more units", name, **told)
    if (free := movable(attribute, strata)) < MIN_UNITS:
        reason = f"{name} is all but given by the strata: {free} units differ from the most of theirs, {MIN_UNITS} are the least"
        return ABOUT.unknown("confounded", reason, "audit units in which they do not go together", name, **told)
    found = measure(data.audited, attribute, strata, evidence.effort, evidence.alpha("Q3"))
    special = name in evidence.policy.special_category
    judge = lambda p, family: _finding(name, found, p[0], family, evidence.lines, told, special)  # noqa: E731
    return Draft(p=(found.within.p,), judge=judge)


def measure(features: np.ndarray, attribute: Attribute, strata: np.ndarray, effort: Effort, alpha: float) -> Conditional:
    """Reads the attribute once, and takes both nulls through the same folds.

    Args:
        features: [N, E] of the audited set.
        attribute: What is read.
        strata: [U] stratum of each unit.
        effort: Folds, permutations, draws.
        alpha: Level at which planted leaks are sought.
    """
    leaks, reader = read_leaks({"audited": features}, attribute, effort)
    marginal = leaks["audited"]
    null = reader.score(permuted_within(attribute, strata, effort.permutations, effort.seed))
    sensitivity = plant(reader, features[attribute.rows], attribute, marginal.null, alpha=alpha, seed=effort.seed)
    return Conditional(marginal=marginal, within=replace(marginal, null=null), sensitivity=sensitivity)


def _finding(
    name: str, found: Conditional, p: float, family: int, lines: Thresholds, told: dict[str, Any], special: bool
) -> Finding:  # fmt: skip
    beyond, leak = over_null(found.within), found.within
    null = null_of("unit-level permutation within strata", leak.null, leak.p, p, family)
    explained = float(leak.null.mean() - found.marginal.null.mean())
    told = {
        **told, "null": null, "mdl": found.sensitivity.mdl, "tables": (_table(found),), "plots": (_forest(name, found, lines),),
        "estimate": estimate_of(beyond, "score minus its mean under permutation within strata", METHOD), "special_category": special,
        "evidence": {"marginal_p": found.marginal.p, "score": leak.value, "explained": explained},
    }  # fmt: skip
    over = f"{beyond.value:+.2f} [{beyond.low:+.2f}, {beyond.high:+.2f}] beyond"
    score = f"score {leak.value:.2f}, {leak.null.mean():.2f} of it from the strata alone, {over}"
    if p <= lines.alpha:
        verdict, reason = severe("WARN", special)
        return ABOUT.finding(
            name, **told | {"answer": f"Yes, more than a proxy: {score}."}, verdict=verdict, reason=reason, encoded=True,
            action=f"Find out what carries {name} beyond the covariates: leak maps, region replacement, other release layers.",
            repeat="After the change, a score within what permutation inside the strata gives.",
        )  # fmt: skip
    verdict, code, reason = _silent(beyond, found.sensitivity.mdl, lines)
    remedy = "audit more units" if verdict == "NOT_ASSESSABLE" else ""
    words = "Not by this probe" if verdict == "CLEAR_WITHIN_LIMITS" else "Undecided"
    return ABOUT.finding(name, **told | {"answer": f"{words}: {score}."}, verdict=verdict, reason_code=code, reason=reason, remedy=remedy)


def _silent(beyond: Interval, mdl: float | None, lines: Thresholds) -> tuple[Verdict, str, str]:
    """Where nothing was shown beyond the strata: clear only where a leak that matters is ruled out and would have been seen."""
    most = lines.tau_clear - 0.5
    if beyond.high >= most:
        return "NOT_ASSESSABLE", "wide_interval", f"{most:.2f} beyond the strata is not ruled out"
    if mdl is None or mdl > lines.mdl_max:
        return "NOT_ASSESSABLE", "low_power", f"a leak of {lines.mdl_max:.2f} would have been missed too often"
    return "CLEAR_WITHIN_LIMITS", "", ""


def _table(found: Conditional) -> Table:
    rows = []
    for label, leak in (("any unit for any other", found.marginal), ("inside strata only", found.within)):
        at = over_null(leak)
        rows.append((label, f"{leak.value:.3f}", f"{leak.null.mean():.3f}", str(at), f"{leak.p:.4f}"))
    return Table(
        title="Before and after the strata", columns=("labels permuted", "score", "by chance", "beyond chance", "p"), rows=tuple(rows)
    )


def _forest(name: str, found: Conditional, lines: Thresholds) -> Forest:
    bars = []
    for label, leak in (("against chance", found.marginal), ("beyond the strata", found.within)):
        at = over_null(leak)
        bars.append(Bar(label=label, value=at.value, low=at.low, high=at.high))
    marks = {"nothing": 0.0, "clear below": lines.tau_clear - 0.5}
    return Forest(
        title=f"{name}, before and after the strata", axis="score minus its mean under permutation", rows=tuple(bars), lines=marks
    )


def self_test() -> SelfTest:
    """An attribute that acts through its stratum only, found by the plain null and not by the conditional one; and one that does more."""
    generator = np.random.default_rng(9)
    site = np.arange(240) % 2
    label = np.where(generator.random(240) < 0.8, site, 1 - site)
    noise = generator.normal(size=(240, 12))
    proxy, direct = (noise + 2.0 * (what[:, None] * (np.arange(12) < 3)) for what in (site, label))
    attribute = read_attribute("planted", label, np.arange(240))
    effort = Effort(permutations=99, bootstraps=50)
    strata = unit_strata({"site": site}, ("site",), attribute.unit_index)
    plain, inside, found = (
        _p(rows, attribute, s, effort) for rows, s in ((proxy, np.zeros_like(strata)), (proxy, strata), (direct, strata))
    )
    return SelfTest(
        positive="pass" if found <= 0.01 and plain <= 0.01 else "fail", negative="pass" if inside > 0.01 else "fail",
        detail=f"made-up units: planted p = {found:.3f}; a proxy has p = {plain:.3f} before and {inside:.3f} within its strata",
    )  # fmt: skip


def _p(rows: np.ndarray, attribute: Attribute, strata: np.ndarray, effort: Effort) -> float:
    leaks, reader = read_leaks({"audited": rows}, attribute, effort)
    return replace(leaks["audited"], null=reader.score(permuted_within(attribute, strata, effort.permutations, 0))).p


CHECK = Check(
    about=ABOUT, run=run, self_test=self_test, needs=(ATTRIBUTES, STRATA, UNITS), count=lambda evidence: len(evidence.asked.attributes)
)  # fmt: skip
