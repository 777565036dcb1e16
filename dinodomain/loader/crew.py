"""Reader processes, seen from their parent: started, told what to read, restarted when they die.

Each part is shared among all of them, image i to process (i + part) mod W, so no thread of the parent has to hand out work while the
parent computes: what is to be read is in the processes' own queues, as many parts ahead as the plan says, and a process that was slow over
one part catches up over the next. Answers are a few bytes a part and wait in the sockets until the parent asks for a batch. That is also
when the death of a process is noticed, at once in a wait. A dead process leaves nothing behind that could spoil a batch: it wrote only to
slots that are still being read, and marks beside them tell which images are whole; its successor is sent the same tasks and reads the rest.

``subprocess.Popen`` and not ``multiprocessing``: spawn and forkserver import the user's main module, and torch with it, in every process.
Each is in a process group of its own, so that Ctrl-C is the parent's business alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from dinodomain.errors import UserError
from dinodomain.loader import readers
from dinodomain.loader.readers import Reading
from dinodomain.loader.ring import Ring
from dinodomain.loader.task import DONE, LENGTH, READING, READY, WAITING, Images, Reply, Task, packed
from dinodomain.store.shard import Guard

_log = logging.getLogger(__name__)

_DEATHS = 3
"""Deaths of one process in a row, none of which read anything, after which it is not restarted."""
_STOP_SECONDS = 10.0
_PACKAGES = ("dinodomain", "numpy", "numcodecs", "google_crc32c")


class ReaderFailed(RuntimeError):
    """Something went wrong in a reader process that is no fault of the user's; holds its traceback."""


@dataclass(slots=True)
class _Share:
    """What one process has to do of one part."""

    task: Task
    images: Images
    message: bytes
    part: _Part

    def marked(self, mark: int) -> list[int]:
        """Places of the task whose images are in that state."""
        return np.flatnonzero(self.images.marks[list(self.task.images)] == mark).tolist()


class _Part:
    """A part that processes read; see ``readers.Reading``."""

    def __init__(self, crew: Crew) -> None:
        self._crew, self.left = crew, 0
        self.error: Exception | None = None

    def done(self) -> bool:
        self._crew.listen(0)
        return self.error is None and not self.left

    def wait(self) -> None:
        begun = last = time.monotonic()
        while self.left and self.error is None:
            self._crew.listen(max(0.0, last + readers.PATIENCE_SECONDS - time.monotonic()))
            if time.monotonic() - last >= readers.PATIENCE_SECONDS:
                last = time.monotonic()
                self._crew.complain(self, last - begun)
        if self.error is not None:
            raise self.error


@dataclass(slots=True)
class _Member:
    """One reader process, whichever incarnation.

    Attributes:
        number: Position in the crew.
        process: The process that lives now.
        line: Socket to it.
        said: File with its standard error.
        unfinished: Tasks that it has not answered, by number.
        inbox: Bytes of an answer that is not whole.
        outbox: Bytes that its socket did not take yet.
        up: Whether it said that it is.
        answered: Whether it finished anything since it was started.
        whole: Images of its unfinished tasks that were whole when it was started.
        deaths: Deaths in a row without progress.
    """

    number: int
    process: subprocess.Popen[bytes]
    line: socket.socket
    said: IO[bytes]
    unfinished: dict[int, _Share] = field(default_factory=dict)
    inbox: bytearray = field(default_factory=bytearray)
    outbox: deque[memoryview] = field(default_factory=deque)
    up: bool = False
    answered: bool = False
    whole: int = 0
    deaths: int = 0


