"""The memory that readers fill and batches lie in: slots of equal size in one mapping, handed out again and again.

Fresh memory costs a page fault per 4 KiB, which at these rates is as dear as decoding; a slot's pages are touched once. A slot comes back
by itself when the last array or tensor over it is gone. Shared rings are an anonymous file (``memfd_create``) that reader processes map
by their inherited descriptor, or, where there are none or a folder was asked for, a file there that has no name: nothing is left behind
whoever dies. Not ``multiprocessing.shared_memory``: its tracker unlinks segments that are still in use. No torch.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import tempfile
import weakref
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot that was taken out of a ring; whoever refers to ``memory``, or to a view of it, keeps it.

    Attributes:
        offset: Its first byte in the ring.
        memory: [slot_bytes] uint8, of undefined content.
    """

    offset: int
    memory: np.ndarray


class Ring:
    """Slots of one size in one mapping; see the module.

    Args:
        slots: Number of slots. Only those that were used take memory.
        slot_bytes: Size of each; rounded up to whole pages.
        shared: Whether other processes are to map it, through ``descriptor``.
        folder: Where the shared file lies instead of in anonymous memory.

    Raises:
        UserError: The folder has no room for it, or the system does not give the memory.
    """

    def __init__(self, slots: int, slot_bytes: int, *, shared: bool, folder: str | None = None) -> None:
        self.slots, self.slot_bytes = slots, -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.nbytes = slots * self.slot_bytes
        self.descriptor = _shared_file(self.nbytes, folder) if shared else -1
        self._close = weakref.finalize(self, os.close, self.descriptor) if shared else None
        self._mapping = self._mapped()
        # The slot given back last is taken first: its pages are warm, and slots that are never needed take no memory.
        self._free = list(range(slots))[::-1]

    def _mapped(self) -> mmap.mmap:
        try:
            return mmap.mmap(self.descriptor, self.nbytes)
        except OSError as error:
            self.close()
            what = f"{self.slots} slots of {self.slot_bytes / 2**20:.4g} MiB to read batches into are not to be had ({error.strerror})"
            raise UserError("loader.batch", what, remedy="lower loader.batch, loader.prefetch or loader.tile") from error

    @property
    def free(self) -> int:
        """Number of slots that could be taken now."""
        return len(self._free)

    def take(self) -> Slot | None:
        """A slot, or None where all are in use."""
        try:
            number = self._free.pop()  # atomic: collection of garbage may give a slot back at any moment, in any thread
        except IndexError:
            return None
        offset = number * self.slot_bytes
        # Made from the mapping itself: views of an array refer to the first array below them, which must be this one.
        memory = np.frombuffer(self._mapping, dtype=np.uint8, count=self.slot_bytes, offset=offset)
        weakref.finalize(memory, self._free.append, number).atexit = False
        return Slot(offset, memory)

    def whole(self) -> np.ndarray:
        """All of it as [nbytes] uint8."""
        return np.frombuffer(self._mapping, dtype=np.uint8)

    def close(self) -> None:
        """Closes the descriptor; memory goes back to the system when the last slot does."""
        if self._close is not None:
            self._close()


def _shared_file(nbytes: int, folder: str | None) -> int:
    """Descriptor of a file of that length without a name."""
    if folder is None:
        try:
            descriptor = os.memfd_create("dinodomain-ring")
        except (AttributeError, OSError):  # not this system, or not in this sandbox
            return _unnamed_file(nbytes, tempfile.gettempdir())
        os.ftruncate(descriptor, nbytes)
        return descriptor
    return _unnamed_file(nbytes, folder)


def _unnamed_file(nbytes: int, folder: str) -> int:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if sys.platform == "linux":
                # A full disk is said now; met later, a write to the mapping would kill the process.
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                os.ftruncate(file.fileno(), nbytes)
            return os.dup(file.fileno())
    except OSError as error:
        what = f"{folder} has no room for {nbytes / 2**20:.0f} MiB" if error.errno == errno.ENOSPC else f"{folder}: {error.strerror}"
        remedy = "name a folder in memory or on a local disk, lower loader.batch or loader.prefetch, or set loader.workers=0"
        raise UserError("loader.ring_dir", what, remedy=remedy) from error


class BufferPool:
    """Private memory of any size that comes back by itself, for batches that do not lie in a ring.

    Args:
        limit: Number of free buffers that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._free: list[np.ndarray] = []
        self._limit = limit

    def take(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array of undefined content; its memory returns when nothing refers to it, to a view of it or to a tensor made from it."""
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = self._fitting(wanted)
        memory = np.frombuffer(raw.data, dtype=np.uint8, count=wanted)
        weakref.finalize(memory, self._give, raw).atexit = False
        return memory.view(dtype).reshape(shape)

    def _fitting(self, wanted: int) -> np.ndarray:
        # Single pops and appends are atomic, which matters: garbage collection may call _give at any point of this loop.
        for _ in range(len(self._free)):
            try:
                raw = self._free.pop(0)
            except IndexError:
                break
            if wanted <= raw.nbytes <= 2 * wanted:
                return raw
            self._give(raw)
        return np.empty(wanted, dtype=np.uint8)

    def _give(self, raw: np.ndarray) -> None:
        if len(self._free) < self._limit:
            self._free.append(raw)
