"""Gaps by group: planted and clean, hand-derived shares, scikit-learn as oracle, origins of labels, intersections."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score, roc_curve

from dinodomain.audit import AuditSet, Policy
from dinodomain.audit.checks import subgroups
from dinodomain.audit.protocol import groups
from dinodomain.audit.protocol.groups import METRICS, calibration_error, compare, matching_weights, score_task
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.task import cut_point, read_column
from dinodomain.audit.trail.groups import grouped
from dinodomain.probes.scores import auroc


def made(*, num_units=560, flipped=0.0, seed=0, **columns):
    """One image per unit; of women's labels the share ``flipped`` is wrong."""
    generator = np.random.default_rng(seed)
    y, woman = generator.permutation(np.arange(num_units) % 2), generator.permutation(np.arange(num_units) % 2) == 1
    rows = generator.normal(size=(num_units, 8))
    rows[:, :3] += 1.5 * y[:, None]
    wrong = woman & (generator.random(num_units) < flipped)
    named = {"finding": np.where(wrong, 1 - y, y), "sex": np.where(woman, "F", "M"), "age": generator.uniform(20, 80, num_units)}
    named["site"] = np.where(generator.random(num_units) < 0.5, "A", "B")
    units = np.arange(num_units).astype(str)
    return AuditSet(features={"audited": rows}, units=units, content_hash=None, sources=np.arange(num_units), columns=named | columns)


def test_flipped_labels_of_one_group_are_flagged_and_told_in_people(found):
    (finding,) = found(made(flipped=0.3), "subgroups", task="finding", attributes=("sex",))
    assert finding.verdict == "FLAG"
    assert "AUROC of F" in finding.answer
    assert "of 1,000 of F with finding " in finding.answer
    behind = {row[0]: row for row in finding.tables[1].rows}
    assert behind["F"][1] == pytest.approx(-behind["M"][1], abs=1e-9)
    assert all(one < 0 for one in behind["F"][1::3])


@pytest.mark.parametrize("seed", range(3))
def test_equal_groups_are_never_flagged(found, seed):
    for finding in found(made(seed=seed), "subgroups", task="finding", attributes=("sex", "age")):
        assert finding.verdict in ("CLEAR_WITHIN_LIMITS", "NOT_ASSESSABLE")


def test_random_groups_are_rarely_told_apart():
    data, effort = made(num_units=600), Effort(bootstraps=150)
    target = read_column(data, "finding")
    scored, alarms = score_task(data, target, effort), 0
    for seed in range(40):
        inside = np.random.default_rng(seed).random(600) < 0.5
        alarms += compare(scored, "random", inside, ~inside, np.zeros(600, np.int64)).p <= 0.05
    assert alarms <= 6  # P(more) < .02 at 5 %


def test_a_cell_below_fifty_units_is_not_compared(found):
    columns = {"sex": np.where(np.arange(560) < 90, "F", "M")}
    (finding,) = found(made(**columns), "subgroups", task="finding", attributes=("sex",))
    assert (finding.verdict, finding.reason_code) == ("NOT_ASSESSABLE", "n_units")


def test_intersections_come_in_one_finding(found):
    crossed = found(made(flipped=0.4), "subgroups", task="finding", attributes=("sex", "site"))[-1]
    assert crossed.id == "subgroups/intersections"
    assert {row[0] for row in crossed.tables[0].rows} == {f"sex {sex} and site {site}" for sex in "FM" for site in "AB"}
    assert crossed.verdict in ("FLAG", "WARN")


def test_labels_of_different_origin_are_not_compared(found):
    policy = Policy(origins={"finding": {"site": {"A": "recorded", "B": "report_text"}}})
    site, sex = found(made(), "subgroups", task="finding", attributes=("site", "sex"), policy=policy)[:2]
    assert (site.verdict, site.reason_code) == ("NOT_ASSESSABLE", "label_origin")
    assert sex.reason_code != "label_origin"
    (told,) = found(made(), "subgroups", task="finding", attributes=("sex",), policy=Policy(origins={"finding": "report_text"}))
    assert "Labels of finding: report text." in told.limits
    with pytest.raises(ValidationError, match="recorded"):
        Policy(origins={"finding": "guessed"})


def test_the_power_table_shrinks_with_units(found):
    few, many = (
        found(made(num_units=count), "subgroups", task="finding", attributes=("sex",))[0].tables[2].rows[0][6] for count in (240, 960)
    )
    assert 1.5 < few / many < 2.7  # standard errors go with the root of the units


