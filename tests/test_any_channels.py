"""Pretraining to export with a network that tells channels by wavelength and sizes in mm, on stores that lack a band or bring another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dinodomain.audit import AuditPlan, EncoderObjective, audit
from dinodomain.checkpoint import CheckpointPlan, load_backbone
from dinodomain.domain import Channel
from dinodomain.embed import embed_store, fit_channels, network_input
from dinodomain.engine import EnginePlan, PretrainPlan, pretrain
from dinodomain.errors import UserError
from dinodomain.export import ExportPlan, export
from dinodomain.finetune import FinetunePlan, finetune
from dinodomain.loader import LoaderPlan, sweep
from dinodomain.model import Backbone, Band, ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.probes import ProbePlan, probe
from dinodomain.store import Store, open_store
from dinodomain.testing import SyntheticImages, tiny_labels, tiny_store
from dinodomain.types import Acquisition
from dinodomain.views import ViewsPlan

NUM = 80
LOST = {"probability": [0.5, 0.5, 0.5], "share": [0.5, 0.5]}
WAVES = (492.0, 560.0, 665.0, 2200.0)


def sensor(count: int) -> SyntheticImages:
    """The synthetic domain with bands of known wavelength."""
    made = SyntheticImages(size=(32, 32), num_channels=count, nodata=True)
    told = {f"c{place}": Channel(unit="1", low=0, high=255, mean=0.45, std=0.2, wavelength_nm=WAVES[place]) for place in range(count)}
    object.__setattr__(made, "channels", told)
    return made


DOMAIN, OTHER = sensor(3), sensor(4)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A run on three bands, a store that has two of them, and one that has four."""
    root = tmp_path_factory.mktemp("any")
    full = tiny_store(root / "full", domain=DOMAIN, num=8)
    tiny_store(root / "two", domain=DOMAIN, num=NUM, bands=("c2", "c0"), audit_holdout=0.2)
    tiny_store(root / "four", domain=OTHER, num=6)
    tiny_labels(root / "labels.csv", NUM)
    plan = PretrainPlan(
        domain="synthetic", store=str(full), out=str(root / "run"), loader=LoaderPlan(batch=4, threads=0),
        views=ViewsPlan(global_size=16, local_size=8, num_local=1, policy={"drop_channels": LOST}),
        model=ModelPlan(dim=16, depth=1, heads=2, patch=(8, 4), registers=1, channels="wavelength", position="rope", rope_unit="physical"),
        objective=ObjectivePlan(prototypes=16, head_hidden=16, bottleneck=8, head_layers=2),
        checkpoint=CheckpointPlan(every=2), engine=EnginePlan(steps=2, device="cpu", precision="fp32", threads=1, trackers=()),
    )  # fmt: skip
    run = pretrain(plan, domain=DOMAIN)
    assert all(np.isfinite(row["loss"]) for row in run.metrics())
    return {name: str(root / name) for name in ("run", "full", "two", "four")} | {"labels": str(root / "labels.csv")}


@pytest.fixture(scope="module")
def backbone(files) -> Backbone:
    return load_backbone(files["run"])


@pytest.fixture(scope="module")
def two(files) -> Store:
    return open_store(files["two"])


def test_a_run_takes_the_wavelengths_of_its_domain_and_says_what_it_needs(backbone):
    assert backbone.bands == tuple(Band(f"c{place}", WAVES[place]) for place in range(3))
    assert backbone.needs_spacing
    assert backbone.patch == (8, 4)
    with pytest.raises(UserError, match="spacing"):
        backbone.encode(torch.zeros(1, 3, 16, 16))


def test_a_store_without_a_band_gives_the_features_of_those_channels_alone(backbone, two):
    table = embed_store(backbone, two, DOMAIN, rows=range(6))
    batch = next(sweep(two, LoaderPlan(batch=6, threads=0), rows=range(6)))
    shown = network_input(backbone, batch, DOMAIN, (16, 16))
    assert shown.about.channels == ("c0", "c2")
    torch.testing.assert_close(shown.about.spacing, 2 * batch.info.spacing)  # 32 pixels became 16
    lost = torch.cat([shown.pixels[:, :1], torch.full_like(shown.pixels[:, :1], 9.0), shown.pixels[:, 1:]], dim=1)
    kept = torch.tensor([[True, False, True]] * 6)
    twin = backbone.encode(lost, about=Acquisition(spacing=shown.about.spacing, kept=kept))
    rows = {row: place for place, row in enumerate(batch.rows.tolist())}
    order = [rows[row] for row in table.rows.tolist()]
    np.testing.assert_allclose(table.features[:, :16], twin.cls[order].detach().numpy(), atol=1e-5)


