"""One training step as one function: tiles in, metrics out. No files, no printing, no clock.

Order: the teacher looks at every micro-batch; make targets of what it saw; for every micro-batch losses and backward (in the last one the
mean over ranks) -> clip per sub-module -> NaN check -> AdamW -> teacher -> centres. A step whose loss or gradient is not finite leaves
weights, moments, teacher and centres exactly as they were. The host waits for the device once, for the NaN check.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dinodomain import parallel
from dinodomain.engine.distribute import micro_batch
from dinodomain.engine.micro import micro_batches
from dinodomain.engine.precision import autocast
from dinodomain.engine.training import Training
from dinodomain.model import Branch
from dinodomain.objective import Lesson, Loss
from dinodomain.optim import clip_gradients
from dinodomain.types import Batch, Views
from dinodomain.views import ViewsPlan, draw_batch, render


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step measured.

    Attributes:
        metrics: Scalars on the device by name, detached; the loop brings them to the host in one copy.
        values: Scalars the host knows: learning rate, weight decay, momentum, largest entropy (log K).
        skipped: Whether the step was left out because of NaN or Inf.
    """

    metrics: Mapping[str, Tensor]
    values: Mapping[str, float]
    skipped: bool


def train_step(training: Training, batch: Batch) -> StepResult:
    """Does step ``training.step`` on a batch and advances it by one.

    Args:
        training: Changed in place.
        batch: This rank's share of the global batch, on the device.
    """
    plan, pair, objective, optimizer, step = training.plan, training.pair, training.objective, training.optimizer, training.step
    seed_step(plan.seed, step)
    values = training.schedules.apply(optimizer, step)
    optimizer.zero_grad(set_to_none=True)
    losses = _losses(training, micro_batches(batch, plan.engine.accumulate))
    clipped, measured = sub_modules(pair.student)
    norms = clip_gradients(clipped, plan.optim.clip, measured=measured)

    total = mean_of([loss.total.detach() for loss in losses])
    diagnoses = objective.diagnose(losses, step=step, total_steps=plan.engine.steps)  # before the centres move
    finite = all_finite(total, *norms.values())
    weights = _watched_weight(pair.student)
    before = weights.clone()
    if finite:
        optimizer.step()
        pair.update_teacher(values.momentum, backbone=values.backbone > 0)
        objective.update_centers()
    else:
        objective.discard()
    training.bad_in_row = 0 if finite else training.bad_in_row + 1
    training.bad_total += not finite
    training.step = step + 1
    return StepResult(
        metrics={
            "loss": total,
            **{f"loss_{name}": mean_of([loss.parts[name] for loss in losses]) for name in losses[0].parts},
            **diagnoses,
            **{f"grad_norm_{name}": norm for name, norm in norms.items()},
            "update_ratio": _update_ratio(before, weights),
        },
        values={
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "momentum": values.momentum,
            "max_entropy": math.log(plan.objective.prototypes),
        },
        skipped=not finite,
    )


def _losses(training: Training, parts: Sequence[Batch]) -> list[Loss]:
    """Losses of all micro-batches; their mean gradient waits in the student.

    Views of several micro-batches are never held together: the teacher's pass renders what it looks at, the student's renders the same
    again.
    """
    plan, pair, objective, student = training.plan, training.pair, training.objective, training.student
    at, alone = {"step": training.step, "total_steps": plan.engine.steps}, len(parts) == 1
    shown = [render_views(training, part) for part in parts] if alone else []
    lessons: list[Lesson] = []
    losses: list[Loss] = []
    for part in parts:
        views = shown[0] if alone else render_views(training, part, groups=1)
        with autocast(plan.engine.device, plan.engine.precision):
            known = lessons[0] if lessons else None
            lessons.append(objective.teach(pair.teacher, views, step=training.step, seed=plan.seed, earlier=known))
    with autocast(plan.engine.device, plan.engine.precision):
        objective.center(lessons, **at)
    if training.anchor is not None:
        training.anchor.advance(training.step)
    for part, lesson in zip(parts, lessons):
        views = shown[0] if alone else render_views(training, part)
        anchor = _anchor_tokens(training, part, views)
        with micro_batch(student, last=part is parts[-1]):
            with autocast(plan.engine.device, plan.engine.precision):
                loss = objective.learn(student, views, lesson, **at, anchor=anchor)
            torch.autograd.backward(loss.total / len(parts))
        losses.append(replace(loss, total=loss.total.detach()))  # the graph is not needed any more
    return losses


