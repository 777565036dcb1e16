"""A whole run whose process dies, as far as the disk can tell, between two operations: started again it ends as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinodomain.checkpoint import list_backbones, read_best
from dinodomain.engine import open_run, pretrain
from dinodomain.lineage import to_json

UNEVEN = (".lock", "log.txt", "metrics.jsonl", "watch.safetensors")
"""Files with times, or a header whose order is anybody's guess; what is in the last decides ``watch_dense_drift`` of the rows."""

SHORT = {"engine": {"steps": 4}, "checkpoint": {"every": 2, "keep": 1, "spaced": 2}, "watch": {"every": 1}}

CLOCK = ("seconds", "data_wait", "samples_per_s", "memory")

POINTS = 6
"""Deaths that are tried, spread evenly over all operations of the run; ``tests/checkpoint/test_kill.py`` tries every one of a save."""

CHILD = """
import json, sys
from dinodomain.config import build
from dinodomain.engine import PretrainPlan, pretrain
from dinodomain.testing import SyntheticImages
pretrain(build(PretrainPlan, json.loads(sys.argv[1])), domain=SyntheticImages(size=(32, 32)))
"""


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


def left(run: Path):
    """What a run leaves, without times: rows, and the bytes of checkpoint, backbones and lineage."""
    rows = [{name: value for name, value in row.items() if name not in CLOCK} for row in open_run(run).metrics()]
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name not in UNEVEN]
    return rows, {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_a_run_that_dies_at_any_operation_ends_the_same(make_plan, images, tmp_path, dies_at):
    """Same folder name each time: the plan in a checkpoint knows it."""
    plan = make_plan(**SHORT)
    with dies_at(math.inf) as life:
        run = pretrain(plan, domain=images)
    assert list(list_backbones(run.path)) == ["step-000002", "step-000004", "best"]
    assert read_best(run.path) is not None
    rows, files = left(run.path)
    for point in range(POINTS):
        shutil.rmtree(run.path)
        number = round((point + 0.5) * len(life.done) / POINTS)
        with pytest.raises(dies_at.error), dies_at(number):
            pretrain(plan, domain=images)
        pretrain(plan, domain=images)
        again, found = left(run.path)
        where = f"died at operation {number} ({life.done[number]})"
        assert again == rows, where
        assert found.keys() == files.keys(), where
        assert not [name for name in files if found[name] != files[name]], where


def test_a_run_that_is_killed_by_the_system_goes_on_bit_equal(make_plan, images, tmp_path):
    wanted = left(pretrain(make_plan(out=str(tmp_path / "whole")), domain=images).path)[0]
    plan = make_plan()
    command = [sys.executable, "-c", CHILD, json.dumps(to_json(plan))]
    child = subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics, deadline = Path(plan.out) / "metrics.jsonl", time.monotonic() + 60
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 7:
        assert child.poll() is None, child.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    child.communicate()
    assert left(pretrain(plan, domain=images).path)[0] == wanted
