"""Intensity operations in the unit range (0 at a channel's low, 1 at its high), batched, with parameters per sample.

In order: brightness and contrast, gamma, noise, solarisation, channel drop. Blur belongs to the resampling. Shapes: n rows,
C channels, spatial axes last. Work is in place on the caller's scratch, because a fresh tensor per operation costs a CPU
more in page faults than the arithmetic. Whether an operation runs is decided by the policy, never by the batch, so that a
sample's bits do not depend on its neighbours; noise alone skips rows, and leaves the others untouched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinodomain.domain import ViewPolicy
from dinodomain.views.draw import ChannelParams, GroupParams
from dinodomain.views.noise import noise

SOLARISE_THRESHOLD = 0.5


def augment_(unit: Tensor, mask: Tensor | None, group: GroupParams, channels: ChannelParams, policy: ViewPolicy, mean: Tensor) -> None:
    """Applies all operations of a policy in place.

    Args:
        unit: [n, C, ...] float32 in 0..1.
        mask: [n, 1, ...] bool, False where no pixel is known; None where all are.
        group: n rows of parameters.
        channels: The same of single channels.
        policy: As in ``ViewParams``.
        mean: [C] mean in the unit range, which a dropped channel takes.
    """
    if policy.intensity_probability > 0:
        brightness_contrast_(unit, mask, channels.brightness, channels.contrast)
        gamma_(unit, group.gamma)
    if policy.noise_probability > 0:
        noise_(unit, group.noise_std, group.noise_key)
    if policy.solarise_probability > 0 and group.name == "global":
        solarise_(unit, group.solarise)
    if policy.channel_drop > 0:
        drop_channels_(unit, channels.keep, mean)


def _spread(per_row: Tensor, like: Tensor) -> Tensor:
    """[n] or [n, C] to a shape that broadcasts over [n, C, ...]."""
    return per_row.reshape(*per_row.shape, *(1,) * (like.ndim - per_row.ndim))


def crop_mean(unit: Tensor, mask: Tensor | None) -> Tensor:
    """[n, C] mean of the known pixels of each channel; 0 where none is known."""
    if mask is None:
        return unit.flatten(2).mean(dim=2)
    count = mask.flatten(2).sum(dim=2).clamp_min(1)
    return (unit * mask).flatten(2).sum(dim=2) / count


def brightness_contrast_(unit: Tensor, mask: Tensor | None, brightness: Tensor, contrast: Tensor) -> None:
    """U <- clip(m + contrast * (u - m) + brightness, 0, 1), m the channel's mean over the crop's known pixels.

    Physically an unknown gain and offset of the instrument that keeps the declared range. Differs from torchvision, whose
    contrast turns about the mean of the grey image: channels here need not be colours.

    Args:
        unit: [n, C, ...], changed in place.
        mask: [n, 1, ...] bool or None.
        brightness: [n, C] shift.
        contrast: [n, C] factor.
    """
    shift = crop_mean(unit, mask).mul_(1.0 - contrast).add_(brightness)
    unit.mul_(_spread(contrast, unit)).add_(_spread(shift, unit)).clamp_(0.0, 1.0)


def gamma_(unit: Tensor, gamma: Tensor) -> None:
    """U <- u ** gamma: a non-linear transfer curve that keeps 0, 1 and the order of values.

    Args:
        unit: [n, C, ...] in 0..1, changed in place.
        gamma: [n] exponent.
    """
    unit.log_().mul_(_spread(gamma, unit)).exp_()  # torch.pow takes four times as long


def noise_(unit: Tensor, std: Tensor, key: Tensor) -> None:
    """U <- u + std * n: additive white noise of the receiver; not clipped, so its mean stays zero.

    Args:
        unit: [n, C, ...], changed in place.
        std: [n], 0 for none.
        key: [n] int64 counter.
    """
    count = unit[0].numel()
    if unit.device.type != "cpu":  # which rows are noisy is not known to the host
        unit.add_(noise(key, count).reshape(unit.shape).mul_(_spread(std, unit)))
        return
    for row in torch.nonzero(std).flatten().tolist():
        unit[row].add_(noise(key[row : row + 1], count).reshape(unit.shape[1:]), alpha=float(std[row]))


def solarise_(unit: Tensor, chosen: Tensor) -> None:
    """U <- 1 - u where u is at least one half (BYOL, Grill et al., 2020, appendix B); has no physical meaning, off by default.

    Args:
        unit: [n, C, ...], changed in place.
        chosen: [n] bool.
    """
    turned = (unit >= SOLARISE_THRESHOLD) & _spread(chosen, unit)
    torch.where(turned, 1.0 - unit, unit, out=unit)


def drop_channels_(unit: Tensor, keep: Tensor, mean: Tensor) -> None:
    """U <- mean in channels that are dropped: a band that an instrument lacks, or that was lost.

    Args:
        unit: [n, C, ...], changed in place.
        keep: [n, C] bool.
        mean: [C].
    """
    torch.where(_spread(keep, unit), unit, _spread(mean[None], unit), out=unit)
