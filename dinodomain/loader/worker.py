"""A reader process: decodes images into the ring that its parent mapped, and says so.

    python -P -m dinodomain.loader.worker SOCKET RING BYTES THREADS REQUESTS PARENT

The first two are inherited descriptors. Loads neither torch nor Arrow: 20 MB instead of 300, and up in a fifth of a second. It holds no
state that matters: killed at any instant, another one reads what it had not finished. It ends when its parent is gone.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from dinodomain.errors import UserError
from dinodomain.loader.task import LENGTH, READY, Images, Reply, Task, packed, read_images, units
from dinodomain.store import OpenArrays

_ALIVE_SECONDS = 0.5


class Line:
    """This end of the socket to the parent; whatever says that the parent is gone ends the process.

    Args:
        sock: The socket.
        parent: Process id of the parent.
    """

    def __init__(self, sock: socket.socket, parent: int) -> None:
        self._sock, self._parent, self._lock = sock, parent, threading.Lock()
        self._heard = select.poll()  # not select.select, which knows no descriptor past 1023
        self._heard.register(sock, select.POLLIN)

    def say(self, reply: Reply) -> None:
        """Sends a reply; safe in threads."""
        message = packed(reply)
        with self._lock:
            try:
                self._sock.sendall(message)
            except OSError:
                os._exit(0)

    def hear(self) -> Any:
        """The next message: guards of stores first, then tasks."""
        return pickle.loads(self._exactly(*LENGTH.unpack(self._exactly(LENGTH.size))))

    def _exactly(self, count: int) -> bytearray:
        found, got = bytearray(count), 0
        while got < count:
            # The socket tells of the parent's end, unless a process that it forked still holds a copy of the other side.
            while not self._heard.poll(1000 * _ALIVE_SECONDS):
                if os.getppid() != self._parent:
                    os._exit(0)
            try:
                part = self._sock.recv_into(memoryview(found)[got:])
            except OSError:
                part = 0
            if not part:
                os._exit(0)  # threads that hang in a read must not keep the process
            got += part
        return found


@dataclass(slots=True)
class _Work:
    """A task of which units are left."""

    task: Task
    images: Images
    left: int
    failed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


def _decode(arrays: OpenArrays, queue: SimpleQueue[tuple[_Work, range]], line: Line) -> None:
    """One decode thread, for ever."""
    while True:
        work, places = queue.get()
        reply = None if work.failed else _read(arrays, work, places)
        with work.lock:
            work.left -= 1
            first, work.failed = reply is not None and not work.failed, work.failed or reply is not None
            if not work.left and not work.failed:
                reply, first = Reply(work.task.number), True
        if reply is not None and first:
            line.say(reply)


def _read(arrays: OpenArrays, work: _Work, places: range) -> Reply | None:
    """Reads some images; a reply only where that failed."""
    try:
        read_images(arrays, work.task, places, work.images)
    except UserError as error:
        return Reply(work.task.number, error=error)
    except Exception:  # whatever it is, the parent raises it
        what = "; ".join(f"{location} at {start}" for location, start in (work.task.addresses[place] for place in places))
        return Reply(work.task.number, crash=f"reading {what}:\n{traceback.format_exc()}")
    return None


def serve(line: Line, ring: np.ndarray, threads: int, requests: int) -> None:
    """Reads what it is told to, for ever.

    Args:
        line: To the parent.
        ring: [bytes] uint8.
        threads: Decode threads. This one only listens, so that the parent never waits to be heard.
        requests: Requests in flight, for what lies on servers.
    """
    arrays = OpenArrays(requests, line.hear())
    queue: SimpleQueue[tuple[_Work, range]] = SimpleQueue()
    for _ in range(threads):
        threading.Thread(target=_decode, args=(arrays, queue, line), daemon=True).start()
    line.say(Reply(READY))
    while True:
        task: Task = line.hear()
        images = task.layout.of(ring[task.offset : task.offset + task.layout.nbytes])
        parts = units(task, 1, requests)
        work = _Work(task, images, len(parts))
        for places in parts:
            queue.put((work, places))


def main() -> None:
    """See the module."""
    faulthandler.enable()  # a bus error on a damaged disk says where it struck
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection, ring, nbytes, threads, requests, parent = (int(value) for value in sys.argv[1:])
    memory = np.frombuffer(mmap.mmap(ring, nbytes), dtype=np.uint8)
    os.close(ring)
    serve(Line(socket.socket(fileno=connection), parent), memory, threads, requests)


if __name__ == "__main__":
    main()
