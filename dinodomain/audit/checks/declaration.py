"""Declared uses and risks: are intended, out-of-scope and prohibited uses stated, and is every risk either controlled or explained away?

Takes the form as people filled it in and says what is blank; a filled-in form is a declaration, not a test, so the verdict never goes
beyond that. What can be measured (what is read from the features, what the encoder makes cheap) is left to the other checks, whose
findings the register names by id. The Regulation asks for the intended purpose and for foreseeable misuse (EU) 2024/1689, Art. 9(2)(b).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinodomain.audit.declared import RISKS, ActPrompts, Declaration
from dinodomain.audit.evidence import DECLARED, About, Check, Evidence, Result
from dinodomain.audit.figures import Table
from dinodomain.audit.finding import Risk, SelfTest

ABOUT = About(
    name="declaration", code="DECL", question="Q4", core=True, title="Are uses, prohibited uses and risks declared?",
    limits=(
        "A filled-in form shows that somebody answered, not that the answer is true.",
        "No answer here is a legal opinion.",
    ),
    maps_to={
        "EU AI Act": ("Art. 5(1)(g)", "Art. 6", "Art. 9", "Annex III 1(a)-(c)", "Art. 2(3)", "Art. 2(6)", "Art. 25"),
        "NIST AI RMF": ("MAP 1.1", "MAP 3.3", "MAP 5.1", "MANAGE 1.4"), "FUTURE-AI": ("General 3", "General 6", "Traceability 1"),
    },
)  # fmt: skip
_OF_THE_MODEL = ("owner", "users", "affected_groups", "deployment", "intended_uses", "out_of_scope", "prohibited")
_OF_A_RISK = ("evidence", "exposure", "likelihood", "severity", "control", "residual", "owner", "review")


def run(evidence: Evidence) -> list[Result]:
    """One finding about the form, with its blanks."""
    assert evidence.asked.declaration is not None, "needed"
    declared = Declaration.model_validate(evidence.asked.declaration)
    missing = blanks(declared)
    told: dict[str, Any] = {
        "tables": (_register(declared), _prompts(declared.eu_ai_act)), "n_units": evidence.data.num_units,
        "counts": {"blank fields": sum(map(len, missing.values()))}, "owner": declared.owner,
    }  # fmt: skip
    if missing:
        named = "; ".join(f"{place}: {', '.join(fields)}" for place, fields in missing.items())
        return [
            ABOUT.finding(
                verdict="FLAG",
                answer="No: parts of the declaration are blank.",
                reason_code="blank_fields",
                reason=f"blank are {named}",
                action="Fill in what is blank, or say for a risk why it is not relevant.",
                repeat="Every field filled in; the answers themselves remain declarations.",
                **told,
            )
        ]
    return [ABOUT.finding(verdict="CLEAR_WITHIN_LIMITS", answer="Yes: every field is filled in, by the declared owner's word.", **told)]


def blanks(declared: Declaration) -> dict[str, list[str]]:
    """Place of the form to its blank fields; a risk that is declared not relevant needs nothing but its reason."""
    found = {"the model": [name for name in _OF_THE_MODEL if not getattr(declared, name)]}
    found["EU AI Act"] = [name for name in ActPrompts.model_fields if not getattr(declared.eu_ai_act, name)]
    for name in RISKS:
        found[name] = _blanks_of(declared.risks.get(name, Risk()))  # type: ignore[call-overload]
    return {place: fields for place, fields in found.items() if fields}


def _blanks_of(risk: Risk) -> list[str]:
    if risk.relevant is None:
        return ["relevant"]
    if not risk.relevant:
        return [] if risk.reason else ["reason"]
    return [name for name in _OF_A_RISK if not getattr(risk, name)]


def _register(declared: Declaration) -> Table:
    rows = []
    for name, words in RISKS.items():
        risk = declared.risks.get(name, Risk())  # type: ignore[call-overload]
        relevant = {None: "blank", True: "yes", False: f"no: {risk.reason or 'no reason given'}"}[risk.relevant]
        rows.append((name, words, relevant, *(_shown(getattr(risk, field)) for field in _OF_A_RISK)))
    return Table(title="Risk register, as declared", columns=("risk", "of", "relevant", *_OF_A_RISK), rows=tuple(rows))


def _prompts(prompts: ActPrompts) -> Table:
    rows = tuple((str(item.description), _shown(getattr(prompts, name))) for name, item in ActPrompts.model_fields.items())
    return Table(title="Prompts of the EU AI Act, as answered", columns=("prompt", "answer"), rows=rows)


def _shown(value: object) -> str:
    return (", ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "blank"


def completed() -> Declaration:
    """A form without blanks, for controls and tests."""
    risks: Mapping[str, Any] = {
        name: {"relevant": True, **{field: ("attribute/sex",) if field == "evidence" else "stated" for field in _OF_A_RISK}}
        for name in ("R1", "R2")
    }
    spared = {name: {"relevant": False, "reason": "ground cells of 10 m show no such object"} for name in ("R3", "R4")}
    return Declaration.model_validate({
        **dict.fromkeys(("owner", "users", "affected_groups", "deployment"), "stated"),
        "intended_uses": ["triage"], "out_of_scope": ["children"], "prohibited": [{"use": "telling who a person is", "risk": "R2"}],
        "eu_ai_act": dict.fromkeys(ActPrompts.model_fields, "stated"), "risks": {**risks, **spared},
        "living": {"expires": "2027-06-30", "incident_contact": "desk@example.org", "indicators": ["drift of the score"]},
    })  # fmt: skip


def self_test() -> SelfTest:
    """An empty form has blanks everywhere, a completed one nowhere."""
    empty, full = blanks(Declaration()), blanks(completed())
    return SelfTest(
        positive="pass" if len(empty) == 2 + len(RISKS) else "fail", negative="pass" if not full else "fail",
        detail=f"empty form: {sum(map(len, empty.values()))} blanks, completed form: {sum(map(len, full.values()))}",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test, needs=(DECLARED,))
