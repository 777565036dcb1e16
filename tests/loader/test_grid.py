"""What the chunk table says of a box agrees with what pixels would say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dinodomain.loader.columns import expand, list_codes, row_codes, slabs, text_codes
from dinodomain.loader.grid import ChunkGrid


def plain_measure(store, row, start, extent):
    """One chunk after the other: (estimated valid share, touches a held-out chunk)."""
    facts, rows = store.row(row), store.chunks["row"].to_numpy()
    size, side = facts["shape"][1:], facts["chunk"]
    fraction, held = store.chunks["valid_fraction"].to_numpy()[rows == row], store.chunks["holdout"].to_numpy()[rows == row]
    cells = [range(-(-a // b)) for a, b in zip(size, side)]
    valid, touched = 0.0, False
    for number, cell in enumerate(itertools.product(*cells)):
        real = [(i * n, min((i + 1) * n, most)) for i, n, most in zip(cell, side, size)]
        inside = [max(0, min(b, start_ + n) - max(a, start_)) / (b - a) for (a, b), start_, n in zip(real, start, extent)]
        valid += fraction[number] * np.prod([min(a, b) for a, b in zip(size, side)]) * np.prod(inside)
        touched |= bool(held[number]) and all(part > 0 for part in inside)
    return valid / np.prod([min(a, b) for a, b in zip(size, extent)]), touched


@pytest.mark.parametrize("ndim", [2, 3])
def test_boxes_anywhere_are_judged_like_one_chunk_after_the_other(made_up_store, monkeypatch, ndim):
    monkeypatch.setattr("dinodomain.loader.grid._SLAB", 50)
    rng = np.random.default_rng(ndim)
    shapes = [(1, *rng.integers(1, 40, ndim).tolist()) for _ in range(5)]
    total = len(made_up_store(shapes, chunks=[8, 4, 8, 4, 8], ndim=ndim).chunks)
    store = made_up_store(
        shapes, chunks=[8, 4, 8, 4, 8], ndim=ndim, fraction=rng.random(total).astype(np.float32), holdout=rng.random(total) < 0.1
    )
    rows, extents = rng.integers(0, 5, 60), rng.integers(1, 20, (60, ndim))
    starts = rng.integers(-10, 40, (60, ndim))
    found = ChunkGrid.of(store).measure(rows, starts, extents)
    for i in range(60):
        share, held = plain_measure(store, int(rows[i]), starts[i].tolist(), extents[i].tolist())
        assert found.share[i] == pytest.approx(share, abs=1e-6)
        assert found.held[i] == held
    assert found.held.any()
    assert not found.held.all()
    assert (found.share == 0).any()  # boxes outside their source


def test_a_box_over_half_a_chunk_is_taken_to_hold_half_its_valid_pixels(made_up_store):
    store = made_up_store([(1, 16, 32)], chunks=[16], fraction=np.array([1.0, 0.5]))
    found = ChunkGrid.of(store).measure(np.zeros(3, int), np.array([[0, 0], [0, 8], [0, 16]]), np.full((3, 2), 16))
    assert found.share.tolist() == [1.0, 0.75, 0.5]


def test_measuring_nothing_is_allowed(made_up_store):
    nothing = np.empty((0, 2), np.int64)
    assert len(ChunkGrid.of(made_up_store([(1, 8, 8)], chunks=[8])).measure(np.empty(0, np.int64), nothing, nothing).share) == 0


def test_codes_tell_values_apart_and_nothing_else(made_up_store):
    store = made_up_store([(1, 8, 8), (3, 8, 8), (1, 8, 8), (2, 8, 8)], chunks=[8] * 4, crs=["a", None, "a", "b"])
    assert list_codes(store.index, "channels").argsort(kind="stable").tolist()[:2] == [0, 2]
    assert len(set(list_codes(store.index, "channels").tolist())) == 3
    codes, names = text_codes(store.index["crs"])
    assert codes.tolist() == [0, -1, 0, 1]
    assert names.tolist() == ["a", "b"]
    codes, first = row_codes(np.array([[5, 1], [2, 2], [5, 1], [1, 5]]))
    assert (codes.tolist(), first.tolist()) == ([0, 1, 0, 2], [0, 1, 3])


def test_groups_expand_and_fall_into_slabs_that_cover_them():
    group, place = expand(np.array([2, 0, 3]))
    assert (group.tolist(), place.tolist()) == ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])
    counts = np.random.default_rng(0).integers(0, 9, 50)
    parts = slabs(counts, 20)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(50))
    assert max(counts[part].sum() for part in parts) <= 20 + 9
    assert slabs(np.array([], int), 20) == []
