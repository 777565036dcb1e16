"""Batches: the same for any number of threads and ranks, resumable at any step, pixels as stored."""

from __future__ import annotations

import gc
from itertools import islice

import numpy as np
import pytest
import torch

from dinodomain.errors import UserError
from dinodomain.loader import Loader, LoaderPlan, find_tiles, sweep
from dinodomain.loader.ring import BufferPool
from dinodomain.store import array_record, build_store, open_store

STEPS = 12


def key(batch):
    """Everything that tells a batch apart, sorted by slot."""
    order = batch.slots.argsort()
    facts = (batch.slots, batch.tile_ids, batch.epochs, batch.draws, batch.rows, batch.origins, batch.pixels.to(torch.float64))
    return [value[order].numpy().tobytes() for value in facts]


def batches(store, count=STEPS, *, seed=5, state=None, world=1, rank=0, **plan):
    loader = Loader(store, LoaderPlan(**{"batch": 8, **plan}), seed=seed, rank=rank, world=world)
    if state is not None:
        loader.load_state_dict(state)
    return [key(batch) for batch in islice(loader, count)], loader


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_never_change_a_batch(scenes, threads):
    assert batches(scenes, threads=threads, prefetch=threads)[0] == batches(scenes, threads=0)[0]


def test_two_ranks_draw_together_what_one_draws_alone(images):
    alone = list(islice(Loader(images, LoaderPlan(batch=8), seed=5), STEPS))
    ranks = [list(islice(Loader(images, LoaderPlan(batch=8), seed=5, rank=rank, world=2), STEPS)) for rank in (0, 1)]
    for whole, first, second in zip(alone, *ranks):
        assert first.slots.tolist() == [0, 2, 4, 6]
        slots = torch.cat([first.slots, second.slots])
        assert sorted(slots.tolist()) == whole.slots.tolist()
        for name in ("tile_ids", "epochs", "rows", "pixels"):
            joined = torch.cat([getattr(first, name), getattr(second, name)])[slots.argsort()]
            assert torch.equal(joined.to(torch.int64), getattr(whole, name).to(torch.int64))


def test_resuming_gives_what_an_uninterrupted_run_gives(images):
    whole, _ = batches(images, 10)
    first, loader = batches(images, 4)
    state = loader.state_dict()
    assert state["step"] == 4
    rest, _ = batches(images, 6, state=state)
    assert first + rest == whole


def test_a_changed_world_keeps_the_global_order(images):
    whole, _ = batches(images, 10)
    _, loader = batches(images, 4, world=2)
    rest, _ = batches(images, 6, state=loader.state_dict())
    assert rest == whole[4:]


def test_prefetched_batches_are_not_counted_as_used(images):
    loader = Loader(images, LoaderPlan(batch=8, prefetch=6), seed=0)
    iterator = iter(loader)
    assert loader.state_dict()["step"] == 0
    next(iterator)
    assert loader.state_dict()["step"] == 1
    iterator.close()
    assert torch.equal(next(iter(loader)).tile_ids, list(islice(Loader(images, LoaderPlan(batch=8), seed=0), 2))[1].tile_ids)


def test_the_state_is_a_few_plain_values(images):
    state = Loader(images, LoaderPlan(batch=8), seed=3).state_dict()
    assert set(state) == {"seed", "step", "global_batch", "index_digest"}
    assert all(isinstance(value, (int, str)) for value in state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "was saved with seed 5, now 6"),
        ({"batch": 4}, "was saved with global_batch 8, now 4"),
        ({"min_valid": 1.0, "store": "scenes"}, r"the store, its eligible tiles, loader\.weights or loader\.draws changed"),
        ({"tile": 32, "store": "scenes"}, r"the store, its eligible tiles, loader\.weights or loader\.draws changed"),
    ],
)
def test_a_changed_run_refuses_to_resume(images, scenes, change, message):
    change = dict(change)
    store = scenes if change.pop("store", None) else images
    _, loader = batches(store, 1)
    with pytest.raises(UserError, match=message):
        batches(store, 1, state=loader.state_dict(), **change)


def test_another_store_or_weight_refuses_to_resume(images, scenes):
    _, loader = batches(images, 1)
    with pytest.raises(UserError, match="resume with the plan and store of the run"):
        batches(scenes, 1, state=loader.state_dict())
    with pytest.raises(UserError, match=r"loader\.weights or loader\.draws changed"):
        batches(images, 1, state=loader.state_dict(), weights={loader.buckets[0].name: 2.0})


def test_held_out_and_mostly_empty_tiles_are_never_drawn(scenes):
    loader = Loader(scenes, LoaderPlan(batch=16), seed=0)
    held = set(np.flatnonzero(scenes.column("holdout")).tolist())
    drawn = set()
    for batch in islice(loader, 40):
        assert not held & set(batch.rows.tolist())
        assert ((batch.valid == 0).float().mean(dim=(1, 2, 3)) > 0.25).all()
        drawn |= set(batch.tile_ids.tolist())
    assert drawn == set(loader.tiles.tile_ids.tolist())


