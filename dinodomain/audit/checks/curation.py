"""Curation: did what was refused, left out, held out, withdrawn or too empty to draw from change who is in the training?

At each stage of the trail a unit keeps some share of its sources. The retention ratio of a group is the mean share that its units keep
over that of all other units, with a delta-method interval on the log scale (Katz et al. 1978, where a unit keeps all or nothing); chance is
told by permuting units between groups. Also lists the view operations that can destroy meaning, from the recorded policy. U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinodomain.audit.evidence import TRAIL, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Cell, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.retention import Retention, retention
from dinodomain.audit.protocol.verdict import MIN_UNITS, Thresholds, Verdict
from dinodomain.audit.trail.groups import as_groups
from dinodomain.audit.trail.kept import Kept
from dinodomain.audit.trail.operations import operations_of
from dinodomain.ingest.sources import LEFT_OUT, REFUSED
from dinodomain.probes.scores import Interval

ABOUT = About(
    name="curation", code="CURE", question="Q1", core=True, title="Did curation or augmentation change who is represented?",
    limits=(
        "Sees only exclusions that were recorded: what never lay below the source folder is not counted.",
        "A source that was skipped, or belongs to nobody known, counts as a unit of its own.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(b)", "Art. 10(2)(c)", "Annex IV 2(d)"), "NIST AI RMF": ("MAP 4.1", "MANAGE 3.1"),
        "FUTURE-AI": ("Traceability 2",),
    },
)  # fmt: skip
STAGES = ("refused at ingest", "left out by choice", "too few valid pixels", "held out")


def run(evidence: Evidence) -> list[Result]:
    """One finding per named column, one on withdrawn sources where there are any, one on the views."""
    assert evidence.trail is not None, "needed"
    kept = evidence.trail.kept
    results: list[Result] = [_operations(evidence)]
    if kept is None:
        return [ABOUT.unknown("no_store", "the store was not opened", "audit with store=STORE"), *results]
    if kept.withdrawn_sources:
        reason = f"{kept.withdrawn_sources} sources were withdrawn, and the store rightly keeps nothing that tells their group"
        results.append(ABOUT.unknown("withdrawn", reason, "none: what was withdrawn must stay unknown", "withdrawn",
                                     title="Did withdrawals change who is represented?"))  # fmt: skip
    names = [name for name in dict.fromkeys((*evidence.asked.attributes, *evidence.asked.domains)) if name in kept.groups]
    if not names:
        remedy = "name columns of the store or the CSV with audit.attributes=[...] or audit.domains=[...]"
        results.append(ABOUT.unknown("no_column", "no column was named that tells groups apart", remedy, "groups"))
    return [*(_column(evidence, kept, name) for name in names), *results]


def stages_of(kept: Kept, name: str, data: AuditSet) -> tuple[dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], dict[str, str]]:
    """What each stage had before it, and what it kept.

    Args:
        kept: The store.
        name: Column of groups.
        data: The audited set, which says units where its rows are of this store.

    Returns:
        Stage to (unit, group and 1 kept / 0 not, per source), and why other stages cannot be looked at.
    """
    units = _source_units(kept, data)
    values = kept.groups[name]
    found, silent = {}, {}
    for kind, stage in ((REFUSED, STAGES[0]), (LEFT_OUT, STAGES[1])):
        lost = [item for item in kept.skipped if item.kind == kind]
        if not lost:
            continue
        known = [item for item in lost if item.groups.get(name)]
        if len(known) < len(lost) / 2:
            silent[stage] = f"the group of {len(lost) - len(known)} of {len(lost)} sources {stage} is not known: no CSV says it"
            continue
        own = [f"\0skipped {number}" for number in range(len(known))]
        found[stage] = (
            np.concatenate([units, own]), np.concatenate([values, [item.groups[name] for item in known]]),
            np.concatenate([np.ones(len(units)), np.zeros(len(known))]),
        )  # fmt: skip
    free = ~kept.held_sources
    if not kept.eligible_sources[free].all():
        found[STAGES[2]] = (units[free], values[free], kept.eligible_sources[free].astype(float))
    if kept.held_sources.any():
        found[STAGES[3]] = (units, values, free.astype(float))
    return found, silent


def _source_units(kept: Kept, data: AuditSet) -> np.ndarray:
    """[S] unit of each source as text, as the audit takes it; one of them where its tiles lie in several ground cells."""
    out = np.array([f"\0source {row}" for row in range(len(kept))], dtype=object)
    rows, first = np.unique(kept.unit_rows, return_index=True)
    named = kept.unit_names[first]
    out[rows[named != ""]] = named[named != ""]
    if data.holdout is not None:  # rows of a store, not of a file of features
        known = data.units != ""
        out[data.sources[known]] = data.units[known]
    return out.astype(np.str_)


def _column(evidence: Evidence, kept: Kept, name: str) -> Result:
    found, silent = stages_of(kept, name, evidence.data)
    told: dict[str, Any] = {"title": f"Were some groups of {name} kept out of the training more often than others?"}
    told["n_units"], told["n_images"] = kept.num_units, len(kept)
    measured, small = [], False
    for stage, (units, values, flags) in found.items():
        ratios, few = retention(stage, units, values, flags, evidence.effort.permutations, evidence.effort.seed)
        measured += ratios
        small |= few
    told["evidence"] = {"not_assessed": silent, "stages": list(found)}
    if not measured:
        return _nothing(name, found, silent, told)
    judge = lambda adjusted, _: _finding(name, measured, adjusted, silent, small, told, evidence.lines)  # noqa: E731
    return Draft(p=tuple(item.p for item in measured), judge=judge)


def _nothing(name: str, found: Mapping[str, Any], silent: Mapping[str, str], told: dict[str, Any]) -> Finding:
    if silent:
        remedy = "give a CSV that names the skipped sources, too (labels=, audit.join=)"
        return ABOUT.unknown("missing_column", "; ".join(silent.values()), remedy, name, **told)
    if found:
        reason = f"no two groups of {name} have {MIN_UNITS} units"
        return ABOUT.unknown("n_units", reason, "audit more units", name, **told)
    answer = "No source was refused, left out, held out or too empty to draw from."
    return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _finding(
    name: str, measured: Sequence[Retention], adjusted: Sequence[float], silent: Mapping[str, str], small: bool, told: dict[str, Any],
    lines: Thresholds,
) -> Finding:  # fmt: skip
    worst = max(measured, key=_least_change)
    told = {
        **told, "estimate": estimate_of(worst.ratio, f"retention of {worst.group} over the rest", "log-normal, by unit"),
        "n_minor": min(item.inside for item in measured), "tables": (_table(name, measured, adjusted),),
        "plots": (_plot(name, measured, lines),),
    }  # fmt: skip
    sure = [item for item, p in zip(measured, adjusted) if p <= lines.alpha]
    flagged, warned = ([item for item in sure if _outside(item.ratio, line)] for line in (lines.retention_flag, lines.retention_warn))
    if flagged or warned:
        verdict: Verdict = "FLAG" if flagged else "WARN"
        answer = "Yes: " + "; ".join(_words(item) for item in flagged or warned) + "."
        action = "Look at the reasons of these exclusions; take back what was excluded for how it was recorded, not for what it shows."
        repeat = f"After a new ingest the retention ratios lie within {lines.retention_warn:.2f} to {1 / lines.retention_warn:.2f}."
        return ABOUT.finding(name, **told, verdict=verdict, answer=answer, action=action, repeat=repeat)
    narrow = all(lines.retention_warn < item.ratio.low and item.ratio.high < 1 / lines.retention_warn for item in measured)
    if narrow and not silent and not small:
        answer = f"No group of {name} was kept out more often by a fifth; the largest change: {_words(worst)}."
        return ABOUT.finding(name, **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)
    reason = "; ".join(
        [
            *silent.values(),
            *([f"some groups of {name} have fewer than {MIN_UNITS} units"] if small else []),
            *([] if narrow else ["some intervals reach beyond the line"]),
        ]
    )
    remedy = "audit more units, and a CSV that names skipped sources, too"
    return ABOUT.unknown("wide_interval" if not narrow else "missing_column" if silent else "n_units", reason, remedy, name, **told,
                         answer=f"Undecided; the largest change: {_words(worst)}.")  # fmt: skip


def _least_change(item: Retention) -> float:
    """How far from 1 a ratio is at the least, on the log scale; ties by its value."""
    low, high = np.log(item.ratio.low), np.log(item.ratio.high)
    return float(max(low, -high)) + 1e-6 * abs(float(np.log(item.ratio.value)))


def _outside(ratio: Interval, line: float) -> bool:
    return ratio.high < line or ratio.low > 1 / line


def _words(item: Retention) -> str:
    at = item.ratio
    return f"{item.stage}: {item.group} kept {at.value:.2f} [{at.low:.2f}, {at.high:.2f}] times as often as the rest"


def _table(name: str, measured: Sequence[Retention], adjusted: Sequence[float]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (item.stage, item.group, printed(item.inside), printed(item.outside), round(item.kept, 3), item.ratio.value, item.ratio.low,
         item.ratio.high, p)
        for item, p in zip(measured, adjusted)
    )  # fmt: skip
    columns = ("stage", name, "units", "other units", "share kept", "ratio", "low", "high", "p corrected")
    return Table(title=f"Retention by {name}", columns=columns, rows=rows)


def _plot(name: str, measured: Sequence[Retention], lines: Thresholds) -> Forest:
    rows = tuple(
        Bar(label=f"{item.stage}: {item.group}", value=item.ratio.value, low=item.ratio.low, high=item.ratio.high, n_units=item.inside)
        for item in measured
    )
    marks = {"warn below": lines.retention_warn, "warn above": 1 / lines.retention_warn, "equal": 1.0}
    return Forest(title=f"Retention by {name}", axis="share kept over that of the rest", rows=rows, lines=marks)


def _operations(evidence: Evidence) -> Finding:
    assert evidence.trail is not None, "needed"
    told: dict[str, Any] = {"title": "Which view operations can destroy meaning that a task may need?"}
    if not evidence.trail.policy:
        remedy = "audit a checkpoint that was trained by this package"
        return ABOUT.unknown("no_lineage", "the view policy of the training is not recorded", remedy, "view_policy", **told)
    if not evidence.trail.policy.get("augment", True):
        answer = "None: views were not augmented (views.augment=false)."
        return ABOUT.finding("view_policy", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)
    found = operations_of(evidence.trail.policy)
    note = "Listed from the recorded policy; whether a task loses by it is measured by the task, not here."
    told["tables"] = (Table(title="View operations", columns=("operation", "settings", "may destroy"), rows=tuple(found), note=note),)
    if not found:
        return ABOUT.finding("view_policy", **told, verdict="CLEAR_WITHIN_LIMITS", answer="None of the operations known to do so was on.")
    answer = f"{len(found)} of its operations can destroy meaning: {', '.join(name for name, _, _ in found)}."
    action = "Compare the table with what the tasks must tell apart, and switch off (views.policy) what would hide it."
    return ABOUT.finding(
        "view_policy", **told, verdict="WARN", answer=answer, action=action, repeat="A new training lists only what is still on."
    )


def self_test() -> SelfTest:
    """Plants a filter that drops half of one group, and one that drops a tenth at random."""
    generator = np.random.default_rng(8)
    units, groups = np.array([f"u{i}" for i in range(400)]), np.tile(["a", "b"], 200)
    planted = np.where((groups == "b") & (generator.random(400) < 0.6), 0.0, 1.0)
    clean = (generator.random(400) > 0.1).astype(float)
    found, silent = (retention("made up", units, groups, flags, 199, 0)[0] for flags in (planted, clean))
    hit = any(_outside(item.ratio, 0.8) and item.p <= 0.01 for item in found)
    quiet = not any(_outside(item.ratio, 0.8) for item in silent)
    return SelfTest(
        positive="pass" if hit else "fail", negative="pass" if quiet else "fail",
        detail=f"made-up filters: ratio {found[1].ratio.value:.2f} planted, {silent[1].ratio.value:.2f} clean",
    )  # fmt: skip


def _tests(evidence: Evidence) -> int:
    """Most tests: every group of every column at every stage that can be looked at."""
    kept = None if evidence.trail is None else evidence.trail.kept
    if kept is None:
        return 0
    names = [name for name in dict.fromkeys((*evidence.asked.attributes, *evidence.asked.domains)) if name in kept.groups]
    return sum(len(set(as_groups(values)) - {""}) for name in names for _, values, _ in stages_of(kept, name, evidence.data)[0].values())


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(TRAIL,), count=_tests)
