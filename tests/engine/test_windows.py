"""Display windows of one stored channel as several channels of the network, through every room that opens the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dinodomain
from dinodomain.checkpoint import load_checkpoint
from dinodomain.domain import DisplayWindow
from dinodomain.embed import embed_store
from dinodomain.engine import PretrainPlan, pretrain
from dinodomain.engine.build import build
from dinodomain.errors import UserError
from dinodomain.export import ExportPlan, export
from dinodomain.finetune import FinetunePlan, finetune
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.model import normalisation_of
from dinodomain.probes import ProbePlan, probe
from dinodomain.store import open_store
from dinodomain.testing import SyntheticVolumes, tiny_labels, tiny_store
from dinodomain.views import to_network

WINDOWS = {"low": DisplayWindow(centre=-500.0, width=800.0, mean=0.6, std=0.3), "high": DisplayWindow(centre=100.0, width=1600.0, mean=0.4)}
DOMAIN = SyntheticVolumes(size=(32, 32, 32), windows=WINDOWS)
NAMES = ("c0/low", "c0/high")


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("store") / "one_channel", domain=DOMAIN, num=12)


@pytest.fixture(scope="module")
def plan(tiny_plan, one_channel, tmp_path_factory) -> PretrainPlan:
    made = tiny_plan(tmp_path_factory.mktemp("windows") / "run")
    views = replace(made.views, windows=("low", "high"))
    checkpoint = replace(made.checkpoint, every=2)
    engine = replace(made.engine, steps=3)
    return replace(made, domain=DOMAIN.name, store=str(one_channel), views=views, checkpoint=checkpoint, engine=engine)


@pytest.fixture(scope="module")
def run(plan):
    return pretrain(plan, domain=DOMAIN)


def rewound(source: Path, target: Path, *, drop: int) -> None:
    """A run as it stood before its checkpoint of step ``drop``."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "checkpoints" / f"step-{drop:06d}")
    (target / "checkpoints" / "latest").unlink()


def test_a_run_resumes_bit_equal_and_its_checkpoint_knows_what_each_channel_is(plan, run, tmp_path):
    assert np.isfinite([row["loss"] for row in run.metrics()]).all()
    rewound(run.path, tmp_path / "run", drop=3)
    again = pretrain(replace(plan, out=str(tmp_path / "run")), domain=DOMAIN)
    assert [row["loss"] for row in again.metrics()] == [row["loss"] for row in run.metrics()]
    for found in (run.backbone().normalisation, normalisation_of(load_checkpoint(run.path).state.backbone)):
        assert (found.channels, found.sources, found.units) == (NAMES, ("c0", "c0"), ("1", "1"))
        assert (found.low, found.high) == ((-900.0, -700.0), (-100.0, 900.0))
        assert (found.mean, found.std) == ((0.6, 0.4), (0.3, 0.25))


def test_loading_encodes_network_channels_and_stores_are_judged_by_the_stored_one(run, one_channel, tmp_path):
    backbone = dinodomain.load(run.path)
    assert backbone.channels == NAMES
    features = backbone.encode(torch.zeros(2, 2, 16, 16, 16))
    assert features.cls.shape == (2, 16)
    assert embed_store(backbone, open_store(one_channel), DOMAIN, batch=4).features.shape == (12, 32)
    two = open_store(tiny_store(tmp_path / "two", domain=SyntheticVolumes(size=(32, 32, 32), num_channels=2), num=2))
    with pytest.raises(UserError, match=r"store: has the channels c0, c1; allowed: c0; ingest with ingest\.bands"):
        embed_store(backbone, two, DOMAIN)


def test_probe_and_finetune_take_a_windowed_backbone(run, one_channel, tmp_path):
    labels = str(tiny_labels(tmp_path / "labels.csv"))
    common = {"checkpoint": str(run.path), "store": str(one_channel), "labels": labels, "target": "level", "device": "cpu"}
    report = probe(ProbePlan(**common, out=str(tmp_path / "probe")), domain=DOMAIN)
    assert report is not None
    tuned = finetune(
        FinetunePlan(**common, out=str(tmp_path / "tuned"), task="regress", mode="full", steps=2, batch=4, baseline=False), domain=DOMAIN
    )
    assert np.isfinite(next(iter(tuned.scores["pretrained"].values())).value)
    assert dinodomain.load(tmp_path / "tuned").normalisation == run.backbone().normalisation


