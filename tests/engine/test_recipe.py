from __future__ import annotations

from dataclasses import replace

import pytest

from dinodomain.domain import ViewPolicy
from dinodomain.engine import EnginePlan, Facts, PretrainPlan, resolve
from dinodomain.engine.memory import USABLE, estimate, smallest_accumulation
from dinodomain.engine.recipe import auto_recipe, replace_key
from dinodomain.errors import UserError
from dinodomain.loader import LoaderPlan
from dinodomain.model import StartPlan

POLICIES = {2: ViewPolicy(axes=("NS", "EW")), 3: ViewPolicy(axes=("IS", "AP", "LR"))}


def facts(side=256, tiles=50_000, ndim=2, memory=None):
    kinds = {} if memory is None else {"cuda": memory, "cpu": memory}
    return Facts(ndim=ndim, channels=("a", "b"), extents={(side,) * ndim: tiles}, policy=POLICIES[ndim], memory=kinds)


def auto(**keys):
    return PretrainPlan(domain="x", store="s", out="o", recipe="auto", **keys)


def chosen(plan, found, device="cuda"):
    return {choice.key: choice.value for choice in auto_recipe(plan, found, device)}


def test_every_choice_has_a_reason_with_its_source():
    for device in ("cpu", "cuda"):
        for choice in auto_recipe(auto(), facts(), device):
            assert any(word in choice.reason for word in ("DINO", "experiments.md", "our", "tiles", "samples")), str(choice)


def test_more_tiles_take_larger_networks_batches_prototypes_and_longer_runs():
    few, some, many = (chosen(auto(), facts(tiles=tiles)) for tiles in (2000, 50_000, 2_000_000))
    width = [found.get("model.dim", 384) for found in (few, some, many)]
    assert width == [192, 384, 768]
    assert [found.get("loader.batch", 64) for found in (few, some, many)] == [128, 256, 256]
    assert [found.get("objective.prototypes", 8192) for found in (few, some, many)] == [1024, 8192, 65536]
    assert few["engine.steps"] < some["engine.steps"] < many["engine.steps"] == 125_000


def test_short_runs_get_sharp_targets_and_a_quick_teacher():
    short, long = chosen(auto(), facts(tiles=2000)), chosen(auto(), facts())
    assert short["optim.momentum"] == (0.99, 1.0)
    assert short["objective.teacher_temperature"] == (0.04, 0.04)
    assert short["objective.centering"] == "sinkhorn"
    assert not {"optim.momentum", "objective.teacher_temperature", "objective.centering"} & set(long)


def test_a_step_is_cut_into_the_parts_that_the_memory_takes():
    for memory in (2, 6, 40):
        plan, found = auto(engine=EnginePlan(precision="bf16")), facts(memory=memory * 2**30)
        for choice in auto_recipe(plan, found, "cuda"):
            plan = replace_key(plan, choice.key, choice.value)
        assert estimate(plan, ndim=2, channels=2).total <= USABLE * memory * 2**30
        assert (plan.engine.accumulate > 1) == (memory < 40)
    assert "engine.accumulate" not in chosen(auto(), facts())  # unknown memory


def test_checkpointing_comes_where_micro_batches_alone_do_not_do():
    values = chosen(auto(views=replace_key(auto(), "views.global_size", 512).views), facts(side=1024, memory=2**30))
    assert values["engine.checkpointing"] is True


def test_weights_to_start_from_keep_their_sizes_and_get_gentle_rates():
    values = chosen(auto(start=StartPlan(weights="w")), facts())
    assert not any(key.startswith("model.") for key in values)
    assert (values["optim.lr"], values["optim.freeze_backbone"]) == (2e-4, 0.1)
    assert values["engine.steps"] < chosen(auto(), facts())["engine.steps"]
    with_heads = chosen(auto(start=StartPlan(weights="w", heads=True)), facts(tiles=2000))
    assert not {"objective.prototypes", "optim.freeze_backbone"} & set(with_heads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.accumulate": 7}, r"engine\.accumulate: is 7 for the 64 samples of a process; allowed: 1, 2, 4, 8, 16, 32"),
        ({"engine.accumulate": 64}, r"engine\.accumulate: is 64 .*one micro-batch; objective\.koleo_weight=0"),
        ({"gram.weight": 2.0, "watch.tiles": 0}, r"gram\.teacher: is drift, .*watch\.tiles=0 measures none; set watch\.tiles"),
        ({"gram.weight": 2.0, "gram.teacher": "start"}, r"gram\.teacher: is start, and start\.weights is empty; set start\.weights=RUN"),
        ({"gram.weight": 2.0, "watch.every": 900}, r"watch\.every: is 900 in 1000 steps.*allowed: at most 250"),
        ({"gram.weight": 2.0, "gram.size": 230}, r"gram\.size: is 230; allowed: a multiple of the patch, 16, from 224 on"),
    ],
)
def test_combinations_that_cannot_work_name_their_key(changes, message):
    plan = PretrainPlan(domain="x", store="s", out="o", engine=EnginePlan(device="cpu"))
    for key, value in changes.items():
        plan = replace_key(plan, key, value)
    with pytest.raises(UserError, match=message):
        resolve(plan, facts())


def test_what_surely_does_not_fit_is_refused_and_what_may_not_is_remarked():
    plan = PretrainPlan(domain="x", store="s", out="o", engine=EnginePlan(device="cpu"))
    needed = estimate(plan, ndim=2, channels=2).total
    fitting = smallest_accumulation(plan, int(USABLE * (needed // 2)), ndim=2, channels=2)
    assert fitting > 2
    with pytest.raises(UserError, match=rf"engine\.accumulate: a step needs about .* take engine\.accumulate={fitting} "):
        resolve(plan, facts(memory=needed // 2))
    assert any("tight, try dry_run=true first" in reason for reason in resolve(plan, facts(memory=needed)).reasons)
    assert not any("tight" in reason for reason in resolve(plan, facts(memory=2 * needed)).reasons)


def test_the_anchor_of_a_later_stage_is_the_weights_it_starts_from():
    plan = PretrainPlan(domain="x", store="s", out="o", engine=EnginePlan(device="cpu"), start=StartPlan(weights="runs/one"))
    plan = replace_key(replace_key(plan, "gram.weight", 2.0), "gram.teacher", "start")
    resolved = resolve(plan, facts())
    assert resolved.plan.gram.teacher == "runs/one"
    assert resolve(resolved.plan, facts()).plan == resolved.plan


def test_micro_batches_that_were_asked_for_stay_and_the_batch_gives_way():
    engine, found = EnginePlan(precision="bf16", accumulate=2), facts(memory=6 * 2**30)
    plan = replace(auto(engine=engine), given=frozenset({"engine.checkpointing"}))
    values = chosen(plan, found)
    assert not {"engine.accumulate", "engine.checkpointing"} & set(values)
    assert values["loader.batch"] < 256
    for key, value in values.items():
        plan = replace_key(plan, key, value)
    assert estimate(plan, ndim=2, channels=2).total <= USABLE * 6 * 2**30


def test_draws_of_a_read_make_no_run_longer_and_the_reason_says_how_often_tiles_are_read():
    once, often = (auto(loader=LoaderPlan(draws=draws)) for draws in (1, 4))
    assert chosen(once, facts(tiles=2000))["engine.steps"] == chosen(often, facts(tiles=2000))["engine.steps"]
    reason = next(choice.reason for choice in auto_recipe(often, facts(tiles=2000), "cuda") if choice.key == "engine.steps")
    assert "every tile drawn 100 times" in reason
    assert "a tile is read 25 times and drawn 4 times from each" in reason
