"""Changes of intensity that need every pixel, batched, with parameters per sample. The affine ones are in ``radiometry``.

First on physical values (bias field, shadow, speckle, Rician and value noise), then in the unit range (gamma, noise, solarisation, lost
channels). Blur belongs to the resampling. Shapes: n rows, C channels, spatial axes last. Work is in place on the caller's scratch,
because a fresh tensor per operation costs a CPU more in page faults than the arithmetic. Each row is treated by its own parameters alone:
a CPU skips rows on which an operation is off, an accelerator, whose host does not know them, applies neutral values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from dinodomain.policy import ViewPolicy
from dinodomain.types import TileInfo
from dinodomain.views import counter
from dinodomain.views.draw import OpParams, word
from dinodomain.views.fields import log_gamma_noise, smooth_field
from dinodomain.views.noise import noise
from dinodomain.views.normalise import constants
from dinodomain.views.radiometry import REFERENCE_NM

DECIBELS = 10 / math.log(10)
"""Decibels of a factor e."""

PHYSICAL = ("bias_field", "shadow", "speckle", "rician", "value_noise")
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
    if policy.bias_field is not None:
        drawn = ops["bias_field"]
        for rows in acting(drawn):
            bias_field_(values[rows], drawn.values["strength"][rows], own_key(key[rows], "bias_field"), nodes=policy.bias_field.nodes)
    if policy.shadow is not None:
        drawn = ops["shadow"]
        sky = constants(skylight(policy.shadow.skylight, wavelengths), values.device, torch.float32)
        for rows in acting(drawn):
            depth, share = drawn.values["depth"][rows], drawn.values["share"][rows]
            nodes, edge = policy.shadow.nodes, policy.shadow.edge
            shadow_(values[rows], depth, share, own_key(key[rows], "shadow"), skylight=sky, nodes=nodes, edge=edge)
    if policy.speckle is not None:
        drawn = ops["speckle"]
        for rows in acting(drawn):
            speckle_(values[rows], drawn.values["looks"][rows], own_key(key[rows], "speckle"), scale=policy.speckle.scale)
    if policy.rician is not None:
        drawn = ops["rician"]
        for rows in acting(drawn):
            # A magnitude is never negative: phase, real and imaginary parts are left alone.
            own_range = torch.where(info.low[rows] < 0, 0.0, info.high[rows] - info.low[rows])
            rician_(values[rows], drawn.values["std"][rows, None] * own_range, own_key(key[rows], "rician"))
    if policy.value_noise is not None:
        drawn = ops["value_noise"]
        for rows in acting(drawn):
            noise_(values[rows], drawn.values["std"][rows], own_key(key[rows], "value_noise"))


def unit_(unit: Tensor, ops: Mapping[str, OpParams], key: Tensor, policy: ViewPolicy) -> None:
    """Applies all operations in the unit range in place.

    Args:
        unit: [n, C, ...] float32 in 0..1.
        ops: Drawn parameters of n rows.
        key: [n] int64.
        policy: As in ``ViewParams``.
    """
    if policy.gamma is not None:
        for rows in acting(ops["gamma"]):
            gamma_(unit[rows], ops["gamma"].values["exponent"][rows])
    if policy.noise is not None:
        drawn, keys = ops["noise"], own_key(key, "noise")
        for rows in acting(drawn):
            shot = drawn.values["shot"][rows] if policy.noise.shot[1] > 0 else None
            noise_(unit[rows], drawn.values["std"][rows], keys[rows], shot)
    if policy.solarise is not None:
        for rows in acting(ops["solarise"]):
            solarise_(unit[rows], ops["solarise"].values["threshold"][rows])


def own_key(key: Tensor, name: str) -> Tensor:
    """[n] int64 counter of one operation, so that no two read the same random numbers."""
    return counter.absorb(key, word(name))


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
    # Line by line first: a single long sum would be split over threads, in a way that depends on how many rows there are.
    if mask is None:
        return values.mean(dim=-1).reshape(*values.shape[:2], -1).mean(dim=2)
    count = mask.flatten(2).sum(dim=2).clamp_min(1)
    return (values * mask).sum(dim=-1).reshape(*values.shape[:2], -1).sum(dim=2) / count


def bias_field_(values: Tensor, strength: Tensor, key: Tensor, *, nodes: int) -> None:
    """V <- v * exp(strength * f), f a smooth field of standard deviation 1: signal is louder where a coil is near.

    Source: the multiplicative model of Sled, Zijdenbos and Evans (1998), "A nonparametric method for automatic correction of intensity
    nonuniformity in MRI data"; the exponential of a smooth Gaussian field as in Billot et al. (2023), "SynthSeg". The median is 1. All
    channels share the field, because one coil receives them; values must be proportional to the signal.

    Args:
        values: [n, C, *S], changed in place.
        strength: [n], 0 for none.
        key: [n] int64 counter.
        nodes: Independent values along each axis.
    """
    field = smooth_field(key, nodes=nodes, size=values.shape[-1], ndim=values.ndim - 2)
    values.mul_(field.mul_(spread(strength, values)).exp_())


def skylight(share: float, wavelengths: Sequence[float]) -> tuple[float, ...]:
    """Share of the light of each channel that comes from the sky: share * (wavelength / 490 nm) ** -4, at most 1.

    Rayleigh's law for scattering by molecules. 1 where a channel has no wavelength: nothing says that the sun lights it.

    Args:
        share: At 490 nm.
        wavelengths: C, nm, NaN where a channel has none.
    """
    return tuple(1.0 if math.isnan(nm) else min(1.0, share * (nm / REFERENCE_NM) ** -4) for nm in wavelengths)


def shadow_(values: Tensor, depth: Tensor, share: Tensor, key: Tensor, *, skylight: Tensor, nodes: int, edge: float) -> None:
    """V <- v * (1 - m * depth * (1 - skylight)), m from 0 in the sun to 1 in the shadow, with a soft edge.

    What the sun no longer lights, the sky still does, and more so at short wavelengths: shadows are blue (Cameron and Kumar, 2018,
    "Diffuse skylight as a surrogate for shadow detection in high-resolution imagery acquired under clear sky conditions"). Shadow lies
    where a smooth field f is highest: m = Phi((f - t) / edge), t = sqrt(1 + edge^2) * Phi^-1(1 - share), whose mean over all fields is
    ``share`` at every pixel.

    Args:
        values: [n, C, *S] reflectance, changed in place.
        depth: [n] share of direct light that is lost, 0 for none.
        share: [n] share of the ground that is in shadow.
        key: [n] int64 counter.
        skylight: [C] share of the light that comes from the sky.
        nodes: Independent values of the field along each axis.
        edge: Width of the soft edge in standard deviations of the field.
    """
    threshold = math.sqrt(1 + edge**2) * torch.special.ndtri(1.0 - share.double())
    shade = smooth_field(key, nodes=nodes, size=values.shape[-1], ndim=values.ndim - 2)
    shade.sub_(spread(threshold.float(), shade)).mul_(math.sqrt(0.5) / edge).erf_().add_(1.0).mul_(0.5)
    values.mul_((shade * spread(-depth[:, None] * (1.0 - skylight), values)).add_(1.0))


def speckle_(values: Tensor, looks: Tensor, key: Tensor, *, scale: Literal["db", "power", "amplitude"]) -> None:
    """Power <- power * g, g gamma-distributed with mean 1 and variance 1 / looks: echoes of many scatterers that add with random phases.

    The power of one look is exponential; the mean of L looks is a gamma number (Goodman, 1976, "Some fundamental properties of speckle";
    Oliver and Quegan, 1998, "Understanding synthetic aperture radar images"). Decibels gain 10 log10 g, amplitudes sqrt(g).
    Neighbours are independent, as in an image at its own resolution.

    Args:
        values: [n, C, *S], changed in place.
        looks: [n] equivalent number of looks, infinity for none.
        key: [n] int64 counter.
        scale: What the values are.
    """
    grain = log_gamma_noise(key, looks, tuple(values.shape[1:]))
    if scale == "db":
        values.add_(grain.mul_(DECIBELS))
    else:
        values.mul_(grain.mul_(1.0 if scale == "power" else 0.5).exp_())


def rician_(values: Tensor, std: Tensor, key: Tensor) -> None:
    """V <- sqrt((v + std * a)^2 + (std * b)^2): the length of a complex signal with normal noise in both parts.

    Source: Gudbjartsson and Patz (1995), "The Rician distribution of noisy MRI data". Noise has no sign in a magnitude image: it lifts
    the dark background. For signals far above ``std`` it is Gaussian.

    Args:
        values: [n, C, *S] magnitudes, changed in place.
        std: [n, C] in the channel's unit; 0 leaves values alone, of either sign.
        key: [n] int64 counter.
    """
    count = values[0].numel()
    parts = noise(key, 2 * count).reshape(len(key), 2, *values.shape[1:])
    real, imaginary, std = parts[:, 0], parts[:, 1], spread(std, values)
    length = real.mul_(std).add_(values).square_().add_(imaginary.mul_(std).square_()).sqrt_()
    torch.lerp(values, length, (std > 0).float(), out=values)  # exact at 0 and 1; torch.where takes twice as long


def gamma_(unit: Tensor, exponent: Tensor) -> None:
    """U <- u ** exponent: a non-linear transfer curve that keeps 0, 1 and the order of values.

    That of displays and film, and of a vendor's look-up table. An exponent of 1 moves a value by at most 1e-6.

    Args:
        unit: [n, C, ...] in 0..1, changed in place.
        exponent: [n].
    """
    # torch.pow takes four times as long; so do log and exp, twenty times, where there are zeros (air in CT, clipped shadows).
    unit.clamp_(min=1e-20).log_().mul_(spread(exponent, unit)).exp_()


def noise_(unit: Tensor, std: Tensor, key: Tensor, shot: Tensor | None = None) -> None:
    """U <- u + sqrt(std^2 + shot^2 * u) * n: white noise of the readout, and of the number of photons; its mean is zero, nothing clips.

    Without the photons also the noise of a measured value in its own unit (``value_noise``): that of a CT is close to normal.
    Source: the Poisson-Gaussian model of Foi et al. (2008), "Practical Poissonian-Gaussian noise modeling and fitting for single-image
    raw-data", with the normal number of the same variance in place of the Poisson one.

    Args:
        unit: [n, C, ...] not below 0, changed in place.
        std: [n], 0 for none.
        key: [n] int64 counter.
        shot: [n] standard deviation of the growing part at unit 1; None where a policy has none, which saves three passes.
    """
    grain = noise(key, unit[0].numel()).reshape(unit.shape)
    if shot is None:
        unit.add_(grain.mul_(spread(std, unit)))
    else:
        sigma = (unit * spread(shot.square(), unit)).add_(spread(std.square(), unit)).sqrt_()
        unit.add_(grain.mul_(sigma))


def solarise_(unit: Tensor, threshold: Tensor) -> None:
    """U <- 1 - u where u is at least the threshold (BYOL, Grill et al., 2020, appendix B); has no physical meaning, off by default.

    Args:
        unit: [n, C, ...], changed in place.
        threshold: [n].
    """
    over = torch.ge(unit, spread(threshold, unit), out=torch.empty_like(unit))
    torch.lerp(unit, 1.0 - unit, over, out=unit)  # exact at 0 and 1; torch.where takes three times as long


def lose_channels_(unit: Tensor, kept: Tensor, mean: Tensor) -> None:
    """U <- mean in channels that are lost: a band that an instrument lacks, or that was dropped on the way.

    Args:
        unit: [n, K, ...], changed in place.
        kept: [n, K] bool.
        mean: [K].
    """
    torch.where(spread(kept, unit), unit, spread(mean[None], unit), out=unit)
