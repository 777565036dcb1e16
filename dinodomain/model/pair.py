"""Student and teacher: one architecture twice, the teacher an exponential moving average of the student (Caron 2021)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinodomain.model.backbone import Backbone
from dinodomain.model.heads import Head
from dinodomain.parallel import own_rows
from dinodomain.types import Acquisition


class Seen(NamedTuple):
    """What a branch makes of some crops: everything that the losses need of it, tensors only, so that wrappers can follow gradients.

    Legend: n crops of all sizes, N of the first size, P patches each, M chosen patches, K prototypes, d width of the bottleneck.

    Attributes:
        cls: [n, E] class tokens before the head, sizes in order.
        patches: [N, P, E] patch tokens of the first size, before the head.
        points: [n, d] class tokens after the head's bottleneck, unit vectors.
        patch_points: [M, d] the chosen patches after the (patch) head's bottleneck, unit vectors.
        prototypes: [K, d] unit vectors; logits are ``points @ prototypes.T``.
        patch_prototypes: [K', d] unit vectors for ``patch_points``.
    """

    cls: Tensor
    patches: Tensor
    points: Tensor
    patch_points: Tensor
    prototypes: Tensor
    patch_prototypes: Tensor


class Branch(nn.Module):
    """A backbone and the head on top of it.

    Args:
        backbone: Images to tokens.
        head: Class tokens to prototypes.
        patch_head: Masked patches to prototypes of their own (DINOv2's long recipe, DINOv3); None: the one head serves both.
    """

    def __init__(self, backbone: Backbone, head: Head, patch_head: Head | None = None) -> None:
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """Patch tokens per axis of images [N, C, *size]."""
        return self.backbone.vit.patch_embed.grid(x)

    def forward(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        about: Sequence[Acquisition | None] | None = None,
        chosen: Tensor | None = None,
    ) -> Seen:
        """One pass over crops of several sizes and one through each head: the entry that wrappers of a branch see.

        Args:
            images: One [N, C, *size] tensor per crop size.
            masks: For each a [N, P] bool mask of patches to hide, or None.
            about: For each what is known of its images, or None.
            chosen: [M] int64 into the N * P patches of the first size that go through the head; None: none.
        """
        features = self.backbone.vit.forward_many(images, masks, about)
        cls, patches = torch.cat([part.cls for part in features]), features[0].patches
        rows = patches.flatten(0, 1)
        rows = rows[:0] if chosen is None else rows.index_select(0, chosen)
        prototypes = self.head.directions()
        if self.patch_head is None:
            points = self.head.embed(torch.cat([cls, rows]))
            return Seen(cls, patches, points[: len(cls)], points[len(cls) :], prototypes, prototypes)
        return Seen(cls, patches, self.head.embed(cls), self.patch_head.embed(rows), prototypes, self.patch_head.directions())


class Pair(nn.Module):
    """Student and teacher; the teacher starts as an exact copy, takes no gradient and is always in evaluation mode.

    Args:
        backbone: The student's backbone.
        head: The student's head.
        patch_head: The student's own head for masked patches, or None.
        masks: Whether masked tokens will be used; otherwise the mask token is frozen, so that no parameter waits for a gradient.
    """

    def __init__(self, backbone: Backbone, head: Head, patch_head: Head | None = None, *, masks: bool = True) -> None:
        super().__init__()
        self.student = Branch(backbone, head, patch_head)
        self.student.backbone.vit.mask_token.requires_grad_(masks)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Pair:
        """Sets the student's mode; a teacher that drops paths would teach noise."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float, *, backbone: bool = True) -> None:
        """Moves every teacher parameter to momentum * teacher + (1 - momentum) * student; call once per optimiser step, after it.

        Args:
            momentum: Share of the teacher that stays, 0..1.
            backbone: False leaves the teacher's backbone bit for bit as it is, while the student's is frozen.
        """
        pairs = zip(self.teacher.named_parameters(), self.student.parameters(), strict=True)
        moving = [(own, other) for (name, own), other in pairs if backbone or not name.startswith("backbone.")]
        # A mean goes place by place, so each rank moves its own rows of what is sharded.
        torch._foreach_lerp_([own_rows(own) for own, _ in moving], [own_rows(other) for _, other in moving], 1.0 - momentum)
