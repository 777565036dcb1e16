"""Batches: the same whoever reads them, whatever dies meanwhile and however long the consumer keeps them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dinodomain.errors import UserError
from dinodomain.lineage import write_json
from dinodomain.loader import Loader, LoaderPlan, find_tiles
from dinodomain.loader import feed as feeds
from dinodomain.loader.facts import SourceFacts
from dinodomain.loader.feed import Feed
from dinodomain.loader.readers import Threads
from dinodomain.loader.task import Layout, Task
from dinodomain.store import OpenArrays, Store, StorePlan, array_record, build_store, open_store
from dinodomain.store.rewrite import clear_items

READERS = [{"threads": 0}, {"threads": 3, "prefetch": 2}, {"workers": 2, "threads": 1, "prefetch": 7}]


def content(batch):
    """Everything in a batch, as bytes."""
    values = [getattr(batch, name) for name in ("pixels", "valid", "tile_ids", "epochs", "draws", "rows", "origins", "slots")]
    values += [getattr(batch.info, name) for name in ("scale", "offset", "nodata", "low", "high", "spacing", "valid_box")]
    return [None if value is None else (tuple(value.shape), value.numpy().tobytes()) for value in values]


def plain(store, tiles, job):
    """A batch of a job as its definition says: image by image, by the store's own reader."""
    bucket = tiles.buckets[job.bucket]
    pixels, valid = [], []
    for part in job.parts:
        for row, start in zip(part.rows.reshape(-1).tolist(), part.starts.reshape(-1, part.starts.shape[-1]).tolist()):
            box, bits = np.empty((len(bucket.channels), *bucket.extent), bucket.dtype), np.empty(bucket.extent, np.uint8)
            store.read_box(row, start, box)
            store.read_valid(row, start, bits)
            pixels.append(box)
            valid.append(bits)
    dates = job.parts[0].rows.shape[1]
    return [np.stack(found).reshape(-1, dates, *found[0].shape) for found in (pixels, valid)]


@pytest.fixture
def feed_of():
    """Makes a feed; batches of jobs that ``make_jobs`` makes with the same numbers."""

    def make(store, tiles, *, draws=1, spread=2, dates=1, batch=8, device="cpu", **plan):
        given = LoaderPlan(batch=batch, draws=draws, spread=spread, **plan)
        return Feed(store, tiles.buckets, given, batch=batch, dates=dates, device=device)

    return make


@pytest.fixture(scope="module")
def tiles(scenes):
    return find_tiles(scenes, LoaderPlan(min_valid=0))


