"""Licences flow down: may what was made from these data and base weights be given away as is intended?

Licences come from the store's index, from the recorded warm start and from the declaration; a small table says what each asks of those
who pass on what is made with it, and the output's licence is held against that. SPDX expressions are read by license-expression; in
``A OR B`` the choice is the user's, so only what both ask for is asked. What is not in the table is unknown, and unknown is never fine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dinodomain.audit.declared import Declaration
from dinodomain.audit.evidence import About, Check, Evidence, Result
from dinodomain.audit.figures import Table
from dinodomain.audit.finding import Finding, SelfTest
from dinodomain.errors import MissingExtra, require

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
Asks = frozenset[str]
_SHARE = "share alike"
_NON_COMMERCIAL = "no commercial use"
_NO_DERIVATIVES = "no derivatives passed on"
_TERMS = "its own terms passed on"

_FREE = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "pddl-1.0", "unlicense", "isc", "odc-by-1.0", "cc-by-3.0", "cc-by-4.0",
    "ogl-uk-3.0", "etalab-2.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
)  # fmt: skip
_SHARED = (
    "cc-by-sa-3.0", "cc-by-sa-4.0", "odbl-1.0", "gpl-2.0-only", "gpl-3.0-only", "gpl-3.0-or-later", "agpl-3.0-only", "cdla-sharing-1.0",
)  # fmt: skip
LICENCES: Mapping[str, Asks] = {
    **dict.fromkeys(_FREE, frozenset()), **dict.fromkeys(_SHARED, frozenset({_SHARE})),
    **dict.fromkeys(("cc-by-nc-3.0", "cc-by-nc-4.0"), frozenset({_NON_COMMERCIAL})),
    "cc-by-nc-sa-4.0": frozenset({_NON_COMMERCIAL, _SHARE}), "cc-by-nc-sa-3.0": frozenset({_NON_COMMERCIAL, _SHARE}),
    "cc-by-nd-4.0": frozenset({_NO_DERIVATIVES}), "cc-by-nc-nd-4.0": frozenset({_NON_COMMERCIAL, _NO_DERIVATIVES}),
    **dict.fromkeys(("licenseref-dinov3", "licenseref-openrail", "licenseref-rail", "licenseref-dua"), frozenset({_TERMS})),
}  # fmt: skip
"""SPDX id in lower case to what it asks of those who pass on what is made with it, attribution aside."""

_KNOWN_TEXTS = {
    "dinov3": "licenseref-dinov3", "dinov2 under apache-2.0": "apache-2.0", "dino under apache-2.0": "apache-2.0",
    "openrail": "licenseref-openrail", "copernicus": "cc-by-4.0",
}  # fmt: skip
"""Words in free text to the licence they stand for; Copernicus Sentinel data are free with attribution (EU) 1159/2013."""


def run(evidence: Evidence) -> list[Result]:
    """One finding over all licences found."""
    found = dict(_found(evidence))
    output = _declared(evidence).licences.output
    if not found:
        remedy = "set ingest.licence, or declare them under licences in audit.declaration"
        return [
            ABOUT.unknown("no_licence", "no licence of data or base weights is recorded or declared", remedy, tables=(_table({}, output),))
        ]
    return [_finding(found, output, evidence.asked.decision)]


def _declared(evidence: Evidence) -> Declaration:
    return Declaration.model_validate(evidence.asked.declaration or {})


def _found(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Source of each licence, in words, to its text; an empty text is one that is missing."""
    declared = _declared(evidence).licences
    if "licence" in evidence.data.columns:
        texts = sorted({str(value).strip() for value in evidence.data.columns["licence"]})
        yield from ((f"audited data ({text or 'not stated'})", text) for text in texts if text or not declared.data)
    yield from ((f"base weights {name}", text) for name, text in _base_weights(evidence.record or {}) if not declared.base_weights)
    yield from ((f"data ({text}), declared", text) for text in declared.data)
    yield from ((f"base weights ({text}), declared", text) for text in declared.base_weights)


