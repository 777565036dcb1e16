"""The short form of benchmarks/audit_power.py: every registered check has its worlds, and the largest effects are found in one seed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinodomain.audit.checks import CHECKS
from dinodomain.audit.finding import SelfTest

ROOT = Path(__file__).parents[2]
SLOW = ("shape", "corruption", "dense", "shortcut", "maps", "use", "slices", "text", "lodo", "membership", "conditional", "origin")
"""Checks whose worlds take longer than this file may: planted and clean in the tests of their own."""


@pytest.fixture(scope="module")
def power():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("core", "cases", "scenario")
        yield SimpleNamespace(
            **{name: importlib.import_module(f"power.{name}") for name in names}, main=importlib.import_module("audit_power")
        )


@pytest.fixture(autouse=True)
def without_controls(power, monkeypatch):
    """The controls of all checks are run by test_checks.py."""
    passed = SelfTest(positive="pass", negative="pass")
    monkeypatch.setattr(power.scenario, "_once", lambda name: passed)


def test_every_registered_check_has_a_planted_a_clean_and_a_too_small_world(power):
    assert power.cases.lacking() == []
    assert {case.check for case in power.cases.all_cases()} == {check.about.name for check in CHECKS}
    keys = [case.key for case in power.cases.all_cases()]
    assert len(set(keys)) == len(keys)


def test_a_check_without_a_world_is_named(power, monkeypatch):
    left = tuple(case for case in power.cases.all_cases() if (case.check, case.kind) != ("use", "few"))
    monkeypatch.setattr(power.cases, "all_cases", lambda: left)
    assert power.cases.lacking() == ["use"]


@pytest.mark.parametrize("name", [check.about.name for check in CHECKS if check.about.name not in SLOW])
def test_the_largest_effect_is_found_nothing_is_found_without_and_too_little_is_said(power, name):
    cases = [case for case in power.cases.all_cases() if case.check == name and case.aim is not None]
    found = {case.key: (case.kind, case.outcome(1)) for case in cases}
    for key, (kind, one) in found.items():
        assert not one["broken"], key
        assert one["unknown"] if kind == "few" else one["found"] == (kind == "planted"), (key, one)


def test_the_core_keeps_its_level_and_its_interval_holds_the_truth(power):
    """Twelve worlds without an effect: more than three alarms have a chance of .2 %, fewer than nine intervals that hold .5 of .2 %."""
    clean, planted = (power.core.Condition(level="unit", kind="classes", effect=effect) for effect in (0.0, 0.5))
    found = [clean.outcome(seed) for seed in range(12)]
    assert sum(one["found"] for one in found) <= 3
    assert sum(one["low"] <= 0.5 <= one["high"] for one in found) >= 9
    assert all(planted.outcome(seed)["found"] for seed in range(3))


def test_rows_tell_shares_with_wilsons_interval_and_whether_they_reach_their_aim(power):
    case = power.scenario.Scenario(check="site", name="n", kind="planted", run=lambda seed: [], aim=0.8)
    lines = [{"found": hit, "unknown": False, "broken": False, "verdicts": ["FLAG" if hit else "WARN"]} for hit in [True] * 9 + [False]]
    told = power.main._row(case, lines)
    assert (told["ours"], told["passed"], told["seeds"]) == (0.9, True, 10)
    np.testing.assert_allclose(told["interval"], [0.5958, 0.9821], atol=1e-3)  # Brown, Cai and DasGupta 2001: 9 of 10
    broken = [{**lines[0], "broken": True, "verdicts": ["ERROR"]}]
    assert power.main._row(case, broken)["passed"] is False


def test_a_benchmark_that_was_stopped_goes_on_where_it_stopped(power, tmp_path):
    state = tmp_path / "state.jsonl"
    power.main.go_on([("declaration / no form", 0)], state, 1)
    with state.open("a") as file:
        file.write('{"case": "declaration / no form", "se')
    assert list(power.main.read(state)["declaration / no form"]) == [0]
    (row,) = power.main.table(power.main.read(state))
    assert (row["check"], row["measure"], row["ours"]) == ("declaration", "NOT_ASSESSABLE", 1.0)
