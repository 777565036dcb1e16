"""Gram anchoring (Simeoni 2025, DINOv3, section 4.2): patch similarities of the student are held to those of an earlier teacher.

Per image, never across images. The matrices exist in blocks of ``CHUNK_BYTES`` only, and their gradient is taken while they do.
Legend: N images, P patches, E width of the student's tokens, F of the anchor's (which may be another model).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dinodomain.objective.fused import CHUNK_BYTES

EPS = 1e-8


def gram_loss(student: Tensor, anchor: Tensor, valid: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """Mean over images of the mean squared difference between the two matrices of cosines between patches.

    In float32 or wider also under autocast: the difference of two nearly equal cosines would be nothing but rounding in bfloat16.

    Args:
        student: [N, P, E] patch tokens after the final norm, of the global crops as the student saw them.
        anchor: [N, P, F] the anchoring teacher's, on the same grid; without gradient.
        valid: [N, P] bool; pairs with an invalid patch are left out. None: all count.
        count: By how many images the sum is divided; None: those of this batch with a valid patch.

    Returns:
        Scalar; 0 where nothing is valid.
    """
    with torch.autocast(student.device.type, enabled=False):
        points, held = _unit(student), _unit(anchor).detach()
        if valid is not None:
            points, held = points * valid[..., None], held * valid[..., None]
        patches = points.new_full((len(points),), points.shape[1]) if valid is None else valid.sum(1).to(points.dtype)
        number = (patches > 0).sum().clamp_min(1) if count is None else count
        # A pair of patches of an image with n valid ones weighs 1 / (n^2 images).
        weight = torch.where(patches > 0, patches.clamp_min(1).square().reciprocal(), 0.0) / number
        loss: Tensor = _Gram.apply(points, held, weight, torch.is_grad_enabled() and points.requires_grad)
        return loss


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, anchor: Tensor, weight: Tensor, needed: bool) -> Tensor:
        loss = points.new_zeros(())
        gradient = torch.empty_like(points) if needed else None
        for images, rows in blocks(points.shape[0], points.shape[1], points.dtype.itemsize):
            difference = points[images, rows] @ points[images].mT
            # Scratch is this matrix, its like of the anchor, and the squares.
            difference -= anchor[images, rows] @ anchor[images].mT
            loss += difference.square().sum((1, 2)) @ weight[images]
            if gradient is not None:
                # Both factors of X X^T are X, and the matrix is symmetric: twice the derivative of one of them.
                gradient[images, rows] = (difference @ points[images]) * (4.0 * weight[images, None, None])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * gradient, None, None, None


def blocks(images: int, patches: int, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of their matrices that are worked on at a time: several images, or some rows of one image.

    Args:
        images: N.
        patches: P.
        itemsize: Bytes of a number.
    """
    row = 3 * patches * itemsize
    rows = max(1, min(patches, CHUNK_BYTES // max(row, 1)))
    some = max(1, CHUNK_BYTES // max(row * patches, 1)) if rows == patches else 1
    for image in range(0, images, some):
        for start in range(0, patches, rows):
            yield slice(image, image + some), slice(start, start + rows)


def _unit(tokens: Tensor) -> Tensor:
    return functional.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1, eps=EPS)
