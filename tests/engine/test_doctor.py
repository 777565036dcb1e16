"""``dinodomain doctor``: what is installed here, what lacks, and how a run fares."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import shutil
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from dinodomain.engine import doctor as room
from dinodomain.engine import pretrain
from dinodomain.engine.doctor import EXTRAS, PACKAGES, DoctorPlan, doctor
from dinodomain.errors import MissingExtra, UserError


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


def test_a_run_is_described_by_its_last_row_and_its_figures_are_drawn(run):
    shutil.rmtree(run / "figures", ignore_errors=True)
    found = doctor(DoctorPlan(run=str(run)))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found.facts["steps"] == "10 of 10 saved, 10 logged"
    assert found.facts["loss"] == last["loss"]
    assert {Path(file).stem for file in found.figures} >= {"loss", "entropy", "feature_std"}
    assert all(Path(file).is_file() for file in found.figures)
    assert f"loss: {last['loss']:.4g}" in found.text()


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
    assert any("collapse to one prototype" in line for line in found.advice)
    assert "nothing wrong" not in found.text()


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        doctor(DoctorPlan(run=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
