"""Cross-entropy between teacher and student over pairs of views (Caron 2021, equation 3).

Legend: G global views, L local views, V = G + L, B samples, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinodomain.errors import UserError


def cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of soft targets, row by row, in float32 or wider.

    Written as sum(targets) * logsumexp - targets . logits, which keeps one [.., K] tensor less than a log-softmax and takes targets
    that are sums of distributions.

    Args:
        logits: [..., K] student logits.
        targets: [..., K] non-negative; rows sum to 1, or to the number of teacher views added up in them.
        temperature: Of the student's softmax.

    Returns:
        [...].
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return targets.sum(-1) * scaled.logsumexp(-1) - (targets * scaled).sum(-1)


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
    """The two shares of the loss; each pair of views weighs the same, and both add up to the mean over all pairs."""

    glob: Tensor
    local: Tensor


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> DinoLoss:
    """Every student view against every *other* teacher view.

    A view's teacher targets are summed before the cross-entropy, which is linear in them: one sweep per student view instead of
    one per pair.

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
    return DinoLoss(glob=glob, local=local)