def test_draws_of_the_ranking_spread_like_the_full_bootstrap():
    data = made(num_units=400)
    target = read_column(data, "finding")
    scored = score_task(data, target, Effort(bootstraps=2000))
    value, draws = groups._ranking(scored, np.arange(400) < 300)
    rows = scored.draws[:, scored.target.unit_index[:300]]
    full = auroc(scored.score[:300], scored.truth[:300], rows)
    assert value == pytest.approx(roc_auc_score(scored.truth[:300], scored.score[:300]))
    assert draws.std() == pytest.approx(full.std(), rel=0.06)
    assert np.corrcoef(draws, full)[0, 1] > 0.98


def test_placements_average_to_the_auroc_with_ties_and_weights():
    generator = np.random.default_rng(1)
    scores, truth, weights = np.round(generator.normal(size=80), 1), generator.random(80) < 0.4, generator.random(80)
    place = groups.placements(scores, truth, weights)
    expected = roc_auc_score(truth, scores, sample_weight=weights)
    assert np.average(place[truth], weights=weights[truth]) == pytest.approx(expected)
    assert np.average(place[~truth], weights=weights[~truth]) == pytest.approx(expected)


def test_the_threshold_is_youdens():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 300)
    scores = np.round(generator.normal(size=300) + y, 1)
    false, true, cuts = roc_curve(y, scores)
    at = cut_point(scores, y)
    gain = (scores >= at)[y == 1].mean() - (scores >= at)[y == 0].mean()
    assert gain == pytest.approx((true - false).max())
    assert at in cuts


def test_calibration_error_by_hand():
    chance = np.repeat([0.2, 0.8], 50)
    assert calibration_error(chance, np.tile([0, 0, 0, 0, 1], 20)) == pytest.approx(0.3)  # 0 for the first half, .6 for the second
    truth = np.r_[np.tile([0, 0, 0, 0, 1], 10), np.tile([1, 1, 1, 1, 0], 10)]
    assert calibration_error(chance, truth) == pytest.approx(0.0, abs=1e-12)


def test_matching_gives_the_rest_the_groups_mix():
    cell = np.array([0, 0, 0, 1, 0, 1, 1, 1, 2])
    inside = np.arange(9) < 4
    weights = matching_weights(cell, inside, ~inside)
    assert weights.tolist() == [1, 1, 1, 1, 3, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3), 0]


def test_a_gap_that_strata_explain_vanishes_when_matched(found):
    generator = np.random.default_rng(3)
    hard, woman, y = generator.random(1000) < 0.5, np.zeros(1000, bool), np.arange(1000) % 2
    woman[hard] = generator.random(hard.sum()) < 0.8
    woman[~hard] = generator.random((~hard).sum()) < 0.2
    rows = generator.normal(size=(1000, 6))
    rows[:, 0] += np.where(hard, 0.3, 3.0) * y
    columns = {"finding": y, "sex": np.where(woman, "F", "M"), "view": np.where(hard, "AP", "PA")}
    data = AuditSet(
        features={"audited": rows}, units=np.arange(1000).astype(str), content_hash=None, sources=np.arange(1000), columns=columns
    )
    (finding,) = found(data, "subgroups", task="finding", attributes=("sex",), strata=("view",))
    assert finding.tables[2].rows[0][1] < -0.1
    assert abs(finding.tables[2].rows[0][2]) < 0.05


def test_errors_are_never_surer_than_their_counts_allow():
    data = made(num_units=400)
    target = read_column(data, "finding")
    scored = score_task(data, target, Effort(bootstraps=100))
    inside = np.arange(400) < 200
    gap = compare(scored, "first", inside, ~inside, np.zeros(400, np.int64))
    assert all(gap.errors[metric] > 0 for metric in METRICS)
    assert 0 <= gap.p <= 1
    assert subgroups.MIN_CELL == 50


def test_numbers_are_cut_into_quarters():
    words = grouped(np.r_[np.arange(1.0, 41.0), np.nan])
    assert words[-1] == ""
    assert [int((words == one).sum()) for one in dict.fromkeys(words[:-1])] == [10, 10, 10, 10]
    assert grouped(np.array(["a", "b", None], dtype=object)).tolist() == ["a", "b", ""]
