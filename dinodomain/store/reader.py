"""Reads boxes of one array straight into a given buffer.

Direct: the shard is memory-mapped, its index checked once (crc32c, bounds), each inner chunk's checksum verified the first time it is
read, and a chunk that lies whole and contiguous in the destination is decoded in place. Any other codec or grid goes through zarr-python,
with the same results. Boxes may reach outside the array; those pixels are 0.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store.codec import MISSING, Corrupt, FastLayout, decode, decode_index, index_bytes, parse_layout, view

Box = tuple[slice, ...]
_V = TypeVar("_V")


class ArrayReader(Protocol):
    """One array on disk.

    Attributes:
        shape: Array shape.
    """

    shape: tuple[int, ...]

    def read(self, start: Sequence[int], out: np.ndarray) -> None:
        """Fills ``out`` with the box that begins at ``start``.

        Raises:
            UserError: A file is damaged.
        """
        ...


class Cache(Generic[_V]):
    """The values used last, made on demand; safe in threads.

    Args:
        limit: Number of values that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._values: OrderedDict[Any, _V] = OrderedDict()

    def get(self, key: Any, make: Callable[[], _V]) -> _V:
        """The value of ``key``. Two threads may both make a missing one; one of the two results is kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            self._values[key] = made
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return made


class Shard:
    """A memory-mapped shard with its checked index.

    Args:
        path: The file.
        layout: Layout of its array.
    """

    def __init__(self, path: Path, layout: FastLayout) -> None:
        self.path, self._layout = path, layout
        cells = tuple(outer // inner for outer, inner in zip(layout.grid.shard, layout.grid.chunk))
        tail = index_bytes(cells)
        with open(path, "rb") as handle:
            size = handle.seek(0, 2)
            if size < tail:
                raise _damaged(path, f"{size} bytes, shorter than its index of {tail}")
            # A mapping whose bounds were checked cannot fault later: finished shards are never rewritten in place.
            self._data = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            self._index = decode_index(bytes(self._data[size - tail :]), cells)
        except Corrupt as error:
            raise _damaged(path, f"{error}; the file is truncated or altered") from error
        self._check_bounds(size - tail)
        self._verified = np.zeros(cells, dtype=bool)

    def _check_bounds(self, end: int) -> None:
        offsets, lengths = self._index[..., 0], self._index[..., 1]
        present = (offsets != MISSING) | (lengths != MISSING)
        inside = (offsets <= end) & (lengths <= end) & (offsets + lengths <= end)
        if not np.all(inside | ~present):
            raise _damaged(self.path, "its index points outside the file")

    def read(self, cell: tuple[int, ...], out: np.ndarray, part: Box) -> bool:
        """Copies ``part`` of the inner chunk at ``cell`` of this shard into ``out``; False, with ``out`` untouched, where it is missing."""
        offset, length = (int(value) for value in self._index[cell])
        if offset == MISSING and length == MISSING:
            return False
        try:
            self._copy(self._data[offset : offset + length], out, part, verify=not self._verified[cell])
        except Corrupt as error:
            raise _damaged(self.path, f"chunk {cell} cannot be read: {error}") from error
        self._verified[cell] = True
        return True

    def _copy(self, data: memoryview, out: np.ndarray, part: Box, *, verify: bool) -> None:
        if not self._layout.compressed:
            out[...] = view(data, self._layout, verify=verify)[part]
        elif out.shape == self._layout.grid.chunk and out.flags.c_contiguous:
            decode(data, out, self._layout, verify=verify)
        else:
            scratch = _scratch(self._layout)
            decode(data, scratch, self._layout, verify=verify)
            out[...] = scratch[part]


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(str(path), problem, remedy="restore the file from a copy, or ingest its source again")


_thread = threading.local()


def _scratch(layout: FastLayout) -> np.ndarray:
    """Memory for one chunk, one buffer per thread however many arrays it reads."""
    wanted = math.prod(layout.grid.chunk) * layout.dtype.itemsize
    found: np.ndarray | None = getattr(_thread, "scratch", None)
    if found is None or found.nbytes < wanted:
        found = _thread.scratch = np.empty(wanted, dtype=np.uint8)
    return found[:wanted].view(layout.dtype).reshape(layout.grid.chunk)


class DirectArray:
    """The fast reader of one array; safe in threads.

    Args:
        path: Folder of the array.
        layout: Its layout.
        shards: Cache of open shards, shared by all arrays of a store.
    """

    def __init__(self, path: Path, layout: FastLayout, shards: Cache[Shard | None]) -> None:
        self.shape = layout.grid.shape
        self._path, self._layout, self._shards = path, layout, shards
        grid = layout.grid
        self._per_shard = tuple(outer // inner for outer, inner in zip(grid.shard, grid.chunk))

    def read(self, start: Sequence[int], out: np.ndarray) -> None:
        """See ``ArrayReader``."""
        assert out.dtype == self._layout.dtype, f"{out.dtype} buffer for {self._layout.dtype} pixels"
        stop = [begin + size for begin, size in zip(start, out.shape)]
        for cell in self._cells(start, stop):
            self._read_chunk(cell, start, stop, out)
        for outside in outside_boxes(start, out.shape, self.shape):
            out[outside] = 0

    def _cells(self, start: Sequence[int], stop: Sequence[int]) -> Iterator[tuple[int, ...]]:
        sides, sizes = self._layout.grid.chunk, self.shape
        ranges = [range(max(a, 0) // n, -(-min(b, size) // n)) for a, b, n, size in zip(start, stop, sides, sizes)]
        return itertools.product(*ranges)

    def _read_chunk(self, cell: tuple[int, ...], start: Sequence[int], stop: Sequence[int], out: np.ndarray) -> None:
        spans = [(i * n, (i + 1) * n) for i, n in zip(cell, self._layout.grid.chunk)]
        target = out[tuple(slice(max(low, a) - a, min(high, b) - a) for (low, high), a, b in zip(spans, start, stop))]
        part = tuple(slice(max(low, a) - low, min(high, b) - low) for (low, high), a, b in zip(spans, start, stop))
        key = tuple(i // n for i, n in zip(cell, self._per_shard))
        shard = self._shards.get((self._path, key), lambda: self._open(key))
        if shard is None or not shard.read(tuple(i % n for i, n in zip(cell, self._per_shard)), target, part):
            target[...] = self._layout.fill

    def _open(self, key: tuple[int, ...]) -> Shard | None:
        path = self._path.joinpath("c", *(str(i) for i in key))
        try:
            return Shard(path, self._layout)
        except FileNotFoundError:
            if self._layout.complete:
                raise _damaged(path, "the file is missing") from None
            return None


class ZarrArray:
    """The plain twin of ``DirectArray``: any array that zarr-python reads.

    Args:
        path: Folder of the array.
    """

    def __init__(self, path: Path) -> None:
        import zarr  # slow to import, and a store that this package wrote never needs it

        self._array = zarr.open_array(str(path), mode="r")
        self.shape = tuple(self._array.shape)

    def read(self, start: Sequence[int], out: np.ndarray) -> None:
        """See ``ArrayReader``."""
        low = [min(max(begin, 0), size) for begin, size in zip(start, self.shape)]
        high = [max(min(begin + n, size), least) for begin, n, size, least in zip(start, out.shape, self.shape, low)]
        target = out[tuple(slice(a - begin, b - begin) for a, b, begin in zip(low, high, start))] if low != high else None
        if target is not None and target.size:
            target[...] = self._array[tuple(slice(a, b) for a, b in zip(low, high))]
        for outside in outside_boxes(start, out.shape, self.shape):
            out[outside] = 0


def outside_boxes(start: Sequence[int], extent: Sequence[int], shape: Sequence[int]) -> Iterator[Box]:
    """Parts of a box of ``extent`` at ``start`` that lie outside an array of ``shape``, in box coordinates; they may overlap."""
    for axis, (begin, size, whole) in enumerate(zip(start, extent, shape)):
        lead = (slice(None),) * axis
        if begin < 0:
            yield (*lead, slice(0, min(-begin, size)))
        if begin + size > whole:
            yield (*lead, slice(max(whole - begin, 0), size))


def open_array(path: Path, shards: Cache[Shard | None]) -> ArrayReader:
    """The fastest reader for the array in ``path``.

    Raises:
        UserError: There is none, or its metadata is damaged.
    """
    try:
        metadata = json.loads((path / "zarr.json").read_bytes())
        layout = parse_layout(metadata)
    except FileNotFoundError:
        raise _damaged(path, "holds no zarr.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path / "zarr.json", f"is not Zarr v3 metadata ({error!r})") from error
    return ZarrArray(path) if layout is None else DirectArray(path, layout, shards)
