"""Student and teacher: one architecture twice, the teacher an exponential moving average of the student (Caron 2021)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dinodomain.model.backbone import Backbone
from dinodomain.model.heads import Head


class Branch(nn.Module):
    """A backbone and the head on top of it. The head serves class tokens and masked patches alike."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class Pair(nn.Module):
    """Student and teacher; the teacher starts as an exact copy, takes no gradient and is always in evaluation mode.

    Args:
        backbone: The student's backbone.
        head: The student's head.
        masks: Whether masked tokens will be used; otherwise the mask token is frozen, so that no parameter waits for a gradient.
    """

    def __init__(self, backbone: Backbone, head: Head, *, masks: bool = True) -> None:
        super().__init__()
        self.student = Branch(backbone, head)
        self.student.backbone.vit.mask_token.requires_grad_(masks)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Pair:
        """Sets the student's mode; a teacher that drops paths would teach noise."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Moves every teacher parameter to momentum * teacher + (1 - momentum) * student; call once per optimiser step, after it.

        Args:
            momentum: Share of the teacher that stays, 0..1.
        """
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1.0 - momentum)
