"""On a CUDA device: batches, views and steps are those of the CPU; a run resumes bit-equal; processes feed it. Core packages only."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from dinodomain.engine import open_run, pretrain
from dinodomain.engine.build import build
from dinodomain.engine.step import render_views, train_step
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.objective import Loss, Objective, ObjectivePlan
from dinodomain.objective.moments import moments_of
from dinodomain.store import open_store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def losses(run):
    return [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("draws", [1, 2])
def test_batches_on_the_device_are_those_of_the_host(store, workers, draws):
    plan = LoaderPlan(batch=8, workers=workers, draws=draws, prefetch=3)
    here, there = (Loader(open_store(store), plan, seed=3, device=device) for device in ("cpu", "cuda"))
    with closing(iter(here)) as host, closing(iter(there)) as device:
        for ours, theirs in islice(zip(host, device), 12):
            assert theirs.pixels.is_cuda
            assert torch.equal(theirs.pixels.cpu().view(torch.uint8), ours.pixels.view(torch.uint8))
            for name in ("tile_ids", "epochs", "draws", "rows", "origins", "slots"):
                assert torch.equal(getattr(theirs, name).cpu(), getattr(ours, name)), name
            assert torch.equal(theirs.info.valid_box.cpu(), ours.info.valid_box)


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_views_on_the_device_are_those_of_the_host(make_plan, images, volumes, store, volume_store, kind):
    domain, path = (images, store) if kind == "images" else (volumes, volume_store)
    plan = make_plan(store=str(path))
    made = []
    for device in ("cpu", "cuda"):
        setup = build(replace(plan, engine=replace(plan.engine, device=device)), domain)
        with closing(iter(setup.loader)) as batches:
            made.append(render_views(setup.training, next(batches)))
    for ours, theirs in zip(made[0].groups, made[1].groups):
        assert theirs.pixels.is_cuda
        assert torch.allclose(theirs.pixels.cpu(), ours.pixels, atol=2e-4)
        assert torch.allclose(theirs.valid.cpu(), ours.valid, atol=1e-5)


def test_steps_on_the_device_follow_those_of_the_host(make_plan, images):
    found = {}
    for device in ("cpu", "cuda"):
        plan = make_plan(model={"drop_path": 0.0})  # each device has random numbers of its own
        setup = build(replace(plan, engine=replace(plan.engine, device=device, deterministic=True)), images)
        with closing(iter(setup.loader)) as batches:
            found[device] = [float(train_step(setup.training, batch).metrics["loss"]) for batch in islice(batches, 5)]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_to_bit_equal_losses_when_deterministic(make_plan, images, tmp_path, precision):
    engine = {"device": "cuda", "deterministic": True, "precision": precision, "steps": 10}
    whole = pretrain(make_plan(engine=engine, loader={"workers": 1, "threads": 2}, out=str(tmp_path / "whole")), domain=images)
    parts = make_plan(engine=engine, loader={"workers": 0}, out=str(tmp_path / "parts"))
    pretrain_until(parts, images, 5)
    assert open_run(parts.out).step == 5
    assert (Path(parts.out) / "checkpoints" / "step-000005").is_dir()
    assert losses(pretrain(parts, domain=images)) == losses(whole)


def pretrain_until(plan, domain, step):
    """Runs a plan and interrupts it in a step, as a person would: that step is finished and saved."""

    class Stop:
        def begin(self, plan):
            pass

        def log(self, at, values):
            if at + 1 == step:
                signal.raise_signal(signal.SIGINT)

        def figures(self, at, files):
            pass

        def close(self):
            pass

    with pytest.raises(KeyboardInterrupt):
        pretrain(plan, domain=domain, trackers=[Stop()])


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_measures_of_a_step_do_not_make_the_host_wait(centering):
    objective = Objective(ObjectivePlan(prototypes=16, centering=centering)).to("cuda")
    cls, target = torch.randn(8, 24, device="cuda"), torch.full((16,), 1 / 16, device="cuda")
    entropy, found = target.new_ones(()), {}
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = [Loss(total=entropy, parts={}, moments=moments_of(cls, entropy, target)) for _ in range(2)]
        found = objective.diagnose(parts, step=1, total_steps=10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda for value in found.values())
    assert float(found["kl_to_uniform"]) == pytest.approx(0.0, abs=1e-6)
