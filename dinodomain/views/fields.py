"""Random fields that intensity operations share: smooth ones over a crop, and the gamma distributed power of radar speckle.

All come from the counter hash and the table of normal numbers (``noise``), so they are the same on every device and in every batch.
Shapes: n rows, S output pixels along each of D spatial axes, L looks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from dinodomain.views.noise import noise
from dinodomain.views.normalise import constants
from dinodomain.views.resample import contract


def node_values(key: Tensor, nodes: int, ndim: int) -> Tensor:
    """[n, nodes, ..., nodes] independent standard normal numbers, D axes.

    Args:
        key: [n] int64.
        nodes: Along each axis.
        ndim: D.
    """
    return noise(key, nodes**ndim).reshape(-1, *(nodes,) * ndim)


@lru_cache(maxsize=64)
def axis_weights(size: int, nodes: int, device: torch.device) -> Tensor:
    """[S, nodes] float32 cubic B-spline weights; the first node lies on the first edge of the crop, the last on the last.

    The squares of each row sum to one, so that independent nodes of variance one give every pixel variance one.
    """
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size * (nodes - 1)
    distance = (place[:, None] - torch.arange(nodes)).abs()
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp_min(0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    return (weights / weights.square().sum(dim=1, keepdim=True).sqrt()).float().to(device)


def smooth_field(key: Tensor, *, nodes: int, size: int, ndim: int) -> Tensor:
    """A Gaussian random field: mean 0 and standard deviation 1 at every pixel, over many draws.

    A cubic B-spline through a coarse lattice, the form in which N4ITK estimates bias fields (Tustison et al., 2010, "N4ITK: improved N3
    bias correction", IEEE Transactions on Medical Imaging 29).

    Args:
        key: [n] int64.
        nodes: Lattice points along each axis of the crop.
        size: S.
        ndim: D.

    Returns:
        [n, 1, *S] float32.
    """
    weights = axis_weights(size, nodes, key.device).expand(len(key), -1, -1)
    return contract(node_values(key, nodes, ndim)[..., None], [weights] * ndim)


# --- gamma distribution ----------------------------------------------------------------------------------------------------

_REACH = 4.7
"""Largest standard normal number that the fit covers; the table of noise ends at 4.62."""

_DEGREES = (8, 6)
"""Of the polynomial in the normal number and in 1 / sqrt(looks): at most 0.004 dB from the quantile, for 1 to 3,000 looks."""


def log_gamma_quantile(normal: Tensor, looks: Tensor) -> Tensor:
    """Natural logarithm of the gamma number of mean one that has the same cumulative probability as a standard normal number.

    Exact, slow, and on the host only. Each tail is solved on its own side, where the probability is small.

    Args:
        normal: [...] float64.
        looks: [...] float64 shape of the distribution, 1 or more.
    """
    found, lower = torch.empty_like(normal), normal < 0
    found[lower] = _tail_quantile(torch.special.ndtr(normal[lower]), looks[lower], lower=True)
    found[~lower] = _tail_quantile(torch.special.ndtr(-normal[~lower]), looks[~lower], lower=False)
    return found


def _tail_quantile(probability: Tensor, looks: Tensor, *, lower: bool) -> Tensor:
    """[m] t where the tail of the gamma distribution beyond looks * exp(t) has a probability: halves an interval, then Newton's steps."""
    tail, sign = (torch.special.gammainc, 1.0) if lower else (torch.special.gammaincc, -1.0)
    low, high = torch.full_like(looks, -20.0), torch.full_like(looks, 4.0)
    for _ in range(14):
        middle = (low + high) / 2
        too_low = sign * tail(looks, looks * middle.exp()) < sign * probability
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    t = (low + high) / 2
    for _ in range(4):
        power, mass = looks * t.exp(), tail(looks, looks * t.exp())
        density = (looks * power.log() - power - torch.lgamma(looks)).exp()
        t = t - sign * (mass / probability).log() * mass / density
    return t


@lru_cache(maxsize=1)
def _fit() -> Tensor:
    """[1 + degree in z, 1 + degree in u] float64: u * sum of m[i, j] z^i u^j is the logarithm of the gamma number, u = 1 / sqrt(looks).

    Least squares at Chebyshev points, whose largest error is close to the smallest possible.
    """
    z, u = _REACH * _chebyshev(4 * _DEGREES[0]), 0.505 + 0.495 * _chebyshev(3 * _DEGREES[1])
    wanted = log_gamma_quantile(z.expand(len(u), -1), (u**-2)[:, None].expand(-1, len(z))) / u[:, None]
    per_z = torch.linalg.lstsq(_powers(u, _DEGREES[1]), wanted).solution
    scaled = torch.linalg.lstsq(_powers(z / _REACH, _DEGREES[0]), per_z.T).solution
    weights: Tensor = scaled / _REACH ** torch.arange(_DEGREES[0] + 1, dtype=torch.float64)[:, None]
    return weights


def _chebyshev(count: int) -> Tensor:
    return torch.cos((torch.arange(count, dtype=torch.float64) + 0.5) * math.pi / count)


def _powers(x: Tensor, degree: int) -> Tensor:
    powers: Tensor = x[..., None] ** torch.arange(degree + 1, dtype=torch.float64)
    return powers


def log_gamma_noise(key: Tensor, looks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Natural logarithms of independent gamma numbers of mean one and variance 1 / looks.

    The quantile of a normal number, as a polynomial. The usual cube of a normal number (Wilson and Hilferty, 1931) is a part of this cost,
    but misses a single look by many decibels where power is low; a table would have to be read for every pixel.

    Args:
        key: [n] int64.
        looks: [n], 1 or more; infinity gives exactly 0.
        shape: Of the numbers of one row.

    Returns:
        [n, *shape] float32.
    """
    normal = noise(key, math.prod(shape)).reshape(-1, *shape)
    u = looks.double().rsqrt()
    fit = constants(tuple(_fit().flatten().tolist()), u.device).reshape(_DEGREES[0] + 1, -1)
    exact = torch.zeros((len(key), _DEGREES[0] + 1), dtype=torch.float64, device=u.device)
    for column in reversed(fit.unbind(dim=1)):  # not as a product of matrices, whose order of addition may depend on n
        exact = exact * u[:, None] + column
    weights = (exact * u[:, None]).float().reshape(-1, _DEGREES[0] + 1, *(1,) * len(shape))
    total = (normal * weights[:, -1]).add_(weights[:, -2])
    for place in range(_DEGREES[0] - 2, -1, -1):
        torch.addcmul(weights[:, place], total, normal, out=total)
    return total
