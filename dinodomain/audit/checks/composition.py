"""Composition: who and what places are in the data, and how far is that from whom the model is for? Counts of units, never of images.

Distance to a declared population is total variation, half the sum of absolute differences of shares: the share of units that would have
to be others. It is never below 0, so a sample of that very population shows some; the interval is the basic bootstrap over units
(2 T - quantiles of T*, Davison and Hinkley 1997, 5.2), which takes that bias off. Effective number of groups: exp of Shannon's entropy
(Hill 1973). U units, G groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinodomain.audit.evidence import UNITS, About, Check, Evidence, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import SMALL_CELL, printed
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds
from dinodomain.audit.trail.group_tables import effective, group_table, joint_tables, missing_plots, missing_table
from dinodomain.audit.trail.groups import UnitGroups, as_groups, group_units
from dinodomain.probes.scores import Z95, Interval, wilson

ABOUT = About(
    name="composition", code="COMP", question="Q1", core=True, title="Who and where is in the data, against whom the model is for?",
    limits=(
        "Counts groups as recorded; it does not ask whether records are right, nor who never came to be recorded.",
        "Near the declared population in one column says nothing of combinations of columns.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(e)", "Art. 10(3)", "Art. 10(4)"), "NIST AI RMF": ("MAP 2.3", "MEASURE 2.2"),
        "FUTURE-AI": ("Fairness 1", "Fairness 2", "Robustness 2"), "FDA GMLP": ("3",),
    },
)  # fmt: skip
SEASONS = ("December to February", "March to May", "June to August", "September to November")
_BLOCK = 200  # bootstrap draws at once


def run(evidence: Evidence) -> list[Result]:
    """One finding on counts and missing values, one for each column with a declared target."""
    columns = columns_of(evidence)
    units = evidence.data.label_units
    found = {name: group_units(units, as_groups(values)) for name, values in columns.items()}
    missing = [name for name in evidence.policy.targets if name not in evidence.data.columns]
    results: list[Result] = [_counted(evidence, found)]
    if not evidence.policy.targets:
        results.append(_no_target())
    for name, target in evidence.policy.targets.items():
        values = None if name in missing else evidence.data.columns[name]
        results.append(_against(evidence, name, target, values))
    return results


def columns_of(evidence: Evidence) -> dict[str, np.ndarray]:
    """The columns to count: those that were named; where no people are concerned also sensor, month and season of acquisition."""
    data, asked = evidence.data, evidence.asked
    names = dict.fromkeys((*asked.attributes, *asked.domains, *([asked.task] if asked.task else []), *evidence.policy.targets))
    found = {name: np.asarray(data.columns[name]) for name in names if name in data.columns}
    return {**_sensors(evidence), **found, **_times(evidence)}


def _sensors(evidence: Evidence) -> dict[str, np.ndarray]:
    """What took the images, where the index says it and they are not of people."""
    trail = evidence.trail
    if trail is None or trail.kept is None or trail.kept.personal:
        return {}
    return {name: np.asarray(evidence.data.columns[name]) for name in ("sensor", "platform") if name in evidence.data.columns}


def _times(evidence: Evidence) -> dict[str, np.ndarray]:
    """Month and meteorological season from acquisition dates; not where dates were shifted, as those of people are."""
    dates, trail = evidence.data.columns.get("acquired"), evidence.trail
    if dates is None or trail is None or trail.kept is None or trail.kept.personal:
        return {}
    months = [str(value)[5:7] for value in dates]
    if not any(month.isdigit() for month in months):
        return {}
    seasons = [SEASONS[int(month) % 12 // 3] if month.isdigit() else "" for month in months]
    return {"month": np.array([month if month.isdigit() else "" for month in months]), "season": np.array(seasons)}


def _no_target() -> Finding:
    reason = "no population was declared that the model is for"
    remedy = "declare shares in the policy: targets: {sex: {F: 0.5, M: 0.5}}"
    return ABOUT.unknown("no_target", reason, remedy, "target", title="Is the data like the population that the model is for?")


def _counted(evidence: Evidence, found: Mapping[str, UnitGroups]) -> Finding:
    lines = evidence.lines
    total = evidence.data.num_units
    told: dict[str, Any] = {
        "n_units": total, "n_images": len(np.unique(evidence.data.sources)),
        "title": "Who and where is in the data, and of whom is something not recorded?",
    }  # fmt: skip
    if not found:
        remedy = "name columns with audit.attributes=[...] and audit.domains=[...]"
        return ABOUT.unknown("no_column", "no column was named that tells groups apart", remedy, "counts", **told)
    gaps = list(_gaps(found))
    blank = {name: 1 - float(groups.known.mean()) for name, groups in found.items()}
    told |= {
        "tables": (group_table(found), missing_table(found, blank), *joint_tables(found)), "plots": missing_plots(found),
        "counts": {f"units without {name}": printed((~groups.known).sum()) for name, groups in found.items()},
        "evidence": {"effective_groups": {name: effective(groups) for name, groups in found.items()}, "missing": blank},
    }  # fmt: skip
    return _missing_verdict(blank, gaps, told, lines)


def _missing_verdict(
    blank: Mapping[str, float], gaps: Sequence[tuple[str, str, str, Interval]], told: dict[str, Any], lines: Thresholds
) -> Finding:
    often = [f"{name} of {share:.0%} of the units" for name, share in blank.items() if share > lines.missing_warn]
    apart = [
        f"{name} is missing more often where {by} is {group} (by {gap.value:.0%} [{gap.low:.0%}, {gap.high:.0%}])"
        for name, by, group, gap in gaps
        if gap.low > lines.missing_gap
    ]
    if often or apart:
        answer = "; ".join([*(["Not recorded: " + ", ".join(often)] if often else []), *apart]) + "."
        action = "Find out why these values are missing; checks by these columns speak only of the units that have them."
        repeat = "Once recorded, the shares without a value fall below the line."
        return ABOUT.finding("counts", **told, verdict="WARN", answer=answer, action=action, repeat=repeat)
    if told["n_units"] < MIN_UNITS:
        return ABOUT.unknown("n_units", f"{told['n_units']} units; {MIN_UNITS} are the least", "audit more units", "counts", **told)
    most = f"{lines.missing_warn:.0%}"
    answer = (
        f"Counts are in the tables; no column lacks values for more than {most} of the units, or for one group above others, of those of "
        f"{SMALL_CELL} units or more."
    )
    return ABOUT.finding("counts", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _gaps(found: Mapping[str, UnitGroups]) -> list[tuple[str, str, str, Interval]]:
    """For each column, how much more often it is missing in a group of another column than in the rest, both of 10 units or more."""
    gaps = []
    for (name, groups), (by, others) in itertools.permutations(found.items(), 2):
        if {name, by} == {"month", "season"}:
            continue
        blank = ~groups.known
        for column, group in enumerate(others.names):
            inside = others.shares[:, column] > 0
            outside = others.known & ~inside
            if min(inside.sum(), outside.sum()) >= SMALL_CELL:
                gaps.append((name, by, group, _difference(blank[inside], blank[outside])))
    return gaps


def _difference(inside: np.ndarray, outside: np.ndarray) -> Interval:
    """Difference of two shares with Newcombe's hybrid score interval (Newcombe 1998, method 10)."""
    a, b = (wilson(int(rows.sum()), len(rows)) for rows in (inside, outside))
    value = a.value - b.value
    low = value - float(np.hypot(a.value - a.low, b.high - b.value))
    return Interval(value=value, low=low, high=value + float(np.hypot(a.high - a.value, b.value - b.low)))


