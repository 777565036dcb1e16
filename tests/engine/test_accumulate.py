"""Micro-batches make the step of one large batch, in less memory: same losses, same gradients, one move of the teacher."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from dinodomain.engine import build, train_step
from dinodomain.engine import step as step_module
from dinodomain.engine.loop import host_values
from dinodomain.engine.micro import micro_batches
from dinodomain.engine.step import render_views
from dinodomain.errors import Problems

# Rates at which a few steps go far: what parts may differ by is a share of the way.
FAST = {"freeze_last_layer": 0.0, "lr": 0.02, "warmup": 0.0, "momentum": (0.5, 0.5)}
ALIKE = {"loader": {"batch": 8}, "model": {"drop_path": 0.0}, "optim": FAST}
MEASURES = ("teacher_entropy", "kl_to_uniform", "feature_std", "center_norm", "teacher_temperature")


def run(plan, images, steps: int = 3):
    setup = build(plan, images)
    stream = iter(setup.loader)
    rows = [host_values(train_step(setup.training, next(stream))) for _ in range(steps)]
    stream.close()
    return rows, setup.training


def way_and_distance(first, whole, other):
    """For student, teacher and centres: how far they went, and how far from there the other run is."""
    parts = {name.split("/")[0] for name in first}
    lengths = {}
    for part in parts:
        own = [name for name in first if name.startswith(f"{part}/")]
        lengths[part] = tuple(
            sum(float((whole[name].float() - there[name].float()).square().sum()) for name in own) ** 0.5 for there in (first, other)
        )
    return lengths


def state(training):
    return {f"{part}/{name}": value for part, tensors in training.snapshot({}, {}).tensors.items() for name, value in tensors.items()}


@pytest.mark.parametrize("objective", [
    {"koleo_weight": 0.0}, {"koleo_weight": 0.0, "centering": "sinkhorn", "patch_head": "separate", "patch_prototypes": 12},
])  # fmt: skip
def test_two_micro_batches_of_four_train_like_one_batch_of_eight(make_plan, images, objective):
    plan = make_plan(**ALIKE, objective=objective)
    first = {name: value.clone() for name, value in state(build(plan, images).training).items()}
    whole, one = run(plan, images)
    parts, two = run(make_plan(**ALIKE, objective=objective, engine={"accumulate": 2}), images)
    for row, expected in zip(parts, whole):
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        for name in ("backbone", "head", "patch_embed", "block_middle"):
            assert row[f"grad_norm_{name}"] == pytest.approx(expected[f"grad_norm_{name}"], rel=1e-3), name
    for part, (way, apart) in way_and_distance(first, state(one), state(two)).items():
        assert way > 0.1, part
        assert apart < 1e-4 * way, part


@pytest.mark.parametrize("accumulate", [2, 8])
def test_measures_of_collapse_are_those_of_the_whole_batch_however_few_samples_a_part_has(make_plan, images, accumulate):
    objective = {"koleo_weight": 0.0}
    whole, _ = run(make_plan(**ALIKE, objective=objective), images)
    parts, _ = run(make_plan(**ALIKE, objective=objective, engine={"accumulate": accumulate}), images)
    for row, expected in zip(parts, whole):
        assert {name: row[name] for name in MEASURES} == pytest.approx({name: expected[name] for name in MEASURES}, rel=1e-4, abs=1e-6)


def test_the_teacher_and_the_centres_move_once_a_step(make_plan, images, monkeypatch):
    setup = build(make_plan(**ALIKE, engine={"accumulate": 4}), images)
    moves = []
    pair = type(setup.training.pair)
    real = pair.update_teacher
    monkeypatch.setattr(pair, "update_teacher", lambda self, *args, **kwargs: (moves.append(1), real(self, *args, **kwargs)))
    train_step(setup.training, next(iter(setup.loader)))
    assert moves == [1]


@pytest.mark.parametrize(("accumulate", "calls"), [(1, [None]), (2, [1, 1, None, None])])
def test_views_are_rendered_once_alone_and_for_micro_batches_the_global_ones_first(make_plan, images, monkeypatch, accumulate, calls):
    setup, asked = build(make_plan(**ALIKE, engine={"accumulate": accumulate}), images), []
    real = step_module.render_views

    def watched(training, batch, *, groups=None):
        asked.append(groups)
        return real(training, batch, groups=groups)

    monkeypatch.setattr(step_module, "render_views", watched)
    train_step(setup.training, next(iter(setup.loader)))
    assert asked == calls


def test_views_of_a_part_have_the_bits_of_those_of_the_whole(make_plan, images):
    setup = build(make_plan(**ALIKE), images)
    batch = next(iter(setup.loader))
    whole = render_views(setup.training, batch).groups
    alone = render_views(setup.training, batch, groups=1).groups
    assert len(alone) == 1
    assert alone[0].pixels.equal(whole[0].pixels)
    for index, part in enumerate(micro_batches(batch, 2)):
        own = render_views(setup.training, part).groups[0]
        expected = whole[0].pixels.unflatten(0, (whole[0].num_views, 8))[:, 4 * index : 4 * index + 4].flatten(0, 1)
        torch.testing.assert_close(own.pixels, expected, atol=1e-6, rtol=0)


def test_parts_share_memory_with_the_batch_and_make_it_up_again(make_plan, images):
    batch = next(iter(build(make_plan(**ALIKE), images).loader))
    parts = micro_batches(batch, 4)
    assert len(parts) == 4
    for name in ("pixels", "tile_ids", "epochs", "draws", "slots", "rows", "origins"):
        assert torch.cat([torch.as_tensor(getattr(part, name)) for part in parts]).equal(torch.as_tensor(getattr(batch, name))), name
    for field in fields(batch.info):
        joined = torch.cat([getattr(part.info, field.name) for part in parts])
        torch.testing.assert_close(joined, getattr(batch.info, field.name), equal_nan=True, atol=0, rtol=0)
    assert parts[0].pixels.data_ptr() == batch.pixels.data_ptr()


@pytest.mark.parametrize(("changes", "message"), [
    ({"engine": {"accumulate": 3}}, "engine.accumulate"), ({"engine": {"accumulate": 8}}, "KoLeo"),
])  # fmt: skip
def test_parts_that_cannot_be_are_refused(make_plan, images, changes, message):
    with pytest.raises(Problems, match=message):
        build(make_plan(**{**ALIKE, **changes}, objective={"koleo_weight": 0.1}), images)


def test_checkpointing_and_compiled_blocks_change_no_number(make_plan, images, monkeypatch):
    plain, _ = run(make_plan(**ALIKE), images, 2)
    kept, training = run(make_plan(**ALIKE, engine={"checkpointing": True, "accumulate": 1}), images, 2)
    assert training.pair.student.backbone.vit.checkpointing
    assert not training.pair.teacher.backbone.vit.checkpointing
    assert [row["loss"] for row in kept] == [row["loss"] for row in plain]
    compiled = []
    monkeypatch.setattr(type(training.pair.student.backbone.vit), "compile_blocks", lambda vit: compiled.append(vit))
    made = build(make_plan(engine={"compile": True}), images).training.pair
    assert compiled == [made.student.backbone.vit, made.teacher.backbone.vit]
