"""Resampling matrices on a CPU: one crop at a time, on its own window, and only where a matrix is not zero.

A row of a resampling matrix is zero but for a few columns. Outputs are taken in blocks of rows, each multiplied with the columns
it needs: a fraction of the dense arithmetic, still at the speed of matrix products. Shapes: n crops, S output pixels, L window
pixels, C channels, K weights per output pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinodomain.views.resample import BLUR_REACH, Filter, Taps, gaussian, num_taps, taps

BLOCK = {2: 32, 3: 48}
"""Rows of a block, by number of axes: fewer waste less arithmetic on zeros, more waste less on calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The matrix of one axis of one crop, in blocks of rows.

    Attributes:
        matrices: [blocks, rows, width] float32, of which each block uses a part.
        size: S.
        rows: Rows of each block but the last.
        low: First column of each block.
        high: One past its last column.
        skip: Columns of its matrix before ``low``.
    """

    matrices: Tensor
    size: int
    rows: int
    low: list[int]
    high: list[int]
    skip: list[int]

    def blocks(self, copies: int | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """First column, number of columns and matrix of each block.

        The matrix is a view, made in one call, because slicing costs as much as a product: [columns, rows], to multiply from the right,
        or with ``copies`` [copies, rows, columns], to multiply a batch from the left.
        """
        pitch, width, _ = self.matrices.stride()
        begin = self.matrices.storage_offset()
        for number, (low, high, skip) in enumerate(zip(self.low, self.high, self.skip)):
            rows, columns, offset = min(self.rows, self.size - number * self.rows), high - low, begin + number * pitch + skip
            if copies is None:
                yield low, columns, self.matrices.as_strided((columns, rows), (1, width), offset)
            else:
                yield low, columns, self.matrices.as_strided((copies, rows, columns), (0, width, 1), offset)


def bands(box: Tensor, flip: Tensor, sigma: Tensor, *, size: int, kind: Filter, block: int) -> list[Band]:
    """Banded matrices that crop, resize, flip and blur one axis of several crops.

    Args:
        box: [n, 2] start and stop, pixels from each crop's first column.
        flip: [n] bool.
        sigma: [n] blur in output pixels, 0 for none.
        size: S.
        kind: Filter.
        block: Rows of a block.

    Returns:
        n bands.
    """
    scale = (box[:, 1] - box[:, 0]) / size
    own = taps(box, flip, size=size, kind=kind, count=num_taps(float(scale.max()), kind))
    length = torch.ceil(box[:, 1]).long()[:, None]
    found: list[Band | None] = [None] * len(box)
    for blurred in (False, True):
        rows = torch.nonzero((sigma > 0) == blurred).flatten()
        if len(rows):
            part = Taps(first=own.first[rows], weights=own.weights[rows])
            matrices, base = _blocks(part, sigma[rows] if blurred else None, block)
            count = torch.tensor([num_taps(s, kind) for s in scale[rows].tolist()])
            low, high = _reach(part.first, sigma[rows], count, base.shape[1], block)
            low, high = low.clamp_min(0), high.minimum(length[rows])
            columns = zip(low.tolist(), high.tolist(), (low - base).tolist())
            for row, own_matrices, (first, last, skip) in zip(rows.tolist(), matrices.unbind(), columns):
                found[row] = Band(matrices=own_matrices, size=size, rows=block, low=first, high=last, skip=skip)
    return [band for band in found if band is not None]


def blur_bands(sigma: Tensor, size: int, block: int = BLOCK[2]) -> list[Band]:
    """Banded matrices that blur one axis of several crops of the output's size.

    Args:
        sigma: [n] in pixels; 0 gives the identity.
        size: S.
        block: Rows of a block.

    Returns:
        n bands.
    """
    reach = math.ceil(BLUR_REACH * float(sigma.max()))
    begin = torch.arange(0, size, block)
    matrices = _gauss(begin[:, None] + torch.arange(-reach, block + reach), sigma, size, reach)
    own = torch.ceil(BLUR_REACH * sigma).long()[:, None]
    low, high = (begin - own).clamp_min(0), (begin + block + own).clamp_max(size)
    columns = zip(matrices.unbind(), low.tolist(), high.tolist(), (low - (begin - reach)).tolist())
    return [Band(matrices=one, size=size, rows=block, low=first, high=last, skip=skip) for one, first, last, skip in columns]


def _reach(first: Tensor, sigma: Tensor, count: Tensor, blocks: int, block: int) -> tuple[Tensor, Tensor]:
    """[n, blocks] first and one past the last column that each crop's own filter and blur touch; others of the run reach further."""
    blur = torch.ceil(BLUR_REACH * sigma).long()[:, None]
    begin = torch.arange(blocks) * block
    top = (begin - blur).clamp_min(0)
    bottom = (begin + block - 1 + blur).clamp_max(first.shape[1] - 1)
    ends = torch.stack([first.gather(1, top), first.gather(1, bottom)])
    return ends.amin(dim=0), ends.amax(dim=0) + count[:, None]


