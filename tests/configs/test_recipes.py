"""Every YAML of ``configs/`` composes; every recipe trains a step, its sizes made tiny and all else as it stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dinodomain import config
from dinodomain.engine import Facts, PretrainPlan, open_run, pretrain, resolve
from dinodomain.engine.memory import backbone_parameters
from dinodomain.model import ModelPlan
from dinodomain.testing import SyntheticImages, tiny_store

RECIPES = sorted(path.stem for path in (config.config_dir() / "recipe").glob("*.yaml"))
GROUPS = sorted(
    (name, path.stem) for name in config.groups_of("pretrain") if name != "recipe" for path in (config.config_dir() / name).glob("*.yaml")
)
STAGES = ("dinov3_gram", "dinov3_highres")
SMALL = {
    "loader": {"batch": 4, "threads": 0},
    "views": {"global_size": 16, "local_size": 8, "num_local": 2},
    "model": {"dim": 16, "depth": 2, "heads": 2, "patch": 8},
    "objective": {"prototypes": 16, "head_hidden": 16, "bottleneck": 8, "head_layers": 2},
    "engine": {"steps": 2, "device": "cpu", "precision": "fp32", "threads": 1, "trackers": []},
    "watch": {"tiles": 0},
    "checkpoint": {"every": 2, "background": False},
}
DOMAIN = SyntheticImages(size=(32, 32))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("store") / "images", domain=DOMAIN)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])


def plan_of(recipe: str, store: Path, out: Path, **more) -> PretrainPlan:
    values = config.overlay(config.load_recipe(recipe), SMALL)
    if "patch_prototypes" in values["objective"]:
        values["objective"]["patch_prototypes"] = 12
    if "size" in values.get("gram", {}):
        values["gram"]["size"] = 24
    return config.build(PretrainPlan, config.overlay(values, {"domain": DOMAIN.name, "store": str(store), "out": str(out), **more}))


@pytest.fixture(scope="module")
def first_stage(store, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinodomain.engine.record.draw_curves", lambda rows, folder: [])
        return pretrain(plan_of("dinov3", store, tmp_path_factory.mktemp("first") / "run"), domain=DOMAIN).path


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in (*STAGES, "continue", "dinov3")])
def test_a_recipe_trains(recipe, store, tmp_path):
    run = pretrain(plan_of(recipe, store, tmp_path / "run"), domain=DOMAIN)
    assert run.finished
    assert all(row["loss"] is not None for row in run.metrics())


def test_the_first_stage_of_dinov3_trains_with_a_head_for_patches(first_stage):
    run = open_run(first_stage)
    assert run.finished
    assert {"loss_ibot", "loss_koleo", "loss_dino_global"} <= set(run.metrics()[0])


@pytest.mark.parametrize("recipe", STAGES)
def test_a_later_stage_of_dinov3_begins_with_the_run_before_it_and_anchors_to_it(recipe, first_stage, store, tmp_path):
    start = config.load_recipe(recipe)["start"] | {"weights": str(first_stage)}
    run = pretrain(plan_of(recipe, store, tmp_path / "run", start=start), domain=DOMAIN)
    assert run.finished
    assert run.plan["gram"]["teacher"] == str(first_stage)
    assert all(row["loss_gram"] is not None for row in run.metrics())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_states_what_it_is_its_source_command_cost_and_expectation(recipe):
    text = (config.config_dir() / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == "# @package _global_"
    assert any("dinodomain pretrain" in line for line in head)
    wanted = ("Source",) if recipe == "auto" else ("Source", "Cost", "Expect")
    assert all(any(line.startswith(f"# {word}") for line in head) for word in wanted)
    assert yaml.safe_load(text)["recipe"] == recipe


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("tiny", "auto")])
def test_a_recipe_as_it_stands_resolves_for_large_tiles_on_an_accelerators_memory(recipe, tmp_path):
    engine = {"device": "cpu", "precision": "bf16"}  # what an accelerator is given; on a CPU the whole estimate counts
    values = config.overlay(config.load_recipe(recipe), {"domain": "synthetic", "store": "s", "out": "o", "engine": engine})
    if "start" in values:
        values["start"] = {**values["start"], "weights": "w"}
    if recipe == "continue":  # sizes come from the weights; its crops are meant for DINOv2's patch
        values["model"] = {**values.get("model", {}), "patch": 14}
    plan = config.build(PretrainPlan, values)
    facts = Facts(ndim=2, channels=("a", "b", "c"), extents={(512, 512): 200_000}, policy=DOMAIN.view_policy(), memory={"cpu": 80 * 2**30})
    assert resolve(plan, facts).plan.loader.batch == plan.loader.batch


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_a_group_is_a_valid_part_of_a_plan(group, name):
    values = yaml.safe_load((config.config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    nested = values if group == "hardware" else {group: values}
    config.build(PretrainPlan, {"domain": "x", "store": "s", "out": "o", **nested})


@pytest.mark.parametrize(
    ("name", "millions"), [("vit_tiny", 5.5), ("vit_small", 22), ("vit_base", 86), ("vit_large", 304), ("vit_huge_plus", 840)]
)
def test_a_model_has_the_size_its_file_states(name, millions):
    text = (config.config_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"{millions} M parameters" in text
    plan = replace(ModelPlan(**yaml.safe_load(text)), registers=0)
    assert backbone_parameters(plan, ndim=2, channels=3, size=224) / 1e6 == pytest.approx(millions, rel=0.02)


def test_every_refresh_of_an_anchor_happens_within_the_run():
    for recipe in STAGES:
        values = config.load_recipe(recipe)
        gram = values["gram"]
        assert gram.get("refresh", 0) * gram.get("refreshes", 0) < values["engine"]["steps"]
