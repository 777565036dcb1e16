"""Recall: does a corner of a training image bring back what the rest of it shows?

A corner alone is shown to the encoder, and the nearest whole images of other training units vote on the class. What corners tell by
themselves, they tell as well of units reserved before training; what they tell more of units that were trained on is memory (Meehan et al.
2023). The untrained encoder is the blind baseline. n queries, g whole images of the gallery, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.audit.checks.membership import MEMBERS, RESERVED
from dinodomain.audit.evidence import ENCODER, TASK, UNITS, About, Check, Draft, Evidence, Result
from dinodomain.audit.figures import Bar, Forest, Table
from dinodomain.audit.finding import Finding, SelfTest, estimate_of, null_of
from dinodomain.audit.observe.corners import look_at_corners
from dinodomain.audit.protocol.attribute import Attribute
from dinodomain.audit.protocol.ladder import spread_rows
from dinodomain.audit.protocol.leak import Effort, p_value
from dinodomain.audit.protocol.task import read_column
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.probes.folds import index_units
from dinodomain.probes.knn import knn
from dinodomain.probes.scores import Interval, around, unit_weights

ABOUT = About(
    name="dejavu", code="DEJA", question="Q3", title="Does a corner of a training image recall what the rest of it shows?",
    limits=(
        "Recall of the class of the task only; other things that an image shows were not asked for.",
        "An average over units: single, unusual images may be recalled although the average is not.",
    ),
    maps_to={"EU AI Act": ("Art. 10(5)",), "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.10"), "FUTURE-AI": ("General 2",)},
)  # fmt: skip
MIN_UNITS = 500
"""On each side: a difference of .05 has a standard error of .03 there."""
FLAG_AT, WARN_AT = 0.05, 0.02
_REMEDY = "reserve more units before training (ingest.audit_holdout)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """Who is asked about, and who answers; all are rows of the probed set.

    Attributes:
        rows: [n] sorted, reserved units and as many trained ones.
        trained: [n] bool.
        y: [n] class.
        units: [n] 0..
        gallery: [g] rows of trained units that are not asked about.
        gallery_y: [g] class.
        classes: C.
    """

    rows: np.ndarray
    trained: np.ndarray
    y: np.ndarray
    units: np.ndarray
    gallery: np.ndarray
    gallery_y: np.ndarray
    classes: int

    @property
    def sides(self) -> tuple[int, int]:
        """Trained and reserved units."""
        trained, reserved = (len(np.unique(self.units[self.trained == side])) for side in (True, False))
        return trained, reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How often corners told the class.

    Attributes:
        trained: Share of trained units' corners.
        reserved: Share of reserved units' corners.
        more: Trained minus reserved, 95 %.
        null: [K] the difference where membership is dealt anew to units.
    """

    trained: float
    reserved: float
    more: Interval
    null: np.ndarray

    @property
    def p(self) -> float:
        """One-sided."""
        return p_value(self.more.value, self.null)


def run(evidence: Evidence) -> list[Result]:
    """Asks corners of reserved and trained units for the class of the task."""
    assert evidence.asked.task is not None, "needed"
    assert evidence.observer is not None, "needed"
    target = read_column(evidence.probed, evidence.asked.task)
    if target.kind != "classes" or target.one_class:
        return [ABOUT.unknown("task_kind", f"{target.name} holds no two classes", "name a task of a few classes")]
    asked = ask(evidence, target)
    trained, reserved = asked.sides
    told: dict[str, Any] = {"n_units": trained + reserved, "n_minor": reserved, "n_images": len(asked.rows)}
    if min(trained, reserved) < MIN_UNITS or len(np.unique(asked.gallery_y)) < 2:
        reason = f"{trained} trained and {reserved} reserved units can be asked about; {MIN_UNITS} of each are the least"
        return [ABOUT.unknown("n_units", reason, _REMEDY, **told)]
    data = evidence.probed
    corners = look_at_corners(evidence.observer, data.whole_rows[asked.rows], data.audited.shape[1], evidence.effort.seed)
    found = {
        name: recall_of(told_by(data.features[name], corners[name], asked), asked.trained, asked.units, evidence.effort)
        for name in ("audited", "untrained") if name in data.features
    }  # fmt: skip
    judge = lambda p, family: _finding(found, p[0], family, evidence.lines, told)  # noqa: E731
    return [Draft(p=(found["audited"].p,), judge=judge)]


