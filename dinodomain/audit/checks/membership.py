"""Membership: can one tell from the features whether a unit was in the training data?

Needs units that were reserved at random before training; without them any difference may be one of years or sites. The attacker is
the attribute check's linear probe, trained on known members and reserved units of other folds: on features, and on how much crops of a tile
agree. Pixels and an untrained encoder are the blind baseline: if they tell the two apart as well, the sets are not exchangeable and nothing
follows (Das et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dinodomain.audit.checks.attribute import evidence_of, self_test
from dinodomain.audit.evidence import UNITS, About, Check, Draft, Evidence, Need, Result
from dinodomain.audit.figures import Table
from dinodomain.audit.finding import Finding
from dinodomain.audit.observe import Observer
from dinodomain.audit.observe.views import look_at_crops, training_views
from dinodomain.audit.protocol.data import AuditSet, take
from dinodomain.audit.protocol.reading import Reading, measure
from dinodomain.audit.protocol.verdict import Thresholds, judge

ABOUT = About(
    name="membership", code="MIA", question="Q3", core=True,
    title="Can it be told from the features which units the model was trained on?",
    limits=(
        "Two attacks, on pooled features and on how crops of a tile agree; stronger ones use the loss or several models.",
        "An average over units: single, unusual units may be more exposed.",
    ),
    maps_to={"EU AI Act": ("Art. 10(5)",), "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.10"), "FUTURE-AI": ("General 2",)},
)  # fmt: skip
FLAG_AT, CLEAR_AT, BLIND_AT = 0.60, 0.55, 0.52
FEW = 1000
"""Reserved units from which a rate at 1 % false alarms is told."""
_COLUMN = "training membership"


RESERVED = Need(
    there=lambda evidence: evidence.data.holdout is not None and bool(evidence.data.holdout.any()), code="no_random_nonmembers",
    reason="no units were reserved at random before training, so there are no comparable non-members",
    remedy="ingest at least 300 units with an audit holdout, then train again",
)  # fmt: skip
MEMBERS = Need(
    there=lambda evidence: evidence.data.members_known, code="members_unknown",
    reason="the audited encoder is not known to have been trained on this store",
    remedy="audit a checkpoint together with the store it was trained on",
)  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """Reads reserved against trained from the features and, where the encoder is there, from how it treats crops of each tile."""
    attacks = {"features": _attack(evidence.probed, evidence)}
    if evidence.observer is not None:
        attacks["crops"] = _attack(_with_crops(evidence, evidence.observer), evidence)
    measured = {name: reading for name, reading in attacks.items() if reading.leaks}
    if not measured:
        reading = attacks["features"]
        reason = f"{reading.attribute.num_minor} units in the smaller group; 30 are the least for an estimate"
        remedy = "reserve more units before training (ingest.audit_holdout)"
        return [ABOUT.unknown("n_units", reason, remedy, **_told(reading), answer="Nothing but counts can be given.")]
    judge = lambda p, family: _judge(measured, p, family, evidence.lines)  # noqa: E731
    return [Draft(p=tuple(reading.leaks["audited"].p for reading in measured.values()), judge=judge)]


def _attack(data: AuditSet, evidence: Evidence) -> Reading:
    assert data.holdout is not None, "needed"
    labels = np.where(data.holdout, "reserved", "trained")
    # Reservation is of patients and ground cells, not of whole sources.
    told = replace(data, columns={_COLUMN: labels}, split=None, linked=None)
    return measure(told, _COLUMN, effort=evidence.effort, alpha=evidence.alpha("Q3"))


def _with_crops(evidence: Evidence, observer: Observer) -> AuditSet:
    """All reserved tiles and as many others, described by what crops of them do: three numbers each."""
    data, seed = evidence.probed, evidence.effort.seed
    assert data.holdout is not None, "needed"
    reserved, others = np.flatnonzero(data.holdout), np.flatnonzero(~data.holdout)
    count = max(len(reserved), observer.most - len(reserved))
    chosen = np.sort(np.concatenate([reserved, np.random.default_rng([seed, 0x3E3]).permutation(others)[:count]]))
    part = take(data, chosen)
    assert part.numbers is not None, "rows were taken"
    return replace(part, features=look_at_crops(observer, part.numbers, training_views(observer, evidence.record), seed))


def _told(reading: Reading) -> dict[str, Any]:
    attribute = reading.attribute
    return {"n_units": attribute.num_units, "n_minor": attribute.num_minor, "n_images": len(attribute.rows)}


def _judge(measured: Mapping[str, Reading], p: tuple[float, ...], family: int, thresholds: Thresholds) -> Finding:
    """By the attack that got furthest; a blind baseline that tells the groups apart undoes all of them."""
    pairs = dict(zip(measured, p))
    best = max(measured, key=lambda name: measured[name].leaks["audited"].interval.low)
    reading, leak = measured[best], measured[best].leaks["audited"]
    told = {**_told(reading), **evidence_of(reading, pairs[best], family), "tables": (_table(measured, pairs),)}
    blind = _blind(measured)
    if blind:
        remedy = "ingest anew, so that units are reserved at random, and train again"
        return ABOUT.unknown("not_exchangeable", blind, remedy, **told, answer="The groups are not comparable.")
    lines = thresholds.model_copy(update={"tau_flag": FLAG_AT, "tau_clear": CLEAR_AT})
    assert reading.sensitivity is not None, "planted wherever it was read"
    verdict, code, reason = judge(leak.interval, pairs[best], reading.sensitivity.mdl, reading.attribute.num_minor, thresholds=lines)
    at = leak.interval
    words = {"FLAG": "Yes", "WARN": "Yes, weakly", "CLEAR_WITHIN_LIMITS": "Not by these attacks"}.get(verdict, "Undecided")
    answer = f"{words}: from {best} {at.value:.2f} [{at.low:.2f}, {at.high:.2f}], chance {leak.null.mean():.2f}."
    found = verdict in ("FLAG", "WARN")
    return ABOUT.finding(
        **told, verdict=verdict, reason_code=code, reason=reason, answer=answer, encoded=found if verdict != "NOT_ASSESSABLE" else None,
        remedy="reserve more units before training (ingest.audit_holdout)" if verdict == "NOT_ASSESSABLE" else "",
        action="Do not publish weights or features of these units before a stronger attack was tried." if found else "",
        repeat="The same attacks on a model trained with fewer epochs, more units or noise in its gradients." if found else "",
    )  # fmt: skip


def _blind(measured: Mapping[str, Reading]) -> str:
    """What tells the groups apart without having seen the training, in words; empty where nothing does."""
    for reading in measured.values():
        for name, leak in reading.leaks.items():
            if name != "audited" and leak.interval.low > BLIND_AT:
                return (
                    f"{name} features, which never saw the training, tell the groups apart ({leak.value:.2f}): they differ in more "
                    "than membership"
                )
    return ""


def _table(measured: Mapping[str, Reading], p: Mapping[str, float]) -> Table:
    rows = []
    for name, reading in measured.items():
        leak, predictions = reading.leaks["audited"], reading.leaks["audited"].predictions
        others = [reading.leaks[kind].value if kind in reading.leaks else None for kind in ("pixels", "untrained")]
        rows.append((name, leak.value, leak.interval.low, leak.interval.high, *others, _rate(reading, predictions), p[name]))
    return Table(
        title="Attacks", rows=tuple(rows),
        columns=("attack", "score", "low", "high", "pixels", "untrained", "found at 1 % false alarms", "p"),
        note=f"The last rate: share of members recognised where 1 % of others are taken for members; needs {FEW} reserved units.",
    )  # fmt: skip


def _rate(reading: Reading, predictions: np.ndarray) -> float | None:
    """True positive rate at 1 % false positives, for members against reserved units; None with too few of these (Carlini et al. 2022)."""
    member = reading.attribute.values == reading.attribute.classes.index("trained")
    if len(np.unique(reading.attribute.unit_index[~member])) < FEW:
        return None
    scores = predictions[:, reading.attribute.classes.index("trained")]
    return float((scores[member] > np.quantile(scores[~member], 0.99)).mean())


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(RESERVED, MEMBERS, UNITS), count=lambda _: 2)
