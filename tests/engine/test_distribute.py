"""One step shared out in every way gives one result: one process, micro-batches, DDP, FSDP2. Two gloo processes start for all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinodomain.checkpoint import load_checkpoint, save_checkpoint
from dinodomain.engine import build, train_step
from dinodomain.engine.distribute import choose_distribute, distribute, micro_batch, whole_state
from dinodomain.engine.loop import host_values
from dinodomain.errors import UserError
from dinodomain.lineage import to_json

STEPS = 3
CHILD = """
import json, sys
from itertools import islice
from pathlib import Path
from dinodomain import parallel
from dinodomain.checkpoint import load_checkpoint, save_checkpoint
from dinodomain.config import build as strict
from dinodomain.engine import PretrainPlan, build, train_step
from dinodomain.engine.loop import host_values
from dinodomain.testing import SyntheticImages

found = {}
with parallel.process_group():
    for name, plan in json.loads(sys.argv[1]).items():
        setup = build(strict(PretrainPlan, plan), SyntheticImages(size=(32, 32)))
        training, first, out = setup.training, 0, Path(plan["out"])
        if name.startswith("resumed"):
            training.restore(load_checkpoint(out).state, "checkpoint")
            first = training.step
        rows = []
        for batch in islice(setup.loader, first, plan["engine"]["steps"]):
            if training.step == 1 and name == "fsdp2":
                held = training.snapshot({}, {})
                bias = parallel.own_rows(training.pair.student.backbone.vit.norm.bias.detach())
                good = bias.clone()
                bias.fill_(float("inf"))
                skipped = train_step(training, batch).skipped
                bias.copy_(good)
                after = training.snapshot({}, {})
                same = all(value.equal(after.tensors[part][key]) for part, values in held.tensors.items() for key, value in values.items())
                found["nan"] = {"skipped": skipped, "same": same, "tensors": len(held.tensors["student"])}
                training.step = 1
            rows.append(host_values(train_step(training, batch)))
            state = training.snapshot({}, {})
            if parallel.rank() == 0 and not name.startswith("resumed"):
                save_checkpoint(out, state, keep=9)
        found[name] = {"rows": rows, "held": sum(parallel.own_rows(p).numel() for p in training.pair.parameters())}
        parallel.barrier()
