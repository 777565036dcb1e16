"""Training and embedding read a store on a server as they read the same store in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dinodomain.checkpoint import CheckpointPlan
from dinodomain.embed import EmbedPlan, embed
from dinodomain.engine import EnginePlan, PretrainPlan, pretrain
from dinodomain.engine.doctor import DoctorPlan, doctor
from dinodomain.ingest.inspect import inspect
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.store import StorePlan
from dinodomain.testing import SyntheticImages, tiny_store
from dinodomain.views import ViewsPlan

pytest.importorskip("obstore")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "localhost"])


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing them takes longer than the runs."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


def plan(store: str, out: Path, workers: int) -> PretrainPlan:
    return PretrainPlan(
        domain="synthetic",
        store=store,
        out=str(out),
        loader=LoaderPlan(batch=4, threads=1, workers=workers, requests=8),
        views=ViewsPlan(global_size=16, local_size=8, num_local=2),
        model=ModelPlan(dim=16, depth=2, heads=2, patch=8, registers=1, drop_path=0.3, layer_scale=0.1),
        objective=ObjectivePlan(prototypes=16, head_hidden=16, bottleneck=8, head_layers=2, mask_probability=1.0),
        checkpoint=CheckpointPlan(every=3),
        engine=EnginePlan(steps=3, device="cpu", precision="fp32", threads=1, trackers=()),
    )


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_its_features_are_those_of_the_folder(tmp_path, server):
    domain = SyntheticImages(size=(32, 32))
    near = tiny_store(tmp_path / "store", domain=domain)
    far = server.upload(near)
    for name, store, workers in (("near", str(near), 0), ("far", far, 1)):
        pretrain(plan(store, tmp_path / name, workers), domain=domain)
    assert losses(tmp_path / "near") == losses(tmp_path / "far")
    features = {}
    for name, store in (("near", str(near)), ("far", far)):
        features[name] = embed(
            EmbedPlan(checkpoint=str(tmp_path / "near"), store=store, out=str(tmp_path / f"{name}.features"), device="cpu"), domain=domain
        )
    np.testing.assert_array_equal(features["near"].table.features, features["far"].table.features)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or server.secret.encode() not in path.read_bytes()


def test_a_store_on_a_server_can_be_inspected(tmp_path, server):
    far = server.upload(tiny_store(tmp_path / "store", domain=SyntheticImages(size=(32, 32))))
    found = inspect(far)
    assert found.store == far
    assert (found.bytes_on_disk, found.as_json()["ratio"]) == (None, None)
    assert "on a server:" in found.text()


def test_a_server_that_fails_every_third_request_changes_no_loss(tmp_path, server):
    """Server errors, connections that are reset and bodies that are cut short, before two reader processes and the training process."""
    domain = SyntheticImages(size=(32, 32), layout="window")
    near = tiny_store(tmp_path / "store", domain=domain, num=8, storage=StorePlan(chunk=32))
    far = server.upload(near)
    pretrain(plan(str(near), tmp_path / "near", 0), domain=domain)
    server.plan(None, None, "503", None, None, "reset", None, None, "short", None, None, "500")
    pretrain(plan(far, tmp_path / "far", 2), domain=domain)
    faults = server.faults()
    assert sum(fault is not None for fault in faults) == len(faults) // 3
    assert {"503", "reset", "short", "500"} <= set(faults)
    assert losses(tmp_path / "near") == losses(tmp_path / "far")


def test_a_store_on_a_server_can_be_measured(tmp_path, server):
    far = server.upload(tiny_store(tmp_path / "store", domain=SyntheticImages(size=(32, 32)), num=4))
    found = doctor(DoctorPlan(store=far, seconds=0.03, loader=LoaderPlan(batch=2, workers=0)))
    assert found.store == far
    assert all(speed.samples_per_s > 0 for speed in found.speeds)
    assert not any("no disk is read" in note for note in found.notes), "nothing of a server stays in memory"