def test_a_band_of_another_sensor_gets_its_numbers_from_the_domain(files, backbone):
    four = open_store(files["four"])
    fitted = fit_channels(backbone, four, OTHER)
    assert fitted.bands[3] == Band("c3", 2200.0)
    assert fitted.normalisation.low[:3] == backbone.normalisation.low
    table = embed_store(backbone, four, OTHER)
    assert np.isfinite(table.features).all()
    assert fit_channels(backbone, open_store(files["two"]), DOMAIN) is backbone


def test_probe_finetune_and_audit_run_without_the_band(files, tmp_path):
    common = {"checkpoint": files["run"], "store": files["two"], "labels": files["labels"], "target": "label", "device": "cpu"}
    report = probe(ProbePlan(**common, bootstraps=100, kind=("knn",)), domain=DOMAIN)
    assert {item.features for item in report.scores} == {"pretrained", "random_init", "pixels"}
    tuned = finetune(FinetunePlan(**common, out=str(tmp_path / "tuned"), mode="full", steps=2, batch=8), domain=DOMAIN)
    assert set(tuned.scores) == {"pretrained", "untrained"}
    again = load_backbone(tmp_path / "tuned" / "backbone.safetensors")
    assert again.bands == load_backbone(files["run"]).bands
    quick = {"copies": 4, "permutations": 99, "bootstraps": 100, "ocr_images": 0, "attackers": False}
    plan = AuditPlan(**common, attributes=("level",), out=str(tmp_path / "audit"), **quick)
    found = audit(plan, domain=DOMAIN)
    assert not [item.id for item in found.report.findings if item.verdict == "ERROR"]


def test_attribution_is_told_spacing_and_lost_channels(backbone, two):
    batch = next(sweep(two, LoaderPlan(batch=3, threads=0)))
    shown = network_input(backbone, batch, DOMAIN, (16, 16))
    objective = EncoderObjective(backbone, "label_free", channels=shown.about.channels)
    reference = objective.reference_of(shown.pixels, shown.about.spacing)
    kept = torch.tensor([[True, False]] * 3)
    x = shown.pixels.requires_grad_()
    objective(x, reference, shown.about.spacing, kept).sum().backward()
    assert x.grad[:, 0].abs().max() > 0
    assert (x.grad[:, 1] == 0).all()
    captum = pytest.importorskip("captum.attr")
    maps = captum.IntegratedGradients(objective).attribute(x, additional_forward_args=(reference, shown.about.spacing), n_steps=4)
    assert maps.shape == x.shape


def test_exports_carry_wavelengths_or_say_why_not(files, tmp_path):
    done = export(
        ExportPlan(waive_audit="a test; the suite", checkpoint=files["run"], out=str(tmp_path / "program"), format="torch_export")
    )
    assert done.max_abs_diff < 1e-4
    assert load_backbone(files["run"]).spec["wavelengths_nm"] == list(WAVES[:3])
    with pytest.raises(UserError, match=r"model\.channels=wavelength"):
        export(ExportPlan(waive_audit="a test; the suite", checkpoint=files["run"], out=str(tmp_path / "timm"), format="timm"))


def test_a_kernel_for_each_channel_refuses_a_store_without_one(files, backbone, two):
    torch.manual_seed(0)
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8)
    fixed = Backbone.create(plan, ndim=2, image_size=16, normalisation=backbone.normalisation, domain="synthetic")
    with pytest.raises(UserError, match=r"has the channels c2, c0; allowed: c0, c1, c2; .*model\.channels=wavelength"):
        embed_store(fixed, two, DOMAIN)
    assert json.loads(json.dumps(fixed.spec)).keys().isdisjoint({"wavelengths_nm", "vocabulary"})
    assert Path(files["run"]).is_dir()
