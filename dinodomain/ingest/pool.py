"""Spawned worker processes, one task at a time each, whose death costs one task and not the run.

Why not ``concurrent.futures``: when a worker dies (a decoder that crashes, the kernel's memory killer) its pool breaks and
does not say which task it was on. Here the parent knows, reports that task as lost, and starts another worker. A worker whose
parent dies ends at once, so that nothing writes behind the back of the next run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from dinodomain.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")
_DEATH_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Generic[Task]):
    """A task whose worker died.

    Attributes:
        task: The task.
        cause: ``signal 9`` or ``exit status 1``.
    """

    task: Task
    cause: str


@dataclass(slots=True, kw_only=True)
class _Worker(Generic[Task]):
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    task: Task | None = None


def run_here(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result | Lost[Task]]:
    """The plain twin of ``run_processes``: one after the other, in this process."""
    yield from map(work, tasks)


def run_processes(work: Callable[[Task], Result], tasks: Iterable[Task], num: int) -> Iterator[Result | Lost[Task]]:
    """Yields results as they come, in any order.

    Args:
        work: A picklable callable; it is sent to each worker once.
        tasks: Picklable.
        num: Number of processes, 1 or more.

    Yields:
        What ``work`` returned, or the task itself as ``Lost`` where its worker died.

    Raises:
        UserError: Workers cannot start.
        Exception: Whatever ``work`` raised; the other workers are stopped.
    """
    waiting = deque(tasks)
    workers: list[_Worker[Task]] = []
    try:
        while waiting or workers:
            _start(workers, work, waiting, num)
            yield from _collect(workers, waiting)
    finally:
        for worker in workers:
            _end(worker)


def _start(workers: list[_Worker[Task]], work: Callable[[Task], Result], waiting: deque[Task], num: int) -> None:
    for _ in range(min(num, len(waiting)) - len(workers)):
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs, work), daemon=True)
        process.start()
        theirs.close()
        workers.append(_Worker(process=process, pipe=ours))


def _collect(workers: list[_Worker[Task]], waiting: deque[Task]) -> Iterator[Any]:
    """Waits for news; hands the next task to whoever is free."""
    ready = wait([worker.pipe for worker in workers])
    for worker in [worker for worker in workers if worker.pipe in ready]:
        try:
            good, result = worker.pipe.recv()
        except (EOFError, OSError):
            workers.remove(worker)
            yield _lost(worker)
            continue
        if not good:
            raise result
        if worker.ready:
            yield result
        worker.ready = True
        worker.task = waiting.popleft() if waiting else None
        if worker.task is None:
            workers.remove(worker)
            _dismiss(worker)
        else:
            _send(worker)


def _send(worker: _Worker[Task]) -> None:
    try:
        worker.pipe.send(worker.task)
    except OSError:
        return  # it died just now: its pipe reads as closed, and the task is reported as lost


def _lost(worker: _Worker[Task]) -> Lost[Task]:
    worker.process.join(_DEATH_SECONDS)  # it has a status of its own to tell
    _end(worker)
    code = worker.process.exitcode or 0
    if worker.task is None:
        remedy = 'in a script, call it below `if __name__ == "__main__":`; or set ingest.workers=0'
        raise UserError("ingest.workers", "a worker process ended before its first source", remedy=remedy)
    return Lost(task=worker.task, cause=f"signal {-code}" if code < 0 else f"exit status {code}")


def _dismiss(worker: _Worker[Task]) -> None:
    """Lets an idle worker leave by itself: it sees its pipe close."""
    worker.pipe.close()
    worker.process.join(_DEATH_SECONDS)
    _end(worker)


def _end(worker: _Worker[Task]) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join(_DEATH_SECONDS)
    worker.process.kill()  # a decoder that does not come back to Python hears nothing else
    worker.process.join()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: imported packages hold semaphores
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    pipe.send((True, None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, work(task))
        except Exception as error:  # handed to the parent, which raises it
            answer = (False, error)
        pipe.send(answer)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)
