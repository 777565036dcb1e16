"""Resampling for accelerators: dense matrices over whole tiles, batched; any device, 2-D and 3-D; same result as ``views.warp``.

Crop, antialiased resize, flip and blur along one axis are one matrix. Those of all views, sizes and axes are built together, because on
an accelerator a launch costs more than these numbers; each axis of all views of one size is then one batched product. Temporaries
stay below ``BUDGET`` by working on a part of the samples at a time. On a CPU that changes no bit; a device's library picks its kernels
by shape, so there views of another batch or another part may differ in the last bits.

Products are float32. Where the device has TF32 units they are made of TF32 products of split operands (``parts``), which lose no more
than float32 does. Their speed was not measured on a device yet; ``SPLIT`` turns them off.

Shapes: B samples of T dates, b of them at a time, V views of one size, C channels, D axes, L tile pixels and S crop pixels along an
axis, M output pixels of all matrices, K weights of one output pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams
from dinodomain.views.normalise import constants
from dinodomain.views.resample import RADIUS, Filter, filter_weights_, gaussian_matrices, num_taps
from dinodomain.views.warp import Tiles

SPLIT = True
"""Whether devices with TF32 units get split products instead of float32 ones."""

BUDGET = 2 << 30
"""Bytes of temporaries at a time: of the matrices, and of the products."""

_KEPT_BITS = -(1 << 13)
"""Clears the 13 bits of a float32 mantissa that TF32 does not have."""

_EXACT = (torch.uint8, torch.int8, torch.bool)
"""Types whose values TF32 holds exactly: 11 significant bits."""


Halves = tuple[Tensor, ...]
"""One tensor, or the two that it is the sum of: the high half is exact in TF32."""


class Matmul:
    """A renderer of one group (``warp.Warp``); the groups of one batch share their work through ``prepare``. Each row is given once."""

    def __init__(
        self, group: GroupParams, params: ViewParams, shape: Sequence[int] | None = None, *, place: tuple[_Shared, int] | None = None
    ) -> None:
        """Prepares a group.

        Args:
            group: Its rows.
            params: Those of the batch.
            shape: S of each axis, where it is not ``group.size`` for all.
            place: The work of several groups and which of them this is; None works alone.
        """
        self._shared, self._index = place or (_Shared([(group, _shape(group, shape))], params), 0)
        self._found: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, tiles: Tiles, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """See ``warp.Warp``."""
        if self._found is None:
            self._found = self._shared.take(tiles, self._index)
        stored, weight = self._found
        if stop == len(stored):
            self._found = None
        return stored[start:stop], None if weight is None else weight[start:stop]


def prepare(params: ViewParams) -> list[Matmul]:
    """Renderers of all groups of a batch, which do their work together."""
    shared = _Shared([(group, _shape(group, None)) for group in params.groups], params)
    return [Matmul(group, params, place=(shared, index)) for index, group in enumerate(params.groups)]


def _shape(group: GroupParams, shape: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(shape or (group.size,) * group.boxes.shape[1])


class _Shared:
    """What ``resampled`` gives, held until each group has taken its own."""

    def __init__(self, groups: Sequence[tuple[GroupParams, tuple[int, ...]]], params: ViewParams) -> None:
        self._groups, self._params = groups, params
        self._found: dict[int, tuple[Tensor, Tensor | None]] = {}

    def take(self, tiles: Tiles, index: int) -> tuple[Tensor, Tensor | None]:
        if index not in self._found:
            self._found = dict(enumerate(resampled(tiles, self._groups, self._params)))
        return self._found.pop(index)


def may_blur(params: ViewParams) -> bool:
    """Whether the policy blurs any view; asks no device."""
    policy = params.policy
    return any(operation is not None for operation in (policy.blur, policy.thickness, policy.coarser_pixels))


def splits(device: torch.device) -> bool:
    """Whether products are split for TF32 units."""
    return SPLIT and device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """Views of one group that are cut from one date.

    Attributes:
        index: Which group.
        group: Its rows.
        date: Which date.
        views: Which views of the group.
        count: How many.
        shape: S of each axis.
    """

    index: int
    group: GroupParams
    date: int
    views: slice
    count: int
    shape: tuple[int, ...]


def _parts_of(groups: Sequence[tuple[GroupParams, tuple[int, ...]]], dates: int) -> list[_Part]:
    found = []
    for index, (group, shape) in enumerate(groups):
        for date in sorted({date_of(view, dates) for view in range(group.num_views)}):
            views = slice(date, None, dates)
            found.append(_Part(index, group, date, views, len(range(group.num_views)[views]), shape))
    return found


def resampled(
    tiles: Tiles, groups: Sequence[tuple[GroupParams, tuple[int, ...]]], params: ViewParams
) -> list[tuple[Tensor, Tensor | None]]:
    """All views of a batch, before the tail.

    Args:
        tiles: The batch.
        groups: Rows and S of each axis, of every group.
        params: Those of the batch.

    Returns:
        Of each group stored values [V * B, C, *S] float32 and weights [V * B, 1, *S], None where every pixel is known.
    """
    (samples, dates, channels, *extent), device = tiles.pixels.shape, tiles.pixels.device
    split, parts = splits(device), _parts_of(groups, dates)
    found = []
    for group, shape in groups:
        outer = (group.num_views, samples)
        weight = None if tiles.known is None else torch.empty((*outer, 1, *shape), device=device)
        found.append((torch.empty((*outer, channels, *shape), device=device), weight))
    whole = None if tiles.known is None else tiles.known.flatten(2).all(dim=2)
    for own in _runs(0, samples, _at_a_time(_matrix_floats(parts, extent))):
        matrices = [[_halves(item) if split else (item,) for item in items] for items in matrices_of(params, parts, own, samples, extent)]
        for now in _runs(own.start, own.stop, _at_a_time(_product_floats(parts, extent, channels, split))):
            inner = slice(now.start - own.start, now.stop - own.start)
            with _tf32() if split else nullcontext():
                for date in dict.fromkeys(part.date for part in parts):
                    images = _images(tiles, now, date, split=split)
                    for part, items in zip(parts, matrices):
                        if part.date == date:
                            chosen = [tuple(_of_samples(half, part.count, inner) for half in item) for item in items]
                            _fill(images, part, chosen, found[part.index], now, params, whole)
    return [(stored.flatten(0, 1), None if weight is None else weight.flatten(0, 1)) for stored, weight in found]


def _of_samples(matrix: Tensor, views: int, samples: slice) -> Tensor:
    """Of [B * V, S, L] the rows of some samples."""
    return matrix[samples.start * views : samples.stop * views]


def _images(tiles: Tiles, now: slice, date: int, *, split: bool) -> list[_Image]:
    """Pixels of some samples, and where they are known."""
    known = None if tiles.known is None else tiles.known[now, date]
    pixels = _leading(tiles.pixels[now, date], known, split=split)
    return [pixels] if known is None else [pixels, _leading(known, None, split=split)]


def _fill(
    images: list[_Image], part: _Part, matrices: list[Halves], found: tuple[Tensor, Tensor | None], now: slice, params: ViewParams,
    whole: Tensor | None,
) -> None:  # fmt: skip
    """Writes the views of a part, of the samples ``now``, and their weights."""
    for image, out in zip(images, found):
        assert out is not None
        own = out[part.views, now]
        turned = part.group.transpose.reshape(-1, out.shape[1])[part.views, now] if params.policy.quarter_turns else None
        _put(own, contracted(image, matrices, now.stop - now.start), turned)
        if out is found[1] and whole is not None:
            # Exactly 1 where a sample is whole, so that its bits do not depend on the others of its batch.
            own.masked_fill_(whole[now, part.date].reshape(-1, *(1,) * (out.ndim - 2)), 1.0)


def _put(out: Tensor, views: Tensor, turned: Tensor | None) -> None:
    """Writes views [b, V, C, *S] into ``out`` [V, b, C, *S], with the last two axes exchanged where ``turned`` [V, b]."""
    views = views.transpose(0, 1)
    if turned is None:
        out.copy_(views)
    else:
        torch.where(turned.reshape(*turned.shape, *(1,) * (out.ndim - 2)), views.transpose(-1, -2), views, out=out)


# --- memory ----------------------------------------------------------------------------------------------------------------


def _at_a_time(floats: int) -> int:
    return max(1, BUDGET // (4 * floats))


def _runs(start: int, stop: int, step: int) -> Iterator[slice]:
    """Runs of nearly equal length, none longer than ``step``."""
    count = math.ceil((stop - start) / step)
    ends = [start + (stop - start) * place // count for place in range(count + 1)]
    return (slice(a, b) for a, b in pairwise(ends))


def _matrix_floats(parts: Sequence[_Part], extent: Sequence[int]) -> int:
    """Floats for the matrices of one sample: padded, blurred, in halves; the blurs; the weights with their places."""
    length, total = max(extent), 0
    for part in parts:
        for size in part.shape:
            total += part.count * size * (3 * length + size + 10 * num_taps(length / size, "cubic"))
    return total


def _product_floats(parts: Sequence[_Part], extent: Sequence[int], channels: int, split: bool) -> int:
    """Floats for the products of one sample: its image, and of the largest part all stages and the halves they are split into."""
    inner, most = math.prod(extent), 0
    for part in parts:
        left, size, stages = inner, 1, 0
        for axis in _order(len(extent)):
            left, size = left // extent[axis], size * part.shape[axis]
            stages += part.count * channels * size * left
        most = max(most, stages)
    return (3 * channels * inner if split else channels * inner) + (2 if split else 1) * most


# --- products --------------------------------------------------------------------------------------------------------------


@contextmanager
def _tf32() -> Iterator[None]:
    """Lets products use TF32 units; ``set_float32_matmul_precision`` is the one interface that is used for that, mixed ones clash."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(a: Tensor, b: Tensor, onto: Tensor | None = None) -> Tensor:
    """[n, i, k] x [n, k, j], added to ``onto`` in place where given; TF32 units may take it."""
    return torch.bmm(a, b) if onto is None else onto.baddbmm_(a, b)


