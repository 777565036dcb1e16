"""What befalls the data of a run: readers that die, files that are damaged or change, servers that fail. Never a wrong loss.

Each scene is a shard of its own, so a fault strikes the steps that draw that scene and no other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinodomain.engine import PretrainPlan, Run, open_run, pretrain
from dinodomain.lineage import to_json
from dinodomain.loader import Loader
from dinodomain.store import StorePlan, open_store
from dinodomain.testing import SyntheticImages, tiny_store

SCENES = SyntheticImages(size=(32, 32), layout="window")
STEPS, STRUCK = 24, 6
CLOCK = ("seconds", "data_wait", "samples_per_s", "memory")
SIGNED = "AWS4-HMAC-SHA256 Credential=a/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=a"

ZYGOTE = textwrap.dedent(
    """
    import contextlib, io, json, os, signal, sys
    import torch._dynamo  # which the first optimiser of a process imports, for three seconds
    from dinodomain import engine, testing
    from dinodomain.cli import main
    from dinodomain.engine import record
    from dinodomain.engine.record import Recorder

    record.draw_curves = lambda rows, folder: []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["pretrain", "domain=synthetic", "store=/no/store", "out=/no/run"])  # what it imports on the way
    plain = Recorder.write

    def write(self, row):
        plain(self, row)
        if row["step"] == job.get("struck"):
            exec(job["fault"], job)

    Recorder.write = write
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores Ctrl-C
            for number, name in ((1, "said"), (2, "errors")):
                os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.exit(main(job["words"]))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
)
"""A process that has imported everything, and is forked once per command: imports cost more than these runs."""

FAULTS = {
    "flipped": 'f = open(path, "r+b"); f.seek(30); byte = f.read(1); f.seek(30); f.write(bytes([byte[0] ^ 4])); f.close()',
    "truncated": "import os; os.truncate(path, os.path.getsize(path) // 2)",
    "replaced": 'import os, shutil; shutil.copy(other, path + ".new"); os.replace(path + ".new", path)',
}


def losses(run: Run) -> list[dict[str, Any]]:
    """Rows without the clock."""
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in run.metrics()]


def readers_of(parent: int) -> list[int]:
    """Process ids of a trainer's reader processes, which are told who their parent is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"dinodomain.loader.worker" in words and str(parent).encode() in words:
            found.append(int(entry.name))
    return sorted(found)


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("scenes") / "store", domain=SCENES, num=8, storage=StorePlan(chunk=32))


@pytest.fixture
def copy(scenes, tmp_path) -> Path:
    """A store of the test's own; same times of change, as a store on a disk has them."""
    return shutil.copytree(scenes, tmp_path / "store")


@pytest.fixture
def make(tiny_plan, tmp_path) -> Callable[..., PretrainPlan]:
    """The tiny run, saved at its end only, read by two processes."""

    def plan(store: Path | str, **loader: Any) -> PretrainPlan:
        base = unwatched(tiny_plan(tmp_path / "run"))
        return replace(
            base, store=str(store), engine=replace(base.engine, steps=STEPS), checkpoint=replace(base.checkpoint, every=1000),
            loader=replace(base.loader, **{"workers": 2, "threads": 1, "prefetch": 1, **loader}),
        )  # fmt: skip

    return plan


def unwatched(plan: PretrainPlan) -> PretrainPlan:
    """Nothing is held and looked at: a look would meet the damage before training does."""
    return replace(plan, watch=replace(plan.watch, tiles=0))


@pytest.fixture(scope="module")
def straight(scenes, tiny_plan, tmp_path_factory) -> list[dict[str, Any]]:
    """Rows of the run that nothing befell, read by the training process itself."""
    base = unwatched(tiny_plan(tmp_path_factory.mktemp("straight") / "run"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])
        run = pretrain(replace(base, store=str(scenes), engine=replace(base.engine, steps=STEPS)), domain=SCENES)
    return losses(run)


