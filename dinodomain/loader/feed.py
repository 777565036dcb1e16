"""Decodes batches ahead of use with plain threads (the decoder releases the interpreter lock) and hands them over as tensors.

Buffers are recycled: fresh memory costs a page fault per 4 KiB, which at these rates is as dear as decoding. On a CPU a buffer comes back
when the last tensor over it is gone; for CUDA, torch's pinned-memory cache keeps it until the copy's event has passed.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dinodomain.loader.tiles import Bucket, Tiles
from dinodomain.store import Store
from dinodomain.types import Batch, TileInfo

_INFO = ("scale", "offset", "nodata", "low", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Tiles to be read as one batch, all of one bucket.

    Attributes:
        tiles: [B] int64 indexes into ``Tiles``.
        epochs: [B] int64.
        draws: [B] int64.
        slots: [B] int64.
    """

    tiles: np.ndarray
    epochs: np.ndarray
    draws: np.ndarray
    slots: np.ndarray


class BufferPool:
    """Host memory that comes back by itself.

    Args:
        limit: Number of free buffers that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._free: deque[np.ndarray] = deque()
        self._limit = limit

    def take(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array of undefined content; its memory returns when nothing refers to it or to a tensor made from it."""
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = self._fitting(wanted)
        array: np.ndarray = raw[:wanted].view(dtype).reshape(shape)
        weakref.finalize(array, self._give, raw).atexit = False
        return array

    def _fitting(self, wanted: int) -> np.ndarray:
        # Single pops and appends are atomic, which matters: garbage collection may call _give at any point of this loop.
        for _ in range(len(self._free)):
            try:
                raw = self._free.popleft()
            except IndexError:
                break
            if wanted <= raw.nbytes <= 2 * wanted:
                return raw
            self._give(raw)
        return np.empty(wanted, dtype=np.uint8)

    def _give(self, raw: np.ndarray) -> None:
        if len(self._free) < self._limit:
            self._free.append(raw)


class SourceFacts:
    """Per-source values of a bucket that every batch needs, as arrays.

    Args:
        store: The store.
        rows: Rows of the index that the bucket draws from.
    """

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._rows = np.unique(rows)
        table = store.index.take(self._rows)
        self._values = {name: _matrix(table, name) for name in (*_INFO, "spacing", "shape")}
        paths = {path: row for row, path in zip(self._rows.tolist(), table["array"].to_pylist())}
        self.has_valid = any(store.has_valid(row) for row in paths.values())

    def of(self, name: str, rows: np.ndarray) -> np.ndarray:
        """[B, k] values of one column for rows of a batch."""
        found: np.ndarray = self._values[name][np.searchsorted(self._rows, rows)]
        return found


def _matrix(table: object, name: str) -> np.ndarray:
    """A list column of equal lengths as [n, k] float32 (``shape`` as int64)."""
    column = table[name].combine_chunks()  # type: ignore[index] # pyarrow is untyped
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    found: np.ndarray = values.astype(np.int64 if name == "shape" else np.float32)
    return found


