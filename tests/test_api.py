"""The Python API: one function per verb, that stays callable when the room of the same name is imported, and a quick import."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

import dinodomain
from dinodomain import api, config
from dinodomain.checkpoint import save_backbone
from dinodomain.domain import ENTRY_POINTS
from dinodomain.errors import Problems, UserError
from dinodomain.ingest.inspect_plan import InspectPlan
from dinodomain.model import Backbone, ModelPlan
from dinodomain.testing import SyntheticImages, tiny_labels, tiny_store
from dinodomain.types import Normalisation
from dinodomain.verbs import VERBS

DOMAIN = SyntheticImages()
ROOMS = ("audit", "embed", "export", "finetune", "ingest", "properties", "views")
"""Verbs whose room has the same name."""


def fresh(code: str) -> str:
    """What code prints in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_zarr_nor_any_room():
    heavy = ["torch", "zarr", "numpy", "pyarrow", "hydra", "sklearn", "matplotlib", "pydantic"]
    found = fresh(f"import sys, dinodomain; print([n for n in sys.modules if n in {heavy} or n.startswith('dinodomain.')])")
    assert ast.literal_eval(found) == []


def test_opening_a_store_and_ingesting_load_no_torch():
    assert fresh("import sys, dinodomain.ingest, dinodomain.store; print('torch' in sys.modules)") == "False"


def test_every_verb_but_the_demo_is_offered_and_listed():
    offered = set(dir(dinodomain))
    assert set(VERBS) - {"demo"} | {"open_store", "load", "__version__"} == offered
    assert set(dinodomain.__all__) == offered
    assert all(callable(getattr(dinodomain, name)) for name in offered - {"__version__"})
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        dinodomain.pretrian  # noqa: B018


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_stays_callable_as_the_verb_once_it_is_imported(name):
    room = importlib.import_module(f"dinodomain.{name}")
    assert getattr(dinodomain, name) is room
    with pytest.raises(UserError, match=r"is required|give either"):
        room()


def test_a_room_can_be_called_before_and_after_it_is_imported():
    code = "import dinodomain, importlib\nfor name in {rooms}:\n  print(type(getattr(dinodomain, name)).__name__, end=' ')\n"
    code += "  importlib.import_module('dinodomain.' + name)\n  print(callable(getattr(dinodomain, name)))"
    lines = fresh(code.format(rooms=ROOMS)).splitlines()
    assert lines[0] == "function True"
    assert [line.split()[1] for line in lines] == ["True"] * len(ROOMS)


@pytest.mark.parametrize("name", sorted(set(VERBS) - {"demo", "doctor"}))
def test_a_misspelt_key_is_refused_with_a_hint_in_every_verb(name):
    right = [item.name for item in config.stated_fields(VERBS[name].plan_class()) if len(item.name) > 2][-1]
    wrong = right[:-2] + right[:-3:-1]
    assert wrong != right
    with pytest.raises(Problems, match=rf"{wrong}: unknown key; did you mean '{right}'"):
        getattr(api, name)(**{wrong: "x"})


def test_a_plan_or_keys_but_not_both():
    plan = InspectPlan(store="nowhere")
    with pytest.raises(TypeError, match="not both"):
        dinodomain.inspect(plan, store="x")
    with pytest.raises(UserError, match="nowhere"):
        dinodomain.inspect(plan)


def test_a_recipe_is_loaded_under_the_keys_given(monkeypatch):
    seen = []
    monkeypatch.setattr("dinodomain.engine.pretrain", seen.append)
    dinodomain.pretrain(domain="xray", store="s", out="o", recipe="tiny", engine={"steps": 3}, views={"num_local": 2})
    (plan,) = seen
    recipe = config.load_recipe("tiny")
    assert plan.recipe == "tiny"
    assert plan.model.dim == recipe["model"]["dim"]
    assert (plan.engine.steps, plan.views.num_local, plan.views.global_size) == (3, 2, recipe["views"]["global_size"])
    with pytest.raises(UserError, match=r"recipe: 'tny' is not known; .*did you mean 'tiny'"):
        dinodomain.pretrain(domain="xray", store="s", out="o", recipe="tny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store, labels and a backbone of a made-up domain."""
    root = tmp_path_factory.mktemp("api")
    tiny_store(root / "store", domain=DOMAIN, num=48)
    tiny_labels(root / "labels.csv", 48)
    torch.manual_seed(0)
    numbers = Normalisation(
        mode="domain", channels=tuple(DOMAIN.channels), low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8, registers=1)
    save_backbone(root / "backbone.safetensors", Backbone.create(plan, ndim=2, image_size=16, normalisation=numbers, domain="synthetic"))
    return root


@pytest.fixture
def installed(monkeypatch) -> None:
    """The made-up domain, found by its entry point as any package's is."""
    point = EntryPoint(name="synthetic", value="dinodomain.testing:SyntheticImages", group=ENTRY_POINTS)
    monkeypatch.setattr("dinodomain.domain.entry_points", lambda group: [point])


@pytest.mark.usefixtures("installed")
def test_every_verb_runs_from_keys_alone(folder, tmp_path):
    store, backbone = str(folder / "store"), str(folder / "backbone.safetensors")
    scored = {"checkpoint": backbone, "store": store, "labels": str(folder / "labels.csv"), "target": "label"}
    crops = {"global_size": 16, "local_size": 8, "num_local": 2}
    made = dinodomain.ingest(domain="synthetic", source="generate:4", store=str(tmp_path / "made"), workers=0)
    assert made.added == 4
    assert dinodomain.inspect(store=store, out=str(tmp_path / "inspect")).figure is not None
    assert dinodomain.views(store=store, out=str(tmp_path / "views"), views=crops, num=2).files
    small = {"dim": 16, "depth": 1, "heads": 2, "patch": 8}
    steps = {"steps": 2, "device": "cpu", "threads": 1, "trackers": []}
    run = dinodomain.pretrain(
        domain="synthetic", store=store, out=str(tmp_path / "run"), views=crops, model=small, engine=steps,
        loader={"batch": 4, "workers": 0}, objective={"prototypes": 16, "head_hidden": 16, "bottleneck": 8},
    )  # fmt: skip
    assert run.step == 2
    assert dinodomain.doctor(run=str(tmp_path / "run")).facts["steps"].startswith("2 of 2")
    assert dinodomain.probe(**scored, bootstraps=100, folds=2).num_images == 48
    assert dinodomain.finetune(**scored, out=str(tmp_path / "tuned"), steps=2, batch=4, baseline=False, device="cpu").scores
    audit = dinodomain.audit(
        **scored,
        out=str(tmp_path / "audit"),
        permutations=99,
        bootstraps=100,
        ocr_images=0,
        attackers=False,
        copies=0,
        attributes=["level"],
    )
    assert audit.exit_code == 0
    features = dinodomain.embed(checkpoint=backbone, store=store, out=str(tmp_path / "features"))
    assert features is not None
    exported = dinodomain.export(checkpoint=backbone, out=str(tmp_path / "export"), format="safetensors", waive_audit="a test; the suite")
    assert exported.max_abs_diff == 0


def test_a_store_and_a_backbone_are_opened_by_path(folder):
    assert len(dinodomain.open_store(folder / "store")) == 48
    backbone = dinodomain.load(folder / "backbone.safetensors")
    features = backbone.features(torch.zeros(2, 3, 16, 16))
    assert features.shape == (2, 32)
    assert isinstance(features, np.ndarray)
