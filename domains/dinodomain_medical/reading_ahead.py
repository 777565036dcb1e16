"""Headers of many files, read ahead of the walk that asks for them, by worker processes; what comes out never depends on that.

The first ``FEW`` files are read in this process when they are asked for, as are all files without workers: that is the plain twin.
From then on batches of paths go to spawned processes, a few batches ahead of the walk. A worker that dies (the kernel's memory killer)
takes down its pool: the files it had are read in this process, and a new pool is started, ``_MOST_DEATHS`` times.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from dinodomain.errors import BadSource, UserError
from dinodomain_medical.dicom_header import Header, headers_if_dicom
from dinodomain_medical.gathering import PackedHeader, pack

FEW = 2000
"""Files that are read in this process before others are started, which takes about as long."""

_FIRST_BATCH, _LARGEST_BATCH = 25, 200
_MOST_DEATHS = 3
_TELL_SECONDS = 10.0
_log = logging.getLogger(__name__)

Met = TypeVar("Met")
Found = Sequence[Header | PackedHeader]
Outcome = Found | BadSource | OSError | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """What is done with each file, here or in a worker.

    Attributes:
        names: Keywords whose values each header must bring.
        by_series: Whether headers are packed for a ``SeriesStore``, one per frame, or one is wanted per file, as it is.
    """

    names: tuple[str, ...]
    by_series: bool

    def __call__(self, path: Path) -> Outcome:
        """The headers; None where the file is no DICOM; or why it cannot be read."""
        try:
            headers = headers_if_dicom(path, self.names, frames=self.by_series)
        except (BadSource, OSError) as error:
            return error
        return [pack(header) for header in headers] if headers and self.by_series else headers


@final
class HeadersAhead(Generic[Met]):
    """Reads files for a walk. Closed, it leaves no process behind.

    Args:
        read: What is done with each file.
        workers: Processes to use once there are many files; None or 0 reads all in this process.
        path_of: The file that something met will probably be asked for, or None. A wrong guess costs time, nothing else.
        clock: Seconds.
    """

    def __init__(
        self,
        read: ReadFile,
        workers: int | None,
        path_of: Callable[[Met], Path | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._path_of, self._few = read, path_of, FEW
        # A daemon, such as a worker that stages sources, may have no children.
        self._pool = _Pool(read, workers) if workers and not multiprocessing.current_process().daemon else None
        self._known: dict[Path, Outcome] = {}
        self._asked = 0
        self._told = Told("files", "headers", clock)

    def close(self) -> None:
        """Ends the workers; one that is reading finishes its file first."""
        if self._pool is not None:
            self._pool.close()

    def of(self, path: Path) -> Found | None:
        """The headers of a file; None where it is no DICOM.

        Raises:
            BadSource: Its header cannot be read.
            OSError: It cannot be opened.
        """
        self._asked += 1
        outcome = self._known.pop(path) if path in self._known else self._read(path)
        self._told.add(len(outcome) if isinstance(outcome, Sequence) else 0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def ahead(self, stream: Iterable[Met]) -> Iterator[Met]:
        """The same stream; while its consumer is busy with one thing, the files of those that follow are read."""
        rest = iter(stream)
        for met in rest:
            if self._pool is not None and self._asked >= self._few:
                yield from self._batched(itertools.chain((met,), rest), self._pool)
                return
            yield met

    def _batched(self, rest: Iterator[Met], pool: _Pool) -> Iterator[Met]:
        sent: deque[_Batch[Met]] = deque()
        size = _FIRST_BATCH
        while True:
            while len(sent) < 2 * pool.workers + 1 and (members := list(itertools.islice(rest, size))):
                paths = [path for met in members if (path := self._path_of(met)) is not None]
                sent.append(_Batch(members=members, paths=paths, answer=pool.send(paths)))
                size = min(2 * size, _LARGEST_BATCH)
            if not sent:
                return
            batch = sent.popleft()
            self._known.update(zip(batch.paths, pool.receive(batch.answer), strict=False))
            yield from batch.members
            for path in batch.paths:  # what was not asked for after all
                self._known.pop(path, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch(Generic[Met]):
    members: Sequence[Met]
    paths: Sequence[Path]
    answer: _Answer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    future: Future[list[Outcome]]
    executor: ProcessPoolExecutor


@final
class _Pool:
    """Worker processes that are started when first needed, and again after a death."""

    def __init__(self, read: ReadFile, workers: int) -> None:
        self._read, self.workers = read, workers
        self._executor: ProcessPoolExecutor | None = None
        self._deaths, self._proved = 0, False
        self._stop = RawValue(c_bool, False)  # without a lock, which a killed worker could take with it

    def send(self, paths: Sequence[Path]) -> _Answer | None:
        """Hands files to a worker; None where there is nothing to do or no worker left to do it."""
        while paths and self._deaths <= _MOST_DEATHS:
            executor = self._executor or self._started()
            try:
                with _interrupts_held():  # a worker inherits that, so that Ctrl-C is the parent's alone from its first moment
                    future = executor.submit(_serve, self._read, [str(path) for path in paths])
                return _Answer(future=future, executor=executor)
            except (BrokenProcessPool, OSError) as error:
                self._died(executor, error)
        return None

    def receive(self, answer: _Answer | None) -> Sequence[Outcome]:
        """What a worker found, in the order of its files; nothing where it died."""
        if answer is None:
            return ()
        try:
            outcomes = answer.future.result()
        except BrokenProcessPool as error:
            self._died(answer.executor, error)
            return ()
        self._proved = True
        return outcomes

    def close(self) -> None:
        self._stop.value = True
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _started(self) -> ProcessPoolExecutor:
        _log.info("discovery: reading headers in %d processes", self.workers)
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin, initargs=(self._stop,))
        return self._executor

    def _died(self, executor: ProcessPoolExecutor, error: Exception) -> None:
        """Told by every batch that was on its way; counted once."""
        if executor is not self._executor:
            return
        executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None
        self._deaths += 1
        if not self._proved:
            remedy = 'in a script, call it below `if __name__ == "__main__":`; or set ingest.workers=0'
            raise UserError("ingest.workers", "a worker process ended before its first file", remedy=remedy) from error
        after = "others are started" if self._deaths <= _MOST_DEATHS else "this process goes on alone"
        _log.warning("discovery: a worker process died (was memory short?); its files are read here, and %s", after)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_stopped: Any = None  # set in a worker: shared with the parent, which says there when nobody needs the rest


def _begin(stop: Any) -> None:
    global _stopped
    _stopped = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _serve(read: ReadFile, paths: Sequence[str]) -> list[Outcome]:
    return [read(Path(path)) for path in paths if not _stopped.value]


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)


@final
class Told:
    """Says every ten seconds how far a long walk is, and how fast.

    Args:
        what: What is counted.
        parts: What each of them has some of; the speed is theirs.
        clock: Seconds.
    """

    def __init__(self, what: str, parts: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._parts, self._clock = what, parts, clock
        self._num = self._num_parts = self._parts_then = 0
        self._then = clock()

    def add(self, parts: int) -> None:
        """One more of them, with its parts."""
        self._num += 1
        self._num_parts += parts
        now = self._clock()
        if now - self._then >= _TELL_SECONDS:
            rate = (self._num_parts - self._parts_then) / (now - self._then)
            text = "discovery: %d %s, %d %s so far (%.0f %s/s)"
            _log.info(text, self._num, self._what, self._num_parts, self._parts, rate, self._parts)
            self._then, self._parts_then = now, self._num_parts
