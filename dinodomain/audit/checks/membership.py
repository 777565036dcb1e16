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
from dinodomain.audit.finding import Finding
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.verdict import Thresholds, judge

CHECK = "membership"
TITLE = "Can it be told from the features which units the model was trained on?"
LIMITS = (
    "One attack: a linear probe on pooled features of whole tiles; stronger attacks use several views, the loss, or several models.",
    "An average over units: single, unusual units may be more exposed.",
)
FLAG_AT, CLEAR_AT, BLIND_AT = 0.60, 0.55, 0.52
_COLUMN = "training membership"


def membership(data: AuditSet, *, effort: Effort, thresholds: Thresholds) -> Finding:
    """Reads reserved against trained from the features, beside the blind baselines."""
    test = self_test()
    common: dict[str, Any] = {"id": CHECK, "check": CHECK, "question": "Q3", "title": TITLE, "self_test": test, "limits": LIMITS}
    common |= {"n_units": data.num_units, "n_images": len(data.units)}
    if test.failed:
        return Finding(**common, verdict="ERROR", answer="The check failed its own controls.", reason_code="self_test", reason=test.detail)
    obstacle = _obstacle(data)
    if obstacle is not None:
        code, reason, remedy = obstacle
        return Finding(
            **common,
            verdict="NOT_ASSESSABLE",
            answer="Nothing can be said about membership.",
            reason_code=code,
            reason=reason,
            remedy=remedy,
        )
    assert data.holdout is not None
    labels = np.where(data.holdout, "reserved", "trained")
    reading = measure(replace(data, columns={_COLUMN: labels}, split=None), _COLUMN, effort=effort, alpha=thresholds.alpha)
    return _judge(reading, common, thresholds)


def _obstacle(data: AuditSet) -> tuple[str, str, str] | None:
    """Why it cannot be asked: code, reason, remedy."""
    if data.holdout is None or not data.holdout.any():
        reason = "no units were reserved at random before training, so there are no comparable non-members"
        return "no_random_nonmembers", reason, "ingest at least 300 units with an audit holdout, then train again"
    if not data.members_known:
        reason = "the audited encoder is not known to have been trained on this store"
        return "members_unknown", reason, "audit a checkpoint together with the store it was trained on"
    if not data.units_known:
        return "no_unit_key", "some images have no unit id", "give the column that names the patient or place (group=COLUMN)"
    return None


def _judge(reading: Reading, common: dict[str, Any], thresholds: Thresholds) -> Finding:
    attribute = reading.attribute
    common |= {"n_units": attribute.num_units, "n_minor": attribute.num_minor, "n_images": len(attribute.rows)}
    if not reading.leaks or reading.sensitivity is None:
        reason = f"{attribute.num_minor} units in the smaller group; 30 are the least for an estimate"
        return Finding(
            **common, verdict="NOT_ASSESSABLE", answer="Nothing but counts can be given.", reason_code="n_units", reason=reason,
            remedy="reserve more units before training (ingest.audit_holdout)",
        )  # fmt: skip
    leak = reading.leaks["audited"]
    common |= evidence_of(reading, leak.p, 1)
    blind = [(name, found.interval) for name, found in reading.leaks.items() if name != "audited" and found.interval.low > BLIND_AT]
    if blind:
        name, at = blind[0]
        reason = (
            f"{name} features, which never saw the training, tell the groups apart ({at.value:.2f}): they differ in more than membership"
        )
        return Finding(
            **common, verdict="NOT_ASSESSABLE", answer="The groups are not comparable.", reason_code="not_exchangeable", reason=reason
        )
    lines = thresholds.model_copy(update={"tau_flag": FLAG_AT, "tau_clear": CLEAR_AT})
    verdict, code, reason = judge(leak.interval, leak.p, reading.sensitivity.mdl, attribute.num_minor, thresholds=lines)
    at = leak.interval
    words = {"FLAG": "Yes", "WARN": "Yes, weakly", "CLEAR_WITHIN_LIMITS": "Not by this attack"}.get(verdict, "Undecided")
    answer = f"{words}: {at.value:.2f} [{at.low:.2f}, {at.high:.2f}], chance {leak.null.mean():.2f}."
    action = "Do not publish weights or features of these units before a stronger attack was tried." if verdict in ("FLAG", "WARN") else ""
    return Finding(**common, verdict=verdict, reason_code=code, reason=reason, answer=answer, action=action)
