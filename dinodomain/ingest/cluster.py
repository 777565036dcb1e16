"""Ingest on a Dask cluster: a few tasks in flight, deaths of workers survived, and checks at the start that its results will be the same.

A task whose workers died as often as the scheduler allows (``distributed.scheduler.allowed-failures``, 3) is tried once more alone, because
Dask blames every task that a dead worker held; only if its workers die again is it reported as lost. Clear names of sources travel to the
workers: use a ``tls://`` address where the network is not to be trusted.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from dinodomain import __version__
from dinodomain.errors import UserError, require
from dinodomain.ingest.executors import AHEAD, Shared
from dinodomain.ingest.pool import Lost

Task = TypeVar("Task")
Result = TypeVar("Result")

_PLACE = "ingest.executor"
_CONNECT_SECONDS = 10.0
_WORKERS_SECONDS = 60.0
_VISIBLE_SECONDS = 10.0
_POLL_SECONDS = 5.0


def run_cluster(
    address: str, work: Callable[[Task], Result], tasks: deque[Task], limit: int | None, shared: Shared
) -> Iterator[Result | Lost[Task]]:
    """Yields results as they come, in any order; see ``executors.run_tasks``.

    Raises:
        MissingExtra: ``distributed`` is not installed.
        UserError: No scheduler answers, it has no workers, or they see other files or run other versions than this process.
    """
    dask = require("distributed", extra="dask", wanted_by=f"{_PLACE}={address}")
    if not tasks:
        return
    try:
        with _connect(dask, address) as client:
            _wait_for_workers(dask, client)
            _check(client, shared)
            suspects: deque[Task] = deque()
            for result in _Flight(dask, client, work, limit, shared).run(tasks):
                if isinstance(result, Lost):
                    suspects.append(result.task)
                else:
                    yield result
            yield from _Flight(dask, client, work, 1, shared).run(suspects)
    except dask.comm.CommClosedError as error:
        raise _gone() from error


def _connect(dask: Any, address: str) -> Any:
    try:
        return dask.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(_PLACE, f"no Dask scheduler answers at {address} ({reason})", remedy="start one with `dask scheduler`") from error


def _wait_for_workers(dask: Any, client: Any) -> None:
    try:
        client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
    except (dask.TimeoutError, TimeoutError):
        raise _no_workers() from None


def _no_workers() -> UserError:
    problem = f"the Dask scheduler had no workers for {_WORKERS_SECONDS:.0f} seconds"
    return UserError(_PLACE, problem, remedy="start some with `dask worker ADDRESS` and run again: what is done is kept")


def _gone() -> UserError:
    return UserError(_PLACE, "the Dask scheduler went away", remedy="start it and run again: what is done is kept")


def versions() -> dict[str, str]:
    """Versions of what decides the bytes of a store."""
    return {"dinodomain": __version__, **{name: version(name) for name in ("numcodecs", "numpy", "zarr")}}


def probe(folder: str, token: str, source: str) -> dict[str, Any]:
    """Runs on a worker: whether it sees the file that the ingest wrote, and a file of its own for the ingest to see."""
    own = f"{token}.{secrets.token_hex(8)}"
    try:
        (Path(folder) / own).write_text(own)
        problem = "" if (Path(folder) / token).is_file() else "does not see a file written there"
    except OSError as error:
        problem = f"cannot write there ({error.strerror})"
    return {"problem": problem, "wrote": own, "source": not source or os.path.exists(source), "versions": versions()}


def _check(client: Any, shared: Shared) -> None:
    """Refuses a cluster that reads or writes other files than this process, or would write other bytes.

    Raises:
        UserError: Some worker does.
    """
    token = f"probe.{secrets.token_hex(8)}"
    mark = shared.folder / token
    source = shared.source if os.path.exists(shared.source) else ""
    mark.write_text(token)
    try:
        answers = client.run(probe, str(shared.folder), token, os.path.abspath(source) if source else "", on_error="return")
        for worker, answer in sorted(answers.items()):
            _judge(worker, answer, shared, source)
    finally:
        for path in shared.folder.glob(f"{token}*"):
            path.unlink(missing_ok=True)


def _judge(worker: str, answer: Mapping[str, Any] | BaseException, shared: Shared, source: str) -> None:
    if isinstance(answer, BaseException):
        problem = f"Dask worker {worker} cannot run the ingest ({type(answer).__name__}: {answer})"
        raise UserError(_PLACE, problem, remedy=f"install dinodomain {__version__} with the domain's packages on every worker")
    other = [f"{name} {found} (here {versions()[name]})" for name, found in sorted(answer["versions"].items()) if found != versions()[name]]
    if other:
        problem = f"Dask worker {worker} has {', '.join(other)}, and the store's bytes may depend on it"
        raise UserError(_PLACE, problem, remedy="install the same versions on every worker")
    hidden = answer["problem"] or (
        "" if _seen(lambda: (shared.folder / answer["wrote"]).is_file()) else "writes files that do not arrive there"
    )
    if hidden:
        raise UserError(_PLACE, f"Dask worker {worker} does not share {str(shared.folder)!r}: it {hidden}",
                        remedy="put the store on a file system that every worker mounts at the same path")  # fmt: skip
    if not answer["source"]:
        raise UserError(_PLACE, f"Dask worker {worker} does not see the source {source!r}",
                        remedy="put it on a file system that every worker mounts at the same path")  # fmt: skip


def _seen(arrived: Callable[[], bool]) -> bool:
    """Network file systems show another machine's files a little late."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while not arrived():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def call(work: Callable[[Task], Result], task: Task, wanted: Mapping[str, str]) -> Result:
    """Runs on a worker, which may have joined after the checks."""
    if versions() != wanted:
        raise UserError(
            _PLACE, f"a Dask worker joined with {versions()} (wanted {dict(wanted)})", remedy="install the same versions everywhere"
        )
    return work(task)


