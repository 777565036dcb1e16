"""Worker processes that read headers ahead: they change nothing that is found, and their death or the user's Ctrl-C does no harm."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_medical import ct, reading_ahead, xray
from dinodomain_medical.reading_ahead import HeadersAhead, ReadFile, Told

SCRIPT = textwrap.dedent(
    """
    import sys
    from dinodomain.errors import UserError
    from dinodomain.types import Select
    from dinodomain_medical import reading_ahead, xray
    reading_ahead.FEW = 2
    if sys.argv[2] == "unguarded" or __name__ == "__main__":
        try:
            for number, item in enumerate(xray.discover(sys.argv[1], Select(workers=2))):
                if number == 20:
                    import multiprocessing, time
                    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                    time.sleep(60)
        except UserError as error:
            print(error, flush=True)
        except KeyboardInterrupt:
            print("interrupted", len(multiprocessing.active_children()), flush=True)
    """
)


@pytest.fixture
def early(monkeypatch):
    """Processes from the third file on."""
    monkeypatch.setattr(reading_ahead, "FEW", 2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, write_dicom, write_series, write_nifti):
    """All that a walk can meet, with names that sort around each other."""
    top = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    slices = rng.integers(0, 1500, (5, 6, 8)).astype(np.uint16)
    for number in range(12):
        uid = f"1.2.{number}"
        where = top / f"p{number % 3}" / f"s{number}"
        write_series(where, slices, SeriesInstanceUID=uid, PatientID=f"P{number % 3}")
    write_series(top / "gap", slices, SeriesInstanceUID="1.9", vary=lambda k: {"ImagePositionPatient": [0, 0, k * k]})
    write_series(top / "two" / "a", slices[:2], SeriesInstanceUID="1.8", vary=lambda k: {"ImagePositionPatient": [0, 0, k]})
    write_series(top / "two" / "b", slices[2:], SeriesInstanceUID="1.8", vary=lambda k: {"ImagePositionPatient": [0, 0, k + 2]})
    picture = rng.integers(0, 4000, (9, 7)).astype(np.uint16)
    for number in range(30):
        tags = {"Modality": "DX", "PresentationIntentType": "FOR PRESENTATION", "PatientID": f"P{number}", "PixelSpacing": [0.1, 0.1]}
        write_dicom(top / "dx" / f"{number:02d}", picture, **tags)
    whole = (top / "dx" / "00").read_bytes()
    (top / "dx" / "05-cut").write_bytes(whole[:300])
    (top / "dx" / "06-empty.dcm").write_bytes(b"")
    (top / "dx" / "07-junk.dcm").write_bytes(b"no DICOM at all")
    (top / "dx" / "08-notes").write_text("nothing")
    (top / "dx" / "09-only-magic").write_bytes(whole[:132] + b"\xff" * 40)
    write_dicom(top / "dx" / "10-slide", picture, Modality="SM")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(top / "dx" / "11.png")
    write_nifti(top / "n" / "scan.nii.gz", rng.integers(-1000, 200, (7, 6, 5)).astype(np.int16))
    (top / "n" / "broken.nii.gz").write_bytes(b"x")
    (top / "n" / "again").symlink_to(top, target_is_directory=True)
    (top / "dx" / os.fsdecode(b"b\xe4d")).write_bytes(whole)
    for name in ("dx/10.zip", "p1.zip", "zz.zip"):
        with zipfile.ZipFile(top / name, "w") as archive:
            for path in sorted((top / "p1").rglob("IM*")):
                archive.write(path, path.relative_to(top))
            archive.write(top / "dx" / "03", "x/03")
            archive.writestr("x/inner.zip", b"PK\x05\x06" + bytes(18))
    (top / "dx" / "10.zip.dcm").write_bytes(whole)
    (top / "dx" / "10-last").write_bytes(whole)
    (top / "damaged.zip").write_bytes(b"PK\x03\x04 and no more")
    return top


def rows(items):
    return [(type(item), item.uri, item.reason, item.remedy, item.keys) if isinstance(item, BadSource) else item for item in items]


@pytest.mark.parametrize("domain", [ct, xray], ids=["ct", "xray"])
def test_processes_find_the_same_as_this_process_in_the_same_order(domain, mixed, tmp_path, early):
    select = Select(exclude=("p2/s2/*",), scratch=str(tmp_path))
    alone = rows(domain.discover(str(mixed), select))
    helped = rows(domain.discover(str(mixed), Select(exclude=("p2/s2/*",), scratch=str(tmp_path), workers=2)))
    assert helped == alone
    assert sum(isinstance(row, tuple) for row in alone) >= 8
    assert sum(not isinstance(row, tuple) for row in alone) >= 14
    assert any(".zip/" in row.uris[0] for row in alone if not isinstance(row, tuple))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [None, 0, 5])
def test_few_files_and_no_workers_start_no_process(workers, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(reading_ahead, "FEW", 2000 if workers else 2)
    monkeypatch.setattr(reading_ahead._Pool, "_started", None)
    assert list(ct.discover(str(mixed), Select(scratch=str(tmp_path), workers=workers)))


def test_a_worker_killed_in_the_middle_costs_nothing_but_a_warning(mixed, early, caplog):
    alone = rows(xray.discover(str(mixed / "dx"), Select(exclude=("*.zip",))))
    helped = []
    for item in xray.discover(str(mixed / "dx"), Select(exclude=("*.zip",), workers=1)):
        if len(helped) in (4, 20):  # the second finds its batches read already, or a new worker
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
        helped.append(item)
    assert rows(helped) == alone


def paths_of(folder):
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_after_too_many_deaths_this_process_goes_on_alone(mixed, early, caplog, monkeypatch):
    monkeypatch.setattr(reading_ahead, "_LARGEST_BATCH", 4)
    monkeypatch.setattr(reading_ahead, "_FIRST_BATCH", 4)
    monkeypatch.setattr(reading_ahead, "_MOST_DEATHS", 1)
    read = ReadFile(names=(), by_series=False)
    headers = HeadersAhead(read, 1, lambda path: path)
    paths = paths_of(mixed / "dx")
    done = 0
    for number, path in enumerate(headers.ahead(paths)):
        if number in (8, 24):
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()
        wanted = read(path)
        if isinstance(wanted, Exception):
            with pytest.raises(type(wanted), match=re.escape(str(wanted))):
                headers.of(path)
        else:
            assert headers.of(path) == wanted
        done += 1
    headers.close()
    assert done == len(paths)
    said = [record.getMessage() for record in caplog.records if record.name == reading_ahead.__name__]
    assert "others are started" in said[0]
    assert "goes on alone" in said[1]
    assert len(said) == 2


def _hears_ctrl_c() -> None:
    """A suite that runs in the background ignores Ctrl-C, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(tmp_path, folder, guard):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), guard]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_hears_ctrl_c
    )