def ask(evidence: Evidence, target: Attribute) -> Queries:
    """All reserved units and as many trained ones, a row of each before any has two; other trained units answer."""
    data, seed = evidence.probed, evidence.effort.seed
    assert data.holdout is not None, "needed"
    assert evidence.observer is not None, "needed"
    held, units = data.holdout[target.rows], index_units(data.units[target.rows])
    reserved, trained = (np.unique(units[held == side]) for side in (True, False))
    trained = np.setdiff1d(trained, reserved)
    most = min(len(reserved), len(trained) // 2)
    chosen = np.random.default_rng([seed, 0xDEA]).permutation(trained)[:most]
    sides = [np.flatnonzero(held), np.flatnonzero(~held & np.isin(units, chosen))]
    rows = np.sort(np.concatenate([side[spread_rows(units[side], evidence.observer.most // 2, seed)] for side in sides]))
    gallery = np.flatnonzero(~held & np.isin(units, np.setdiff1d(trained, chosen)))
    return Queries(
        rows=target.rows[rows], trained=~held[rows], y=target.values[rows], units=units[rows], gallery=target.rows[gallery],
        gallery_y=target.values[gallery], classes=len(target.classes),
    )  # fmt: skip


def told_by(whole: np.ndarray, corners: np.ndarray, asked: Queries) -> np.ndarray:
    """[n] 1 where the gallery's vote on a corner is the image's class, else 0; NaN where the corner had no data."""
    there = ~np.isnan(corners[:, 0])
    votes = knn(whole[asked.gallery], asked.gallery_y, corners[there], classes=asked.classes)
    out = np.full(len(corners), np.nan)
    out[there] = votes.argmax(axis=1) == asked.y[there]
    return out


def recall_of(told: np.ndarray, trained: np.ndarray, units: np.ndarray, effort: Effort) -> Recall:
    """Rates on both sides and their difference, by units.

    Args:
        told: [n] 1, 0 or NaN.
        trained: [n] bool, one value per unit.
        units: [n].
        effort: Permutations, draws, seed.
    """
    seen = ~np.isnan(told)
    told, trained, unit = told[seen], trained[seen], index_units(units[seen])
    _, first = np.unique(unit, return_index=True)
    sums, rows = np.bincount(unit, told), np.bincount(unit)
    draws = np.concatenate([piece[:, first] for piece in unit_weights(unit, effort.bootstraps, effort.seed)])
    side = trained[first]
    generator = np.random.default_rng([effort.seed, 0xDE1A])
    dealt = np.stack([generator.permutation(side) for _ in range(effort.permutations)])
    value, null = _more(sums, rows, side[None], np.ones((1, len(side))))[0], _more(sums, rows, dealt, np.ones((1, len(side))))
    error = max(float(np.nanstd(_more(sums, rows, side[None], draws))), float(null.std()))
    rates = [float(told[trained == one].mean()) for one in (True, False)]
    return Recall(trained=rates[0], reserved=rates[1], more=around(float(value), error), null=null)


def _more(sums: np.ndarray, rows: np.ndarray, side: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[K or B] rate of one side minus that of the other, from units' sums and rows [U] under sides [K, U] and weights [B, U]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = [((one * weights) @ sums) / ((one * weights) @ rows) for one in (side, ~side)]
    result: np.ndarray = rates[0] - rates[1]
    return result


def _finding(found: Mapping[str, Recall], p: float, family: int, lines: Thresholds, told: dict[str, Any]) -> Finding:
    audited, blind = found["audited"], found.get("untrained")
    more, null = audited.more, null_of("unit permutation", audited.null, audited.p, p, family)
    told = {
        **told, "estimate": estimate_of(more, "share recalled, trained minus reserved", "1.96 x max(SE of unit bootstrap, SD of null)"),
        "null": null, "tables": (_table(found),), "plots": (_plot(found),),
    }  # fmt: skip
    if blind is not None and blind.more.low > WARN_AT:
        reason = f"an untrained encoder tells {blind.more.value:.2f} more of the trained units: the groups differ in more than membership"
        remedy = "ingest anew, so that units are reserved at random, and train again"
        return ABOUT.unknown("not_exchangeable", reason, remedy, **told, answer="The groups are not comparable.")
    verdict = _verdict(more, p, lines)
    words = {"FLAG": "Yes", "WARN": "Yes, weakly", "CLEAR_WITHIN_LIMITS": "Not that could be shown"}.get(verdict, "Undecided")
    answer = (
        f"{words}: corners tell the class of {audited.trained:.0%} of trained and {audited.reserved:.0%} of reserved images, "
        f"{100 * more.value:+.0f} points [{100 * more.low:.0f}, {100 * more.high:.0f}]."
    )
    if verdict == "NOT_ASSESSABLE":
        return ABOUT.unknown("low_power", f"a difference of {more.high:.2f} cannot be ruled out", _REMEDY, **told, answer=answer)
    bad = verdict != "CLEAR_WITHIN_LIMITS"
    return ABOUT.finding(
        **told, verdict=verdict, answer=answer, encoded=bad,
        action="Do not publish weights before duplicates were removed and fewer epochs were tried." if bad else "",
        repeat="The same corners on a model trained without duplicates or with fewer epochs." if bad else "",
    )  # fmt: skip


def _verdict(more: Interval, p: float, lines: Thresholds) -> Verdict:
    if p <= lines.alpha and more.low > WARN_AT:
        return "FLAG" if more.low > FLAG_AT else "WARN"
    return "CLEAR_WITHIN_LIMITS" if more.high < FLAG_AT else "NOT_ASSESSABLE"


def _table(found: Mapping[str, Recall]) -> Table:
    heads = ("encoder", "trained units", "reserved units", "difference", "low", "high", "p")
    rows = tuple((name, at.trained, at.reserved, at.more.value, at.more.low, at.more.high, at.p) for name, at in found.items())
    return Table(
        title="Classes told by corners", columns=heads, rows=rows,
        note="Share of corners for which the nearest whole images of other trained units vote for the right class.",
    )  # fmt: skip


def _plot(found: Mapping[str, Recall]) -> Forest:
    bars = tuple(Bar(label=name, value=at.more.value, low=at.more.low, high=at.more.high) for name, at in found.items())
    low, high = np.percentile(found["audited"].null, [2.5, 97.5])
    return Forest(
        title="More recalled of trained than of reserved units", axis="difference of shares", rows=bars,
        lines={"flag": FLAG_AT, "warn": WARN_AT}, band=(float(low), float(high)),
    )  # fmt: skip


def self_test() -> SelfTest:
    """Corners of one side that are told more often, and sides that are told alike."""
    generator = np.random.default_rng(4)
    trained, units = np.repeat([True, False], 500), np.arange(1000)
    effort = Effort(permutations=199, bootstraps=200)
    planted, silent = (
        recall_of((generator.random(1000) < np.where(trained, share, 0.3)).astype(float), trained, units, effort) for share in (0.5, 0.3)
    )
    return SelfTest(
        positive="pass" if planted.more.low > FLAG_AT else "fail", negative="pass" if silent.more.low <= WARN_AT else "fail",
        detail=f"made-up recall: difference {planted.more} planted, {silent.more} without",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(RESERVED, MEMBERS, UNITS, TASK, ENCODER), count=lambda _: 1)
