"""Images and volumes to patch tokens.

The projection keeps the parameters of a strided convolution (``proj.weight`` [E, C, patch, ...]) but is computed as one matrix
product over unfolded patches, always in full float32: bfloat16 has 8 bits of mantissa and would throw away half of a 16-bit scan,
TF32, which a convolution on an accelerator silently falls to, has 11. Gradients of weights are sums over many patches and may be TF32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.errors import UserError
from dinodomain.exact import full_float32
from dinodomain.model.positions import Grid, sides
from dinodomain.types import Acquisition


def grid_of(size: Grid, patch: Grid) -> Grid:
    """Patch tokens per axis of an image.

    Args:
        size: Image sides in pixels, in array order.
        patch: Sides of a patch in pixels, one per axis.

    Raises:
        UserError: A side is not a positive multiple of the patch.
    """
    if any(side < own or side % own for side, own in zip(size, patch, strict=True)):
        lower = "x".join(str(max(side // own, 1) * own) for side, own in zip(size, patch))
        told = str(patch[0]) if len(set(patch)) == 1 else "x".join(map(str, patch))
        problem = f"{'x'.join(map(str, size))} is not a multiple of model.patch={told}"
        raise UserError("image size", problem, allowed=f"multiples of {told}, for example {lower}")
    return tuple(side // own for side, own in zip(size, patch))


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches; a kernel of its own for each channel.

    Args:
        in_channels: C.
        dim: Token width E.
        patch: Sides of a patch in pixels, one per axis, or one for all.
        ndim: 2 or 3 spatial axes.
        channels: Names of the channels; empty where nobody named them.
    """

    def __init__(self, in_channels: int, dim: int, patch: int | Grid, ndim: int, channels: Sequence[str] = ()) -> None:
        super().__init__()
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.patch, self.ndim, self.channels = sides(patch, ndim, "model.patch"), ndim, tuple(channels)
        own: Any = self.patch
        # Default initialisation: uniform with variance 1 / (3 fan_in), as in DINO and timm.
        self.proj: nn.Conv2d | nn.Conv3d = convolution(in_channels, dim, kernel_size=own, stride=own)

    def grid(self, x: Tensor) -> Grid:
        """Checks an input [N, C, *size] and gives its token grid.

        Raises:
            UserError: Wrong number of axes or channels, or a side that is not a multiple of the patch.
        """
        if x.ndim != self.ndim + 2 or x.shape[1] != self.proj.in_channels:
            axes = "Z, Y, X" if self.ndim == 3 else "Y, X"
            raise UserError("image", f"has shape {tuple(x.shape)}", allowed=f"[N, {self.proj.in_channels}, {axes}]")
        return grid_of(tuple(x.shape[2:]), self.patch)

    def forward(self, x: Tensor, about: Acquisition | None = None) -> Tensor:
        """[N, C, *size] to [N, P, E] in the weights' type (float32 in training), row-major over the grid.

        Args:
            x: Images in the network's range.
            about: ``channels`` may name those of ``x`` in another order than the network's. ``kept`` is not used: a lost channel holds
                its mean.

        Raises:
            UserError: Other channels than the network's.
        """
        x = self._ordered(x, () if about is None else about.channels)
        grid, weight, bias = self.grid(x), self.proj.weight.flatten(1), self.proj.bias
        assert bias is not None
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False), full_float32():
            patches = unfold(x.to(wide), grid, self.patch).flatten(2)
            tokens = functional.linear(patches, weight.to(wide), bias.to(wide))
        return tokens.to(weight.dtype)

    def _ordered(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Channels in the network's order."""
        if not names or tuple(names) == self.channels:
            return x
        if sorted(names) != sorted(self.channels):
            own = f"{', '.join(self.channels)}, in any order" if self.channels else "none: this network was not told the names of its own"
            remedy = "model.channels=wavelength trains a network that takes any subset" if self.channels else None
            raise UserError("about.channels", f"are {', '.join(names)}", allowed=own, remedy=remedy)
        return x[:, [list(names).index(name) for name in self.channels]]


def unfold(x: Tensor, grid: Grid, patch: Grid) -> Tensor:
    """The pixels of each patch.

    Args:
        x: [N, C, *size].
        grid: Patches per axis.
        patch: Sides of a patch.

    Returns:
        [N, P, C, Q]; P is row-major over the grid, Q in the order of a convolution's kernel.
    """
    count, channels, axes = *x.shape[:2], len(grid)
    split = x.reshape(count, channels, *(extent for pair in zip(grid, patch, strict=True) for extent in pair))
    places, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return split.permute(0, *places, 1, *inside).reshape(count, math.prod(grid), channels, math.prod(patch))
