"""Units of labels: what shares a label or a place never lies on both sides of a split."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from dinodomain.probes import ProbePlan, grouped_folds
from dinodomain.probes.frozen import label_units, linked_units
from dinodomain.probes.verb import _units
from dinodomain.types import Labels


def test_sources_that_share_a_unit_are_one_also_by_way_of_a_third():
    rows, units = np.array([0, 0, 1, 1, 2, 3, 4, 9]), np.array(["a", "b", "b", "c", "c", "d", "", "d"])
    assert linked_units(rows, units, np.arange(5)).tolist() == ["a", "a", "a", "d", "source 4"]
    assert linked_units(rows, units, np.array([0, 2])).tolist() == ["a", "c"], "what has no label links nothing"


def test_all_tiles_of_a_labelled_source_are_one_unit_although_each_has_a_place_of_its_own():
    rows, units = np.array([4, 2, 4, 7, 2, 9]), np.array(["a", "b", "c", "c", "d", ""])
    assert label_units(rows, units).tolist() == ["a", "b", "a", "a", "b", "source 9"]


def test_tiles_of_one_scene_never_lie_in_two_folds_of_a_probe():
    rows = np.repeat(np.arange(12), 6)
    cells = np.array([f"cell {number}" for number in range(72)])  # one for each tile, as large scenes have
    plan = ProbePlan(checkpoint="c", store="s", labels="l", target="t")
    labels = Labels(rows=np.arange(12), values=list("ab" * 6), columns={})
    units = _units(plan, labels, SimpleNamespace(rows=rows, units=cells))
    folds = grouped_folds(units, rows % 2, 3, seed=0)
    assert all(len(set(folds[rows == row])) == 1 for row in range(12))
    by_tile = grouped_folds(cells, rows % 2, 3, seed=0)
    assert any(len(set(by_tile[rows == row])) > 1 for row in range(12)), "cells alone would have leaked the label"