class _Flight(Generic[Task]):
    """Tasks that the cluster works on.

    Args:
        dask: The package ``distributed``.
        client: Connection to the scheduler.
        work: What is done with a task.
        limit: Most tasks in flight; None hands every thread of the cluster one to run and one to wait.
        shared: What the workers must see.
    """

    def __init__(self, dask: Any, client: Any, work: Callable[[Task], Any], limit: int | None, shared: Shared) -> None:
        self._dask, self._client, self._work, self._limit, self._shared = dask, client, work, limit, shared
        self._tasks: dict[Any, Task] = {}
        self._versions, self._name = versions(), f"ingest-{secrets.token_hex(8)}"
        self._sent = 0
        self._idle_since: float | None = None

    def run(self, waiting: deque[Task]) -> Iterator[Any]:
        """Results as they come, and lost tasks."""
        room = self._room()
        try:
            while waiting or self._tasks:
                while waiting and len(self._tasks) < room:
                    self._send(waiting.popleft())
                done = self._wait()
                if not done:
                    room = self._room()
                for future in done:
                    task = self._tasks.pop(future)
                    try:
                        yield self._result(future, task)
                    except TimeoutError:  # its worker died before the result was fetched: Dask does it again
                        self._tasks[future] = task
        finally:
            self._client.cancel(list(self._tasks))

    def _room(self) -> int:
        if self._limit is not None:
            return self._limit
        threads: int = sum(self._client.nthreads().values())
        return max(1, AHEAD * threads)

    def _send(self, task: Task) -> None:
        self._sent += 1
        # The key is all that a scheduler's log and dashboard show: no name of a source in it.
        future = self._client.submit(call, self._work, task, self._versions, key=f"{self._name}-{self._sent}", pure=False)
        self._tasks[future] = task

    def _wait(self) -> Sequence[Any]:
        """Futures that are done; none if nothing happened for a while."""
        try:
            with self._client.as_current():
                done = self._dask.wait(list(self._tasks), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
        except (self._dask.TimeoutError, TimeoutError):
            self._refuse_idle()
            return ()
        except self._dask.CancelledError as error:
            raise _gone() from error
        self._idle_since = None
        return list(done)

    def _refuse_idle(self) -> None:
        if self._client.status != "running":
            raise _gone()
        now = time.monotonic()
        if self._client.nthreads():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > _WORKERS_SECONDS:
            raise _no_workers()

    def _result(self, future: Any, task: Task) -> Any:
        try:
            result = future.result(timeout=_WORKERS_SECONDS)
        except self._dask.scheduler.KilledWorker as error:
            return Lost(task=task, cause=f"{error.allowed_failures + 1} Dask workers in a row")
        except self._dask.CancelledError as error:
            raise _gone() from error
        if not _seen(lambda: self._shared.arrived(result)):
            problem = f"what a Dask worker wrote does not arrive in {str(self._shared.folder)!r}"
            raise UserError(_PLACE, problem, remedy="put the store on a file system that every worker mounts at the same path")
        return result
