"""An ingest that is killed at any instant, and run again, gives the bytes of one that was never interrupted."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest.partial import Partial
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages

SCRIPT = textwrap.dedent(
    """
    import sys, time
    from dinodomain.ingest import IngestPlan, ingest
    from dinodomain.testing import SyntheticImages

    if __name__ == "__main__":
        layout, workers, store = sys.argv[1:]
        domain = SyntheticImages(layout=layout, size=(64, 80), nodata=True)
        plan = IngestPlan(domain="synthetic", source="generate:24", store=store, workers=int(workers), audit_holdout=0.2)
        ingest(plan, domain=domain, progress=lambda done, total: time.sleep(0.01))
    """
)


def hears_ctrl_c() -> None:
    """A suite that runs in the background ignores Ctrl-C, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(tmp_path: Path, layout: str, workers: int) -> subprocess.Popen[bytes]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), layout, str(workers), str(tmp_path / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, preexec_fn=hears_ctrl_c)


def wait_for_done(store: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many sources are staged, or the process ends."""
    root, end = Partial(store).root, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if len([*root.glob("done/*.json"), *root.glob("staged/*")]) >= count:
            return
        time.sleep(0.001)


ZYGOTE = textwrap.dedent(
    """
    import dataclasses, os, sys, time
    from dinodomain.ingest import IngestPlan, ingest
    from dinodomain.testing import SyntheticImages

    class Mixed(SyntheticImages):
        def read(self, ref):
            layout = "window" if int(ref.source_id[-1]) % 2 else "whole"
            return dataclasses.replace(SyntheticImages.read(self, ref), layout=layout)

    if __name__ == "__main__":
        for executor in map(str.strip, sys.stdin):
            child = os.fork()
            if not child:
                how = dict(workers=2, executor=executor, audit_holdout=0.2)
                plan = IngestPlan(domain="synthetic", source="generate:24", store=sys.argv[1], **how)
                ingest(plan, domain=Mixed(size=(20, 24), nodata=True), progress=lambda done, total: time.sleep(0.005))
                os._exit(0)
            print(child, flush=True)
            print(os.waitpid(child, 0)[1], flush=True)
    """
)
"""Imports once, and then starts an ingest whenever it is told to: most of twenty starts would be imports otherwise."""


class Zygote:
    """Starts ingests, one at a time, that can be killed."""

    def __init__(self, tmp_path: Path) -> None:
        script = tmp_path / "zygote.py"
        script.write_text(ZYGOTE)
        command = [sys.executable, str(script), str(tmp_path / "store")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def start(self, executor: str) -> int:
        self.process.stdin.write(f"{executor}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """How the ingest ended, once it has."""
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def moments(seed: int, total: int) -> list[tuple[int, float]]:
    """Twenty moments to kill at: once so many sources are staged, and so many seconds later; the last ones while the store is finished."""
    chance = random.Random(seed)
    staging = sorted(chance.choices(range(total), k=14))
    return [*((least, chance.random() * 0.02) for least in staging), *((total, chance.random() * 0.05) for _ in range(6))]


def test_killed_at_twenty_random_moments_nothing_is_lost_or_half_written(tmp_path, run, snapshot):
    """One ingest with two workers, processes or threads by turns; after each kill there is no store yet, or all of it reads."""
    run("generate:24", tmp_path / "whole", MIXED, audit_holdout=0.2)
    wanted, store, whole = snapshot(tmp_path / "whole"), tmp_path / "store", open_store(tmp_path / "whole")
    zygote, ends = Zygote(tmp_path), []
    try:
        for number, (least, later) in enumerate(moments(3, 24)):
            child = zygote.start(("processes", "threads")[number % 2])
            until(lambda least=least: staged(store) >= least or store.exists())
            time.sleep(later)
            os.kill(child, signal.SIGKILL)
            ends.append(zygote.status())
            if store.exists():
                assert snapshot(store) == wanted, f"after kill {number}"
                assert reads_whole(open_store(store), whole)
            else:
                with pytest.raises(UserError, match="is no folder"):
                    open_store(store)
        zygote.start("processes")
        assert zygote.status() == 0
    finally:
        zygote.close()
    assert ends.count(-signal.SIGKILL) >= 14
    assert snapshot(store) == wanted
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["store", "whole", "zygote.py"]


def staged(store: Path) -> int:
    root = Partial(store).root
    return len([*root.glob("done/*.json"), *root.glob("staged/*")])


def until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def reads_whole(store, other) -> bool:
    """Whether every source of one reads as in the other."""
    for row in range(len(other)):
        pixels = [np.zeros(one.row(row)["shape"], np.uint8) for one in (store, other)]
        for one, out in zip((store, other), pixels):
            one.read_box(row, (0, 0), out)
        if not np.array_equal(*pixels):
            return False
    return len(store) == len(other)


def test_ctrl_c_keeps_what_is_staged(tmp_path):
    process = start(tmp_path, "window", 2)
    wait_for_done(tmp_path / "store", 3, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert process.returncode in (130, -signal.SIGINT)
    assert len(list((tmp_path / "store.partial" / "done").iterdir())) >= 3
    assert not (tmp_path / "store").exists()


class Crash(BaseException):
    """Stands for a power cut: nothing catches it."""


class Mixed(SyntheticImages):
    """Every other source is a scene, the others are whole images."""

    def read(self, ref):
        layout = "window" if int(ref.source_id[-1]) % 2 else "whole"
        return dataclasses.replace(SyntheticImages.read(self, ref), layout=layout)


MIXED = Mixed(size=(20, 24), nodata=True)


def opens(store):
    """Number of sources of a store, or how it is refused."""
    try:
        return len(open_store(store))
    except UserError as error:
        return error.problem


def test_a_crash_at_every_step_of_a_first_ingest(tmp_path, run, snapshot, crash_everywhere):
    store = tmp_path / "store"
    run("generate:2", tmp_path / "whole", MIXED)
    wanted = snapshot(tmp_path / "whole")

    def reset():
        for name in ("store", "store.partial"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)

    def check(left):
        assert not store.exists() or snapshot(store) == wanted
        run("generate:2", store, MIXED)
        assert snapshot(store) == wanted, f"after a crash at rename {left}"
        assert not (tmp_path / "store.partial").exists()

    assert crash_everywhere(lambda: run("generate:2", store, MIXED), reset, check) > 10


def test_a_crash_at_every_step_of_adding_to_a_store(tmp_path, run, snapshot, crash_everywhere):
    """Until the move begins the old store opens; a half-moved one is refused, and never taken for a whole one."""
    store, seen = tmp_path / "store", []
    run("generate:2", tmp_path / "first", MIXED)
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    run("generate:4", tmp_path / "whole", MIXED)
    wanted = snapshot(tmp_path / "whole")
    run("generate:4", tmp_path / "first", MIXED, shard="1/1")  # staging is covered by a first ingest

    def reset():
        for name in ("", ".partial"):
            shutil.rmtree(tmp_path / f"store{name}", ignore_errors=True)
            shutil.copytree(tmp_path / f"first{name}", tmp_path / f"store{name}")

    def check(left):
        seen.append(opens(store))
        run("generate:4", store, MIXED)
        assert snapshot(store) == wanted, f"after a crash at rename {left}"
        assert not (tmp_path / "store.partial").exists()

    assert crash_everywhere(lambda: run("generate:4", store, MIXED), reset, check) > 10
    order = [2, "is missing or not what the manifest says", 4]  # 4: all but the cleaning up was done
    assert set(seen) == set(order)
    assert seen == sorted(seen, key=order.index)


def test_work_staged_under_other_settings_is_done_again(tmp_path, run, snapshot, monkeypatch):
    domain = SyntheticImages(size=(100, 120))
    run("generate:3", tmp_path / "whole", domain, max_side=64)
    with monkeypatch.context() as patch:
        patch.setattr("dinodomain.ingest.finalise.write_index_table", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            run("generate:5", tmp_path / "store", domain)
    run("generate:3", tmp_path / "store", domain, max_side=64)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")


def test_staged_images_that_are_damaged_are_found_and_staged_anew(tmp_path, run, snapshot, monkeypatch):
    run("generate:3", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("dinodomain.ingest.finalise.write_index_table", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            run("generate:3", tmp_path / "store")
    staged = sorted((tmp_path / "store.partial" / "staged").iterdir())
    for path, place in ((staged[0], 100), (staged[1], -200)):  # in its record, in its pixels
        damaged = bytearray(path.read_bytes())
        damaged[place] ^= 1
        path.write_bytes(damaged)
    staged[2].write_bytes(staged[2].read_bytes()[:-150])
    for _ in range(2):
        with pytest.raises(UserError, match=r"staged image .* is damaged; run again"):
            run("generate:3", tmp_path / "store")
    run("generate:3", tmp_path / "store")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
