"""Who reads: threads of this process. Reader processes, with the same interface, are in ``crew.py``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Protocol

from dinodomain.loader.task import Images, Task, read_images, units
from dinodomain.store import OpenArrays

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""A wait that is longer than this is told in the log, again and again."""


class Reading(Protocol):
    """A task that somebody works on."""

    def done(self) -> bool:
        """Whether every image is in memory, so that ``wait`` returns at once; false where reading failed. Never blocks."""
        ...

    def wait(self) -> None:
        """Returns when every image is in memory.

        Raises:
            UserError: A file is damaged.
        """
        ...


class Readers(Protocol):
    """Something that works on tasks, several at a time, in the order in which they were begun."""

    def start(self, task: Task, images: Images) -> Reading:
        """Begins a task, whose memory is ``images``."""
        ...

    def close(self) -> None:
        """Stops whatever is still being read."""
        ...


class Inline:
    """Reads in the calling thread, when a task is waited for."""

    def __init__(self, arrays: OpenArrays) -> None:
        self._arrays = arrays

    def start(self, task: Task, images: Images) -> Reading:
        """See ``Readers``."""
        return _Later(lambda: read_images(self._arrays, task, range(len(task.images)), images))

    def close(self) -> None:
        """Nothing goes on."""


class Threads:
    """Decode threads of this process; the decoder releases the interpreter lock.

    Args:
        arrays: Open arrays of the store.
        threads: Their number.
        requests: Images that a thread reads at a time where they lie on a server.
    """

    def __init__(self, arrays: OpenArrays, threads: int, requests: int) -> None:
        self._arrays, self._threads, self._requests = arrays, threads, requests
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dinodomain-decode")

    def start(self, task: Task, images: Images) -> Reading:
        """See ``Readers``. Threads are handed a few images at a time, so that the queue costs little."""
        parts = units(task, max(1, len(task.images) // (4 * self._threads)), self._requests)
        return _Futures([self._pool.submit(read_images, self._arrays, task, part, images) for part in parts], task)

    def close(self) -> None:
        """See ``Readers``."""
        self._pool.shutdown(cancel_futures=True)


class _Later:
    """A reading that happens when it is waited for."""

    def __init__(self, read: Callable[[], None]) -> None:
        self._read: Callable[[], None] | None = read

    def done(self) -> bool:
        return self._read is None

    def wait(self) -> None:
        if self._read is not None:
            self._read()
            self._read = None


class _Futures:
    """A reading by threads."""

    def __init__(self, futures: list[Future[None]], task: Task) -> None:
        self._futures, self._task = futures, task

    def done(self) -> bool:
        return all(future.done() and future.exception() is None for future in self._futures)

    def wait(self) -> None:
        while (waited := wait_for(self._futures, timeout=PATIENCE_SECONDS)).not_done:
            left = f"{len(waited.not_done)} of {len(self._futures)} reads"
            _log.warning("waiting for %s for %.0f s, among them %s", left, PATIENCE_SECONDS, self._task.addresses[0][0])
        for future in self._futures:
            future.result()
