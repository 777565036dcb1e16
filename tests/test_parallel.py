"""Collectives: one process alone, and two processes over gloo on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinodomain import parallel
from dinodomain.errors import UserError

WORKER = """
import json, sys
import torch
from torch import distributed
from dinodomain import parallel
from dinodomain.model import Backbone, Head, ModelPlan, Pair
from dinodomain.objective import Objective, ObjectivePlan
from dinodomain.objective.centering import Sinkhorn, Taught
from dinodomain.types import Normalisation, ViewGroup, Views

BATCH, OUT, RANK, WORLD = 8, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
if WORLD > 1:
    distributed.init_process_group("gloo", init_method=f"file://{OUT}/store", rank=RANK, world_size=WORLD)


def make_pair():
    torch.manual_seed(RANK)  # ranks differ until they are made equal
    normalisation = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.2,))
    plan = ModelPlan(dim=24, depth=1, heads=2, patch=8, registers=1)
    backbone = Backbone.create(plan, ndim=2, image_size=32, normalisation=normalisation, domain="x")
    pair = Pair(backbone, Head(24, prototypes=32, hidden=20, bottleneck=8))
    parallel.broadcast_module(pair)
    return pair


def make_views():
    # Position p of the global batch lies on rank p mod world.
    generator = torch.Generator().manual_seed(1)
    mine = torch.arange(RANK, BATCH, WORLD)

    def group(name, views, side):
        pixels = torch.randn(views, BATCH, 1, side, side, generator=generator)[:, mine].flatten(0, 1)
        valid = torch.rand(views, BATCH, (side // 8) ** 2, generator=generator)[:, mine].flatten(0, 1)
        places, spacing = torch.zeros(len(pixels), 2, 3), torch.ones(len(pixels), 2)
        kept = torch.ones(len(pixels), 1, dtype=torch.bool)
        return ViewGroup(name=name, pixels=pixels, valid=valid, to_tile=places, spacing=spacing, kept=kept, num_views=views)

    return Views(groups=(group("global", 2, 32), group("local", 2, 16)), channels=("a",), tile_ids=mine, slots=mine)


def steps(centering):
    pair, views = make_pair(), make_views()
    objective = Objective(ObjectivePlan(prototypes=32, head_hidden=20, bottleneck=8, koleo_weight=0.0, centering=centering))
    losses = []
    for step in range(3):
        loss = objective(pair, views, step=step, total_steps=3, seed=4)
        losses.append((parallel.all_reduce_sum(loss.total.detach().clone()) / parallel.world()).item())
        objective.update_centers()
    return losses, {name: value.tolist() for name, value in objective.state_dict().items()}


# Ranks with unequal numbers of rows: 5 and 3, or 8.
torch.manual_seed(2)
rows = torch.rand(8, 16)
mine = rows if WORLD == 1 else (rows[:5], rows[5:])[RANK]
(taught,) = Sinkhorn()([Taught(mine, torch.eye(16))], 0.05)
targets = taught.form(slice(None))[0]
cut = []
if WORLD > 1:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    mesh = init_device_mesh("cpu", (WORLD,))
    for length in (1, 3):  # the second rank may hold no row at all
        like = DTensor.from_local(torch.zeros(2 - RANK if length == 3 else 1 - RANK, 2), mesh, [Shard(0)], shape=(length, 2), stride=(2, 1))
        values = torch.arange(2.0 * length).view(length, 2)
        made = parallel.cut_like(values, like)
        parallel.fill(like, values + 1)
        cut.append([parallel.own_rows(made).tolist(), parallel.whole(like).tolist()])
losses, centers = steps("softmax")
sinkhorn, _ = steps("sinkhorn")
result = {
    "sum": parallel.all_reduce_sum(torch.tensor([RANK + 1.0, 10.0])).tolist(),
    "max": parallel.all_reduce_max(torch.tensor(float(RANK))).item(),
    "rank": parallel.rank(),
    "world": parallel.world(),
    "cut": cut,
    "targets": targets.tolist(),
    "losses": losses,
    "centers": centers,
    "sinkhorn": sinkhorn,
}
open(f"{OUT}/{WORLD}-{RANK}.json", "w").write(json.dumps(result))
parallel.barrier()
if WORLD > 1:
    distributed.destroy_process_group()
"""


def start(folder: Path, rank: int, world: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder), str(rank), str(world)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("gloo")
    running = [start(folder, rank, world) for world in (1, 2) for rank in range(world)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_two_processes_know_themselves_and_reduce(results):
    assert [(results[f"2-{rank}"]["rank"], results[f"2-{rank}"]["world"]) for rank in (0, 1)] == [(0, 2), (1, 2)]
    for rank in (0, 1):
        assert results[f"2-{rank}"]["sum"] == [3.0, 20.0]
        assert results[f"2-{rank}"]["max"] == 1.0


def test_centres_and_losses_are_the_same_on_one_process_with_eight_and_on_two_with_four(results):
    one, two = results["1-0"], results["2-0"]
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert set(one["centers"]) == {"cls_centering.center", "patch_centering.center"}
    for name, center in one["centers"].items():
        assert max(map(abs, center)) > 1e-3
        assert two["centers"][name] == pytest.approx(center, abs=1e-6)
        assert results["2-1"]["centers"][name] == two["centers"][name]


def test_sinkhorn_is_the_same_on_two_processes_also_with_unequal_rows(results):
    one, two = results["1-0"], results["2-0"]
    assert two["sinkhorn"] == pytest.approx(one["sinkhorn"], abs=1e-5)
    joined = torch.tensor(two["targets"] + results["2-1"]["targets"])
    torch.testing.assert_close(joined, torch.tensor(one["targets"]), rtol=1e-4, atol=1e-7)


def test_one_process_needs_no_group():
    assert not parallel.is_distributed()
    assert (parallel.rank(), parallel.world()) == (0, 1)
    value = torch.tensor([1.0, 2.0])
    assert parallel.all_reduce_sum(value) is value
    assert parallel.all_reduce_max(value) is value
    parallel.barrier()
    parallel.broadcast_module(torch.nn.Linear(1, 1))


def test_sharded_tensors_are_cut_from_whole_ones_and_gathered_again(results):
    first, second = (results[f"2-{rank}"]["cut"] for rank in (0, 1))
    assert first == [[[[0, 1]], [[1, 2]]], [[[0, 1], [2, 3]], [[1, 2], [3, 4], [5, 6]]]]
    assert second == [[[], [[1, 2]]], [[[4, 5]], [[1, 2], [3, 4], [5, 6]]]]


def test_tensors_that_are_not_sharded_are_taken_as_they_are():
    tensor, values = torch.zeros(3), torch.arange(3.0)
    assert not parallel.is_sharded(tensor)
    assert parallel.own_rows(tensor) is tensor
    assert parallel.whole(tensor) is tensor
    assert parallel.cut_like(values, tensor) is values
    parallel.fill(tensor, values)
    assert tensor.equal(values)


@pytest.mark.parametrize(("error", "silent"), [
    (RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:1"), True),
    (RuntimeError("Timed out waiting 600000ms for recv operation to complete (gloo)"), True),
    (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
    (RuntimeError("reading timed out"), False),
])  # fmt: skip
def test_a_process_that_waits_in_vain_is_told_from_one_that_fails_itself(error, silent):
    assert parallel.is_silence(error) is silent


@pytest.mark.usefixtures("socket_enabled")
def test_processes_that_cannot_meet_or_lose_one_another_are_told_so_in_plain_words(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="torchrun"), parallel.process_group():
        pass
    monkeypatch.setattr(parallel.distributed, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(parallel.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="process 1 waited for another one"), parallel.process_group():
        raise RuntimeError("[gloo] Connection closed by peer")
    with pytest.raises(RuntimeError, match="own fault"), parallel.process_group():
        raise RuntimeError("own fault")