class Crew:
    """Reader processes over one ring.

    Args:
        ring: A shared ring.
        workers: Number of processes.
        threads: Decode threads of each.
        requests: Requests in flight of each, where the store lies behind a URL.
        guards: Of the stores that are read, see ``store.OpenArrays``.

    Raises:
        UserError: A process cannot be started.
    """

    def __init__(self, ring: Ring, *, workers: int, threads: int, requests: int, guards: Mapping[str, Guard] | None = None) -> None:
        self._ring, self._threads, self._requests, self._greeting = ring, threads, requests, packed(dict(guards or {}))
        self._members: list[_Member] = []
        self._selector = selectors.DefaultSelector()
        self._numbers, self._parts = 0, 0
        # Also where an iterator is never closed: at the latest when this process ends.
        self._stop = weakref.finalize(self, _stop, self._members, self._selector, os.getpid())
        for number in range(workers):
            self._members.append(_Member(number, *self._launch(number)))
            self._greet(self._members[-1])

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids, as they are now."""
        return tuple(member.process.pid for member in self._members)

    def start(self, task: Task, images: Images) -> Reading:
        """See ``readers.Readers``; ``images`` lies in the ring, and its marks say ``WAITING``."""
        part, count = _Part(self), len(self._members)
        self._parts += 1
        for begin in range(min(count, len(task.images))):
            self._numbers += 1
            share = task.share(self._numbers, begin, count)
            member = self._members[(begin + self._parts) % count]
            member.unfinished[share.number] = _Share(share, images, packed(share), part)
            part.left += 1
            self._send(member, member.unfinished[share.number].message)
        self.listen(0)
        return part

    def listen(self, seconds: float) -> None:
        """Takes in answers and deaths, and sends what could not be sent before; waits for the first for so long."""
        for key, events in self._selector.select(seconds):
            member: _Member = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(member)
            if events & selectors.EVENT_READ:
                self._receive(member)

    def complain(self, part: _Part, seconds: float) -> None:
        """Says in the log who reads what for so long."""
        for member in self._members:
            for share in member.unfinished.values():
                if share.part is part:
                    what = f"reader process {member.number} (pid {member.process.pid})"
                    _log.warning("waiting for %.0f s for %s, which reads %s", seconds, what, _sources([share]))

    def close(self) -> None:
        """Ends all processes; they hold nothing that could be lost."""
        self._stop()

    def _launch(self, number: int) -> tuple[subprocess.Popen[bytes], socket.socket, IO[bytes]]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        said = tempfile.TemporaryFile()  # noqa: SIM115 # lives as long as the process
        handed = (theirs.fileno(), self._ring.descriptor)
        options = [*handed, self._ring.nbytes, self._threads, self._requests, os.getpid()]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dinodomain.loader.worker", *map(str, options)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=handed, env=_environment(), process_group=0,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            said.close()
            raise _cannot_start(number, f"{sys.executable or 'python'}: {error.strerror}") from error
        finally:
            theirs.close()
        return process, ours, said

    def _greet(self, member: _Member) -> None:
        """Begins to listen to a process that was just started, and tells it which stores were opened."""
        self._selector.register(member.line, selectors.EVENT_READ, member)
        self._send(member, self._greeting)

    def _send(self, member: _Member, message: bytes) -> None:
        member.outbox.append(memoryview(message))
        if len(member.outbox) == 1:
            self._flush(member)

    def _flush(self, member: _Member) -> None:
        """Sends what the socket takes; the rest when it takes more."""
        while member.outbox:
            try:
                sent = member.line.send(member.outbox[0])
            except BlockingIOError:
                break
            except OSError:  # it died, which is heard next
                member.outbox.clear()
                break
            if sent == len(member.outbox[0]):
                member.outbox.popleft()
            else:
                member.outbox[0] = member.outbox[0][sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.outbox else 0)
        self._selector.modify(member.line, wanted, member)

    def _receive(self, member: _Member) -> None:
        try:
            data = member.line.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._revive(member)
            return
        member.inbox += data
        while len(member.inbox) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(member.inbox)[0]
            if len(member.inbox) < end:
                break
            self._take(member, pickle.loads(member.inbox[LENGTH.size : end]))
            del member.inbox[:end]

    def _take(self, member: _Member, reply: Reply) -> None:
        if reply.number == READY:
            member.up = True
            return
        share, member.answered = member.unfinished.pop(reply.number), True
        share.part.left -= 1
        if reply.error is not None:
            share.part.error = reply.error
        elif reply.crash:
            share.part.error = ReaderFailed(f"reader process {member.number} failed {reply.crash}")

    def _revive(self, member: _Member) -> None:
        """Puts a new process in the place of one that died, and tells it what that one had not finished."""
        cause = self._bury(member)
        member.process, member.line, member.said = self._launch(member.number)
        _log.warning(
            "reader process %d was ended by %s and is restarted; %d reads are done again", member.number, cause, len(member.unfinished)
        )
        member.up = member.answered = False
        member.inbox.clear()
        member.outbox.clear()
        member.whole = sum(len(share.marked(DONE)) for share in member.unfinished.values())
        self._greet(member)
        for share in list(member.unfinished.values()):
            self._send(member, share.message)

    def _bury(self, member: _Member) -> str:
        """Clears up after a process that died, and tells what ended it.

        Raises:
            UserError: There is no point in restarting it.
        """
        self._selector.unregister(member.line)
        member.line.close()
        code = _ended(member.process)
        cause, text = _cause(code), _tail(member.said)
        member.said.close()
        if code > 0 and not member.up:
            raise _cannot_start(member.number, f"{cause}: {text}")
        if text:
            _log.debug("reader process %d said: %s", member.number, text)
        whole = sum(len(share.marked(DONE)) for share in member.unfinished.values())
        idle = member.up and not member.unfinished
        member.deaths = 0 if idle or member.answered or whole > member.whole else member.deaths + 1
        if member.deaths >= _DEATHS:
            _give_up(member, cause)
        for share in member.unfinished.values():
            share.images.marks[[share.task.images[place] for place in share.marked(READING)]] = WAITING
        return cause


def _stop(members: list[_Member], selector: selectors.BaseSelector, owner: int) -> None:
    """Ends processes; in a process that was forked off their parent only forgets them."""
    for member in members:
        if os.getpid() == owner and member.process.poll() is None:
            member.process.kill()
    for member in members:
        if os.getpid() == owner:
            _ended(member.process)
        member.line.close()
        member.said.close()
    selector.close()


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Exit code of a process that ends or was killed."""
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        return process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        _log.warning("reader process %d cannot be ended: it hangs in a read that the system does not give up", process.pid)
        return -signal.SIGKILL


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if -code == signal.SIGKILL else name