Path(sys.argv[2] + f"-{parallel.os.environ['RANK']}.json").write_text(json.dumps(found))
"""
CHANGES = {
    "loader": {"batch": 8},
    "model": {"drop_path": 0.0},
    "objective": {"koleo_weight": 0.0},
    # Rates at which a few steps go far: what processes may differ by is a share of the way.
    "optim": {"freeze_last_layer": 0.0, "lr": 0.02, "warmup": 0.0, "momentum": (0.5, 0.5)},
    "engine": {"steps": STEPS},
}


@pytest.fixture(scope="module")
def plan_of(tiny_plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, **engine: object):
        plan = tiny_plan(folder / name)
        for section, values in CHANGES.items():
            plan = replace(plan, **{section: replace(getattr(plan, section), **values)})
        return replace(plan, engine=replace(plan.engine, **engine))

    return make


def sinkhorn(plan):
    """The other way of centring, and a head of their own for masked patches."""
    return replace(plan, objective=replace(plan.objective, centering="sinkhorn", patch_head="separate", patch_prototypes=12))


def train(plan, images, *, first: int = 0):
    """Rows of a run on one process; a checkpoint after every step."""
    setup = build(plan, images)
    training = setup.training
    if first:
        training.restore(load_checkpoint(Path(plan.out) / "checkpoints" / f"step-{first:06d}").state, "checkpoint")
    else:
        save_checkpoint(Path(plan.out), training.snapshot({}, {}), keep=9)
    rows = []
    for batch in islice(setup.loader, first, STEPS):
        rows.append(host_values(train_step(training, batch)))
        if not first:
            save_checkpoint(Path(plan.out), training.snapshot({}, {}), keep=9)
    return rows


def losses(rows):
    return [row["loss"] for row in rows]


def weights(plan, step: int = STEPS):
    folder = Path(plan.out) / "checkpoints" / f"step-{step:06d}"
    return {f"{part}/{name}": value for part in ("student", "teacher", "objective", "optimizer")
            for name, value in load_file(folder / f"{part}.safetensors").items()}  # fmt: skip


@pytest.fixture(scope="module")
def one(plan_of, images):
    """The reference: one process, one batch of eight."""
    return {"softmax": train(plan_of("one"), images), "sinkhorn": train(sinkhorn(plan_of("one-sinkhorn")), images)}


@pytest.fixture(scope="module")
def two(plan_of, images, one, tmp_path_factory):
    """The same on two processes, all ways, and what each of them held."""
    half_way = plan_of("resumed", distribute="fsdp2")
    reference = Path(plan_of("one").out) / "checkpoints" / "step-000002"
    save_checkpoint(Path(half_way.out), load_checkpoint(reference).state)
    plans = {
        "ddp": plan_of("ddp", distribute="ddp"),
        "ddp-accumulate": sinkhorn(plan_of("ddp-accumulate", distribute="ddp", accumulate=2)),
        "fsdp2": plan_of("fsdp2", distribute="fsdp2"),
        "fsdp2-accumulate": sinkhorn(plan_of("fsdp2-accumulate", distribute="fsdp2", accumulate=2, checkpointing=True)),
        "fsdp2-bf16": plan_of("fsdp2-bf16", distribute="fsdp2", precision="bf16"),
        "resumed": half_way,
    }
    place = str(tmp_path_factory.mktemp("two") / "found")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = json.dumps({name: to_json(plan) for name, plan in plans.items()})
    laid_out = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, given, place],
            env={**os.environ, **laid_out, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    said = [child.communicate(timeout=240)[0].decode() for child in children]
    assert all(child.returncode == 0 for child in children), said
    return [json.loads(Path(f"{place}-{rank}.json").read_text()) for rank in range(2)]


pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.mark.parametrize(("name", "reference"), [
    ("ddp", "softmax"), ("ddp-accumulate", "sinkhorn"), ("fsdp2", "softmax"), ("fsdp2-accumulate", "sinkhorn"),
])  # fmt: skip
def test_losses_on_two_processes_are_those_of_one(one, two, name, reference):
    for rank in two:
        assert losses(rank[name]["rows"]) == pytest.approx(losses(one[reference]), abs=1e-5)


@pytest.mark.parametrize(("name", "reference"), [
    ("ddp", "one"), ("ddp-accumulate", "one-sinkhorn"), ("fsdp2", "one"), ("fsdp2-accumulate", "one-sinkhorn"),
])  # fmt: skip
def test_weights_teacher_centres_and_moments_are_those_of_one_process(two, plan_of, name, reference):
    own, expected, start = weights(plan_of(name)), weights(plan_of(reference)), weights(plan_of(reference), 0)
    assert own.keys() == expected.keys()
    assert all(own[key].shape == value.shape for key, value in expected.items())
    kinds = [key.split("/")[1 if key.startswith("optimizer/") else 0] for key in own]  # each moment by itself
    for kind in set(kinds):
        keys = [key for key, its in zip(own, kinds) if its == kind]
        way = length(expected[key] - start.get(key, torch.zeros(())) for key in keys)  # moments begin at zero
        apart = length(own[key] - expected[key] for key in keys)
        assert way > 0, kind
        assert apart < 1e-4 * way, (kind, apart / way)


def length(values) -> float:
    return sum(float(value.float().square().sum()) for value in values) ** 0.5


@pytest.mark.parametrize(("name", "reference"), [("ddp", "softmax"), ("ddp-accumulate", "sinkhorn"), ("fsdp2-accumulate", "sinkhorn")])
def test_measures_of_collapse_are_those_of_the_whole_batch(one, two, name, reference):
    for row, expected in zip(two[0][name]["rows"], one[reference]):
        for measure in ("teacher_entropy", "kl_to_uniform", "feature_std", "center_norm", "teacher_temperature"):
            assert row[measure] == pytest.approx(expected[measure], rel=1e-4, abs=1e-6), measure


def test_the_update_ratio_is_that_of_the_whole_weight_also_where_it_is_in_parts(one, two):
    for name in ("ddp", "fsdp2"):
        for row, expected in zip(two[1][name]["rows"], one["softmax"]):
            assert row["update_ratio"] == pytest.approx(expected["update_ratio"], rel=1e-3), name


def test_gradient_norms_are_those_of_the_whole_model_also_where_it_is_in_parts(one, two):
    names = ("backbone", "head", "patch_embed", "block_first", "block_middle", "block_last")
    for name in ("ddp", "fsdp2"):
        for row, expected in zip(two[0][name]["rows"], one["softmax"]):
            for part in names:
                assert row[f"grad_norm_{part}"] == pytest.approx(expected[f"grad_norm_{part}"], rel=1e-3), part


def test_each_process_holds_half_of_a_sharded_model_and_all_of_a_copied_one(two):
    whole = two[0]["ddp"]["held"]
    assert two[1]["ddp"]["held"] == whole
    assert sum(rank["fsdp2"]["held"] for rank in two) == whole
    assert max(rank["fsdp2"]["held"] for rank in two) < 0.6 * whole


def test_bf16_keeps_float32_weights_and_nearly_the_same_losses_when_sharded(one, two, plan_of):
    assert losses(two[0]["fsdp2-bf16"]["rows"]) == pytest.approx(losses(one["softmax"]), rel=0.03)
    assert losses(two[0]["fsdp2-bf16"]["rows"]) != losses(one["softmax"])
    assert {value.dtype for value in weights(plan_of("fsdp2-bf16")).values()} == {torch.float32}


def test_a_step_with_nan_on_a_sharded_model_changes_nothing(two):
    assert two[0]["nan"]["skipped"]
    assert two[1]["nan"]["skipped"]
    assert two[0]["nan"]["same"]
    assert two[0]["nan"]["tensors"] > 10
    assert two[1]["nan"]["tensors"] == 0  # sharded tensors are gathered on rank 0 alone


def test_a_checkpoint_of_one_process_goes_on_in_parts_and_the_other_way_round(one, two, plan_of, images):
    assert losses(two[0]["resumed"]["rows"]) == pytest.approx(losses(one["softmax"])[2:], abs=1e-5)
    assert losses(train(plan_of("fsdp2"), images, first=2)) == pytest.approx(losses(one["softmax"])[2:], abs=1e-5)


def test_one_process_needs_no_wrapper(plan_of, images):
    training = build(plan_of("alone", distribute="fsdp2"), images).training
    assert training.student is training.pair.student
    assert distribute(training.pair, training.plan.engine, torch.device("cpu")) is training.pair.student
    with micro_batch(training.student, last=False):
        pass
    own = training.pair.student.state_dict()
    assert all(value.data_ptr() == own[name].data_ptr() for name, value in whole_state(own).items())


def test_auto_shares_the_model_out_only_where_copies_do_not_fit(plan_of, monkeypatch):
    plan = plan_of("choose")
    at = {"ndim": 2, "channels": 3}
    assert choose_distribute(plan, **at, world=1)[0] == "ddp"
    monkeypatch.setattr("dinodomain.engine.distribute.device_memory", lambda device: 2**40)
    assert choose_distribute(plan, **at, world=2) == ("ddp", pytest.approx(choose_distribute(plan, **at, world=2)[1]))
    monkeypatch.setattr("dinodomain.engine.distribute.device_memory", lambda device: 1000)
    choice, reason = choose_distribute(plan, **at, world=2)
    assert choice == "fsdp2"
    assert "moments" in reason
    asked = replace(plan, engine=replace(plan.engine, distribute="ddp"))
    assert choose_distribute(asked, **at, world=2) == ("ddp", "asked for")
    with pytest.raises(UserError, match="2 processes"):
        choose_distribute(replace(plan, engine=replace(plan.engine, device="mps")), **at, world=2)
