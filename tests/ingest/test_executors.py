"""Processes, threads and a real Dask cluster on loopback: the same bytes from all, and clear errors where a cluster cannot do it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import threading
import time
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from dinodomain.domain import quiet
from dinodomain.errors import BadSource, UserError
from dinodomain.ingest import IngestPlan, cluster
from dinodomain.ingest.executors import Shared, run_tasks, run_threads
from dinodomain.ingest.pool import Lost
from dinodomain.testing import SyntheticImages

loopback = pytest.mark.allow_hosts(["127.0.0.1", "localhost"])


class Mixed(SyntheticImages):
    """Every other source is a scene, the others are whole images; one is refused."""

    def read(self, ref):
        number = int(ref.source_id[-2:])
        if number == 7:
            raise BadSource(ref.uris[0], "refused for the test", "none")
        return dataclasses.replace(SyntheticImages.read(self, ref), layout="window" if number % 2 else "whole")


class Deadly(SyntheticImages):
    """A decoder that crashes its process."""

    def read(self, ref):
        if ref.source_id.endswith("2"):
            os.kill(os.getpid(), signal.SIGKILL)
        return SyntheticImages.read(self, ref)


MIXED = Mixed(size=(40, 48), nodata=True)


@contextlib.contextmanager
def dask_cluster(num, *, processes):
    """A scheduler and its workers, as `dask scheduler` and `dask worker` would start them."""
    distributed = pytest.importorskip("distributed")
    import dask

    fast = {"distributed.scheduler.allowed-failures": 0, "distributed.worker.memory.terminate": False}
    with (
        dask.config.set(fast),
        distributed.LocalCluster(n_workers=num, processes=processes, threads_per_worker=1, dashboard_address=None, protocol="tcp",
                                 host="127.0.0.1", worker_dashboard_address=None, silence_logs=50) as made,
    ):  # fmt: skip
        yield made


@pytest.fixture
def whole(tmp_path, run, snapshot):
    """The store of a plain run in this process."""
    run("generate:12", tmp_path / "whole", MIXED)
    return snapshot(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_the_bytes_of_one_process(tmp_path, run, snapshot, whole, workers):
    summary = run("generate:12", tmp_path / "store", MIXED, executor="threads", workers=workers)
    assert (summary.added, len(summary.skipped)) == (11, 1)
    assert snapshot(tmp_path / "store") == whole


@loopback
def test_a_dask_cluster_gives_the_bytes_of_one_process(tmp_path, run, snapshot, whole):
    with dask_cluster(2, processes=False) as dask:
        for store, workers in (("all", None), ("one", 1)):
            summary = run("generate:12", tmp_path / store, MIXED, executor=dask.scheduler_address, workers=workers)
            assert (summary.added, len(summary.skipped)) == (11, 1)
            assert snapshot(tmp_path / store) == whole
    assert not list(tmp_path.glob("*.partial"))


@loopback
def test_a_source_that_kills_dask_workers_is_a_skipped_row_and_costs_no_other(tmp_path):
    with dask_cluster(1, processes=True) as dask:
        results = list(run_tasks(dask.scheduler_address, Square(), [1, 13, 3], None, Shared(folder=tmp_path)))
    lost = [result for result in results if isinstance(result, Lost)]
    assert lost == [Lost(task=13, cause="1 Dask workers in a row")]
    assert sorted(result for result in results if not isinstance(result, Lost)) == [1, 9]


@loopback
def test_a_cluster_must_see_the_files_of_this_process(tmp_path, run, monkeypatch):
    with dask_cluster(1, processes=False) as dask:
        address = dask.scheduler_address
        monkeypatch.setattr(cluster, "_VISIBLE_SECONDS", 0.1)
        answer = cluster.probe

        def elsewhere(folder, token, source):
            other = tmp_path / "elsewhere"
            other.mkdir(exist_ok=True)
            return answer(str(other), token, source)

        for blind, message in (
            (elsewhere, r"does not share '.*store\.partial': it does not see a file written there; put the store on a file system"),
            (lambda *a: {**answer(*a), "wrote": "nothing"}, "it writes files that do not arrive there"),
            (lambda *a: {**answer(*a), "source": False}, "does not see the source"),
            (lambda *a: {**answer(*a), "versions": {**cluster.versions(), "numpy": "0.1"}}, r"has numpy 0\.1 \(here .*install the same"),
            (lambda *a: 1 / 0, "cannot run the ingest .*ZeroDivisionError"),
        ):
            monkeypatch.setattr(cluster, "probe", blind)
            with pytest.raises(UserError, match=message):
                run(np_source(tmp_path), tmp_path / "store", executor=address)
        monkeypatch.setattr(cluster, "probe", answer)
        with pytest.raises(UserError, match="what a Dask worker wrote does not arrive"):
            list(run_tasks(address, Square(), [2], None, Shared(folder=tmp_path, arrived=lambda result: False)))
        with pytest.raises(UserError, match="store: no space"):
            list(run_tasks(address, Square(), [99], None, Shared(folder=tmp_path)))
    assert not list((tmp_path / "store.partial").glob("probe*"))


@loopback
def test_no_scheduler_at_the_address_is_said(tmp_path, run, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 .*; start one with `dask scheduler`"):
        run("generate:2", tmp_path / "store", executor="tcp://127.0.0.1:9")


@loopback
def test_a_cluster_without_workers_is_said(tmp_path, run, monkeypatch):
    monkeypatch.setattr(cluster, "_WORKERS_SECONDS", 0.2)
    with dask_cluster(0, processes=False) as dask, pytest.raises(UserError, match="had no workers for 0 seconds; start some"):
        run("generate:2", tmp_path / "store", executor=dask.scheduler_address)


def test_without_the_package_the_extra_is_named(tmp_path, run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UserError, match=r'needs distributed: pip install "dinodomain\[dask\]"'):
        run("generate:2", tmp_path / "store", executor="tcp://127.0.0.1:9")


@pytest.mark.parametrize("executor", ["dask", "thread", "http://a:1", "tcp://"])
def test_another_executor_is_refused(tmp_path, executor):
    with pytest.raises(UserError, match=r"ingest\.executor: .*allowed: processes, threads, or the address of a Dask scheduler"):
        IngestPlan(domain="synthetic", source="generate:2", store=str(tmp_path / "store"), executor=executor)


class Square:
    """Squares its task; some numbers kill the process or raise."""

    def __call__(self, task: int) -> int:
        if task == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 99:
            raise UserError("store", "no space", remedy="free some")
        return task * task


def np_source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    np.save(folder / "a.npy", np.ones((3, 8, 8), np.uint8))
    return folder


def test_threads_hold_few_tasks_at_a_time():
    started = []

    def work(task):
        started.append(task)
        return task

    results = run_threads(work, range(1000), 2)
    first = next(results)
    time.sleep(0.05)
    assert len(started) <= 6
    assert sorted([first, *results]) == [*range(1000)]


def test_what_a_thread_raises_ends_the_run_and_the_threads():
    before = threading.active_count()
    with pytest.raises(UserError, match="no space"):
        list(run_threads(Square(), [1, 99, *range(500)], 2))
    assert threading.active_count() == before


def test_quiet_blocks_in_many_threads_leave_the_filters_as_they_were():
    """Two blocks of plain catch_warnings that overlap in two threads would leave one of their filters behind."""
    before, heard = list(warnings.filters), deque()

    def work(task):
        with quiet(UserWarning):
            warnings.warn("not heard", UserWarning, stacklevel=1)
            time.sleep(0.0005)
        try:
            warnings.warn("heard", DeprecationWarning, stacklevel=1)
        except DeprecationWarning:
            heard.append(task)

    for _ in range(3):
        list(run_threads(work, range(40), 8))
    assert warnings.filters == before
    assert len(heard) == 120


def test_domain_packages_silence_warnings_one_at_a_time():
    root = Path(__file__).parents[2] / "domains"
    found = [
        path.name for path in root.rglob("*.py") if re.search(r"warnings\.(catch_warnings|simplefilter|filterwarnings)", path.read_text())
    ]
    assert not found, "use dinodomain.domain.quiet: warning filters belong to the whole process"
