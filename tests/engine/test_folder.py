from __future__ import annotations

import pytest

from dinodomain.engine.folder import check_folder, differing_keys, lock
from dinodomain.engine.log import write_plan
from dinodomain.errors import UserError

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


def test_another_plan_is_refused_naming_its_keys(tmp_path):
    write_plan(tmp_path / "plan.yaml", PLAN)
    with pytest.raises(UserError, match=r"out: .*another plan: optim\.lr was 0\.1, now 0\.3; seed was 0, now 1; .*another out folder"):
        check_folder(tmp_path, "auto", {**PLAN, "seed": 1, "optim": {**PLAN["optim"], "lr": 0.3}})


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
