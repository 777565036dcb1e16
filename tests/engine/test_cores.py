from __future__ import annotations

import pytest

from dinodomain import parallel
from dinodomain.engine.cores import choose_workers
from dinodomain.loader import LoaderPlan


@pytest.mark.parametrize(
    ("device", "cores", "arithmetic", "workers"),
    [
        ("cuda", 1, 1, 0),
        ("cuda", 3, 1, 0),
        ("cuda", 4, 4, 2),
        ("cuda", 12, 12, 6),
        ("cuda", 64, 64, 8),
        ("mps", 8, 8, 4),
        ("cpu", 2, 2, 0),
        ("cpu", 16, 16, 0),
        ("cpu", 16, 13, 0),
        ("cpu", 16, 8, 4),
        ("cpu", 64, 8, 8),
    ],
)
def test_readers_get_the_cores_that_arithmetic_leaves(device, cores, arithmetic, workers):
    found, reason = choose_workers(LoaderPlan(), device=device, cores=cores, arithmetic=arithmetic)
    assert found == workers
    assert reason.startswith(f"{cores} core{'s' if cores > 1 else ''} for this process")
    assert ("threads of its own read" in reason) == (workers == 0)


def test_more_decode_threads_are_fewer_processes():
    assert choose_workers(LoaderPlan(threads=4), device="cuda", cores=12, arithmetic=1)[0] == 3
    assert choose_workers(LoaderPlan(threads=40), device="cuda", cores=12, arithmetic=1)[0] == 1


def test_what_was_asked_for_stays_and_reading_in_the_calling_thread_takes_no_process():
    assert choose_workers(LoaderPlan(workers=3), device="cpu", cores=1, arithmetic=1) == (3, "asked for")
    assert choose_workers(LoaderPlan(threads=0), device="cuda", cores=16, arithmetic=1)[0] == 0


def test_one_process_alone_has_the_machine_to_itself(monkeypatch):
    assert parallel.local_world() == 1
    monkeypatch.setattr(parallel, "is_distributed", lambda: True)
    monkeypatch.setattr(parallel, "world", lambda: 16)
    assert parallel.local_world() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert parallel.local_world() == 8
