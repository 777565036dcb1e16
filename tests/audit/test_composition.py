"""Composition: counts of units by hand, distance to a declared population with an honest interval, missing values."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import entropy

from dinodomain.audit import Asked, Effort, Policy, run_checks
from dinodomain.audit.checks.composition import effective, total_variation
from dinodomain.audit.trail import Trail
from dinodomain.audit.trail.group_tables import withheld
from dinodomain.audit.trail.groups import group_units


def by_id(findings):
    return {item.id: item for item in findings}


def test_without_a_target_counts_are_printed_and_the_rest_is_not_assessable(make_set, found):
    got = by_id(found(make_set(), "composition", attributes=("sex",), domains=("site",)))
    assert got["composition/target"].reason_code == "no_target"
    counts = got["composition/counts"]
    assert counts.verdict == "CLEAR_WITHIN_LIMITS"
    assert counts.tables[0].rows[0] == ("sex", "F", 130, 0.5)
    assert counts.evidence["effective_groups"]["site"] == pytest.approx(2)


def test_a_declared_group_without_units_is_flagged(make_set, found):
    policy = Policy(targets={"sex": {"F": 0.5, "M": 0.4, "X": 0.1}})
    got = by_id(found(make_set(), "composition", policy=policy))["composition/sex"]
    assert got.verdict == "FLAG"
    assert "X" in got.answer


def test_a_shifted_sample_is_warned_of_and_one_of_the_population_is_not(make_set, found):
    shifted = Policy(targets={"sex": {"F": 0.8, "M": 0.2}})
    got = by_id(found(make_set(), "composition", policy=shifted))["composition/sex"]
    assert got.verdict == "WARN"
    assert got.estimate.value == pytest.approx(0.3)
    equal = Policy(targets={"sex": {"F": 0.5, "M": 0.5}})
    got = by_id(found(make_set(), "composition", policy=equal))["composition/sex"]
    assert (got.verdict, got.estimate.low) == ("CLEAR_WITHIN_LIMITS", 0.0)


def test_few_units_wrong_shares_and_unknown_columns_are_not_assessable(make_set, found):
    equal = Policy(targets={"sex": {"F": 0.5, "M": 0.5}})
    assert by_id(found(make_set(num_units=20), "composition", policy=equal))["composition/sex"].reason_code == "n_units"
    with pytest.raises(ValidationError, match=r"the shares of sex sum to 1\.4"):
        Policy(targets={"sex": {"F": 0.5, "M": 0.9}})
    got = by_id(found(make_set(), "composition", policy=Policy(targets={"race": {"a": 1.0}})))
    assert got["composition/race"].reason_code == "missing_column"


def test_distance_by_hand_and_its_interval_covers_nothing_for_samples_of_the_population():
    shares = np.eye(2)[[0] * 60 + [1] * 40]
    assert total_variation(shares, np.array([0.5, 0.5]), 200, 0).value == pytest.approx(0.1)
    wanted, generator = np.array([0.4, 0.3, 0.2, 0.1]), np.random.default_rng(0)
    lows = [total_variation(np.eye(4)[generator.choice(4, 150, p=wanted)], wanted, 200, seed).low for seed in range(60)]
    assert np.mean(np.array(lows) > 0.02) <= 0.1


def test_the_effective_number_agrees_with_scipy():
    groups = group_units(np.arange(10).astype(str), np.array(["a"] * 7 + ["b"] * 2 + ["c"]))
    assert effective(groups) == pytest.approx(np.exp(entropy([7, 2, 1])))


def test_values_missing_often_or_for_one_group_are_warned_of(make_set, found):
    data = make_set()
    sex = data.columns["sex"].astype(object).copy()
    sex[:200] = ""
    got = by_id(found(replace(data, columns=data.columns | {"sex": sex}), "composition", attributes=("sex",)))["composition/counts"]
    assert got.verdict == "WARN"
    assert "sex of 38% of the units" in got.answer
    sex = np.where((data.columns["site"] == "A") & (np.arange(520) < 150), "", data.columns["sex"])
    got = by_id(found(replace(data, columns=data.columns | {"sex": sex}), "composition", attributes=("sex",), domains=("site",)))
    assert "more often where site is A" in got["composition/counts"].answer


def test_small_cells_are_not_printed(make_set, found):
    data = make_set(num_units=50)
    rare = np.where(np.arange(100) < 6, "rare", "common")
    data = replace(data, columns=data.columns | {"rare": rare})
    (got, _) = found(data, "composition", attributes=("rare", "sex"))
    assert ("rare", "rare", "< 10", None) in got.tables[0].rows
    joint = next(table for table in got.tables if table.title == "Units by rare and sex")
    assert all(cell == "< 10" or cell == 0 for cell in joint.rows[1][1:])


def test_units_without_ids_are_not_counted(make_set, found):
    data = make_set()
    units = data.units.copy()
    units[0] = ""
    assert found(replace(data, units=units), "composition")[0].reason_code == "no_unit_key"


def test_months_and_seasons_are_counted_where_dates_are_true(make_set):
    data = make_set(num_units=60)
    dates = np.array(["2020-01-15", "2020-07-02"])[np.arange(120) % 2]
    data = replace(data, columns=data.columns | {"acquired": dates})
    for personal, expected in ((False, {"season", "month"}), (True, set())):
        trail = Trail(kept=SimpleNamespace(personal=personal))
        got = run_checks(data, asked=Asked(), effort=Effort(permutations=99, bootstraps=100), names=("composition",), trail=trail)
        counted = {row[0] for table in got.report.findings[0].tables[:1] for row in table.rows}
        assert counted == expected


def test_a_number_below_ten_is_not_told_by_the_sums_either():
    """By hand: of 8 women at B, 98 at A, 30 men at A and 40 at B, one hidden cell of each line would follow from its sum."""
    assert withheld(np.array([[98, 8], [30, 40]])).tolist() == [[True, True], [True, True]]
    assert withheld(np.array([[98, 8, 50], [30, 40, 20]])).tolist() == [[False, True, True], [False, True, True]]
    assert withheld(np.array([12, 5, 40, 70])).tolist() == [True, True, False, False]
    assert withheld(np.array([12, 5, 4, 70])).tolist() == [False, True, True, False]
    assert not withheld(np.array([[10, 0], [20, 30]])).any()


def test_ranges_come_in_the_order_of_their_numbers():
    groups = group_units(np.arange(4).astype(str), np.array(["32 to 48", "7 to 32", "unclear", "100 to 120"]))
    assert groups.names == ("7 to 32", "32 to 48", "100 to 120", "unclear")
