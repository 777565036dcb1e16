"""Where reads begin: on the tile, moved, at other dates; against a plain twin that knows one draw at a time and no arrays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.loader import LoaderPlan, find_tiles
from dinodomain.loader.boxes import Boxes
from dinodomain.store import StorePlan, array_record, build_store

_MASK = 2**64 - 1
CHUNK = 8


def mixed(value):
    """SplitMix64 finaliser on Python integers."""
    x = (value + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def keyed(*parts):
    key = 0
    for part in parts:
        key = mixed(key ^ mixed(part & _MASK))
    return key


class PlainBoxes:
    """The twin: every rule of ``Boxes`` and ``Dates`` spelled out for one draw."""

    def __init__(self, store, tiles, plan, seed):
        self.store, self.tiles, self.plan, self.seed = store, tiles, plan, seed
        self.facts = [store.row(row) for row in range(len(store))]
        rows = store.chunks["row"].to_numpy()
        self.fraction = [store.chunks["valid_fraction"].to_numpy()[rows == row] for row in range(len(store))]
        self.held = [store.chunks["holdout"].to_numpy()[rows == row] | self.facts[row]["holdout"] for row in range(len(store))]

    def of(self, tile, epoch):
        row, start = int(self.tiles.rows[tile]), self.tiles.starts[tile].tolist()
        extent = self.tiles.buckets[self.tiles.bucket[tile]].extent
        key = keyed(self.seed, epoch, int(self.tiles.tile_ids[tile]))
        for attempt in range(0 if self.plan.aligned else 8):
            moved = self.moved(key, row, start, extent, attempt)
            if self.allowed(row, moved, extent) and (found := self.dated(key, row, moved, extent)):
                return found
        return self.dated(key, row, start, extent)

    def moved(self, key, row, start, extent, attempt):
        found, ndim = [], len(start)
        for axis, (begin, side, size) in enumerate(zip(start, extent, self.facts[row]["shape"][1:])):
            half = side // 2
            drawn = mixed(mixed(key ^ 0x6F6666) ^ mixed(attempt * ndim + axis)) >> 32
            offset = ((drawn * (2 * half + 1)) >> 32) - half
            found.append(min(max(begin + offset, 0), size - side) if size > side else begin)
        return found

    def allowed(self, row, start, extent):
        size, side = self.facts[row]["shape"][1:], self.facts[row]["chunk"]
        valid = 0.0
        for number, cell in enumerate(itertools.product(*(range(-(-a // b)) for a, b in zip(size, side)))):
            real = [(i * n, min((i + 1) * n, most)) for i, n, most in zip(cell, side, size)]
            inside = np.prod([max(0, min(b, s + n) - max(a, s)) / (b - a) for (a, b), s, n in zip(real, start, extent)])
            if inside > 0 and self.held[row][number]:
                return False
            valid += self.fraction[row][number] * np.prod(np.minimum(size, side), dtype=float) * inside
        return np.float32(valid / np.prod(np.minimum(size, extent), dtype=float)) >= self.plan.min_valid - 1e-6

    def dated(self, key, row, start, extent):
        """[(row, start)] of the sample, or None."""
        if self.plan.pairs == "none":
            return [(row, start)]
        if not self.facts[row]["acquired"]:
            return None
        options = {other: moved for other in range(len(self.facts)) if (moved := self.partner(row, start, extent, other))}
        days = {other: np.datetime64(self.facts[other]["acquired"][:10]).astype(int) for other in (*options, row)}
        chosen = [row]
        for other in sorted(options, key=lambda other: mixed(mixed(key ^ 0x646174) ^ mixed(other))):
            if len(chosen) < self.plan.dates and all(abs(days[other] - days[taken]) >= self.plan.min_days for taken in chosen):
                chosen.append(other)
        if len(chosen) < self.plan.dates:
            chosen = self.packed(row, days, options)
        return [(row, start), *((other, options[other]) for other in chosen[1:])] if len(chosen) == self.plan.dates else None

    def packed(self, row, days, options):
        chosen, gap = [row], self.plan.min_days
        forward = sorted((other for other in options if days[other] >= days[row] + gap), key=lambda other: (days[other], other))
        back = sorted((other for other in options if days[other] <= days[row] - max(gap, 1)), key=lambda other: (-days[other], -other))
        for side in (forward, back):
            last = None
            for other in side:
                if len(chosen) < self.plan.dates and (last is None or abs(days[other] - days[last]) >= gap):
                    chosen.append(other)
                    last = other
        return chosen

    def partner(self, row, start, extent, other):
        """Start of the same ground in another source, or None."""
        one, two = self.facts[row], self.facts[other]
        equal = all(one[name] == two[name] for name in ("crs", "dtype", "channels"))
        if other == row or not equal or not two["acquired"] or not two["affine"] or not two["crs"]:
            return None
        shift = [(one["affine"][5] - two["affine"][5]) / two["affine"][4], (one["affine"][2] - two["affine"][2]) / two["affine"][0]]
        if max(abs(value - round(value)) for value in shift) > 1e-3:
            return None
        moved = [begin + round(value) for begin, value in zip(start, shift)]
        for axis in range(2):
            low, high = max(start[axis], 0), min(start[axis] + extent[axis], one["shape"][1 + axis])
            if low + round(shift[axis]) < 0 or high + round(shift[axis]) > two["shape"][1 + axis]:
                return None
        return moved if self.allowed(other, moved, extent) else None


def scattered(made_up_store, rng, *, layouts="window"):
    """Scenes of two map zones over one small stretch of ground, most on one pixel grid; some empty, some held out, some without a date."""
    num = 24
    shapes = [(int(rng.choice([1, 1, 1, 2])), *rng.integers(10, 40, 2).tolist()) for _ in range(num)]
    shapes[1::3] = shapes[::3]
    corner = rng.integers(0, 12, (num, 2)) * rng.choice([0, 1, 3], (num, 1))
    corner[1::3] = corner[::3]
    off = rng.choice([0, 0, 0, 0, 0.3, 1e-5], num)
    make = {
        "chunks": rng.choice([4, CHUNK], num, p=[0.3, 0.7]).tolist(),
        "layouts": layouts,
        "crs": rng.choice(["zone 31", "zone 31", "zone 32"], num).tolist(),
        "affine": [[10.0, 0, 5e5 + 10 * (x + d), 0, -10.0, 4e6 - 10 * y, 0, 0, 1] for (y, x), d in zip(corner.tolist(), off.tolist())],
        "acquired": [None if day == 3 else str(np.datetime64("2020-01-01") + day) for day in rng.integers(0, 30, num).tolist()],
    }
    total = len(made_up_store(shapes, **make).chunks)
    return made_up_store(shapes, **make, fraction=np.where(rng.random(total) < 0.7, 1, rng.random(total)), holdout=rng.random(total) < 0.05)


PLANS = [
    {"aligned": False},
    {"pairs": "dates", "dates": 2},
    {"pairs": "dates", "dates": 3, "min_days": 4},
    {"pairs": "dates", "dates": 4, "min_days": 0, "aligned": False},
    {"pairs": "dates", "dates": 3, "min_days": 6, "aligned": False},
]


@pytest.mark.parametrize("keys", PLANS)
def test_boxes_are_those_of_the_plain_twin(made_up_store, monkeypatch, keys):
    monkeypatch.setattr("dinodomain.loader.dates._FIRST_LOOK", 3)
    for seed in range(2):
        store, plan = scattered(made_up_store, np.random.default_rng(seed)), LoaderPlan(tile=CHUNK, min_valid=0.4, **keys)
        tiles = find_tiles(store, plan)
        picked = np.random.default_rng(seed).integers(0, len(tiles), 40)
        epochs = np.arange(40) % 5
        rows, starts = Boxes(store, tiles, plan, seed).of(picked, epochs)
        twin = PlainBoxes(store, tiles, plan, seed)
        for i in range(40):
            assert list(zip(rows[i].tolist(), starts[i].tolist())) == twin.of(int(picked[i]), int(epochs[i]))


@pytest.mark.parametrize("keys", PLANS[1:])
def test_exactly_the_tiles_with_enough_dates_are_listed(made_up_store, keys):
    for seed in range(2):
        store, plan = scattered(made_up_store, np.random.default_rng(seed)), LoaderPlan(tile=CHUNK, min_valid=0.4, **keys)
        every = find_tiles(store, replace(plan, pairs="none", aligned=True))
        twin = PlainBoxes(store, every, replace(plan, aligned=True), 0)
        expected = [twin.of(tile, 0) is not None for tile in range(len(every))]
        tiles = find_tiles(store, plan)
        assert tiles.tile_ids.tolist() == every.tile_ids[expected].tolist()
        assert 0 < sum(expected) < len(every)


@pytest.mark.parametrize("keys", [{}, *PLANS])
def test_a_draw_is_the_same_whatever_batch_asks_for_it(made_up_store, keys):
    store, plan = scattered(made_up_store, np.random.default_rng(7)), LoaderPlan(tile=CHUNK, **keys)
    tiles = find_tiles(store, plan)
    picked, epochs = np.random.default_rng(0).integers(0, len(tiles), 30), np.arange(30)
    rows, starts = Boxes(store, tiles, plan, 5).of(picked, epochs)
    order = np.random.default_rng(1).permutation(30)
    other_rows, other_starts = Boxes(store, tiles, plan, 5).of(picked[order], epochs[order])
    np.testing.assert_array_equal(other_rows, rows[order])
    np.testing.assert_array_equal(other_starts, starts[order])
    alone = [Boxes(store, tiles, plan, 5).of(picked[i : i + 1], epochs[i : i + 1]) for i in range(0, 30, 7)]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in alone]), starts[::7])
    assert rows.dtype == starts.dtype == np.int64
    assert rows.shape == (30, plan.dates if plan.pairs == "dates" else 1)
    assert starts.shape == (*rows.shape, 2)
    if keys:
        assert (Boxes(store, tiles, plan, 6).of(picked, epochs)[1] != starts).any() or plan.aligned


def test_by_default_a_box_is_its_tile(made_up_store):
    store = made_up_store([(1, 40, 40)], chunks=[CHUNK])
    tiles = find_tiles(store, LoaderPlan())
    rows, starts = Boxes(store, tiles, LoaderPlan(), 0).of(np.array([3, 0]), np.zeros(2, int))
    assert rows.tolist() == [[0], [0]]
    assert starts.tolist() == [[tiles.starts[3].tolist()], [[0, 0]]]


@pytest.mark.parametrize("keys", [{}, *PLANS])
def test_no_mode_ever_touches_a_held_out_cell_or_its_buffer(made_up_store, keys):
    """Ground cells of 20 pixels; one is held out, with two pixels around it. A chunk that touches them is flagged; no drawn box does."""
    low, high = 58, 82
    corners = [(0, 0), (0, 0), (16, 8), (40, 40), (40, 40), (3, 50)]
    shapes = [(1, 100, 100), (1, 100, 100), (1, 90, 70), (1, 60, 60), (1, 60, 60), (1, 100, 40)]
    flags = []
    for (top, left), (_, height, width) in zip(corners, shapes):
        for y, x in itertools.product(range(0, height, CHUNK), range(0, width, CHUNK)):
            inside = (top + y < high and top + min(y + CHUNK, height) > low) and (left + x < high and left + min(x + CHUNK, width) > low)
            flags.append(inside)
    affine = [[10.0, 0, 10.0 * left, 0, -10.0, -10.0 * top] for top, left in corners]
    days = [f"2020-01-{1 + 9 * (i % 3):02d}" for i in range(6)]
    columns = {"crs": ["one"] * 6, "affine": affine, "acquired": days}
    store = made_up_store(shapes, chunks=[CHUNK] * 6, holdout=np.array(flags), **columns)
    plan = LoaderPlan(tile=2 * CHUNK, **{**keys, "dates": min(keys.get("dates", 2), 3)})
    tiles = find_tiles(store, plan)
    boxes, ground = Boxes(store, tiles, plan, 1), np.array(corners)
    for epoch in range(40):
        rows, starts = boxes.of(np.arange(len(tiles)), np.full(len(tiles), epoch))
        first, size = ground[rows] + starts, np.array(shapes)[rows][..., 1:]
        real_low, real_high = ground[rows] + np.maximum(starts, 0), ground[rows] + np.minimum(starts + 2 * CHUNK, size)
        assert not ((real_low < high) & (real_high > low)).all(axis=-1).any()
        assert (first == first[:, :1]).all()


def test_moved_boxes_reach_every_pixel_and_lean_to_no_side(made_up_store):
    """16-pixel tiles of a scene of 5 x 5: the middle one has room on all sides."""
    store, plan = made_up_store([(1, 80, 80)], chunks=[16]), LoaderPlan(aligned=False)
    tiles = find_tiles(store, plan)
    middle, num = tiles.starts.tolist().index([32, 32]), 4000
    _, starts = Boxes(store, tiles, plan, 11).of(np.full(num, middle), np.arange(num))
    offsets = starts[:, 0] - 32
    assert offsets.min() == -8
    assert offsets.max() == 8
    assert np.abs(offsets.mean(axis=0)).max() < 4 * np.sqrt(24 / num)  # variance of 17 values: (17^2 - 1) / 12
    for axis in range(2):
        counts = np.bincount(offsets[:, axis] + 8, minlength=17)
        assert ((counts - num / 17) ** 2 / (num / 17)).sum() < 39.3  # chi-square, 16 degrees of freedom, one in a thousand
    joint = np.bincount((offsets[:, 0] + 8) * 17 + offsets[:, 1] + 8, minlength=289)
    assert ((joint - num / 289) ** 2 / (num / 289)).sum() < 368  # 288 degrees: the axes are independent
    _, starts = Boxes(store, tiles, plan, 11).of(np.tile(np.arange(25), 200), np.repeat(np.arange(200), 25))
    seen = np.zeros((80, 80), int)
    for y, x in starts[:, 0].tolist():
        seen[y : y + 16, x : x + 16] += 1
    assert seen.min() > 0
    inner = seen[16:64, 16:64]
    assert inner.min() > 0.75 * inner.mean()
    assert starts.min() == 0
    assert starts.max() == 64


def test_what_is_not_larger_than_the_tile_does_not_move(made_up_store):
    shapes = [(1, 30, 30), (1, 16, 16), (1, 10, 50)]
    store, plan = made_up_store(shapes, chunks=[16] * 3, layouts=["whole", "window", "window"]), LoaderPlan(aligned=False)
    tiles = find_tiles(store, plan)
    for epoch in range(20):
        rows, starts = Boxes(store, tiles, plan, 0).of(np.arange(len(tiles)), np.full(len(tiles), epoch))
        assert not starts[rows < 2].any()
        assert not starts[rows == 2][:, 0].any()
        assert starts[rows == 2][:, 1].any()


def test_a_box_with_too_few_valid_pixels_is_not_taken(made_up_store):
    store = made_up_store([(1, 16, 48)], chunks=[16], fraction=np.array([0.0, 1.0, 0.0]))
    plan = LoaderPlan(aligned=False, min_valid=0.8)
    tiles = find_tiles(store, plan)
    _, starts = Boxes(store, tiles, plan, 0).of(np.zeros(500, int), np.arange(500))
    assert set(starts[:, 0, 1].tolist()) == set(range(13, 20))  # 0.8 of 16 pixels is 12.8: three pixels either way
    _, starts = Boxes(store, tiles, replace(plan, min_valid=1.0), 0).of(np.zeros(50, int), np.arange(50))
    assert set(starts[:, 0, 1].tolist()) == {16}


def test_volumes_move_in_three_axes(made_up_store):
    store, plan = made_up_store([(1, 64, 40, 96)], chunks=[8], ndim=3), LoaderPlan(aligned=False)
    tiles = find_tiles(store, plan)
    _, starts = Boxes(store, tiles, plan, 0).of(np.repeat(np.arange(len(tiles)), 50), np.tile(np.arange(50), len(tiles)))
    assert starts.min() == 0
    assert (starts.max(axis=(0, 1)) == [40, 16, 72]).all()
    assert len(np.unique(starts[:, 0] % 8, axis=0)) > 300


def test_held_out_tiles_that_were_asked_for_stay_where_they_are(made_up_store):
    store = made_up_store([(1, 64, 64)], chunks=[16], holdout=np.arange(16) == 5)
    plan = LoaderPlan(aligned=False)
    tiles = find_tiles(store, plan, holdout="only")
    _, starts = Boxes(store, tiles, plan, 0).of(np.zeros(50, int), np.arange(50))
    assert set(map(tuple, starts[:, 0].tolist())) == {(16, 16)}


def test_the_digest_tells_modes_apart(made_up_store):
    store = scattered(made_up_store, np.random.default_rng(7))
    digests = [find_tiles(store, LoaderPlan(tile=CHUNK, **keys)).digest for keys in ({}, *PLANS)]
    assert len(set(digests)) == len(digests)
    assert find_tiles(store, LoaderPlan(tile=CHUNK, **PLANS[2])).digest == digests[3]


def test_moved_boxes_show_the_pixels_they_name(tmp_path):
    pixels = np.arange(50 * 60, dtype=np.uint16).reshape(1, 50, 60)
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up", plan=StorePlan(chunk=16))
    plan = LoaderPlan(aligned=False)
    tiles = find_tiles(store, plan)
    rows, starts = Boxes(store, tiles, plan, 3).of(np.arange(len(tiles)), np.zeros(len(tiles), int))
    out = np.empty((1, 16, 16), np.uint16)
    for row, (y, x) in zip(rows[:, 0].tolist(), starts[:, 0].tolist()):
        store.read_box(row, (y, x), out)
        np.testing.assert_array_equal(out, pixels[:, y : y + 16, x : x + 16])


def test_volumes_have_no_dates(made_up_store):
    with pytest.raises(UserError, match=r"loader\.pairs: is dates, but volumes .* not registered .*allowed: none for volumes"):
        find_tiles(made_up_store([(1, 32, 32, 32)], chunks=[8], ndim=3), LoaderPlan(pairs="dates"))
