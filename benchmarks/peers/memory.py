"""How much memory a pipeline needs beyond its images while it makes one batch, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import statistics
from pathlib import Path

from peers.common import Pipeline

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measurable() -> bool:
    """Whether this system keeps the peak of a process and lets it be reset (Linux)."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def peak_megabytes(run: Pipeline, rounds: int) -> float:
    """Median over rounds of the peak resident memory above that before the round, MB (1e6 bytes) per image; views included.

    One round comes before, for what is made once; freed memory is given back to the system before each. ``ru_maxrss`` would not do:
    a child inherits it from its parent.
    """
    run(0)
    found = []
    for turn in range(1, rounds + 1):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _RESET.write_text("5")
        before = _kilobytes("VmRSS")
        count = run(turn)
        found.append((_kilobytes("VmHWM") - before) * 1024 / 1e6 / count)
    return statistics.median(found)


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])