def _tail(file: IO[bytes], size: int = 2000) -> str:
    """The end of what a process wrote."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read().decode(errors="replace").strip()


def _cannot_start(number: int, why: str) -> UserError:
    return UserError("loader.workers", f"reader process {number} cannot start: {why}", remedy="loader.workers=0 reads in this process")


def _give_up(member: _Member, cause: str) -> NoReturn:
    if not member.up and not any(share.marked(READING) for share in member.unfinished.values()):
        raise _cannot_start(member.number, f"{cause}, {_DEATHS} times in a row")
    problem = f"reader processes were ended by {cause} {_DEATHS} times in a row while they read this"
    remedy = "check the file (a truncated or vanishing one gives SIGBUS) and the free memory"
    raise UserError(_sources(list(member.unfinished.values())), problem, remedy=remedy)


def _sources(shares: list[_Share], most: int = 4) -> str:
    """Arrays that are being read, or else are to be read."""
    for mark in (READING, WAITING):
        found = sorted({share.task.addresses[place][0] for share in shares for place in share.marked(mark)})
        if found:
            return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
    return "nothing"


def _environment() -> dict[str, str]:
    """The parent's, so that packages are found where the parent found them."""
    known = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")}
    roots = [root for root in map(_root, _PACKAGES) if Path(root).resolve() not in known]
    found = [*dict.fromkeys(roots), *filter(None, [os.environ.get("PYTHONPATH")])]
    # numpy's linear algebra would start a thread per core, which nothing here uses.
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", **({"PYTHONPATH": os.pathsep.join(found)} if found else {})}


def _root(package: str) -> str:
    """Folder from which a package is imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, package  # noqa: PT018 # one fact
    return str(Path(spec.origin).parents[1])