def gone(pids):
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_an_interrupt_ends_all_processes_without_a_word_of_theirs(mixed, tmp_path):
    process = started(tmp_path, mixed / "dx", "guarded")
    pids = process.stdout.readline().split()
    assert pids
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert process.returncode == 0
    assert out == "interrupted 0\n"
    assert gone(pids)


def test_workers_end_with_a_parent_that_is_killed(mixed, tmp_path):
    process = started(tmp_path, mixed / "dx", "guarded")
    pids = process.stdout.readline().split()
    process.kill()
    process.communicate(timeout=30)
    assert pids
    assert gone(pids)


def test_a_script_without_a_guard_is_told_what_to_do(mixed, tmp_path):
    out, _ = started(tmp_path, mixed / "dx", "unguarded").communicate(timeout=60)
    assert 'call it below `if __name__ == "__main__":`' in out


def test_an_error_of_the_worker_itself_is_raised(mixed, early):
    headers = HeadersAhead(ReadFile(names=("NoSuchKeyword",), by_series=False), 1, lambda path: path)
    headers._asked = 2
    with pytest.raises(AssertionError, match="NoSuchKeyword"):
        list(headers.ahead(paths_of(mixed / "dx")))
    headers.close()


def test_a_long_walk_says_every_ten_seconds_how_far_it_is(caplog):
    caplog.set_level(logging.INFO)
    now = iter(range(0, 1000, 2))
    told = Told("files", "headers", lambda: next(now))
    for _ in range(11):
        told.add(3)
    assert [record.getMessage() for record in caplog.records] == [
        "discovery: 5 files, 15 headers so far (2 headers/s)",
        "discovery: 10 files, 30 headers so far (2 headers/s)",
    ]
