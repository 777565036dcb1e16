"""The statistical core: nulls, intervals, planting and verdicts do what they claim, on data whose truth is known."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict

from dinodomain.audit import Effort
from dinodomain.audit.protocol.attribute import permuted, read_attribute
from dinodomain.audit.protocol.leak import Reader, excess, interval_of, read_leaks, score_many
from dinodomain.audit.protocol.planting import likeness, p_values, plant
from dinodomain.audit.protocol.verdict import Thresholds, holm, judge
from dinodomain.probes.folds import grouped_folds
from dinodomain.probes.scores import Interval


def alike(units: int, images: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features without any signal in which images of a unit resemble each other."""
    generator = np.random.default_rng(seed)
    index = np.repeat(np.arange(units), images)
    return generator.normal(size=(units, width))[index] + 0.4 * generator.normal(size=(units * images, width)), index


def leak_of(features, values, units, *, permutations=199, bootstraps=200, seed=0):
    effort = Effort(permutations=permutations, bootstraps=bootstraps, seed=seed)
    return read_leaks({"audited": features}, read_attribute("a", values, units), effort)[0]["audited"]


def test_random_folds_invent_a_leak_that_folds_by_unit_do_not():
    features, units = alike(200, 5, 96, seed=1)
    values = np.random.default_rng(2).permutation(np.arange(200) % 2)[units]
    by_row = cross_val_predict(
        LogisticRegression(max_iter=500), features, values, cv=KFold(5, shuffle=True, random_state=0), method="predict_proba"
    )
    assert roc_auc_score(values, by_row[:, 1]) > 0.7
    leak = leak_of(features, values, units)
    assert abs(leak.value - 0.5) < 0.1
    assert leak.p > 0.05


def test_a_leak_constant_on_units_is_found_by_permuting_units():
    features, units = alike(120, 5, 16, seed=3)
    values = (np.arange(120) % 2)[units]
    leak = leak_of(features + 1.5 * values[:, None] * (np.arange(16) < 3), values, units)
    assert leak.p == pytest.approx(1 / 200)
    assert leak.interval.low > 0.8


@pytest.mark.parametrize("level", ["unit", "image"])
def test_p_values_of_clean_attributes_are_uniform(level):
    p = []
    for seed in range(30):
        features, units = alike(60, 3, 10, seed)
        generator = np.random.default_rng(seed)
        values = generator.permutation(np.arange(60) % 2)[units] if level == "unit" else generator.integers(0, 2, 180)
        p.append(leak_of(features, values, units, permutations=99, bootstraps=100).p)
    assert kstest(p, "uniform").pvalue > 0.01


def test_the_interval_covers_the_truth_without_a_leak():
    covered = []
    for seed in range(40):
        features, units = alike(60, 3, 10, seed + 100)
        values = np.random.default_rng(seed).permutation(np.arange(60) % 2)[units]
        interval = leak_of(features, values, units, permutations=99, bootstraps=100).interval
        covered.append(interval.low <= 0.5 <= interval.high)
    assert np.mean(covered) >= 0.87  # 35 of 40; expected 0.95, chance of fewer below 2 %


def test_the_null_of_pooled_predictions_is_centred_on_one_half():
    features, units = alike(100, 2, 20, seed=5)
    leak = leak_of(features, (np.arange(100) % 2)[units], units, permutations=400)
    assert abs(leak.null.mean() - 0.5) < 0.02  # uncentred predictions give about .44


@pytest.mark.parametrize("kind", ["three classes", "number"])
def test_other_kinds_of_attributes_are_found_and_clean_ones_are_not(kind):
    features, units = alike(120, 2, 12, seed=6)
    generator = np.random.default_rng(7)
    values = (np.arange(120) % 3 if kind == "three classes" else generator.normal(size=120))[units]
    planted = features + (np.eye(3)[values] @ generator.normal(size=(3, 12)) * 1.5 if kind == "three classes" else values[:, None])
    assert leak_of(planted, values, units).p < 0.01
    assert leak_of(features, values, units).p > 0.01


