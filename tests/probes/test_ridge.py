"""The fast ridge against scikit-learn and against refitting without each unit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from dinodomain.probes import ridge
from dinodomain.probes.ridge import FoldedRidge


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    units = np.repeat(np.arange(40), np.tile([1, 2, 3, 2], 10))
    return generator.normal(size=(len(units), 12)), generator.normal(size=(len(units), 3)), units, units % 4


def test_scores_equal_scikit_learn_at_a_single_penalty(case):
    x, targets, units, folds = case
    found = FoldedRidge(x, units, folds, (0.5,)).scores(targets)
    for fold in range(4):
        train = folds != fold
        scale = StandardScaler().fit(x[train])
        model = Ridge(alpha=0.5 * train.sum()).fit(scale.transform(x[train]), targets[train])
        np.testing.assert_allclose(found[~train], model.predict(scale.transform(x[~train])), atol=1e-9)


@pytest.mark.parametrize("width", [5, 200])
def test_the_penalty_is_the_one_that_predicts_left_out_units_best(width):
    generator = np.random.default_rng(width)
    units = np.repeat(np.arange(25), 2)
    x = generator.normal(size=(50, width))
    y = x[:, 0] + generator.normal(size=50)
    standard = (x - x.mean(0)) / x.std(0)
    errors = []
    for penalty in ridge.PENALTIES:
        total = 0.0
        for unit in range(25):
            out = units == unit
            # The closed form keeps centring and scale of all training rows but refits the intercept.
            model = Ridge(alpha=penalty * 50).fit(standard[~out], y[~out])
            total += np.square(model.predict(standard[out]) - y[out]).sum()
        errors.append(total)
    stacked, folds = np.concatenate([x, x[:3]]), np.r_[np.full(50, -1), 0, 0, 0]
    found = FoldedRidge(stacked, np.r_[units, [90, 91, 92]], folds).scores(np.r_[y, 0, 0, 0][:, None])[50:, 0]
    best = Ridge(alpha=ridge.PENALTIES[int(np.argmin(errors))] * 50).fit(standard, y)
    np.testing.assert_allclose(found, best.predict(standard[:3]), atol=1e-8)


def test_many_targets_at_once_equal_one_at_a_time(case):
    x, targets, units, folds = case
    fitted = FoldedRidge(x, units, folds)
    together = fitted.scores(np.tile(targets, (1, 100)))
    np.testing.assert_allclose(together[:, 297:], np.concatenate([fitted.scores(targets[:, [i]]) for i in range(3)], axis=1), atol=1e-9)


def test_constant_and_repeated_columns_do_no_harm(case):
    x, targets, units, folds = case
    wide = np.concatenate([x, np.ones((len(x), 1)), x[:, :2]], axis=1)
    assert np.isfinite(FoldedRidge(wide, units, folds).scores(targets)).all()


def test_rows_of_fold_minus_one_are_never_scored(case):
    x, targets, units, _ = case
    found = FoldedRidge(x, units, np.where(units < 30, -1, 0)).scores(targets)
    assert np.isnan(found[units < 30]).all()
    assert np.isfinite(found[units >= 30]).all()
