"""The projection head of DINO: features to prototype logits (Caron 2021, section 3 and appendix C)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
    """Unit vectors along the last axis, in float32; a half-precision square underflows below 2e-4, so eps is 1e-6 and never cast.

    Numbers and gradient are those of ``torch.nn.functional.normalize``, in a quarter of its time on a CPU (experiments.md).
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows: Tensor = _Unit.apply(wide.reshape(-1, wide.shape[-1]))
        return rows.view(wide.shape)


_EPS = 1e-6
_BLOCK = 2**18
"""Numbers that a CPU takes at a time, 1 MiB of float32: they are still in its cache when the next operation reads them."""


class _Unit(torch.autograd.Function):
    """Rows over their length y = x / |x|, block by block; the gradient is (g - y (y . g)) / |x|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result, lengths = torch.empty_like(x), x.new_empty(len(x), 1)
        for rows in _blocks(x):
            torch.linalg.vector_norm(x[rows], dim=1, keepdim=True, out=lengths[rows]).clamp_min_(_EPS)
            torch.div(x[rows], lengths[rows], out=result[rows])
        ctx.save_for_backward(result, lengths)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        made, lengths = ctx.saved_tensors
        result = torch.empty_like(made)
        for rows in _blocks(made):
            # At the floor the divisor is fixed, so that nothing is taken off along the row.
            along = torch.linalg.vecdot(gradient[rows], made[rows])[:, None].mul_(lengths[rows] > _EPS)
            torch.addcmul(gradient[rows], made[rows], along, value=-1, out=result[rows]).div_(lengths[rows])
        return result


def _blocks(x: Tensor) -> Iterator[slice]:
    """Rows of [n, d] that are taken at a time; an accelerator takes all, for there every operation is a launch."""
    step = max(1, _BLOCK // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    return (slice(start, start + step) for start in range(0, len(x), step))
