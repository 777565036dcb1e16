"""Where crops lie: random resized crops in fractions or in millimetres and metres, on known ground.

Extents are drawn first: in-plane (the last two axes) and through-plane (the others) apart, because a volume of thick slices has few of
them. Then places, several for each crop where pixels are unknown, of which the first that is known enough is taken.

Shapes: N rows, D spatial axes in array order. Boxes are edges in tile pixels: pixel i covers [i, i + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.policy import Range, ViewPolicy
from dinodomain.views import counter
from dinodomain.views.plan import ViewsPlan

# Words of the hash of extents and places; part of every training run.
_SCALE, _ASPECT, _DEPTH, _PLACE = 1, 2, 3, 32

TRIES = 8
"""Places tried for each crop where a tile has unknown pixels."""

_CELLS = {2: 64, 3: 32}
"""Cells along each axis in which known pixels are counted, by number of axes."""


def crop_boxes(
    policy: ViewPolicy, plan: ViewsPlan, key: Tensor, valid_box: Tensor, spacing: Tensor, *, local: bool, ground: Ground | None
) -> Tensor:
    """Boxes of all views of one size.

    Args:
        policy: Scales, aspect and share of known pixels.
        plan: Its own scales and extents, which win.
        key: [N] int64.
        valid_box: [N, D, 2] whole numbers.
        spacing: [N, D] mm or m; NaN where unknown (then pixels count as square).
        local: Which crops.
        ground: What is known of the N tiles, or None where every pixel is.

    Returns:
        [N, D, 2] float32 whole numbers inside ``valid_box``, at least one pixel wide.
    """
    low, full = valid_box[..., 0].double(), (valid_box[..., 1] - valid_box[..., 0]).double()
    extent, depth = (plan.local_extent, plan.local_depth) if local else (plan.global_extent, plan.global_depth)
    own = plan.local_scale if local else plan.global_scale
    scale = own or (policy.local_scale if local else policy.global_scale)
    area = _area(key, full, spacing, scale, extent)
    through = _through(key, full, spacing, scale, depth)
    sides = torch.cat([through, _in_plane(key, full, spacing, area, policy.aspect)], dim=1)
    sides = torch.floor(sides + 0.5).clamp_min(1.0).minimum(full)
    sides = sides if policy.rotation is None else _room_to_turn(sides, full, plan.local_size if local else plan.global_size, policy)
    return _place(key, low, full, sides, ground, policy.min_valid)


def _between(key: Tensor, word: int, span: Range) -> Tensor:
    return span[0] + (span[1] - span[0]) * counter.uniform(key, word)


def _length(key: Tensor, word: int, span: Range) -> Tensor:
    """Lengths are drawn log-uniformly: half of a range of 50 to 200 mm lies below 100."""
    return torch.exp(_between(key, word, (math.log(span[0]), math.log(span[1]))))


def _area(key: Tensor, full: Tensor, spacing: Tensor, scale: Range, extent: Range | None) -> Tensor:
    """[N] in-plane area of the crop in pixels: a fraction of the tile's, or a square of a drawn length."""
    rows, columns = full[:, -2], full[:, -1]
    if extent is None:
        return rows * columns * _between(key, _SCALE, scale) ** (2 / full.shape[1])
    pixel = spacing[:, -2].double() * spacing[:, -1].double()
    return (_length(key, _SCALE, extent).square() / pixel).minimum(rows * columns)


def _through(key: Tensor, full: Tensor, spacing: Tensor, scale: Range, depth: Range | None) -> Tensor:
    """[N, D - 2] extents along the axes across the plane; the volume fraction stays within ``scale``."""
    across = full[:, :-2]
    if across.shape[1] == 0:
        return across
    if depth is None:
        return across * (_between(key, _DEPTH, scale) ** (1 / full.shape[1]))[:, None]
    return _length(key, _DEPTH, depth)[:, None] / spacing[:, :-2].double()


