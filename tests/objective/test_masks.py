"""Block masks: exact counts, keys, shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinodomain.objective.masks import block_masks, draw_masks, key, mask_counts, uniform

SHARES = {"probability": 0.5, "ratio": (0.1, 0.5)}


def draw(slots, *, num_views=2, grid=(8, 8), seed=3, step=5, valid=None, **changes):
    rows = num_views * len(slots)
    valid = torch.ones(rows, math.prod(grid)) if valid is None else valid
    return draw_masks(torch.tensor(slots), num_views, grid, seed=seed, step=step, valid=valid, **{**SHARES, **changes})


@pytest.mark.parametrize("grid", [(14, 14), (7, 9), (6, 6, 6), (3, 4, 5)])
def test_every_crop_hides_exactly_its_count(grid):
    crops = np.arange(200)
    counts = mask_counts(crops, math.prod(grid), seed=1, step=2, **SHARES)
    rows = np.flatnonzero(counts)
    masks = block_masks(crops[rows], counts[rows], grid, seed=1, step=2)
    np.testing.assert_array_equal(masks.sum(1), counts[rows])
    assert 95 <= len(rows) <= 105
    shares = counts[rows] / math.prod(grid)
    assert shares.min() < 0.15
    assert shares.max() > 0.45
    assert shares.mean() == pytest.approx(0.3, abs=0.03)


def test_masks_depend_on_seed_step_slot_and_view_only():
    whole = draw(list(range(8)))
    masks = whole.mask.view(2, 8, 64)
    for slots in ([0, 2, 4, 6], [1, 3, 5, 7], [5], [7, 0, 3]):
        part = draw(slots).mask.view(2, len(slots), 64)
        assert torch.equal(part, masks[:, slots])
    assert not torch.equal(draw(list(range(8)), step=6).mask, whole.mask)
    assert not torch.equal(draw(list(range(8)), seed=4).mask, whole.mask)


def test_global_random_state_plays_no_part():
    first = draw(list(range(8)))
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(draw(list(range(8))).mask, first.mask)


def test_batches_hide_nearly_the_same_number_of_patches():
    totals = [int(draw(list(range(64)), grid=(14, 14), step=step).mask.sum()) for step in range(20)]
    assert max(totals) / min(totals) < 1.15


def test_index_names_the_masked_patches_and_weights_average_within_crops():
    masks = draw(list(range(16)))
    assert torch.equal(masks.mask.flatten().nonzero()[:, 0], masks.index)
    assert torch.equal(masks.crop, masks.index // 64)
    sums = torch.zeros(32).index_add_(0, masks.crop, masks.weight)
    torch.testing.assert_close(sums, masks.mask.any(1).float())


def test_invalid_patches_stay_hidden_but_leave_the_loss():
    valid = torch.ones(32, 64)
    valid[:, :20] = 0.2
    masks, plain = draw(list(range(16)), valid=valid), draw(list(range(16)))
    assert torch.equal(masks.mask, plain.mask)
    invalid = masks.index % 64 < 20
    assert masks.weight[invalid].abs().sum() == 0
    sums = torch.zeros(32).index_add_(0, masks.crop, masks.weight)
    left = torch.zeros(32).index_add_(0, masks.crop, (~invalid).float())
    torch.testing.assert_close(sums, (left > 0).float())


def test_masks_are_blocks_and_not_salt():
    crops = np.arange(100)
    counts = np.full(100, 59)
    blocks = block_masks(crops, counts, (14, 14), seed=0, step=0).reshape(-1, 14, 14)
    inside = blocks[:, 1:] & blocks[:, :-1]
    # Of 59 random patches in 196, 30 % have their upper neighbour hidden; in blocks most have.
    assert inside.sum() / blocks[:, 1:].sum() > 0.7


def test_masks_reach_every_part_of_the_grid():
    hit = block_masks(np.arange(500), np.full(500, 20), (8, 8), seed=0, step=0).mean(0)
    assert hit.min() > 0.05
    assert hit.max() < 0.7


def test_a_single_patch_can_be_hidden():
    masks = draw(list(range(32)), grid=(2, 2), ratio=(0.1, 0.1))
    assert set(masks.mask.sum(1).tolist()) == {0, 1}


def test_the_counter_hash_is_splitmix64():
    # First outputs of the reference implementation for seed 0 (Vigna, prng.di.unimi.it/splitmix64.c).
    numbers = uniform(np.zeros(1, np.uint64), np.arange(3, dtype=np.uint64))
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    np.testing.assert_array_equal(numbers, [(value >> 11) * 2.0**-53 for value in expected])


def test_uniform_numbers_fill_the_interval():
    numbers = uniform(key(-1, 7), np.arange(20000, dtype=np.uint64))
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(numbers, 10, (0, 1))[0].min() > 1800
