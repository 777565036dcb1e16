"""What somebody chose stays, also where it equals the plan's default: command line > YAML > recipe > what is derived."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from dinodomain import api, config
from dinodomain.cli import make_plan, split_words
from dinodomain.domain import ViewPolicy
from dinodomain.engine import Facts, PretrainPlan, resolve
from dinodomain.engine.folder import differing_keys
from dinodomain.engine.recipe import auto_recipe
from dinodomain.engine.slurm import Job
from dinodomain.errors import UserError
from dinodomain.lineage import to_json
from dinodomain.optim import OptimPlan
from dinodomain.verbs import VERBS

FACTS = Facts(ndim=2, channels=("a", "b"), extents={(256, 256): 2000}, policy=ViewPolicy(axes=("NS", "EW")))
PLACES = {"domain": "x", "store": "s", "out": "o"}
DEFAULTS = {"optim.lr": OptimPlan().lr, "loader.batch": 64, "engine.steps": 1000, "views.global_size": 224, "model.dim": 384}


def words(*more: str) -> PretrainPlan:
    return make_plan(VERBS["pretrain"], split_words([*(f"{key}={value}" for key, value in PLACES.items()), *more]))


def nested(values: dict[str, object]) -> dict[str, dict[str, object]]:
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return sections


def from_line(folder) -> PretrainPlan:
    return words(*(f"{key}={value}" for key, value in DEFAULTS.items()))


def from_file(folder) -> PretrainPlan:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(nested(DEFAULTS)))
    return words(f"config={path}")


def from_keywords(folder) -> PretrainPlan:
    return api._plan(PretrainPlan, None, {**PLACES, "recipe": "auto", **nested(DEFAULTS)})


@pytest.mark.parametrize("made", [from_line, from_file, from_keywords])
def test_a_default_that_was_asked_for_is_not_derived(made, tmp_path):
    plan = made(tmp_path)
    assert plan.recipe == "auto"
    assert set(DEFAULTS) <= plan.given
    chosen = {choice.key for choice in auto_recipe(plan, FACTS, "cpu")}
    assert not chosen & set(DEFAULTS)
    # Each of them would be derived otherwise (but for the batch, of which 64 is what is derived).
    assert set(DEFAULTS) - {"loader.batch"} <= {choice.key for choice in auto_recipe(words(), FACTS, "cpu")}


def test_in_a_plan_built_in_python_another_value_counts_as_given():
    plan = PretrainPlan(**PLACES, recipe="auto", optim=OptimPlan(lr=3e-3))
    chosen = {choice.key for choice in auto_recipe(plan, FACTS, "cpu")}
    assert "optim.lr" not in chosen
    assert "optim.momentum" in chosen


def test_keys_of_a_recipe_and_a_group_are_given_and_mappings_are_one_key():
    assert {"loader.batch", "model.registers"} <= words("recipe=dinov2").given
    assert {"model.dim", "model.heads"} <= words("model=vit_small").given
    assert "views.policy" in words("views.policy.flip=[NS]").given


def test_what_is_given_is_no_key_and_is_neither_recorded_nor_compared():
    plan = words("optim.lr=0.001")
    assert "given" not in to_json(plan)
    assert plan == replace(plan, given=frozenset())
    assert differing_keys(to_json(plan), to_json(replace(plan, given=frozenset()))) == {}
    assert "given" not in {key for key, _, _ in config.plan_keys(PretrainPlan)}
    with pytest.raises(UserError, match="given: unknown key"):
        config.build(PretrainPlan, {**PLACES, "given": ["optim.lr"]})


def test_it_goes_along_to_the_resolved_plan_and_to_a_job():
    plan = words("engine.device=cpu", f"optim.lr={OptimPlan().lr}")
    assert resolve(plan, FACTS).plan.given == plan.given
    assert Job(replace(plan, out="elsewhere")).plan.given == plan.given
