"""What is declared: blanks are found and never excused; licences flow down; a declaration is read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinodomain.audit.checks import declaration, licences, living
from dinodomain.audit.checks.declaration import completed
from dinodomain.audit.declared import Declaration, read_declaration, write_blank
from dinodomain.audit.evidence import Asked, Evidence
from dinodomain.audit.finding import Risk
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.leak import Effort
from dinodomain.errors import UserError


@pytest.fixture
def evidence(make_set):
    """Evidence with a declaration, and columns and record for licences."""

    def make(declared: Declaration | None = None, *, decision="release_weights", record=None, **columns):
        data = make_set(num_units=20)
        data = make_set(num_units=20, columns=dict(data.columns) | {name: [value] * 40 for name, value in columns.items()})
        plain = None if declared is None else declared.model_dump(mode="json")
        asked = Asked(declaration=plain, decision=decision)
        return Evidence(data=data, probed=data, asked=asked, policy=Policy(), effort=Effort(), record=record)

    return make


def test_nothing_declared_cannot_be_assessed(found, make_set):
    for name in ("declaration", "living"):
        (finding,) = found(make_set(num_units=20), name)
        assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "no_declaration")
        assert "audit.declaration=new" in finding.remedy


def test_a_completed_form_has_no_blanks(evidence):
    for check in (declaration, living):
        (finding,) = check.run(evidence(completed()))
        assert finding.verdict == "CLEAR_WITHIN_LIMITS"


def test_every_blank_is_named(evidence):
    (finding,) = declaration.run(evidence(completed().model_copy(update={"owner": ""})))
    assert finding.verdict == "FLAG"
    assert finding.reason == "blank are the model: owner"
    assert finding.action
    assert finding.repeat


@pytest.mark.parametrize(
    ("risk", "blank"),
    [(Risk(), "R3: relevant"), (Risk(relevant=False), "R3: reason"), (Risk(relevant=True, evidence=("a",), exposure="e", likelihood="l",
      severity="s", control="c", residual="r", owner="o"), "R3: review")],
)  # fmt: skip
def test_a_risk_is_controlled_or_explained_away(evidence, risk, blank):
    full = completed()
    (finding,) = declaration.run(evidence(full.model_copy(update={"risks": {**full.risks, "R3": risk}})))
    assert finding.verdict == "FLAG"
    assert finding.reason == f"blank are {blank}"


def test_a_date_that_is_none_is_a_blank():
    assert living.blanks(completed().living.model_copy(update={"expires": "soon"})) == ["expiry (soon is no date like 2027-06-30)"]


def test_the_empty_form_is_valid_and_blank_everywhere_and_never_overwritten(tmp_path: Path):
    path = write_blank(tmp_path)
    read = read_declaration(path)
    assert read.risks["R4"] == Risk()
    assert declaration.blanks(read) == declaration.blanks(Declaration())
    path.write_text("owner: A. B.\nliving: {expires: 2027-01-31, indicators: }\n")
    assert read_declaration(write_blank(tmp_path)).living.expires == "2027-01-31"


def test_a_declaration_is_read_strictly(tmp_path: Path):
    path = tmp_path / "d.yaml"
    path.write_text("ownr: x\nrisks: {R1: {relevnt: true}, R9: {}}\n")
    with pytest.raises(UserError) as error:
        read_declaration(path)
    for words in ("ownr: unknown key", "did you mean 'owner'", "risks.R1.relevnt: unknown key", "did you mean 'relevant'", "R9"):
        assert words in str(error.value)


def with_output(output: str, **keys) -> Declaration:
    full = completed()
    return full.model_copy(update={"licences": full.licences.model_copy(update={"output": output, **keys})})


@pytest.mark.parametrize(
    ("data", "output", "verdict"),
    [
        ("CC-BY-4.0", "Apache-2.0", "CLEAR_WITHIN_LIMITS"), ("CC-BY-NC-4.0", "Apache-2.0", "FLAG"),
        ("CC-BY-NC-4.0", "CC-BY-NC-4.0", "CLEAR_WITHIN_LIMITS"), ("CC-BY-SA-4.0", "MIT", "FLAG"),
        ("CC-BY-SA-4.0", "CC-BY-SA-4.0", "CLEAR_WITHIN_LIMITS"), ("GPL-3.0-only", "CC-BY-SA-4.0", "FLAG"),
        ("CC-BY-ND-4.0", "CC-BY-ND-4.0", "FLAG"), ("MIT OR CC-BY-NC-4.0", "MIT", "CLEAR_WITHIN_LIMITS"),
        ("MIT AND CC-BY-NC-4.0", "MIT", "FLAG"), ("some agreement", "MIT", "NOT_ASSESSABLE"), ("MIT", "", "NOT_ASSESSABLE"),
        ("LicenseRef-DUA", "MIT", "FLAG"), ("LicenseRef-DUA", "LicenseRef-DUA AND MIT", "CLEAR_WITHIN_LIMITS"),
        ("CC-BY-SA-4.0 AND MIT", "CC-BY-SA-4.0", "CLEAR_WITHIN_LIMITS"), ("AGPL-3.0-only OR LicenseRef-Enterprise", "MIT", "FLAG"),
        ("GPL-3.0-only OR CC-BY-SA-4.0", "CC-BY-SA-4.0", "CLEAR_WITHIN_LIMITS"), ("CC-BY-NC-4.0", "LicenseRef-Mine", "NOT_ASSESSABLE"),
        ("CC-BY-NC-4.0", "MIT OR CC-BY-NC-4.0", "FLAG"), ("CC-BY-ND-4.0 OR CC-BY-SA-4.0", "MIT", "FLAG"),
        ("CC-BY-ND-4.0 OR CC-BY-SA-4.0", "CC-BY-SA-4.0", "CLEAR_WITHIN_LIMITS"),
        ("CC-BY-NC-4.0", "CC-BY-NC-4.0 OR Sleepycat", "NOT_ASSESSABLE"),
        ("CC-BY-NC-4.0", "LicenseRef-Mine OR CC-BY-NC-4.0", "NOT_ASSESSABLE"),
        ("CC-BY-NC-4.0 OR CC-BY-SA-4.0", "", "NOT_ASSESSABLE"),
    ],
)  # fmt: skip
def test_conditions_of_data_must_reach_the_output(evidence, data, output, verdict):
    (finding,) = licences.run(evidence(with_output(output), licence=data))
    assert finding.verdict == verdict


def test_one_choice_must_do_for_all_conditions_at_once(evidence):
    declared = with_output("CC-BY-SA-4.0 AND ODbL-1.0", base_weights=("ODbL-1.0",))
    (finding,) = licences.run(evidence(declared, licence="CC-BY-NC-4.0 OR CC-BY-SA-4.0"))
    assert finding.verdict == "FLAG"


def test_inside_the_house_nothing_is_passed_on_but_use_may_be_commercial(evidence):
    (finding,) = licences.run(evidence(decision="internal_use", licence="CC-BY-SA-4.0"))
    assert finding.verdict == "CLEAR_WITHIN_LIMITS"
    (finding,) = licences.run(evidence(decision="internal_use", licence="CC-BY-NC-4.0"))
    assert "whether this use is commercial" in finding.reason


def test_base_weights_come_from_the_lineage_however_deep(evidence):
    first = {"kind": "run", "plan": {"start": {"weights": "/somewhere/dinov3_vits16.pth", "licence": "DINOv3 License"}}, "history": []}
    second = {"kind": "run", "plan": {"start": {"weights": "first", "licence": "that of the run", "lineage": first}}, "history": []}
    (finding,) = licences.run(evidence(with_output("Apache-2.0"), record={"kind": "export", "history": [second]}))
    assert finding.verdict == "FLAG"
    assert "base weights dinov3_vits16.pth (DINOv3 License) asks for its own terms passed on" in finding.answer


def test_no_licence_at_all_cannot_be_assessed(evidence):
    (finding,) = licences.run(evidence())
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "no_licence")
    (missing,) = licences.run(evidence(with_output("MIT"), licence=""))
    assert missing.reason_code == "unknown_licence"
