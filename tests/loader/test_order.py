"""The order: permutations, schedule, epoch borders, several draws of a read, mixed stores, constant cost."""

from __future__ import annotations

import collections
import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinodomain.errors import UserError
from dinodomain.loader.cycle import Cycle, closely, nearly
from dinodomain.loader.order import Order
from dinodomain.loader.permute import key_of, permute


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


def digest_of(order, steps):
    """sha256 over everything that the steps draw."""
    found = hashlib.sha256()
    for step in steps:
        draw = order.at(step)
        for values in ([draw.bucket], draw.positions, draw.tiles, draw.epochs, draw.draws):
            found.update(np.asarray(values, dtype="<i8").tobytes())
    return found.hexdigest()


def test_the_order_of_one_store_and_one_draw_never_changes_because_runs_of_earlier_versions_resume_in_it():
    several = Order(7, [13, 5, 40], [1.0, 2.0, 0.5], 8)
    assert [several.bucket_at(step) for step in range(12)] == [1, 2, 0, 2, 1, 2, 0, 2, 0, 1, 2, 2]
    far = several.at(10**12)
    assert (far.bucket, far.positions[0], far.tiles.tolist()) == (1, 1861328125000, [2, 3, 0, 4, 1, 0, 3, 4])
    # Numbers of the first version, of the steps 0 to 199, 10^6 and 10^12.
    assert digest_of(several, [*range(200), 10**6, 10**12]) == "a0e886627dba72cb81dcc13ce4e28c1d426c005d5a5845a0805e52f65c758980"
    one = Order(0, [1000], [1.0], 64)
    assert one.at(15).tiles[:8].tolist() == [175, 18, 428, 693, 123, 104, 85, 438]
    assert digest_of(one, [*range(50), 10**12]) == "d94388eae60de6678e281f679d079dd5deb9fbcb85f7e5763a8f33527882132c"


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


# Several draws of one read.


def replay(draws, spread, group, steps):
    """The arithmetic written out: per step of one bucket, (group, repeat, last) for each of its parts."""
    found = [[] for _ in range(steps)]
    for number in range(steps + draws * spread):
        own = [step for step in (number - j * spread for j in reversed(range(draws))) if step >= 0]
        for repeat, step in enumerate(own):
            if step < steps:
                found[step].append((number, repeat, step == own[-1]))
    return found


@pytest.mark.parametrize(("draws", "spread", "batch"), [(2, 1, 4), (2, 4, 4), (3, 2, 6), (4, 3, 4), (1, 5, 3)])
def test_draws_of_a_read_are_spread_apart_numbered_from_0_and_end_where_no_later_step_draws_it(draws, spread, batch):
    order, group, steps = Order(3, [11], [1.0], batch, draws=draws, spread=spread), batch // draws, 40
    for step, expected in enumerate(replay(draws, spread, group, steps)):
        draw = order.at(step)
        assert sorted(draw.groups.tolist()) == sorted(number for number, _, _ in expected)
        for part, number in enumerate(draw.groups.tolist()):
            mine = slice(part * group, (part + 1) * group)
            assert draw.positions[mine].tolist() == list(range(number * group, (number + 1) * group))
            repeat, last = next((repeat, last) for found, repeat, last in expected if found == number)
            assert draw.draws[mine].tolist() == [repeat] * group
            assert last == (part == 0)


