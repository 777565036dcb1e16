"""Membership: can one tell from the features whether a unit was in the training data?

Needs units that were reserved at random before training; without them any difference may be one of years or sites. The attacker is
the attribute check's linear probe, trained on known members and reserved units of other folds. Pixels and an untrained encoder are the
blind baseline: if they tell the two apart as well, the sets are not exchangeable and nothing follows (Das et al. 2024).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dinodomain.audit.checks.attribute import Reading, evidence_of, measure, self_test
from dinodomain.audit.evidence import UNITS, About, Check, Draft, Evidence, Need, Result
from dinodomain.audit.finding import Finding
from dinodomain.audit.protocol.verdict import Thresholds, judge

ABOUT = About(
    name="membership", code="MIA", question="Q3", core=True,
    title="Can it be told from the features which units the model was trained on?",
    limits=(
        "One attack: a linear probe on pooled features of whole tiles; stronger attacks use several views, the loss, or several models.",
        "An average over units: single, unusual units may be more exposed.",
    ),
    maps_to={"EU AI Act": ("Art. 10(5)",), "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.10"), "FUTURE-AI": ("General 2",)},
)  # fmt: skip
FLAG_AT, CLEAR_AT, BLIND_AT = 0.60, 0.55, 0.52
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
    """Reads reserved against trained from the features, beside the blind baselines."""
    data = evidence.probed
    assert data.holdout is not None, "needed"
    labels = np.where(data.holdout, "reserved", "trained")
    # Reservation is of patients and ground cells, not of whole sources.
    told = replace(data, columns={_COLUMN: labels}, split=None, linked=None)
    reading = measure(told, _COLUMN, effort=evidence.effort, alpha=evidence.alpha("Q3"))
    if not reading.leaks:
        reason = f"{reading.attribute.num_minor} units in the smaller group; 30 are the least for an estimate"
        remedy = "reserve more units before training (ingest.audit_holdout)"
        return [ABOUT.unknown("n_units", reason, remedy, **_told(reading), answer="Nothing but counts can be given.")]
    judge = lambda p, family: _judge(reading, p[0], family, evidence.lines)  # noqa: E731
    return [Draft(p=(reading.leaks["audited"].p,), judge=judge)]


def _told(reading: Reading) -> dict[str, Any]:
    attribute = reading.attribute
    return {"n_units": attribute.num_units, "n_minor": attribute.num_minor, "n_images": len(attribute.rows)}


def _judge(reading: Reading, p_adjusted: float, family: int, thresholds: Thresholds) -> Finding:
    attribute, leak, sensitivity = reading.attribute, reading.leaks["audited"], reading.sensitivity
    assert sensitivity is not None, "planted wherever it was read"
    told = {**_told(reading), **evidence_of(reading, p_adjusted, family)}
    blind = [(name, found.interval) for name, found in reading.leaks.items() if name != "audited" and found.interval.low > BLIND_AT]
    if blind:
        name, at = blind[0]
        reason = (
            f"{name} features, which never saw the training, tell the groups apart ({at.value:.2f}): they differ in more than membership"
        )
        remedy = "ingest anew, so that units are reserved at random, and train again"
        return ABOUT.unknown("not_exchangeable", reason, remedy, **told, answer="The groups are not comparable.")
    lines = thresholds.model_copy(update={"tau_flag": FLAG_AT, "tau_clear": CLEAR_AT})
    verdict, code, reason = judge(leak.interval, p_adjusted, sensitivity.mdl, attribute.num_minor, thresholds=lines)
    at = leak.interval
    words = {"FLAG": "Yes", "WARN": "Yes, weakly", "CLEAR_WITHIN_LIMITS": "Not by this attack"}.get(verdict, "Undecided")
    answer = f"{words}: {at.value:.2f} [{at.low:.2f}, {at.high:.2f}], chance {leak.null.mean():.2f}."
    action = "Do not publish weights or features of these units before a stronger attack was tried." if verdict in ("FLAG", "WARN") else ""
    remedy = "reserve more units before training (ingest.audit_holdout)" if verdict == "NOT_ASSESSABLE" else ""
    return ABOUT.finding(**told, verdict=verdict, reason_code=code, reason=reason, remedy=remedy, answer=answer, action=action)


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(RESERVED, MEMBERS, UNITS), count=lambda _: 1)
