"""What a machine allows the way of data, and what stands in it."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import pytest
import torch

from dinodomain.engine import machine
from dinodomain.engine.machine import available_memory, data_path, readable_size, usable_cores


def test_this_machine_is_described():
    facts, advice = data_path()
    assert facts["cores"] == usable_cores() >= 1
    assert list(facts)[1:] == [
        "memory free", "memory that processes share", "/dev/shm free", "open files", "locked memory", "page-locked for CUDA",
    ]  # fmt: skip
    assert facts["page-locked for CUDA"] in (("yes", "refused") if torch.cuda.is_available() else ("no CUDA",))
    assert all(isinstance(line, str) for line in advice)


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"),
    [(8, "max 100000", 8), (8, "250000 100000", 3), (2, "800000 100000", 2), (8, "50000 100000", 1), (8, None, 8)],
)
def test_cores_are_those_of_the_affinity_within_the_containers_quota(monkeypatch, tmp_path, allowed, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "_QUOTAS", (tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"))
    assert usable_cores() == cores


def test_the_older_kind_of_quota_counts_too(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "_QUOTAS", (tmp_path / "cpu.max", tmp_path / "quota"))
    monkeypatch.setattr(machine, "_PERIOD", tmp_path / "period")
    (tmp_path / "period").write_text("100000\n")
    for text, cores in (("-1\n", 8), ("150000\n", 2)):
        (tmp_path / "quota").write_text(text)
        assert usable_cores() == cores


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:  42 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    assert available_memory() == 42 * 1024
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "none")
    assert available_memory() is None
    assert data_path()[0]["memory free"] == "unknown"


def test_what_stands_in_the_way_is_named_with_what_helps(monkeypatch):
    def refuse(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(machine, "_page_locked", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1000))
    monkeypatch.setattr(machine, "_SHARED", Path("/no/such/folder"))
    facts, advice = data_path()
    assert facts["memory that processes share"] == f"a file in {tempfile.gettempdir()}"
    assert (facts["/dev/shm free"], facts["open files"], facts["locked memory"]) == ("absent (not needed)", "256 of 1000", "256 B")
    assert [line.split(":")[0].split(";")[0] for line in advice] == [
        "reader processes share memory through a file",
        "a process may open 256 files",
        "memory cannot be page-locked here",
    ]
    assert "loader.ring_dir" in advice[0]
    assert advice[1].endswith("ulimit -n 1000")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    facts, advice = data_path()
    assert (facts["open files"], facts["locked memory"], len(advice)) == ("unlimited of unlimited", "unlimited", 2)


def test_sizes_are_written_for_people():
    assert [readable_size(value) for value in (12, 2048, 3 * 2**20, 5.5 * 2**30)] == ["12 B", "2 KiB", "3 MiB", "5.5 GiB"]
