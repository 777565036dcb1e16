"""Resampling matrices on a CPU: one crop at a time, on its own window, and only where a matrix is not zero.

A row of a resampling matrix is zero but for a few columns. Outputs are taken in blocks of rows, each multiplied with the columns
it needs: a fraction of the dense arithmetic, still at the speed of matrix products. Shapes: n crops, S output pixels, L window
pixels, C channels, K weights per output pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinodomain.views.resample import BLUR_REACH, Filter, Taps, num_taps, taps

_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Output rows first..last of one axis of one crop, from columns low..high.

    Attributes:
        first: First row.
        last: One past the last row.
        low: First column.
        high: One past the last column.
        matrix: [last - first, high - low] float32.
    """

    first: int
    last: int
    low: int
    high: int
    matrix: Tensor


Band = list[Block]


def bands(box: Tensor, flip: Tensor, sigma: Tensor, *, size: int, kind: Filter) -> list[Band]:
    """Banded matrices that crop, resize, flip and blur one axis of several crops.

    Args:
        box: [n, 2] start and stop, pixels from each crop's first column.
        flip: [n] bool.
        sigma: [n] blur in output pixels, 0 for none.
        size: S.
        kind: Filter.

    Returns:
        n bands.
    """
    count = num_taps(float((box[:, 1] - box[:, 0]).max()) / size, kind)
    own = taps(box, flip, size=size, kind=kind, count=count)
    lengths = torch.ceil(box[:, 1]).long().tolist()
    found: list[Band] = [[] for _ in lengths]
    for blurred in (False, True):
        rows = torch.nonzero((sigma > 0) == blurred).flatten()
        if len(rows):
            part = Taps(first=own.first[rows], weights=own.weights[rows])
            matrix, low = _blocks(part, sigma[rows] if blurred else None)
            for row, blocks, lows in zip(rows.tolist(), matrix, low.tolist()):
                found[row] = _clip(blocks, lows, size, lengths[row])
    return found


def _blocks(own: Taps, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    """All blocks: [n, blocks, rows, width] float32, and the column each begins at, [n, blocks], which may be negative."""
    size, count = own.weights.shape[1:]
    reach = 0 if sigma is None else math.ceil(BLUR_REACH * float(sigma.max()))
    index = torch.arange(0, size, _BLOCK)[:, None] + torch.arange(-reach, _BLOCK + reach)
    near = index.clamp(0, size - 1)
    first = own.first[:, near]
    low = first.amin(dim=-1)
    column = first - low[..., None]
    matrix = torch.zeros((*first.shape, int(column.max()) + count))
    matrix.scatter_(3, column[..., None] + torch.arange(count), own.weights[:, near])
    return (matrix if sigma is None else torch.matmul(_gauss(index, sigma, size, reach), matrix)), low


def _gauss(index: Tensor, sigma: Tensor, size: int, reach: int) -> Tensor:
    """[n, blocks, rows, rows + 2 reach] normalised blur of each block's rows from their neighbours."""
    offset = (torch.arange(_BLOCK + 2 * reach)[None] - reach - torch.arange(_BLOCK)[:, None]).square().float()
    shape = torch.exp(offset * (-0.5 / sigma.square())[:, None, None])
    shape = shape.masked_fill_(shape < 1e-10, 0.0)[:, None] * ((index >= 0) & (index < size))[None, :, None]
    return shape.div_(shape.sum(dim=-1, keepdim=True).clamp_min_(1e-10))


def _clip(blocks: Tensor, lows: list[int], size: int, length: int) -> Band:
    band = []
    for number, low in enumerate(lows):
        first, start, stop = number * _BLOCK, max(low, 0), min(low + blocks.shape[-1], length)
        last = min(first + _BLOCK, size)
        band.append(Block(first=first, last=last, low=start, high=stop, matrix=blocks[number, : last - first, start - low : stop - low]))
    return band


def contract_window(x: Tensor, own: Sequence[Band], size: int) -> Tensor:
    """Applies one band per axis to one crop.

    Args:
        x: [C, *L] as stored, any strides.
        own: One per axis, in array order.
        size: S.

    Returns:
        [C, *S] float32, a view with channels beside the last axis.
    """
    inner = _beside_last(x)  # so that all products but one in 3-D are plain ones
    out = _last_axis(inner, own[-1], size)
    for axis, band in enumerate(own[:-1]):
        out = _leading_axis(out, band, size) if axis == 0 else _middle_axis(out, band, size)
    return out.movedim(-2, 0)


def _beside_last(x: Tensor) -> Tensor:
    """[C, *L] to [..., C, L] float32 in one pass."""
    x = x.movedim(0, -2)
    return torch.empty(x.shape).copy_(x)


def _last_axis(x: Tensor, band: Band, size: int) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    out = x.new_empty((flat.shape[0], size))
    for block in band:
        torch.mm(flat[:, block.low : block.high], block.matrix.t(), out=out[:, block.first : block.last])
    return out.reshape(*x.shape[:-1], size)


def _leading_axis(x: Tensor, band: Band, size: int) -> Tensor:
    flat = x.reshape(x.shape[0], -1)
    out = x.new_empty((size, flat.shape[1]))
    for block in band:
        torch.mm(block.matrix, flat[block.low : block.high], out=out[block.first : block.last])
    return out.reshape(size, *x.shape[1:])


def _middle_axis(x: Tensor, band: Band, size: int) -> Tensor:
    """The second of three spatial axes, one product per leading index."""
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    out = x.new_empty((x.shape[0], size, flat.shape[2]))
    for block in band:
        part = block.matrix.expand(x.shape[0], -1, -1)
        out[:, block.first : block.last] = torch.bmm(part, flat[:, block.low : block.high])
    return out.reshape(x.shape[0], size, *x.shape[2:])
