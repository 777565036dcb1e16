"""The audit that an export must carry: one of this very checkpoint, or a waiver with a reason and somebody who answers for it.

Knows the audit only through ``audit.json`` and the run's chain of audits; judges no finding, but an audit whose gate was asked and did not
pass does not open the way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dinodomain.checkpoint.baseline import run_of
from dinodomain.errors import UserError
from dinodomain.export.plan import ExportPlan
from dinodomain.lineage import Json, digest_file

CHAIN: Final = "audits.jsonl"
_SCHEMA: Final = "dinodomain.audit/"
_REMEDY: Final = 'audit it (dinodomain audit checkpoint=... store=... out=REPORT) and add audit=REPORT, or add waive_audit="reason; owner"'


def clearance(plan: ExportPlan, weights: str) -> dict[str, Json]:
    """What the export carries: ``audit`` with its digest, outcome and verdicts, or ``waived`` with reason and owner.

    Args:
        plan: Names an audit, a waiver or neither.
        weights: Digest of the exported weights.

    Raises:
        UserError: There is neither, the waiver names nobody, or the audit is of another checkpoint, altered or did not pass its gate.
    """
    if plan.waive_audit is not None:
        return {"waived": _waiver(plan.waive_audit)}
    path = _named(plan.audit) if plan.audit is not None else _remembered(plan.checkpoint, weights)
    if path is None:
        raise UserError("audit", "there is no audit of this checkpoint", remedy=_REMEDY)
    body = _read(path)
    found = str(body.get("subject", {}).get("weights"))
    if found != weights:
        raise UserError("audit", f"{path} is of another checkpoint ({found[:12]} instead of {weights[:12]})", remedy=_REMEDY)
    gate = body.get("gate") or {}
    if gate.get("asked") and gate.get("code") != 0:
        raise UserError(
            "audit", f"{path}: {gate.get('words', 'its gate did not pass')}", remedy='meet the policy, or add waive_audit="reason; owner"'
        )
    return {"audit": _summary(body, gate, path)}


def in_words(carried: Mapping[str, Json]) -> str:
    """One line for people."""
    if "waived" in carried:
        return f"not audited: waived by {carried['waived']['owner']} ({carried['waived']['reason']})"
    found = carried["audit"]
    counts = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in found["verdicts"].items())
    words = f". {found['outcome']}" if found.get("outcome") else ""
    return f"audited on {found['created'][:10]} ({found['audit_id'][:12]}): {counts}{words}"


def _waiver(text: str) -> dict[str, Json]:
    reason, _, owner = (part.strip() for part in text.strip("\"'").rpartition(";"))
    if not reason or not owner:
        raise UserError(
            "waive_audit", f"is {text!r}", allowed="reason; owner", remedy='for example waive_audit="first trial, stays here; A. Name"'
        )
    return {"reason": reason, "owner": owner}


def _named(audit: str) -> Path:
    path = Path(audit)
    return path / "audit.json" if path.is_dir() else path


def _remembered(checkpoint: str, weights: str) -> Path | None:
    """The latest audit of these weights in the run's chain whose report is still there."""
    run = run_of(checkpoint) if Path(checkpoint).exists() else None
    chain = None if run is None else run / CHAIN
    if run is None or chain is None or not chain.is_file():
        return None
    lines = [json.loads(line) for line in chain.read_text("utf-8").splitlines() if line.strip()]
    places = [run / line["report"] / "audit.json" for line in lines if line.get("subject") == weights]
    return next((place for place in reversed(places) if place.is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("audit", f"{path} cannot be read ({error})", allowed="the folder of a report, or its audit.json") from None
    if not isinstance(body, dict) or not str(body.get("schema", "")).startswith(_SCHEMA):
        raise UserError("audit", f"{path} is no report of an audit", allowed="the folder of a report, or its audit.json")
    sums = path.with_name("SHA256SUMS")
    if sums.is_file() and f"{digest_file(path)}  {path.name}" not in sums.read_text("utf-8").splitlines():
        raise UserError("audit", f"{path} was altered after it was written", remedy="audit again")
    return body


def _summary(body: Mapping[str, Any], gate: Mapping[str, Any], path: Path) -> dict[str, Json]:
    verdicts = Counter(str(item["verdict"]) for item in body["findings"])
    return {
        "audit_id": body["audit_id"], "sha256": digest_file(path), "created": body["created"], "decision": body.get("decision", ""),
        "gate": gate.get("words", "no gate was asked") if gate.get("asked") else "no gate was asked",
        "outcome": gate.get("words", ""), "verdicts": dict(sorted(verdicts.items())), "not_answered": sorted(body.get("unanswered", {})),
    }  # fmt: skip
