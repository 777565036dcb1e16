"""Where crops lie: random resized crops in fractions or in millimetres and metres, on known ground.

Extents are drawn first: in-plane (the last two axes) and through-plane (the others) apart, because a volume of thick slices has few of
them. Then places, several for each crop where pixels are unknown, of which the first that is known enough is taken.

Shapes: N rows, D spatial axes in array order. Boxes are edges in tile pixels: pixel i covers [i, i + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinodomain.policy import Range, ViewPolicy
from dinodomain.views import counter
from dinodomain.views.dates import per_row
from dinodomain.views.normalise import constants
from dinodomain.views.plan import ViewsPlan

# Words of the hash of extents and places; part of every training run.
_SCALE, _ASPECT, _DEPTH, _PLACE = 1, 2, 3, 32

TRIES = 8
"""Places tried for each crop where a tile has unknown pixels."""

_BYTE = 255

NARROWEST = 3
"""Pixels of a valid box, along each axis of its plane, below which a crop is not turned: no place would leave room."""

_CELLS = {2: 64, 3: 32}
"""Cells along each axis in which known pixels are counted, by number of axes."""


Span = tuple[float, float] | tuple[Tensor, Tensor]
"""Where a range begins and how wide it is, of all rows or of each, [N] float64."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Ranges that sizes of crops are drawn from.

    Attributes:
        scale: Area (volume) fraction.
        extent: Logarithm of the in-plane side in mm or m; None for fractions.
        depth: The same across the plane.
    """

    scale: Span
    extent: Span | None
    depth: Span | None

    @classmethod
    def of(cls, policy: ViewPolicy, plan: ViewsPlan, *, local: bool) -> Spans:
        """Those of one size of crops; the plan's win over the policy's."""
        extent, depth = (plan.local_extent, plan.local_depth) if local else (plan.global_extent, plan.global_depth)
        own = plan.local_scale if local else plan.global_scale
        low, high = own or (policy.local_scale if local else policy.global_scale)
        logs = [None if span is None else (math.log(span[0]), math.log(span[1] / span[0])) for span in (extent, depth)]
        return cls((low, high - low), *logs)

    def kind(self) -> tuple[bool, bool]:
        """Which sizes are lengths; crops of one kind can be drawn together."""
        return self.extent is not None, self.depth is not None


def crop_boxes(
    policy: ViewPolicy, spans: Spans, numbers: counter.Hashed, valid_box: Tensor, spacing: Tensor, angle: Tensor | None = None, *,
    ground: Ground | None,
) -> Tensor:  # fmt: skip
    """Boxes of views, of one size or of several.

    Args:
        policy: Aspect and share of known pixels.
        spans: How large the crops are.
        numbers: Of N rows, with those of ``words_of``.
        valid_box: [N, D, 2] whole numbers.
        spacing: [N, D] mm or m; NaN where unknown: then pixels count as square, and extents in mm or m give way to fractions.
        angle: [N] radians by which each crop is turned in its plane afterwards, or None for a policy that turns none; the box leaves
            room for what the turned crop shows beyond it.
        ground: What is known of the N tiles, or None where every pixel is.

    Returns:
        [N, D, 2] float32 whole numbers inside ``valid_box``, at least one pixel wide.
    """
    low, full = valid_box[..., 0].double(), (valid_box[..., 1] - valid_box[..., 0]).double()
    area = _area(numbers, full, spacing, spans.scale, spans.extent)
    through = _through(numbers, full, spacing, spans.scale, spans.depth)
    sides = torch.cat([through, _in_plane(numbers, full, spacing, area, policy.aspect)], dim=1)
    sides = torch.floor(sides + 0.5).clamp_min(1.0).minimum(full)
    room = torch.zeros_like(sides)
    if angle is not None:
        sides, room = _room_to_turn(sides, full, angle)
    return _place(numbers, low, full, sides, room, ground, policy.min_valid)


def words_of(ndim: int, *, tries: int) -> list[int]:
    """The words of the hash whose numbers ``crop_boxes`` needs.

    Args:
        ndim: D.
        tries: ``TRIES`` where pixels are unknown, else 1.
    """
    return [_SCALE, _ASPECT, _DEPTH, *_places(ndim, tries)]


def _places(ndim: int, tries: int) -> list[int]:
    return [_PLACE + axis + 64 * turn for turn in range(tries) for axis in range(ndim)]


def _between(numbers: counter.Hashed, word: int, span: Span) -> Tensor:
    return span[0] + span[1] * numbers[word]


def _length(numbers: counter.Hashed, word: int, span: Span) -> Tensor:
    """Lengths are drawn log-uniformly: half of a range of 50 to 200 mm lies below 100."""
    return torch.exp(_between(numbers, word, span))


def _area(numbers: counter.Hashed, full: Tensor, spacing: Tensor, scale: Span, extent: Span | None) -> Tensor:
    """[N] in-plane area of the crop in pixels: a fraction of the tile's, or a square of a drawn length."""
    whole = full[:, -2] * full[:, -1]
    fraction = whole * _power(_between(numbers, _SCALE, scale), 2 / full.shape[1])
    if extent is None:
        return fraction
    pixel = spacing[:, -2].double() * spacing[:, -1].double()
    return torch.where(_usable(pixel), _length(numbers, _SCALE, extent).square() / pixel, fraction).minimum(whole)


