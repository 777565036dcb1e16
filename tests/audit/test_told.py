"""A report in a terminal: findings to act on come first and in full, what was not assessed by its reason, the rest by name."""

from __future__ import annotations

import pytest

from dinodomain.audit import Asked, run_checks
from dinodomain.audit.told import told


@pytest.fixture(scope="module")
def report(make_set, quick):
    names = ("overlap", "attribute", "membership", "declaration", "living", "geotime", "origin")
    return run_checks(make_set(num_units=130, leak=3.0), asked=Asked(attributes=("site",)), effort=quick, names=names).report


def test_every_finding_is_named_once_and_flags_come_first(report):
    lines = list(told(report))
    assert lines[0].startswith("FLAG")
    assert "attribute/site: Yes: a linear probe reads site" in lines[0]
    for one in report.findings:
        assert sum(one.id in line.partition(": ")[0].replace(",", " ").split() for line in lines) == 1, one.id


def test_what_shares_a_reason_shares_a_line(report):
    line = next(line for line in told(report) if "nobody has declared" in line)
    assert line == "NOT_ASSESSABLE       declaration, living: nobody has declared anything about the model"


def test_a_notice_and_whole_questions_are_told(report):
    more = report.model_copy(update={"notice": "MADE UP", "unanswered": {"Q2": "no data", "Q4": "no data"}})
    lines = list(told(more))
    assert lines[0] == "MADE UP"
    assert "NOT_ASSESSABLE       Q2, Q4: no data" in lines
