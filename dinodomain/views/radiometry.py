"""Changes of intensity that are affine: they change what stored numbers mean, not the numbers, and cost nothing per pixel.

``to_float`` computes unit = clip((stored * scale + offset - low) / (high - low), 0, 1). Gain, offset and haze change scale and offset;
a moved window, brightness and contrast change low and high. All of them together are one multiplication, one addition and one clip, so
values beyond the range are lost once and at the end, as in an instrument.

Shapes: n rows, K network channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dinodomain.types import TileInfo
from dinodomain.views.draw import OpParams
from dinodomain.views.normalise import constants

REFERENCE_NM = 490.0
"""Wavelength at which a policy states haze and skylight (blue; band 2 of Sentinel-2)."""


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
    """Physical <- gain * physical + offset: the linear calibration of a detector, which drifts for each channel apart.

    Source: the calibration equation of every radiometer, L = gain * counts + offset (Chander, Markham and Helder, 2009, "Summary of
    current radiometric calibration coefficients for Landsat MSS, TM, ETM+, and EO-1 ALI sensors"); CT numbers are calibrated alike, at
    water and air.

    Args:
        info: Of n rows and K channels.
        gain: [n, K].
        offset: [n, K] in the channel's unit.
    """
    return replace(info, scale=info.scale * gain, offset=info.offset * gain + offset)


def haze(info: TileInfo, *, amount: Tensor, exponent: Tensor, wavelengths: Sequence[float]) -> TileInfo:
    """Reflectance <- R + (1 - R) ** 2 * reflectance, R = amount * (wavelength / 490 nm) ** -exponent.

    R is the path radiance of scattering air as reflectance: more at short wavelengths, with the fourth power for molecules, less for
    aerosol (Chavez, 1988, "An improved dark-object subtraction technique", whose haze models are these powers). Light passes the air
    twice; air that absorbs nothing sends R of it back each time, so 1 - R remains. It is the Lambertian equation of 6S (Vermote et al.,
    1997, "Second Simulation of the Satellite Signal in the Solar Spectrum") without gases and without what ground and air throw to and
    fro, 1 / (1 - R * reflectance), which is 2 % of the ground's light for a reflectance of 0.3 under a haze of 0.08.

    Args:
        info: Of n rows and K channels.
        amount: [n] at 490 nm.
        exponent: [n].
        wavelengths: K, nm; NaN leaves a channel alone.
    """
    lit = tuple(float(not math.isnan(nm)) for nm in wavelengths)
    ratio = tuple(1.0 if math.isnan(nm) else nm / REFERENCE_NM for nm in wavelengths)  # NaN equals nothing, so no cache would find it
    log_ratio, seen = (constants(column, amount.device) for column in (tuple(math.log(value) for value in ratio), lit))
    # Not as a power, whose last bits depend on a row's place in the batch.
    path = (amount.double()[:, None] * torch.exp(-exponent.double()[:, None] * log_ratio) * seen).float()
    through = (1.0 - path).square()
    return replace(info, scale=info.scale * through, offset=info.offset * through + path)


def window(info: TileInfo, *, centre: Tensor, width: Tensor) -> TileInfo:
    """Centre <- centre + shift * width, width <- factor * width, in the channel's unit (HU): what a reader does at the console.

    Values keep their meaning; only where 0 and 1 lie changes (DICOM PS3.3 C.11.2.1.2, window centre and width).

    Args:
        info: Of n rows and K channels.
        centre: [n] shift as a share of the width.
        width: [n] factor.
    """
    span = info.high - info.low
    shift, wider = centre[:, None] * span, 0.5 * (width[:, None] - 1.0) * span
    return replace(info, low=info.low + shift - wider, high=info.high + shift + wider)


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
    down = span * ((1.0 - factor) * middle + shift) / factor
    return replace(info, low=info.low - down, high=info.high - down + span * (1.0 / factor - 1.0))