def test_excess_over_a_baseline_is_paired():
    features, units = alike(120, 2, 12, seed=8)
    values = (np.arange(120) % 2)[units]
    planted = features + 1.2 * values[:, None] * (np.arange(12) < 3)
    leaks, _ = read_leaks(
        {"audited": planted, "pixels": features}, read_attribute("a", values, units), Effort(permutations=99, bootstraps=100)
    )
    assert excess(leaks["audited"], leaks["pixels"]).low > 0.1
    assert excess(leaks["audited"], leaks["audited"]) == Interval(value=0.0, low=0.0, high=0.0)


def test_scores_of_many_columns_equal_scikit_learn():
    generator = np.random.default_rng(0)
    values, positive = generator.integers(0, 2, (3, 50)), generator.normal(size=(3, 50))
    found = score_many("classes", np.stack([-positive, positive], axis=2), values)
    np.testing.assert_allclose(found, [roc_auc_score(row, score) for row, score in zip(values, positive)])


def test_permutations_of_a_unit_attribute_keep_units_whole_and_counts_equal():
    units = np.repeat(np.arange(30), [1, 2, 3] * 10)
    attribute = read_attribute("a", (np.arange(30) % 2)[units].astype(str), units)
    assert attribute.level == "unit"
    for draw in permuted(attribute, 20, seed=0):
        assert all(len(set(draw[units == unit])) == 1 for unit in range(30))
        assert sum(draw[np.searchsorted(units, np.arange(30))]) == 15


def test_permutations_of_an_image_attribute_keep_the_mix_within_units():
    units = np.repeat(np.arange(20), 4)
    values = np.where(np.arange(80) % 4 < 2, "x", "y")
    attribute = read_attribute("a", np.where(units < 10, values, "x"), units)
    assert attribute.level == "image"
    for draw in permuted(attribute, 20, seed=0):
        assert sorted(draw.reshape(20, 4).sum(axis=1)) == [0] * 10 + [2] * 10


def test_likeness_is_one_for_unit_attributes_and_about_zero_for_random_ones():
    units = np.repeat(np.arange(100), 4)
    assert likeness(read_attribute("a", (np.arange(100) % 2)[units], units)) == pytest.approx(1.0)
    assert abs(likeness(read_attribute("a", np.random.default_rng(0).integers(0, 2, 400), units))) < 0.1


def test_missing_values_and_small_classes_are_left_out():
    units = np.arange(100)
    column = np.array(["F"] * 45 + ["M"] * 40 + ["X"] * 5 + ["", "nan", "Unknown", "NA", "none"] * 2)
    attribute = read_attribute("sex", column, units)
    assert attribute.classes == ("F", "M")
    assert attribute.dropped == ("X",)
    assert attribute.missing == pytest.approx(0.1)
    assert (attribute.num_minor, len(attribute.rows)) == (40, 85)


def test_more_units_make_smaller_leaks_detectable():
    found = []
    for units in (80, 600):
        features, index = alike(units, 1, 30, seed=9)
        attribute = read_attribute("a", np.arange(units) % 2, index)
        leaks, reader = read_leaks({"audited": features}, attribute, Effort(permutations=199, bootstraps=100))
        found.append(plant(reader, features, attribute, leaks["audited"].null, alpha=0.05, seed=0, runs=30))
    assert all(item.clean for item in found)
    few, many = found
    assert many.mdl is not None
    assert many.mdl < 0.7
    assert few.mdl is None or few.mdl > many.mdl + 0.05
    assert many.oracle == tuple(sorted(many.oracle))


def test_p_values_count_ties_against_the_finding():
    np.testing.assert_allclose(p_values(np.array([0.5, 0.6, 0.4]), np.array([0.4, 0.5, 0.5])), [3 / 4, 1 / 4, 1.0])


def test_holm_equals_the_hand_computed_correction():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert holm([]) == []


def test_intervals_stay_inside_the_scale():
    assert 0.95 < interval_of(0.99, 0.003, 0.03, 200).low < 0.99 < interval_of(0.99, 0.003, 0.03, 200).high < 1.0
    perfect = interval_of(1.0, 0.0, 0.03, 100)
    assert 0.98 < perfect.low < 0.995
    assert perfect.high == 1.0
    assert interval_of(0.5, 0.02, 0.05, 100).low == pytest.approx(0.5 - 1.959964 * 0.05)


