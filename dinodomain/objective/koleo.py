"""The KoLeo regulariser: spreads features by their nearest-neighbour distances (Sablayrolles 2019, equation 3; Oquab 2024, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-8


def koleo_loss(features: Tensor) -> Tensor:
    """Sum over views of -mean(log(distance to the nearest other sample of that view)), on unit vectors, in float32 or wider.

    The distance is sqrt(d^2 + eps^2): equal to the published d + eps beyond rounding, but with a gradient of 0, not infinity, between
    duplicates. Neighbours are looked for in this process's batch only, as published.

    Args:
        features: [V, B, E] class tokens before the head.

    Returns:
        Scalar; 0 for a batch of one, which has no neighbours.
    """
    if features.shape[1] < 2:
        return features.sum() * 0.0
    with torch.autocast(features.device.type, enabled=False):
        points = functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1, eps=EPS)
        with torch.no_grad():
            similarity = points @ points.transpose(1, 2)
            similarity.diagonal(dim1=1, dim2=2).fill_(-2.0)
            nearest = similarity.argmax(dim=2)
        neighbours = points.gather(1, nearest[:, :, None].expand_as(points))
        squared = (points - neighbours).square().sum(-1)
        return -0.5 * (squared + EPS**2).log().mean(1).sum()
