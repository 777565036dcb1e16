from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dinodomain.engine import open_run, pretrain
from dinodomain.lineage import to_json
from dinodomain.loader import Loader
from dinodomain.store import StorePlan, open_store
from dinodomain.testing import SyntheticImages, tiny_store

CHILD = """
import json, sys
from dinodomain.config import build
from dinodomain.engine import PretrainPlan, pretrain
from dinodomain.testing import SyntheticImages
pretrain(build(PretrainPlan, json.loads(sys.argv[1])), domain=SyntheticImages(size=(32, 32)))
"""


def run_on_two(plan, *, works=True):
    """What ``torchrun --nproc-per-node 2`` lays out, without its launcher."""
    port = free_port()
    children = []
    for rank in range(2):
        environment = {
            **os.environ,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, "-c", CHILD, json.dumps(to_json(plan))]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [child.communicate(timeout=120)[0].decode() for child in children]
    assert all((child.returncode == 0) == works for child in children), outputs
    return outputs


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.usefixtures("socket_enabled")
def test_two_processes_train_like_one(make_plan, images, tmp_path):
    """Without KoLeo, which compares samples within a process, and dropped paths, which are drawn per process."""
    fast = {"lr": 0.02, "warmup": 0.0, "schedule": "constant", "freeze_last_layer": 0.0}
    changes = {"model": {"drop_path": 0.0}, "objective": {"koleo_weight": 0.0}, "checkpoint": {"every": 2}, "optim": fast}
    one = pretrain(make_plan(**changes, out=str(tmp_path / "one"), engine={"steps": 4}), domain=images)
    plan = make_plan(**changes, out=str(tmp_path / "two"), engine={"steps": 4})
    run_on_two(plan)
    two = open_run(plan.out)
    assert two.finished
    start, first, second = (
        load_file(run.path / "checkpoints" / f"step-{step:06d}" / "student.safetensors") for run, step in ((one, 2), (one, 4), (two, 4))
    )
    way, apart = (sum(float((value - other[name]).square().sum()) for name, value in first.items()) ** 0.5 for other in (start, second))
    assert way > 0.1
    assert apart < 1e-4 * way
    assert [row["loss"] for row in two.metrics()] == pytest.approx([row["loss"] for row in one.metrics()], abs=1e-5)


@pytest.mark.usefixtures("socket_enabled")
def test_data_that_one_process_cannot_read_end_all_with_their_work_saved(make_plan, tmp_path):
    """A scene that is drawn in the second step for the first time is truncated; only the rank that draws it meets it."""
    scenes = SyntheticImages(size=(32, 32), layout="window")
    path = tiny_store(tmp_path / "store", domain=scenes, num=8, storage=StorePlan(chunk=32))
    plan = make_plan(store=str(path), checkpoint={"every": 1000}, watch={"tiles": 0})
    store = open_store(path)
    loader = Loader(store, plan.loader, seed=plan.seed)
    (shard,) = Path(store.address(int(loader.tiles.rows[loader.order.at(1).tiles[-1]]), (0, 0))[0]).rglob("0/0/0")
    os.truncate(shard, 100)
    outputs = run_on_two(plan, works=False)
    assert sum(f"{shard}: " in output for output in outputs) == 1, outputs
    assert sum("another process could not read the data of step 1" in output for output in outputs) == 1, outputs
    assert open_run(plan.out).step == 1
