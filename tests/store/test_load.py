"""How the tables of a store are loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dinodomain.store import StorePlan, array_record, build_store

TASKS = Path("/proc/self/task")
COUNT = """
import os, sys, time
from dinodomain.store import open_store
before = len(os.listdir("/proc/self/task"))
open_store(sys.argv[1])
until = time.monotonic() + 10
# Python's joined threads may be seen ending for a moment; a pool's threads stay.
while (more := len(os.listdir("/proc/self/task")) - before) and time.monotonic() < until:
    time.sleep(0.01)
print(more)
"""


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")
def test_opening_a_store_leaves_no_thread_behind_that_could_abort_an_early_exit(tmp_path, make_pixels):
    record = array_record(make_pixels((1, 64, 64), "uint8"), layout="whole")
    store = build_store(tmp_path / "s", {"a": record}, domain="made-up", plan=StorePlan())
    run = subprocess.run([sys.executable, "-c", COUNT, str(store.path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0"
