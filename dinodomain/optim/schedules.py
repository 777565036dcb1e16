"""Everything that changes with the step, as pure functions of the step: nothing to save, nothing to restore.

Steps count from 0 to total_steps - 1; a schedule reaches its last value at the last step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dinodomain.errors import UserError
from dinodomain.optim.plan import OptimPlan

REFERENCE_BATCH = 256
"""Global batch at which ``optim.lr`` is stated (Goyal 2017, DINO)."""


def scaled_lr(lr: float, batch: int) -> float:
    """Lr * sqrt(batch / 256).

    The square root is what DINOv2 and DINOv3 use with AdamW, and what the theory of adaptive methods asks for (Malladi 2022, "On the
    SDEs and scaling rules for adaptive gradient algorithms"). DINO itself scales linearly; the two agree at 256.
    """
    return lr * math.sqrt(batch / REFERENCE_BATCH)


def cosine(start: float, end: float, step: int, total: int) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at step total - 1 (Loshchilov 2017, equation 5)."""
    progress = min(step / max(total - 1, 1), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(start: float, end: float, step: int, total: int) -> float:
    """A straight line from ``start`` at step 0 to ``end`` at step ``total``, then constant."""
    return end if step >= total else start + (end - start) * step / total


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What holds at one step.

    Attributes:
        lr: Learning rate, before layer decay.
        weight_decay: Weight decay of the parameters that have any.
        momentum: Share of the teacher that stays at this step's update.
        last_layer: Factor on the learning rate of the prototypes, 0 while they are frozen.
        backbone: Factor on the learning rate of the backbone: 0 while it is frozen, then a ramp as long as the warm-up, then 1.
    """

    lr: float
    weight_decay: float
    momentum: float
    last_layer: float
    backbone: float = 1.0


class Schedules:
    """All schedules of a run. The teacher's temperature belongs to the objective, which computes it from the same step.

    Args:
        plan: First and last values.
        total_steps: Number of optimiser steps of the run.
        batch: Global batch: samples per optimiser step over all ranks and micro-batches.

    Raises:
        UserError: There are no steps or no samples.
    """

    def __init__(self, plan: OptimPlan, *, total_steps: int, batch: int) -> None:
        for name, value in (("steps", total_steps), ("batch", batch)):
            if value < 1:
                raise UserError(name, f"is {value}", allowed="at least 1")
        self.plan, self.total_steps = plan, total_steps
        self.peak_lr = scaled_lr(plan.lr, batch)
        self.warmup_steps = round(plan.warmup * total_steps)
        self.frozen_steps = round(plan.freeze_last_layer * total_steps)
        self.backbone_frozen_steps = round(plan.freeze_backbone * total_steps)

    def at(self, step: int) -> Values:
        """The values of step ``step`` (0-based)."""
        plan, total = self.plan, self.total_steps
        return Values(
            lr=self._lr(step),
            weight_decay=plan.weight_decay[0] if plan.schedule == "constant" else cosine(*plan.weight_decay, step, total),
            momentum=cosine(*plan.momentum, step, total),
            last_layer=0.0 if step < self.frozen_steps else 1.0,
            backbone=self._backbone(step),
        )

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> Values:
        """Writes the values of a step into the optimiser's groups, before its ``step()``, and returns them."""
        values = self.at(step)
        for group in optimizer.param_groups:
            # A rate of exactly 0 leaves a weight bit for bit what it was: AdamW's decay is multiplied by the rate, too.
            held = (values.last_layer if group["last_layer"] else 1.0) * (values.backbone if group["backbone"] else 1.0)
            group["lr"] = values.lr * group["lr_scale"] * held
            group["weight_decay"] = values.weight_decay * group["wd_scale"]
        return values

    def _lr(self, step: int) -> float:
        if step < self.warmup_steps:
            # The first step already moves: a rate of exactly 0 would waste it.
            return self.peak_lr * (step + 1) / (self.warmup_steps + 1)
        if self.plan.schedule == "constant":
            return self.peak_lr
        return cosine(self.peak_lr, min(self.plan.min_lr, self.peak_lr), step - self.warmup_steps, self.total_steps - self.warmup_steps)

    def _backbone(self, step: int) -> float:
        """FINO's order: fresh heads alone, then a ramp for the backbone, whose own warm-up passed while it was frozen."""
        since = step - self.backbone_frozen_steps
        if self.backbone_frozen_steps == 0 or since > self.warmup_steps:
            return 1.0
        return 0.0 if since < 0 else (since + 1) / (self.warmup_steps + 1)
