"""Resampling as small matrices: crop, antialiased resize, flip and Gaussian blur along one axis are one linear map.

Shapes: n rows, L input pixels, S output pixels, D spatial axes. Weights are those of PIL and of torch's ``antialias=True``: the
filter is stretched by the scale when it shrinks, pixels outside the box have no weight, and each row sums to one. Blur is a
normalised convolution: beyond the crop nothing is known, so nothing is made up. Everything is float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Literal["linear", "cubic"]

RADIUS = {"linear": 1, "cubic": 2}
"""Reach of a filter in input pixels, or in output pixels where it shrinks."""

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
    return math.floor(2 * RADIUS[kind] * max(scale, 1.0) + 1e-6) + 1


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
    first = torch.ceil(centre - RADIUS[kind] * stretch)
    step = torch.arange(count, device=box.device, dtype=torch.float32)
    # Distances from the first weight, not from pixel 0: float32 is then exact to 1e-6 pixel however long the axis.
    distance = (step - (centre - first).float()[..., None]).div_(stretch.float()[..., None])
    weights = filter_weights_(distance, kind)
    low, high = torch.floor(box[:, :1]) - first, torch.ceil(box[:, 1:]) - first
    weights.mul_((step >= low.float()[..., None]) & (step < high.float()[..., None]))
    # A running sum, because the bits of a plain one depend on how many zeros follow.
    return Taps(first=first.long(), weights=weights.div_(weights.cumsum(dim=-1)[..., -1:]))


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
    weights = gaussian(_squares(size, sigma.device), sigma)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


@lru_cache(maxsize=32)
def _squares(size: int, device: torch.device) -> Tensor:
    """[S, S] squared distances, made once for a device."""
    index = torch.arange(size, device=device, dtype=torch.float32)
    return (index[:, None] - index[None]).square_()


def gaussian(square: Tensor, sigma: Tensor) -> Tensor:
    """[n, ...] exp(-square / (2 sigma^2)), 0 below 1e-10: denormal numbers make a CPU's products ten times slower, exp eighty.

    Args:
        square: [...] squared distances.
        sigma: [n]; 0 gives 1 at distance 0 and 0 elsewhere.
    """
    rate = sigma.float().clamp_min(1e-3).pow_(-2).mul_(-0.5).reshape(-1, *(1,) * square.ndim)
    return F.threshold((square * rate).clamp_min_(_LEAST - 1).exp_(), math.exp(_LEAST), 0.0, inplace=True)


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


def filter_weights_(distance: Tensor, kind: Filter) -> Tensor:
    """Weights of a filter in place of signed distances from its centre.

    The cubic one is that of Keys, 1981, "Cubic convolution interpolation for digital image processing", equation 15, with a = -0.5. With
    v = 1 - |d| its two branches are v (1 + v)^2 / 2 down to v = -1, and v^2 - 2 v^3 more where v is positive: no choice between
    branches, so few passes.
    """
    near = distance.abs_().neg_().add_(1.0)
    if kind == "linear":
        return near.clamp_min_(0.0)
    inner = near.clamp_min(0.0)
    square = inner.square()
    outer = (near + 1.0).clamp_min_(0.0).square_()
    return square.addcmul_(square, inner, value=-2.0).addcmul_(outer, near, value=0.5)
