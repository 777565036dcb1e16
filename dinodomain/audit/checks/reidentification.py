"""Recognition: do the features link two visits of one person, beyond what a shared scanner, site or age would?

Two visits of each person are compared by plain cosine and by a metric learnt on other persons (whitening and discriminant analysis),
against all impostors and against those of the same site, sensor and strata. Retinal and chest images re-identified 26 to 46 % of patients
from published features (Nebbia et al. 2025, npj Digital Medicine).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.evidence import UNITS, About, Check, Evidence, Result
from dinodomain.audit.figures import Curves, Series, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of
from dinodomain.audit.protocol.attribute import MISSING
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.strata import unit_strata
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.audit.protocol.verification import FALSE_ACCEPT, GALLERIES, Trial, trials
from dinodomain.probes.folds import index_units
from dinodomain.probes.scores import Interval

ABOUT = About(
    name="reidentification", code="REID", question="Q3", core=True, title="Do the features recognise a person seen before?",
    limits=(
        "Two metrics; an attacker with a trained network recognises more.",
        "Recognition among these people; another gallery may be easier or harder.",
        "Visits that share a scanner or a day share more than the person.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(5)",), "GDPR": ("Art. 9", "Art. 32", "Art. 35"), "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.10"),
        "FUTURE-AI": ("General 2",),
    },
)  # fmt: skip
MIN_PERSONS, MIN_COUNTED = 200, 30
MAX_PERSONS = 3000  # all pairs of more would not fit
STRICT = 1e-3  # the false accept rate that the verdict looks at
FIRST_OF = 1000  # the gallery that the verdict looks at
_DRAWS = 500
_WORDS = {
    "raw": "cosine, all impostors", "raw matched": "cosine, matched impostors", "learnt": "learnt metric, all impostors",
    "learnt matched": "learnt metric, matched impostors",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Units with two visits.

    Attributes:
        first: [U, E] mean features of one visit of each.
        second: [U, E] of another.
        keys: [U] stratum of each for matched impostors.
        all_visits: [V, E] mean features of every visit of these units.
        owners: [V] their units.
    """

    first: np.ndarray
    second: np.ndarray
    keys: np.ndarray
    all_visits: np.ndarray
    owners: np.ndarray


def run(evidence: Evidence) -> list[Result]:
    """One finding."""
    data, asked = evidence.data, evidence.asked
    if (reason := _no_people(evidence)) is not None:
        return [ABOUT.finding(verdict="NOT_APPLICABLE", answer="Nobody to recognise.", reason_code="no_persons", reason=reason)]
    matched_by = tuple(dict.fromkeys((*asked.domains, *asked.strata)))
    visits = pair_visits(data, asked.study, matched_by, evidence.effort.seed)
    count = len(visits.first)
    told: dict[str, Any] = {
        "n_units": count, "n_images": len(data.units), "counts": {"units with two visits": count if count >= 10 else "< 10"},
        "evidence": {"visit": asked.study or "each source", "matched_by": list(matched_by)},
    }  # fmt: skip
    if count < MIN_COUNTED:
        reason = f"{count} units have two visits; {MIN_PERSONS} are asked for, {MIN_COUNTED} are the least for a number"
        return [ABOUT.unknown("n_units", reason, _remedy(asked.study), **told)]
    found = _trials(visits, min(_DRAWS, evidence.effort.bootstraps), evidence.effort.seed)
    return [_finding(found, told, asked.study, matched_by, evidence.lines)]


def _remedy(study: str | None) -> str:
    return (
        "audit more people with two visits"
        if study
        else "name the column that tells visits apart (audit.study=COLUMN), or audit more people"
    )


def _no_people(evidence: Evidence) -> str | None:
    """Why units cannot be people: the policy says so, or says nothing and every image has a place on earth."""
    if evidence.policy.persons is not None:
        return None if evidence.policy.persons else "the policy says that units are no people"
    columns = evidence.data.columns
    if evidence.asked.study is None and {"lon", "lat"} <= set(columns):
        known = [np.mean([str(value).strip().lower() not in MISSING for value in columns[name]]) for name in ("lon", "lat")]
        if min(known) == 1:
            return "units are places on earth; set persons: true in the policy where they are people"
    return None