def readers():
    children = [child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()]
    return [int(child) for child in children if b"dinodomain.loader.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("shape", [{}, {"dates": 3}, {"draws": 4, "spread": 2}, {"draws": 2, "spread": 3, "dates": 2}])
def test_whoever_reads_batches_are_what_the_store_holds(scenes, tiles, make_jobs, feed_of, shape):
    jobs = list(make_jobs(tiles, 14, **shape))
    expected = [plain(scenes, tiles, job) for job in jobs]
    found = []
    for plan in READERS:
        batches = list(feed_of(scenes, tiles, **shape, **plan).run(jobs))
        for batch, (pixels, valid), job in zip(batches, expected, jobs, strict=True):
            np.testing.assert_array_equal(batch.pixels.numpy(), pixels)
            np.testing.assert_array_equal(batch.valid.numpy(), valid)
            assert batch.rows.tolist() == np.concatenate([part.rows.reshape(-1) for part in job.parts]).tolist()
            assert len(batch.info.low) == len(batch.rows) == len(batch.tile_ids) * shape.get("dates", 1)
        found.append([content(batch) for batch in batches])
    assert all(one == found[0] for one in found[1:])


def test_buckets_without_bit_fields_and_of_other_sizes_share_a_ring(images, make_jobs, feed_of):
    tiles = find_tiles(images, LoaderPlan())
    jobs = [job for pair in zip(make_jobs(tiles, 6), make_jobs(tiles, 6, bucket=1)) for job in pair]
    one, two = (list(feed_of(images, tiles, **plan).run(jobs)) for plan in ({"threads": 0}, {"workers": 2}))
    assert [content(batch) for batch in one] == [content(batch) for batch in two]
    assert {batch.pixels.shape[2:] for batch in one} == {(3, 32, 32), (3, 64, 32)}
    assert all(batch.valid is None for batch in one)


def counted(store, monkeypatch):
    """Counts how many boxes are read in this process."""
    calls, read = [], store.arrays.read

    def noted(address, out):
        calls.append(address)
        read(address, out)

    monkeypatch.setattr(store.arrays, "read", noted)
    return calls


def test_a_held_part_is_read_once_and_one_that_is_not_held_again(images, make_jobs, feed_of, monkeypatch):
    tiles = find_tiles(images, LoaderPlan())
    options = {"draws": 4, "spread": 2, "threads": 0}
    jobs = list(make_jobs(tiles, 20, draws=4, spread=2))
    calls = counted(images, monkeypatch)
    whole = [content(batch) for batch in feed_of(images, tiles, **options).run(jobs)]
    assert len(calls) == 20 * 2, "two tiles of each job are new"
    calls.clear()
    assert [content(batch) for batch in feed_of(images, tiles, **options).run(jobs[9:])] == whole[9:]
    assert len(calls) == (4 + 4 + 9) * 2, "the first jobs after a resume read their older parts again"


def test_what_a_consumer_writes_into_a_batch_stays_out_of_held_parts(images, make_jobs, feed_of):
    tiles = find_tiles(images, LoaderPlan())
    jobs = list(make_jobs(tiles, 8, draws=2, spread=1))
    expected = [content(batch) for batch in feed_of(images, tiles, draws=2, spread=1).run(jobs)]
    for batch, whole in zip(feed_of(images, tiles, draws=2, spread=1).run(jobs), expected):
        assert content(batch) == whole
        batch.pixels.zero_()


@pytest.mark.parametrize("plan", [{"workers": 1}, {}])
def test_batches_of_one_part_are_not_copied_and_use_the_same_memory_again(images, make_jobs, feed_of, plan):
    tiles = find_tiles(images, LoaderPlan())
    places = {batch.pixels.data_ptr() for batch in feed_of(images, tiles, prefetch=3, **plan).run(make_jobs(tiles, 60))}
    assert len(places) <= 3 + 3
    spacing = np.diff(sorted(places))
    assert (spacing % 4096 == 0).all(), "they are slots of one ring"


@pytest.mark.parametrize("shape", [{}, {"draws": 2, "spread": 1}])
def test_a_consumer_that_keeps_every_batch_gets_its_own_copies(images, make_jobs, feed_of, caplog, shape):
    caplog.set_level(logging.INFO)
    tiles = find_tiles(images, LoaderPlan())
    jobs = list(make_jobs(tiles, 60, **shape))
    kept = list(feed_of(images, tiles, workers=1, **shape).run(jobs))
    again = list(feed_of(images, tiles, threads=0, **shape).run(jobs))
    assert [content(batch) for batch in kept] == [content(batch) for batch in again]
    line = "batches are kept while others are read: those for which the ring has no room are copied"
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if shape else [line] * 2), "once a run"


def test_a_part_that_is_larger_than_planned_is_read_all_the_same(images, make_jobs, feed_of):
    tiles = find_tiles(images, LoaderPlan())
    jobs = list(make_jobs(tiles, 5, batch=32))
    one, two = (list(feed_of(images, tiles, batch=8, **plan).run(jobs)) for plan in ({"threads": 0}, {"workers": 1}))
    assert [content(batch) for batch in one] == [content(batch) for batch in two]


