"""Resampling as small matrices: crop, antialiased resize, flip and Gaussian blur along one axis are one linear map.

Shapes: n rows, L input pixels, S output pixels, D spatial axes. Weights are those of PIL and of torch's ``antialias=True``: the
filter is stretched by the scale when it shrinks, pixels outside the box have no weight, and each row sums to one. Blur is a
normalised convolution: beyond the crop nothing is known, so nothing is made up. Everything is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Filter = Literal["linear", "cubic"]

_RADIUS = {"linear": 1, "cubic": 2}

_LEAST = math.log(1e-10)

BLUR_REACH = 5.0
"""Sigmas at which a truncated Gaussian ends; 6e-7 of its mass lies beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """The non-zero weights of one axis.

    Attributes:
        first: [n, S] int64 input pixel of the first weight; may lie outside the input, where weights are 0.
        weights: [n, S, K] float32, sum to one.
    """

    first: Tensor
    weights: Tensor


def num_taps(scale: float, kind: Filter) -> int:
    """Weights that a filter can touch at input pixels per output pixel."""
    return math.floor(2 * _RADIUS[kind] * max(scale, 1.0) + 1e-6) + 1


def taps(box: Tensor, flip: Tensor, *, size: int, kind: Filter, count: int) -> Taps:
    """Weights that crop, resize and flip one axis.

    Args:
        box: [n, 2] start and stop in input pixels.
        flip: [n] bool.
        size: S.
        kind: ``linear`` (triangle) or ``cubic`` (Keys, a = -0.5).
        count: K, at least ``num_taps`` of the largest scale.
    """
    box = box.double()
    scale = (box[:, 1:] - box[:, :1]) / size
    stretch = scale.clamp_min(1.0)
    out = torch.arange(size, device=box.device, dtype=torch.float64)[None]
    out = torch.where(flip[:, None], size - 1 - out, out)
    centre = box[:, :1] + (out + 0.5) * scale - 0.5
    first = torch.ceil(centre - _RADIUS[kind] * stretch)
    step = torch.arange(count, device=box.device, dtype=torch.float32)
    # Distances from the first weight, not from pixel 0: float32 is then exact to 1e-6 pixel however long the axis.
    distance = (step - (centre - first).float()[..., None]).div_(stretch.float()[..., None]).abs_()
    weights = _triangle(distance) if kind == "linear" else _keys(distance)
    low, high = torch.floor(box[:, :1]) - first, torch.ceil(box[:, 1:]) - first
    weights.mul_((step >= low.float()[..., None]) & (step < high.float()[..., None]))
    return Taps(first=first.long(), weights=weights.div_(weights.sum(dim=-1, keepdim=True)))


def axis_matrices(box: Tensor, flip: Tensor, *, size: int, length: int, kind: Filter) -> Tensor:
    """Dense matrices of ``taps``; multiply with ``gaussian_matrices`` from the left to blur.

    Args:
        box: [n, 2] start and stop in input pixels.
        flip: [n] bool.
        size: S.
        length: L.
        kind: As in ``taps``.

    Returns:
        [n, S, L] float32, rows sum to one.
    """
    count = num_taps(length / size, kind)  # from the tile, not the boxes: a device would have to be asked for those
    own = taps(box, flip, size=size, kind=kind, count=count)
    # Margins take the weights (all 0) beyond the input, so that no two land on one place.
    matrix = torch.zeros((*own.first.shape, length + 2 * count), device=box.device)
    matrix.scatter_(2, own.first[..., None] + torch.arange(count, 2 * count, device=box.device), own.weights)
    return matrix[..., count : count + length]


