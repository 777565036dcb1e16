"""Runs that begin with weights: what is settled, what is kept, that a resumed run does it no second time, and stages of our own runs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dinodomain import config
from dinodomain.checkpoint import load_backbone, load_checkpoint, origin, save_backbone
from dinodomain.checkpoint.baseline import START, baseline_of
from dinodomain.config import load_recipe
from dinodomain.engine import PretrainPlan, Run, pretrain
from dinodomain.engine.build import build
from dinodomain.engine.recipe import Choice
from dinodomain.engine.start import _crop_choices, read_start
from dinodomain.errors import UserError
from dinodomain.finetune import FinetunePlan, finetune
from dinodomain.model import ModelPlan, StartPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.probes import ProbePlan, probe
from dinodomain.testing import SyntheticImages, tiny_labels, tiny_store
from dinodomain.views import ViewsPlan


class NoSpacing(SyntheticImages):
    """Sources that do not say how large a pixel is."""

    def read(self, ref):
        return replace(super().read(ref), spacing=(math.nan, math.nan))


def dinov2_state(dim: int = 24, depth: int = 2, patch: int = 8, grid: int = 2, channels: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Made-up weights in the names of Meta's DINOv2."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "cls_token": (1, 1, dim), "mask_token": (1, dim), "pos_embed": (1, grid * grid + 1, dim),
        "patch_embed.proj.weight": (dim, channels, patch, patch), "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,), "norm.bias": (dim,),
    }  # fmt: skip
    for block in range(depth):
        inner = {
            "norm1": (dim,),
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "norm2": (dim,),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }
        for name, shape in inner.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{block}.ls{number}.gamma": (dim,) for number in (1, 2)}
    return {name: 0.1 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def made_weights(folder: Path) -> Path:
    path = folder / "published" / "dinov2.safetensors"
    path.parent.mkdir()
    safetensors.torch.save_file(dinov2_state(), path)
    return path


def begun_with(plan: PretrainPlan, weights: Path) -> PretrainPlan:
    """The run begun with the made-up weights; its model is at its defaults but for the heads, which weights do not tell."""
    short = replace(plan, engine=replace(plan.engine, steps=4), checkpoint=replace(plan.checkpoint, every=2))
    return replace(short, model=ModelPlan(heads=2, drop_path=0.1), start=StartPlan(weights=str(weights)))


@pytest.fixture
def weights(tmp_path):
    return made_weights(tmp_path)


@pytest.fixture
def warm_plan(make_plan, weights):
    return begun_with(make_plan(), weights)


@pytest.fixture(scope="module")
def warm(tiny_plan, images, tmp_path_factory) -> tuple[PretrainPlan, Run]:
    """A finished run; its weights are gone."""
    folder = tmp_path_factory.mktemp("warm")
    plan = begun_with(tiny_plan(folder / "run"), made_weights(folder))
    run = pretrain(plan, domain=images)
    (folder / "published" / "dinov2.safetensors").unlink()
    return plan, run


def test_the_run_takes_its_plan_from_the_weights_and_keeps_the_proof(warm):
    _, run = warm
    model = run.plan["model"]
    assert (model["dim"], model["depth"], model["patch"], model["registers"], model["drop_path"]) == (24, 2, 8, 0, 0.1)
    report = json.loads((run.path / "warm_start.json").read_text())
    assert report["share"] == 1.0
    assert report["counts"]["fresh"]["tensors"] == 0
    assert {choice["key"] for choice in report["choices"]} >= {"model.dim", "model.depth", "model.patch", "model.registers"}
    log = (run.path / "log.txt").read_text()
    assert "model.patch = 8: kernel of the patch embedding, 8x8 (start.weights)" in log
    assert "100.00 % of the backbone's" in log
    start = load_backbone(run.path / START)
    channels = len(start.channels)
    kernel = dinov2_state()["patch_embed.proj.weight"]
    expected = kernel if channels == 3 else kernel.mean(1, keepdim=True).expand(-1, channels, -1, -1) * 3 / channels
    torch.testing.assert_close(start.vit.patch_embed.proj.weight.detach(), expected)
    assert not torch.equal(run.backbone().vit.patch_embed.proj.weight, start.vit.patch_embed.proj.weight)
    assert origin(run.path / START)["parents"]["weights"] == report["digest"]
    began = run.lineage["plan"]["start"]
    assert (began["weights"], began["sha256"]) == ("dinov2.safetensors", report["digest"])
    assert "DINOv2 under Apache-2.0" in began["licence"]
    assert str(run.path.parent) not in json.dumps(began)
    assert run.lineage["parents"]["weights"] == report["digest"]


@pytest.mark.parametrize(("patch", "local"), [(14, 98), (16, 96), (8, 96)])
def test_crops_of_the_recipe_fit_the_patch_of_the_weights(patch, local):
    plan = PretrainPlan(domain="x", store="s", out="o", recipe="continue", views=ViewsPlan(global_size=224, local_size=98))
    found = {choice.key: choice.value for choice in _crop_choices(plan, [Choice(key="model.patch", value=patch, reason="")])}
    assert found.get("views.local_size", 98) == local
    assert "views.global_size" not in found
    asked = replace(plan, views=ViewsPlan(global_size=224, local_size=112))
    assert not _crop_choices(asked, [Choice(key="model.patch", value=patch, reason="")])


def test_the_recipe_that_goes_on_says_that_weights_are_missing():
    with pytest.raises(UserError, match=r"start\.weights: missing: recipe=continue"):
        read_start(PretrainPlan(domain="x", store="s", out="o", recipe="continue"))


def test_a_run_that_goes_on_needs_no_weights_and_ends_bit_equal(warm, images, tmp_path):
    plan, whole = warm
    path = tmp_path / "run"
    shutil.copytree(whole.path, path)
    shutil.rmtree(path / "checkpoints" / "step-000004")
    (path / "checkpoints" / "latest").write_text("step-000002\n")
    before = [(path / name).stat().st_mtime_ns for name in (START, "warm_start.json")]
    resumed = pretrain(replace(plan, out=str(path)), domain=images)
    assert resumed.step == 4
    assert [(path / name).stat().st_mtime_ns for name in (START, "warm_start.json")] == before
    ours, theirs = (load_checkpoint(run.path).state.tensors["student"] for run in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.lineage["plan"]["start"] == whole.lineage["plan"]["start"]


def test_keys_that_contradict_the_weights_are_one_error_each(warm_plan, images):
    plan = replace(warm_plan, model=ModelPlan(dim=48, depth=3, heads=2))
    with pytest.raises(UserError) as caught:
        pretrain(plan, domain=images)
    first, second = str(caught.value).splitlines()
    assert first.startswith("model.dim: is 48, ")
    assert "has 24 (width of the class token, 24); set model.dim=24 or leave it out" in first
    assert second.startswith("model.depth: is 3, ")


def test_heads_and_centres_come_from_a_run_of_ours(make_plan, images, tmp_path):
    first = pretrain(make_plan(engine={"steps": 3}, objective={"centering": "softmax"}), domain=images)
    plan = make_plan(engine={"steps": 3}, objective={"centering": "softmax"}, views={"global_size": 32})
    plan = replace(plan, out=str(tmp_path / "second"), start=StartPlan(weights=str(first.path), heads=True), model=ModelPlan(drop_path=0.2))
    setup = build(plan, images)
    had = load_checkpoint(first.path).state.tensors
    pair, objective = setup.training.pair, setup.training.objective.state_dict()
    for part, branch in (("student", pair.student), ("teacher", pair.teacher)):
        now = branch.state_dict()
        same = [name for name in now if name != "backbone.vit.pos_embed"]
        assert all(torch.equal(now[name], had[part][name]) for name in same)
    assert now["backbone.vit.pos_embed"].shape == (1, 16, 16)
    assert objective
    assert all(torch.equal(objective[name], had["objective"][name]) for name in objective)
    assert setup.training.step == 0


def test_heads_of_another_size_and_of_nobody_are_refused(make_plan, images, weights, tmp_path):
    first = pretrain(make_plan(engine={"steps": 1}), domain=images)
    plan = make_plan(objective={"prototypes": 32})
    start = StartPlan(weights=str(first.path), heads=True)
    with pytest.raises(UserError, match=r"objective.prototypes: is 32, the heads in .* have 16"):
        build(replace(plan, out=str(tmp_path / "a"), start=start), images)
    default = replace(plan, out=str(tmp_path / "c"), start=start, objective=replace(plan.objective, prototypes=ObjectivePlan().prototypes))
    stated = replace(default, given=frozenset({"objective.prototypes"}))
    with pytest.raises(UserError, match=rf"objective.prototypes: is {ObjectivePlan().prototypes}, the heads in .* have 16"):
        build(stated, images)
    assert build(default, images).training.plan.objective.prototypes == 16
    with pytest.raises(UserError, match=r"start.weights: .* start.heads=true wants its heads"):
        build(replace(plan, out=str(tmp_path / "b"), start=StartPlan(weights=str(weights), heads=True)), images)


def test_the_baseline_is_found_from_every_place_of_a_run(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    assert baseline_of(run) is None
    (run / START).parent.mkdir()
    (run / START).touch()
    (run / "backbones" / "best.safetensors").touch()
    for place in (run, run / "checkpoints" / "step-000001", run / "backbones" / "best.safetensors"):
        assert baseline_of(place) == run / START
    assert baseline_of(run / START) is None


def test_the_probe_has_the_warm_start_as_one_more_baseline(warm, images, store, tmp_path):
    _, run = warm
    common = {"store": str(store), "labels": str(tiny_labels(tmp_path / "labels.csv")), "target": "level", "device": "cpu", "folds": 2}
    report = probe(ProbePlan(checkpoint=str(run.path), out=str(tmp_path / "probe"), bootstraps=100, **common), domain=images)
    assert [item.features for item in report.scores if item.probe == "knn"] == ["pretrained", "random_init", "pixels", "warm_start"]
    assert [item.baseline for item in report.differences if item.probe == "linear"] == ["random_init", "pixels", "warm_start"]
    assert "linear: pretrained - warm start = " in report.text()
    assert (tmp_path / "probe" / "probe.png").is_file()
    # What the row says is what the kept backbone scores by itself: same folds, labels and draws.
    alone = probe(ProbePlan(checkpoint=str(run.path / START), bootstraps=100, **common), domain=images)
    assert {item.features for item in alone.scores} == {"pretrained", "random_init", "pixels"}
    for kind in ("knn", "linear"):
        assert alone.score("pretrained", kind).metrics == report.score("warm_start", kind).metrics
    keys = {
        **common,
        "checkpoint": str(run.path),
        "out": str(tmp_path / "tuned"),
        "task": "classify",
        "target": "label",
        "steps": 2,
        "batch": 4,
    }
    tuned = finetune(FinetunePlan(**{name: value for name, value in keys.items() if name != "folds"}), domain=images)
    assert set(tuned.scores) == {"pretrained", "untrained", "warm_start"}
    assert "pretrained - warm start, " in tuned.text()


@pytest.mark.parametrize("heads", [False, True])
def test_a_frozen_backbone_rests_in_student_and_teacher_while_heads_learn(warm_plan, make_plan, images, tmp_path, heads):
    plan = warm_plan
    if heads:  # a student and a teacher that differ: the teacher must not drift to the student meanwhile
        first = pretrain(replace(make_plan(engine={"steps": 2}), out=str(tmp_path / "first")), domain=images)
        plan = replace(make_plan(engine={"steps": 4}, checkpoint={"every": 2}), start=StartPlan(weights=str(first.path), heads=True))
    plan = replace(plan, optim=replace(plan.optim, freeze_backbone=0.5, warmup=0.0, freeze_last_layer=0.0))
    before = {name: value.clone() for name, value in build(plan, images).training.pair.state_dict().items()}
    run = pretrain(plan, domain=images)
    for step, frozen in ((2, True), (4, False)):
        tensors = load_checkpoint(run.path / "checkpoints" / f"step-{step:06d}").state.tensors
        for part in ("student", "teacher"):
            same = {name: torch.equal(value, before[f"{part}.{name}"]) for name, value in tensors[part].items()}
            assert all(kept for name, kept in same.items() if name.startswith("backbone.")) == frozen
            assert not any(kept for name, kept in same.items() if name.startswith("head.") and name.endswith("weight"))


def test_the_recipe_that_continues_runs_on_made_up_weights(warm_plan, images, tmp_path):
    values = load_recipe("continue")
    small = {
        "loader": {"batch": 4, "threads": 0}, "views": {"global_size": 16, "local_size": 8, "num_local": 2}, "model": {"heads": 2},
        "objective": {"prototypes": 16, "head_hidden": 16, "bottleneck": 8},
        "engine": {"steps": 10, "device": "cpu", "threads": 1, "trackers": []},
        "start": {"weights": warm_plan.start.weights}, "domain": "synthetic", "store": warm_plan.store, "out": str(tmp_path / "run"),
    }  # fmt: skip
    run = pretrain(config.build(PretrainPlan, config.overlay(values, small)), domain=images)
    assert run.finished
    assert run.plan["optim"]["freeze_backbone"] == 0.1
    assert run.plan["model"]["patch"] == 8


def test_weights_of_images_begin_a_run_on_volumes(warm_plan, volumes, volume_store):
    plan = warm_plan
    plan = replace(plan, store=str(volume_store), views=replace(plan.views, global_size=16, local_size=8))
    pair = build(plan, volumes).training.pair
    kernel = dinov2_state()["patch_embed.proj.weight"].sum(1, keepdim=True)
    expected = (kernel / 8).unsqueeze(2).expand(-1, -1, 8, -1, -1)
    for branch in (pair.student, pair.teacher):
        torch.testing.assert_close(branch.backbone.vit.patch_embed.proj.weight.detach(), expected)
    positions = dinov2_state()["pos_embed"][:, 1:]
    torch.testing.assert_close(pair.student.backbone.vit.pos_embed.detach(), positions.repeat(1, 2, 1))


def test_positions_in_millimetres_that_weights_bring_are_checked_and_measured_here(make_plan, images, tmp_path):
    model = ModelPlan(dim=24, depth=1, heads=2, patch=8, position="rope", rope_unit="physical")
    first = build(replace(make_plan(), model=model), images).training.pair.teacher.backbone
    weights = save_backbone(tmp_path / "millimetres.safetensors", first)
    plan = replace(make_plan(), model=ModelPlan(), start=StartPlan(weights=str(weights)))
    assert build(plan, images).training.plan.model.rope_length == first.vit.plan.rope_length
    unknown = tiny_store(tmp_path / "unknown", domain=NoSpacing(size=(32, 32)))
    with pytest.raises(UserError, match=r"model.rope_unit: is physical and needs the spacing of every source; 12 of 12 have none"):
        build(replace(plan, store=str(unknown)), NoSpacing(size=(32, 32)))


@pytest.mark.parametrize("part", ["", "checkpoints/step-000002", START])
def test_runs_checkpoints_and_exports_of_ours_are_weights_too(warm, warm_plan, images, part):
    _, run = warm
    place = run.path / part
    plan = replace(warm_plan, model=ModelPlan(), start=StartPlan(weights=str(place), layout="dinodomain"))
    training = build(plan, images).training
    assert training.started.report.share == 1.0
    assert {entry.how for entry in training.started.report.entries} == {"matched"}
    wanted = load_backbone(place).state_dict()
    for branch in (training.pair.student, training.pair.teacher):
        assert all(torch.equal(value, wanted[name]) for name, value in branch.backbone.state_dict().items())
    # What the weights themselves were made from goes on into what is made with them.
    assert training.started.start.record["lineage"]["parents"]
    with pytest.raises(UserError, match=r"start.layout: is 'timm', .* was written by dinodomain"):
        build(replace(plan, start=StartPlan(weights=str(place), layout="timm")), images)
