"""Folds keep units whole and classes even."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from dinodomain.errors import UserError
from dinodomain.probes import draw_labelled, grouped_folds, index_units


def test_no_unit_lies_in_two_folds_and_every_row_lies_in_one():
    units = np.repeat([f"p{i}" for i in range(37)], 3)
    folds = grouped_folds(units, np.arange(111) % 2, 5, seed=1)
    assert all(len(set(folds[units == unit])) == 1 for unit in set(units))
    assert set(folds) == {0, 1, 2, 3, 4}


def test_classes_are_spread_evenly_over_folds():
    y = (np.arange(200) % 10 == 0).astype(int)
    folds = grouped_folds(np.arange(200), y, 5, seed=0)
    assert [int(y[folds == fold].sum()) for fold in range(5)] == [4] * 5


def test_numbers_are_spread_by_quantile():
    y = np.random.default_rng(0).normal(size=500)
    folds = grouped_folds(np.arange(500), y, 5, seed=0)
    assert np.ptp([y[folds == fold].mean() for fold in range(5)]) < 0.15


def test_the_seed_decides_and_equal_seeds_agree():
    units, y = np.arange(60), np.arange(60) % 2
    assert np.array_equal(grouped_folds(units, y, 3, 7), grouped_folds(units, y, 3, 7))
    assert not np.array_equal(grouped_folds(units, y, 3, 7), grouped_folds(units, y, 3, 8))


def test_too_few_units_is_an_error_that_says_how_many():
    with pytest.raises(UserError, match="5 folds of 3 units; allowed: 2 to 3"):
        grouped_folds(np.repeat([0, 1, 2], 4), np.zeros(12, int), 5, seed=0)


def test_few_labels_come_from_different_units_while_units_last():
    units, y = np.repeat(np.arange(20), 5), np.tile(np.arange(5) % 2, 20)
    rows = draw_labelled(y, units, 10, names=("a", "b"), seed=(0,))
    assert [int((y[rows] == value).sum()) for value in (0, 1)] == [10, 10]
    assert all(len(set(units[rows][y[rows] == value])) == 10 for value in (0, 1))


def test_few_labels_use_a_second_row_of_a_unit_once_units_are_used_up():
    units, y = np.repeat(np.arange(4), 5), np.zeros(20, int)
    rows = draw_labelled(y, units, 8, names=("a",), seed=(0,))
    assert np.bincount(index_units(units[rows])).tolist() == [5, 1, 1, 1] or np.bincount(units[rows]).sum() == 8
    assert len(set(units[rows])) == 4


def test_more_labels_than_rows_names_the_class():
    with pytest.raises(UserError, match="class 'b' has 2 rows"):
        draw_labelled(np.array([0, 0, 0, 1, 1]), np.arange(5), 3, names=("a", "b"), seed=(0,))


@pytest.mark.parametrize("seed", range(60))
def test_folds_are_those_of_scikit_learn_to_the_unit(seed):
    generator = np.random.default_rng(seed)
    num_units, classes, num_folds = int(generator.integers(10, 300)), int(generator.integers(1, 11)), int(generator.integers(2, 8))
    units = index_units(generator.integers(0, num_units, num_units * int(generator.integers(1, 5))))
    shares = generator.dirichlet(np.full(classes, generator.choice([0.3, 1.0, 5.0])))
    drawn = generator.choice(classes, units.max() + 1, p=shares)[units] if seed % 2 else generator.choice(classes, len(units), p=shares)
    y = np.unique(drawn, return_inverse=True)[1]
    if np.bincount(y).max() < num_folds:
        y = np.zeros_like(y)  # what is done there, too: no class fills the folds
    folds, theirs = min(num_folds, units.max() + 1), np.empty(len(y), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class in y", UserWarning)
        for fold, (_, held_out) in enumerate(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, units)):
            theirs[held_out] = fold
    assert np.array_equal(grouped_folds(units, y, folds, seed), theirs)
