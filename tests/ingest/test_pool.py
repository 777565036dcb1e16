"""Worker processes: results come whole, a dead worker costs one task, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass

import pytest

from dinodomain.errors import UserError
from dinodomain.ingest.pool import Lost, run_here, run_processes


@dataclass(frozen=True)
class Work:
    """Squares its task; some numbers end the process or raise."""

    def __call__(self, task: int) -> int:
        if task == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 14:
            os._exit(7)
        if task == 99:
            raise UserError("store", "no space", remedy="free some")
        return task * task


SCRIPT = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[1])
    from test_pool import Work
    from dinodomain.ingest.pool import run_processes
    GUARD = sys.argv[2] == "guarded"
    if not GUARD or __name__ == "__main__":
        print(sorted(map(repr, run_processes(Work(), [2, 13, 3, 14, 4], 2))))
    """
)


def script(tmp_path, mode):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), os.path.dirname(__file__), mode]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_in_this_process_and_in_others_give_the_same(tmp_path):
    done = script(tmp_path, "guarded")
    lost = [repr(Lost(task=13, cause="signal 9")), repr(Lost(task=14, cause="exit status 7"))]
    assert done.stdout.strip() == repr(sorted([*map(repr, run_here(Work(), [2, 3, 4])), *lost])), done.stderr


def test_a_script_without_a_main_guard_is_told_what_to_do(tmp_path):
    done = script(tmp_path, "bare")
    assert done.returncode == 1
    assert 'call it below `if __name__ == "__main__":`; or set ingest.workers=0' in done.stderr


def test_what_a_task_raises_reaches_the_caller():
    with pytest.raises(UserError, match="store: no space; free some"):
        list(run_here(Work(), [1, 99]))


ORPHANS = textwrap.dedent(
    """
    import os, sys, time
    from dinodomain.ingest.pool import run_processes
    def work(task):
        open(task, "w").write(str(os.getpid()))
        time.sleep(60)
    if __name__ == "__main__":
        list(run_processes(work, sys.argv[1:], 1))
    """
)


def test_a_worker_leaves_when_its_parent_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path / "pid")], stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    until(lambda: not running(worker))


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_tasks_start_no_processes():
    assert list(run_processes(Work(), [], 4)) == []
