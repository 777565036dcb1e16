"""One training step as one function: tiles in, metrics out. No files, no printing, no clock.

Order: draw views -> render -> losses -> backward -> mean over ranks -> clip per sub-module -> NaN check -> AdamW -> teacher ->
centres. A step whose loss or gradient is not finite leaves weights, moments, teacher and centres exactly as they were.
The host waits for the device once, for the NaN check.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dinodomain import parallel
from dinodomain.engine.precision import autocast
from dinodomain.engine.training import Training
from dinodomain.optim import clip_gradients
from dinodomain.types import Batch, Views
from dinodomain.views import draw_batch, render


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
    views = render_views(training, batch)
    values = training.schedules.apply(optimizer, step)

    optimizer.zero_grad(set_to_none=True)
    with autocast(plan.engine.device, "bf16" if plan.engine.precision == "bf16" else "fp32"):
        loss = objective(pair, views, step=step, total_steps=plan.engine.steps, seed=plan.seed)
    loss.total.backward()
    parallel.average_gradients(pair.student)
    norms = clip_gradients({"backbone": pair.student.backbone, "head": pair.student.head}, plan.optim.clip)

    finite = all_finite(loss.total, *norms.values())
    if finite:
        optimizer.step()
        pair.update_teacher(values.momentum)
        objective.update_centers()
    else:
        objective.discard()
    training.bad_in_row = 0 if finite else training.bad_in_row + 1
    training.bad_total += not finite
    training.step = step + 1
    return StepResult(
        metrics={
            "loss": loss.total.detach(),
            **{f"loss_{name}": part.detach() for name, part in loss.parts.items()},
            **{name: value.detach() for name, value in loss.diagnostics.items()},
            **{f"grad_norm_{name}": norm for name, norm in norms.items()},
        },
        values={
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "momentum": values.momentum,
            "max_entropy": math.log(plan.objective.prototypes),
        },
        skipped=not finite,
    )


def render_views(training: Training, batch: Batch) -> Views:
    """Draws and renders the crops of a batch; depends on seed and tiles, not on rank or order."""
    plan = training.plan
    params = draw_batch(training.policy, training.views, batch, seed=plan.seed, normalisation=training.normalisation)
    return render(batch, params, to_float=training.to_float, normalisation=training.normalisation, patch_size=plan.model.patch)


def seed_step(seed: int, step: int) -> None:
    """Seeds torch's generators for one step, so that stochastic depth has no state of its own to save."""
    word = hashlib.blake2b(f"step:{seed}:{step}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(word, "little") >> 1)


def all_finite(*values: Tensor) -> bool:
    """Whether all scalars are finite on every rank; ranks must agree, or their weights part."""
    bad = torch.stack([~torch.isfinite(value.detach()) for value in values]).any().float()
    return not bool(parallel.all_reduce_max(bad))
