"""The anchoring teacher: whose weights and when, the same crops as the student, and a resume that forgets nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from dinodomain.checkpoint import load_checkpoint, save_backbone, save_checkpoint, with_part
from dinodomain.engine import build, train_step
from dinodomain.engine.anchor import Anchor, resample_tokens
from dinodomain.engine.loop import host_values
from dinodomain.errors import UserError
from dinodomain.views import draw_batch

GRAM = {"weight": 2.0, "teacher": "drift", "drop": 0.1}


@pytest.fixture
def setup(make_plan, images):
    return build(make_plan(gram=GRAM, watch={"every": 2}), images)


def weights(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def move(backbone):
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1)


def test_drift_anchors_to_the_best_state_after_three_low_looks_in_a_row(setup):
    anchor, teacher = setup.training.anchor, setup.training.pair.teacher.backbone
    anchor.consider(1, 0.5)
    move(teacher)
    anchor.consider(2, 0.8)
    best = weights(teacher)
    move(teacher)
    for step, match in enumerate([0.7, 0.7, 0.75, 0.7, None, 0.6], start=3):
        anchor.consider(step, match)
        anchor.advance(step)
        assert not anchor.active, step
    anchor.consider(9, 0.72)
    assert anchor.active
    assert (anchor.held.since, anchor.held.best_step, anchor.held.source) == (9, 2, "teacher of step 2")
    assert same(best, anchor.backbone.state_dict())
    anchor.consider(10, 0.99)
    assert anchor.held.best == 0.8


def test_the_present_teacher_takes_over_at_intervals_and_so_often_only(make_plan, images):
    plan = make_plan(gram={**GRAM, "refresh": 3, "refreshes": 2}, watch={"every": 2})
    teacher = build(plan, images).training.pair.teacher.backbone
    anchor = Anchor(replace(plan, gram=replace(plan.gram, teacher="start")), teacher, torch.device("cpu"))
    changed = []
    for step in range(12):
        move(teacher)
        before = anchor.held.since
        anchor.advance(step)
        if anchor.held.since != before:
            changed.append(step)
            assert same(weights(teacher), anchor.backbone.state_dict())
    assert changed == [0, 3, 6]


def test_a_path_anchors_from_the_first_step_and_must_fit(make_plan, images, tmp_path):
    plan = make_plan(gram=GRAM, watch={"every": 2})
    teacher = build(plan, images).training.pair.teacher.backbone
    path = save_backbone(tmp_path / "other.safetensors", teacher)
    own = weights(teacher)
    move(teacher)
    named = replace(plan, gram=replace(plan.gram, teacher=str(path)))
    anchor = Anchor(named, teacher, torch.device("cpu"))
    anchor.advance(0)
    assert anchor.active
    assert same(own, anchor.backbone.state_dict())
    teacher.normalisation = replace(teacher.normalisation, channels=tuple(f"x{name}" for name in teacher.channels))
    stranger = Anchor(named, teacher, torch.device("cpu"))
    with pytest.raises(UserError, match=r"gram\.teacher"):
        stranger.advance(0)


@pytest.mark.parametrize(("factor", "told"), [(1.0, ""), (1.5, "warns"), (3.0, "refuses")])
def test_a_path_that_saw_other_numbers_is_told_or_refused(make_plan, images, tmp_path, caplog, factor, told):
    plan = make_plan(gram=GRAM, watch={"every": 2})
    teacher = build(plan, images).training.pair.teacher.backbone
    own = teacher.normalisation
    teacher.normalisation = replace(own, std=tuple(value * factor for value in own.std))
    path = save_backbone(tmp_path / "other.safetensors", teacher)
    teacher.normalisation = own
    anchor = Anchor(replace(plan, gram=replace(plan.gram, teacher=str(path))), teacher, torch.device("cpu"))
    with caplog.at_level("WARNING"):
        if told == "refuses":
            with pytest.raises(UserError, match=rf"gram.teacher: {path} saw other numbers .* theirs = {own.channels[0]} x 0.333 "):
                anchor.advance(0)
        else:
            anchor.advance(0)
    assert anchor.active == (told != "refuses")
    assert ("saw other numbers for the same pixels" in caplog.text) == (told == "warns")


def test_it_sees_the_same_boxes_flips_and_operations_larger(setup):
    training, batch = setup.training, next(iter(setup.loader))
    known = {"seed": 3, "normalisation": training.normalisation}
    own = draw_batch(training.policy, training.views, batch, **known).groups[0]
    larger = draw_batch(training.policy, training.anchor.views(training.views), batch, **known).groups
    assert len(larger) == 1
    assert larger[0].size == 2 * own.size
    for name in ("boxes", "flips", "transpose", "angle", "key"):
        assert torch.equal(getattr(own, name), getattr(larger[0], name)), name
    assert set(own.operations) == set(larger[0].operations)
    for name, operation in own.operations.items():
        assert torch.equal(operation.on, larger[0].operations[name].on), name
        for key, value in operation.values.items():
            assert torch.equal(value, larger[0].operations[name].values[key]), (name, key)


@pytest.mark.parametrize(("old", "new"), [((8, 8), (4, 4)), ((6, 4), (3, 2)), ((4, 4, 4), (2, 2, 2)), ((3, 3), (3, 3))])
def test_tokens_are_resampled_like_an_image(old, new):
    tokens = torch.randn(2, torch.Size(old).numel(), 5)
    ours = resample_tokens(tokens, old, new)
    assert ours.shape == (2, torch.Size(new).numel(), 5)
    constant = resample_tokens(torch.ones_like(tokens), old, new)
    torch.testing.assert_close(constant, torch.ones_like(constant))
    if len(old) == 2 and old != new:
        image = tokens.transpose(1, 2).unflatten(2, old)
        twin = torch.nn.functional.interpolate(image, size=new, mode="bicubic", antialias=True, align_corners=False)
        torch.testing.assert_close(ours, twin.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_goes_on_with_the_same_anchor(make_plan, images, tmp_path):
    plan = make_plan(gram={**GRAM, "refresh": 2}, watch={"every": 2})
    first = build(plan, images)
    stream = iter(first.loader)
    for step, match in enumerate([0.8, 0.1, 0.1, 0.1], start=1):
        row = host_values(train_step(first.training, next(stream)))
        assert "loss_gram" not in row
        first.training.anchor.consider(step, match)
    remembered = first.training.anchor.state_dict()
    assert remembered["since"] == 4
    state = with_part(copy.deepcopy(first.training.snapshot({}, {})), "anchor", remembered)
    folder = save_checkpoint(tmp_path, replace(state, loader=first.loader.state_dict()))
    second = build(plan, images).training
    second.restore(load_checkpoint(folder).state, "here")
    for _ in range(3):  # the third of these steps comes after a refresh
        batch = next(stream)
        row = host_values(train_step(first.training, batch))
        assert row["loss_gram"] > 0
        assert host_values(train_step(second, batch)) == row
    assert second.anchor.held == first.training.anchor.held
    assert second.anchor.held.refreshes == 1