def _anchor_tokens(training: Training, batch: Batch, views: Views) -> Tensor | None:
    """What the anchoring teacher sees in the same crops, larger; None while nobody anchors."""
    anchor, plan = training.anchor, training.plan
    if anchor is None or not anchor.active:
        return None
    larger = render_views(training, batch, plan=anchor.views(training.views), patch=anchor.patch)
    with autocast(plan.engine.device, plan.engine.precision):
        return anchor.tokens(larger.groups[0], training.pair.teacher.grid(views.groups[0].pixels))


def sub_modules(student: Branch) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """What is clipped by its own norm, and the parts whose norms tell where a gradient grows or dies."""
    vit = student.backbone.vit
    clipped: dict[str, nn.Module] = {"backbone": student.backbone, "head": student.head}
    if student.patch_head is not None:
        clipped["patch_head"] = student.patch_head
    blocks = list(vit.blocks)
    measured = {
        "patch_embed": vit.patch_embed,
        "block_first": blocks[0],
        "block_middle": blocks[len(blocks) // 2],
        "block_last": blocks[-1],
    }
    return clipped, measured


def _watched_weight(student: Branch) -> Tensor:
    """This rank's rows of one large weight from the middle of the network: it stands for all, at the price of copying it."""
    blocks = list(student.backbone.vit.blocks)
    return parallel.own_rows(max(blocks[len(blocks) // 2].parameters(), key=torch.Tensor.numel).detach())


def _update_ratio(before: Tensor, after: Tensor) -> Tensor:
    """Length of the step relative to the weight's own; about 1e-3 is healthy (Karpathy 2015). Collective.

    Squares add up over the rows of all ranks, of which one may have none; where every rank has all rows, both sums grow alike.
    """
    squares = torch.stack([(after - before).square().sum(), before.square().sum()])
    moved, length = parallel.all_reduce_sum(squares).sqrt()
    ratio: Tensor = moved / length.clamp_min(torch.finfo(before.dtype).tiny)
    return ratio


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """Mean of scalars; a single one as it is."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean()


def render_views(
    training: Training,
    batch: Batch,
    *,
    groups: int | None = None,
    plan: ViewsPlan | None = None,
    patch: tuple[int, ...] | None = None,
) -> Views:
    """Draws and renders the crops of a batch; depends on seed and tiles, not on rank or order.

    Args:
        training: Policy, sizes and normalisation.
        batch: On the device.
        groups: How many crop sizes, the global one first; None for all.
        plan: Other sizes and counts; None for those of the run.
        patch: Sides of the patches that ``valid`` speaks of; None for the student's.
    """
    sizes, seed = plan or training.views, training.plan.seed
    params = draw_batch(training.policy, sizes, batch, seed=seed, normalisation=training.normalisation)
    params = replace(params, groups=params.groups[:groups])
    sides = training.plan.model.patch if patch is None else patch
    return render(batch, params, to_float=training.to_float, normalisation=training.normalisation, patch_size=sides)


def seed_step(seed: int, step: int) -> None:
    """Seeds torch's generators for one step and rank, so that stochastic depth has no state of its own to save."""
    word = hashlib.blake2b(f"step:{seed}:{step}:{parallel.rank()}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(word, "little") >> 1)


def all_finite(*values: Tensor) -> bool:
    """Whether all scalars are finite on every rank; ranks must agree, or their weights part."""
    bad = torch.stack([~torch.isfinite(value.detach()) for value in values]).any().float()
    return not bool(parallel.all_reduce_max(bad))