def test_batches_hold_the_stored_pixels_and_their_meaning(scenes):
    for batch in islice(Loader(scenes, LoaderPlan(batch=8, tile=32), seed=0), 5):
        assert batch.pixels.shape == (8, 1, 2, 32, 32)
        assert batch.pixels.dtype == torch.uint16
        assert batch.valid is not None
        assert batch.channels == ("vv", "vh")
        for i, (row, origin) in enumerate(zip(batch.rows.tolist(), batch.origins.tolist())):
            out, bits = np.empty((2, 32, 32), np.uint16), np.empty((32, 32), np.uint8)
            scenes.read_box(row, origin, out)
            scenes.read_valid(row, origin, bits)
            np.testing.assert_array_equal(batch.pixels[i, 0].numpy(), out)
            np.testing.assert_array_equal(batch.valid[i, 0].numpy(), bits)
            np.testing.assert_array_equal(batch.info.valid_box[i], scenes.valid_box(row, origin, (32, 32)))
            facts = scenes.row(row)
            np.testing.assert_allclose(batch.info.low[i], facts["low"])
            np.testing.assert_allclose(batch.info.nodata[i], facts["nodata"])
            np.testing.assert_allclose(batch.info.spacing[i], (10, 10))


def test_the_unknown_is_nan_and_no_field_is_none(images):
    batch = next(iter(Loader(images, LoaderPlan(batch=4), seed=0)))
    assert batch.valid is None
    assert torch.isnan(batch.info.spacing).all()
    assert torch.isnan(batch.info.nodata).all()
    assert batch.info.low.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("shape", [(2, 40, 40), (1, 40, 40, 40)])
def test_every_stored_dtype_reaches_the_batch(tmp_path, dtype, shape):
    pixels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up")
    batch = next(iter(Loader(store, LoaderPlan(batch=2), seed=0)))
    assert batch.pixels.dtype == getattr(torch, dtype)
    inside = (0, 0, slice(None), *(slice(0, size) for size in shape[1:]))
    np.testing.assert_array_equal(batch.pixels.numpy()[inside], pixels)


def test_batches_do_not_share_memory_while_they_are_held(images):
    loader = Loader(images, LoaderPlan(batch=8, prefetch=1), seed=0)
    held = list(islice(loader, 30))
    again = list(islice(Loader(images, LoaderPlan(batch=8), seed=0), 30))
    assert all(torch.equal(one.pixels, two.pixels) for one, two in zip(held, again))


def test_buffers_come_back_when_the_last_tensor_is_gone():
    pool = BufferPool(2)
    view = torch.from_numpy(pool.take((4, 1000), "uint8"))[1:]
    place = view.data_ptr() - 1000
    assert pool.take((4, 1000), "uint8").ctypes.data != place
    del view
    gc.collect()
    again = [pool.take((500, 4), "uint16") for _ in range(2)]
    assert place in [array.ctypes.data for array in again]


def test_weights_change_how_often_a_bucket_is_drawn(images):
    plain = Loader(images, LoaderPlan(batch=4), seed=0)
    small = plain.buckets[1].name
    heavy = Loader(images, LoaderPlan(batch=4, weights={small: 23 / 9}), seed=0)
    share = np.mean([heavy.order.bucket_at(step) for step in range(1000)])
    assert share == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UserError, match=f"loader.weights.x: is no bucket of this store; allowed: {plain.buckets[0].name}"):
        Loader(images, LoaderPlan(weights={"x": 1.0}), seed=0)


def test_a_batch_must_divide_among_ranks(images):
    with pytest.raises(UserError, match=r"loader.batch: 8 tiles do not divide among 3 ranks; allowed: multiples of 3"):
        Loader(images, LoaderPlan(batch=8), seed=0, rank=0, world=3)


def test_drawn_units_equal_a_count_of_the_batches(scenes):
    loader = Loader(scenes, LoaderPlan(batch=8), seed=0)
    units = scenes.column("unit")
    counted = {}
    for batch in islice(loader, 25):
        for row in batch.rows.tolist():
            counted[units[row]] = counted.get(units[row], 0) + 1
    assert dict(loader.drawn_units(25)) == dict(sorted(counted.items()))
    assert loader.drawn_units(0) == {}


def test_a_sweep_reads_every_tile_once_in_order(images):
    found = list(sweep(images, LoaderPlan(batch=5)))
    assert [len(batch.rows) for batch in found] == [5, 5, 5, 5, 3, 5, 4]
    assert torch.cat([batch.rows for batch in found]).tolist() == list(range(32))
    assert [batch.slots.tolist()[0] for batch in found] == [0] * 7


def test_a_sweep_takes_rows_and_holdout(images, scenes):
    assert torch.cat([batch.rows for batch in sweep(images, LoaderPlan(batch=5), rows=[3, 30])]).tolist() == [3, 30]
    held = {row for batch in sweep(scenes, LoaderPlan(batch=5), holdout="only") for row in batch.rows.tolist()}
    assert held == set(np.flatnonzero(scenes.column("holdout")).tolist())


def test_damage_met_in_a_thread_reaches_the_caller(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 40, 40)).astype(np.uint8)
    store = build_store(tmp_path / "s", {"a": array_record(pixels)}, domain="made-up")
    path = store.path / store.row(0)["array"] / "c/0/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="its checksum differs"):
        next(iter(Loader(open_store(store.path), LoaderPlan(batch=4), seed=0)))


def test_a_loader_of_some_rows_draws_nothing_else(images):
    wanted = find_tiles(images, LoaderPlan()).rows[:3]
    loader = Loader(images, LoaderPlan(batch=2, threads=0), seed=0, rows=wanted.tolist())
    seen = np.concatenate([batch.rows.numpy() for batch in islice(loader, 6)])
    assert set(seen.tolist()) == set(wanted.tolist())
    with pytest.raises(UserError, match="none of the chosen sources has an eligible tile"):
        Loader(images, LoaderPlan(batch=2), seed=0, rows=[])
