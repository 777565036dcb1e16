"""Reader processes: what they read, how they die, and that nothing of them stays."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.loader import crew as crews
from dinodomain.loader import readers
from dinodomain.loader.crew import Crew, ReaderFailed
from dinodomain.loader.ring import Ring
from dinodomain.loader.task import READING, WAITING, Layout, Task

EXTENT = (16, 16)


class Bench:
    """A crew with a ring, and tasks over the scenes."""

    def __init__(self, store, workers=1, **options):
        self.store = store
        self.ring = Ring(6, 1 << 16, shared=True)
        self.crew = Crew(self.ring, workers=workers, threads=2, requests=4, **options)

    def begin(self, boxes, *, location=None):
        """Starts reading boxes (row, start); the arrays to be filled and the reading."""
        layout = Layout((len(boxes), 2, *EXTENT), "uint16", True)
        slot = self.ring.take()
        images = layout.of(slot.memory)
        images.marks[:] = WAITING
        addresses = [(location, (0, 0, 0)) if location else self.store.address(*box) for box in boxes]
        valid = [self.store.valid_address(*box) for box in boxes]
        return images, self.crew.start(Task(0, slot.offset, layout, range(len(boxes)), addresses, valid), images)

    def check(self, boxes):
        """Reads boxes and compares them with the store's own reader."""
        images, reading = self.begin(boxes)
        reading.wait()
        assert reading.done()
        for i, (row, start) in enumerate(boxes):
            pixels, bits = np.empty((2, *EXTENT), np.uint16), np.empty(EXTENT, np.uint8)
            self.store.read_box(row, start, pixels)
            self.store.read_valid(row, start, bits)
            np.testing.assert_array_equal(images.pixels[i], pixels)
            np.testing.assert_array_equal(images.valid[i], bits)

    def close(self):
        self.crew.close()
        self.ring.close()