def test_processes_killed_twenty_times_change_nothing(scenes, tiles, make_jobs, feed_of, caplog):
    options = {"draws": 2, "spread": 2, "dates": 2}
    jobs = list(make_jobs(tiles, 120, **options))
    expected = [content(batch) for batch in feed_of(scenes, tiles, threads=0, **options).run(jobs)]
    rng = np.random.default_rng(7)
    # Both at a time, or one of them; so far apart that whoever died was missed, and replaced, before the next.
    moments = dict(zip((np.arange(3, 111, 9) + rng.integers(0, 4, 12)).tolist(), rng.permutation([2] * 8 + [1] * 4).tolist()))
    killed = set()
    run = feed_of(scenes, tiles, workers=2, prefetch=3, **options).run(jobs)
    for number, (batch, whole) in enumerate(zip(run, expected, strict=True)):
        assert content(batch) == whole, number
        if number in moments:
            time.sleep(rng.random() * 0.03)
            for victim in rng.choice(sorted(set(readers()) - killed), moments[number], replace=False).tolist():
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
    assert len(killed) == 20
    assert len([record for record in caplog.records if "is restarted" in record.getMessage()]) == 20


@pytest.mark.parametrize("plan", [{"threads": 0}, {}, {"workers": 1}])
def test_damage_reaches_the_consumer_by_name_after_the_batches_before_it(tmp_path, make_jobs, feed_of, plan):
    rng = np.random.default_rng(0)
    sources = {f"s{i}": array_record(rng.integers(0, 255, (1, 32, 32)).astype(np.uint8)) for i in range(2)}
    store = build_store(tmp_path / "s", sources, domain="made-up", plan=StorePlan(chunk=16))
    path = store.path / store.row(1)["array"] / "c/0/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    store = open_store(store.path)
    tiles = find_tiles(store, LoaderPlan())
    jobs = [*make_jobs(tiles.of_rows([0]), 3, batch=4), *make_jobs(tiles.of_rows([1]), 3, batch=4)]
    run = feed_of(store, tiles, batch=4, **plan).run(jobs)
    assert len(list(islice(run, 3))) == 3
    with pytest.raises(UserError, match=r"c/0/0/0: chunk \(0, 0, 0\) cannot be read: its checksum differs"):
        list(run)
    assert readers() == []


def test_a_reading_that_failed_is_not_done_so_that_nobody_asks_for_it_before_its_turn(tmp_path):
    layout = Layout((1, 2, 16, 16), "uint16", False)
    images = layout.of(np.zeros(layout.nbytes, np.uint8))
    made = Threads(OpenArrays(), 1, 1)
    reading = made.start(Task(0, 0, layout, range(1), [(str(tmp_path / "nothing"), (0, 0, 0))], ()), images)
    with pytest.raises(UserError, match=r"holds no zarr\.json"):
        reading.wait()
    assert not reading.done()
    made.close()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("plan", [{"threads": 0}, {"workers": 1}])
def test_what_was_withdrawn_after_a_store_was_opened_is_never_a_batch_of_blank_images(tmp_path, plan, mixed):
    rng = np.random.default_rng(0)
    sources = {f"{i}": array_record(rng.integers(1, 255, (1, 20, 20)).astype(np.uint8), layout="whole") for i in range(4)}
    store = build_store(tmp_path / "s", sources, domain="made-up")
    (tmp_path / "mix.yaml").write_text("stores: [{path: s, share: 1}]")
    opened = open_store(tmp_path / ("mix.yaml" if mixed else "s"), mixed=True)
    clear_items((store.path / store.row(0)["array"]).parent, range(4))
    write_json(store.path / "manifest.json", {**store.manifest, "withdrawn": [{"date": "2024-01-01"}]})
    with pytest.raises(UserError, match=r"s: sources were withdrawn from this store while it was open"):
        next(iter(Loader(opened, LoaderPlan(batch=4, **plan), seed=0)))