def _through(numbers: counter.Hashed, full: Tensor, spacing: Tensor, scale: Span, depth: Span | None) -> Tensor:
    """[N, D - 2] extents along the axes across the plane; the volume fraction stays within ``scale``."""
    across, pixel = full[:, :-2], spacing[:, :-2].double()
    if across.shape[1] == 0:
        return across
    fraction = across * _power(_between(numbers, _DEPTH, scale), 1 / full.shape[1])[:, None]
    if depth is None:
        return fraction
    return torch.where(_usable(pixel), _length(numbers, _DEPTH, depth)[:, None] / pixel, fraction)


def _usable(pixel: Tensor) -> Tensor:
    return torch.isfinite(pixel) & (pixel > 0)


def _in_plane(numbers: counter.Hashed, full: Tensor, spacing: Tensor, area: Tensor, aspect: Range) -> Tensor:
    """[N, 2] rows and columns (Szegedy et al., 2015, "Going deeper with convolutions") without rejection.

    The ratio of lengths (columns to rows) is log-uniform on the part of ``aspect`` that fits the box, or the nearest ratio that fits, so
    that the area is kept exactly. torchvision throws such draws away and draws the fraction again, so it sees slightly fewer large
    crops on oblong images.
    """
    rows, columns = full[:, -2], full[:, -1]
    pixel = spacing[:, -2].double() / spacing[:, -1].double()
    pixel = torch.where(_usable(pixel), pixel, 1.0)  # how many columns make the length of a row
    most, least = columns**2 / area, area / rows**2  # ratios in pixels at which the crop just fits
    floor, ceiling = torch.minimum(aspect[0] * pixel, most).maximum(least), torch.maximum(aspect[1] * pixel, least).minimum(most)
    ratio = floor * _power(ceiling / floor, numbers[_ASPECT])
    return torch.stack([torch.sqrt(area / ratio), torch.sqrt(area * ratio)], dim=1)


def canvas(size: int, degrees: float) -> int:
    """Side of a square that holds a square of ``size`` turned by up to ``degrees``; the difference is even, so that centres coincide."""
    angle = math.radians(min(abs(degrees), 45.0))
    margin = size * (math.cos(angle) + math.sin(angle)) - size
    return size + 2 * math.ceil(margin / 2)


def _power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """Of positive numbers; torch's own differs in the last bit with the place of a number in its tensor."""
    return torch.exp(torch.log(base) * exponent)