def _against(evidence: Evidence, name: str, target: Mapping[str, float], values: np.ndarray | None) -> Finding:
    """Distance of one column to its declared target."""
    told: dict[str, Any] = {"title": f"Is {name} distributed as in the population that the model is for?"}
    if values is None:
        return ABOUT.unknown("missing_column", f"the data have no column {name}", "add it to the CSV", name, **told)
    text = np.array([str(value).strip() for value in values])
    groups = group_units(evidence.data.label_units, np.where(np.isin(text, list(target)), text, as_groups(values)))
    known = groups.known
    told |= {"n_units": int(known.sum()), "n_images": len(text)}
    if not known.any():
        return ABOUT.unknown("missing_column", f"no unit has a value of {name}", "record it", name, **told)
    labels = tuple(dict.fromkeys((*target, *groups.names)))
    shares = np.stack([_column(groups, label)[known] for label in labels], axis=1)
    wanted = np.array([target.get(label, 0.0) for label in labels])
    distance = total_variation(shares, wanted, evidence.effort.bootstraps, evidence.effort.seed)
    counts = (shares > 0).sum(axis=0).tolist()
    told |= {
        "estimate": estimate_of(distance, "total variation distance", "basic bootstrap over units"),
        "tables": (_target_table(name, labels, counts, shares.mean(axis=0), wanted),),
        "plots": (_target_plot(name, labels, shares, wanted),),
        "counts": {f"units with {label}": printed(count) for label, count in zip(labels, counts)},
    }  # fmt: skip
    absent = [label for label, count, share in zip(labels, counts, wanted) if share > 0 and count == 0]
    return _target_verdict(name, absent, distance, told, evidence.lines)


