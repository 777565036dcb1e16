"""Where every crop lies in its tile. Coordinates in array order, pixel centres at whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from dinodomain.views.dates import per_row
from dinodomain.views.draw import GroupParams


def to_tile(group: GroupParams) -> Tensor:
    """Affine maps from crop pixel indexes to tile pixel coordinates.

    Returns:
        [N, D, D + 1] float32: tile = A @ index + b, with A the first D columns; the tile of the view's own date.
    """
    start, stop = group.boxes[..., 0].double(), group.boxes[..., 1].double()
    step = (stop - start) / group.size
    slope = torch.where(group.flips, -step, step)
    first = torch.where(group.flips, stop - 0.5 * step, start + 0.5 * step) - 0.5
    matrix = torch.diag_embed(slope)
    turned = torch.cat([matrix[..., :-2], matrix[..., [-1]], matrix[..., [-2]]], dim=-1)
    matrix = torch.where(group.transpose[:, None, None], turned, matrix)
    return torch.cat([matrix, first[..., None]], dim=-1).float()


def crop_spacing(group: GroupParams, spacing: Tensor) -> Tensor:
    """Pixel size of every crop.

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