def pair_visits(data: AuditSet, study: str | None, matched_by: tuple[str, ...], seed: int) -> Visits:
    """Two visits, drawn at random, of each unit that has two; 3,000 units at most.

    Args:
        data: All rows.
        study: Column of the visit; None takes each source for one. Rows without a visit are left out.
        matched_by: Columns that impostors must share.
        seed: Decides the draws.
    """
    visit = np.array([str(value).strip() for value in (data.sources if study is None else data.columns[study])])
    known = np.flatnonzero(~np.isin(np.char.lower(visit), list(MISSING)))
    pairs = np.char.add(np.char.add(data.units[known].astype(str), "\0"), visit[known])
    _, first_row, place = np.unique(pairs, return_index=True, return_inverse=True)
    place, owner_names = place.reshape(-1), data.units[known][first_row]
    means = np.zeros((len(first_row), data.audited.shape[1]))
    np.add.at(means, place, data.audited[known].astype(np.float64))
    means /= np.bincount(place)[:, None]
    names, owners, sizes = np.unique(owner_names, return_inverse=True, return_counts=True)
    generator = np.random.default_rng([seed, 0x5E1D])
    chosen = np.sort(generator.permutation(np.flatnonzero(sizes >= 2))[:MAX_PERSONS])
    order = generator.permutation(len(owners))
    order = order[np.argsort(owners[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    ours = np.isin(owners, chosen)
    rows = known[np.isin(data.units[known], names[chosen])]
    columns = {name: np.asarray(data.columns[name])[rows] for name in matched_by}
    keys = unit_strata(columns, matched_by, index_units(data.units[rows])) if len(chosen) else np.empty(0, np.int64)
    return Visits(
        first=means[order[starts[chosen]]], second=means[order[starts[chosen] + 1]], keys=keys, all_visits=means[ours],
        owners=np.searchsorted(chosen, owners[ours]),
    )  # fmt: skip


def _trials(visits: Visits, draws: int, seed: int) -> dict[str, Trial]:
    return trials(visits.first, visits.second, visits.all_visits, visits.owners, visits.keys, draws, seed)


def _finding(
    found: Mapping[str, Trial], told: dict[str, Any], study: str | None, matched_by: tuple[str, ...], lines: Thresholds
) -> Finding:  # fmt: skip
    judged = _judged(found)
    worst = max(judged, key=lambda row: row[1].low / row[2], default=None)
    told = {**told, "tables": (_table(found),), "plots": (_det(found), _ranks(found)), "limits": _limits(study, matched_by)}
    told["evidence"] = {**told["evidence"], **{name: _numbers(trial) for name, trial in found.items()}}
    score = "; ".join(f"{_WORDS[name]}: AUROC {trial.auroc.value:.2f}" for name, trial in found.items())
    if worst is not None:
        at = worst[1]
        told["estimate"] = estimate_of(at, worst[0], "unit bootstrap, no narrower than Wilson's")
        score = f"{worst[0]}: {at.value:.3f} [{at.low:.3f}, {at.high:.3f}], chance {worst[2]:g} ({score})"
    verdict, code, reason = _verdict(judged, lines)
    if told["n_units"] < MIN_PERSONS and verdict != "FLAG":
        reason = f"{told['n_units']} units have two visits; {MIN_PERSONS} are needed for any verdict but FLAG"
        return ABOUT.unknown("n_units", reason, _remedy(study), **told, answer=f"Undecided: {score}.")
    words = {"FLAG": "Yes", "WARN": "More often than by chance", "CLEAR_WITHIN_LIMITS": "Not by these metrics"}.get(verdict, "Undecided")
    acting = verdict in ("FLAG", "WARN")
    return ABOUT.finding(
        **told, verdict=verdict, answer=f"{words}: {score}.", reason_code=code, reason=reason, encoded=acting or None,
        action="Do not publish features of single images; forbid linkage in the terms of use; try another release layer." if acting else "",
        repeat="After the change, a share recognised whose interval ends below ten times chance." if acting else "",
        remedy="audit more people with two visits" if verdict == "NOT_ASSESSABLE" else "",
    )  # fmt: skip


def _judged(found: Mapping[str, Trial]) -> list[tuple[str, Interval, float, bool]]:
    """What the verdict looks at: name, share recognised, chance, and whether a flag may rest on it.

    Sharing a site is not being recognised, so at a false accept rate only matched impostors flag where matching was asked for and
    possible; being first of a thousand flags by itself.
    """
    out = []
    for name, trial in found.items():
        if trial.assessable(STRICT):
            counts = name.endswith("matched") or f"{name} matched" not in found
            out.append((f"recognised at FAR {STRICT:g}, {_WORDS[name]}", trial.accepted(STRICT), STRICT, counts))
        if not name.endswith("matched") and (first := trial.rank_one(FIRST_OF)) is not None:
            out.append((f"first of {FIRST_OF:,}, {_WORDS[name]}", first, 1 / FIRST_OF, True))
    return out


def _verdict(judged: list[tuple[str, Interval, float, bool]], lines: Thresholds) -> tuple[Verdict, str, str]:
    if any(at.low >= lines.identity_flag for _, at, _, counts in judged if counts):
        return "FLAG", "", ""
    if any(at.low >= lines.identity_warn * chance for _, at, chance, _ in judged):
        return "WARN", "", ""
    if not any(counts for *_, counts in judged):
        return "NOT_ASSESSABLE", "n_pairs", f"too few matched impostor pairs for a false accept rate of {STRICT:g}"
    wide = [name for name, at, chance, _ in judged if at.high >= lines.identity_warn * chance]
    if wide:
        return "NOT_ASSESSABLE", "wide_interval", f"{lines.identity_warn:g} times chance is not ruled out ({wide[0]})"
    return "CLEAR_WITHIN_LIMITS", "", ""


def _limits(study: str | None, matched_by: tuple[str, ...]) -> tuple[str, ...]:
    extra = (
        [] if study else ["No column tells visits apart: each source counts as one, so two images of one visit may pass for two visits."]
    )
    extra += [] if matched_by else ["Impostors were not matched: people of one site or age may be taken for one another less often."]
    return (*ABOUT.limits, *extra)


def _numbers(trial: Trial) -> dict[str, Any]:
    shares = {f"tpr_at_far_{rate:g}": _plain(trial.accepted(rate)) for rate in FALSE_ACCEPT if trial.assessable(rate)}
    ranks = {f"rank1_of_{size}": _plain(at) for size in GALLERIES if (at := trial.rank_one(size)) is not None}
    return {"auroc": _plain(trial.auroc), "impostor_pairs": len(trial.impostors), **shares, **ranks}


def _plain(at: Interval) -> list[float]:
    return [at.value, at.low, at.high]


def _table(found: Mapping[str, Trial]) -> Table:
    columns = ("metric", "impostor pairs", "AUROC", *(f"recognised at FAR {rate:g}" for rate in FALSE_ACCEPT))
    columns += tuple(f"first of {size:,}" for size in GALLERIES)
    rows = []
    for name, trial in found.items():
        shares = [str(trial.accepted(rate)) if trial.assessable(rate) else None for rate in FALSE_ACCEPT]
        ranks = [str(at) if (at := trial.rank_one(size)) is not None else None for size in GALLERIES]
        rows.append((_WORDS[name], len(trial.impostors), str(trial.auroc), *shares, *ranks))
    note = "Empty: too few impostor pairs (10 / FAR are asked for) or units. Chance is the FAR, and 1 over the size of the gallery."
    return Table(title="Recognition", columns=columns, rows=tuple(rows), note=note)


def _det(found: Mapping[str, Trial]) -> Curves:
    series = []
    for name, trial in found.items():
        rates, missed = trial.curve()
        series.append(Series(name=_WORDS[name], x=tuple(rates.tolist()), y=tuple(missed.tolist())))
    return Curves(
        title="Recognised or missed", x_axis="impostor pairs accepted (share)", y_axis="genuine pairs missed (share)", series=tuple(series),
        x_log=True,
    )  # fmt: skip


def _ranks(found: Mapping[str, Trial]) -> Curves:
    series = []
    for name, trial in found.items():
        sizes = [size for size in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if trial.rank_one(size) is not None]
        at = [trial.rank_one(size) for size in sizes]
        values = [[getattr(one, end) for one in at if one is not None] for end in ("value", "low", "high")]
        series.append(
            Series(name=_WORDS[name], x=tuple(map(float, sizes)), y=tuple(values[0]), low=tuple(values[1]), high=tuple(values[2]))
        )
    longest = max((one.x for one in series), key=len)
    series.append(Series(name="chance", x=longest, y=tuple(1 / size for size in longest)))
    return Curves(
        title="Found first in a gallery", x_axis="people in the gallery", y_axis="share found first", series=tuple(series), x_log=True
    )


def self_test() -> SelfTest:
    """People with a code of their own in the features, and the same with visits dealt to people at random."""
    generator = np.random.default_rng(6)
    owners = np.repeat(np.arange(200), 2)
    coded = generator.normal(size=(200, 16))[owners] + 0.5 * generator.normal(size=(400, 16))
    planted, clean = (_recognised(rows, owners) for rows in (coded, generator.permutation(coded)))
    return SelfTest(
        positive="pass" if planted.low > 0.5 else "fail", negative="pass" if clean.low < Thresholds().identity_warn * STRICT else "fail",
        detail=f"made-up people: {planted.value:.2f} recognised at FAR {STRICT:g} with a planted code, {clean.value:.3f} without",
    )  # fmt: skip


def _recognised(rows: np.ndarray, owners: np.ndarray) -> Interval:
    found = trials(rows[::2], rows[1::2], rows, owners, np.zeros(len(rows) // 2, int), 50, 0)
    return found["raw"].accepted(STRICT)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(UNITS,))
