"""Scores against scikit-learn, statistics by hand, and intervals by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error, r2_score, roc_auc_score

from dinodomain.probes import percentile_interval, plain, unit_weights, wilson
from dinodomain.probes import scores as ours


@pytest.fixture
def case():
    generator = np.random.default_rng(3)
    y = generator.integers(0, 3, 200)
    shares = generator.random((200, 3)) + 0.5 * np.eye(3)[y]
    return y, shares / shares.sum(axis=1, keepdims=True), generator.integers(0, 4, (6, 200)).astype(float)


def test_weighted_auroc_with_ties_equals_scikit_learn():
    generator = np.random.default_rng(0)
    scores, truth, weights = generator.integers(0, 6, 150).astype(float), generator.integers(0, 2, 150), generator.random((4, 150))
    wanted = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours.auroc(scores, truth, weights), wanted, atol=1e-12)


def test_class_metrics_equal_scikit_learn_under_weights(case):
    y, shares, weights = case
    wanted = [balanced_accuracy_score(y, shares.argmax(1), sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours.balanced_accuracy(shares, y, weights), wanted)
    np.testing.assert_allclose(
        ours.accuracy(shares, y, weights), [accuracy_score(y, shares.argmax(1), sample_weight=row) for row in weights]
    )
    assert plain(ours.macro_auroc, shares, y) == pytest.approx(roc_auc_score(y, shares, multi_class="ovr", average="macro"))


def test_number_metrics_equal_scikit_learn_and_scipy(case):
    generator = np.random.default_rng(1)
    truth = generator.normal(size=200)
    found, weights = truth + generator.normal(size=200), case[2]
    np.testing.assert_allclose(ours.r_squared(found, truth, weights), [r2_score(truth, found, sample_weight=row) for row in weights])
    wanted = [mean_absolute_error(truth, found, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours.mean_absolute_error(found, truth, weights), wanted)
    assert plain(ours.spearman, found, truth) == pytest.approx(spearmanr(found, truth).statistic)


def test_a_draw_without_a_class_is_nan_and_passed_over():
    scores, truth = np.array([0.1, 0.9, 0.4]), np.array([0, 1, 0])
    draws = ours.auroc(scores, truth, np.array([[1.0, 0, 1], [1, 1, 1]]))
    assert np.isnan(draws[0])
    assert draws[1] == 1.0
    assert percentile_interval(1.0, draws).low == 1.0


def test_rows_of_one_unit_are_always_drawn_together():
    units = np.repeat(np.arange(10), 3)
    for weights in unit_weights(units, 50, seed=0):
        assert (weights.reshape(-1, 10, 3).std(axis=2) == 0).all()
        assert (weights[:, ::3].sum(axis=1) == 10).all()


@pytest.mark.parametrize(("hits", "trials"), [(0, 30), (3, 20), (19, 20), (50, 50)])
def test_wilson_equals_scipy(hits, trials):
    found, wanted = wilson(hits, trials), binomtest(hits, trials).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=1e-12), pytest.approx(wanted.high, abs=1e-12))


def test_wilson_of_nothing_says_nothing():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
