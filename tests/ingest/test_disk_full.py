"""A disk that fills up: one clear error, nothing staged is lost, what was there reads, and with more space the same bytes come out."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import UserError
from dinodomain.ingest import IngestPlan, withdraw
from dinodomain.ingest.partial import Partial
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages

FULL = r"store: cannot write .*: No space left on device; free space and run again: what is done is kept"


class Noisy(SyntheticImages):
    """Every other source is a scene, the others are whole images; noise cannot be compressed."""

    def read(self, ref):
        number = int(ref.source_id[-2:])
        pixels = np.random.default_rng(number).integers(1, 255, (3, 64, 64), np.uint8)
        record = dataclasses.replace(SyntheticImages.read(self, ref), layout="window" if number % 2 else "whole")
        return dataclasses.replace(record, read=lambda window: pixels[(slice(None), *window)])


NOISY = Noisy(size=(64, 64))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that can be made and made larger; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kilobytes, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    while os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def staged(store):
    root = Partial(store).root
    return {path.name: path.stat().st_mtime_ns for path in (*root.glob("done/*.json"), *root.glob("staged/*"))}


def too_full(attempt) -> bool:
    """Whether an attempt meets the one clear error."""
    try:
        attempt()
    except UserError as error:
        found = str(error)
    else:
        return False
    assert re.search(FULL, found), found
    return True


@pytest.mark.parametrize(("executor", "workers"), [("processes", 0), ("processes", 2), ("threads", 2)])
def test_a_full_disk_is_one_clear_error_and_with_more_space_nothing_is_done_twice(tmp_path, run, snapshot, small_disk, executor, workers):
    run("generate:24", tmp_path / "whole", NOISY)
    store = small_disk(200) / "store"
    with pytest.raises(UserError, match=FULL):
        run("generate:24", store, NOISY, executor=executor, workers=workers)
    with pytest.raises(UserError, match="is no folder"):
        open_store(store)
    before = staged(store)
    assert len(before) > 3
    with pytest.raises(UserError, match=FULL):  # as long as it is full
        run("generate:24", store, NOISY)
    assert staged(store).items() >= before.items()
    small_disk(4000, "remount")
    assert run("generate:24", store, NOISY, executor=executor, workers=workers).added == 24
    assert snapshot(store) == snapshot(tmp_path / "whole")
    assert [path.name for path in store.parent.iterdir()] == ["store"]


def test_full_while_images_are_packed_and_while_the_tables_are_written(tmp_path, run, snapshot, small_disk):
    """Every size from the one that holds nothing to the one that holds all; each failure leaves what the next run needs."""
    run("generate:10", tmp_path / "whole", NOISY)
    disk, failures = small_disk(8), 0
    for kilobytes in range(8, 600, 24):
        small_disk(kilobytes, "remount")
        if not too_full(lambda: run("generate:10", disk / "store", NOISY)):
            break
        failures += 1
        assert not (disk / "store").exists()
    assert failures > 6
    assert snapshot(disk / "store") == snapshot(tmp_path / "whole")


def test_a_store_that_cannot_be_added_to_still_reads_and_then_grows(tmp_path, run, snapshot, small_disk):
    run("generate:6", tmp_path / "first", NOISY)
    disk = small_disk(400)
    shutil.copytree(tmp_path / "first", disk / "store")
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    run("generate:24", tmp_path / "whole", NOISY)
    with pytest.raises(UserError, match=FULL):
        run("generate:24", disk / "store", NOISY)
    assert snapshot(disk / "store") == snapshot(tmp_path / "first")
    assert len(open_store(disk / "store")) == 6
    small_disk(4000, "remount")
    run("generate:24", disk / "store", NOISY)
    assert snapshot(disk / "store") == snapshot(tmp_path / "whole")


def test_a_withdrawal_on_a_full_disk_is_finished_once_there_is_space(tmp_path, run, snapshot, small_disk):
    run("generate:12", tmp_path / "first", NOISY)
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    (tmp_path / "gone.csv").write_text("PatientID\nunit0001\n")

    def take(store):
        return withdraw(IngestPlan(store=str(store), withdraw=str(tmp_path / "gone.csv"), join="PatientID"))

    take(tmp_path / "whole")
    disk = small_disk(4000)
    shutil.copytree(tmp_path / "first", disk / "store")
    used = shutil.disk_usage(disk).used // 1024
    sizes = set()
    for spare in range(0, 300, 24):
        small_disk(used + spare, "remount")
        if not too_full(lambda: take(disk / "store")):
            break
        sizes.add(len(open_store(disk / "store")))
    assert sizes <= {12, 10}
    assert 12 in sizes
    assert snapshot(disk / "store") == snapshot(tmp_path / "whole")


def test_the_command_exits_2_on_a_full_disk_and_0_after_it_was_enlarged(tmp_path, small_disk):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(8):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (128, 128), np.uint8)).save(source / f"p{number}.png")
    store = small_disk(100) / "store"
    command = [sys.executable, "-m", "dinodomain.cli", "ingest", "domain=xray", f"source={source}", f"store={store}", "ingest.workers=0"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 2
    assert "free space and run again: what is done is kept" in first.stderr
    assert "Traceback" not in first.stderr
    small_disk(2000, "remount")
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    assert len(open_store(store)) == 8


def test_a_limit_on_the_size_of_files_is_the_same_kind_of_error(tmp_path, run, snapshot):
    """Works without the right to mount."""
    run("generate:10", tmp_path / "whole", NOISY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # staged files fit, a stack of them does not
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large; raise the largest file size .*: what is done is kept"):
            run("generate:10", tmp_path / "store", NOISY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "store").exists()
    assert len(staged(tmp_path / "store")) == 10
    run("generate:10", tmp_path / "store", NOISY)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
