"""The projection head of DINO: features to prototype logits (Caron 2021, section 3 and appendix C)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.errors import Problems, UserError


class Head(nn.Module):
    """MLP, L2-normalised bottleneck, prototypes of unit length; logits are cosines.

    The last layer is a plain weight that is normalised when used (weight normalisation with its gain fixed at 1), so that a
    checkpoint holds one plain tensor for it.

    Args:
        dim: Width of the features, E.
        prototypes: Number of logits, K.
        hidden: Width of the MLP.
        bottleneck: Width in which cosines are taken.
        layers: Linears of the MLP; 1 projects straight to the bottleneck.

    Raises:
        Problems: A size is below 1.
    """

    def __init__(self, dim: int, *, prototypes: int, hidden: int = 2048, bottleneck: int = 256, layers: int = 3) -> None:
        super().__init__()
        given = {"prototypes": prototypes, "head_hidden": hidden, "bottleneck": bottleneck, "head_layers": layers}
        problems = [UserError(f"objective.{name}", f"is {value}", allowed="at least 1") for name, value in given.items() if value < 1]
        if problems:
            raise Problems(problems)
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        linears = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
        self.mlp = nn.Sequential(*(module for linear in linears[:-1] for module in (linear, nn.GELU())), linears[-1])
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        for linear in linears:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def embed(self, x: Tensor) -> Tensor:
        """[..., E] to unit vectors [..., bottleneck] float32."""
        return unit(self.mlp(x))

    def directions(self) -> Tensor:
        """Prototypes as unit vectors [K, bottleneck] float32."""
        return unit(self.prototypes.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] to logits [..., K] in -1..1."""
        return functional.linear(self.embed(x), self.directions())


def unit(x: Tensor) -> Tensor:
    """Unit vectors along the last axis, in float32; a half-precision square underflows below 2e-4, so eps is 1e-6 and never cast."""
    with torch.autocast(x.device.type, enabled=False):
        return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-6)
