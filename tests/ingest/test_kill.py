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


def start(tmp_path: Path, layout: str, workers: int) -> subprocess.Popen[bytes]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), layout, str(workers), str(tmp_path / "store")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_done(store: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many sources are staged, or the process ends."""
    root, end = Partial(store).root, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if len([*root.glob("done/*.json"), *root.glob("staged/*")]) >= count:
            return
        time.sleep(0.001)


@pytest.mark.parametrize(("layout", "workers"), [("window", 2), ("whole", 0)])
def test_really_killed_at_random_moments_and_run_again(tmp_path, run, snapshot, layout, workers):
    run("generate:24", tmp_path / "whole", SyntheticImages(layout=layout, size=(64, 80), nodata=True), audit_holdout=0.2)
    moments = random.Random(f"{layout}{workers}")
    for least in sorted(moments.sample(range(1, 24), 3)):
        process = start(tmp_path, layout, workers)
        wait_for_done(tmp_path / "store", least, process)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "store" / "manifest.json").exists() or open_store(tmp_path / "store")
    last = start(tmp_path, layout, workers)
    _, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors.decode()
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
    assert not (tmp_path / "store.partial").exists()


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

    def reset():
        for name in ("store", "store.partial"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(tmp_path / "first", store)

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
        patch.setattr("dinodomain.ingest.finalise.write_index", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            run("generate:5", tmp_path / "store", domain)
    run("generate:3", tmp_path / "store", domain, max_side=64)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")


def test_staged_images_that_are_damaged_are_found_and_staged_anew(tmp_path, run, snapshot, monkeypatch):
    run("generate:3", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("dinodomain.ingest.finalise.write_index", lambda *args: (_ for _ in ()).throw(Crash()))
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
