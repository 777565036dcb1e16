"""Teacher points to targets: a moving centre (Caron 2021, equation 4) or Sinkhorn-Knopp (Cuturi 2013; Caron 2020).

Both see all micro-batches of a step and all ranks, and count samples exactly: rows may carry weights of 0 or 1. Targets are formed when a
loss asks for a chunk of them. Legend: n rows of a micro-batch, d width of the bottleneck, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from dinodomain.objective.fused import Scratch, chunk_rows, exponentiate_, product_dtype, similarities
from dinodomain.parallel import all_reduce_max, all_reduce_sum

ITERATIONS = 3
"""Sinkhorn-Knopp sweeps (Caron 2020, section 4; kept by DINOv2)."""
LEAST = 1e-30
"""Least mass of a prototype; its inverse times any K stays inside float32."""


class Taught(NamedTuple):
    """What the teacher saw of one micro-batch.

    Attributes:
        points: [n, d] unit points.
        prototypes: [K, d] unit prototypes; the same in all micro-batches of a step.
        weight: [n] 0 or 1; None: all 1.
    """

    points: Tensor
    prototypes: Tensor
    weight: Tensor | None = None


class Targets(Protocol):
    """Target distributions of the rows of one micro-batch, formed when they are asked for."""

    def form(self, rows: slice, views: int = 1, scratch: Scratch | None = None) -> Tensor:
        """[views, c, K] float32 or wider, in memory that is the caller's to change.

        Args:
            rows: c of the samples.
            views: Into how many views the rows divide; row v * (n / views) + b is view v of sample b.
            scratch: Where they go, until targets are formed there again; None: a new tensor.
        """
        ...


class Centering(Protocol):
    """What makes targets of a teacher's points."""

    def __call__(self, parts: Sequence[Taught], temperature: float) -> list[Targets]:
        """Targets for each micro-batch; rows of weight 0 count for nothing. Collective: once per step, on every rank."""
        ...

    def update(self) -> None:
        """Takes over what was seen since the last update; called by every rank after the optimiser step."""
        ...

    def discard(self) -> None:
        """Forgets what was seen since the last update, because the step was skipped."""
        ...

    def norm(self, device: torch.device) -> Tensor:
        """Length of the centre; 0 where there is none. A copy from the host would make it wait, so it is made on the device."""
        ...


@dataclass(frozen=True, slots=True)
class Centred:
    """Softmax of centred logits.

    Attributes:
        points: [n, d] over the temperature.
        prototypes: [K, d] in the dtype of the product.
        shift: [K] the centre over the temperature.
    """

    points: Tensor
    prototypes: Tensor
    shift: Tensor

    def form(self, rows: slice, views: int = 1, scratch: Scratch | None = None) -> Tensor:
        """See ``Targets``."""
        points = by_view(self.points, views)[:, rows]
        logits = similarities(points, self.prototypes, _room(scratch, points, len(self.prototypes))).sub_(self.shift)
        return logits.div_(exponentiate_(logits)[1])


