"""Teacher logits to targets: a moving centre (Caron 2021, equation 4) or Sinkhorn-Knopp (Cuturi 2013; Caron 2020).

Both count samples exactly: rows may carry weights of 0 or 1, and all sums run over all ranks.
"""

from __future__ import annotations

from typing import Protocol, final

import torch
from torch import Tensor, nn

from dinodomain.parallel import all_reduce_max, all_reduce_sum

ITERATIONS = 3
"""Sinkhorn-Knopp sweeps (Caron 2020, section 4; kept by DINOv2)."""
LEAST = 1e-30
"""Least mass of a prototype; its inverse times any K stays inside float32."""


class Centering(Protocol):
    """What makes targets of logits."""

    def __call__(self, logits: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
        """[n, K] logits to [n, K] float32 distributions; rows of weight 0 count for nothing."""
        ...

    def update(self) -> None:
        """Takes over what was seen since the last update; called by every rank after the optimiser step."""
        ...

    def discard(self) -> None:
        """Forgets what was seen since the last update, because the step was skipped."""
        ...

    def norm(self) -> Tensor:
        """Length of the centre; 0 where there is none."""
        ...


@final
class Center(nn.Module):
    """Softmax of centred logits; the centre is a moving mean of the teacher's logits over all ranks.

    Seen logits wait in a buffer until ``update``: a skipped step leaves no trace, and several micro-batches make one update.

    Args:
        prototypes: K.
        momentum: Share of the centre that stays at an update.
    """

    center: Tensor
    seen: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))
        # Sum of the logits, and in the last place their number: one reduction carries both.
        self.register_buffer("seen", torch.zeros(prototypes + 1), persistent=False)

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
        """See ``Centering``."""
        logits = logits.float()
        total, count = (logits.sum(0), logits.new_full((1,), len(logits))) if weight is None else (weight @ logits, weight.sum()[None])
        self.seen += torch.cat([total, count])
        return torch.softmax((logits - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """See ``Centering``."""
        all_reduce_sum(self.seen)
        total, count = self.seen[:-1], self.seen[-1:]
        mean = total / count.clamp_min(1.0)
        self.center.lerp_(torch.where(count > 0, mean, self.center), 1.0 - self.momentum)
        self.seen.zero_()

    def discard(self) -> None:
        """See ``Centering``."""
        self.seen.zero_()

    def norm(self) -> Tensor:
        """See ``Centering``."""
        length: Tensor = torch.linalg.vector_norm(self.center)
        return length


@final
class Sinkhorn(nn.Module):
    """Targets that use every prototype equally over the samples of all ranks. Keeps nothing from step to step."""

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
        """See ``Centering``. Rows of weight 0 are 0."""
        weight = logits.new_ones(len(logits), dtype=torch.float32) if weight is None else weight.float()
        return sinkhorn_knopp(logits.float(), temperature, weight)

    def update(self) -> None:
        """Nothing to take over."""

    def discard(self) -> None:
        """Nothing to forget."""

    def norm(self) -> Tensor:
        """There is no centre."""
        return torch.zeros(())


def sinkhorn_knopp(logits: Tensor, temperature: float, weight: Tensor) -> Tensor:
    """Rows that sum to 1, columns that sum (nearly) to samples / K.

    exp(logits / temperature) is formed once and the sweeps only scale its rows and columns, by matrix-vector products: one reduction of
    K numbers per sweep, none for the row step. Each row is formed less its own largest logit, and the difference to the largest of
    all ranks goes into the first row scale: the same numbers, but no row can underflow to nothing.

    Args:
        logits: [n, K] float32 or wider.
        temperature: Of the teacher.
        weight: [n] 0 or 1.

    Returns:
        [n, K].
    """
    if logits.numel() == 0:  # this rank has no rows, but the reductions below need all ranks
        logits, weight = logits.new_zeros(1, logits.shape[1]), weight.new_zeros(1)
        return sinkhorn_knopp(logits, temperature, weight)[:0]
    peaks = logits.amax(1)
    largest = all_reduce_max(peaks.amax())
    kernel = ((logits - peaks[:, None]) / temperature).exp()
    rows = ((peaks - largest) / temperature).exp() * weight
    count = all_reduce_sum(weight.sum()).clamp_min(1.0)
    columns = kernel.new_ones(kernel.shape[1])
    for _ in range(ITERATIONS):
        columns = 1.0 / (all_reduce_sum(rows @ kernel) * kernel.shape[1]).clamp_min(LEAST)
        rows = weight / ((kernel @ columns) * count)
    return kernel * columns * (rows * count)[:, None]


def make_centering(method: str, prototypes: int, momentum: float) -> Center | Sinkhorn:
    """The centring of a plan: ``softmax`` or ``sinkhorn``."""
    return Center(prototypes, momentum) if method == "softmax" else Sinkhorn()