@pytest.mark.parametrize("folder", [False, True])
def test_rings_in_a_folder_give_the_same_batches(images, make_jobs, feed_of, tmp_path, monkeypatch, folder):
    monkeypatch.delattr(os, "memfd_create")
    tiles = find_tiles(images, LoaderPlan())
    one = [content(batch) for batch in feed_of(images, tiles, threads=0).run(make_jobs(tiles, 6))]
    two = feed_of(images, tiles, workers=1, ring_dir=str(tmp_path) if folder else None).run(make_jobs(tiles, 6))
    assert [content(batch) for batch in two] == one


@pytest.mark.parametrize("how", ["close", "forget", "error", "end"])
def test_however_an_iterator_ends_nothing_of_it_stays(images, make_jobs, feed_of, how):
    tiles = find_tiles(images, LoaderPlan())
    list(feed_of(images, tiles, threads=0).run(make_jobs(tiles, 6)))  # opens what the store keeps open
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))

    def jobs():
        yield from make_jobs(tiles, 6)
        if how == "error":
            raise RuntimeError("no more")

    run = feed_of(images, tiles, workers=1).run(jobs())
    batch = next(run)
    kept = content(batch)
    if how == "close":
        run.close()
    if how == "end":
        list(run)
    if how == "error":
        with pytest.raises(RuntimeError, match="no more"):
            list(run)
    del run
    gc.collect()
    assert readers() == []
    assert content(batch) == kept, "batches stay valid"
    del batch  # the last of the ring
    assert set(os.listdir("/proc/self/fd")) == before


def test_readers_that_cannot_start_leave_no_memory_page_locked_and_no_descriptor(images, make_jobs, feed_of, monkeypatch):
    tiles, locked = find_tiles(images, LoaderPlan()), []
    monkeypatch.setattr(feeds, "_delivery", lambda ring, feed: locked.append(ring))
    monkeypatch.setattr(sys, "executable", "/no/python")
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=r"cannot start: /no/python"):
        next(feed_of(images, tiles, workers=2).run(make_jobs(tiles, 6)))
    gc.collect()
    assert locked == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_iterator_that_was_never_begun_starts_nothing(images, make_jobs, feed_of):
    tiles = find_tiles(images, LoaderPlan())
    run = feed_of(images, tiles, workers=2).run(make_jobs(tiles, 6))
    assert readers() == []
    run.close()


def test_other_devices_are_given_copies(images, make_jobs, feed_of):
    tiles = find_tiles(images, LoaderPlan())
    batch = next(feed_of(images, tiles, device="meta").run(make_jobs(tiles, 6)))
    assert batch.pixels.device.type == batch.info.low.device.type == "meta"


def test_facts_of_a_hundred_thousand_sources_are_made_at_once(scenes, tiles):
    copies = 100_000 // len(scenes)
    counts = np.bincount(scenes.chunks["row"].to_numpy())
    rows = np.concatenate([np.repeat(np.arange(len(scenes)) + i * len(scenes), counts) for i in range(copies)])
    index = pa.concat_tables([scenes.index] * copies)
    chunks = pa.concat_tables([scenes.chunks] * copies).set_column(0, "row", pa.array(rows, pa.int32()))
    many = Store(scenes.path, scenes.manifest, index, chunks, scenes.lineage)
    bucket, chosen = tiles.buckets[0], np.array([0, 12 * 777 + 3, 12 * copies - 1])
    starts = np.array([[0, 0], [32, 48], [-3, 16]])
    begun = time.process_time()
    facts = SourceFacts(many)
    found, fields = facts.of(bucket, chosen, starts), facts.has_valid(bucket)
    assert time.process_time() - begun < 2
    assert fields
    for i, row in enumerate(chosen.tolist()):
        expected = scenes.row(row % len(scenes))
        for name in ("scale", "offset", "nodata", "low", "high", "spacing"):
            np.testing.assert_allclose(getattr(found, name)[i], expected[name])
        np.testing.assert_array_equal(found.valid_box[i], scenes.valid_box(row % len(scenes), starts[i], bucket.extent))
