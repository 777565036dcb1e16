"""The KoLeo regulariser: spreads features by their nearest-neighbour distances (Sablayrolles 2019, equation 3; Oquab 2024, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-8
NOBODY, ITSELF = -2.0, -3.0
"""Below every cosine: similarity to a crop that does not count, and to itself."""


def koleo_loss(features: Tensor, valid: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """Sum over views of -mean(log(distance to the nearest other sample of that view)), on unit vectors, in float32 or wider.

    The distance is sqrt(d^2 + eps^2): equal to the published d + eps beyond rounding, but with a gradient of 0, not infinity, between
    duplicates. Neighbours are looked for in this process's micro-batch only, as published.

    Args:
        features: [V, B, E] class tokens before the head.
        valid: [V, B] bool; crops without content neither are spread nor are neighbours. None: all count.
        count: [V] by how many crops the sum of each view is divided; None: those of this batch (``koleo_counts``).

    Returns:
        Scalar; 0 where no crop has a neighbour.
    """
    if features.shape[1] < 2:
        return features.sum() * 0.0
    valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device) if valid is None else valid
    count = koleo_counts(valid).clamp_min(1.0) if count is None else count
    with torch.autocast(features.device.type, enabled=False):
        points = functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1, eps=EPS)
        with torch.no_grad():
            similarity = (points @ points.transpose(1, 2)).masked_fill_(~valid[:, None, :], NOBODY)
            similarity.diagonal(dim1=1, dim2=2).fill_(ITSELF)
            nearest = similarity.argmax(dim=2)
        neighbours = points.gather(1, nearest[:, :, None].expand_as(points))
        logs = -0.5 * ((points - neighbours).square().sum(-1) + EPS**2).log()
        counted = torch.where(_spread(valid), logs, 0.0)
        return (counted.sum(1) / count).sum()


def koleo_counts(valid: Tensor) -> Tensor:
    """[V] float32 crops that have a neighbour, of [V, B] valid ones."""
    return _spread(valid).sum(1, dtype=torch.float32)


def _spread(valid: Tensor) -> Tensor:
    # A single valid crop has no neighbour.
    return valid & (valid.sum(1, keepdim=True) > 1)