def _in_plane(key: Tensor, full: Tensor, spacing: Tensor, area: Tensor, aspect: Range) -> Tensor:
    """[N, 2] rows and columns (Szegedy et al., 2015, "Going deeper with convolutions") without rejection.

    The ratio of lengths (columns to rows) is log-uniform on the part of ``aspect`` that fits the box, or the nearest ratio that fits, so
    that the area is kept exactly. torchvision throws such draws away and draws the fraction again, so it sees slightly fewer large
    crops on oblong images.
    """
    rows, columns = full[:, -2], full[:, -1]
    pixel = spacing[:, -2].double() / spacing[:, -1].double()
    pixel = torch.where(torch.isfinite(pixel) & (pixel > 0), pixel, 1.0)  # how many columns make the length of a row
    most, least = columns**2 / area, area / rows**2  # ratios in pixels at which the crop just fits
    floor, ceiling = torch.minimum(aspect[0] * pixel, most).maximum(least), torch.maximum(aspect[1] * pixel, least).minimum(most)
    ratio = floor * (ceiling / floor) ** counter.uniform(key, _ASPECT)
    return torch.stack([torch.sqrt(area / ratio), torch.sqrt(area * ratio)], dim=1)


def canvas(size: int, degrees: float) -> int:
    """Side of a square that holds a square of ``size`` turned by up to ``degrees``; the difference is even, so that centres coincide."""
    angle = math.radians(min(abs(degrees), 45.0))
    margin = size * (math.cos(angle) + math.sin(angle)) - size
    return size + 2 * math.ceil(margin / 2)


def _room_to_turn(sides: Tensor, full: Tensor, size: int, policy: ViewPolicy) -> Tensor:
    """In-plane extents small enough for the turned crop to stay inside the box."""
    assert policy.rotation is not None
    share = size / canvas(size, max(map(abs, policy.rotation.degrees)))
    return torch.cat([sides[:, :-2], sides[:, -2:].minimum(torch.floor(full[:, -2:] * share).clamp_min(1.0))], dim=1)


def _place(key: Tensor, low: Tensor, full: Tensor, sides: Tensor, ground: Ground | None, min_valid: float) -> Tensor:
    """[N, D, 2] float32; the first of ``TRIES`` places with enough known pixels, or that with the most."""
    ndim, tries = full.shape[1], 1 if ground is None else TRIES
    words = _PLACE + torch.arange(ndim, device=key.device) + 64 * torch.arange(tries, device=key.device)[:, None]
    places = counter.uniform(key[:, None, None], words[None])  # [N, tries, D]
    start = low[:, None] + torch.floor(places * (full - sides + 1)[:, None])
    if ground is not None:
        share = known_share(ground.cells, start, sides[:, None].expand_as(start), ground.extent)
        # Known enough counts as 1, and the first of equals wins; sums differ in the last bit between devices.
        chosen = torch.where(share >= min_valid - 1e-9, 1.0, share).argmax(dim=1)
        start = start.gather(1, chosen[:, None, None].expand(-1, 1, ndim))
    start = start[:, 0]
    return torch.stack([start, start + sides], dim=-1).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where tiles are known.

    Attributes:
        cells: [n, *cells] float64 share of known pixels in each cell, from ``known_cells``.
        extent: Pixels of a tile along each axis.
    """

    cells: Tensor
    extent: tuple[int, ...]


def known_cells(known: Tensor) -> Tensor:
    """Share of known pixels in cells, at most 64 along an axis in 2-D and 32 in 3-D.

    Args:
        known: [n, 1, *L] bool.

    Returns:
        [n, *cells] float64; the last cell of an axis may be narrower.
    """
    ndim = known.ndim - 2
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    return pool(known.float(), _cell(known.shape[2:]), ceil_mode=True, count_include_pad=False)[:, 0].double()


def _cell(extent: Sequence[int]) -> list[int]:
    return [math.ceil(length / _CELLS[len(extent)]) for length in extent]


def known_share(cells: Tensor, start: Tensor, sides: Tensor, extent: Sequence[int]) -> Tensor:
    """Share of known pixels in boxes, as if they were spread evenly within each cell.

    Args:
        cells: [N, *cells] from ``known_cells``.
        start: [N, R, D] first pixel of R boxes.
        sides: [N, R, D].
        extent: Pixels of the tile along each axis.

    Returns:
        [N, R] float64.
    """
    letters, terms = "ijk"[: len(extent)], []
    for axis, cell in enumerate(_cell(extent)):
        first = torch.arange(cells.shape[1 + axis], device=cells.device) * cell
        stop = start[..., axis, None] + sides[..., axis, None]
        covered = (stop.minimum(first + cell) - start[..., axis, None].maximum(first.double())).clamp_min(0.0)
        terms.append(covered / sides[..., axis, None])
    rows = ",".join(f"nr{letter}" for letter in letters)
    return torch.einsum(f"n{letters},{rows}->nr", cells, *terms)
