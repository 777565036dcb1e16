"""The masked-patch loss of iBOT (Zhou 2022, equation 2), on the masked patches only."""

from __future__ import annotations

from torch import Tensor

from dinodomain.objective.dino import cross_entropy


def ibot_loss(student: Tensor, targets: Tensor, weight: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Mean over all global crops of the mean cross-entropy of their masked patches; a crop without a mask counts as 0.

    This is the weighting of DINOv2: with half of the crops masked it is half of iBOT's own.

    Args:
        student: [M, K] logits of the masked patches.
        targets: [M, K] teacher probabilities of the same patches, seen whole.
        weight: [M] 1 / masked patches of the patch's crop, 0 for invalid patches.
        num_crops: Global crops in the batch, masked or not.
        temperature: Of the student's softmax.

    Returns:
        Scalar; 0 without masked patches.
    """
    return (cross_entropy(student, targets, temperature) * weight).sum() / num_crops