def high(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The part of float32 numbers that TF32 holds exactly: mantissas cut to 10 bits; what is left fits TF32 up to 2**-21 of the number."""
    bits = x.view(torch.int32)
    return torch.bitwise_and(bits, _KEPT_BITS, out=None if out is None else out.view(torch.int32)).view(torch.float32)


def _halves(x: Tensor) -> Halves:
    first = high(x)
    return first, x.sub_(first)


def apply(x: Tensor, matrix: Halves, *, outward: bool = False) -> Tensor:
    """One matrix along the last axis.

    In halves the product is high x high + high x low + low x high. The fourth, low x low, is below 2**-20 of the result's largest term.

    Args:
        x: [n, R, L] float32, used as scratch.
        matrix: [n, S, L] float32, whole or in halves.
        outward: Whether the new axis comes out in front.

    Returns:
        [n, R, S], or [n, S, R].
    """
    pairs = [(x, matrix[0])]
    if len(matrix) == 2:
        first, low = _halves(x)
        pairs = [(first, matrix[0]), (first, matrix[1]), (low, matrix[0])]
    out = None
    for a, m in pairs:
        out = product(m, a.transpose(1, 2), out) if outward else product(a, m.transpose(1, 2), out)
    assert out is not None
    return out


@dataclass(frozen=True, slots=True)
class _Image:
    """Tiles laid out for the first product.

    Attributes:
        values: [b, P * L0, C * L1 (* L2)] float32: P copies or halves below one another.
        shape: (C, *L).
        halves: P = 3 halves of both operands (high, low, high), P = 2 where the image needs none, P = 1 without a split.
    """

    values: Tensor
    shape: tuple[int, ...]
    halves: int


def _leading(pixels: Tensor, known: Tensor | None, *, split: bool) -> _Image:
    """Pixels [b, C, *L] of any type for the first product; 0 where unknown: such pixels may hold anything, NaN too."""
    halves = 1 if not split else 2 if pixels.dtype in _EXACT else 3
    count, channels, *extent = pixels.shape
    values = torch.empty((count, halves, extent[0], channels, *extent[1:]), device=pixels.device)
    plain = values[:, :1] if halves == 3 else values
    plain.copy_(pixels.transpose(1, 2)[:, None])
    if known is not None:
        plain.masked_fill_(~known.transpose(1, 2)[:, None], 0.0)
    if halves == 3:
        first, low, last = values.unbind(1)
        high(first, out=last)
        torch.sub(first, last, out=low)
        first.copy_(last)
    return _Image(values.reshape(count, halves * extent[0], -1), (channels, *extent), halves)


def _order(axes: int) -> tuple[int, ...]:
    """The order in which axes are resampled."""
    return (0, 1) if axes == 2 else (0, 2, 1)


def contracted(image: _Image, matrices: Sequence[Halves], samples: int) -> Tensor:
    """Applies one matrix per axis.

    The first axis of all views of a sample is one product with the sample's image; where it is split, its terms lie along one inner axis.
    In 3-D the last axis follows and comes out in front, so that the middle one is last when its turn comes: nothing is copied in between.

    Args:
        image: b samples.
        matrices: Of each axis [b * V, S, L], whole or in halves.
        samples: b.

    Returns:
        [b, V, C, *S] float32, not contiguous.
    """
    (channels, *extent), (rows, size, length) = image.shape, matrices[0][0].shape
    views, sizes = rows // samples, [item[0].shape[1] for item in matrices]
    terms = [half.reshape(samples, views * size, length) for half in matrices[0]]
    terms = [terms[0], *terms] if image.halves == 3 else terms
    x = product(terms[0] if image.halves == 1 else torch.cat(terms, dim=2), image.values)
    if len(extent) == 2:
        x = apply(x.reshape(rows, size * channels, extent[1]), matrices[1])
        return x.reshape(samples, views, size, channels, sizes[1]).transpose(2, 3)
    x = apply(x.reshape(rows, size * channels * extent[1], extent[2]), matrices[2], outward=True)
    x = apply(x.reshape(rows, sizes[2] * size * channels, extent[1]), matrices[1])
    return x.reshape(samples, views, sizes[2], size, channels, sizes[1]).permute(0, 1, 4, 3, 5, 2)


# --- matrices --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    """The axes of a part that have one size: their matrices are made and blurred as one tensor [axes, b, V, S, L].

    Attributes:
        part: Which part.
        axes: Which axes.
        size: S.
    """

    part: int
    axes: tuple[int, ...]
    size: int


def _blocks_of(parts: Sequence[_Part]) -> list[_Block]:
    return [
        _Block(place, tuple(axis for axis, other in enumerate(part.shape) if other == size), size)
        for place, part in enumerate(parts)
        for size in dict.fromkeys(part.shape)
    ]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What each output pixel of all matrices stems from; blocks one after another.

    Attributes:
        line: [M] int64, its place in [D, b, views of all parts].
        pixel: [M] float64, output pixel + 0.5.
    """

    line: Tensor
    pixel: Tensor


@lru_cache(maxsize=64)
def _layout(counts: tuple[int, ...], blocks: tuple[_Block, ...], axes: int, samples: int, device: torch.device) -> _Layout:
    """Made on the host and kept on the device; ``counts`` are V of each part."""
    views = torch.split(torch.arange(axes * samples * sum(counts)).reshape(axes, samples, -1), list(counts), dim=2)
    line, pixel = [], []
    for block in blocks:
        own = views[block.part][list(block.axes)][..., None].expand(-1, -1, -1, block.size)
        line.append(own.flatten())
        pixel.append((torch.arange(block.size, dtype=torch.float64) + 0.5).expand_as(own).flatten())
    return _Layout(torch.cat(line).to(device), torch.cat(pixel).to(device))


def matrices_of(params: ViewParams, parts: Sequence[_Part], own: slice, samples: int, extent: Sequence[int]) -> list[list[Tensor]]:
    """Matrices of some samples, every view, size and axis at once; the same numbers as ``resample.axis_matrices``.

    Args:
        params: Those of the batch.
        parts: From ``_parts_of``.
        own: b of the samples.
        samples: B.
        extent: L of each axis.

    Returns:
        Of each part and axis [b * V, S, L] float32.
    """
    counts, blocks = tuple(part.count for part in parts), _blocks_of(parts)
    boxes, flips, sigma = (
        torch.cat([_of_part(getattr(part.group, name), part, own, samples) for part in parts], dim=2)
        for name in ("boxes", "flips", "sigma")
    )
    axes, count, length, device = len(extent), own.stop - own.start, max(extent), boxes.device
    reach = max(num_taps(length / size, params.filter) for part in parts for size in part.shape)
    layout = _layout(counts, tuple(blocks), axes, count, device)
    sizes = tuple(float(part.shape[axis]) for axis in range(axes) for part in parts for _ in range(part.count))
    first, weights = _weights(boxes, flips, constants(sizes, device).reshape(axes, 1, -1), layout, reach, params.filter)
    # Margins take the weights (all 0) beyond the input, so that no two land on one place.
    padded = torch.zeros((len(first), length + 2 * reach), device=device)
    padded.scatter_(1, first[:, None] + constants(tuple(range(reach, 2 * reach)), device, torch.int64), weights)
    lengths = [len(block.axes) * count * counts[block.part] * block.size for block in blocks]
    lines = torch.split(padded[:, reach : reach + length], lengths)
    sigmas = torch.split(sigma, list(counts), dim=2)
    found: list[list[Tensor]] = [[padded] * axes for _ in parts]
    for block, line in zip(blocks, lines):
        matrix = line.reshape(-1, block.size, length)
        if may_blur(params):
            blurred = sigmas[block.part] if len(block.axes) == axes else torch.cat([sigmas[block.part][axis] for axis in block.axes])
            matrix = torch.bmm(gaussian_matrices(blurred.flatten(), block.size), matrix)
        for axis, item in zip(block.axes, matrix.chunk(len(block.axes))):
            found[block.part][axis] = item[..., : extent[axis]]
    return found


def _of_part(values: Tensor, part: _Part, own: slice, samples: int) -> Tensor:
    """[V * B, D, ...] to [D, b, V, ...] of a part's views and some samples."""
    rows = values.reshape(-1, samples, *values.shape[1:])[part.views, own]
    return rows.movedim(2, 0).transpose(1, 2)


def _weights(boxes: Tensor, flips: Tensor, sizes: Tensor, layout: _Layout, count: int, kind: Filter) -> tuple[Tensor, Tensor]:
    """As ``resample.taps``, for boxes of several sizes.

    Args:
        boxes: [D, b, V, 2] float32.
        flips: [D, b, V] bool.
        sizes: [D, 1, V] float64 output pixels.
        layout: Of M output pixels.
        count: K.
        kind: Filter.

    Returns:
        First pixel [M] int64 and weights [M, K] float32, which sum to one.
    """
    start, stop = boxes.double().unbind(-1)
    scale = (stop - start) / sizes
    origin, step = torch.where(flips, stop, start), torch.where(flips, -scale, scale)
    columns = [origin, step, scale.clamp_min(1.0), torch.floor(start), torch.ceil(stop)]
    line = torch.stack(columns, dim=-1).flatten(0, -2).index_select(0, layout.line)
    origin, step, stretch, low, edge = line.unbind(-1)
    centre = torch.addcmul(origin, step, layout.pixel).sub_(0.5)
    first = torch.ceil(torch.sub(centre, stretch, alpha=RADIUS[kind]))
    tap = constants(tuple(range(count)), boxes.device, torch.float32)
    # Distances from the first weight, not from pixel 0: float32 is then exact to 1e-6 pixel however long the axis.
    own, begin, end = torch.stack([centre, low, edge]).sub_(first).float()[..., None]
    weights = filter_weights_((tap - own).div_(stretch.float()[:, None]), kind)
    weights.mul_((tap >= begin) & (tap < end))
    return first.long(), weights.div_(weights.sum(dim=-1, keepdim=True))
