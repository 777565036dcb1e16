"""The order: permutations, schedule, epoch borders, constant cost."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinodomain.errors import UserError
from dinodomain.loader.order import Order, key_of, permute


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(-(2**62), 2**62), epoch=st.integers(0, 2**40))
def test_permute_is_a_permutation_for_any_size_and_key(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, key_of(seed, epoch))) == list(range(size))


def test_permute_gives_each_element_its_own_key():
    keys = key_of(5, np.arange(40) % 2)
    mixed = permute(np.arange(40), 40, keys)
    even, odd = (permute(np.arange(40), 40, key_of(5, epoch)) for epoch in (0, 1))
    np.testing.assert_array_equal(mixed, np.where(np.arange(40) % 2, odd, even))
    assert (even != odd).any()


def test_keys_spread_every_element_over_every_place():
    size, keys = 7, 4000
    index = np.tile(np.arange(size), keys)
    found = permute(index, size, key_of(np.repeat(np.arange(keys), size)))
    seen = np.zeros((size, size))
    np.add.at(seen, (index, found), 1)
    expected = keys / size
    # Chi-square with 36 degrees of freedom is below 67.9 with probability 0.999.
    assert ((seen - expected) ** 2 / expected).sum() < 67.9


def test_the_order_is_fixed_for_all_time():
    draw = Order(7, [10], [1.0], 4).at(3)
    assert (draw.tiles.tolist(), draw.epochs.tolist(), draw.positions.tolist()) == ([4, 3, 2, 5], [1, 1, 1, 1], [12, 13, 14, 15])


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (3, 8), (1, 5), (64, 64), (17, 5)])
def test_nothing_is_lost_or_doubled_across_epoch_borders(size, batch):
    order = Order(1, [size], [1.0], batch)
    draws = [order.at(step) for step in range(6 * size)]
    pairs = [pair for draw in draws for pair in zip(draw.epochs.tolist(), draw.tiles.tolist())]
    assert len(set(pairs)) == len(pairs)
    epochs, rest = divmod(len(pairs), size)
    counts = collections.Counter(epoch for epoch, _ in pairs)
    assert counts == dict.fromkeys(range(epochs), size) | ({epochs: rest} if rest else {})
    assert all(not draw.draws.any() for draw in draws)


def test_epochs_differ_and_seeds_differ():
    def epoch(seed, number):
        return Order(seed, [50], [1.0], 50).at(number).tiles.tolist()

    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) == epoch(0, 0)


def test_buckets_are_drawn_in_proportion_to_size_and_weight_and_evenly_spread():
    order = Order(3, [600, 300, 100], [1.0, 2.0, 1.0], 10)
    buckets = np.array([order.bucket_at(step) for step in range(4000)])
    shares = np.bincount(buckets, minlength=3) / len(buckets)
    np.testing.assert_allclose(shares, np.array([600, 600, 100]) / 1300, atol=2e-3)
    gaps = np.diff(np.flatnonzero(buckets == 2))
    assert gaps.min() >= 11  # 13 on average
    assert gaps.max() <= 15


def test_positions_of_a_bucket_are_consecutive_whatever_lies_between():
    order = Order(3, [60, 30, 7], [1.0, 1.0, 1.0], 8)
    last = [0, 0, 0]
    for step in range(300):
        draw = order.at(step)
        assert draw.positions.tolist() == list(range(last[draw.bucket], last[draw.bucket] + 8))
        last[draw.bucket] += 8
        np.testing.assert_array_equal(order.steps_before(step + 1) * 8, last)


def test_a_bucket_of_weight_0_is_left_out_and_a_tiny_one_is_not():
    order = Order(0, [10**9, 5, 5], [1.0, 0.0, 1.0], 4)
    drawn = {order.bucket_at(step) for step in range(5000)}
    assert drawn == {0, 2}
    with pytest.raises(UserError, match="leave no bucket to draw from"):
        Order(0, [5], [0.0], 4)


def test_counts_equal_what_was_drawn():
    order = Order(3, [13, 5], [1.0, 1.0], 4)
    for steps in (0, 1, 9, 40):
        plain = [np.zeros(13, int), np.zeros(5, int)]
        for step in range(steps):
            draw = order.at(step)
            np.add.at(plain[draw.bucket], draw.tiles, 1)
        for counted, expected in zip(order.counts(steps), plain):
            np.testing.assert_array_equal(counted, expected)


def test_a_distant_step_needs_no_replay():
    draw = Order(3, [1000, 10], [1.0, 1.0], 4).at(10**14)
    assert draw.epochs.min() > 10**10
