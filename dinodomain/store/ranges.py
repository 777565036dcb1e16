"""Reads boxes of arrays on servers: the index of a shard once, then as few ranges as is sensible, many in flight.

The chunks of a box that lie in one shard within ``GAP`` bytes of each other come with one request; a tile of one chunk is one request of
just its bytes. Each range is asked for on the condition that the object is still the one whose index was read, and each chunk's checksum is
verified, so pixels of two versions never mix. Requests run in threads; decoding happens in the calling thread, as answers arrive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from typing import TypeVar

import numpy as np

from dinodomain.store.cache import Cache
from dinodomain.store.codec import Corrupt, FastLayout, index_bytes
from dinodomain.store.pieces import Box, Cell, Piece, outside_boxes, pieces
from dinodomain.store.place import shown
from dinodomain.store.reader import ZarrArray, layout_of
from dinodomain.store.remote import Objects, Version
from dinodomain.store.shard import ShardIndex, cells_of, damaged, put

GAP, LONGEST = 256 * 2**10, 8 * 2**20
"""Bytes between two chunks that are rather read than asked for apart; bytes of a request of several chunks."""

_ARRAYS, _SHARDS, _INDEX_BYTES = 4096, 4096, 32 * 2**20

Item = tuple[str, Sequence[int], np.ndarray]
"""Location of an array, start of a box, where it goes."""

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A shard whose index was read.

    Attributes:
        location: The object.
        layout: Layout of its array.
        index: Its index.
        version: Which object it was.
    """

    location: str
    layout: FastLayout
    index: ShardIndex
    version: Version


@dataclass(slots=True)
class Span:
    """One request.

    Attributes:
        shard: The object.
        start: First byte.
        stop: Byte after the last.
        parts: Chunks in it: (first byte, cell, destination, part of the chunk).
    """

    shard: RemoteShard
    start: int
    stop: int
    parts: list[tuple[int, int, Cell, np.ndarray, Box]] = field(default_factory=list)

    @property
    def what(self) -> str:
        """The chunks, for messages."""
        more = len(self.parts) - 1
        return f"chunk {self.parts[0][2]}" + (f" or one of {more} others" if more else "")

    def fetch(self, objects: Objects) -> memoryview:
        """The bytes."""
        return objects.span(self.shard.location, self.start, self.stop, self.shard.version, self.what)

    def decode(self, data: memoryview) -> None:
        """Puts every chunk into its place."""
        for start, stop, cell, out, part in self.parts:
            try:
                put(data[start - self.start : stop - self.start], out, part, self.shard.layout, verify=True)
            except Corrupt as error:
                raise damaged(shown(self.shard.location), f"chunk {cell} cannot be read: {error}") from error