class Feed:
    """Turns jobs into batches, in order.

    Args:
        store: An opened store.
        tiles: Its tile list.
        workers: Decode threads; 0 decodes in the calling thread.
        prefetch: Batches in flight.
        device: Where batches go.
    """

    def __init__(self, store: Store, tiles: Tiles, *, workers: int, prefetch: int, device: str | torch.device) -> None:
        self._store, self._tiles = store, tiles
        self._workers, self._prefetch = workers, prefetch
        self._device = torch.device(device)
        self._pool = BufferPool(prefetch + 2)
        self._facts: dict[int, SourceFacts] = {}
        self._stream = _copy_stream(self._device)

    def run(self, jobs: Iterable[Job]) -> Iterator[Batch]:
        """Batches of ``jobs``, read ahead; closing the iterator stops the threads.

        Raises:
            UserError: A file of the store is damaged.
        """
        queue = iter(jobs)
        if self._workers == 0:
            yield from (self._finish(self._start(job, None)) for job in queue)
            return
        threads = ThreadPoolExecutor(self._workers, thread_name_prefix="dinodomain-decode")
        try:
            ahead = deque(self._start(job, threads) for job in islice(queue, self._prefetch))
            while ahead:
                batch = self._finish(ahead.popleft())
                ahead.extend(self._start(job, threads) for job in islice(queue, 1))
                yield batch
        finally:
            threads.shutdown(cancel_futures=True)

    def _start(self, job: Job, threads: ThreadPoolExecutor | None) -> _Reading:
        """Hands the tiles of a job to the threads, a few tiles a task so that the queue costs little."""
        number = int(self._tiles.bucket[job.tiles[0]])
        reading = _Reading(job, self._tiles.buckets[number], self._facts_of(number), self._buffers(number, len(job.tiles)), [])
        if threads is None:
            self._decode(reading, range(len(job.tiles)))
            return reading
        step = max(1, len(job.tiles) // (4 * self._workers))
        parts = (range(i, min(i + step, len(job.tiles))) for i in range(0, len(job.tiles), step))
        reading.futures.extend(threads.submit(self._decode, reading, part) for part in parts)
        return reading

    def _facts_of(self, number: int) -> SourceFacts:
        if number not in self._facts:
            self._facts[number] = SourceFacts(self._store, self._tiles.rows[self._tiles.members[number]])
        return self._facts[number]

    def _buffers(self, number: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        bucket, facts = self._tiles.buckets[number], self._facts_of(number)
        pixels = self._buffer((count, 1, len(bucket.channels), *bucket.extent), bucket.dtype)
        return pixels, self._buffer((count, 1, *bucket.extent), "uint8") if facts.has_valid else None

    def _buffer(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if self._stream is None:
            return self._pool.take(shape, dtype)
        pinned: np.ndarray = torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True).numpy()
        return pinned

    def _decode(self, reading: _Reading, part: range) -> None:
        pixels, valid = reading.buffers
        for i in part:
            tile = reading.job.tiles[i]
            row, start = int(self._tiles.rows[tile]), self._tiles.starts[tile].tolist()
            self._store.read_box(row, start, pixels[i, 0])
            if valid is not None:
                self._store.read_valid(row, start, valid[i, 0])

    def _finish(self, reading: _Reading) -> Batch:
        for future in reading.futures:
            future.result()
        return self._to_device(self._batch(reading))

    def _batch(self, reading: _Reading) -> Batch:
        job, tiles = reading.job, self._tiles
        rows, starts = tiles.rows[job.tiles], tiles.starts[job.tiles]
        pixels, valid = reading.buffers
        return Batch(
            pixels=torch.from_numpy(pixels),
            valid=None if valid is None else torch.from_numpy(valid),
            info=_tile_info(reading.facts, rows, starts, reading.bucket),
            channels=reading.bucket.channels,
            tile_ids=torch.from_numpy(tiles.tile_ids[job.tiles]),
            epochs=torch.from_numpy(job.epochs),
            draws=torch.from_numpy(job.draws),
            rows=torch.from_numpy(rows),
            origins=torch.from_numpy(starts),
            slots=torch.from_numpy(job.slots),
        )

    def _to_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        if self._stream is None:
            return _moved(batch, self._device)
        # A stream of its own lets the copy run while earlier steps still compute.
        with torch.cuda.stream(self._stream):
            moved = _moved(batch, self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in _tensors(moved):
            tensor.record_stream(current)
        return moved


@dataclass(frozen=True, slots=True)
class _Reading:
    """A batch whose tiles are being decoded."""

    job: Job
    bucket: Bucket
    facts: SourceFacts
    buffers: tuple[np.ndarray, np.ndarray | None]
    futures: list[Future[None]]


def _copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _tile_info(facts: SourceFacts, rows: np.ndarray, starts: np.ndarray, bucket: Bucket) -> TileInfo:
    ends = np.stack([-starts, facts.of("shape", rows)[:, 1:] - starts], axis=-1)
    box = np.clip(ends, 0, np.asarray(bucket.extent)[None, :, None])
    values = {name: torch.from_numpy(facts.of(name, rows)) for name in (*_INFO, "spacing")}
    return TileInfo(**values, valid_box=torch.from_numpy(box))


def _moved(batch: Batch, device: torch.device) -> Batch:
    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, TileInfo):
            return TileInfo(**{item.name: move(getattr(value, item.name)) for item in fields(value)})  # type: ignore[arg-type]
        return value

    return Batch(**{item.name: move(getattr(batch, item.name)) for item in fields(batch)})  # type: ignore[arg-type]


def _tensors(record: Batch | TileInfo) -> Iterator[Tensor]:
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, TileInfo):
            yield from _tensors(value)
