"""Who does the work of an ingest: worker processes, threads of this process, or a Dask cluster. The store's bytes never depend on it.

``processes`` is the default and the safest: a decoder that crashes costs one source. ``threads`` start at once and share memory, but a
crash of a decoder ends the run, and readers take turns wherever they silence warnings (``domain.quiet``): good for rasters and for
sources that are waited for over a network, not for DICOM. A cluster needs a file system that all its workers see. Tasks are handed out
few at a time, so that a million sources cost no memory.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dinodomain.ingest.pool import Lost, run_here, run_processes

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks handed out per worker: one that runs and one that waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the workers of a cluster must see as this process sees it.

    Attributes:
        folder: Where they write.
        source: What they read; checked only where it exists here.
        arrived: Whether what a worker says it did for a task can be seen here.
    """

    folder: Path
    source: str = ""
    arrived: Callable[[object], bool] = field(default=lambda task: True)


def run_tasks(
    executor: str, work: Callable[[Task], Result], tasks: Iterable[Task], workers: int | None, shared: Shared
) -> Iterator[Result | Lost[Task]]:
    """Yields results as they come, in any order.

    Args:
        executor: ``processes``, ``threads`` or the address of a Dask scheduler.
        work: A picklable callable.
        tasks: Picklable.
        workers: Number of processes or threads, one per processor if None; 0 works in this process. Of a cluster, the number of tasks
            it works on at a time; None or 0 use all of it.
        shared: What the workers of a cluster must see.

    Yields:
        What ``work`` returned, or the task itself as ``Lost`` where its worker died.

    Raises:
        UserError: Workers cannot start, or ``work`` raised it.
    """
    waiting = deque(tasks)
    if executor not in ("processes", "threads"):
        from dinodomain.ingest.cluster import run_cluster

        yield from run_cluster(executor, work, waiting, workers or None, shared)
        return
    num = min(len(os.sched_getaffinity(0)) if workers is None else workers, len(waiting))
    if num == 0:
        yield from run_here(work, waiting)
    else:
        yield from (run_threads if executor == "threads" else run_processes)(work, waiting, num)


def run_threads(work: Callable[[Task], Result], tasks: Iterable[Task], num: int) -> Iterator[Result]:
    """Yields results as they come, in any order; what ``work`` raises ends the run once the running tasks are done."""
    waiting, running = deque(tasks), set[Future[Result]]()
    pool = ThreadPoolExecutor(num, thread_name_prefix="ingest")
    # A package that sets warning filters on its own, in two threads at once, may leave wrong ones behind: they end with this run.
    with warnings.catch_warnings():
        try:
            while waiting or running:
                while waiting and len(running) < AHEAD * num:
                    running.add(pool.submit(work, waiting.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)
