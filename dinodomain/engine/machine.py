"""What this machine allows the way of data from disk to device: processors, shared memory, open files, page-locked memory.

Asks and tries, changes nothing. A container often has less than its host: its quota of processors, its memory, and what its sandbox
forbids are what counts here.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from dinodomain.lineage import Json
from dinodomain.loader.delivery import lock_pages, unlock_pages
from dinodomain.loader.ring import Ring

_FEW_FILES = 1024
"""Open files a process below which a store of many arrays is opened again and again: each shard in use needs one."""

_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_MEMINFO = Path("/proc/meminfo")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARED = Path("/dev/shm")
_PROBE = 1 << 16


def data_path() -> tuple[Mapping[str, Json], tuple[str, ...]]:
    """Facts by name, and advice; no advice where nothing stands in the way."""
    cores, anonymous, pinned = usable_cores(), _anonymous(), _page_locked()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = available_memory()
    facts: dict[str, Json] = {
        "cores": cores,
        "memory free": "unknown" if free is None else readable_size(free),
        "memory that processes share": "anonymous" if anonymous else f"a file in {tempfile.gettempdir()}",
        "/dev/shm free": readable_size(shutil.disk_usage(_SHARED).free) if _SHARED.is_dir() else "absent (not needed)",
        "open files": f"{_limit(files[0])} of {_limit(files[1])}",
        "locked memory": _limit(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], size=True),
        "page-locked for CUDA": {None: "no CUDA", True: "yes", False: "refused"}[pinned],
    }
    return facts, tuple(_advice(anonymous=anonymous, pinned=pinned, files=files))


def usable_cores() -> int:
    """Processors that this process may use: those it may run on, within the quota of its container; at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not this system
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, _quota() or allowed))


def available_memory() -> int | None:
    """Bytes that could be used without swapping; None where the system does not tell."""
    if not _MEMINFO.is_file():
        return None
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)


def total_memory() -> int | None:
    """Bytes of memory that this machine, or the container that this process is in, has in all; None where the system does not tell."""
    if not _MEMINFO.is_file():
        return None
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    whole = next((int(words[1]) * 1024 for words in lines if words[0] == "MemTotal:"), None)
    limit = next((path.read_text().strip() for path in _MEMORY_LIMITS if path.is_file()), "max")
    return min(whole, int(limit)) if whole is not None and limit.isdecimal() else whole


def _quota() -> int | None:
    """Whole processors of the container's quota, rounded up; None without one."""
    try:
        words = _QUOTAS[0].read_text().split() if _QUOTAS[0].is_file() else [_QUOTAS[1].read_text().strip(), _PERIOD.read_text().strip()]
    except OSError:
        return None
    if words[0] in ("max", "-1"):
        return None
    return -(-int(words[0]) // int(words[1]))


def _anonymous() -> bool:
    """Whether memory without a file can be shared with reader processes."""
    try:
        os.close(os.memfd_create("dinodomain-doctor"))
    except (AttributeError, OSError):
        return False
    return True


def _page_locked() -> bool | None:
    """Whether shared memory can be page-locked; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    ring = Ring(1, _PROBE, shared=True)
    locked = lock_pages(ring.whole(), torch.device("cuda", torch.cuda.current_device()))
    if locked:
        unlock_pages(ring.whole())
    ring.close()
    return locked


def _advice(*, anonymous: bool, pinned: bool | None, files: tuple[int, int]) -> list[str]:
    found = []
    if not anonymous:
        found.append("reader processes share memory through a file: loader.ring_dir names a folder in memory for it, for example /dev/shm")
    if files[0] != resource.RLIM_INFINITY and files[0] < _FEW_FILES:
        found.append(f"a process may open {files[0]} files; a store of many arrays reads faster with more: ulimit -n {_more(files[1])}")
    if pinned is False:
        found.append("memory cannot be page-locked here: every batch takes one more copy on the host on its way to the device")
    return found


def _more(most: int) -> int:
    return 4096 if most == resource.RLIM_INFINITY else min(most, 4096)


def _limit(value: int, *, size: bool = False) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else readable_size(value) if size else str(value)


def readable_size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