class RemoteReads:
    """Boxes of arrays on servers; safe in threads, which share the requests in flight.

    Args:
        requests: Most requests in flight.
    """

    def __init__(self, requests: int) -> None:
        self._requests, self._objects, self._opening = requests, Objects(), Lock()
        self._arrays: Cache[FastLayout | ZarrArray | None] = Cache(_ARRAYS)
        self._shards: Cache[RemoteShard | None] = Cache(_SHARDS, most=_INDEX_BYTES, cost=lambda shard: shard.index.nbytes if shard else 0)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._requests, thread_name_prefix="ranges")

    def exists(self, location: str) -> bool:
        """Whether an array lies there."""
        return self._all(self._arrays, [location], self._open_array)[location] is not None

    def read_many(self, items: Sequence[Item]) -> None:
        """Fills every buffer; what lies outside an array is 0.

        Raises:
            UserError: An object is missing, damaged, another one by now, or the server does not give it.
        """
        arrays = self._all(self._arrays, {location for location, _, _ in items}, self._open_array)
        wanted: list[tuple[tuple[str, Cell], FastLayout, list[Piece], np.ndarray]] = []
        for location, start, out in items:
            array = arrays[location]
            if array is None:
                raise damaged(shown(location), "holds no zarr.json")
            if isinstance(array, ZarrArray):
                array.read(start, out)
                continue
            assert out.dtype == array.dtype, f"{out.dtype} buffer for {array.dtype} pixels"
            wanted += [((location, key), array, found, out) for key, found in pieces(array.grid, start, out.shape).items()]
        shards = self._all(self._shards, {key for key, *_ in wanted}, partial(self._open_shard, arrays))
        self._run([span for key, layout, found, out in wanted for span in spans(shards[key], layout, found, out)])
        for location, start, out in items:
            layout = arrays[location]
            for outside in outside_boxes(start, out.shape, layout.grid.shape) if isinstance(layout, FastLayout) else ():
                out[outside] = 0

    def close(self) -> None:
        """Ends the threads, once their requests are through."""
        if "_pool" in self.__dict__:
            self._pool.shutdown(cancel_futures=True)

    def _run(self, wanted: Sequence[Span]) -> None:
        """Fetches and decodes; at most ``requests`` answers are held."""
        if len(wanted) == 1:
            wanted[0].decode(wanted[0].fetch(self._objects))
            return
        rest, flying = iter(wanted), dict[Future[memoryview], Span]()
        try:
            while True:
                for span in itertools.islice(rest, self._requests - len(flying)):
                    flying[self._pool.submit(span.fetch, self._objects)] = span
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    flying.pop(future).decode(future.result())
        finally:
            for future in flying:
                future.cancel()

    def _all(self, cache: Cache[_V], keys: Collection[_K], make: Callable[[_K], _V]) -> dict[_K, _V]:
        """The values of all keys; missing ones are made side by side, and by one thread only."""
        found = {key: cache.get(key, partial(make, key)) for key in keys if key in cache}
        if len(found) < len(keys):
            with self._opening:
                missing = [key for key in keys if key not in found]
                fresh = [key for key in missing if key not in cache]
                made = dict(zip(fresh, self._pool.map(make, fresh) if len(fresh) > 1 else map(make, fresh)))
                for key in missing:
                    found[key] = cache.get(key, partial(made.__getitem__ if key in made else make, key))
        return found

    def _open_array(self, location: str) -> FastLayout | ZarrArray | None:
        metadata = self._objects.whole_or_none(f"{location}/zarr.json")
        if metadata is None:
            return None
        layout = layout_of(location, metadata)
        if layout is not None:
            return layout
        source, path = self._objects.zarr_source(location)
        return ZarrArray(source, location, path)

    def _open_shard(self, arrays: dict[str, FastLayout | ZarrArray | None], key: tuple[str, Cell]) -> RemoteShard | None:
        layout, location = arrays[key[0]], "/".join((key[0], "c", *map(str, key[1])))
        assert isinstance(layout, FastLayout), "only those have shards"
        cells = cells_of(layout)
        length = index_bytes(cells)
        try:
            tail, version = self._objects.tail(location, length)
        except FileNotFoundError:
            if layout.complete:
                raise damaged(shown(location), "the object is missing") from None
            return None
        if tail.nbytes < length:
            raise damaged(shown(location), f"{version.size} bytes, shorter than its index of {length}")
        index = ShardIndex(bytes(tail), cells, end=version.size - length, name=shown(location))
        return RemoteShard(location, layout, index, version)


def spans(shard: RemoteShard | None, layout: FastLayout, found: Iterable[Piece], out: np.ndarray) -> Iterator[Span]:
    """The requests that give some chunks of a shard; those that are not stored are filled at once."""
    stored = []
    for cell, target, part in found:
        span = shard.index.span(cell) if shard else None
        if span is None:
            out[target] = layout.fill
        else:
            stored.append((span[0], sum(span), cell, out[target], part))
    if shard is None:
        return
    current: Span | None = None
    for piece in sorted(stored, key=lambda piece: piece[:2]):
        if current is None or piece[0] - current.stop > GAP or piece[1] - current.start > LONGEST:
            if current is not None:
                yield current
            current = Span(shard, piece[0], piece[1])
        current.stop = max(current.stop, piece[1])
        current.parts.append(piece)
    if current is not None:
        yield current
