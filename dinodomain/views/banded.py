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

from dinodomain.views.resample import BLUR_REACH, Filter, Taps, gaussian, num_taps, taps

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
    scale = (box[:, 1] - box[:, 0]) / size
    own = taps(box, flip, size=size, kind=kind, count=num_taps(float(scale.max()), kind))
    length = torch.ceil(box[:, 1]).long()[:, None]
    found: list[Band] = [[] for _ in range(len(box))]
    for blurred in (False, True):
        rows = torch.nonzero((sigma > 0) == blurred).flatten()
        if len(rows):
            part = Taps(first=own.first[rows], weights=own.weights[rows])
            matrix, base = _blocks(part, sigma[rows] if blurred else None)
            low, high = _reach(part.first, sigma[rows], torch.tensor([num_taps(s, kind) for s in scale[rows].tolist()]), base.shape[1])
            low, high = low.clamp_min(0), high.minimum(length[rows])
            for row, blocks, *columns in zip(rows.tolist(), matrix, base.tolist(), low.tolist(), high.tolist()):
                found[row] = _cut(blocks, *columns, size=size)
    return found


def _reach(first: Tensor, sigma: Tensor, count: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """[n, blocks] first and one past the last column that each crop's own filter and blur touch; others of the run reach further."""
    blur = torch.ceil(BLUR_REACH * sigma).long()[:, None]
    begin = torch.arange(blocks) * _BLOCK
    top = (begin - blur).clamp_min(0)
    bottom = (begin + _BLOCK - 1 + blur).clamp_max(first.shape[1] - 1)
    ends = torch.stack([first.gather(1, top), first.gather(1, bottom)])
    return ends.amin(dim=0), ends.amax(dim=0) + count[:, None]


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
    shape = gaussian(offset, sigma)[:, None] * ((index >= 0) & (index < size))[None, :, None]
    return shape.div_(shape.sum(dim=-1, keepdim=True).clamp_min_(1e-10))


def _cut(blocks: Tensor, base: list[int], low: list[int], high: list[int], *, size: int) -> Band:
    """The blocks of one crop, columns low..high. One strided view each: slicing costs as much as a product."""
    band, (pitch, width, _) = [], blocks.stride()
    for number, (origin, start, stop) in enumerate(zip(base, low, high)):
        first = number * _BLOCK
        last = min(first + _BLOCK, size)
        offset = blocks.storage_offset() + number * pitch + start - origin
        matrix = blocks.as_strided((last - first, stop - start), (width, 1), offset)
        band.append(Block(first=first, last=last, low=start, high=stop, matrix=matrix))
    return band


def contract_window(crop: Tensor, own: Sequence[Band], out: Tensor) -> None:
    """Applies one band per axis to one crop.

    Args:
        crop: [C, *L] float32; the last axis has unit stride.
        own: One per axis, in array order.
        out: [C, *S] float32, contiguous; written.
    """
    channels, size = crop.shape[0], out.shape[-1]
    if crop.ndim == 3:
        rows = crop.new_empty((channels, size, crop.shape[2]))
        _left(own[0], crop, rows)
        _right(own[1], rows.flatten(0, 1), out.view(channels * size, size))
        return
    depth, height = crop.shape[1:3]
    columns = crop.new_empty((channels * depth * height, size))
    _right(own[2], crop.reshape(-1, crop.shape[3]), columns)
    slices = crop.new_empty((channels, size, height * size))
    _left(own[0], columns.view(channels, depth, height * size), slices)
    _left(own[1], slices.view(channels * size, height, size), out.view(channels * size, size, size))


def _right(band: Band, x: Tensor, out: Tensor) -> None:
    """[m, L] to [m, S]."""
    for block in band:
        part = x.narrow(1, block.low, block.high - block.low)
        torch.mm(part, block.matrix.t(), out=out.narrow(1, block.first, block.last - block.first))


def _left(band: Band, x: Tensor, out: Tensor) -> None:
    """[m, L, k] to [m, S, k]."""
    for block in band:
        matrix = block.matrix.expand(x.shape[0], -1, -1)
        part = x.narrow(1, block.low, block.high - block.low)
        torch.bmm(matrix, part, out=out.narrow(1, block.first, block.last - block.first))
