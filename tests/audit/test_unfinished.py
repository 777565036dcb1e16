"""An audit that was stopped goes on with the first check that is missing, and takes up nothing that is of another."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from dinodomain.audit import Asked, Effort, run_checks
from dinodomain.audit.checks import CHECKS, attribute
from dinodomain.audit.unfinished import user_key

NAMES = ("duplicates", "site", "attribute", "use", "subgroups", "reidentification")
ASKED = Asked(attributes=("sex", "age"), domains=("site",), task="site")
EFFORT = Effort(permutations=99, bootstraps=60, attackers=False)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    user_key.cache_clear()
    yield
    user_key.cache_clear()


@pytest.fixture
def begin(make_set, tmp_path, monkeypatch):
    """Audits; ``breaks`` is a check at which the power fails. Gives the report and the checks that ran."""

    def run(*, breaks="", seed=0, effort=EFFORT):
        ran = []

        def watched(check):
            def looks(evidence):
                if check.about.name == breaks:
                    raise KeyboardInterrupt
                ran.append(check.about.name)
                return check.run(evidence)

            return replace(check, run=looks)

        monkeypatch.setattr("dinodomain.audit.run.CHECKS", tuple(map(watched, CHECKS)))
        try:
            audited = run_checks(make_set(num_units=80, seed=seed), asked=ASKED, effort=effort, names=NAMES, kept=tmp_path / "kept")
        except KeyboardInterrupt:
            return None, ran
        return audited, ran

    return run


def findings(audited):
    return [item.model_dump(mode="json") for item in audited.report.findings]


def test_only_what_is_missing_runs_and_the_report_is_the_same(begin, tmp_path):
    whole, _ = begin()
    shutil.rmtree(tmp_path / "kept")  # as whoever wrote the report does
    _, first = begin(breaks="use")
    assert "attribute" in first
    resumed, second = begin()
    assert not set(first) & set(second)
    assert findings(resumed) == findings(whole)
    assert [one.columns for one in resumed.private] == [one.columns for one in whole.private]


def test_features_are_referred_to_and_not_copied(begin, tmp_path):
    begin(breaks="reidentification")
    sizes = {path.stem: path.stat().st_size for path in (tmp_path / "kept").iterdir()}
    assert set(sizes) >= {"duplicates", "site", "attribute"}
    assert max(sizes.values()) < 400_000, sizes


@pytest.mark.parametrize("change", [{"seed": 1}, {"effort": replace(EFFORT, seed=1)}])
def test_results_of_other_data_or_of_another_plan_are_not_taken_up(begin, change):
    _, first = begin(breaks="use")
    _, second = begin(**change)
    assert set(first) <= set(second)


def test_nothing_is_unpickled_that_another_user_wrote(begin, tmp_path, monkeypatch):
    _, first = begin(breaks="use")
    user_key.cache_clear()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr("dinodomain.audit.unfinished._Reader.load", lambda self: pytest.fail("unpickled"))
    _, second = begin()
    assert set(first) <= set(second)


def test_a_damaged_file_is_not_taken_up(begin, tmp_path):
    begin(breaks="use")
    path = tmp_path / "kept" / f"{attribute.ABOUT.name}.kept"
    path.write_bytes(path.read_bytes()[:-1])
    _, second = begin()
    assert "attribute" in second
    assert "site" not in second
