"""A shard: its checked index, and the file as it is mapped into memory.

A mapping shows whatever becomes of its file, so each box looks at the file's entry before the first chunk and after the last (inode,
size, time of the last change, as they were when it was opened): about 2 us a look, no file descriptor. Checksums are verified the first
time a chunk is read; later changes show in the entry. A file cut short in the very microseconds of a read still ends the process (SIGBUS).
"""

from __future__ import annotations

import json
import math
import mmap
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store.codec import MISSING, Corrupt, FastLayout, decode, decode_index, index_bytes, view
from dinodomain.store.format import MANIFEST, PENDING
from dinodomain.store.pieces import Box, Cell, Piece

RESTORE = "restore the file from a copy, or ingest its sources into a new store"
_AGAIN = "open the store again; where nobody changed it on purpose, restore the file from a copy"
_TICK_NS, _COARSE_NS = 20 * 10**6, 10**9
"""Two changes of a file less than this apart may bear one time: most file systems count by clock ticks, some by seconds."""


def cells_of(layout: FastLayout) -> Cell:
    """Inner chunks per axis of a shard."""
    return tuple(outer // inner for outer, inner in zip(layout.grid.shard, layout.grid.chunk))


def damaged(name: str, problem: str) -> UserError:
    """The error of a file that is not what was written."""
    return UserError(name, problem, remedy=RESTORE)


class ShardIndex:
    """Where the inner chunks of a shard lie; checked.

    Args:
        tail: The encoded index, the last bytes of the shard.
        cells: Inner chunks per axis.
        end: Bytes before the index.
        name: Of the shard, for messages.

    Raises:
        UserError: It is damaged.
    """

    def __init__(self, tail: bytes | memoryview, cells: Sequence[int], *, end: int, name: str) -> None:
        try:
            self._spans = decode_index(tail, cells)
        except Corrupt as error:
            raise damaged(name, f"{error}; the file is truncated or altered") from error
        self.nbytes = int(self._spans.nbytes)
        offsets, lengths = self._spans[..., 0], self._spans[..., 1]
        present = (offsets != MISSING) | (lengths != MISSING)
        inside = (offsets <= end) & (lengths <= end) & (offsets + lengths <= end)
        if not np.all(inside | ~present):
            raise damaged(name, "its index points outside the file")

    def span(self, cell: Cell) -> tuple[int, int] | None:
        """Offset and length of an inner chunk; None where it holds only the fill value."""
        offset, length = self._spans[cell].tolist()
        return None if offset == MISSING and length == MISSING else (offset, length)


def put(data: memoryview, out: np.ndarray, part: Box, layout: FastLayout, *, verify: bool) -> None:
    """Decodes ``part`` of a stored inner chunk into ``out``: at once where that is the whole chunk and ``out`` is contiguous.

    Raises:
        Corrupt: It is not what was written.
    """
    if not layout.compressed:
        out[...] = view(data, layout, verify=verify)[part]
    elif out.shape == layout.grid.chunk and out.flags.c_contiguous:
        decode(data, out, layout, verify=verify)
    else:
        scratch = _scratch(layout)
        decode(data, scratch, layout, verify=verify)
        out[...] = scratch[part]


_thread = threading.local()


def _scratch(layout: FastLayout) -> np.ndarray:
    """Memory for one chunk, one buffer per thread however many arrays it reads."""
    shape, dtype = layout.grid.chunk, layout.dtype
    last: np.ndarray | None = getattr(_thread, "shaped", None)
    if last is not None and last.shape == shape and last.dtype == dtype:
        return last
    wanted = math.prod(shape) * dtype.itemsize
    found: np.ndarray | None = getattr(_thread, "scratch", None)
    if found is None or found.nbytes < wanted:
        found = _thread.scratch = np.empty(wanted, dtype=np.uint8)
    shaped: np.ndarray = found[:wanted].view(dtype).reshape(shape)
    _thread.shaped = shaped
    return shaped


def _settled(handle: int, name: str) -> os.stat_result:
    """The entry of a file, once its last change lies a tick back: a later one then shows."""
    for _ in range(100):
        entry = os.fstat(handle)
        if not 0 <= time.time_ns() - entry.st_mtime_ns < _TICK_NS:
            return entry
        time.sleep(_TICK_NS / 2 / 1e9)
    raise UserError(name, "is being written to", remedy="wait until that is done, and open the store again")


class Shard:
    """A mapped shard.

    Args:
        path: The file.
        layout: Layout of its array.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged.
    """

    def __init__(self, path: Path, layout: FastLayout) -> None:
        self._name, self._layout = str(path), layout
        cells = cells_of(layout)
        tail = index_bytes(cells)
        with open(path, "rb") as handle:
            entry = _settled(handle.fileno(), self._name)
            if entry.st_size < tail:
                raise damaged(self._name, f"{entry.st_size} bytes, shorter than its index of {tail}")
            self._data = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        self._entry, self._changed_ns = (entry.st_ino, entry.st_size, entry.st_mtime_ns), entry.st_mtime_ns
        end = entry.st_size - tail
        # The index stays where it is, in the mapping: thousands of open shards cost next to nothing.
        self._index = ShardIndex(self._data[end : entry.st_size], cells, end=end, name=self._name)
        self._verified = np.zeros(cells, dtype=bool)

    def read(self, found: Sequence[Piece], out: np.ndarray) -> None:
        """Decodes pieces of a box into it; chunks that are not stored give the fill value.

        Raises:
            UserError: The file is damaged, or is not the one that was opened.
        """
        first = found[0][0]
        self._check(first)
        lasting = time.time_ns() - self._changed_ns > _COARSE_NS
        for cell, target, part in found:
            span = self._index.span(cell)
            if span is None:
                out[target] = self._layout.fill
            else:
                self._decode(cell, span, out[target], part, lasting=lasting)
        self._check(first)

    def _decode(self, cell: Cell, span: tuple[int, int], out: np.ndarray, part: Box, *, lasting: bool) -> None:
        verify = not self._verified[cell]
        try:
            put(self._data[span[0] : span[0] + span[1]], out, part, self._layout, verify=verify)
        except Corrupt as error:
            self._check(cell)
            raise damaged(self._name, f"chunk {cell} cannot be read: {error}") from error
        if verify and lasting:
            self._verified[cell] = True

    def _check(self, cell: Cell) -> None:
        """Raises unless the entry in the folder is still that of the mapped file."""
        try:
            entry = os.stat(self._name)
        except FileNotFoundError:
            raise self._changed(cell, "was removed") from None
        except OSError as error:
            raise self._changed(cell, f"cannot be looked at ({error.strerror})") from error
        if (entry.st_ino, entry.st_size, entry.st_mtime_ns) == self._entry:
            return
        inode, size, _ = self._entry
        if entry.st_ino != inode:
            raise self._changed(cell, "was replaced by another")
        raise self._changed(cell, f"was truncated from {size} to {entry.st_size} bytes" if entry.st_size < size else "was written to")

    def _changed(self, cell: Cell, what: str) -> UserError:
        problem = f"chunk {cell} cannot be read: the file {what} while it was open"
        if any((folder / PENDING / MANIFEST).is_file() for folder in Path(self._name).parents):
            problem += "; sources are being withdrawn from this store"
        return UserError(self._name, problem, remedy=_AGAIN)


class Guard:
    """Notices that sources were withdrawn from a store after it was opened: shards that are opened later are other ones by then.

    Reader processes are sent the guard of whoever opened the store: one of their own would take what they find for what was opened.

    Args:
        root: Folder of the store.
        manifest: That of the opened store; None takes the one that is there now.
    """

    def __init__(self, root: Path, manifest: Mapping[str, object] | None = None) -> None:
        # A withdrawal holds from the moment its tables are there, whatever is left to be done to the pixels.
        self._name, self._manifests = str(root), (root / PENDING / MANIFEST, root / MANIFEST)
        self._entry: tuple[int, int, int] | None = None
        self._withdrawn: object = None if manifest is None else manifest.get("withdrawn")
        if manifest is None:
            self._withdrawn = self._read()

    def check(self) -> None:
        """Called before a shard is opened.

        Raises:
            UserError: Sources were withdrawn.
        """
        entry = self._look()
        if entry is not None and entry == self._entry:
            return
        if self._read() != self._withdrawn:
            raise UserError(self._name, "sources were withdrawn from this store while it was open", remedy="open it again")
        self._entry = entry  # sources were added, which leaves the arrays that were there alone

    def _look(self) -> tuple[int, int, int] | None:
        for path in self._manifests:
            try:
                entry = os.stat(path)
            except OSError:
                continue
            return entry.st_ino, entry.st_size, entry.st_mtime_ns
        return None

    def _read(self) -> object:
        for path in self._manifests:
            try:
                return json.loads(path.read_bytes()).get("withdrawn")
            except (OSError, ValueError, AttributeError):
                continue
        return self._withdrawn  # said by the shard itself where the store is gone
