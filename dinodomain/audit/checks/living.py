"""Kept alive: does the audit end some day, does somebody answer for incidents, and is anything watched in use?

An audit describes one set of weights on one set of data; both change. NIST AI RMF MANAGE 3.2 asks that pre-trained models be monitored.
Whether the expiry has passed is for the gate, which knows the date.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from dinodomain.audit.declared import Declaration, Living
from dinodomain.audit.evidence import DECLARED, About, Check, Evidence, Result
from dinodomain.audit.finding import SelfTest

ABOUT = About(
    name="living", code="LIVE", question="Q4", title="Does the audit expire, and is the model watched in use?",
    limits=("What is declared here is not seen to happen.",),
    maps_to={"EU AI Act": ("Art. 9", "Art. 15"), "NIST AI RMF": ("MANAGE 3.2", "MANAGE 4.1"), "FUTURE-AI": ("General 7", "Traceability 4")},
)  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """One finding about expiry, contact and indicators."""
    assert evidence.asked.declaration is not None, "needed"
    declared = Declaration.model_validate(evidence.asked.declaration)
    missing, living = blanks(declared.living), declared.living
    if missing:
        return [
            ABOUT.finding(
                verdict="FLAG",
                answer=f"Not fully: {', '.join(missing)} not declared.",
                reason_code="blank_fields",
                reason="without them nobody notices when the audit no longer holds",
                owner=declared.owner,
                action="Declare a date of expiry, a contact for incidents and what is watched in use.",
                repeat="All three declared.",
            )
        ]
    if date.fromisoformat(living.expires) < datetime.now(UTC).date():
        return [
            ABOUT.finding(
                verdict="FLAG",
                answer=f"No longer: the declaration expired on {living.expires}.",
                reason_code="expired",
                owner=declared.owner,
                action="Look at the declaration again, and declare a new date of expiry.",
                repeat="A date of expiry that lies ahead.",
            )
        ]
    answer = f"Declared: expires {living.expires}, contact {living.incident_contact}, {len(living.indicators)} indicators."
    counts: dict[str, int | str] = {"indicators": len(living.indicators)}
    return [ABOUT.finding(verdict="CLEAR_WITHIN_LIMITS", answer=answer, owner=declared.owner, counts=counts)]


def blanks(living: Living) -> list[str]:
    """What is not declared, or is no date."""
    try:
        date.fromisoformat(living.expires)
    except ValueError:
        dated = False
    else:
        dated = True
    expiry = f"expiry ({living.expires} is no date like 2027-06-30)" if living.expires else "expiry"
    found = {expiry: dated, "incident contact": bool(living.incident_contact), "indicators": bool(living.indicators)}
    return [name for name, there in found.items() if not there]


def self_test() -> SelfTest:
    """An empty form lacks all three, a filled-in one none."""
    full = Living(expires="2027-06-30", incident_contact="desk@example.org", indicators=("drift",))
    empty, filled = blanks(Living()), blanks(full)
    return SelfTest(
        positive="pass" if len(empty) == 3 else "fail", negative="pass" if not filled else "fail",
        detail=f"empty form: {len(empty)} blanks, filled form: {len(filled)}",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(DECLARED,))
