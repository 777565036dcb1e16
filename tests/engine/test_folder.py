from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dinodomain.engine import PretrainPlan
from dinodomain.engine.build import build
from dinodomain.engine.folder import check_folder, differing_keys, lock
from dinodomain.engine.log import write_plan
from dinodomain.errors import UserError
from dinodomain.lineage import to_json

PLAN = {
    "seed": 0,
    "out": "a",
    "optim": {"lr": 0.1, "betas": [0.9, 0.99]},
    "loader": {"workers": 2, "weights": {}},
    "checkpoint": {"every": 5},
}


def test_only_keys_that_change_the_result_count_as_different():
    other = {
        **PLAN,
        "out": "b",
        "optim": {"lr": 0.2, "betas": [0.9, 0.99]},
        "loader": {"workers": 0, "weights": {"x": 1.0}},
        "checkpoint": {"every": 9},
    }
    assert differing_keys(PLAN, other) == {"loader.weights": ({}, None), "loader.weights.x": (None, 1.0), "optim.lr": (0.1, 0.2)}


def test_a_new_or_empty_folder_starts_fresh(tmp_path):
    assert not check_folder(tmp_path, "auto", PLAN)
    assert not check_folder(tmp_path / "new", "never", PLAN)


def test_the_same_plan_goes_on(tmp_path):
    write_plan(tmp_path / "plan.yaml", PLAN)
    assert check_folder(tmp_path, "auto", PLAN)


def test_a_run_that_goes_on_keeps_its_threads_where_nobody_asks_for_others(make_plan, images, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    plan = make_plan(engine={"threads": 3})
    Path(plan.out).mkdir()
    write_plan(Path(plan.out) / "plan.yaml", to_json(build(plan, images).training.plan))
    for wanted, threads in ((None, 3), (2, 2)):
        again = build(replace(plan, engine=replace(plan.engine, threads=wanted)), images)
        assert again.training.plan.engine.threads == threads


def test_another_plan_is_refused_naming_its_keys(tmp_path):
    write_plan(tmp_path / "plan.yaml", PLAN)
    with pytest.raises(UserError, match=r"out: .*another plan: optim\.lr was 0\.1, now 0\.3; seed was 0, now 1; .*another out folder"):
        check_folder(tmp_path, "auto", {**PLAN, "seed": 1, "optim": {**PLAN["optim"], "lr": 0.3}})


def test_a_plan_of_an_earlier_version_goes_on_where_nothing_new_is_asked_for():
    added = {"aligned": True, "draws": 1, "spread": 4, "pairs": "none", "dates": 2, "min_days": 1, "requests": 9, "ring_dir": None}
    assert differing_keys(PLAN, {**PLAN, "loader": {**PLAN["loader"], **added}}) == {}
    assert differing_keys(PLAN, {**PLAN, "loader": {**PLAN["loader"], **added, "draws": 2}}) == {"loader.draws": (1, 2)}


def test_a_plan_that_did_not_record_its_policy_is_told_in_one_line_and_no_windows_are_nothing_new():
    policy = {"gamma": {"probability": 0.8}, "haze": None}
    now = {**PLAN, "views": {"policy": policy, "windows": [], "global_extent": None}}
    assert differing_keys(PLAN, now) == {"views.policy": ("not recorded", "recorded")}
    assert differing_keys({**PLAN, "views": {"policy": {}}}, now) == {"views.policy": ("not recorded", "recorded")}
    other = {**now, "views": {**now["views"], "policy": {**policy, "gamma": None}, "windows": ["lung"]}}
    assert differing_keys(now, other) == {"views.policy.gamma.probability": (0.8, None), "views.windows": ([], ["lung"])}


def test_keys_of_what_is_drawn_may_change_when_told_and_no_others(tmp_path):
    write_plan(tmp_path / "plan.yaml", PLAN)
    drawn = {**PLAN, "loader": {"workers": 0, "weights": {"x": 2.0}, "tile": 64}}
    with pytest.raises(UserError, match=r"loader\.tile was None, now 64.*resume=force goes on at the same step"):
        check_folder(tmp_path, "auto", drawn)
    assert check_folder(tmp_path, "force", drawn)
    with pytest.raises(
        UserError, match=r"another plan: seed was 0, now 1; give these keys their old values, or choose another out folder$"
    ):
        check_folder(tmp_path, "force", {**drawn, "seed": 1})
    with pytest.raises(UserError, match=r"another out folder$"):
        check_folder(tmp_path, "auto", {**drawn, "seed": 1})


def test_resume_never_refuses_a_folder_with_a_run(tmp_path):
    write_plan(tmp_path / "plan.yaml", PLAN)
    with pytest.raises(UserError, match=r"already holds a run and resume=never; choose another folder"):
        check_folder(tmp_path, "never", PLAN)


def test_an_unreadable_plan_and_a_file_as_folder_are_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text("{")
    with pytest.raises(UserError, match="not a plan this package wrote"):
        check_folder(tmp_path, "auto", PLAN)
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "plan.yaml", "auto", PLAN)


def test_a_second_trainer_is_kept_out_of_the_folder(tmp_path):
    with lock(tmp_path), pytest.raises(UserError, match="in use by another"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_every_key_that_came_with_this_version_says_what_earlier_ones_did():
    """A plan of 2026-11-26, before accumulation, RoPE, Gram, watching and trackers, against today's with nothing asked for."""
    plan = to_json(PretrainPlan(domain="x", store="s", out="o"))
    before = {name: value for name, value in plan.items() if name not in ("launcher", "slurm", "dry_run", "start", "gram", "watch")}
    new = {
        "model": ("mlp", "rope_unit", "rope_length", "rope_base", "rope_shift", "rope_jitter", "rope_rescale", "channels", "norm_eps"),
        "objective": ("patch_head", "patch_prototypes", "local_weight"),
        "optim": ("freeze_backbone", "schedule", "patch_lr"),
        "engine": ("accumulate", "distribute", "checkpointing", "compile", "trackers"),
    }
    for section, names in new.items():
        before[section] = {name: value for name, value in before[section].items() if name not in names}
    before["engine"]["tensorboard"] = True
    assert differing_keys(before, plan) == {}
    changed = {**plan, "optim": {**plan["optim"], "patch_lr": 0.2}, "engine": {**plan["engine"], "accumulate": 2}}
    assert differing_keys(before, changed) == {"engine.accumulate": (1, 2), "optim.patch_lr": (1.0, 0.2)}


def test_watching_may_change_unless_it_decides_when_gram_anchoring_begins():
    quiet, loud = {**PLAN, "watch": {"every": 100, "tiles": 64}}, {**PLAN, "watch": {"every": 200, "tiles": 64}}
    assert differing_keys(quiet, loud) == {}
    drift = {"gram": {"weight": 2.0, "teacher": "drift"}}
    assert differing_keys({**quiet, **drift}, {**loud, **drift}) == {"watch.every": (100, 200)}