@pytest.mark.parametrize("draws", [2, 3])
def test_every_tile_of_an_epoch_is_drawn_as_often_as_asked_with_its_own_number(draws):
    order = Order(1, [10], [1.0], 6, draws=draws, spread=2)
    seen = collections.Counter()
    for step in range(80):
        draw = order.at(step)
        seen.update(zip(draw.epochs.tolist(), draw.tiles.tolist(), draw.draws.tolist()))
    assert set(seen.values()) == {1}
    whole = collections.Counter((epoch, tile) for epoch, tile, _ in seen if 3 <= epoch < 80 * 6 // draws // 10 - 1)
    assert set(whole.values()) == {draws}


@pytest.mark.parametrize(
    ("sizes", "shares"), [([[13], [5]], (1.0,)), ([[7, 3], [0, 9], [4, 0]], (0.7, 0.3)), ([[5, 2, 9]], (1.0, 2.0, 1.0))]
)
@pytest.mark.parametrize(("draws", "spread"), [(1, 4), (2, 1), (3, 4)])
def test_counts_are_those_of_a_replay_with_draws_and_stores(sizes, shares, draws, spread):
    order = Order(3, sizes, [1.0] * len(sizes), 6, draws=draws, spread=spread, shares=shares)
    plain = [np.zeros(sum(row), int) for row in sizes]
    for step in range(45):
        if step in (0, 1, 2, 9, 44):
            for counted, expected in zip(order.counts(step), plain):
                np.testing.assert_array_equal(counted, expected)
        draw = order.at(step)
        np.add.at(plain[draw.bucket], draw.tiles, 1)


def test_any_step_costs_the_same():
    order = Order(3, [[1000, 300], [10, 50]], [1.0, 1.0], 64, draws=4, spread=3, shares=(0.9, 0.1))

    def seconds(step):
        began = time.perf_counter()
        for _ in range(4):
            order.at(step)
            order.counts(step)
        return time.perf_counter() - began

    order.at(0)
    assert min(seconds(10**12) for _ in range(3)) < 5 * max(seconds(40) for _ in range(3))


# Mixed stores.


def owners(order, sizes, steps):
    """Store of every sample of the first steps."""
    bounds = [np.cumsum(row) for row in sizes]
    return np.concatenate([np.searchsorted(bounds[draw.bucket], draw.tiles, side="right") for draw in map(order.at, range(steps))])


@pytest.mark.parametrize("draws", [1, 2])
def test_each_store_has_its_share_of_every_stretch_of_samples(draws):
    sizes = [[50, 7]]
    order = Order(5, sizes, [1.0], 8, draws=draws, shares=(0.7, 0.3))
    found = owners(order, sizes, 500)
    assert np.mean(found == 0) == pytest.approx(0.7, abs=1e-3)
    per_window = (found == 0).reshape(-1, 16).sum(axis=1)
    assert draws > 1 or set(per_window.tolist()) <= {11, 12}  # 11.2 of 16


def test_every_rank_draws_from_every_store_in_every_batch():
    order = Order(5, [[50, 50]], [1.0], 32, shares=(0.5, 0.5))
    for draw in map(order.at, range(50)):
        for rank in (0, 1):
            assert 3 <= (draw.tiles[draw.positions % 2 == rank] < 50).sum() <= 13


def test_shares_hold_over_all_buckets_and_tiles_of_a_store_are_drawn_alike():
    sizes = [[60, 0], [20, 40], [0, 5]]
    order = Order(5, sizes, [1.0, 1.0, 1.0], 4, shares=(1.0, 3.0))
    steps = 20_000
    counts = order.counts(steps)
    first = np.concatenate([count[: row[0]] for count, row in zip(counts, sizes)])
    second = np.concatenate([count[row[0] :] for count, row in zip(counts, sizes)])
    assert first.sum() / (4 * steps) == pytest.approx(0.25, abs=1e-3)
    assert first.min() > 0.97 * first.max()
    assert second.min() > 0.97 * second.max()


def test_epochs_are_counted_per_store_and_nothing_of_a_store_is_lost_or_doubled():
    order = Order(2, [[4, 40]], [1.0], 10, shares=(0.5, 0.5))
    pairs = [pair for draw in map(order.at, range(64)) for pair in zip(draw.tiles.tolist(), draw.epochs.tolist())]
    assert len(set(pairs)) == len(pairs)
    small = collections.Counter(epoch for tile, epoch in pairs if tile < 4)
    large = collections.Counter(epoch for tile, epoch in pairs if tile >= 4)
    assert small == dict.fromkeys(range(80), 4)
    assert large == dict.fromkeys(range(8), 40)


def test_a_store_that_has_nothing_to_draw_is_refused_by_its_number():
    with pytest.raises(UserError, match=r"stores\[1\]: has no tile to draw.*take it out of the mix"):
        Order(0, [[5, 0], [3, 4]], [1.0, 0.0], 4, shares=(0.5, 0.5))


@pytest.mark.parametrize(
    ("shares", "counts"), [((0.7, 0.3), [7, 3]), ((1, 1), [1, 1]), ((1, 0, 2), [1, 0, 2]), ((5.0,), [1]), ((1 / 3, 2 / 3), [1, 2])]
)
def test_a_cycle_is_as_short_as_its_shares_allow(shares, counts):
    assert closely(shares).tolist() == counts


def test_a_share_too_small_for_a_cycle_still_comes_once():
    assert closely((1.0, 1e-9)).tolist() == nearly((1.0, 1e-9)).tolist() == [4095, 1]


def test_a_cycle_counts_what_came_before_from_any_shift():
    cycle = Cycle(np.array([3, 0, 4, 1]), shift=5)
    dealt = cycle.at(np.arange(40))
    for place in range(40):
        np.testing.assert_array_equal(cycle.before(place), np.bincount(dealt[:place], minlength=4))
    expected = [np.sum(dealt[:place] == dealt[place]) for place in range(40)]
    np.testing.assert_array_equal(cycle.earlier(np.arange(40), dealt), expected)
