"""Turns jobs into batches, in order and read ahead, by threads of this process or by reader processes, on the CPU or a CUDA device.

Who reads, and where, never changes a batch. Memory does not grow with the number of batches: parts are read into the slots of one ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch

from dinodomain.loader.crew import Crew
from dinodomain.loader.delivery import Cuda, Delivery, Host, Landed
from dinodomain.loader.facts import SourceFacts
from dinodomain.loader.job import Job, Part
from dinodomain.loader.plan import LoaderPlan
from dinodomain.loader.readers import Inline, Readers, Reading, Threads
from dinodomain.loader.ring import BufferPool, Ring
from dinodomain.loader.task import WAITING, Images, Layout, Task
from dinodomain.loader.tiles import Bucket
from dinodomain.store import OpenArrays, Store
from dinodomain.types import Batch

_IN_USE = 3
"""Batches that a consumer may have at a time without copies: the one it works on, the one before it, and the one it is given."""


class Feed:
    """Reads the jobs of one rank.

    Args:
        store: An opened store.
        buckets: What ``Job.bucket`` counts.
        plan: Who reads (``workers``, ``threads``, ``requests``), how far ahead, and how many parts are held (``draws``, ``spread``).
        batch: Samples of a job, at most.
        dates: Dates per sample.
        device: Where batches go.
    """

    def __init__(
        self, store: Store, buckets: Sequence[Bucket], plan: LoaderPlan, *, batch: int, dates: int, device: str | torch.device
    ) -> None:
        self.store, self.buckets, self.plan, self.dates = store, tuple(buckets), plan, dates
        self.device = torch.device(device)
        self.facts = SourceFacts(store)
        self.arrays = OpenArrays(plan.requests, store.arrays.guards) if _on_a_server(store) else store.arrays
        self.prefetch = plan.prefetch if plan.workers or plan.threads else 1
        self._part = -(-batch // plan.draws)

    def run(self, jobs: Iterable[Job]) -> Generator[Batch, None, None]:
        """Batches of ``jobs``, read ahead; closing the iterator stops threads and processes.

        Raises:
            UserError: A file of the store is damaged, or reader processes cannot do their work.
        """
        run = _Run(self)
        try:
            yield from run.batches(iter(jobs))
        finally:
            run.close()

    def ring(self) -> Ring:
        """Memory for one run."""
        return Ring(*self.ring_size(), shared=bool(self.plan.workers), folder=self.plan.ring_dir)

    def ring_size(self) -> tuple[int, int]:
        """Slots of a run's ring and bytes of each: a slot for each part that is read ahead, held, or in the consumer's hands."""
        plan = self.plan
        held = (plan.draws - 1) * plan.spread
        slots = self.prefetch + _IN_USE
        # Parts of a CUDA device are held there; else each bucket has its own.
        slots += plan.draws if self.device.type == "cuda" else len(self.buckets) * (held + plan.draws) if held else 0
        return slots, max(self.layout(number, self._part * self.dates).nbytes for number in range(len(self.buckets)))

    def layout(self, number: int, images: int) -> Layout:
        """How ``images`` images of a bucket lie in memory."""
        bucket = self.buckets[number]
        return Layout((images, len(bucket.channels), *bucket.extent), bucket.dtype, self.facts.has_valid(bucket))


@dataclass(slots=True)
class _Read:
    """A part that is being read, or was.

    Attributes:
        images: Its memory; given up when it has landed.
        reading: Who reads it.
        landed: Where its consumer works.
    """

    images: Images | None
    reading: Reading
    landed: Landed | None = None


class _Run:
    """One pass over jobs: ring, readers, and what is under way."""

    def __init__(self, feed: Feed) -> None:
        self._feed, self._plan = feed, feed.plan
        self._ring, self._own = feed.ring(), Inline(feed.arrays)
        # Memory is page-locked last: what refuses to start must not leave it so.
        self._readers: Readers = self._make_readers()
        self._delivery = _delivery(self._ring, feed)
        self._pool = BufferPool(feed.prefetch + _IN_USE)
        self._ahead: deque[tuple[Job, list[_Read]]] = deque()
        self._held: dict[tuple[int, int], _Read] = {}

    def _make_readers(self) -> Readers:
        plan = self._plan
        if plan.workers:
            return Crew(self._ring, workers=plan.workers, threads=plan.threads, requests=plan.requests, guards=self._feed.arrays.guards)
        return Threads(self._feed.arrays, plan.threads, plan.requests) if plan.threads else self._own

    def close(self) -> None:
        """Stops everything; batches that were given out stay valid."""
        self._ahead.clear()
        self._held.clear()
        self._readers.close()
        self._delivery.close()
        self._ring.close()

    def batches(self, jobs: Iterator[Job]) -> Iterator[Batch]:
        """See ``Feed.run``."""
        waiting = next(jobs, None)
        while waiting is not None or self._ahead:
            waiting = self._begin(waiting, jobs)
            batch = self._finish(*self._ahead.popleft())
            waiting = self._begin(waiting, jobs)
            self._land_next()
            yield batch
            del batch  # else its slot would be in use for as long as the next one takes

    def _begin(self, waiting: Job | None, jobs: Iterator[Job]) -> Job | None:
        """Begins jobs while there is room for them, but always one; the first that was not begun."""
        while waiting is not None and len(self._ahead) < self._feed.prefetch:
            self._delivery.reclaim(wait=False)
            new = sum(part.key not in self._held for part in waiting.parts)
            if self._ahead and self._ring.free < new:
                break
            self._ahead.append((waiting, [self._part(waiting, part) for part in waiting.parts]))
            waiting = next(jobs, None)
        return waiting

    def _part(self, job: Job, part: Part) -> _Read:
        """A part that is held, or a new one that is now being read."""
        read = self._held.pop(part.key, None) or self._start(job, part)
        if not part.last:
            self._held[part.key] = read
        return read

    def _start(self, job: Job, part: Part) -> _Read:
        layout = self._feed.layout(job.bucket, part.rows.size)
        offset, memory = self._memory(layout)
        task = self._task(layout, part, offset)
        images = layout.of(memory)
        images.marks[:] = WAITING
        # Processes cannot reach private memory. That it is used at all takes a consumer that was given no copy of what it keeps.
        readers = self._readers if offset >= 0 else self._own
        return _Read(images, readers.start(task, images))

    def _memory(self, layout: Layout) -> tuple[int, np.ndarray]:
        """Offset in the ring and memory of a part; -1 and private memory where the ring has no room."""
        if layout.nbytes <= self._ring.slot_bytes:
            slot = self._ring.take()
            while slot is None and self._delivery.reclaim(wait=True):
                slot = self._ring.take()
            if slot is not None:
                return slot.offset, slot.memory
        return -1, self._pool.take((layout.nbytes,), "uint8")

    def _task(self, layout: Layout, part: Part, offset: int) -> Task:
        store, rows = self._feed.store, part.rows.reshape(-1)
        starts = part.starts.reshape(len(rows), -1).tolist()
        boxes = list(zip(rows.tolist(), starts))
        valid = [store.valid_address(*box) for box in boxes] if layout.has_valid else ()
        return Task(0, offset, layout, range(len(rows)), [store.address(*box) for box in boxes], valid)

    def _finish(self, job: Job, reads: list[_Read]) -> Batch:
        landed = [self._land(read) for read in reads]
        whole = self._delivery.join(landed, kept=not job.parts[0].last)
        del landed
        return self._delivery.hand(_batch(self._feed, job, whole))

    def _land(self, read: _Read) -> Landed:
        if read.landed is None:
            assert read.images is not None
            read.reading.wait()
            read.landed, read.images = self._delivery.land(read.images, self._feed.dates), None
        return read.landed

    def _land_next(self) -> None:
        """Begins the copy of the next batch where it is read already, so that the device need not wait for it."""
        if self._ahead and self._feed.device.type == "cuda":
            for read in self._ahead[0][1]:
                if read.landed is None and read.reading.done():
                    self._land(read)


def _on_a_server(store: Store) -> bool:
    """Whether any array lies behind a URL."""
    return "://" in store.location or bool(pc.any(pc.match_substring(store.index["array"], "://")).as_py())


def _delivery(ring: Ring, feed: Feed) -> Delivery:
    return Cuda(ring, feed.device) if feed.device.type == "cuda" else Host(ring, feed.prefetch, feed.device)


def _batch(feed: Feed, job: Job, whole: Landed) -> Batch:
    bucket = feed.buckets[job.bucket]
    rows = np.concatenate([part.rows.reshape(-1) for part in job.parts])
    origins = np.concatenate([part.starts.reshape(-1, part.starts.shape[-1]) for part in job.parts])
    return Batch(
        pixels=whole.pixels,
        valid=whole.valid,
        info=feed.facts.of(bucket, rows, origins),
        channels=bucket.channels,
        tile_ids=torch.from_numpy(job.tile_ids),
        epochs=torch.from_numpy(job.epochs),
        draws=torch.from_numpy(job.draws),
        rows=torch.from_numpy(rows),
        origins=torch.from_numpy(origins),
        slots=torch.from_numpy(job.slots),
    )
