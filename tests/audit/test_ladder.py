"""The probe ladder: rungs read what they should, choose inside the training rows, and make verdicts worse only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from dinodomain.audit import Asked, Effort, Policy, run_checks
from dinodomain.audit.protocol.attribute import read_attribute
from dinodomain.audit.protocol.ladder import climb, spread_rows
from dinodomain.audit.protocol.leak import read_leaks
from dinodomain.audit.protocol.measures import beyond_chance, precision_lift, usable_bits
from dinodomain.audit.protocol.network import fit_network
from dinodomain.audit.protocol.nuisance import with_statistics
from dinodomain.audit.protocol.planting import _row_noise, likeness
from dinodomain.audit.protocol.reading import climbed, measure
from dinodomain.audit.protocol.rungs import NEIGHBOURS, lesson_of, neighbours
from dinodomain.audit.protocol.verdict import Thresholds, raised, severe
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.knn import knn
from dinodomain.probes.scores import Interval

EFFORT = Effort(permutations=99, bootstraps=100)


def ladder_of(features, values, units=None, **keys):
    attribute = read_attribute("a", values, np.arange(len(values)) if units is None else units)
    leaks, _ = read_leaks({"audited": features}, attribute, EFFORT)
    folds = grouped_folds(attribute.unit_index, attribute.values, EFFORT.folds, EFFORT.seed)
    return climb(features, attribute, leaks["audited"], folds, EFFORT, **keys), leaks["audited"]


def ring(count, seed):
    """Two classes told apart by their distance from the centre: no line separates them."""
    generator = np.random.default_rng(seed)
    values = np.arange(count) % 2
    directions = generator.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * np.where(values, 3.0, 1.0)[:, None] + 0.3 * generator.normal(size=(count, 3)), values


def test_the_network_reads_what_no_linear_probe_does_and_becomes_the_attacker():
    ladder, headline = ladder_of(*ring(240, 0), names=("ridge", "network"))
    assert abs(headline.value - 0.5) < 0.1
    assert ladder.rungs["network"].value > 0.9
    assert ladder.chosen["network"] == 5
    assert ladder.gain.low > 0.3
    assert ladder.attacker.interval.low > 0.8


def test_every_rung_finds_a_plain_leak_and_none_invents_one():
    generator = np.random.default_rng(1)
    values = np.arange(240) % 2
    clean = generator.normal(size=(240, 8))
    found, _ = ladder_of(clean + 1.2 * values[:, None] * (np.arange(8) < 3), values)
    silent, _ = ladder_of(clean, values)
    assert all(rung.interval.low > 0.7 for rung in found.rungs.values())
    assert all(rung.interval.low < 0.55 for rung in silent.rungs.values())
    assert found.bits.low > 0.2
    assert silent.bits.low < 0


def test_the_ridge_rung_is_the_headline():
    generator = np.random.default_rng(2)
    values = np.arange(200) % 3
    ladder, headline = ladder_of(generator.normal(size=(200, 6)) + values[:, None], values, names=("ridge",))
    assert ladder.rungs["ridge"].value == pytest.approx(headline.value, abs=0.03)  # ranks within folds
    assert ladder.chosen == {"ridge": 5}


def test_numbers_climb_without_logistic_regression():
    generator = np.random.default_rng(3)
    values = generator.normal(size=200)
    ladder, _ = ladder_of(values[:, None] + 0.5 * generator.normal(size=(200, 4)), values)
    assert set(ladder.rungs) == {"ridge", "neighbours", "network", "attacker"}
    assert ladder.attacker.value > 0.8
    assert (ladder.bits, ladder.balanced) == (None, None)


def test_rows_are_spread_over_units_before_any_unit_gets_a_second():
    units = np.repeat(np.arange(20), np.arange(1, 21))
    rows = spread_rows(units, 30, seed=0)
    counts = np.bincount(units[rows], minlength=20)
    assert len(rows) == 30
    assert counts.min() == 1
    assert counts.max() == 2
    np.testing.assert_array_equal(spread_rows(units, 999, seed=0), np.arange(len(units)))


def test_neighbours_of_one_search_equal_the_probe_of_its_own():
    generator = np.random.default_rng(4)
    x, asked, y = generator.normal(size=(90, 5)), generator.normal(size=(12, 5)), np.arange(90) % 2
    attribute = read_attribute("a", y, np.arange(90))
    lesson, rows = lesson_of(x, attribute, np.arange(90) % 3, 0, asked)
    answer = neighbours(lesson, rows)
    options = [knn(lesson.x, y, rows, classes=2, k=k) for k in NEIGHBOURS]
    assert min(np.abs(answer.predictions - option).max() for option in options) < 1e-4


def test_the_network_is_the_same_for_the_same_seed():
    features, values = ring(200, 5)
    one, other, third = (fit_network(features[:150], values[:150], features[150:], values[150:], classes=2, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one(features), other(features))
    assert np.abs(one(features) - third(features)).max() > 0


def test_bits_are_entropy_minus_log_loss():
    generator = np.random.default_rng(6)
    truth = (generator.random(500) < 0.25).astype(int)
    share = truth.mean()
    prior = np.tile([1 - share, share], (500, 1))
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert usable_bits(prior, truth, np.ones((1, 500)))[0] == pytest.approx(0.0, abs=1e-9)
    assert usable_bits(np.eye(2)[truth], truth, np.ones((1, 500)))[0] == pytest.approx(entropy)
    mixed = 0.7 * np.eye(2)[truth] + 0.3 * prior
    assert usable_bits(mixed, truth, np.ones((1, 500)))[0] == pytest.approx(entropy - log_loss(truth, mixed) / math.log(2))


def test_balanced_accuracy_beyond_chance_runs_from_nothing_to_one():
    truth = np.array([0, 0, 0, 1, 2, 2])
    assert beyond_chance(np.eye(3)[truth], truth) == pytest.approx(1.0)
    assert beyond_chance(np.tile([1.0, 0, 0], (6, 1)), truth) == pytest.approx(0.0)


def test_lift_is_told_of_rare_classes_only():
    generator = np.random.default_rng(7)
    rare = np.arange(1000) < 30
    scores = generator.normal(size=1000) + rare
    assert precision_lift(scores, rare) == pytest.approx(average_precision_score(rare, scores) / 0.03)
    assert precision_lift(scores, np.arange(1000) < 60) is None


def test_pixel_statistics_are_mean_spread_and_a_histogram_that_sums_to_one():
    rows = np.random.default_rng(8).normal(size=(40, 16))
    found = with_statistics(rows)
    np.testing.assert_array_equal(found[:, :16], rows)
    np.testing.assert_allclose(found[:, 16], rows.mean(axis=1))
    np.testing.assert_allclose(found[:, 17], rows.std(axis=1))
    np.testing.assert_allclose(found[:, 18:].sum(axis=1), 1.0)
    assert found.shape == (40, 16 + 2 + 64)
    assert np.isfinite(with_statistics(np.ones((5, 4)))).all()


def at(value, low, high):
    return Interval(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("verdict", "attacker", "gain", "wanted"),
    [
        ("CLEAR_WITHIN_LIMITS", (0.8, 0.75, 0.85), (0.3, 0.2, 0.4), "FLAG"),
        ("WARN", (0.8, 0.75, 0.85), (0.1, 0.05, 0.2), "FLAG"),
        ("WARN", (0.75, 0.71, 0.8), (0.01, -0.02, 0.04), "WARN"),  # no better than the headline
        ("CLEAR_WITHIN_LIMITS", (0.58, 0.52, 0.64), (0.06, 0.0, 0.1), "NOT_ASSESSABLE"),
        ("CLEAR_WITHIN_LIMITS", (0.52, 0.46, 0.58), (0.0, -0.1, 0.1), "CLEAR_WITHIN_LIMITS"),
        ("FLAG", (0.5, 0.45, 0.55), (-0.3, -0.4, -0.2), "FLAG"),  # never milder
    ],
)
def test_an_attacker_makes_a_verdict_worse_and_never_milder(verdict, attacker, gain, wanted):
    assert raised(verdict, at(*attacker), at(*gain), thresholds=Thresholds())[0] == wanted


def test_a_warning_about_a_special_category_is_a_flag():
    assert severe("WARN", True)[0] == "FLAG"
    assert severe("WARN", False) == ("WARN", "")
    assert severe("NOT_ASSESSABLE", True) == ("NOT_ASSESSABLE", "")


def test_the_attribute_check_flags_what_only_a_stronger_attacker_reads(make_set):
    features, values = ring(240, 9)
    data = make_set(
        features={"audited": features}, units=np.arange(240).astype(str), content_hash=None, sources=np.arange(240),
        columns={"sex": np.array(["F", "M"])[values]}, split=None,
    )  # fmt: skip
    asked = Asked(attributes=("sex",))
    (finding,) = run_checks(data, asked=asked, effort=EFFORT, names=("attribute",)).report.findings
    assert (finding.verdict, finding.reason_code) == ("FLAG", "attacker")
    assert finding.evidence["attacker"]["low"] > 0.7
    assert "network" in finding.evidence["attacker"]["chosen"]
    (table,) = finding.tables
    assert [row[0] for row in table.rows][-1].startswith("attacker")
    assert "attacker on the audited encoder" in [bar.label for bar in finding.plots[0].rows]


def test_a_special_category_is_one_step_more_severe_and_marked(make_set, found):
    generator = np.random.default_rng(10)
    values = np.arange(240) % 2
    features = generator.normal(size=(240, 6))
    features[:, 0] += 0.7 * values
    data = make_set(
        features={"audited": features}, units=np.arange(240).astype(str), content_hash=None, sources=np.arange(240),
        columns={"faith": values.astype(str)}, split=None,
    )  # fmt: skip
    (plain,) = found(data, "attribute", attributes=("faith",))
    (special,) = found(data, "attribute", attributes=("faith",), policy=Policy(special_category=("faith",)))
    assert (plain.verdict, plain.special_category) == ("WARN", False)
    assert (special.verdict, special.special_category, special.reason_code) == ("FLAG", True, "special_category")
    both = Policy(special_category=("faith",), expected={"faith": "dress"})
    (expected,) = found(data, "attribute", attributes=("faith",), policy=both)
    assert (expected.verdict, expected.reason_code) == ("WARN", "expected")
    assert "subgroups, conditional and use" in expected.reason


def test_selectivity_is_the_score_beyond_random_labels_of_units(make_set, quick):
    data = make_set(leak=3.0)
    reading = measure(data, "site", effort=quick, alpha=0.05)
    reading = climbed(reading, data, quick)
    assert reading.selectivity == pytest.approx(reading.leaks["audited"].value - 0.5, abs=0.06)
    assert reading.again == pytest.approx(reading.leaks["audited"].value, abs=0.05)
    assert reading.ladders == {}
    assert replace(reading, random=None).selectivity is None


def test_units_of_unequal_size_do_not_break_the_planted_noise():
    """Fisher's correlation of pairs passes 1 where large units lie far out; the noise is then wholly shared."""
    units = np.repeat(np.arange(40), [30] * 2 + [1] * 19 + [2] * 19)
    values = np.r_[100.0, -100.0, np.random.default_rng(0).normal(size=38)][units]
    attribute = read_attribute("age", values, units)
    assert likeness(attribute) > 1
    assert np.isfinite(_row_noise(attribute, 1, np.random.default_rng(0))).all()