def _blocks(own: Taps, sigma: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """All blocks: [n, blocks, rows, width] float32, and the column each begins at, [n, blocks], which may be negative."""
    size, count = own.weights.shape[1:]
    reach = 0 if sigma is None else math.ceil(BLUR_REACH * float(sigma.max()))
    index = torch.arange(0, size, block)[:, None] + torch.arange(-reach, block + reach)
    near = index.clamp(0, size - 1)
    first = own.first[:, near]
    low = first.amin(dim=-1)
    column = first - low[..., None]
    matrix = torch.zeros((*first.shape, int(column.max()) + count))
    matrix.scatter_(3, column[..., None] + torch.arange(count), own.weights[:, near])
    return (matrix if sigma is None else torch.matmul(_gauss(index, sigma, size, reach), matrix)), low


def _gauss(index: Tensor, sigma: Tensor, size: int, reach: int) -> Tensor:
    """[n, blocks, rows, rows + 2 reach] normalised blur of each block's rows from their neighbours.

    Sums run outwards from the centre, so that a row's bits do not depend on the reach of others.
    """
    block = index.shape[1] - 2 * reach
    offset = (torch.arange(block + 2 * reach)[None] - reach - torch.arange(block)[:, None]).square().float()
    half = torch.cumsum(_cut_gaussian(torch.arange(size).square().float(), sigma), dim=1)
    mass = half + half.flip(1) - 1.0
    rows = index[:, reach : reach + block].clamp_max(size - 1)
    inside = ((index >= 0) & (index < size))[None, :, None] / mass[:, rows][..., None]
    return inside.mul_(_cut_gaussian(offset, sigma)[:, None])


def _cut_gaussian(square: Tensor, sigma: Tensor) -> Tensor:
    """[n, ...] as ``gaussian``, 0 beyond the reach of each sigma."""
    own = torch.ceil(BLUR_REACH * sigma).square().reshape(-1, *(1,) * square.ndim)
    return gaussian(square, sigma).mul_(square <= own)


class Scratch:
    """Memory for what lies between input and output, used for one crop after another: fresh memory costs page faults."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, role: str, *shape: int) -> Tensor:
        """Float32 of this shape; it holds anything, and the next call for the same role takes it again."""
        count = math.prod(shape)
        held = self._held.get(role)
        if held is None or held.numel() < count:
            held = self._held[role] = empty((count,), torch.device("cpu"))
        return held[:count].view(shape)


def empty(shape: Sequence[int], device: torch.device) -> Tensor:
    """Float32 memory of any content.

    On a CPU numpy asks for it, because numpy tells the system to use huge pages: first writes to fresh pages of 4 KiB take two to six
    times as long.
    """
    return torch.empty(shape, device=device) if device.type != "cpu" else torch.from_numpy(np.empty(shape, np.float32))


def contract_window(crop: Tensor, own: Sequence[Band], out: Tensor, scratch: Scratch) -> None:
    """Applies one band per axis to one crop.

    Args:
        crop: [C, *L] of any type.
        own: One per axis, in array order.
        out: [C, *S] float32, contiguous; written.
        scratch: For what lies between.
    """
    channels, *size = out.shape
    extent = crop.shape[1:]
    crop = scratch("crop", *crop.shape).copy_(crop)
    if len(extent) == 2:
        rows = scratch("rows", channels, size[0], extent[1])
        _left(own[0], crop, rows)
        _right(own[1], rows.flatten(0, 1), out.view(channels * size[0], size[1]))
        return
    depth, height = extent[:2]
    columns = scratch("columns", channels * depth * height, size[2])
    _right(own[2], crop.view(-1, extent[2]), columns)
    slices = scratch("rows", channels, size[0], height * size[2])
    _left(own[0], columns.view(channels, depth, height * size[2]), slices)
    _left(own[1], slices.view(channels * size[0], height, size[2]), out.view(channels * size[0], size[1], size[2]))


def _right(band: Band, x: Tensor, out: Tensor) -> None:
    """[m, L] to [m, S]."""
    for (low, columns, matrix), part in zip(band.blocks(), torch.split(out, band.rows, dim=1)):
        torch.mm(x.narrow(1, low, columns), matrix, out=part)


def _left(band: Band, x: Tensor, out: Tensor) -> None:
    """[m, L, k] to [m, S, k]."""
    for (low, columns, matrix), part in zip(band.blocks(len(x)), torch.split(out, band.rows, dim=1)):
        torch.bmm(matrix, x.narrow(1, low, columns), out=part)
