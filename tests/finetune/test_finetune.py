"""Fine-tuning on dark and bright patterns: it learns, on units it never saw, without the audit holdout, equally for equal seeds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dinodomain.checkpoint import load_backbone, save_backbone
from dinodomain.errors import Problems, UserError
from dinodomain.finetune import FinetunePlan, Tuned, finetune
from dinodomain.finetune.data import Split, split_labels
from dinodomain.finetune.loop import training_policy
from dinodomain.finetune.task import Predictor
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.model import Backbone, ModelPlan
from dinodomain.probes import Target
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, SyntheticVolumes, tiny_store
from dinodomain.types import Normalisation

DOMAIN = SyntheticImages(size=(32, 32))
NUM = 160


def untrained(path: Path, *, ndim: int = 2, channels: int = 3) -> Path:
    """A seeded backbone, saved as an export is."""
    torch.manual_seed(0)
    numbers = {name: (value,) * channels for name, value in {"low": 0.0, "high": 255.0, "mean": 0.5, "std": 0.25}.items()}
    normalisation = Normalisation(mode="domain", channels=tuple(f"c{i}" for i in range(channels)), **numbers)
    plan = ModelPlan(dim=32, depth=2, heads=2, patch=8, registers=1, layer_scale=0.1)
    return save_backbone(path, Backbone.create(plan, ndim=ndim, image_size=16, normalisation=normalisation, domain="synthetic"))


def level(index: int) -> int:
    """Brightness of a pattern: that of its unit, two patterns each."""
    return (index // 2 * 37) % 64


def name_of(index: int) -> str:
    """Dark, bright, or no label between them."""
    return "dark" if level(index) < 22 else "bright" if level(index) >= 42 else ""


def write_labels(path: Path, num: int = NUM) -> Path:
    rows = ["id,label,level,lonely,same"]
    rows += [f"pattern{index:05d},{name_of(index)},{level(index)},{'a' if index == 0 else 'b'},x" for index in range(num)]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("finetune")
    tiny_store(root / "store", domain=DOMAIN, num=NUM, audit_holdout=0.2)
    return {"store": str(root / "store"), "labels": str(write_labels(root / "l.csv")), "checkpoint": str(untrained(root / "b.safetensors"))}


@pytest.fixture(scope="module")
def make_plan(files, tmp_path_factory) -> Callable[..., FinetunePlan]:
    def make(**changes: object) -> FinetunePlan:
        quick = {"target": "label", "steps": 25, "batch": 16, "baseline": False, "device": "cpu", "lr": 0.03}
        return FinetunePlan(**(files | {"out": str(tmp_path_factory.mktemp("out"))} | quick | changes))

    return make


@pytest.fixture(scope="module")
def head_plan(make_plan) -> FinetunePlan:
    return make_plan(baseline=True)


@pytest.fixture(scope="module")
def tuned(head_plan) -> Tuned:
    return finetune(head_plan, domain=DOMAIN)


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return load_backbone(path).state_dict()


def rows_of(out: str) -> list[dict[str, str]]:
    with open(Path(out) / "predictions.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def names_of(files: dict[str, str], split: Split, positions: np.ndarray) -> set[str]:
    return set(open_store(files["store"]).column("source_id")[split.rows[positions]])


def test_a_head_alone_learns_the_brightness_of_unseen_units_and_leaves_the_backbone_bit_equal(tuned, head_plan, files):
    score = tuned.scores["pretrained"]["balanced_accuracy"]
    assert score.value > 0.9
    assert score.low > 0.7
    before, after = weights(files["checkpoint"]), weights(head_plan.out)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_full_mode_learns_too_and_changes_the_backbone(make_plan, files):
    plan = make_plan(mode="full", steps=25, backbone_lr=1e-3)
    assert finetune(plan, domain=DOMAIN).scores["pretrained"]["balanced_accuracy"].value > 0.9
    before, after = weights(files["checkpoint"]), weights(plan.out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"vit.blocks.0.attn.qkv.weight", "vit.patch_embed.proj.weight"} <= changed


def test_numbers_are_regressed_in_their_own_unit(make_plan):
    plan = make_plan(target="level", task="regress", steps=60)
    scores = finetune(plan, domain=DOMAIN).scores["pretrained"]
    assert scores["r2"].value > 0.7
    found = np.array([[float(row["truth"]), float(row["prediction"])] for row in rows_of(plan.out)])
    assert np.abs(found[:, 0] - found[:, 1]).mean() == pytest.approx(scores["mae"].value)
    assert 0 < found[:, 1].mean() < 64


def test_a_units_sources_are_never_both_trained_on_and_scored(make_plan, files):
    for seed in range(3):
        split = split_labels(open_store(files["store"]), make_plan(target="level", task="regress", seed=seed))
        assert not set(split.units[split.train]) & set(split.units[split.test])
        assert len(split.train) + len(split.test) == len(split.rows)


def test_units_of_the_audit_holdout_are_neither_trained_on_nor_scored(tuned, head_plan, files):
    store = open_store(files["store"])
    held = set(store.column("source_id")[store.column("holdout").astype(bool)])
    assert len(held) > 10
    split = split_labels(store, head_plan)
    assert not held & names_of(files, split, np.r_[split.train, split.test])
    assert not held & {row["source_id"] for row in rows_of(head_plan.out)}
    labelled = {f"unit{i // 2:04d}/pattern{i:05d}" for i in range(NUM) if name_of(i)}
    assert tuned.counts["left out (audit holdout)"] == len(held & labelled)


def test_labels_per_class_limits_the_training_and_not_the_scoring(make_plan, files):
    store = open_store(files["store"])
    whole, few = (split_labels(store, make_plan(labels_per_class=count)) for count in (None, 3))
    assert np.bincount(few.target.y[few.train]).tolist() == [3, 3]
    assert np.array_equal(few.test, whole.test)
    assert set(few.train) < set(whole.train)
    assert len(set(few.units[few.train[few.target.y[few.train] == 0]])) == 3, "one source of each unit first"


def test_the_folder_holds_weights_predictions_lineage_figure_and_a_report(tuned, head_plan, files):
    out, store = Path(head_plan.out), open_store(files["store"])
    names = {"backbone.safetensors", "head.safetensors", "predictions.csv", "lineage.json", "report.json", "figures"}
    assert {path.name for path in out.iterdir()} == names
    assert list((out / "figures").glob("*.png"))
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(json.dumps(tuned.as_json()))
    assert set(report["scores"]) == {"pretrained", "untrained"}
    assert report["difference"].keys() >= {"value", "low", "high"}
    record = json.loads((out / "lineage.json").read_text())
    assert record["kind"] == "finetune"
    assert record["parents"]["store"] == store.digest
    assert record["plan"]["mode"] == "head"
    assert "/" not in json.dumps(record["plan"]), "no path of this machine"


def test_predictions_name_source_truth_and_probabilities(tuned, head_plan):
    rows = rows_of(head_plan.out)
    assert tuned.counts["scored on"].startswith(f"{len(rows)} sources of ")
    for row in rows:
        number = int(row["source_id"][-5:])
        assert row["truth"] == name_of(number)
        chances = {name: float(row[f"p_{name}"]) for name in ("bright", "dark")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(chances, key=lambda name: chances[name])
    right = [row["prediction"] == row["truth"] for row in rows]
    assert np.mean(right) == pytest.approx(tuned.scores["pretrained"]["accuracy"].value)


def test_the_text_names_both_backbones_counts_and_the_folder(tuned, head_plan):
    for words in ("pretrained ", "untrained ", "pretrained - untrained, balanced_accuracy", "trained on: ", head_plan.out):
        assert words in tuned.text()


def test_equal_seeds_give_equal_files_and_another_seed_another_split(tuned, head_plan, make_plan, files):
    again = make_plan(baseline=True)
    finetune(again, domain=DOMAIN)
    for name in ("predictions.csv", "head.safetensors", "backbone.safetensors", "lineage.json"):
        assert (Path(again.out) / name).read_bytes() == (Path(head_plan.out) / name).read_bytes(), name
    one, other = (split_labels(open_store(files["store"]), make_plan(seed=seed)) for seed in (0, 1))
    assert not np.array_equal(one.test, other.test)


def test_volumes_are_tuned_too(tmp_path):
    domain = SyntheticVolumes(size=(16, 16, 16))
    tiny_store(tmp_path / "store", domain=domain, num=16)
    plan = FinetunePlan(
        checkpoint=str(untrained(tmp_path / "b.safetensors", ndim=3, channels=1)),
        store=str(tmp_path / "store"),
        labels=str(write_labels(tmp_path / "l.csv", 16)),
        target="label",
        out=str(tmp_path / "out"),
        steps=2,
        batch=4,
        baseline=False,
        device="cpu",
    )
    assert set(finetune(plan, domain=domain).scores["pretrained"]) == {"balanced_accuracy", "accuracy", "auroc"}


@pytest.mark.parametrize("full", [False, True])
def test_padding_counts_for_nothing_in_the_pooling(full):
    plan = ModelPlan(dim=16, depth=1, heads=2, patch=8)
    numbers = Normalisation(mode="domain", channels=("c",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.25,))
    backbone = Backbone.create(plan, ndim=2, image_size=16, normalisation=numbers, domain="synthetic", pooling="mean")
    y = np.array([0, 1])
    predictor = Predictor(backbone, Target(y=y, classes=("a", "b")), full=full).eval()
    torch.nn.init.normal_(predictor.linear.weight)
    x, weights = torch.randn(2, 1, 16, 16), torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    patches = backbone(x).patches
    want = torch.stack([(patches[0, 0] + 0.5 * patches[0, 1]) / 1.5, patches[1].mean(dim=0)])
    found = predictor(x, weights)
    torch.testing.assert_close(found, predictor.linear(predictor.norm(want)))
    assert not torch.allclose(found[0], predictor(x, torch.ones(2, 4))[0], atol=1e-3)
    predictor.loss(found, torch.as_tensor(y)).backward()
    assert (next(backbone.parameters()).grad is not None) == full


def test_scenes_of_one_ground_cell_are_one_unit_at_every_date(tmp_path):
    domain = SyntheticImages(size=(32, 32), layout="window", epsg=32632)
    source, lines = tmp_path / "in", ["id,label"]
    source.mkdir()
    for number, east in enumerate((0, 0, 0, 40000, 40000, 80000, 120000)):
        affine = (100.0, 0, 500000 + east, 0, -100.0, 5300000, 0, 0, 1)
        pixels = np.random.default_rng(number).integers(1, 255, (3, 32, 32)).astype(np.uint8)
        np.savez(source / f"s{number}.npz", pixels=pixels, affine=np.array(affine), crs="EPSG:32632", spacing=(100.0, 100.0))
        lines.append(f"s{number},{'ab'[number % 2]}")
    (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
    ingest(IngestPlan(domain="synthetic", source=str(source), store=str(tmp_path / "store"), cell=20000, workers=0), domain=domain)
    keys = {"checkpoint": "unused", "store": str(tmp_path / "store"), "labels": str(tmp_path / "l.csv"), "out": "unused"}
    split = split_labels(open_store(keys["store"]), FinetunePlan(**keys, target="label"))
    assert np.unique(split.units, return_inverse=True)[1].reshape(-1).tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert all(name.startswith("cell20000/") for name in split.units)
    assert not set(split.units[split.train]) & set(split.units[split.test])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "stage"}, "target: .*stage.*label"),
        ({"join": "file"}, "join: .*file"),
        ({"group": "patient"}, "group: .*has no column 'patient'; allowed: id, label"),
        ({"target": "same"}, "same: has one value only .'x'.; allowed: two or more classes"),
        ({"task": "regress"}, "label: holds values that are not finite numbers, e.g. '"),
        (
            {"labels_per_class": 999},
            r"finetune.labels_per_class: 999, but the training units have \d+ sources of class '(dark|bright)'; allowed: 1 to",
        ),
        ({"group": "same"}, "labels: .* are of 1 units .*; allowed: 3 units or more for finetune.test_share=0.3; label more units"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_used_are_one_clear_error(make_plan, files, changes, message):
    with pytest.raises(UserError, match=message):
        split_labels(open_store(files["store"]), make_plan(**changes))


def test_a_class_of_one_unit_that_is_scored_cannot_be_learned_and_is_named(make_plan, files):
    def message(seed: int) -> str:
        try:
            split_labels(open_store(files["store"]), make_plan(target="lonely", seed=seed))
        except UserError as error:
            return str(error)
        return ""

    found = {message(seed) for seed in range(8)}
    assert "target: no training unit has class 'a'; label more units, or lower finetune.test_share" in found


def test_a_run_that_cannot_start_leaves_no_folder(make_plan, tmp_path):
    for changes, message in (({"checkpoint": "/nowhere"}, "checkpoint: /nowhere does not exist"), ({"target": "same"}, "one value only")):
        with pytest.raises(UserError, match=message):
            finetune(make_plan(**changes, out=str(tmp_path / "out")), domain=DOMAIN)
    assert not (tmp_path / "out").exists()


def test_a_plan_lists_all_its_problems_at_once():
    keys = dict.fromkeys(("checkpoint", "store", "labels", "target", "out"), "x")
    with pytest.raises(Problems) as error:
        FinetunePlan(**keys, steps=0, test_share=0.9, labels_per_class=2, task="regress", scale=(0.5, 0.1))
    for words in (
        "finetune.steps: is 0",
        "finetune.test_share: is 0.9",
        "finetune.labels_per_class: set for task=regress",
        "finetune.scale",
    ):
        assert words in str(error.value)


def test_what_pretraining_ruled_out_stays_out():
    domain = SyntheticImages()
    record = {"plan": {"domain": domain.name, "views": {"policy": {"axes": ["NS", "EW"], "flip": {}, "gamma": None}}}}
    policy = training_policy(domain, record)
    assert dict(policy.flip) == {}
    assert policy.gamma is policy.blur is None
    assert training_policy(domain, {}) == replace(domain.view_policy(), blur=None, solarise=None)
    assert training_policy(domain, {"plan": {**record["plan"], "domain": "another"}}) == training_policy(domain, {})