@pytest.fixture
def bench(scenes):
    made = []

    def make(**options):
        made.append(Bench(scenes, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()


BOXES = [(row, (16 * (row % 2), 16)) for row in range(8)]


def gone(pid):
    """Whether a process has ended, though nobody may have asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def endless_source(folder):
    """An array whose metadata never come: whoever opens it hangs, as on a network disk that does not answer."""
    folder.mkdir()
    os.mkfifo(folder / "zarr.json")
    return str(folder)


def kill_readers(bench, images, count, number=signal.SIGKILL):
    """Kills the process that reads the first image, ``count`` times."""

    def work():
        killed = set()
        while len(killed) < count:
            pid = bench.crew.processes[0]
            if pid not in killed and images.marks[0] == READING:
                os.kill(pid, number)
                killed.add(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_read_what_the_store_reads(bench, workers):
    made = bench(workers=workers)
    begun = [made.begin(BOXES) for _ in range(3)]
    made.check(BOXES[::-1])
    made.check(BOXES[:1])
    for images, reading in begun:
        reading.wait()
        np.testing.assert_array_equal(images.pixels, begun[0][0].pixels)
    assert [os.getpgid(pid) for pid in made.crew.processes] == list(made.crew.processes), "Ctrl-C would reach them"


def test_a_process_that_dies_idle_is_replaced(bench, caplog):
    made = bench(workers=2)
    made.check(BOXES)
    for _ in range(4):
        before = made.crew.processes
        os.kill(before[0], signal.SIGKILL)
        until(lambda pid=before[0]: gone(pid))
        made.check(BOXES)
        assert made.crew.processes[0] != before[0]
        assert made.crew.processes[1] == before[1]
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 4
    assert lines[0].getMessage().startswith("reader process 0 was ended by SIGKILL (out of memory?) and is restarted")


def test_a_task_that_kills_its_readers_is_given_up_by_name(bench, tmp_path):
    made = bench()
    location = endless_source(tmp_path / "array")
    images, reading = made.begin(BOXES[:1], location=location)
    thread = kill_readers(made, images, 3, signal.SIGBUS)
    expected = f"{location}: reader processes were ended by SIGBUS 3 times in a row while they read this; check the file"
    with pytest.raises(UserError, match=expected):
        reading.wait()
    thread.join()


def test_deaths_with_progress_between_them_are_no_reason_to_stop(bench, tmp_path):
    made = bench()
    hanging, reading = made.begin(BOXES[:1], location=endless_source(tmp_path / "array"))
    for _ in range(4):
        made.check(BOXES[:2])  # by the other thread of the same process
        pid = made.crew.processes[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: gone(pid))
        assert not reading.done()
    assert hanging.marks[0] in (WAITING, READING)


def test_a_long_wait_is_told_and_can_be_interrupted(bench, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(readers, "PATIENCE_SECONDS", 0.1)
    made = bench()
    location = endless_source(tmp_path / "array")
    _, reading = made.begin(BOXES[:1], location=location)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            reading.wait()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    line = caplog.records[0].getMessage()
    assert line == f"waiting for 0 s for reader process 0 (pid {made.crew.processes[0]}), which reads {location}"


def test_an_error_of_the_user_arrives_as_it_is(bench, tmp_path):
    made = bench(workers=2)
    _, reading = made.begin(BOXES[:1], location=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"nothing: holds no zarr\.json") as caught:
        reading.wait()
    assert caught.value.remedy == "restore the file from a copy, or ingest its sources into a new store"
    assert not reading.done(), "else a batch that comes before it would be lost"
    made.check(BOXES)


def test_any_other_error_arrives_with_its_traceback_and_what_was_read(bench, scenes):
    made = bench()
    slot = made.ring.take()
    layout = Layout((1, 2, *EXTENT), "float32", False)
    images = layout.of(slot.memory)
    images.marks[:] = WAITING
    location, start = scenes.address(0, (0, 0))
    reading = made.crew.start(Task(0, slot.offset, layout, range(1), [(location, start)], ()), images)
    with pytest.raises(ReaderFailed) as caught:
        reading.wait()
    assert f"reading {location} at {start}" in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert "AssertionError" in str(caught.value)


def test_a_process_that_cannot_start_says_why(bench, tmp_path, monkeypatch):
    (tmp_path / "numcodecs").mkdir()
    (tmp_path / "numcodecs/__init__.py").write_text("raise ImportError('wrong libc')")
    monkeypatch.setattr(crews, "_environment", lambda: {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(crews.__file__).parents[2]}"})
    made = bench()
    with pytest.raises(
        UserError, match=r"(?s)loader\.workers: reader process 0 cannot start: exit code 1: .*wrong libc; loader\.workers=0 reads"
    ):
        made.check(BOXES)
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(UserError, match=r"cannot start: /no/python: No such file or directory"):
        bench()


def test_processes_find_the_package_where_their_parent_found_it():
    found = crews._environment()["PYTHONPATH"].split(os.pathsep)
    assert str(Path(crews.__file__).parents[2]) in found
    assert str(Path(np.__file__).parents[1]) not in found, "site-packages before the standard library"


def test_tasks_that_overflow_the_sockets_neither_block_nor_get_lost(bench):
    made = bench()
    hundred = [BOXES[i % 8] for i in range(24)]
    long = "/" * 200_000  # one address is as long as the buffer of a socket
    begun = [made.begin(hundred[:1], location=long + str(i)) for i in range(3)]
    images, reading = made.begin(hundred)
    for _, wrong in begun:
        with pytest.raises(UserError):
            wrong.wait()
    reading.wait()
    assert images.pixels.any()


def test_more_descriptors_than_select_knows_are_no_obstacle(bench):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    opened = []
    try:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        bench().check(BOXES)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_stays_of_a_crew(scenes, how):
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    made = Bench(scenes, workers=2)
    made.check(BOXES)
    pids = made.crew.processes
    if how == "close":
        made.close()
        made.crew.close()
    del made
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
    assert [os.path.exists(f"/proc/{pid}") for pid in pids] == [False, False], "a process or a zombie stays"
