"""View policies of sensors: what changes from one acquisition to the next and leaves the ground the same. Data only.

Seen from straight above, a scene turned by quarter turns or mirrored is a possible scene: the eight symmetries of the square. Whatever
looks sideways has none of them. Haze and shadow act on reflectance only; which channels those are, ``wavelengths`` says, and digital
numbers, kelvin and bands that do not see the ground are left alone. Nothing here bends reflectance or decibels by a power (gamma): both
are calibrated, and ratios of bands are what tells water from shadow.
"""

from __future__ import annotations

from collections.abc import Mapping

from dinodomain.domain import (
    Blur,
    Channel,
    CoarserPixels,
    DropChannels,
    Gain,
    Haze,
    Jitter,
    Noise,
    Shadow,
    Speckle,
    SubsetChannels,
    ViewPolicy,
)

AXES = ("NS", "EW")

ABSORBED_NM = ((1350.0, 1450.0), (1800.0, 1950.0))
"""Water vapour hides what lies below high clouds here (band 10 of Sentinel-2, band 9 of OLI): haze and shadows too."""

_TURNS = {"NS": 0.5, "EW": 0.5}
_SOFT = Blur(probability=(0.5, 0.1, 0.3), sigma=(0.1, 1.0))  # scattering from the neighbourhood, resampling of the producer
_HAZE = Haze(probability=0.3, amount=(0.0, 0.05), exponent=(0.5, 4.0))
_SHADOW = Shadow(probability=0.1, depth=(0.2, 0.7), share=(0.1, 0.4))
_QUIET = Noise(probability=0.2, std=(0.0, 0.01), shot=(0.0, 0.01))


def sees_haze(nm: float) -> bool:
    """Whether haze and shadow reach a band of reflectance with this centre wavelength."""
    return not any(low <= nm <= high for low, high in ABSORBED_NM)


def wavelengths(channels: Mapping[str, Channel]) -> dict[str, float]:
    """Centre wavelength in nm of the channels on which haze and shadow act."""
    known = ((name, channel.wavelength_nm) for name, channel in channels.items() if channel.unit == "reflectance")
    return {name: nm for name, nm in known if nm is not None and sees_haze(nm)}


def multispectral(channels: Mapping[str, Channel]) -> ViewPolicy:
    """Calibrated reflectance seen from above, in a few broad bands (Sentinel-2).

    Gain and offset are those of a calibration and an atmospheric correction: the radiometric accuracy of MSI is 5 %, its goal 3 % (ESA,
    Sentinel-2 MSI User Guide, "Radiometric Resolution"), and an error of the aerosol leaves 0.003 to 0.008 of reflectance in clear air
    (MODIS surface reflectance, modis-sr.ltdri.org, "accuracy"). Haze of 0.05 at 490 nm is what tells a hazy from a clear day at the top of
    the atmosphere; its exponents are Chavez's (1988). Noise is some times that of the instrument, so that it can be seen at all. Pixels
    of 10 m become up to 30 m, those of Landsat. The first view keeps all bands; others lose some, as other sensors have fewer.
    """
    return ViewPolicy(
        axes=AXES,
        flip=_TURNS,
        quarter_turns=True,
        blur=_SOFT,
        coarser_pixels=CoarserPixels(probability=0.2, factor=(1.0, 3.0)),
        shadow=_SHADOW,
        gain=Gain(probability=0.8, gain=(0.95, 1.05), offset=(-0.005, 0.005)),
        haze=_HAZE,
        jitter=None,
        gamma=None,
        noise=_QUIET,
        drop_channels=DropChannels(probability=(0.0, 0.2, 0.3), share=(0.1, 0.1)),
        subset_channels=SubsetChannels(probability=(0.0, 0.1, 0.2), keep=(0.5, 1.0)),
        wavelengths_nm=wavelengths(channels),
    )


def mixed(reflectance_nm: Mapping[str, float], *, per_channel: bool) -> ViewPolicy:
    """Seen from above, for domains that also hold digital numbers or temperatures: normalised by the store, changed in the unit range.

    A gain of reflectance would be degrees on a thermal band, and a digital number has no unit, so calibration is imitated by brightness
    and contrast of the unit range. Drawn per channel for a few broad bands (OLI's reflectance is good to 3 %, Markham et al. 2014,
    doi:10.3390/rs61212275; digital numbers drift more); in common for a spectrum, whose narrow absorptions are shallower than that, while
    neighbouring bands share optics and calibration.

    Args:
        reflectance_nm: Centre wavelengths of the channels on which haze and shadow act.
        per_channel: Whether each channel has a brightness and contrast of its own.
    """
    return ViewPolicy(
        axes=AXES,
        flip=_TURNS,
        quarter_turns=True,
        blur=_SOFT,
        coarser_pixels=CoarserPixels(probability=0.2, factor=(1.0, 2.0)),  # 30 m become 60 m
        shadow=_SHADOW,
        haze=_HAZE,
        jitter=Jitter(brightness=(-0.05, 0.05), contrast=(0.9, 1.1), per_channel=per_channel),
        gamma=None,
        noise=_QUIET,
        drop_channels=DropChannels(probability=(0.0, 0.2, 0.3), share=(0.1, 0.1)),
        subset_channels=SubsetChannels(probability=(0.0, 0.1, 0.2), keep=(0.5, 1.0)),
        wavelengths_nm=reflectance_nm,
        default_mode="store",
    )


PHOTOGRAPH = ViewPolicy(
    axes=AXES,
    flip=_TURNS,
    quarter_turns=True,
    jitter=Jitter(brightness=(-0.1, 0.1)),
    noise=Noise(probability=0.2, std=(0.0, 0.03), shot=(0.0, 0.04)),  # together at most 0.05 at unit 1
)
"""Aerial photographs from straight above: exposure changes all channels together, so hue stays; gamma is the camera's and the printer's.
On UC Merced at 32 pixels, shifts of 0.2 drawn per channel cost all of the gain over an untrained network (experiments.md). Values are
fractions of full scale, no reflectance, so there is no haze. Oblique views have an up and a down: ``views=oblique``, or
``views.policy.flip=[]`` with ``views.policy.quarter_turns=false``."""

RADAR = ViewPolicy(
    axes=AXES,
    blur=_SOFT,  # speckle filters of producers
    speckle=Speckle(probability=0.5, looks=(4.0, 32.0), scale="db"),
    gain=Gain(probability=0.8, gain=(1.0, 1.0), offset=(-1.0, 1.0)),
    jitter=None,
    gamma=None,
    noise=None,
    drop_channels=DropChannels(probability=(0.0, 0.1, 0.2), share=(0.5, 0.5)),
)
"""Radar looks sideways: layover and shadow point away from the sensor, so no flip or turn keeps the meaning.

Values are decibels, so a gain is an offset: 1 dB, the radiometric accuracy of Sentinel-1 (ESA, Sentinel-1 SAR technical guide,
"Performance"). A factor of decibels is a power of backscatter and means nothing, nor does gamma; noise of a coherent sensor is speckle,
which acts on linear power. Four looks are about what ground-range products of the wide swath have, and what a crop that was shrunk has
lost. One of two polarisations may be missing, as in single-polarised acquisitions."""
