"""Cross-entropy over many prototypes without their logits: the core that the DINO and iBOT losses share.

Rows go chunk by chunk: logits of the chunk, their cross-entropy with the chunk's targets, and at once its gradients, which
``backward`` only scales. So no [rows, K] tensor ever exists, neither of the student nor, with ``softmax`` centring, of the teacher.
Matrix products run in the dtype of autocast, softmax and sums in float32 or wider. Legend: d width of the bottleneck, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 128 * 2**20
"""Bytes of [rows, K] scratch that a chunk may take, about: a third of one [rows, K] tensor of a usual batch (400 MB)."""


def chunk_rows(prototypes: int, tensors: int, dtype: torch.dtype = torch.float32) -> int:
    """How many rows fit into ``CHUNK_BYTES``, at least 1.

    Args:
        prototypes: K.
        tensors: Vectors of K numbers that one row needs at a time.
        dtype: Of these numbers.
    """
    return max(1, CHUNK_BYTES // (prototypes * tensors * dtype.itemsize))


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype in which autocast would multiply matrices here; without autocast that of ``like``."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and like.dtype == torch.float32 else like.dtype


class Scratch:
    """Memory that the chunks of a sweep use in turn, for a CPU pays for every page that it gets anew (experiments.md)."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, use: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of this shape, dtype and device of ``like``, its numbers undefined; whoever asked for the same use before loses it."""
        held, numbers = self._held.get(use), math.prod(shape)
        if held is None or held.numel() < numbers:
            held = self._held[use] = like.new_empty(numbers)
        return held[:numbers].view(*shape)


def similarities(points: Tensor, prototypes: Tensor, out: Tensor | None = None) -> Tensor:
    """Cosines [..., K] in float32 or wider of points [..., d] and prototypes [K, d], which has the dtype of the product.

    Args:
        points: [..., d].
        prototypes: [K, d].
        out: [..., K] contiguous, where they go instead of a new tensor.
    """
    if out is None:
        return (points.to(prototypes.dtype) @ prototypes.T).to(torch.promote_types(points.dtype, torch.float32))
    rows, flat = points.flatten(0, -2).to(prototypes.dtype), out.view(-1, len(prototypes))
    if out.dtype == prototypes.dtype:
        torch.mm(rows, prototypes.T, out=flat)
    else:
        flat.copy_(rows @ prototypes.T)
    return out


def exponentiate_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - peak) in place, peak being each row's largest; returns peaks and row sums, [..., 1] each."""
    peak = logits.amax(-1, keepdim=True)
    logits.sub_(peak).exp_()
    return peak, logits.sum(-1, keepdim=True)


class Sweep:
    """One pass over the chunks of a loss, and what it gathers.

    Args:
        points: [..., d] all student points; their gradient gets this shape.
        prototypes: [K, d] the student's.
        dtype: Of the matrix products.
        temperature: Of the student's softmax.
        wanted: Whether the gradients of points and of prototypes are needed.
    """

    def __init__(self, points: Tensor, prototypes: Tensor, dtype: torch.dtype, temperature: float, wanted: tuple[bool, bool]) -> None:
        self.points, self.prototypes, self.temperature, self.wanted = points, prototypes.to(dtype), temperature, wanted
        self.point_gradient = torch.zeros_like(points) if wanted[0] else None
        self.prototype_gradient = torch.empty_like(prototypes) if wanted[1] else None
        self.scratch, self._begun = Scratch(), False

    def take(self, chunk: Any, targets: Sequence[Tensor], counts: Tensor, weight: Tensor) -> Tensor:
        """Cross-entropies of one chunk; adds its gradients.

        The temperature scales the points and not the logits, and weights scale [..., d] and not [..., K]: two sweeps less.

        Args:
            chunk: Index into the points, which gives [v, c, d].
            targets: v times [c, K]; a row sums to its view's entry in ``counts``.
            counts: [v, 1] distributions that were added up in the targets of each view.
            weight: [v, c] of each row in the loss, which scales gradients.

        Returns:
            [v, c], not weighted.
        """
        points = self.points[chunk]
        room = self.scratch.take("logits", (*points.shape[:-1], len(self.prototypes)), points)
        logits = similarities(points / self.temperature, self.prototypes, room)
        spare = self.scratch.take("products", logits.shape[1:], logits)
        dots = torch.stack([torch.mul(view, target, out=spare).sum(-1) for view, target in zip(logits, targets)])
        peaks, sums = exponentiate_(logits)
        losses = counts * (peaks + sums.log())[..., 0] - dots
        if any(self.wanted):
            shares = sums.reciprocal_() * -counts[..., None]
            for view, target, share in zip(logits, targets, shares):
                torch.addcmul(target, view, share, out=view)  # target - count * softmax: the gradient's negative
            self._add(chunk, points, logits, (weight / -self.temperature)[..., None])
        return losses

    def _add(self, chunk: Any, points: Tensor, gradient: Tensor, scale: Tensor) -> None:
        gradient = gradient.to(self.prototypes.dtype)
        if self.point_gradient is not None:
            self.point_gradient[chunk] = (gradient @ self.prototypes).to(points.dtype) * scale
        if self.prototype_gradient is not None:
            rows, scaled = gradient.flatten(0, 1).T, (points * scale).to(gradient.dtype).flatten(0, 1)
            # The first chunk writes, so that nobody has to clear [K, d] before.
            if gradient.dtype == self.prototype_gradient.dtype:
                self.prototype_gradient.addmm_(rows, scaled, beta=int(self._begun))
            elif self._begun:
                self.prototype_gradient += rows @ scaled
            else:
                self.prototype_gradient.copy_(rows @ scaled)
            self._begun = True

    def save(self, ctx: Any) -> None:
        """Keeps the gradients for ``scaled``."""
        if self.prototype_gradient is not None and not self._begun:
            self.prototype_gradient.zero_()
        ctx.held = [gradient is not None for gradient in (self.point_gradient, self.prototype_gradient)]
        ctx.save_for_backward(*(gradient for gradient in (self.point_gradient, self.prototype_gradient) if gradient is not None))


def scaled(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What ``backward`` returns for points and prototypes; scaled in place, so that a second backward pass is refused by autograd."""
    saved = iter(ctx.saved_tensors)
    points, prototypes = (next(saved).mul_(gradient) if held else None for held in ctx.held)
    return points, prototypes


def wanted(points: Tensor, prototypes: Tensor) -> tuple[bool, bool]:
    """Which gradients autograd will ask for; inside a Function it no longer says so."""
    recording = torch.is_grad_enabled()
    return recording and points.requires_grad, recording and prototypes.requires_grad
