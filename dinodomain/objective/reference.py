"""The plain forms of the fused losses: whole logits, whole targets, autograd. Tests and benchmarks hold the fast paths to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinodomain.objective.dino import num_terms


def cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of soft targets, row by row, in float32 or wider.

    Args:
        logits: [..., K] student logits.
        targets: [..., K] non-negative; rows sum to 1, or to the number of teacher views added up in them.
        temperature: Of the student's softmax.

    Returns:
        [...].
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return targets.sum(-1) * scaled.logsumexp(-1) - (targets * scaled).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The two shares of the DINO loss, with gradients."""

    glob: Tensor
    local: Tensor


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> Shares:
    """Every student view against every *other* teacher view.

    Args:
        student: [V, B, K] logits, global views first.
        targets: [G, B, K] teacher probabilities.
        temperature: Of the student's softmax.
    """
    num_global, num_local = targets.shape[0], student.shape[0] - targets.shape[0]
    terms = num_terms(num_global, num_local)
    total = targets.sum(0)
    others = targets.flip(0) if num_global == 2 else total - targets
    glob = cross_entropy(student[:num_global], others, temperature).mean(1).sum() / terms
    local = cross_entropy(student[num_global:], total, temperature).mean(1).sum() / terms
    return Shares(glob=glob, local=local)


def ibot_loss(student: Tensor, targets: Tensor, weight: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Mean over all global crops of the mean cross-entropy of their masked patches.

    Args:
        student: [M, K] logits of the masked patches.
        targets: [M, K] teacher probabilities of the same patches.
        weight: [M] 1 / masked patches of the patch's crop, 0 for invalid patches.
        num_crops: Global crops in the batch, masked or not.
        temperature: Of the student's softmax.
    """
    return (cross_entropy(student, targets, temperature) * weight).sum() / num_crops


def centred_softmax(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Targets of a moving centre (Caron 2021, equation 4): [n, K] logits to [n, K] probabilities."""
    return torch.softmax((logits - center) / temperature, dim=-1)


def sinkhorn_knopp(logits: Tensor, temperature: float, sweeps: int) -> Tensor:
    """Targets of Sinkhorn-Knopp as SwAV and DINOv2 write it: the whole matrix is rescaled in every sweep.

    Args:
        logits: [n, K] of all samples; exp(logits / temperature) must not overflow.
        temperature: Of the teacher.
        sweeps: How often columns and rows are normalised.

    Returns:
        [n, K].
    """
    matrix = (logits / temperature).exp().T
    matrix = matrix / matrix.sum()
    prototypes, samples = matrix.shape
    for _ in range(sweeps):
        matrix = matrix / matrix.sum(1, keepdim=True) / prototypes
        matrix = matrix / matrix.sum(0, keepdim=True) / samples
    return (matrix * samples).T