@final
class Center(nn.Module):
    """Softmax of centred logits; the centre is a moving mean of the teacher's logits over all ranks.

    What was seen waits in a buffer until ``update``: a skipped step leaves no trace. The mean of logits is the logit of the mean
    point, exactly, so that it costs one product of a vector instead of a sweep over [n, K].

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
    def forward(self, parts: Sequence[Taught], temperature: float) -> list[Targets]:
        """See ``Centering``."""
        parts = [part._replace(points=_wide(part.points)) for part in parts]
        kept = parts[0].prototypes.to(product_dtype(parts[0].points))
        with torch.autocast(self.seen.device.type, enabled=False):
            sums = torch.stack([_weighted_sum(part) for part in parts]).sum(0)
            self.seen[:-1] += (parts[0].prototypes.to(sums.dtype) @ sums[:-1]).to(self.seen.dtype)
            self.seen[-1] += sums[-1].to(self.seen.dtype)
        shift = (self.center / temperature).to(parts[0].points.dtype)
        return [Centred(part.points / temperature, kept, shift) for part in parts]

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

    def norm(self, device: torch.device) -> Tensor:
        """See ``Centering``; the centre lies on the device already."""
        length: Tensor = torch.linalg.vector_norm(self.center)
        return length


@dataclass(frozen=True, slots=True)
class Balanced:
    """exp(logits / temperature), each row over its largest, and what its rows and columns are scaled with.

    Attributes:
        kernel: [n, K], the one tensor of that size.
        rows: [n].
        columns: [K].
    """

    kernel: Tensor
    rows: Tensor
    columns: Tensor

    def form(self, rows: slice, views: int = 1, scratch: Scratch | None = None) -> Tensor:
        """See ``Targets``."""
        kernel = by_view(self.kernel, views)[:, rows]
        result = torch.mul(kernel, self.columns, out=_room(scratch, kernel, len(self.columns)))
        return result.mul_(by_view(self.rows, views)[:, rows, None])


@final
class Sinkhorn(nn.Module):
    """Targets that use every prototype equally over the samples of a step. Keeps nothing from step to step."""

    @torch.no_grad()
    def forward(self, parts: Sequence[Taught], temperature: float) -> list[Targets]:
        """See ``Centering``. Rows of weight 0 are 0.

        exp(logits / temperature) is formed once and the sweeps only scale its rows and columns, by matrix-vector products: one reduction
        of K numbers per sweep, none for the row step. Each row is formed less its own largest logit, and the difference to the largest
        of all goes into the first row scale: the same numbers, but no row can underflow to nothing.
        """
        parts = [part._replace(points=_wide(part.points)) for part in parts]
        kept = parts[0].prototypes.to(product_dtype(parts[0].points))
        with torch.autocast(kept.device.type, enabled=False):
            formed = [_kernel(part.points / temperature, kept) for part in parts]
            kernels, peaks = [kernel for kernel, _ in formed], [peak for _, peak in formed]
            weights = [torch.ones_like(peak) if part.weight is None else part.weight.to(peak.dtype) for part, peak in zip(parts, peaks)]
            rows = _first_rows(peaks, weights)
            count = all_reduce_sum(torch.cat(weights).sum()).clamp_min(1.0)
            size = kept.shape[0]
            for _ in range(ITERATIONS):
                masses = torch.stack([row @ kernel for row, kernel in zip(rows, kernels)]).sum(0)
                columns = 1.0 / (all_reduce_sum(masses) * size).clamp_min(LEAST)
                rows = [weight / ((kernel @ columns) * count) for weight, kernel in zip(weights, kernels)]
        return [Balanced(kernel, row * count, columns) for kernel, row in zip(kernels, rows)]

    def update(self) -> None:
        """Nothing to take over."""

    def discard(self) -> None:
        """Nothing to forget."""

    def norm(self, device: torch.device) -> Tensor:
        """There is no centre."""
        return torch.zeros((), device=device)


def make_centering(method: str, prototypes: int, momentum: float) -> Center | Sinkhorn:
    """The centring of a plan: ``softmax``, ``sinkhorn``, or ``none``, which is a centre that stays at zero."""
    return Sinkhorn() if method == "sinkhorn" else Center(prototypes, 1.0 if method == "none" else momentum)


def by_view(rows: Tensor, views: int) -> Tensor:
    """[V * B, ...] to [V, B, ...]."""
    return rows.view(views, len(rows) // views, *rows.shape[1:])


def _room(scratch: Scratch | None, rows: Tensor, prototypes: int) -> Tensor | None:
    """Where targets of [..., d] or [..., K] rows go."""
    return None if scratch is None else scratch.take("targets", (*rows.shape[:-1], prototypes), rows)


def _wide(points: Tensor) -> Tensor:
    return points.to(torch.promote_types(points.dtype, torch.float32))


def _weighted_sum(part: Taught) -> Tensor:
    """[d + 1] sum of the points and their number, in the dtype of the points."""
    weight = part.points.new_ones(len(part.points)) if part.weight is None else part.weight.to(part.points.dtype)
    return torch.cat([weight @ part.points, weight.sum()[None]])


def _kernel(points: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """[n, K] exp(logits less each row's peak) and [n] peaks; chunk by chunk, for half-precision products need a copy."""
    kernel, peaks = points.new_empty(len(points), len(prototypes)), points.new_empty(len(points))
    step = chunk_rows(len(prototypes), 2, points.dtype)
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        similarities(points[rows], prototypes, kernel[rows])
        peaks[rows] = kernel[rows].amax(1)
        kernel[rows].sub_(peaks[rows, None]).exp_()
    return kernel, peaks


def _first_rows(peaks: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """exp(peak - largest peak of all ranks), 0 for rows of weight 0, which must not set the largest either."""
    counted = [torch.where(weight > 0, peak, -torch.inf) for peak, weight in zip(peaks, weights)]
    # A rank without rows has no peak of its own but takes part.
    largest = all_reduce_max(torch.cat([*counted, counted[0].new_full((1,), -torch.inf)]).amax())
    return [torch.where(weight > 0, (peak - largest).exp(), 0.0) for peak, weight in zip(counted, weights)]