class Command:
    """``dinodomain pretrain`` in a process of its own, as a user runs it."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path, plan: PretrainPlan, **fault: object) -> None:
        self._zygote, self._errors = zygote, folder / "errors"
        (folder / "plan.yaml").write_text(json.dumps(to_json(plan)))  # every JSON is YAML
        words = ["pretrain", f"config={folder / 'plan.yaml'}"]
        job = {"words": words, "said": str(folder / "said"), "errors": str(self._errors), **fault}
        zygote.stdin.write(json.dumps(job) + "\n")
        zygote.stdin.flush()
        self.pid = int(zygote.stdout.readline())

    def wait(self) -> int:
        """Exit code, or minus the signal that ended it."""
        return int(self._zygote.stdout.readline())

    def errors(self) -> str:
        """What it wrote to the error stream."""
        return self._errors.read_text()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory) -> Iterator[subprocess.Popen[str]]:
    """Where the made-up domain is an installed plug-in, as the command line finds domains by their names."""
    folder = tmp_path_factory.mktemp("plugin")
    info = folder / "plugin_of_faults-1.0.dist-info"
    info.mkdir()
    (folder / "plugin_of_faults.py").write_text(
        "from dinodomain.testing import SyntheticImages\nSCENES = SyntheticImages(size=(32, 32), layout='window')\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-faults\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dinodomain.domains]\nsynthetic = plugin_of_faults:SCENES\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", ZYGOTE]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        yield process
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture
def start(zygote, tmp_path) -> Callable[..., Command]:
    return lambda plan, **fault: Command(zygote, tmp_path, plan, **fault)


def resumed(plan: PretrainPlan) -> Run:
    """The run taken up again, read by this process now."""
    return pretrain(replace(plan, loader=replace(plan.loader, workers=0)), domain=SCENES)


def shard_of(store: Path, row: int) -> Path:
    """The one shard of a scene."""
    opened = open_store(store)
    (found,) = (path for path in Path(opened.address(row, (0, 0))[0]).rglob("*") if path.is_file() and path.name != "zarr.json")
    return found


def draws_of(plan: PretrainPlan) -> dict[int, int]:
    """First step that draws each row of the index."""
    loader = Loader(open_store(plan.store), plan.loader, seed=plan.seed)
    first: dict[int, int] = {}
    for step in range(STEPS):
        draw = loader.order.at(step)
        for row in loader.tiles.rows[loader.tiles.members[draw.bucket][draw.tiles]].tolist():
            first.setdefault(row, step)
    return first


# --- readers -----------------------------------------------------------------------------------------------------------


def test_readers_killed_twenty_times_change_no_loss(make, scenes, straight):
    class Killer:
        """Kills, after each step, every process that is up; a batch is read ahead, so each has read something between two of its deaths."""

        killed: list[int] = []  # noqa: RUF012 # of one test

        def begin(self, plan: object) -> None:
            pass

        def figures(self, step: int, files: object) -> None:
            pass

        def log(self, step: int, values: object) -> None:
            for pid in readers_of(os.getpid()):
                if len(self.killed) < 20 and b"dinodomain-ring" in Path(f"/proc/{pid}/maps").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(pid)

        def close(self) -> None:
            pass

    run = pretrain(make(scenes), domain=SCENES, trackers=[Killer()])
    assert len(set(Killer.killed)) == 20
    assert losses(run) == straight
    assert not readers_of(os.getpid())


def test_readers_and_threads_and_the_calling_thread_give_one_loss(make, scenes, straight):
    assert losses(pretrain(make(scenes, workers=1, threads=2, prefetch=4), domain=SCENES)) == straight


# --- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "says"), [("flipped", "chunk (0, 0, 0) cannot be read"), ("truncated", "truncated or altered")])
def test_a_damaged_shard_ends_a_run_that_goes_on_where_it_was_once_the_file_is_restored(make, copy, straight, start, fault, says):
    plan = make(copy)
    row, step = max(draws_of(plan).items(), key=lambda item: item[1])
    shard = shard_of(copy, row)
    whole = shard.read_bytes()
    exec(FAULTS[fault], {"path": str(shard)})
    check_ended(start(plan), shard, says)
    assert open_run(plan.out).step == step >= 1, "saved, though checkpoint.every is far away"
    assert losses(open_run(plan.out)) == straight[:step]
    shard.write_bytes(whole)
    assert losses(resumed(plan)) == straight


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("flipped", "chunk (0, 0, 0) cannot be read: the file was written to while it was open"),
        ("truncated", "while it was open"),
        ("replaced", "chunk (0, 0, 0) cannot be read: the file was replaced by another while it was open"),
    ],
)
def test_a_shard_that_changes_during_a_run_is_never_taken_for_the_old_one(make, copy, scenes, straight, start, fault, says):
    plan = make(copy, workers=1)  # one process, so that it has every shard open by then
    shard, other = shard_of(copy, 0), shard_of(copy, 1)
    check_ended(start(plan, struck=STRUCK, fault=FAULTS[fault], path=str(shard), other=str(other)), shard, says)
    run = open_run(plan.out)
    assert STRUCK < run.step < STEPS
    assert losses(run) == straight[: run.step]
    shutil.copyfile(shard_of(scenes, 0), shard)
    assert losses(resumed(plan)) == straight


def check_ended(command: Command, shard: Path, says: str) -> None:
    """Exit code 2 and one message, which names the file and says what is wrong with it; nobody reads any more."""
    code, errors = command.wait(), command.errors()
    assert code == 2, errors
    (message,) = [line for line in errors.splitlines() if str(shard) in line]
    assert says in message
    assert "restore the file" in message
    assert "Traceback" not in errors
    assert not readers_of(command.pid)


# --- the trainer -------------------------------------------------------------------------------------------------------


def test_a_killed_trainer_leaves_no_reader_behind_and_goes_on_bit_equal(make, scenes, straight, start):
    plan = make(scenes)
    seen = "import os, subprocess; os.kill(os.getpid(), 9)"
    command = start(plan, struck=STRUCK, fault=seen)
    wait_until(lambda: len(readers_of(command.pid)) == 2)
    assert command.wait() == -signal.SIGKILL
    wait_until(lambda: not readers_of(command.pid), seconds=20)
    assert losses(resumed(plan)) == straight


def test_ctrl_c_saves_ends_the_readers_and_goes_on_bit_equal(make, scenes, straight, start):
    plan = make(scenes)
    command = start(plan, struck=STRUCK, fault="import os, signal; os.killpg(0, signal.SIGINT)")  # as a terminal sends it
    wait_until(lambda: len(readers_of(command.pid)) == 2)
    assert command.wait() == 130
    assert not readers_of(command.pid)
    assert open_run(plan.out).step == STRUCK + 1
    assert losses(resumed(plan)) == straight
