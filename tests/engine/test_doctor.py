"""``dinodomain doctor``: what is installed here, what lacks, and how a run fares."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import shutil
import tomllib
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinodomain.engine import TrainingStopped, pretrain
from dinodomain.engine import doctor as room
from dinodomain.engine.doctor import EXTRAS, PACKAGES, DoctorPlan, doctor
from dinodomain.engine.plan import WatchPlan
from dinodomain.errors import MissingExtra, UserError
from dinodomain.optim import OptimPlan
from dinodomain.show.doctor import draw_doctor
from dinodomain.testing import SyntheticImages


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch):
    """Training draws none here: the doctor's page is looked at, and takes a second."""
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


@pytest.fixture(scope="module")
def run(tiny_plan, images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("doctor") / "run"
    pretrain(tiny_plan(out), domain=images)
    return out


def test_the_installation_is_described_with_versions_device_and_domains():
    found = doctor(DoctorPlan())
    assert found.facts["python"] == platform.python_version()
    assert found.facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found.facts["versions"]) == set(PACKAGES)
    assert set(found.facts["domains"]) == {point.name for point in entry_points(group="dinodomain.domains")}
    assert found.facts["device"].startswith("cuda" if torch.cuda.is_available() else ("cpu", "mps"))
    assert json.loads(json.dumps(found.as_json()))["threads"] == torch.get_num_threads()


def test_what_an_extra_lacks_is_named_with_the_command_that_brings_it(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None if name in ("timm", "rasterio") else real(name))
    found = doctor(DoctorPlan())
    assert found.facts["missing"]["export"] == ["timm"]
    assert 'for export: pip install "dinodomain[export]" (lacks timm)' in found.advice
    assert 'for remote-sensing: pip install "dinodomain[remote-sensing]" (lacks rasterio)' in found.text().splitlines()


def test_a_domain_that_cannot_be_loaded_is_named_and_stops_nothing(monkeypatch):
    def find(name: str) -> None:
        raise MissingExtra(f"domain {name!r}", "nibabel", "medical")

    monkeypatch.setattr(room, "installed_domains", lambda: ("brain",))
    monkeypatch.setattr(room, "find_domain", find)
    found = doctor(DoctorPlan())
    assert found.facts["domains"] == {"brain": "domain 'brain' needs nibabel: pip install \"dinodomain[medical]\""}
    assert any(line.startswith("domain 'brain': domain 'brain' needs nibabel") for line in found.advice)


def test_a_package_that_is_not_there_is_said_so(monkeypatch):
    monkeypatch.setattr(room, "PACKAGES", ("torch", "no-such-package"))
    assert doctor(DoctorPlan()).facts["versions"]["no-such-package"] == "not installed"


def test_the_extras_are_those_of_the_project_file():
    project = Path(__file__).parents[2] / "pyproject.toml"
    offered = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        named = " ".join(offered[extra]).lower()
        assert all(module.lower() in named for module in modules), extra


def test_a_run_is_told_by_verdict_table_and_one_page(run):
    shutil.rmtree(run / "figures", ignore_errors=True)
    found = doctor(DoctorPlan(run=str(run)))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert found.facts["steps"] == "10 of 10 saved, 10 logged"
    assert found.numbers["loss"] == {"first": losses[0], "last": losses[-1], "best": min(losses), "best_step": losses.index(min(losses))}
    assert found.text().splitlines()[0] == found.verdict == "too early to tell (10 steps, 20 are needed)"
    (figure,) = found.figures
    assert figure == str(run / "figures" / "doctor.png")
    with Image.open(figure) as image:
        assert image.size[0] > 1000
        assert np.asarray(image.convert("L")).std() > 10


def test_the_page_marks_findings_and_stands_for_any_columns(tmp_path):
    rows = [{"step": step, "loss": 3.0, "grad_norm_head": 0.0, "skipped": step == 7} for step in range(30)]
    plain = draw_doctor(rows, tmp_path / "plain.png", title="x").read_bytes()
    assert draw_doctor(rows, tmp_path / "again.png", title="x").read_bytes() == plain
    assert draw_doctor(rows, tmp_path / "marked.png", title="x", marks=[(5, "it began"), (5, "and this")]).read_bytes() != plain
    assert draw_doctor([], tmp_path / "none.png", title="x") is None


def test_looking_changes_nothing_but_the_figures(run):
    def others() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != "figures"}

    before = others()
    doctor(DoctorPlan(run=str(run)))
    assert others() == before


def test_a_collapsed_run_is_told_in_plain_words(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    row = json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])
    flat = {"teacher_entropy": 0.0, "kl_to_uniform": row["max_entropy"], "feature_std": 0.001}
    rows = [row | flat | {"step": step} for step in range(300, 330)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    found = doctor(DoctorPlan(run=str(copy)))
    assert math.isclose(row["max_entropy"], math.log(16))
    assert found.verdict == "collapsed (collapse to one prototype since step 300)"
    assert found.text().splitlines()[0] == found.verdict
    assert "1. collapse to one prototype since step 300" in found.text()
    told = json.loads(json.dumps(found.as_json()))
    assert told["findings"][0]["keys"] == {"objective.centering": "sinkhorn"}
    assert (told["verdict"], told["findings"][0]["since"]) == (found.verdict, 300)
    assert "nothing wrong" not in found.text()


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        doctor(DoctorPlan(run=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_centring_collapses_and_the_doctor_names_the_cause(tiny_plan, images, tmp_path):
    plan = tiny_plan(tmp_path / "run")
    changes = {"centering": "none", "ibot_weight": 0.0, "koleo_weight": 0.0, "teacher_temperature": (0.02, 0.02)}
    plan = replace(
        plan, objective=replace(plan.objective, **changes), model=replace(plan.model, layer_scale=1.0, drop_path=0.0),
        optim=OptimPlan(lr=1e-2, momentum=(0.9, 0.9)), watch=WatchPlan(every=15, tiles=8), engine=replace(plan.engine, steps=45),
        checkpoint=replace(plan.checkpoint, every=45),
    )  # fmt: skip
    pretrain(plan, domain=images)
    found = doctor(DoctorPlan(run=str(tmp_path / "run")))
    assert found.verdict.startswith("collapsed (collapse to one prototype since step ")
    assert "objective.centering=none" in found.findings[0].cause
    assert found.findings[0].keys == {"objective.centering": "sinkhorn"}
    assert {"watch_rankme", "watch_knn_own", "watch_dense_match"} <= set(found.numbers)


def test_nan_pixels_are_skipped_counted_and_stop_the_run_with_a_diagnosis(tiny_plan, tmp_path):
    class Broken(SyntheticImages):
        def to_float(self, pixels, info):
            return super().to_float(pixels, info) * math.nan

    plan = tiny_plan(tmp_path / "run")
    plan = replace(plan, engine=replace(plan.engine, max_bad_steps=4), watch=WatchPlan(tiles=0))
    with pytest.raises(TrainingStopped, match="4 steps in a row gave NaN or Inf"):
        pretrain(plan, domain=Broken(size=(32, 32)))
    found = doctor(DoctorPlan(run=str(tmp_path / "run")))
    assert found.verdict.startswith("unstable (no finite loss since step 0")
    assert found.facts["skipped"] == 4
    assert "broken pixel values" in found.findings[0].cause
