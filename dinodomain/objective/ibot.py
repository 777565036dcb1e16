"""The masked-patch loss of iBOT (Zhou 2022, equation 2) on the masked patches only, fused; ``reference.ibot_loss`` is its plain twin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinodomain.objective.centering import Targets
from dinodomain.objective.fused import Sweep, chunk_rows, product_dtype, scaled, wanted


def ibot_loss(points: Tensor, prototypes: Tensor, targets: Targets, weight: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Mean over all global crops of the mean cross-entropy of their masked patches; a crop without a mask counts as 0.

    This is the weighting of DINOv2: with half of the crops masked it is half of iBOT's own.

    Args:
        points: [M, d] student's unit points of the masked patches.
        prototypes: [K, d] student's unit prototypes.
        targets: Of the same M patches, seen whole by the teacher.
        weight: [M] 1 / masked patches of the patch's crop, 0 for invalid patches.
        num_crops: Global crops in the batch, masked or not.
        temperature: Of the student's softmax.

    Returns:
        Scalar; 0 without masked patches.
    """
    needs = wanted(points, prototypes)
    loss: Tensor = _Ibot.apply(points, prototypes, targets, weight / num_crops, temperature, product_dtype(points), needs)
    return loss


class _Ibot(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, points: Tensor, prototypes: Tensor, targets: Targets, weight: Tensor, temperature: float, dtype: torch.dtype,
        needs: tuple[bool, bool],
    ) -> Tensor:  # fmt: skip
        loss, counts = points.new_zeros(()), points.new_ones(1, 1)
        with torch.autocast(points.device.type, enabled=False):
            sweep = Sweep(points[None], prototypes, dtype, temperature, needs)
            step = chunk_rows(len(prototypes), 3, points.dtype)
            for start in range(0, len(points), step):
                rows = slice(start, start + step)
                losses = sweep.take((slice(None), rows), list(targets.form(rows, scratch=sweep.scratch)), counts, weight[None, rows])
                loss += losses[0] @ weight[rows].to(loss.dtype)
        if sweep.point_gradient is not None:
            sweep.point_gradient = sweep.point_gradient[0]
        sweep.save(ctx)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled(ctx, gradient), *[None] * 5
