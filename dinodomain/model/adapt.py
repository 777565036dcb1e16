"""Fits pretrained tensors to another number of channels, of axes, of pixels per patch and of patches. Pure functions of tensors.

Legend: E width of a token, C channels, p sides of a patch, P patches, H heads of h channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dinodomain.model.positions import Grid, axis_matrix, resample


def fit_channels(kernel: Tensor, count: int, how: Literal["mean", "cycle"]) -> Tensor:
    """A patch kernel for another number of channels, whose response to an image with equal channels stays what it was.

    Args:
        kernel: [E, C, *p].
        count: Channels wanted, N.
        how: ``mean``: each is the mean kernel, scaled by C / N. ``cycle``: channel n takes kernel n mod C, divided by the number of its
            copies (which is a scale of C / N where C divides N); where N is less than C, channel n takes the sum of kernels n, n + N ...

    Returns:
        [E, N, *p].
    """
    old = kernel.shape[1]
    if how == "mean":
        return (kernel.mean(dim=1, keepdim=True) * (old / count)).expand(-1, count, *kernel.shape[2:]).contiguous()
    if count < old:
        return torch.stack([kernel[:, first::count].sum(dim=1) for first in range(count)], dim=1)
    places = torch.arange(count) % old
    copies = torch.bincount(places, minlength=old)[places]
    return kernel[:, places] / copies.view(1, -1, *[1] * (kernel.ndim - 2)).to(kernel.dtype)


def channels_by_name(kernel: Tensor, had: Sequence[str], wanted: Sequence[str], how: Literal["mean", "cycle"]) -> Tensor:
    """A patch kernel whose channels have names, for other channels: each takes its own, a new one what ``fit_channels`` would give it.

    The own kernels keep their mutual proportions and all are scaled alike, by the one factor with which an image of equal channels gives
    the response that it gave wherever all kernels are alike: old count / new count, as in ``fit_channels``.

    Args:
        kernel: [E, C, *p].
        had: Names of its C channels.
        wanted: Names of the N channels wanted.
        how: What a new channel takes, see ``fit_channels``: ``mean`` the mean kernel, ``cycle`` new channel k the kernel k mod C.

    Returns:
        [E, N, *p].
    """
    mean, new = kernel.mean(dim=1), [name for name in wanted if name not in had]
    other = {name: mean if how == "mean" else kernel[:, place % len(had)] for place, name in enumerate(new)}
    picked = [kernel[:, list(had).index(name)] if name in had else other[name] for name in wanted]
    scale = 1.0 if len(had) == len(wanted) else len(had) / len(wanted)
    return torch.stack(picked, dim=1) * scale


def for_any_channels(kernel: Tensor, bias: Tensor, told: Tensor) -> dict[str, Tensor]:
    """A patch embedding with a kernel for each channel as one that is told its channels, by the names inside ``WavelengthPatchEmbed``.

    All channels share the sum of the kernels, attention begins as their mean (a query of 0), value and output pass everything on, and
    the bias takes back what the fresh embeddings of channels add. So equal channels give the response that they gave.

    Args:
        kernel: [E, C, *p].
        bias: [E].
        told: [N, E] embeddings of the network's channels.
    """
    unit = torch.eye(len(kernel))
    shared = {"proj.weight": kernel.sum(dim=1, keepdim=True), "out.bias": bias - told.mean(0)}
    return {**shared, "value.weight": unit, "out.weight": unit.clone(), "query": torch.zeros(())}


def fit_depth(kernel: Tensor, depth: int) -> Tensor:
    """A 2-D patch kernel as a 3-D one: repeated along depth and divided by it (Carreira 2017, "I3D", section 2.2).

    A volume that does not change along its first axis gives the response of its slices.

    Args:
        kernel: [E, C, y, x].
        depth: Pixels of a patch along z.

    Returns:
        [E, C, depth, y, x].
    """
    return (kernel / depth).unsqueeze(2).expand(-1, -1, depth, -1, -1).contiguous()


def fit_patch(kernel: Tensor, patch: Grid) -> Tensor:
    """A patch kernel for patches of another size (Beyer 2023, "FlexiViT", equation 4: w' = pinv(B^T) w, with B the resize of patches).

    The new kernel's response to resized patches B x is the old one's to x: exactly where patches grow, in the least squares where they
    shrink. A plain resize of kernels changes the size of responses with the number of pixels instead. B is separable, so one small
    pseudo-inverse per axis does it.

    Args:
        kernel: [E, C, *p].
        patch: Wanted sides.

    Returns:
        [E, C, *patch].
    """
    fitted = kernel.double()
    for axis, (old, new) in enumerate(zip(kernel.shape[2:], patch, strict=True)):
        if old != new:
            fitted = torch.tensordot(_inverse(old, new), fitted, dims=([1], [axis + 2])).movedim(0, axis + 2)
    return fitted.to(kernel.dtype).contiguous()


def fit_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions of another grid; those of an image stand for every slice of a volume.

    Args:
        positions: [1, P, E], row-major over ``old``.
        old: Their grid.
        new: Wanted grid, of as many axes or one more in front.

    Returns:
        [1, P', E].
    """
    flat = resample(positions, old, new[len(new) - len(old) :])
    return flat if len(old) == len(new) else flat.repeat(1, math.prod(new[: len(new) - len(old)]), 1)


def turn_for_volumes(matrix: Tensor, heads: int) -> Tensor:
    """Queries, keys and values that were learned with 2-D rotary positions, their channels in the order that 3-D ones turn.

    Rotary positions turn h / 4 pairs of channels by each of two axes, or h / 6 by each of three, so not every pair can keep its axis and
    frequency. Each pair that the volume turns by y or x is given the image's pair of that axis with the nearest frequency; those left
    over go to z and to the pairs that are not turned. Queries and keys move alike, so what they say of content stays exactly.

    Args:
        matrix: [3E, ...] weight or bias of query, key and value.
        heads: H.
    """
    width = len(matrix) // 3 // heads
    order = torch.tensor(pair_order(width // 2))
    channels = torch.cat([order, order + width // 2])
    query, key, value = matrix.chunk(3)
    moved = [part.reshape(heads, width, *part.shape[1:])[:, channels].flatten(0, 1) for part in (query, key)]
    return torch.cat([*moved, value])


def pair_order(pairs: int) -> list[int]:
    """For each pair of a volume's head, in the order z, y, x, rest, the image's pair (in the order y, x) that it takes."""
    flat, deep = pairs // 2, pairs // 3
    nearest = [round(place * flat / deep) for place in range(deep)]
    kept = [*nearest, *(flat + place for place in nearest)]
    left = [pair for pair in range(pairs) if pair not in kept]
    return [*left[:deep], *kept, *left[deep:]]


@functools.lru_cache(maxsize=32)
def _inverse(old: int, new: int) -> Tensor:
    """[new, old] pinv(B^T) of the antialiased bilinear resize B [new, old] of one axis, in float64."""
    inverse: Tensor = torch.linalg.pinv(axis_matrix(old, new, "bilinear", torch.device("cpu")).double().T)
    return inverse
