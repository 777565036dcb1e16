"""Changes of intensity that need every pixel, batched, with parameters per sample. The affine ones are in ``radiometry``.

First on physical values (bias field, shadow, speckle, Rician noise), then in the unit range (gamma, noise, solarisation, lost channels).
Blur belongs to the resampling. Shapes: n rows, C channels, spatial axes last. Work is in place on the caller's scratch, because a fresh
tensor per operation costs a CPU more in page faults than the arithmetic. Each row is treated by its own parameters alone: a CPU skips
rows on which an operation is off, an accelerator, whose host does not know them, applies neutral values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dinodomain.policy import ViewPolicy
from dinodomain.types import TileInfo
from dinodomain.views import counter
from dinodomain.views.draw import OpParams, word
from dinodomain.views.noise import noise

PHYSICAL = ("bias_field", "shadow", "speckle", "rician")
"""Operations on physical values, in order."""


def acts_on_physical(policy: ViewPolicy) -> bool:
    """Whether a policy has operations on physical values."""
    return any(getattr(policy, name) is not None for name in PHYSICAL)


def physical_(
    values: Tensor, ops: Mapping[str, OpParams], key: Tensor, policy: ViewPolicy, info: TileInfo, wavelengths: Sequence[float]
) -> None:
    """Applies all operations on physical values in place.

    Args:
        values: [n, C, ...] float32 physical values.
        ops: Drawn parameters of n rows.
        key: [n] int64.
        policy: As in ``ViewParams``.
        info: Meaning of the n rows' pixels as the source states it; its own range is what ``rician`` speaks of.
        wavelengths: C centre wavelengths in nm, NaN where a channel has none.
    """


def unit_(unit: Tensor, ops: Mapping[str, OpParams], key: Tensor) -> None:
    """Applies all operations in the unit range in place.

    Args:
        unit: [n, C, ...] float32 in 0..1.
        ops: Drawn parameters of n rows.
        key: [n] int64.
    """
    if "gamma" in ops:
        for rows in acting(ops["gamma"]):
            gamma_(unit[rows], ops["gamma"].values["exponent"][rows])
    if "noise" in ops:
        for rows in acting(ops["noise"]):
            noise_(unit[rows], ops["noise"].values["std"][rows], counter.absorb(key[rows], word("noise")))
    if "solarise" in ops:
        for rows in acting(ops["solarise"]):
            solarise_(unit[rows], ops["solarise"].values["threshold"][rows])


def acting(params: OpParams) -> list[slice]:
    """Runs of rows to work on: on a CPU those where the operation is on, elsewhere all, whose neutral values change nothing."""
    on = params.on
    if on.device.type != "cpu":
        return [slice(0, len(on))]
    return [slice(row, row + 1) for row in torch.nonzero(on).flatten().tolist()]


def spread(per_row: Tensor, like: Tensor) -> Tensor:
    """[n] or [n, C] to a shape that broadcasts over [n, C, ...]."""
    return per_row.reshape(*per_row.shape, *(1,) * (like.ndim - per_row.ndim))


def crop_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """[n, C] mean of the known pixels of each channel; 0 where none is known.

    Args:
        values: [n, C, ...], finite.
        mask: [n, 1, ...] bool, or None where all are known.
    """
    if mask is None:
        return values.flatten(2).mean(dim=2)
    count = mask.flatten(2).sum(dim=2).clamp_min(1)
    return (values * mask).flatten(2).sum(dim=2) / count


def gamma_(unit: Tensor, exponent: Tensor) -> None:
    """U <- u ** exponent: a non-linear transfer curve that keeps 0, 1 and the order of values.

    Args:
        unit: [n, C, ...] in 0..1, changed in place.
        exponent: [n].
    """
    unit.log_().mul_(spread(exponent, unit)).exp_()  # torch.pow takes four times as long


def noise_(unit: Tensor, std: Tensor, key: Tensor) -> None:
    """U <- u + std * n: additive white noise of the receiver; not clipped, so its mean stays zero.

    Args:
        unit: [n, C, ...], changed in place.
        std: [n], 0 for none.
        key: [n] int64 counter.
    """
    grain = noise(key, unit[0].numel()).reshape(unit.shape)
    unit.add_(grain.mul_(spread(std, unit)))


def solarise_(unit: Tensor, threshold: Tensor) -> None:
    """U <- 1 - u where u is at least the threshold (BYOL, Grill et al., 2020, appendix B); has no physical meaning, off by default.

    Args:
        unit: [n, C, ...], changed in place.
        threshold: [n].
    """
    torch.where(unit >= spread(threshold, unit), 1.0 - unit, unit, out=unit)


def lose_channels_(unit: Tensor, kept: Tensor, mean: Tensor) -> None:
    """U <- mean in channels that are lost: a band that an instrument lacks, or that was dropped on the way.

    Args:
        unit: [n, K, ...], changed in place.
        kept: [n, K] bool.
        mean: [K].
    """
    torch.where(spread(kept, unit), unit, spread(mean[None], unit), out=unit)
