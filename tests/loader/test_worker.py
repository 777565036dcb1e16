"""What a reader process is by itself: small, and gone when its parent is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dinodomain.loader import Loader, LoaderPlan
from dinodomain.loader.crew import Crew, _tail
from dinodomain.loader.ring import Ring
from dinodomain.loader.task import WAITING, Layout, Task, packed

PARENT = """
import os, sys, time
from dinodomain.loader.crew import Crew
from dinodomain.loader.ring import Ring
ring = Ring(1, 100, shared=True)
crew = Crew(ring, workers=2, threads=1, requests=1)
while not all(member.up for member in crew._members):
    crew.listen(1.0)
if sys.argv[1] == "forked" and not os.fork():
    time.sleep(60)  # holds a copy of every socket
print(*crew.processes, flush=True)
time.sleep(60)
"""


class Listing:
    """Unpickled, it writes which modules are loaded."""

    def __reduce__(self):
        return exec, ("import sys; print(*sorted(sys.modules), flush=True)",)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_process_that_has_read_holds_neither_torch_nor_arrow_nor_zarr(scenes):
    ring = Ring(1, 1 << 16, shared=True)
    crew = Crew(ring, workers=1, threads=2, requests=4)
    try:
        slot = ring.take()
        layout = Layout((1, 2, 16, 16), "uint16", True)
        images = layout.of(slot.memory)
        images.marks[:] = WAITING
        task = Task(0, slot.offset, layout, range(1), [scenes.address(3, (0, 0))], [scenes.valid_address(3, (0, 0))])
        crew.start(task, images).wait()
        assert images.pixels.any()
        assert images.valid is not None
        member = crew._members[0]
        member.line.setblocking(True)
        member.line.sendall(packed(Listing()))
        while not (found := _tail(member.said, 10**6).partition("\n")[0]):
            time.sleep(0.01)
    finally:
        crew.close()
        ring.close()
    modules = {name.partition(".")[0] for name in found.split()}
    assert "numcodecs" in modules, found
    assert not modules & {"torch", "pyarrow", "zarr", "pandas", "obstore"}


@pytest.mark.parametrize("kind", ["alone", "forked"])
def test_processes_end_with_their_parent_however_it_ends(kind):
    command = [sys.executable, "-c", PARENT, kind]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        os.kill(parent.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < end, "they outlive their parent"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()


def readers():
    children = [child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()]
    return [int(child) for child in children if b"dinodomain.loader.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def own_mb(pid):
    """Private memory beyond the ring, page cache of mapped files left out."""
    total = 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        name = mapping.split("\n", 1)[0].split(maxsplit=5)[5:]
        if not (name and "dinodomain-ring" in name[0]):
            total += sum(int(found) for found in re.findall(r"Private_Dirty: +(\d+) kB", mapping))
    return total / 1024


def test_memory_is_small_and_does_not_grow_with_the_number_of_batches(scenes):
    source = iter(Loader(scenes, LoaderPlan(batch=2, workers=2), seed=0))
    seen = []
    for number, _ in enumerate(islice(source, 2000)):
        if number in (300, 1999):
            seen.append([own_mb(pid) for pid in (os.getpid(), *readers())])
    source.close()
    before, after = np.array(seen)
    assert len(after) == 3
    assert (after[1:] < 60).all()
    assert (after - before < 2).all(), "MB of the parent and both readers"
