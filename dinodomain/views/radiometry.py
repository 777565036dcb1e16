"""Changes of intensity that are affine: they change what stored numbers mean, not the numbers, and cost nothing per pixel.

``to_float`` computes unit = clip((stored * scale + offset - low) / (high - low), 0, 1). Gain, offset and haze change scale and offset;
a moved window, brightness and contrast change low and high. All of them together are one multiplication, one addition and one clip, so
values beyond the range are lost once and at the end, as in an instrument.

Shapes: n rows, K network channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dinodomain.types import TileInfo
from dinodomain.views.draw import OpParams
from dinodomain.views.normalise import constants

HAZE_REFERENCE_NM = 490.0
"""Wavelength at which a policy states the amount of haze (blue; band 2 of Sentinel-2)."""


def retold(info: TileInfo, ops: Mapping[str, OpParams], mean: Tensor | None, wavelengths: Sequence[float]) -> TileInfo:
    """The meaning of stored values after all affine operations of a policy.

    Args:
        info: Of n rows and K channels, with the range that becomes 0..1.
        ops: Drawn parameters of n rows; operations that are not affine are passed over.
        mean: [n, K] mean of the stored values of each crop, needed by ``jitter`` only.
        wavelengths: K centre wavelengths in nm, NaN where a channel has none.
    """
    if "gain" in ops:
        info = gain(info, **ops["gain"].values)
    if "haze" in ops:
        info = haze(info, wavelengths=wavelengths, **ops["haze"].values)
    if "window" in ops:
        info = window(info, **ops["window"].values)
    if "jitter" in ops:
        assert mean is not None, "jitter needs the crop's mean"
        info = jitter(info, mean, **ops["jitter"].values)
    return info


def gain(info: TileInfo, *, gain: Tensor, offset: Tensor) -> TileInfo:
    """Physical <- gain * physical + offset: calibration that drifts, of each channel apart.

    Args:
        info: Of n rows and K channels.
        gain: [n, K].
        offset: [n, K] in the channel's unit.
    """
    return replace(info, scale=info.scale * gain, offset=info.offset * gain + offset)


def haze(info: TileInfo, *, amount: Tensor, exponent: Tensor, wavelengths: Sequence[float]) -> TileInfo:
    """Reflectance <- reflectance + amount * (wavelength / 490 nm) ** -exponent.

    Path radiance of scattering air adds to what the ground reflects, more at short wavelengths: with the fourth power for molecules, less
    for aerosol (Chavez, 1988, "An improved dark-object subtraction technique", whose haze models are these powers).

    Args:
        info: Of n rows and K channels.
        amount: [n] at 490 nm.
        exponent: [n].
        wavelengths: K, nm; NaN leaves a channel alone.
    """
    ratio = constants(tuple(value / HAZE_REFERENCE_NM for value in wavelengths), amount.device, torch.float32)
    path = amount[:, None] * ratio ** -exponent[:, None]
    return replace(info, offset=info.offset + torch.nan_to_num(path))


def window(info: TileInfo, *, centre: Tensor, width: Tensor) -> TileInfo:
    """Centre <- centre + shift * width, width <- factor * width: what a reader does at the console; values keep their meaning.

    Args:
        info: Of n rows and K channels.
        centre: [n] shift as a share of the width.
        width: [n] factor.
    """
    span = info.high - info.low
    middle = 0.5 * (info.high + info.low) + centre[:, None] * span
    half = 0.5 * width[:, None] * span
    return replace(info, low=middle - half, high=middle + half)


def jitter(info: TileInfo, mean: Tensor, *, brightness: Tensor, contrast: Tensor) -> TileInfo:
    """Unit <- m + contrast * (unit - m) + brightness, m the mean of the crop's known pixels, channel by channel.

    Physically an unknown gain and offset of display or detector. Differs from torchvision, whose contrast turns about the mean of the
    grey image: channels here need not be colours; and nothing is clipped before.

    Args:
        info: Of n rows and K channels.
        mean: [n, K] of stored values.
        brightness: [n] or [n, K] shift.
        contrast: [n] or [n, K] factor.
    """
    shift, factor = (value if value.ndim == 2 else value[:, None] for value in (brightness, contrast))
    span = (info.high - info.low).clamp_min(1e-12)
    middle = (mean * info.scale + info.offset - info.low) / span
    low = info.low - span * ((1.0 - factor) * middle + shift) / factor
    return replace(info, low=low, high=low + span / factor)