def test_the_traced_program_takes_the_stored_channel_and_makes_the_windows_itself(run, one_channel, tmp_path):
    done = export(ExportPlan(waive_audit="a test; the suite", checkpoint=str(run.path), out=str(tmp_path / "out"), format="torch_export"))
    assert done.max_abs_diff < 1e-5
    assert "c0/high: window of c0, centre 100 1, width 1600 1" in done.text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "takes the stored channels (c0)" in card
    assert "- c0/low: window of c0, centre -500 1, width 800 1" in card
    backbone = run.backbone()
    loader = Loader(open_store(one_channel), LoaderPlan(batch=3, threads=0), seed=0)
    batch = next(iter(loader))
    side = 16
    stored = batch.pixels[:, 0].float()[:, :, :side, :side, :side]
    cut = replace(
        batch, pixels=batch.pixels[..., :side, :side, :side].contiguous(),
        info=replace(batch.info, valid_box=torch.tensor([[0, side]] * 3).expand(3, -1, -1)),
    )  # fmt: skip
    x, _ = to_network(cut, to_float=DOMAIN.to_float, normalisation=backbone.normalisation)
    with torch.no_grad():
        cls, _, patches = torch.export.load(tmp_path / "out" / "backbone.pt2").module()(stored)
        ours = backbone(x)
    torch.testing.assert_close(cls, ours.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(patches, ours.patches, atol=1e-5, rtol=0)


def test_our_own_file_carries_the_windows(run, tmp_path):
    export(ExportPlan(waive_audit="a test; the suite", checkpoint=str(run.path), out=str(tmp_path / "out"), format="safetensors"))
    assert dinodomain.load(tmp_path / "out").normalisation == run.backbone().normalisation
    assert "makes its 2 channels from the stored ones (c0)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalise": "store"}, r"views\.windows: is set with views\.normalise=store: a window is .*; set views\.normalise=domain"),
        ({"windows": ("lo",)}, r"views\.windows: no channel has lo; allowed: high, low"),
        ({"windows": ("low", "low")}, r"views\.windows: low, low names one twice"),
    ],
)
def test_windows_that_cannot_be_are_refused(plan, changes, message):
    with pytest.raises(UserError, match=message):
        build(replace(plan, views=replace(plan.views, **changes)), DOMAIN)


def test_a_run_with_other_windows_is_another_run(plan, run):
    with pytest.raises(UserError, match=r"views\.windows was \['low', 'high'\], now \['low'\]"):
        pretrain(replace(plan, views=replace(plan.views, windows=("low",))), domain=DOMAIN)


def test_a_domain_that_moved_its_window_does_not_move_that_of_a_run(plan, run, tmp_path):
    copy = replace(plan, out=str(tmp_path / "run"))
    rewound(run.path, Path(copy.out), drop=3)
    moved = replace(DOMAIN, windows={**WINDOWS, "low": replace(WINDOWS["low"], centre=-400.0)})
    assert pretrain(copy, domain=moved).backbone().normalisation == run.backbone().normalisation


def test_a_store_with_its_channels_in_another_order_trains_and_the_networks_order_wins(make_plan, images, tmp_path, monkeypatch):
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: None)
    turned = tiny_store(tmp_path / "turned", domain=images, bands=("c2", "c0", "c1"))
    plan = make_plan(engine={"steps": 1})
    mix = tmp_path / "mix.yaml"
    mix.write_text(json.dumps({"stores": [{"path": plan.store, "share": 0.5}, {"path": str(turned), "share": 0.5}]}))
    training = build(replace(plan, store=str(mix)), images).training
    assert training.normalisation.channels == ("c0", "c1", "c2")
    numbers = training.normalisation
    training.keep_normalisation(replace(numbers, channels=("c2", "c1", "c0")))
    assert training.pair.teacher.backbone.channels == ("c2", "c1", "c0")
    with pytest.raises(UserError, match="store: has the channels c2, c1, c0, the run was trained on a, b, c; start a new run"):
        training.keep_normalisation(replace(numbers, channels=("a", "b", "c")))
    assert np.isfinite(pretrain(replace(plan, store=str(mix)), domain=images).metrics()[0]["loss"])


def test_lineage_and_plan_name_the_windows(run):
    assert run.plan["views"]["windows"] == ["low", "high"]
    assert json.loads((run.path / "lineage.json").read_text())["plan"]["views"]["windows"] == ["low", "high"]
