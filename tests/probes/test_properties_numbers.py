"""Pure functions behind the properties, against hand-made cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, cohen_kappa_score

from dinodomain.probes import attention_stats, matching, neighbours, propagate, regions
from dinodomain.probes.components import colours, components, explained_by, split_threshold


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_even_attention_is_spread_over_all_patches_and_cares_for_nothing(rng):
    even, valid = np.full((3, 20), 0.04), np.arange(20) < 10
    assert attention_stats.entropy(even, valid) == pytest.approx(1.0)
    assert attention_stats.area_of_mass(even, valid) == pytest.approx(0.6)
    assert attention_stats.lift(even, valid, rng.random(20)) == pytest.approx(1.0)
    assert attention_stats.head_difference(even, valid) == pytest.approx(0.0)
    assert attention_stats.share_on(even, valid) == pytest.approx(0.5)


def test_heads_that_look_at_one_patch_each_are_sharp_and_differ():
    sharp, valid = np.eye(4)[:2], np.ones(4, bool)
    assert attention_stats.entropy(sharp, valid) == pytest.approx(0.0)
    assert attention_stats.area_of_mass(sharp, valid) == pytest.approx(1 / 4)
    assert attention_stats.head_difference(sharp, valid) == pytest.approx(1.0)
    assert attention_stats.lift(sharp, valid, np.array([2.0, 2.0, 0.0, 0.0])) == pytest.approx(2.0)
    assert np.isnan(attention_stats.head_difference(sharp[:1], valid))


def test_entropy_is_the_textbooks():
    weights = np.array([[0.5, 0.25, 0.125, 0.125]])
    assert attention_stats.entropy(weights, np.ones(4, bool)) == pytest.approx(1.75 / 2)


@pytest.mark.parametrize("shape", [(200, 12), (9, 30)], ids=["more tokens than width", "wider than tokens"])
def test_components_are_scikit_learns(rng, shape):
    tokens = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])) + 3
    ours, theirs = components(tokens), PCA(3).fit(tokens)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(ours.scores(tokens)), np.abs(theirs.transform(tokens)), atol=1e-8)
    np.testing.assert_allclose(ours.axes @ ours.axes.T, np.eye(3), atol=1e-9)
    assert (ours.axes[np.arange(3), np.abs(ours.axes).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("width", [4, 9])
def test_components_of_equal_tokens_explain_nothing(width):
    found = components(np.ones((5, width)))
    assert found.explained.tolist() == [0, 0, 0]
    assert not found.scores(np.ones((5, width))).any()


def test_components_of_wide_tokens_never_hold_width_by_width_numbers():
    tokens = np.random.default_rng(0).normal(size=(6, 200_000))  # 320 GB as width by width
    assert components(tokens).explained.sum() < 1


def test_explained_by_is_the_r_squared_of_a_linear_fit(rng):
    given = rng.normal(size=(100, 2))
    scores = given @ rng.normal(size=(2, 1)) + rng.normal(size=(100, 1))
    want = LinearRegression().fit(given, scores).score(given, scores)
    assert explained_by(scores, given, np.ones(1)) == pytest.approx(want)
    assert explained_by(given, given, np.ones(2)) == pytest.approx(1.0)


def test_colours_span_their_range_within_the_chosen_tokens(rng):
    scores = rng.normal(size=(50, 3))
    found = colours(scores, np.arange(50) < 40)
    assert (found.min(), found.max()) == (0.0, 1.0)


def test_the_threshold_lies_between_two_groups(rng):
    values = np.concatenate([rng.normal(0, 0.1, 30), rng.normal(5, 0.1, 70)])
    assert 1 < split_threshold(values) < 4
    assert split_threshold(np.full(3, 2.0)) == 2.0


def blobs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(3), (10, 20, 30))
    return np.eye(8)[truth] * 5 + rng.normal(0, 0.1, (60, 8)), truth


def test_clusters_of_directions_are_found_and_numbered_by_size(rng):
    tokens, truth = blobs(rng)
    labels, centres = regions.cluster(tokens, 3, 0)
    assert adjusted_rand_score(truth, labels) == 1.0
    assert np.bincount(labels).tolist() == [30, 20, 10]
    assert (regions.assign(tokens * 7, centres) == labels).all()
    assert regions.silhouette(tokens, labels, 0) > 0.9
    assert np.isnan(regions.silhouette(tokens, np.zeros(60, int), 0))


def test_agreement_is_cohens_kappa(rng):
    first, second = rng.integers(0, 4, (2, 200))
    second[:100] = first[:100]
    assert regions.agreement(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert np.isnan(regions.agreement(np.zeros(5, int), np.zeros(5, int)))


def test_the_cut_finds_a_square_on_a_ground(rng):
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    tokens = np.where(mask[..., None], np.eye(6)[0], np.eye(6)[1]) + rng.normal(0, 0.05, (8, 8, 6))
    found = regions.normalised_cut(tokens.reshape(64, 6), np.ones(64, bool))
    assert max(regions.overlap(found, mask.ravel()), regions.overlap(~found, mask.ravel())) == 1.0
    assert regions.normalised_cut(tokens.reshape(64, 6), np.zeros(64, bool)).sum() == 0


def test_a_cut_of_many_patches_is_that_of_some_of_them(rng, monkeypatch):
    truth = np.arange(300) % 3 == 0
    tokens = np.where(truth[:, None], np.eye(6)[0], np.eye(6)[1]) + rng.normal(0, 0.05, (300, 6))
    monkeypatch.setattr(regions, "_NODES", 70)
    found = regions.normalised_cut(tokens, np.ones(300, bool))
    assert max(regions.overlap(found, truth), regions.overlap(~found, truth)) == 1.0


def test_overlap_and_the_best_region():
    mask = np.array([1, 1, 0, 0], bool)
    assert regions.overlap(mask, np.array([1, 0, 0, 0], bool)) == 0.5
    assert regions.best_overlap(np.array([2, 2, 1, 0]), mask, 3) == 1.0


def test_a_shifted_image_is_matched_and_its_places_are_known(rng):
    tokens = rng.normal(size=(6, 6, 16))
    first, second = tokens[:, :5].reshape(30, 16), tokens[:, 1:].reshape(30, 16)  # second is one patch to the right
    every = np.ones(30, bool)
    found = matching.match(first, second, every, every, np.zeros(16))
    rows, columns = np.unravel_index(np.arange(30), (6, 5))
    position = np.stack([rows, columns - 1], axis=-1).astype(float)
    seen = columns >= 1
    assert found.mutual[seen].all()
    assert (found.nearest[seen] == np.ravel_multi_index((rows[seen], columns[seen] - 1), (6, 5))).all()
    assert matching.close(found.nearest, position, (6, 5))[seen].all()
    far = matching.close(np.roll(found.nearest, 15), position, (6, 5))
    assert far[seen].mean() < 0.5


def test_patches_without_data_are_never_matched(rng):
    tokens = rng.normal(size=(10, 4))
    known = np.arange(10) != 3
    found = matching.match(tokens, tokens, known, known, np.zeros(4))
    assert 3 not in found.nearest
    assert not found.mutual[3]


def test_pointing_at_random_finds_nine_of_a_hundred_inside_a_grid():
    position, counted = np.array([[5.0, 5.0]]), np.ones(1, bool)
    assert matching.chance(position, counted, np.ones(100, bool), (10, 10)) == pytest.approx(0.09)


def test_neighbours_are_of_other_units_and_share_values():
    features = np.array([[1.0, 0], [1, 0.01], [0.9, 0.1], [-1, 0], [-1, 0.1]])
    units, values = np.array(list("aabcd")), np.array(list("xxxyy"))
    near = neighbours.nearest_of_others(features, units, 4)
    assert near[0].tolist()[:1] == [2]
    assert near[0, 3] == -1  # only three tiles are of other units
    assert neighbours.same_value(near[:, :1], values).tolist() == [1, 1, 1, 1, 1]
    assert neighbours.chance_same_value(values, units)[0] == pytest.approx(1 / 3)


def test_reciprocal_ranks_by_hand():
    queries = np.array([[1.0, 0], [0, 1], [-1, -1]])
    assert neighbours.reciprocal_rank(queries, queries).tolist() == [1, 1, 1]
    assert neighbours.reciprocal_rank(queries, np.roll(queries, 1, axis=0)).max() <= 0.5
    assert neighbours.reciprocal_rank(np.ones((4, 2)), np.ones((4, 2))).tolist() == [0.25] * 4  # ties count against


def moving_square(steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[S, 64, E] tokens of a square that moves a patch a step over a ground of distinct patches, and where it is."""
    masks = np.zeros((steps, 8, 8), bool)
    for step in range(steps):
        masks[step, 2:5, step : step + 3] = True
    ground, inside = rng.normal(size=(8, 8, 12)), np.zeros(16)
    inside[12:] = 5
    tokens = np.where(masks[..., None], inside, np.concatenate([ground, np.zeros((8, 8, 4))], axis=-1))
    return tokens.reshape(steps, 64, 16), masks.reshape(steps, 64)


def test_a_mask_follows_a_moving_square_and_comes_back(rng):
    tokens, masks = moving_square(5, rng)
    carried = propagate.carry(tokens, masks[0], (8, 8)) >= 0.5
    assert (carried == masks).all()
    assert regions.overlap(masks[0], masks[4]) == 0.0, "leaving it where it was would lose it"
    assert (propagate.there_and_back(tokens, masks[0], (8, 8)) == masks[0]).all()


def test_a_jump_beyond_the_neighbourhood_is_not_followed(rng):
    tokens, masks = moving_square(6, rng)
    jumped = propagate.carry(tokens[[0, 5]], masks[0], (8, 8), reach=0.1, neighbours=1) >= 0.5
    assert not (jumped[1] & masks[5]).any()


def test_walks_go_from_the_middle_to_both_ends():
    assert [list(walk) for walk in propagate.walks(2, 5)] == [[2, 3, 4], [2, 1, 0]]
    assert [list(walk) for walk in propagate.walks(0, 3)] == [[0, 1, 2]]