def _base_weights(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every warm start in a lineage record and its ancestors."""
    plan = record.get("plan")
    if isinstance(plan, Mapping) and "licence" in plan and "weights" in plan:
        yield str(plan["weights"]).rsplit("/", 1)[-1], str(plan["licence"] or "")
    for parent in record.get("history", ()):
        yield from _base_weights(parent)


def _finding(found: Mapping[str, str], output: str, decision: str) -> Finding:
    conflicts, unknown = conflicts_of(found, output, decision)
    told: dict[str, Any] = {"tables": (_table(found, output),), "counts": {"licences": len(found)}}
    if conflicts:
        return ABOUT.finding(
            verdict="FLAG", answer=f"No: {'; '.join(conflicts)}.", **told,
            action="Change the licence of what is given away, leave the source out, or agree with its owner.",
            repeat="No condition of a source is missing from the output's licence.",
        )  # fmt: skip
    if unknown:
        remedy = "state SPDX ids (LicenseRef-DUA for an agreement) with ingest.licence or under licences in audit.declaration"
        return ABOUT.unknown("unknown_licence", f"not known is the licence of {', '.join(unknown)}", remedy, **told)
    return ABOUT.finding(verdict="CLEAR_WITHIN_LIMITS", answer=f"No conflict found for {decision.replace('_', ' ')} by the table.", **told)


def conflicts_of(found: Mapping[str, str], output: str, decision: str) -> tuple[list[str], list[str]]:
    """Conditions of sources that the output drops, and sources of unknown licence.

    Args:
        found: Source to licence text.
        output: Licence under which the result is given away; "" where none is declared.
        decision: Use within the house asks nothing of what is passed on.
    """
    conflicts, unknown = [], [name for name, text in found.items() if asks(text) is None]
    if decision == "internal_use":
        return [], unknown
    given = asks(output)
    if given is None:
        return [], [*unknown, f"the output ({output or 'not declared'})"]
    for name, text in found.items():
        for condition in sorted(asks(text) or ()):
            kept = condition in given and (condition not in (_SHARE, _TERMS) or _same(text, output))
            if condition == _NO_DERIVATIVES or not kept:
                conflicts.append(f"{name} asks for {condition}, {output} does not keep it")
    return conflicts, unknown


def asks(text: str) -> Asks | None:
    """What a licence text asks for; None where it is not known. ``A OR B`` asks for what both ask, ``A AND B`` for what either asks."""
    words = text.strip().lower()
    for part, licence in _KNOWN_TEXTS.items():
        if part in words:
            return LICENCES[licence]
    if words in LICENCES:
        return LICENCES[words]
    parsed = _parse(words)
    return None if parsed is None else _asks(parsed)


def _parse(words: str) -> Any:
    """The tree of an expression; None for what is none, and where the package that reads them is not installed."""
    try:
        module = require("license_expression", extra="audit", wanted_by="the check licences")
    except MissingExtra:
        return None
    try:
        return module.Licensing().parse(words) if words else None
    except (module.ExpressionError, module.ExpressionParseError):
        return None


def _asks(node: Any) -> Asks | None:
    if not getattr(node, "args", ()):
        return LICENCES.get(str(node).lower())
    inner = [_asks(part) for part in node.args]
    known = [found for found in inner if found is not None]
    if len(known) < len(inner):
        return None
    return frozenset.intersection(*known) if type(node).__name__ == "OR" else frozenset.union(*known)


def _same(text: str, output: str) -> bool:
    return text.strip().lower() in output.strip().lower()


def _table(found: Mapping[str, str], output: str) -> Table:
    named = {**found, "output, declared": output}
    rows = tuple((name, text or "not stated", _in_words(asks(text))) for name, text in named.items())
    return Table(title="Licences and what they ask for", columns=("of", "licence", "asks for"), rows=rows)


def _in_words(found: Asks | None) -> str:
    return "not known" if found is None else ", ".join(sorted(found)) or "attribution at most"


def self_test() -> SelfTest:
    """Non-commercial data under a permissive output conflict; permissive data do not."""
    conflict = conflicts_of({"data": "CC-BY-NC-4.0", "more": "MIT"}, "Apache-2.0", "release_weights")
    clean = conflicts_of({"data": "CC-BY-4.0"}, "Apache-2.0", "release_weights")
    return SelfTest(
        positive="pass" if len(conflict[0]) == 1 else "fail", negative="pass" if clean == ([], []) else "fail",
        detail=f"made-up licences: {len(conflict[0])} conflict planted and found, {len(clean[0])} in the clean set",
    )  # fmt: skip


CHECK = Check(about=ABOUT, run=run, self_test=self_test)
