"""Images and volumes to patch tokens.

The projection keeps the parameters of a strided convolution (``proj.weight`` [E, C, patch, ...]) but is computed as one matrix
product over unfolded patches, always in float32: bfloat16 has 8 bits of mantissa and would throw away half of a 16-bit scan,
and a convolution on an accelerator silently falls to TF32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.errors import UserError
from dinodomain.model.positions import Grid


def grid_of(size: Grid, patch: int) -> Grid:
    """Patch tokens per axis of an image.

    Args:
        size: Image sides in pixels, in array order.
        patch: Side of a patch in pixels.

    Raises:
        UserError: A side is not a positive multiple of the patch.
    """
    if any(side < patch or side % patch for side in size):
        lower = "x".join(str(max(side // patch, 1) * patch) for side in size)
        problem = f"{'x'.join(map(str, size))} is not a multiple of model.patch={patch}"
        raise UserError("image size", problem, allowed=f"multiples of {patch}, for example {lower}")
    return tuple(side // patch for side in size)


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches.

    Args:
        in_channels: C.
        dim: Token width E.
        patch: Side of a patch in pixels.
        ndim: 2 or 3 spatial axes.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, ndim: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        # Default initialisation: uniform with variance 1 / (3 fan_in), as in DINO and timm.
        self.proj: nn.Conv2d | nn.Conv3d = convolution(in_channels, dim, kernel_size=patch, stride=patch)
        self.patch, self.ndim = patch, ndim

    def grid(self, x: Tensor) -> Grid:
        """Checks an input [N, C, *size] and gives its token grid.

        Raises:
            UserError: Wrong number of axes or channels, or a side that is not a multiple of the patch.
        """
        if x.ndim != self.ndim + 2 or x.shape[1] != self.proj.in_channels:
            axes = "Z, Y, X" if self.ndim == 3 else "Y, X"
            raise UserError("image", f"has shape {tuple(x.shape)}", allowed=f"[N, {self.proj.in_channels}, {axes}]")
        return grid_of(tuple(x.shape[2:]), self.patch)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, *size] to [N, P, E] in the weights' type (float32 in training), row-major over the grid."""
        grid, weight, bias = self.grid(x), self.proj.weight.flatten(1), self.proj.bias
        assert bias is not None
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            tokens = functional.linear(self._unfold(x.to(wide), grid), weight.to(wide), bias.to(wide))
        return tokens.to(weight.dtype)

    def _unfold(self, x: Tensor, grid: Grid) -> Tensor:
        """[N, P, C * patch^ndim]; the order inside a patch is that of the convolution's kernel."""
        count, channels = x.shape[:2]
        split = x.reshape(count, channels, *(extent for side in grid for extent in (side, self.patch)))
        places, inside = range(2, 2 + 2 * self.ndim, 2), range(3, 3 + 2 * self.ndim, 2)
        return split.permute(0, *places, 1, *inside).reshape(count, math.prod(grid), channels * self.patch**self.ndim)
