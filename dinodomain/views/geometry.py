"""Where every crop lies in its tile. Coordinates in array order, pixel centres at whole numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.views.dates import per_row
from dinodomain.views.draw import GroupParams


def patch_sides(patch: int | Sequence[int], size: Sequence[int], name: str) -> tuple[int, ...]:
    """Sides of a patch token of a crop, one per axis.

    Args:
        patch: Pixels; one number for all axes, or one for each in array order.
        size: Sides of the crop, pixels.
        name: ``global`` or ``local``.

    Raises:
        UserError: Patches do not divide the crop, or name another number of axes.
    """
    sides = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
    if len(sides) != len(size) or any(side < 1 or length % side for side, length in zip(sides, size)):
        found = f"is {patch} for {name} crops of {tuple(size)} pixels"
        raise UserError("patch", found, allowed="sides that divide the crop, one per axis")
    return sides


def to_tile(group: GroupParams) -> Tensor:
    """Affine maps from crop pixel indexes to tile pixel coordinates.

    Turn, flips and transpose all leave the crop's centre where it is, so the map is one of offsets from it: transpose and flips are
    undone, the angle leads back to the upright crop, and the box's step to tile pixels.

    Returns:
        [N, D, D + 1] float32: tile = A @ index + b, with A the first D columns; the tile of the view's own date.
    """
    start, stop = group.boxes[..., 0].double(), group.boxes[..., 1].double()
    step = (stop - start) / group.size
    sign = torch.where(group.flips, -1.0, 1.0).double()
    matrix = step[..., :, None] * rotation(group.angle, step.shape[1]) * sign[..., None, :]
    exchanged = torch.cat([matrix[..., :-2], matrix[..., -1:], matrix[..., -2:-1]], dim=-1)
    matrix = torch.where(group.transpose[:, None, None], exchanged, matrix)
    centre = (start + stop) / 2 - 0.5
    first = centre - matrix.sum(dim=-1) * ((group.size - 1) / 2)
    return torch.cat([matrix, first[..., None]], dim=-1).float()


def rotation(angle: Tensor, ndim: int) -> Tensor:
    """Offsets from the centre in a turned image to offsets in the image it was made from.

    The turned image is the other one turned counter-clockwise as displayed, rows downwards: a quarter turn is ``numpy.rot90`` over the
    last two axes.

    Args:
        angle: [N] radians.
        ndim: D.

    Returns:
        [N, D, D] float64; the last two rows and columns are [[cos, sin], [-sin, cos]].
    """
    cos, sin = torch.cos(angle.double()), torch.sin(angle.double())
    matrix = torch.eye(ndim, dtype=torch.float64, device=angle.device).repeat(len(angle), 1, 1)
    matrix[:, -2:, -2:] = torch.stack([cos, sin, -sin, cos], dim=-1).reshape(-1, 2, 2)
    return matrix


def crop_spacing(group: GroupParams, spacing: Tensor) -> Tensor:
    """Pixel size of every crop. A small turn is left out: it mixes two axes whose pixels are nearly of one size.

    Args:
        group: N = V x B rows.
        spacing: [B * T, D] of the tiles, mm or m; NaN where unknown.

    Returns:
        [N, D] float32.
    """
    extent = (group.boxes[..., 1] - group.boxes[..., 0]) / group.size
    own = per_row(spacing, group.num_views, len(extent) // group.num_views) * extent
    turned = torch.cat([own[:, :-2], own[:, -1:], own[:, -2:-1]], dim=1)
    return torch.where(group.transpose[:, None], turned, own).float()
