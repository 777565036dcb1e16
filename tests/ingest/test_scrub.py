"""Names leave reasons whatever their case, and words that say what is wrong stay."""

from __future__ import annotations

import re

import pytest

from dinodomain.ingest.scrub import scrubbed


def plain(text, name):
    """Without the short cut."""
    return re.sub(re.escape(name), "…", text, flags=re.IGNORECASE)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MERTENS has no date", "mertens"), ("mertens has no date", "MERTENS"),
        ("\u212aarl has no date", "karl"), ("karl has no date", "\u212aarl"),
        ("MÜLLER has no date", "müller"), ("gro\u017fs has no date", "gross"), ("nothing of hers", "karl"), ("… and Karl", "karl"),
    ],
)  # fmt: skip
def test_the_short_cut_misses_no_spelling(text, name):
    assert scrubbed(text, (name,)) == plain(text, name)


def test_parts_of_names_leave_too_and_kinds_of_files_stay():
    assert scrubbed("Doe's label map lies beside jane_scan", ("study/Doe_Jane.label.nii",)) == "…'s label map lies beside …_scan"
