from __future__ import annotations

import json

import pytest

from dinodomain.domain import ViewPolicy
from dinodomain.engine import EnginePlan, Facts, PretrainPlan, resolve
from dinodomain.engine.recipe import replace_key
from dinodomain.errors import UserError
from dinodomain.lineage import to_json
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.views import ViewsPlan

POLICY_2D = ViewPolicy(axes=("NS", "EW"), default_mode="source", global_scale=(0.4, 1.0))
POLICY_3D = ViewPolicy(axes=("IS", "AP", "LR"))


def facts(side=256, tiles=1000, ndim=2, world=1):
    policy = POLICY_2D if ndim == 2 else POLICY_3D
    return Facts(ndim=ndim, channels=("a",), extents={(side,) * ndim: tiles}, policy=policy, world=world)


def plan(**keys):
    return PretrainPlan(domain="x", store="s", out="o", **{"engine": EnginePlan(device="cpu"), **keys})


def test_no_auto_survives_and_every_choice_has_a_reason():
    resolved = resolve(plan(), facts())
    values = to_json(resolved.plan)
    values.pop("resume")
    assert "auto" not in json.dumps(values)
    assert resolved.plan.views.normalise == "source"
    assert resolved.plan.views.global_scale == (0.4, 1.0)
    assert resolved.plan.engine.threads >= 1
    assert any("views.normalise = source: the default of domain 'x'" in reason for reason in resolved.reasons)
    assert any("64 epochs of 1000 tiles" in reason for reason in resolved.reasons)


def test_resolving_twice_changes_nothing():
    once = resolve(plan(recipe="auto"), facts()).plan
    assert resolve(once, facts()).plan == once


@pytest.mark.parametrize(
    ("side", "ndim", "tiles"), [(32, 2, 1464), (28, 2, 40), (224, 2, 90_000), (1024, 2, 200_000), (96, 3, 600), (32, 3, 5)]
)
def test_the_automatic_recipe_fits_any_data(side, ndim, tiles):
    resolved = resolve(plan(recipe="auto"), facts(side, tiles, ndim)).plan
    assert resolved.views.global_size <= side
    assert resolved.views.global_size % resolved.model.patch == 0
    assert resolved.views.local_size % resolved.model.patch == 0
    assert resolved.loader.batch <= max(tiles, 2)
    assert resolved.objective.prototypes == (1024 if tiles < 10_000 else 8192 if tiles < 100_000 else 65536)


def test_the_automatic_recipe_leaves_what_was_set():
    own = plan(recipe="auto", model=ModelPlan(dim=48, heads=3, patch=4), loader=LoaderPlan(batch=6))
    resolved = resolve(own, facts(32, 500))
    assert (resolved.plan.model.dim, resolved.plan.model.patch, resolved.plan.loader.batch) == (48, 4, 6)
    assert not any(reason.startswith(("model.dim", "model.patch", "loader.batch")) for reason in resolved.reasons)


def test_sizes_that_patches_do_not_divide_are_refused_together():
    own = plan(views=ViewsPlan(global_size=100, local_size=50))
    with pytest.raises(UserError, match=r"views\.global_size: is 100; allowed: a multiple of model\.patch=16.*\nviews\.local_size: is 50"):
        resolve(own, facts())


def test_crops_far_larger_than_the_tiles_are_refused_with_the_way_out():
    with pytest.raises(
        UserError, match=r"views\.global_size: is 224, the smallest tiles have 32 pixels a side; allowed: up to 64; take smaller crops"
    ):
        resolve(plan(), facts(32))


def test_crops_somewhat_larger_than_the_tiles_are_remarked():
    assert any("enlarges the smallest tiles" in reason for reason in resolve(plan(), facts(128)).reasons)


@pytest.mark.parametrize(
    ("changes", "world", "message"),
    [
        ({"loader.batch": 6}, 4, r"loader\.batch: is 6 on 4 processes; allowed: a multiple of 4"),
        ({"loader.batch": 4}, 4, r"loader\.batch: is 4 on 4 processes; allowed: 8 or more"),
        (
            {"loader.batch": 12, "loader.draws": 3},
            8,
            r"loader\.batch: is 12 on 8 processes, with 3 draws of each tile; allowed: a multiple of 24",
        ),
        ({"views.num_global": 1, "views.num_local": 0}, 1, r"views\.num_local: is 0 with one global crop"),
    ],
)
def test_impossible_combinations_name_their_key(changes, world, message):
    own = plan()
    for key, value in changes.items():
        own = replace_key(own, key, value)
    with pytest.raises(UserError, match=message):
        resolve(own, facts(world=world))


def test_the_2d_renderer_is_refused_for_volumes():
    own = plan(views=ViewsPlan(global_size=32, local_size=16, renderer="resize"))
    with pytest.raises(UserError, match=r"views\.renderer: 'resize' cannot do 3-D"):
        resolve(own, facts(64, ndim=3))


@pytest.mark.parametrize("changes", [{"seed": -1}, {"store": " "}, {"out": ""}])
def test_a_plan_without_sense_is_refused_by_key(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        PretrainPlan(**{"domain": "x", "store": "s", "out": "o", **changes})
    with pytest.raises(UserError, match=r"engine\.steps: is 0.*\n.*engine\.threads: is 0"):
        EnginePlan(steps=0, threads=0)


def test_dates_that_no_crop_shows_are_refused_and_those_of_local_crops_alone_are_told():
    pairs = {"loader": LoaderPlan(pairs="dates", dates=4)}
    with pytest.raises(
        UserError, match=r"loader\.dates: is 4, of which the crops show 2: .* 2 global and 2 local; allowed: at most 2; raise views"
    ):
        resolve(plan(**pairs, views=ViewsPlan(num_local=2)), facts())
    resolved = resolve(plan(**pairs), facts())
    assert "loader.dates = 4: the 2 global crops show the first ones, local crops all" in resolved.reasons
    assert not any("loader.dates" in reason for reason in resolve(plan(loader=LoaderPlan(pairs="dates")), facts()).reasons)
    resolve(plan(loader=LoaderPlan(dates=9)), facts())  # without pairs the number has no meaning


def test_a_run_that_nothing_keeps_from_collapsing_is_remarked():
    told = resolve(plan(objective=ObjectivePlan(centering="none")), facts()).reasons
    assert any("expect a collapse" in line for line in told)
    assert not any("collapse" in line for line in resolve(plan(), facts()).reasons)


def test_the_number_of_readers_is_settled_with_its_reason():
    resolved = resolve(plan(), facts())
    assert resolved.plan.loader.workers == 0
    assert any(reason.startswith("loader.workers = 0: 1 core for this process, ") for reason in resolved.reasons)
    assert any(reason == "loader.workers = 5: asked for" for reason in resolve(plan(loader=LoaderPlan(workers=5)), facts()).reasons)


def test_several_draws_of_a_read_are_fewer_epochs_and_the_automatic_batch_fits_them():
    several = plan(loader=LoaderPlan(batch=60, draws=4))
    assert any(
        reason.endswith("are 15 epochs of 1000 tiles, each read once and drawn 4 times an epoch")
        for reason in resolve(several, facts()).reasons
    )
    chosen = resolve(plan(recipe="auto", loader=LoaderPlan(draws=4)), facts(tiles=10, world=4)).plan.loader.batch
    assert chosen == 16
