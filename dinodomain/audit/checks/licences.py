"""Licences flow down: may what was made from these data and base weights be given away as is intended?

Licences come from the store's index, from the recorded warm start and from the declaration; what each asks of those who pass on what is
made with it is held against the output's licence (``trail/licences.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from dinodomain.audit.declared import Declaration
from dinodomain.audit.evidence import About, Asked, Check, Evidence, Need, Result
from dinodomain.audit.figures import Table
from dinodomain.audit.finding import Finding, SelfTest
from dinodomain.audit.plan import decision_words
from dinodomain.audit.trail.licences import Licence, conflicts, doubts, read_licence
from dinodomain.audit.trail.record import base_weights

ABOUT = About(
    name="licences", code="LIN", question="Q4", title="Do the licences of data and base weights allow what is intended?",
    limits=(
        "Whether a trained model is a derivative of its data is disputed; this check takes the careful side.",
        "The table knows common licences; an agreement must be read by people.",
    ),
    maps_to={
        "EU AI Act": ("Art. 10(2)(b)", "Annex IV 2(a)", "Annex IV 2(d)", "Art. 11"), "NIST AI RMF": ("MAP 4.1", "MAP 4.2", "MANAGE 3.1"),
        "FUTURE-AI": ("Traceability 2",),
    },
)  # fmt: skip

READER = Need(
    there=lambda _: find_spec("license_expression") is not None, code="missing_extra", reason="license-expression is not installed",
    remedy='pip install "dinodomain[audit]"',
)  # fmt: skip


def run(evidence: Evidence) -> list[Result]:
    """One finding over all licences found."""
    found, output = {name: read_licence(text) for name, text in _found(evidence)}, read_licence(output_licence(evidence))
    if not found:
        remedy = "set ingest.licence, or declare them under licences in audit.declaration"
        reason = "no licence of data or base weights is recorded or declared"
        return [ABOUT.unknown("no_licence", reason, remedy, tables=(_table({}, output),))]
    return [_finding(found, output, evidence.asked)]


def output_licence(evidence: Evidence) -> str:
    """What is declared for the weights or embeddings that are given away; "" where nothing is."""
    return _declared(evidence).licences.output or evidence.policy.declared.get("weights_licence", "")


def _declared(evidence: Evidence) -> Declaration:
    return Declaration.model_validate(evidence.asked.declaration or {})


def _found(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Source of each licence, in words, to its text; an empty text is one that is missing."""
    declared = _declared(evidence).licences
    if "licence" in evidence.data.columns:
        texts = sorted({str(value).strip() for value in evidence.data.columns["licence"]})
        yield from ((f"audited data ({text or 'not stated'})", text) for text in texts if text or not declared.data)
    if not declared.base_weights:
        starts = dict.fromkeys(base_of(one) for one in base_weights(evidence.record or {}))
        yield from ((f"{name} ({text or 'not stated'})", text) for name, text in starts)
    yield from ((f"data ({text}), declared", text) for text in declared.data)
    yield from ((f"base weights ({text}), declared", text) for text in declared.base_weights)


def base_of(start: Mapping[str, Any]) -> tuple[str, str]:
    """A recorded warm start, in words, and the licence that is recorded of it."""
    return f"base weights {str(start['weights']).rsplit('/', 1)[-1]}", str(start.get("licence") or "")


def _finding(found: Mapping[str, Licence], output: Licence, asked: Asked) -> Finding:
    against, unknown = conflicts(found, output, released=asked.released), doubts(found, output, released=asked.released)
    told: dict[str, Any] = {"tables": (_table(found, output),), "counts": {"licences": len(found)}}
    if against:
        return ABOUT.finding(
            verdict="FLAG", answer=f"No: {'; '.join(against)}.", **told,
            action="Change the licence of what is given away, leave the source out, or agree with its owner.",
            repeat="No condition of a source is missing from the output's licence.",
        )  # fmt: skip
    if unknown:
        remedy = "state SPDX ids (LicenseRef-DUA for an agreement) with ingest.licence or under licences in audit.declaration"
        return ABOUT.unknown("unknown_licence", "; ".join(unknown), remedy, **told)
    answer = f"No conflict found for {decision_words(asked.decision)} by the table."
    return ABOUT.finding(verdict="CLEAR_WITHIN_LIMITS", answer=answer, **told)


def _table(found: Mapping[str, Licence], output: Licence) -> Table:
    named = {**found, "output, declared": output}
    rows = tuple((name, one.text or "not stated", str(one)) for name, one in named.items())
    return Table(title="Licences and what they ask for", columns=("of", "licence", "asks for"), rows=rows)


def self_test() -> SelfTest:
    """Non-commercial data under a permissive output conflict; permissive data do not."""
    bound, free = (read_licence(text) for text in ("CC-BY-NC-4.0", "MIT"))
    found = [conflicts(one, free, released=True) for one in ({"data": bound, "more": free}, {"data": free})]
    return SelfTest(
        positive="pass" if len(found[0]) == 1 else "fail", negative="fail" if found[1] else "pass",
        detail=f"made-up licences: {len(found[0])} conflict planted and found, {len(found[1])} in the clean set",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(READER,))
