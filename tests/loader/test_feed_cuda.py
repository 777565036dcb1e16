"""Batches on a CUDA device: the same as on a CPU, with the ring page-locked and without, and no slot reused before it was copied."""

from __future__ import annotations

import gc
import logging
import os

import numpy as np
import pytest
import torch

from dinodomain.loader import Loader, LoaderPlan, delivery, find_tiles
from dinodomain.loader.feed import Feed
from dinodomain.loader.ring import Ring
from dinodomain.loader.task import Layout
from dinodomain.store import StorePlan, array_record, build_store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PLANS = [{"threads": 0}, {"threads": 2}, {"workers": 2}]


def content(batch):
    """Everything in a batch, as bytes."""
    values = [getattr(batch, name) for name in ("pixels", "valid", "tile_ids", "epochs", "draws", "rows", "origins", "slots")]
    values += [getattr(batch.info, name) for name in ("scale", "offset", "nodata", "low", "high", "spacing", "valid_box")]
    return [None if value is None else (tuple(value.shape), value.cpu().numpy().tobytes()) for value in values]


def run(store, tiles, jobs, *, device, draws=1, spread=2, dates=1, **plan):
    feed = Feed(store, tiles.buckets, LoaderPlan(batch=8, draws=draws, spread=spread, **plan), batch=8, dates=dates, device=device)
    return feed.run(jobs)


@pytest.fixture(scope="module")
def tiles(scenes):
    return find_tiles(scenes, LoaderPlan(min_valid=0))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Twelve-band tiles of 256 x 256: large enough for copies that overlap with work."""
    rng = np.random.default_rng(0)
    sources = {f"s{i}": array_record(rng.integers(0, 10000, (12, 1024, 1024)).astype(np.uint16)) for i in range(2)}
    return build_store(tmp_path_factory.mktemp("large") / "s", sources, domain="made-up", plan=StorePlan(codec="none"))


@pytest.mark.parametrize("shape", [{}, {"dates": 3}, {"draws": 4, "spread": 2}, {"draws": 2, "spread": 3, "dates": 2}])
@pytest.mark.parametrize("plan", PLANS)
def test_batches_are_those_of_the_cpu(scenes, tiles, make_jobs, shape, plan):
    jobs = list(make_jobs(tiles, 20, **shape))
    expected = [content(batch) for batch in run(scenes, tiles, jobs, device="cpu", threads=0, **shape)]
    for batch, whole in zip(run(scenes, tiles, jobs, device="cuda", **shape, **plan), expected, strict=True):
        assert batch.pixels.is_cuda
        assert batch.info.low.is_cuda
        assert batch.pixels.dtype == torch.uint16
        assert content(batch) == whole


def test_batches_that_are_kept_stay_as_they_are(scenes, tiles, make_jobs):
    jobs = list(make_jobs(tiles, 40))
    expected = [content(batch) for batch in run(scenes, tiles, jobs, device="cpu", threads=0)]
    kept = list(run(scenes, tiles, jobs, device="cuda", workers=2, prefetch=2))
    assert [content(batch) for batch in kept] == expected


@pytest.mark.parametrize("plan", [{"threads": 2, "prefetch": 1}, {"workers": 2, "prefetch": 2}])
def test_no_slot_is_used_again_before_it_was_copied(large, plan):
    plain = iter(Loader(large, LoaderPlan(batch=16, threads=0), seed=3))
    busy = torch.ones(4096, 4096, device="cuda")
    source = iter(Loader(large, LoaderPlan(batch=16, **plan), seed=3, device="cuda"))
    sums = []
    for _, batch in zip(range(30), source):
        for _ in range(3):
            busy = (busy @ busy).clamp(-1, 1)  # the consumer's stream lags behind the readers
        sums.append(batch.pixels.to(torch.int64).sum((1, 2, 3, 4)))
        del batch
    source.close()
    for found, (_, batch) in zip(sums, zip(range(30), plain)):
        assert torch.equal(found.cpu(), batch.pixels.to(torch.int64).sum((1, 2, 3, 4)))
    plain.close()


def test_a_held_part_stays_on_the_device_and_is_not_what_was_given_out(scenes, tiles, make_jobs):
    options = {"draws": 2, "spread": 1}
    jobs = list(make_jobs(tiles, 10, **options))
    expected = [content(batch) for batch in run(scenes, tiles, jobs, device="cpu", threads=0, **options)]
    for batch, whole in zip(run(scenes, tiles, jobs, device="cuda", workers=1, **options), expected, strict=True):
        assert content(batch) == whole
        batch.pixels.zero_()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_ring_is_page_locked_while_it_is_read(images, make_jobs, monkeypatch, caplog, workers):
    caplog.set_level(logging.INFO)
    rings, made = [], delivery.Cuda.__init__

    def noted(self, ring, device):
        made(self, ring, device)
        rings.append(self)

    monkeypatch.setattr(delivery.Cuda, "__init__", noted)
    tiles = find_tiles(images, LoaderPlan())
    source = run(images, tiles, make_jobs(tiles, 12), device="cuda", workers=workers)
    next(source)
    assert rings[0]._registered
    assert torch.from_numpy(rings[0]._memory).is_pinned()
    source.close()
    assert not rings[0]._registered
    assert caplog.records == []


def test_without_page_locking_batches_are_the_same_and_it_is_said_once(scenes, tiles, make_jobs, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    jobs = list(make_jobs(tiles, 20))
    expected = [content(batch) for batch in run(scenes, tiles, jobs, device="cpu", threads=0)]
    locked = torch.zeros(1 << 20, dtype=torch.uint8)
    cudart = torch.cuda.cudart()
    register = cudart.cudaHostRegister
    assert int(register(locked.data_ptr(), locked.numel(), 0)) == 0
    try:
        # Memory that is page-locked already is refused, and the refusal stays behind in the runtime as its last error.
        monkeypatch.setattr(cudart, "cudaHostRegister", lambda *_: register(locked.data_ptr(), locked.numel(), 0))
        found = [content(batch) for batch in run(scenes, tiles, jobs, device="cuda", workers=1)]
    finally:
        monkeypatch.undo()
        cudart.cudaHostUnregister(locked.data_ptr())
    assert found == expected
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("the ring of batches cannot be page-locked (CUDA error")
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_slots_come_back_when_their_copy_is_done():
    ring = Ring(2, 1 << 22, shared=False)
    cuda = delivery.Cuda(ring, torch.device("cuda"))
    layout = Layout((1, 1, 1024, 1024), "int16", False)
    for value in range(20):
        slot = ring.take()
        while slot is None:
            assert cuda.reclaim(wait=True)
            slot = ring.take()
        images = layout.of(slot.memory)
        del slot
        images.pixels[:] = value
        landed = cuda.land(images, 1)
        del images
        torch.cuda.current_stream().wait_stream(cuda._stream)
        assert (landed.pixels == value).all()
    del landed
    cuda.close()
    gc.collect()
    assert ring.free == 2


def test_an_iterator_leaves_neither_processes_nor_descriptors_nor_locked_memory(images, make_jobs):
    tiles = find_tiles(images, LoaderPlan())
    list(run(images, tiles, make_jobs(tiles, 4), device="cuda", workers=1))
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        source = run(images, tiles, make_jobs(tiles, 30), device="cuda", workers=2)
        next(source)
        source.close()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