def _target_verdict(name: str, absent: Sequence[str], distance: Interval, told: dict[str, Any], lines: Thresholds) -> Finding:
    words = (
        f"{distance.value:.0%} of the units [{distance.low:.0%}, {distance.high:.0%}] would have to be others to match the declared {name}"
    )
    repeat = f"With units of the missing groups of {name} added, the distance falls below {lines.target_warn:.2f}."
    if absent:
        answer = f"No: there is no unit with {name} {', '.join(absent)}, and {words}."
        action = f"Add units with {name} {', '.join(absent)}, or take them out of what the model is for."
        return ABOUT.finding(name, **told, verdict="FLAG", answer=answer, action=action, repeat=repeat)
    if told["n_units"] < MIN_UNITS:
        return ABOUT.unknown("n_units", f"{told['n_units']} units; {MIN_UNITS} are the least", "audit more units", name, **told)
    if distance.low > lines.target_warn:
        action = f"Add or reweight units by {name}."
        return ABOUT.finding(name, **told, verdict="WARN", answer=f"No: {words}.", action=action, repeat=repeat)
    if distance.high < lines.target_warn:
        return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=f"Near it: {words}.")
    reason = f"the distance may lie on either side of {lines.target_warn:.2f}"
    return ABOUT.unknown("wide_interval", reason, "audit more units", name, **told, answer=f"Undecided: {words}.")


def _column(groups: UnitGroups, label: str) -> np.ndarray:
    if label not in groups.names:
        return np.zeros(len(groups.units))
    found: np.ndarray = groups.shares[:, groups.names.index(label)]
    return found


def total_variation(shares: np.ndarray, wanted: np.ndarray, draws: int, seed: int) -> Interval:
    """Distance of the mean of units to a population.

    Args:
        shares: [U, G], each row sums to 1.
        wanted: [G].
        draws: Resamples of units.
        seed: Decides them.
    """
    value = float(np.abs(shares.mean(axis=0) - wanted).sum() / 2)
    generator = np.random.default_rng([seed, 0xC0B9])
    count, found = len(shares), []
    for start in range(0, draws, _BLOCK):
        weights = generator.multinomial(count, np.full(count, 1 / count), size=min(_BLOCK, draws - start)) / count
        found.append(np.abs(weights @ shares - wanted).sum(axis=1) / 2)
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return Interval(value=value, low=max(0.0, 2 * value - float(high)), high=min(1.0, max(value, 2 * value - float(low))))


def _target_table(name: str, labels: Sequence[str], counts: Sequence[int], shares: np.ndarray, wanted: np.ndarray) -> Table:
    rows = tuple(
        (label, printed(count), None if isinstance(printed(count), str) else round(float(share), 3), float(aim))
        for label, count, share, aim in zip(labels, counts, shares, wanted)
    )
    return Table(title=f"{name} against the declared population", columns=(name, "units", "share", "declared share"), rows=rows)


def _target_plot(name: str, labels: Sequence[str], shares: np.ndarray, wanted: np.ndarray) -> Forest:
    count = len(shares)
    rows = []
    for column, label in enumerate(labels):
        share, units = float(shares[:, column].mean()), int((shares[:, column] > 0).sum())
        if isinstance(printed(units), str):
            rows.append(Bar(label=f"{label} (< 10 units)", value=None, other=float(wanted[column])))
            continue
        half = Z95 * float(shares[:, column].std()) / np.sqrt(count)
        low, high = max(0.0, share - half), min(1.0, share + half)
        rows.append(Bar(label=label, value=share, low=low, high=high, n_units=units, other=float(wanted[column])))
    return Forest(title=f"{name} in the data and as declared", axis="share of units", rows=tuple(rows), other="declared share")


def self_test() -> SelfTest:
    """Plants a population in which one of three groups was dropped, and one that was drawn as declared."""
    generator = np.random.default_rng(3)
    wanted = np.array([0.5, 0.3, 0.2])
    planted = np.eye(3)[generator.choice(3, 400, p=[0.65, 0.35, 0.0])]
    clean = np.eye(3)[generator.choice(3, 400, p=wanted)]
    found, silent = (total_variation(rows, wanted, 400, 0) for rows in (planted, clean))
    return SelfTest(
        positive="pass" if found.low > 0.1 else "fail", negative="pass" if silent.low < 0.05 else "fail",
        detail=f"made-up units: distance {found.value:.2f} with a group dropped, {silent.value:.2f} from {silent.low:.2f} as declared",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(UNITS,))
