"""The whole objective against a naive loop over crops, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from dinodomain.errors import UserError
from dinodomain.model import Backbone, Head, ModelPlan, Pair
from dinodomain.objective import Objective, ObjectivePlan, teacher_temperature
from dinodomain.objective.masks import draw_masks
from dinodomain.objective.total import local_weight
from dinodomain.types import Normalisation, ViewGroup, Views

PLAN = ObjectivePlan(prototypes=64, head_hidden=40, bottleneck=16, teacher_warmup=0.5)
STEP = {"step": 10, "total_steps": 100, "seed": 7}


def make_pair(ndim: int = 2, **changes) -> Pair:
    torch.manual_seed(0)
    normalisation = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.2,))
    plan = ModelPlan(dim=24, depth=2, heads=2, patch=8, registers=1, layer_scale=0.5)
    backbone = Backbone.create(plan, ndim=ndim, image_size=32, normalisation=normalisation, domain="x")
    pair = Pair(backbone, Head(24, prototypes=64, hidden=40, bottleneck=16), **changes)
    with torch.no_grad():  # a student that has moved, and a mask token that shows
        for parameter in pair.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return pair


def make_views(batch: int = 4, num_global: int = 2, num_local: int = 3, ndim: int = 2) -> Views:
    generator = torch.Generator().manual_seed(5)

    def group(name: str, views: int, side: int) -> ViewGroup:
        rows, tokens = views * batch, (side // 8) ** ndim
        return ViewGroup(
            name=name,
            pixels=torch.randn(rows, 1, *[side] * ndim, generator=generator),
            valid=torch.rand(rows, tokens, generator=generator),
            to_tile=torch.zeros(rows, ndim, ndim + 1),
            spacing=torch.ones(rows, ndim),
            kept=torch.ones(rows, 1, dtype=torch.bool),
            num_views=views,
        )

    groups = (group("global", num_global, 32),) + ((group("local", num_local, 16),) if num_local else ())
    return Views(groups=groups, channels=("a",), tile_ids=torch.arange(batch), slots=torch.arange(batch))


def naive(pair: Pair, views: Views, plan: ObjectivePlan, *, step: int, total_steps: int, seed: int) -> float:
    """One crop at a time, one pair at a time, plain softmaxes in float64, fresh centres."""
    pair = copy.deepcopy(pair).double()
    first, batch = views.groups[0], len(views.slots)
    tau = teacher_temperature(plan, step, total_steps)
    shares = {"probability": plan.mask_probability, "ratio": plan.mask_ratio, "valid": first.valid}
    masks = draw_masks(views.slots, first.num_views, (4,) * (first.pixels.ndim - 2), seed=seed, step=step, **shares).mask
    student, teacher = pair.student, pair.teacher
    crops = [group.pixels[row : row + 1].double() for group in views.groups for row in range(len(group.pixels))]
    seen = [
        student.backbone(x, masks[row : row + 1] if plan.ibot_weight and row < len(first.pixels) else None) for row, x in enumerate(crops)
    ]
    targets = [teacher.backbone(x) for x in crops[: len(first.pixels)]]

    def entropy(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(teacher.head(target) / tau, -1)
        return -(probabilities * torch.log_softmax(student.head(features) / plan.student_temperature, -1)).sum(-1)

    pairs = [
        entropy(seen[s * batch + b].cls, targets[t * batch + b].cls)
        for t in range(first.num_views)
        for s in range(len(crops) // batch)
        if s != t
        for b in range(batch)
    ]
    total = torch.stack(pairs).mean()
    if plan.ibot_weight:
        for row in range(len(targets)):
            hidden = masks[row] & (first.valid[row] >= 0.5)
            if hidden.any():
                loss = entropy(seen[row].patches[0, hidden], targets[row].patches[0, hidden]).mean()
                total = total + plan.ibot_weight * loss / len(targets)
    for view in range(first.num_views):
        points = torch.nn.functional.normalize(torch.cat([seen[view * batch + b].cls for b in range(batch)]), dim=-1)
        distances = torch.cdist(points, points) + 9 * torch.eye(batch)
        total = total - plan.koleo_weight * distances.amin(1).log().mean()
    return total.item()


@pytest.mark.parametrize(
    ("ndim", "num_global", "num_local", "changes"),
    [(2, 2, 3, {}), (2, 2, 0, {"ibot_weight": 0.0}), (2, 1, 2, {"koleo_weight": 0.0}), (3, 2, 2, {"ibot_weight": 0.5})],
)
def test_the_total_equals_a_naive_loop_over_crops(ndim, num_global, num_local, changes):
    plan = dataclasses.replace(PLAN, **changes)
    pair, views = make_pair(ndim), make_views(num_global=num_global, num_local=num_local, ndim=ndim)
    loss = Objective(plan)(pair, views, **STEP)
    assert loss.total.item() == pytest.approx(naive(pair, views, plan, **STEP), abs=1e-4)


def test_the_total_is_the_sum_of_its_parts_and_only_used_parts_appear():
    pair, views = make_pair(), make_views()
    loss = Objective(PLAN)(pair, views, **STEP)
    assert list(loss.parts) == ["dino_global", "dino_local", "ibot", "koleo"]
    torch.testing.assert_close(loss.total.detach(), sum(loss.parts.values()))
    bare = Objective(dataclasses.replace(PLAN, ibot_weight=0.0, koleo_weight=0.0))(pair, views, **STEP)
    assert list(bare.parts) == ["dino_global", "dino_local"]


def test_gradients_reach_every_student_parameter_and_no_teacher():
    pair = make_pair()
    Objective(PLAN)(pair, make_views(), **STEP).total.backward()
    for name, parameter in pair.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())


def test_without_ibot_nothing_is_masked_and_every_trainable_parameter_gets_a_gradient():
    pair = make_pair(masks=False)
    with torch.no_grad():
        pair.student.backbone.vit.mask_token.fill_(torch.nan)
    Objective(dataclasses.replace(PLAN, ibot_weight=0.0))(pair, make_views(), **STEP).total.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in pair.student.parameters())


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_the_loss_repeats_exactly_and_centres_move_only_after_the_step(centering):
    plan = dataclasses.replace(PLAN, centering=centering)
    pair, views, objective = make_pair(), make_views(), Objective(plan)
    first = objective(pair, views, **STEP)
    again = objective(pair, views, **STEP)
    assert torch.equal(first.total, again.total)
    objective.update_centers()
    moved = objective(pair, views, **STEP)
    assert torch.equal(first.total, moved.total) == (centering == "sinkhorn")


def test_the_centre_becomes_the_mean_teacher_logit():
    pair, views, objective = make_pair(), make_views(), Objective(PLAN)
    objective(pair, views, **STEP)
    objective.update_centers()
    with torch.no_grad():
        logits = pair.teacher.head(pair.teacher.backbone(views.groups[0].pixels).cls)
    torch.testing.assert_close(objective.cls_centering.center, 0.1 * logits.mean(0), rtol=1e-4, atol=1e-6)


def diagnose(plan: ObjectivePlan, pair: Pair, views: Views) -> dict[str, torch.Tensor]:
    objective = Objective(plan)
    return objective.diagnose([objective(pair, views, **STEP)], step=STEP["step"], total_steps=STEP["total_steps"])


def test_diagnostics_of_a_collapsed_teacher_say_so():
    pair, views = make_pair(), make_views()
    healthy = diagnose(PLAN, pair, views)
    with torch.no_grad():
        pair.teacher.backbone.vit.norm.weight.zero_()
        pair.teacher.backbone.vit.norm.bias.fill_(1.0)
    collapsed = diagnose(PLAN, pair, views)
    assert set(healthy) == {"teacher_entropy", "kl_to_uniform", "feature_std", "center_norm", "teacher_temperature"}
    assert healthy["feature_std"] > 0.1
    assert collapsed["feature_std"] < 1e-6
    # With one target for all, the entropy of the mean is the mean entropy.
    assert (math.log(64) - collapsed["kl_to_uniform"]).item() == pytest.approx(collapsed["teacher_entropy"].item(), abs=1e-5)


def test_bfloat16_stays_close_to_float32():
    pair, views = make_pair(), make_views()
    with torch.autocast("cpu", torch.bfloat16):
        half = Objective(PLAN)(pair, views, **STEP)
    half.total.backward()
    assert half.total.dtype == torch.float32
    assert half.total.item() == pytest.approx(Objective(PLAN)(pair, views, **STEP).total.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in pair.student.parameters())


def test_forward_never_reads_a_number_back(monkeypatch):
    pair, views, objective = make_pair(), make_views(), Objective(PLAN)

    def refuse(*_args):
        raise AssertionError("a tensor was read on the host")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    objective.diagnose([objective(pair, views, **STEP)], step=STEP["step"], total_steps=STEP["total_steps"])


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_patches_that_are_all_invalid_leave_a_finite_loss(centering):
    pair, views, objective = make_pair(), make_views(), Objective(dataclasses.replace(PLAN, centering=centering))
    group = dataclasses.replace(views.groups[0], valid=torch.zeros_like(views.groups[0].valid))
    views = dataclasses.replace(views, groups=(group, *views.groups[1:]))
    loss = objective(pair, views, **STEP)
    assert loss.parts["ibot"].item() == 0.0
    assert loss.total.isfinite()
    objective.update_centers()
    assert objective.patch_centering.norm(torch.device("cpu")) == 0


def test_views_must_begin_with_the_global_ones():
    views = make_views()
    turned = dataclasses.replace(views, groups=views.groups[::-1])
    with pytest.raises(UserError, match="the first group is 'local'; allowed: 'global'"):
        Objective(PLAN)(make_pair(), turned, **STEP)


def test_teacher_temperature_rises_in_a_line_and_stays():
    plan = ObjectivePlan(teacher_temperature=(0.04, 0.07), teacher_warmup=0.3)
    assert teacher_temperature(plan, 0, 100) == pytest.approx(0.04)
    assert teacher_temperature(plan, 15, 100) == pytest.approx(0.055)
    assert teacher_temperature(plan, 30, 100) == teacher_temperature(plan, 99, 100) == pytest.approx(0.07)
    assert teacher_temperature(dataclasses.replace(plan, teacher_warmup=0.0), 0, 100) == pytest.approx(0.07)


def test_a_plan_reports_all_its_problems_at_once():
    with pytest.raises(UserError) as caught:
        ObjectivePlan(prototypes=1, teacher_temperature=(0.001, 0.07), mask_ratio=(0.5, 0.1))
    message = str(caught.value)
    for place in ("objective.prototypes", "objective.teacher_temperature", "objective.mask_ratio"):
        assert place in message


def half(views: Views, samples: slice) -> Views:
    """Some samples of a batch, all views of each."""

    def rows(group: ViewGroup, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(0, (group.num_views, -1))[:, samples].flatten(0, 1)

    groups = tuple(
        dataclasses.replace(
            group, **{name: rows(group, getattr(group, name)) for name in ("pixels", "valid", "to_tile", "spacing", "kept")}
        )
        for group in views.groups
    )
    return dataclasses.replace(views, groups=groups, tile_ids=views.tile_ids[samples], slots=views.slots[samples])


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn"])
def test_two_micro_batches_are_one_batch(centering):
    """DINO, iBOT and Gram, values, gradients and centres; KoLeo compares within a micro-batch and is left out."""
    plan = dataclasses.replace(PLAN, centering=centering, koleo_weight=0.0, local_weight=(1.0, 0.5))
    pair, views, at = make_pair(), make_views(batch=6), {"step": 10, "total_steps": 100}
    anchor = torch.randn(12, 16, 8)
    found = []
    for samples in ([slice(0, 6)], [slice(0, 3), slice(3, 6)]):
        pair.zero_grad()
        objective = Objective(plan, gram_weight=2.0)
        lessons = []
        for one in samples:
            lessons.append(objective.teach(pair.teacher, half(views, one), step=10, seed=7, earlier=lessons[0] if lessons else None))
        objective.center(lessons, **at)
        total, parts = 0.0, {}
        for one, lesson in zip(samples, lessons):
            held = anchor.view(2, 6, 16, 8)[:, one].flatten(0, 1)
            loss = objective.learn(pair.student, half(views, one), lesson, **at, anchor=held)
            (loss.total / len(samples)).backward()
            total += loss.total.item() / len(samples)
            parts = {name: parts.get(name, 0.0) + value.item() / len(samples) for name, value in loss.parts.items()}
        objective.update_centers()
        gradients = torch.cat([parameter.grad.flatten() for parameter in pair.student.parameters()])
        found.append((total, parts, gradients, objective.state_dict()))
    (whole, whole_parts, gradient, centers), (split, split_parts, theirs, split_centers) = found
    assert set(whole_parts) == {"dino_global", "dino_local", "ibot", "gram"}
    assert split == pytest.approx(whole, abs=1e-5)
    assert split_parts == pytest.approx(whole_parts, abs=1e-5)
    torch.testing.assert_close(theirs, gradient, rtol=1e-3, atol=1e-5)
    for name, value in centers.items():
        torch.testing.assert_close(split_centers[name], value)
    assert lessons[1].taught.prototypes is lessons[0].taught.prototypes


def test_the_weight_of_local_crops_moves_in_a_line():
    plan = dataclasses.replace(PLAN, local_weight=(1.0, 0.5))
    assert [local_weight(plan, step, 101) for step in (0, 50, 100)] == pytest.approx([1.0, 0.75, 0.5])
    assert local_weight(plan, 0, 1) == 1.0
    pair, views = make_pair(), make_views()
    begin, end = (Objective(plan)(pair, views, step=step, total_steps=101, seed=7) for step in (0, 100))
    plain = Objective(PLAN)(pair, views, step=100, total_steps=101, seed=7)
    assert end.parts["dino_local"].item() == pytest.approx(0.5 * plain.parts["dino_local"].item(), rel=1e-6)
    assert begin.parts["dino_global"] > 0


def test_masked_patches_may_have_a_head_and_prototypes_of_their_own():
    plan = dataclasses.replace(PLAN, patch_head="separate", patch_prototypes=32)
    torch.manual_seed(1)
    shared = make_pair()
    pair = Pair(shared.student.backbone, shared.student.head, Head(24, prototypes=32, hidden=40, bottleneck=16))
    views, objective = make_views(), Objective(plan)
    loss = objective(pair, views, **STEP)
    loss.total.backward()
    assert objective.patch_centering.center.shape == (32,)
    assert pair.student.patch_head.prototypes.weight.grad.abs().sum() > 0
    alone = Objective(dataclasses.replace(PLAN, ibot_weight=0.0))(pair, views, **STEP)
    assert loss.parts["ibot"] > 0
    assert "ibot" not in alone.parts


def test_crops_without_content_leave_koleo_and_gram():
    pair, views = make_pair(), make_views()
    valid = torch.ones_like(views.groups[0].valid)
    valid[0] = 0.0
    views = dataclasses.replace(views, groups=(dataclasses.replace(views.groups[0], valid=valid), *views.groups[1:]))
    objective = Objective(PLAN, gram_weight=1.0)
    lesson = objective.teach(pair.teacher, views, step=10, seed=7)
    objective.center([lesson], step=10, total_steps=100)
    assert lesson.counts.tolist() == [3.0, 4.0, 7.0]
    losses = []
    for change in (0.0, 5.0):  # what the anchor says of an empty crop is not heard
        anchor = torch.randn(8, 16, 24, generator=torch.Generator().manual_seed(3))
        anchor[0] += change
        losses.append(objective.learn(pair.student, views, lesson, step=10, total_steps=100, anchor=anchor).parts["gram"])
    assert torch.equal(*losses)
    assert losses[0] > 0
