"""View policies shared by sensors that look straight down, and the one for radar."""

from __future__ import annotations

from dinodomain.domain import ViewPolicy

AXES = ("NS", "EW")

NADIR = ViewPolicy(axes=AXES, flips={"NS": 0.5, "EW": 0.5}, quarter_turns=True, per_channel=True)
"""Seen from straight above, a scene turned by quarter turns or mirrored is a possible scene: the eight symmetries of the square.
Channels are sensors of their own, so brightness and contrast are drawn for each."""

NADIR_MIXED = ViewPolicy(axes=AXES, flips={"NS": 0.5, "EW": 0.5}, quarter_turns=True, per_channel=True, default_mode="store")
"""As ``NADIR``, for stores whose channels are digital numbers of no fixed range."""

RADAR = ViewPolicy(axes=AXES, per_channel=True, gamma=(1.0, 1.0), brightness=0.1, noise_probability=0.5)
"""Radar looks sideways: layover and shadow point away from the sensor, so no flip keeps the meaning. In decibels a shift is a gain, and a
power of a decibel value means nothing."""
