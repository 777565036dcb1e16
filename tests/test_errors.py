"""Errors say where, what, what is allowed and what to do; and they cross processes whole."""

from __future__ import annotations

import copy
import pickle

import pytest

from dinodomain.errors import BadSource, MissingExtra, Problems, UserError, require


def test_a_message_has_place_problem_allowed_and_remedy_in_this_order():
    error = UserError("optim.lr", "is -1", allowed="above 0", remedy="leave it out")
    assert str(error) == "optim.lr: is -1; allowed: above 0; leave it out"


def test_what_is_not_said_leaves_no_trace():
    assert str(UserError("labels", "is empty")) == "labels: is empty"


def test_a_user_error_is_a_value_error_and_a_missing_extra_an_import_error():
    assert issubclass(UserError, ValueError)
    assert issubclass(MissingExtra, ImportError)


def test_several_problems_are_told_one_a_line_and_the_first_leads():
    first, second = UserError("a", "wrong", remedy="mend a"), UserError("b", "worse")
    both = Problems([first, second])
    assert str(both) == "a: wrong; mend a\nb: worse"
    assert both.problems == (first, second)
    assert (both.place, both.remedy) == ("a", "mend a")


ERRORS = [
    UserError("a", "wrong", allowed="x", remedy="y"),
    BadSource("scan.dcm", "is truncated", "fetch it again"),
    MissingExtra("domain 'ct'", "pydicom", "medical"),
    Problems([UserError("a", "wrong"), BadSource("b", "worse", "mend")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_an_error_crosses_processes_whole(error, copied):
    other = copied(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    plain = {key: value for key, value in error.__dict__.items() if key != "problems"}
    assert {key: other.__dict__[key] for key in plain} == plain


def test_the_problems_inside_cross_as_well():
    other = pickle.loads(pickle.dumps(ERRORS[-1]))
    assert [str(problem) for problem in other.problems] == ["a: wrong", "b: worse; mend"]


def test_a_bad_source_keeps_uri_and_reason():
    bad = BadSource("scan.dcm", "is truncated", "fetch it again")
    assert (bad.uri, bad.reason, bad.remedy) == ("scan.dcm", "is truncated", "fetch it again")
    assert str(bad) == "scan.dcm: is truncated; fetch it again"


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(MissingExtra) as caught:
        require("no_such_package.part", extra="medical", wanted_by="domain 'ct'")
    assert str(caught.value) == "domain 'ct' needs no_such_package: pip install \"dinodomain[medical]\""


def test_a_package_that_is_there_is_given():
    assert require("json.decoder", extra="x", wanted_by="y").JSONDecoder


def test_a_package_that_breaks_on_its_own_import_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import another_missing_one\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_missing_one") as caught:
        require("broken_package", extra="x", wanted_by="y")
    assert not isinstance(caught.value, MissingExtra)