def gaussian_matrices(sigma: Tensor, size: int) -> Tensor:
    """Normalised Gaussian convolutions; the identity where sigma is 0.

    Args:
        sigma: [n] in pixels.
        size: S.

    Returns:
        [n, S, S] float32, rows sum to one.
    """
    index = torch.arange(size, device=sigma.device, dtype=torch.float32)
    weights = gaussian((index[:, None] - index[None]).square_(), sigma)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def gaussian(square: Tensor, sigma: Tensor) -> Tensor:
    """[n, ...] exp(-square / (2 sigma^2)), 0 below 1e-10: denormal numbers make a CPU's products ten times slower, exp eighty.

    Args:
        square: [...] squared distances.
        sigma: [n]; 0 gives 1 at distance 0 and 0 elsewhere.
    """
    rate = (-0.5 / sigma.float().clamp_min(1e-3).square()).reshape(-1, *(1,) * square.ndim)
    weights = (square * rate).clamp_min_(_LEAST - 1).exp_()
    return weights.masked_fill_(weights < math.exp(_LEAST), 0.0)


def contract(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Applies one matrix per axis to channels-last samples.

    Each product takes the leading axis away and appends the resampled one, so channels come first at the end and
    nothing is copied in between.

    Args:
        x: [n, *L, C] float32.
        matrices: D tensors [n, S, L].

    Returns:
        [n, C, *S] float32.
    """
    rows, channels = x.shape[0], x.shape[-1]
    for matrix in matrices:
        flat = x.reshape(rows, matrix.shape[2], -1)
        x = torch.bmm(flat.transpose(1, 2), matrix.transpose(1, 2)).reshape(rows, *_rest(x, matrix))
    return x.reshape(rows, channels, *(matrix.shape[1] for matrix in matrices))


def _rest(x: Tensor, matrix: Tensor) -> tuple[int, ...]:
    return (*x.shape[2:], matrix.shape[1])


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1.0).clamp_min_(0.0)


def _keys(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys, 1981, "Cubic convolution interpolation for digital image processing", equation 15."""
    near = ((a + 2) * distance - (a + 3)).mul_(distance).mul_(distance).add_(1.0)
    far = ((distance - 5).mul_(distance).add_(8)).mul_(distance).sub_(4).mul_(a)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def blur_image(x: Tensor, sigma: Sequence[float]) -> Tensor:
    """The blur of ``axis_matrices`` on an image that is resized already, as block-banded products.

    A Gaussian ends at five sigma, so each block of rows needs only its neighbours.

    Args:
        x: [C, S, S] float32.
        sigma: Of rows and of columns, in pixels; 0 for none.

    Returns:
        [C, S, S] float32.
    """
    rows = _blur_rows(x, sigma[0]) if sigma[0] > 0 else x
    return _blur_rows(rows.transpose(-1, -2).contiguous(), sigma[1]).transpose(-1, -2) if sigma[1] > 0 else rows


def _blur_rows(x: Tensor, sigma: float, block: int = 32) -> Tensor:
    channels, size, width = x.shape
    reach = max(1, math.ceil(BLUR_REACH * sigma))
    blocks = math.ceil(size / block)
    padded = x.new_zeros((channels, blocks * block + 2 * reach, width))
    padded[:, reach : reach + size] = x
    tiles = padded.as_strided((channels, blocks, block + 2 * reach, width), (padded.stride(0), block * width, width, 1))
    offset = torch.arange(-reach, reach + 1, dtype=torch.float32)
    taps = torch.exp(-0.5 * (offset / sigma).square())
    band = torch.zeros(block, block + 2 * reach)
    band.as_strided((block, 2 * reach + 1), (block + 2 * reach + 1, 1)).copy_(taps.expand(block, -1))
    out = torch.matmul(band, tiles).reshape(channels, blocks * block, width)[:, :size]
    return out.div_(_mass(taps, size, reach)[:, None])


def _mass(taps: Tensor, size: int, reach: int) -> Tensor:
    """[S] sum of the taps that fall on the image."""
    total = torch.cat([taps.new_zeros(1), torch.cumsum(taps.double(), 0).float()])
    index = torch.arange(size)
    low, high = (reach - index).clamp_min(0), (reach + size - index).clamp_max(2 * reach + 1)
    return total[high] - total[low]
