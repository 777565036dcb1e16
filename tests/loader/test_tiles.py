"""Which tiles are eligible, where they start, what they belong to."""

from __future__ import annotations

import functools
import itertools
import time

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.lineage import tile_id
from dinodomain.loader import LoaderPlan, find_tiles
from dinodomain.loader.tiles import _corners
from dinodomain.store import StorePlan, array_record, bucket_of, build_store


def origins(cells, block):
    """First cells of as few blocks as cover the axis, evenly spaced; the last one ends with the grid."""
    return np.linspace(0, max(cells - block, 0), -(-cells // block)).round().astype(np.int64)


def plain_tiles(store, plan, holdout):
    """The plain twin of ``find_tiles``, one source after the other: (row, start, bucket, tile id, unit, valid fraction) in order."""
    rows = store.chunks["row"].to_numpy()
    fraction, units = store.chunks["valid_fraction"].to_numpy(), store.chunks["unit"].to_numpy()
    held = store.chunks["holdout"].to_numpy() | store.column("holdout").astype(bool)[rows]
    for row in range(len(store)):
        part = rows == row
        for tile, touched in plain_cut(row, store.row(row), plan, fraction[part], units[part], held[part]):
            if tile[-1] >= plan.min_valid - 1e-6 and (holdout == "include" or touched == (holdout == "only")):
                yield tile


def plain_cut(row, facts, plan, fraction, units, held):
    spatial, chunk = facts["shape"][1:], facts["chunk"]
    block = (1,) * len(chunk) if facts["layout"] == "whole" else (1, 1) if len(chunk) == 2 else (3, 3, 3)
    if facts["layout"] == "window" and plan.tile is not None:
        block = tuple(plan.tile // side for side in chunk)
    extent = tuple(side * n for side, n in zip(chunk, block))
    cells = tuple(-(-size // side) for size, side in zip(spatial, chunk))
    fullest = np.prod(np.minimum(spatial, chunk), dtype=float) / np.prod(np.minimum(spatial, extent), dtype=float)
    for corner in itertools.product(*(origins(count, n).tolist() for count, n in zip(cells, block))):
        window = tuple(slice(first, first + n) for first, n in zip(corner, block))
        centre = tuple(min(first + n // 2, count - 1) for first, n, count in zip(corner, block, cells))
        number = int(np.ravel_multi_index(corner, cells))
        start = tuple(first * side for first, side in zip(corner, chunk))
        share = np.float32(fraction.astype(np.float64).reshape(cells)[window].sum() * fullest)
        unit = facts["unit"] or units.reshape(cells)[centre]
        bucket = bucket_of(facts["dtype"], facts["channels"], extent)
        yield (row, start, bucket, tile_id(facts["content_hash"], number), unit, share), held.reshape(cells)[window].any()


def random_store(made_up_store, rng, ndim):
    """Whole images and windows of several kinds, chunks and sizes, some far smaller than a tile; some of it held out, some of it empty."""
    num = int(rng.integers(1, 9))
    most = 70 if ndim == 2 else 30
    shapes = [(int(rng.integers(1, 3)), *rng.integers(1, most, ndim).tolist()) for _ in range(num)]
    chunks = rng.choice([4, 8], num).tolist()
    layouts = rng.choice(["window", "whole"], num, p=[0.7, 0.3]).tolist()
    make = functools.partial(made_up_store, shapes, chunks=chunks, layouts=layouts, ndim=ndim)
    total = len(make().chunks)
    return make(
        fraction=np.where(rng.random(total) < 0.5, 1, rng.random(total)),
        holdout=rng.random(total) < 0.1,
        chunk_units=rng.choice(["n", "s", "t"], total).tolist(),
        unit=rng.choice(["", "p", "q"], num).tolist(),
        dtype=rng.choice(["uint8", "int16"], num).tolist(),
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("tile", [None, 8, 16])
def test_the_list_is_that_of_the_plain_twin(made_up_store, monkeypatch, ndim, tile):
    monkeypatch.setattr("dinodomain.loader.tiles._SLAB", 40)
    rng = np.random.default_rng((ndim, tile or 0))
    for round_, holdout in enumerate(("exclude", "only", "include") * 8):
        store, plan = random_store(made_up_store, rng, ndim), LoaderPlan(tile=tile, min_valid=(0.0, 0.5, 1.0)[round_ % 5 % 3])
        expected = list(plain_tiles(store, plan, holdout))
        if not expected:
            with pytest.raises(UserError, match="no tile"):
                find_tiles(store, plan, holdout=holdout)
            continue
        tiles = find_tiles(store, plan, holdout=holdout)
        names = [tiles.buckets[number].name for number in tiles.bucket]
        starts = map(tuple, tiles.starts.tolist())
        assert list(zip(tiles.rows.tolist(), starts, names, tiles.tile_ids.tolist(), tiles.units, tiles.valid_fraction)) == expected
        assert [bucket.name for bucket in tiles.buckets] == sorted(set(names))
        assert tiles.rows.dtype == tiles.starts.dtype == tiles.bucket.dtype == tiles.tile_ids.dtype == np.int64
        assert tiles.valid_fraction.dtype == np.float32


@pytest.mark.parametrize(
    ("cells", "block", "expected"), [(5, 3, [0, 2]), (3, 3, [0]), (2, 3, [0]), (9, 3, [0, 3, 6]), (10, 3, [0, 2, 5, 7])]
)
def test_blocks_cover_an_axis_evenly(cells, block, expected):
    rows, found = _corners(np.array([5]), np.array([[cells]]), np.array([[block]]))
    assert found[:, 0].tolist() == expected == origins(cells, block).tolist()
    assert set(rows) == {5}
    assert {cell for start in expected for cell in range(start, start + block)} >= set(range(cells))


def test_twenty_thousand_images_are_listed_in_a_fraction_of_a_second(made_up_store):
    rng = np.random.default_rng(0)
    shapes = [(1, side, side) for side in rng.choice([28, 32, 40, 50, 64], 20_000).tolist()]
    store = made_up_store(shapes, chunks=[32] * len(shapes), layouts="whole")
    assert best_of(3, lambda: find_tiles(store, LoaderPlan())) < 0.4  # 0.06 s on a free core; one source after the other takes 0.8


def best_of(rounds, work):
    """Seconds of this thread, so that neighbours on the machine do not count."""
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def test_held_out_units_are_never_listed(scenes):
    tiles = find_tiles(scenes, LoaderPlan(min_valid=0))
    assert "u4" not in set(tiles.units)
    assert set(find_tiles(scenes, LoaderPlan(min_valid=0), holdout="only").units) == {"u4"}
    every = find_tiles(scenes, LoaderPlan(min_valid=0), holdout="include")
    assert len(every) == len(tiles) + len(find_tiles(scenes, LoaderPlan(min_valid=0), holdout="only"))


def test_a_held_out_chunk_takes_its_whole_block_along(tmp_path):
    store = build_store(tmp_path / "s", {"a": array_record(np.ones((1, 64, 64), np.uint8))}, domain="made-up", plan=StorePlan(chunk=16))
    names = store.chunks.column_names
    flags = [cell == [3, 3] for cell in store.chunks["chunk"].to_pylist()]
    store.chunks = store.chunks.set_column(names.index("holdout"), "holdout", [flags])
    starts = find_tiles(store, LoaderPlan(tile=32)).starts.tolist()
    assert starts == [[0, 0], [0, 32], [32, 0]]


def test_tiles_below_the_least_valid_share_are_never_listed(scenes):
    for least in (0.0, 0.5, 1.0):
        tiles = find_tiles(scenes, LoaderPlan(min_valid=least))
        assert (tiles.valid_fraction >= least - 1e-6).all()
    half_empty = scenes.column("source_id").tolist().index("s03")
    starts = find_tiles(scenes, LoaderPlan()).starts[find_tiles(scenes, LoaderPlan()).rows == half_empty]
    assert set(starts[:, 1]) == {0}


def test_the_valid_share_of_a_block_agrees_with_its_pixels(scenes):
    plan = LoaderPlan(tile=32, min_valid=0)
    tiles = find_tiles(scenes, plan, holdout="include")
    bits = np.empty((32, 32), np.uint8)
    for row, start, share in zip(tiles.rows.tolist(), tiles.starts.tolist(), tiles.valid_fraction):
        scenes.read_valid(row, start, bits)
        inside = tuple(slice(low, high) for low, high in scenes.valid_box(row, start, (32, 32)))
        assert share == pytest.approx(np.sum(bits[inside] == 0) / 32**2)


def test_tiles_start_on_the_chunk_grid_and_cover_the_source(scenes):
    tiles = find_tiles(scenes, LoaderPlan(tile=32, min_valid=0), holdout="include")
    assert not (tiles.starts % 16).any()
    for row in range(len(scenes)):
        seen = np.zeros(scenes.row(row)["shape"][1:], bool)
        for y, x in tiles.starts[tiles.rows == row]:
            seen[y : y + 32, x : x + 32] = True
        assert seen.all()


def test_volumes_are_cut_into_blocks_of_three_chunks_and_small_ones_padded(tmp_path):
    sources = {"big": array_record(np.ones((1, 160, 96, 100), np.int16)), "small": array_record(np.ones((1, 20, 50, 50), np.int16))}
    store = build_store(tmp_path / "s", sources, domain="made-up")
    tiles = find_tiles(store, LoaderPlan())
    assert tiles.buckets[0].extent == (96, 96, 96)
    big = tiles.starts[tiles.rows == 0].tolist()
    assert big == [list(start) for start in itertools.product((0, 64), (0,), (0, 32))]
    assert tiles.starts[tiles.rows == 1].tolist() == [[0, 0, 0]]
    np.testing.assert_allclose(tiles.valid_fraction[tiles.rows == 1], 1)
    np.testing.assert_array_equal(store.valid_box(1, (0, 0, 0), (96, 96, 96)), [[0, 20], [0, 50], [0, 50]])


def test_tile_ids_are_hashes_of_content_and_place(scenes):
    tiles = find_tiles(scenes, LoaderPlan())
    assert len(set(tiles.tile_ids.tolist())) == len(tiles)
    assert tiles.tile_ids[0] == tile_id(scenes.row(int(tiles.rows[0]))["content_hash"], 0)


def test_buckets_tell_dtype_channels_and_extent_apart(images, scenes):
    assert [bucket.extent for bucket in find_tiles(images, LoaderPlan()).buckets] == [(32, 32), (64, 32)]
    assert [len(members) for members in find_tiles(images, LoaderPlan()).members] == [23, 9]
    assert len(find_tiles(scenes, LoaderPlan()).buckets) == 1


def test_the_digest_follows_the_list(scenes):
    assert find_tiles(scenes, LoaderPlan()).digest == find_tiles(scenes, LoaderPlan(batch=3)).digest
    assert find_tiles(scenes, LoaderPlan()).digest != find_tiles(scenes, LoaderPlan(min_valid=0)).digest


def test_units_of_chunks_are_used_where_the_source_has_none(tmp_path):
    store = build_store(tmp_path / "s", {"a": array_record(np.ones((1, 32, 32), np.uint8))}, domain="made-up", plan=StorePlan(chunk=16))
    store.index = store.index.set_column(store.index.column_names.index("unit"), "unit", [[""]])
    place = store.chunks.column_names.index("unit")
    store.chunks = store.chunks.set_column(place, "unit", [["n", "n", "s", "t"]])
    assert find_tiles(store, LoaderPlan()).units.tolist() == ["n", "n", "s", "t"]
    assert find_tiles(store, LoaderPlan(tile=32)).units.tolist() == ["t"]


def test_wrong_plans_say_what_is_allowed(scenes):
    with pytest.raises(UserError, match=r"loader.tile: 40 pixels do not divide into chunks of 16x16; allowed: multiples of 16"):
        find_tiles(scenes, LoaderPlan(tile=40))
    with pytest.raises(UserError, match=r"loader.batch: 0; allowed: at least 1"):
        LoaderPlan(batch=0)
    with pytest.raises(UserError, match=r"loader.min_valid: 1.5; allowed: 0 to 1"):
        LoaderPlan(min_valid=1.5)
    with pytest.raises(UserError, match=r"loader.weights.x: -1; allowed: a finite number, 0 or more"):
        LoaderPlan(weights={"x": -1})


def test_a_store_without_an_eligible_tile_says_so(tmp_path):
    store = build_store(tmp_path / "s", {"a": array_record(np.ones((1, 8, 8), np.uint8))}, domain="made-up", holdout=("a",))
    with pytest.raises(UserError, match=r"no tile outside the audit holdout has 50% valid pixels; lower loader\.min_valid"):
        find_tiles(store, LoaderPlan())
