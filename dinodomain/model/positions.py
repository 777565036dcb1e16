"""Position embeddings on a token grid: fixed sines, and resampling to another grid.

Resampling is written as one small matrix per axis (antialiased bicubic in 2-D, antialiased linear in 3-D): the same numbers
as an image resize, but its backward is a matrix product, so it is deterministic on every device and exists in 3-D too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dinodomain.errors import UserError

Grid = tuple[int, ...]


def sides(given: int | Sequence[int], ndim: int, place: str) -> Grid:
    """One side per spatial axis.

    Args:
        given: One number for all axes, or one for each.
        ndim: Number of axes.
        place: What they are the sides of, for messages.

    Raises:
        UserError: The number of sides is not ``ndim``.
    """
    if ndim not in (2, 3):
        raise UserError("ndim", f"is {ndim}", allowed="2 (images) or 3 (volumes)")
    result = (given,) * ndim if isinstance(given, int) else tuple(given)
    if len(result) != ndim:
        raise UserError(place, f"{result} has {len(result)} sides", allowed=f"one number, or {ndim} of them")
    return result


def sincos(grid: Grid, dim: int) -> Tensor:
    """Fixed positions: sines and cosines of each grid coordinate (Vaswani 2017, laid out per axis as in MAE, He 2022).

    Args:
        grid: Tokens per axis, in array order.
        dim: Token width; channels that do not divide evenly among the axes stay 0.

    Returns:
        [P, dim] float32, row-major over the grid.
    """
    per_axis = dim // (2 * len(grid))
    rates = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / max(per_axis, 1))
    coordinates = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)).reshape(-1, len(grid))
    angles = coordinates[:, :, None] * rates
    table = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    return functional.pad(table, (0, dim - table.shape[1])).float()


@functools.lru_cache(maxsize=256)
def axis_matrix(old: int, new: int, mode: str, device: torch.device) -> Tensor:
    """[new, old] weights that resample one axis with antialiasing; the response of the framework's own resize to unit impulses."""
    with torch.inference_mode(False), torch.no_grad():
        # The unit matrix as an image whose rows are resized; images one pixel wide come out wrong in torch 2.14.
        impulses = torch.eye(old, device=device)[None, None]
        return functional.interpolate(impulses, size=(new, old), mode=mode, antialias=True, align_corners=False)[0, 0]


def resample(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Learned or fixed positions on another grid.

    Args:
        positions: [1, P_old, E], row-major over ``old``.
        old: Grid of ``positions``.
        new: Wanted grid.

    Returns:
        [1, P_new, E]; ``positions`` itself where the grids are equal.
    """
    if old == new:
        return positions
    mode = "bicubic" if len(old) == 2 else "bilinear"
    with torch.autocast(positions.device.type, enabled=False):
        field = positions.to(torch.promote_types(positions.dtype, torch.float32)).reshape(*old, -1)
        for axis, (before, after) in enumerate(zip(old, new)):
            if before != after:
                weights = axis_matrix(before, after, mode, positions.device).to(field.dtype)
                field = torch.tensordot(weights, field, dims=([1], [axis])).movedim(0, axis)
        return field.reshape(1, -1, positions.shape[-1]).to(positions.dtype)
