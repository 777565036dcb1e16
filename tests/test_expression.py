"""The header filter: what it takes, what it refuses, and what an absent field means."""

import pickle

import pytest

from dinodomain.errors import UserError
from dinodomain.expression import Filter, clauses

CT = {"Modality": "CT", "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "SliceThickness": 2.5, "SeriesDescription": "Chest LUNG"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", True),
        ("Modality == 'CT' and 'LOCALIZER' not in ImageType and SliceThickness <= 3", True),
        ("Modality == 'MR'", False),
        ("Modality in ['CT', 'PT']", True),
        ("not (SliceThickness > 2)", False),
        ("1 < SliceThickness < 3", True),
        ("lower(SeriesDescription) == 'chest lung'", True),
        ("matches(SeriesDescription, '(?i)lung|thorax')", True),
        ("len(ImageType) == 3", True),
        ("-1 < SliceThickness", True),
    ],
)
def test_a_filter_means_what_it_says(text: str, wanted: bool) -> None:
    assert Filter(text)(CT) is wanted


@pytest.mark.parametrize("text", ["KVP < 100", "KVP >= 100", "'X' in BodyPartExamined", "matches(KVP, '1')", "KVP == 120"])
def test_what_a_header_lacks_is_never_selected(text: str) -> None:
    assert Filter(text)(CT) is False


def test_what_a_header_lacks_holds_nothing_and_equals_none() -> None:
    assert Filter("'X' not in BodyPartExamined and BodyPartExamined is None and KVP != 120")(CT)


@pytest.mark.parametrize(
    "text",
    [
        "Modality =",
        "__import__('os').system('true')",
        "Modality.upper() == 'CT'",
        "open('x')",
        "lambda: 1",
        "[x for x in ImageType]",
        "2 ** 99999",
        "Modality == 'CT'; 1",
        "(x := 3)",
        "f'{Modality}'",
        "ImageType[0] == 'ORIGINAL'",
        "(lower)(Modality)(1)",
        "matches(Modality, '(')",
        "SliceThickness < 'a'",
        "x" * 3000,
    ],
)
def test_anything_but_a_comparison_of_fields_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"ingest\.select"):
        Filter(text)(CT)


def test_it_names_the_fields_it_needs() -> None:
    assert Filter("lower(Modality) == 'ct' and 'A' in ImageType").names == {"Modality", "ImageType"}


def test_it_crosses_to_a_worker() -> None:
    assert pickle.loads(pickle.dumps(Filter("Modality == 'CT'")))(CT)


def test_clauses_are_the_conditions_as_written():
    text = "Modality == 'CT' and (KVP > 80 or 'X' in ImageType) and not matches(lower(PatientName), 'a and b')"
    assert clauses(text) == ["Modality == 'CT'", "(KVP > 80 or 'X' in ImageType)", "not matches(lower(PatientName), 'a and b')"]
    assert clauses("KVP > 80 or KVP < 70") == ["KVP > 80 or KVP < 70"]
    assert clauses("a ==") == ["a =="]


def test_a_slip_of_the_pen_is_explained_in_plain_words():
    with pytest.raises(UserError, match="equality is written ==") as told:
        Filter("Modality = 'CT'")
    assert "<unknown>" not in str(told.value)
