"""Which token lies where: between two views of one sample, and from crops back to their tiles and source arrays.

For dense losses (DINOv3), leak maps and attributions. Everything is arithmetic on the affine maps ``ViewGroup.to_tile``, batched over
all pairs, in float64, on the maps' device; the host is never waited for.

Views of different dates of one sample correspond too: their tiles are cut from one pixel grid at one place (``loader.pairs``), so a
pixel of a tile is the same ground on every date, although it lies at another place in each date's source.

Coordinates are in array order with pixel centres at whole numbers, in token grids too: position 0 is the centre of the first token,
-0.5 its outer edge. Shapes: N rows of a group, n pairs, P tokens of the first view, D spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinodomain.types import ViewGroup
from dinodomain.views.dates import per_row
from dinodomain.views.geometry import patch_sides
from dinodomain.views.normalise import constants

USABLE = 0.5
"""Share of real pixels from which a token counts as valid, as in the losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correspondence:
    """Where the tokens of first views lie in second views.

    Attributes:
        index: [n, P] int64 nearest token of the second view, row-major; -1 where the token's centre lies outside that view or either
            token is not valid.
        position: [n, P, D] float32 the centre in the second view's token grid, also where it lies outside.
        inside: [n, P] bool, whether the centre lies within the second view, valid or not.
    """

    index: Tensor
    position: Tensor
    inside: Tensor


def token_grid(group: ViewGroup, patch: int | Sequence[int]) -> tuple[int, ...]:
    """Tokens along each axis.

    Raises:
        UserError: Patches do not divide the crop, or name another number of axes.
    """
    size = tuple(group.pixels.shape[2:])
    return tuple(length // side for side, length in zip(patch_sides(patch, size, group.name), size))


def token_centres(group: ViewGroup, patch: int | Sequence[int]) -> Tensor:
    """Where the centre of every token lies in its tile.

    Returns:
        [N, P, D] float64 tile pixel coordinates, tokens row-major.
    """
    return map_points(group.to_tile.double() @ _token_map(patch, group), _grid(token_grid(group, patch), group.to_tile.device))


def tile_to_crop(group: ViewGroup) -> Tensor:
    """The inverse of ``ViewGroup.to_tile``.

    Returns:
        [N, D, D + 1] float64: crop = A @ tile + b.
    """
    return _inverse(_square(group.to_tile))[:, :-1]


def to_source(group: ViewGroup, origins: Tensor) -> Tensor:
    """Affine maps from crop pixel indexes to the source array that the view's tile was read from.

    Args:
        group: N = V x B rows.
        origins: [B * T, D] first pixel of each tile in its source, ``Batch.origins``.

    Returns:
        [N, D, D + 1] float64, as ``ViewGroup.to_tile``; float32 would be off by a hundredth of a pixel in a mosaic.
    """
    own = per_row(origins, group.num_views, len(group.to_tile) // group.num_views).double()
    tile = group.to_tile.double()
    return torch.cat([tile[..., :-1], tile[..., -1:] + own[..., None]], dim=-1)


def map_points(maps: Tensor, points: Tensor) -> Tensor:
    """Applies affine maps.

    Args:
        maps: [N, D, D + 1].
        points: [N, M, D], or [M, D] for all rows alike.

    Returns:
        [N, M, D] float64.
    """
    own = maps.double()
    return points.double() @ own[..., :-1].mT + own[:, None, :, -1]


def rows_of_view(group: ViewGroup, view: int) -> Tensor:
    """[B] int64 rows of one view, sample by sample, as ``correspond`` takes them."""
    samples = len(group.to_tile) // group.num_views
    return torch.arange(view * samples, (view + 1) * samples, device=group.to_tile.device)


def correspond(first: ViewGroup, rows_first: Tensor, second: ViewGroup, rows_second: Tensor, patch: int | Sequence[int]) -> Correspondence:
    """Finds every token of first views in second views of the same samples.

    Args:
        first: Group of the first views.
        rows_first: [n] int64 rows of it.
        second: Group of the second views, the same or another.
        rows_second: [n] int64 rows of it; entry i is a view of the sample of ``rows_first[i]``, of any date.
        patch: Side of a patch token, pixels; one, or one for each axis.

    Raises:
        UserError: Patches do not divide the crops.
    """
    here, there = token_grid(first, patch), token_grid(second, patch)
    to_tile = _square(first.to_tile[rows_first]) @ _token_map(patch, first)
    to_grid = _inverse(_square(second.to_tile[rows_second]) @ _token_map(patch, second))
    position = map_points((to_grid @ to_tile)[:, :-1], _grid(here, first.to_tile.device))
    last = constants(tuple(float(count - 1) for count in there), position.device, torch.float64)
    nearest = torch.floor(position + 0.5)
    inside = ((nearest >= 0) & (nearest <= last)).all(dim=-1)
    steps = constants(_strides(there), position.device, torch.float64)
    index = (nearest.clamp_min(0).minimum(last) * steps).sum(dim=-1).long()
    valid = (first.valid[rows_first] >= USABLE) & (second.valid[rows_second].gather(1, index) >= USABLE)
    return Correspondence(index=torch.where(inside & valid, index, -1), position=position.float(), inside=inside)


def _strides(grid: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(math.prod(grid[axis + 1 :])) for axis in range(len(grid)))


def _grid(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """[P, D] float64 indexes of all tokens, row-major."""
    axes = [torch.arange(count, dtype=torch.float64, device=device) for count in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _token_map(patch: int | Sequence[int], group: ViewGroup) -> Tensor:
    """[D + 1, D + 1] float64 from token grid to crop pixels: a token's centre is that of its pixels."""
    sides = patch_sides(patch, group.pixels.shape[2:], group.name)
    ndim = len(sides)
    rows = [(*(float(side) * (column == axis) for column in range(ndim)), (side - 1) / 2) for axis, side in enumerate(sides)]
    flat = tuple(value for row in [*rows, (0.0,) * ndim + (1.0,)] for value in row)
    return constants(flat, group.to_tile.device, torch.float64).reshape(ndim + 1, ndim + 1)


def _square(maps: Tensor) -> Tensor:
    """[N, D, D + 1] to [N, D + 1, D + 1] float64, with the row of zeros and a one that makes maps products."""
    ndim = maps.shape[1]
    last = constants((0.0,) * ndim + (1.0,), maps.device, torch.float64)
    return torch.cat([maps.double(), last.expand(len(maps), 1, -1)], dim=1)


def _inverse(maps: Tensor) -> Tensor:
    """[N, D + 1, D + 1]; boxes have extents, so none is singular, and the host need not be asked whether."""
    inverse: Tensor = torch.linalg.inv_ex(maps, check_errors=False).inverse
    return inverse