@pytest.mark.parametrize(
    ("interval", "p", "mdl", "minor", "wanted"),
    [
        ((0.8, 0.75, 0.85), 0.001, 0.6, 200, ("FLAG", "")),
        ((0.9, 0.75, 0.95), 0.001, None, 40, ("FLAG", "")),  # few units, but plain to see
        ((0.7, 0.62, 0.78), 0.001, 0.6, 200, ("WARN", "")),
        ((0.7, 0.62, 0.78), 0.001, 0.6, 60, ("NOT_ASSESSABLE", "n_units")),
        ((0.5, 0.45, 0.55), 0.5, 0.65, 200, ("CLEAR_WITHIN_LIMITS", "")),
        ((0.5, 0.45, 0.55), 0.5, 0.75, 200, ("NOT_ASSESSABLE", "low_power")),
        ((0.5, 0.45, 0.55), 0.5, None, 200, ("NOT_ASSESSABLE", "low_power")),
        ((0.55, 0.45, 0.65), 0.2, 0.65, 200, ("NOT_ASSESSABLE", "wide_interval")),
    ],
)
def test_verdicts_follow_the_rules(interval, p, mdl, minor, wanted):
    value, low, high = interval
    assert judge(Interval(value=value, low=low, high=high), p, mdl, minor, thresholds=Thresholds())[:2] == wanted


def test_the_interval_covers_the_truth_of_a_leak():
    """The truth is what the procedure scores on average: 95 % of the intervals of 40 draws should hold it, fewer than 35 have 2 %."""
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed + 500)
        values = np.arange(150) % 2
        features = generator.normal(size=(150, 6))
        features[:, 0] += 0.9 * values
        found.append(leak_of(features, values, np.arange(150), permutations=99, bootstraps=100).interval)
    truth = np.mean([interval.value for interval in found])
    assert sum(interval.low <= truth <= interval.high for interval in found) >= 35


def test_false_alarms_of_the_verdict_keep_the_level():
    """Clean attributes, five corrected together, 12 times: a family with a warning or flag has a chance of 5 %, three of them 2 %."""
    alarms = 0
    for seed in range(12):
        generator = np.random.default_rng(seed + 900)
        features, units = alike(50, 2, 6, seed + 900)
        leaks = [leak_of(features, generator.permutation(np.arange(50) % 2)[units], units, bootstraps=50) for _ in range(5)]
        adjusted = holm([leak.p for leak in leaks])
        found = [judge(leak.interval, p, 0.6, 200, thresholds=Thresholds())[0] for leak, p in zip(leaks, adjusted)]
        alarms += bool({"WARN", "FLAG"} & set(found))
    assert alarms <= 2


def test_baselines_see_fewer_permutations_and_the_headline_all():
    features, units = alike(60, 2, 4, seed=11)
    attribute = read_attribute("a", (np.arange(60) % 2)[units], units)
    leaks, _ = read_leaks({"audited": features, "pixels": features}, attribute, Effort(permutations=300, bootstraps=50))
    assert (len(leaks["audited"].null), len(leaks["pixels"].null)) == (300, 250)
    np.testing.assert_array_equal(leaks["audited"].null[:250], leaks["pixels"].null)


def test_slices_of_real_patients_leak_through_random_folds_only(real_data):
    """Sex of 77 patients from 16 x 16 pixels of every second MRI slice: slices of one patient on both sides give it away."""
    with open(real_data / "lgg_mri" / "dev" / "slices.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))[::2]
    images = [Image.open(real_data / "lgg_mri" / row["file"]).convert("L").resize((16, 16), Image.Resampling.BOX) for row in rows]
    features = np.stack([np.asarray(image, np.float64).reshape(-1) for image in images])
    sex = read_attribute("sex", [row["gender_code"] for row in rows], np.array([row["patient_id"] for row in rows]))
    pixels = features[sex.rows]
    alone = replace(sex, unit_index=np.arange(len(pixels)))
    random, grouped = (
        Reader(pixels, how, grouped_folds(how.unit_index, how.values, 5, 0)).score(how.values[None])[0] for how in (alone, sex)
    )
    assert random > 0.75
    assert random - grouped > 0.2