def _room_to_turn(sides: Tensor, full: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Extents small enough for the turned crop to stay inside the valid box, and the pixels it needs beyond each side of its own box.

    Both sides shrink by one factor, so that the aspect stays. Boxes narrower than ``NARROWEST`` are not turned.

    Returns:
        [N, D] whole numbers and [N, D].
    """
    growth = (angle.double().cos().abs() + angle.double().sin().abs())[:, None]
    plane, most = sides[:, -2:], full[:, -2:]
    plane = torch.floor(plane * (most / (growth * plane)).amin(dim=1, keepdim=True).clamp_max(1.0)).clamp_min(1.0)
    beyond = plane * (growth - 1) / 2
    # Starts are whole numbers: where none fits between the margins, a pixel less makes room for one.
    plane = torch.where(torch.floor(most - plane - beyond) < torch.ceil(beyond), plane - 1, plane).clamp_min(1.0)
    return torch.cat([sides[:, :-2], plane], dim=1), torch.cat([torch.zeros_like(sides[:, :-2]), plane * (growth - 1) / 2], dim=1)


def _place(
    numbers: counter.Hashed, low: Tensor, full: Tensor, sides: Tensor, room: Tensor, ground: Ground | None, min_valid: float
) -> Tensor:
    """[N, D, 2] float32; the first of ``TRIES`` places with enough known pixels, or that with the most."""
    ndim, tries = full.shape[1], 1 if ground is None else TRIES
    places = numbers.several(_places(ndim, tries)).reshape(-1, tries, ndim)
    first = torch.ceil(room).minimum(torch.floor((full - sides) / 2))
    last = torch.floor(full - sides - room).maximum(first)
    start = (low + first)[:, None] + torch.floor(places * (last - first + 1)[:, None])
    if ground is not None:
        share = known_share(ground, start, sides[:, None].expand_as(start))
        # Known enough counts as 1, and the first of equals wins. Sums differ in the last bit between devices and sizes of a batch, so
        # shares that are that near count as equal.
        share = torch.round(share * 2**20) / 2**20
        chosen = torch.where(share >= min_valid - 2**-20, 1.0, share).argmax(dim=1)
        start = start.gather(1, chosen[:, None, None].expand(-1, 1, ndim))
    start = start[:, 0]
    return torch.stack([start, start + sides], dim=-1).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where tiles are known, as tables of sums (Crow, 1984, "Summed-area tables for texture mapping").

    Attributes:
        sums: [n, *(cells + 1)] float64 known pixels before each corner of the cells; whole numbers, so that no order of summing matters.
        extent: Pixels of a tile along each axis.
        image: [N] int64 tile of each row.
    """

    sums: Tensor
    extent: tuple[int, ...]
    image: Tensor

    @staticmethod
    def of(known: Tensor) -> Ground:
        """Counts known pixels.

        Args:
            known: [n, 1, *L] bool; each is one row.
        """
        counts = known_counts(known)
        sums = torch.zeros((len(known), *(count + 1 for count in counts.shape[1:])), dtype=torch.float64, device=known.device)
        sums[(slice(None), *(slice(1, None),) * (counts.ndim - 1))] = counts
        for axis in range(1, sums.ndim):
            sums.cumsum_(dim=axis)
        return Ground(sums=sums, extent=tuple(known.shape[2:]), image=torch.arange(len(known), device=known.device))

    def of_group(self, views: int, samples: int) -> Ground:
        """The same for the rows of a group of V views of B samples, see ``dates.per_row``."""
        return replace(self, image=per_row(self.image, views, samples))


def known_counts(known: Tensor) -> Tensor:
    """Known pixels in cells, at most 64 along an axis in 2-D and 32 in 3-D.

    Counts stay in bytes while they fit, axis by axis: ten times faster on a CPU than pooling floats.

    Args:
        known: [n, 1, *L] bool.

    Returns:
        [n, *cells] whole numbers; the last cell of an axis may be narrower.
    """
    counts, most = known[:, 0].view(torch.uint8), 1
    for axis, cell in enumerate(_cell(known.shape[2:])):
        most *= cell
        counts = _summed(counts, 1 + axis, cell, torch.uint8 if most <= _BYTE else torch.int32)
    return counts


def _summed(counts: Tensor, axis: int, cell: int, dtype: torch.dtype) -> Tensor:
    """Sums of ``cell`` entries along an axis; the last sum may be of fewer."""
    length = counts.shape[axis]
    whole = length // cell * cell
    shape = (*counts.shape[:axis], whole // cell, cell, *counts.shape[axis + 1 :])
    sums = counts.narrow(axis, 0, whole).reshape(shape).sum(dim=axis + 1, dtype=dtype)
    if whole == length:
        return sums
    return torch.cat([sums, counts.narrow(axis, whole, length - whole).sum(dim=axis, keepdim=True, dtype=dtype)], dim=axis)


def _cell(extent: Sequence[int]) -> list[int]:
    return [math.ceil(length / _CELLS[len(extent)]) for length in extent]


def known_share(ground: Ground, start: Tensor, sides: Tensor) -> Tensor:
    """Share of known pixels in boxes, as if they were spread evenly within each cell.

    Between the corners of a cell the table is then linear along each axis, so a box takes four entries of each: two about either end.

    Args:
        ground: Of N rows.
        start: [N, R, D] first pixel of R boxes.
        sides: [N, R, D].

    Returns:
        [N, R] float64.
    """
    shape, cells = ground.sums.shape[1:], _cell(ground.extent)
    cell, length, last, stride = (
        constants(tuple(map(float, values)), start.device)
        for values in (cells, ground.extent, [count - 2 for count in shape], [shape[axis + 1 :].numel() for axis in range(len(shape))])
    )
    ends = torch.stack([start, start + sides], dim=2)  # [N, R, 2, D]
    corner = torch.floor(ends / cell).minimum(last)
    within = (ends - corner * cell) / (length - corner * cell).minimum(cell)
    near = torch.cat([corner, corner + 1], dim=2) * stride  # entries before start and stop, then those after them
    part = torch.cat([1 - within, within], dim=2) * constants((-1.0, 1.0, -1.0, 1.0), start.device)[:, None]
    place, weight = (ground.image * shape.numel())[:, None, None], torch.ones_like(start[..., :1])
    for axis, steps in enumerate(near.long().unbind(-1)):
        place = (place[..., None] + steps[..., None, :]).flatten(2)
        weight = (weight[..., None] * part[..., None, :, axis]).flatten(2)
    found = ground.sums.flatten().index_select(0, place.flatten()).reshape(place.shape)
    return (found * weight).sum(dim=-1) / sides.prod(dim=-1)
