"""View policies shared by sensors that look straight down, and the one for radar."""

from __future__ import annotations

from dataclasses import replace

from dinodomain.domain import Gamma, Jitter, Noise, ViewPolicy

AXES = ("NS", "EW")

_TURNS = {"NS": 0.5, "EW": 0.5}

NADIR = ViewPolicy(
    axes=AXES, flip=_TURNS, quarter_turns=True, jitter=Jitter(brightness=(-0.05, 0.05), contrast=(0.85, 1.15), per_channel=True),
    gamma=Gamma(exponent=(0.9, 1.1)), noise=Noise(std=(0.0, 0.02)),
)  # fmt: skip
"""Seen from straight above, a scene turned by quarter turns or mirrored is a possible scene: the eight symmetries of the square.
Channels are sensors of their own, so brightness and contrast are drawn for each, but within what haze and calibration do: ratios of
bands are what tells water from shadow."""

NADIR_MIXED = replace(NADIR, default_mode="store")
"""As ``NADIR``, for stores whose channels are digital numbers of no fixed range."""

PHOTOGRAPH = ViewPolicy(axes=AXES, flip=_TURNS, quarter_turns=True, jitter=Jitter(brightness=(-0.1, 0.1)))
"""Aerial photographs: exposure changes all channels together, so hue stays. On UC Merced at 32 pixels, shifts of 0.2 drawn per channel
cost all of the gain over an untrained network (experiments.md)."""

RADAR = ViewPolicy(axes=AXES, gamma=None, jitter=Jitter(brightness=(-0.1, 0.1), per_channel=True), noise=Noise(probability=0.5))
"""Radar looks sideways: layover and shadow point away from the sensor, so no flip keeps the meaning. In decibels a shift is a gain, and a
power of a decibel value means nothing."""
