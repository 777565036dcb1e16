"""The probes on made-up features whose signal is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from dinodomain.errors import UserError
from dinodomain.probes import ProbePlan, knn, linear, run_probe
from dinodomain.probes.run import read_target

UNITS = np.repeat(np.arange(80), 2)


def made(signal: float, labels: np.ndarray, width: int = 16, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    alike = generator.normal(size=(80, width))[UNITS]  # what makes two images of one unit resemble each other
    return alike + 0.3 * generator.normal(size=(160, width)) + signal * labels[:, None] * (np.arange(width) < 4)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(9).integers(0, 2, 80)[UNITS]


@pytest.fixture(scope="module")
def features(labels):
    return {"pretrained": made(3.0, labels), "random_init": made(0.0, labels, seed=1), "pixels": made(0.5, labels, seed=2)}


@pytest.fixture(scope="module")
def report(features, labels):
    return run_probe(features, np.array(["no", "yes"])[labels], UNITS, target="finding", bootstraps=200)


def test_signal_is_found_and_noise_scores_chance(report):
    assert report.score("pretrained", "linear").metrics["balanced_accuracy"].low > 0.85
    noise = report.score("random_init", "linear").metrics["balanced_accuracy"]
    assert 0.3 < noise.value < 0.7


def test_units_alike_give_noise_no_score_although_random_folds_would(features, labels):
    rows = features["random_init"]
    grouped = run_probe(features, labels, UNITS, kinds=("knn",), bootstraps=100).score("random_init", "knn").metrics["accuracy"].value
    by_row = (
        run_probe(features, labels, np.arange(160), kinds=("knn",), bootstraps=100).score("random_init", "knn").metrics["accuracy"].value
    )
    assert rows.shape == (160, 16)
    assert by_row > grouped + 0.1


def test_both_baselines_and_their_paired_differences_are_always_there(report, features, labels):
    assert {(item.features, item.probe) for item in report.scores} == {(f, p) for f in features for p in ("knn", "linear")}
    assert {(item.baseline, item.probe) for item in report.differences} == {
        (f, p) for f in ("random_init", "pixels") for p in ("knn", "linear")
    }
    assert all(item.interval.low > 0 for item in report.differences)
    with pytest.raises(UserError, match="without pixels"):
        run_probe({name: rows for name, rows in features.items() if name != "pixels"}, labels, UNITS)


def test_the_text_names_metric_units_and_baselines(report):
    text = report.text()
    for words in ("finding: 160 images of 80 units", "balanced_accuracy", "untrained encoder", "pixels", "linear: pretrained - pixels ="):
        assert words in text


def test_the_saved_report_is_valid_json_and_a_picture(report, tmp_path):
    report.save(tmp_path)
    body = json.loads((tmp_path / "probe.json").read_text())
    assert body["num_units"] == 80
    assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "probe.txt").read_text().strip() == report.text()


def test_more_labels_per_class_score_higher_and_seeds_are_averaged(features, labels):
    weak = features | {"pretrained": made(1.5, labels, seed=4)}
    few, many = (run_probe(weak, labels, UNITS, kinds=("linear",), labels_per_class=n, seeds=(0, 1, 2), bootstraps=100) for n in (2, 20))
    assert few.score("pretrained", "linear").metrics["accuracy"].value < many.score("pretrained", "linear").metrics["accuracy"].value
    assert few.seeds == (0, 1, 2)


def test_numbers_are_regressed(features, labels):
    target = 10 + 5 * labels + np.random.default_rng(0).normal(size=160)
    report = run_probe(features, target, UNITS, bootstraps=100)
    assert report.task == "regress"
    assert report.score("pretrained", "linear").metrics["r2"].low > 0.4


def test_equal_calls_give_equal_reports(features, labels, report):
    again = run_probe(features, np.array(["no", "yes"])[labels], UNITS, target="finding", bootstraps=200)
    assert again.as_json() == report.as_json()


def test_one_class_or_nan_features_are_refused(features, labels):
    with pytest.raises(UserError, match="has one value only"):
        run_probe(features, np.zeros(160, int), UNITS)
    broken = features | {"pixels": np.where(np.arange(160)[:, None] < 3, np.nan, features["pixels"])}
    with pytest.raises(UserError, match=r"features\.pixels: 3 rows hold NaN"):
        run_probe(broken, labels, UNITS)


def test_a_column_of_text_is_no_quantity():
    with pytest.raises(UserError, match="'old'"):
        read_target(["1", "old"], "regress")
    assert read_target([str(i) for i in range(50)], "auto").classes == ()
    assert read_target([i % 3 for i in range(50)], "auto").classes == ("0", "1", "2")


def test_knn_votes_as_scikit_learn_with_cosine_and_exponential_weights():
    generator = np.random.default_rng(2)
    train, y, test = generator.normal(size=(60, 5)), generator.integers(0, 3, 60), generator.normal(size=(20, 5))
    centre = train.mean(axis=0)
    peer = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)).fit(train - centre, y)
    np.testing.assert_allclose(knn(train, y, test, classes=3), peer.predict_proba(test - centre), atol=1e-9)


def test_wide_features_are_reduced_on_the_training_rows_only():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 2
    train = generator.normal(size=(60, 700)) + y[:, None]
    alone = linear(train, y, np.arange(60), train[:1], classes=2)
    crowd = linear(train, y, np.arange(60), np.concatenate([train[:1], 1e3 * generator.normal(size=(50, 700))]), classes=2)
    np.testing.assert_allclose(alone[0], crowd[0], atol=1e-9)


def test_a_plan_lists_all_its_problems_at_once():
    with pytest.raises(UserError) as error:
        ProbePlan(checkpoint="c", store="s", labels="l", target="t", folds=1, kind=())
    assert "folds: 1; allowed: 2 or more" in str(error.value)
    assert "kind: []" in str(error.value)


@pytest.mark.parametrize("labels_per_class", [None, 3])
def test_a_warm_start_is_one_more_baseline_with_all_and_with_few_labels(features, labels, labels_per_class):
    keys = {"labels_per_class": labels_per_class, "seeds": (0, 1), "bootstraps": 100}
    plain = run_probe(features, labels, UNITS, **keys)
    both = run_probe({**features, "warm_start": features["pretrained"]}, labels, UNITS, **keys)
    assert [item for item in both.scores if item.features != "warm_start"] == list(plain.scores)
    for kind in ("knn", "linear"):
        found = next(item.interval for item in both.differences if (item.baseline, item.probe) == ("warm_start", kind))
        # The same features on the same folds, labels and draws cannot differ.
        assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)
        assert both.score("warm_start", kind).metrics == both.score("pretrained", kind).metrics
