"""Cross-entropy between teacher and student over pairs of views (Caron 2021, equation 3), fused; ``reference.dino_loss`` is its plain twin.

Legend: G global views, L local views, V = G + L, B samples, K prototypes, d width of the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinodomain.errors import UserError
from dinodomain.objective.centering import Targets
from dinodomain.objective.fused import Sweep, chunk_rows, product_dtype, scaled, wanted


def num_terms(num_global: int, num_local: int) -> int:
    """Pairs of a teacher view and another view: G (G - 1) + G L, for example 2 + 16 = 18.

    Raises:
        UserError: There is no pair.
    """
    terms = num_global * (num_global - 1 + num_local)
    if terms == 0:
        problem = f"{num_global} global and {num_local} local views make no pair"
        raise UserError("views", problem, allowed="2 global views, or 1 with local views")
    return terms


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoLoss:
    """The loss and its shares; each pair of views weighs the same, and without weights both shares add up to the mean over all pairs.

    Attributes:
        total: ``glob + local``, with a gradient.
        glob: Share of the global views, without gradient.
        local: Share of the local views times their weight, without gradient.
        entropy: Mean entropy of the targets, nats.
        mean: [K] mean target.
    """

    total: Tensor
    glob: Tensor
    local: Tensor
    entropy: Tensor
    mean: Tensor


def dino_loss(
    points: Tensor, prototypes: Tensor, targets: Targets, temperature: float, *, num_global: int, local_weight: float = 1.0
) -> DinoLoss:
    """Every student view against every *other* teacher view.

    A sample's targets of all teacher views are formed once and summed before the cross-entropy, which is linear in them.

    Args:
        points: [V, B, d] student's unit points, global views first.
        prototypes: [K, d] student's unit prototypes.
        targets: Of G * B teacher points, row g * B + b.
        temperature: Of the student's softmax.
        num_global: G.
        local_weight: Of the local views' share.
    """
    needs = wanted(points, prototypes)
    outputs: tuple[Tensor, ...] = _Dino.apply(
        points, prototypes, targets, temperature, num_global, local_weight, product_dtype(points), needs
    )
    total, shares, entropy, mean = outputs
    return DinoLoss(total=total, glob=shares[0], local=shares[1], entropy=entropy, mean=mean)


class _Dino(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, points: Tensor, prototypes: Tensor, targets: Targets, temperature: float, num_global: int, local_weight: float,
        dtype: torch.dtype, needs: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        num_views, samples = points.shape[:2]
        num_local = num_views - num_global
        terms = num_terms(num_global, num_local)
        counts, weights = points.new_full((num_views, 1), num_global), points.new_full((num_views, 1), 1 / (samples * terms))
        counts[:num_global] -= 1
        weights[num_global:] *= local_weight
        entropy, mean, losses = points.new_zeros(()), points.new_zeros(len(prototypes)), []
        with torch.autocast(points.device.type, enabled=False):
            sweep = Sweep(points, prototypes, dtype, temperature, needs)
            step = chunk_rows(len(prototypes), num_views + num_global + 3, points.dtype)
            for start in range(0, samples, step):
                rows = slice(start, start + step)
                taught = targets.form(rows, num_global)
                entropy += torch.special.entr(taught).sum()
                mean += taught.sum((0, 1))
                total = taught.sum(0)
                others = taught.flip(0) if num_global == 2 else total - taught
                del taught
                losses.append(sweep.take((slice(None), rows), [*others, *[total] * num_local], counts, weights))
        sweep.save(ctx)
        views = (torch.cat(losses, 1) * weights).sum(1)
        shares = torch.stack([views[:num_global].sum(), views[num_global:].sum()])
        outputs = shares.sum(), shares, entropy / (num_global * samples), mean / (num_global * samples)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled(ctx, gradient), *[None] * 6
