"""How far apart two networks' input ranges are: the same pixel, told in the numbers of one and of the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dinodomain.types import Normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A channel whose numbers differ: theirs = scale * ours + shift.

    Attributes:
        channel: Its name.
        scale: Factor; NaN where the two cannot be compared.
        shift: In their standard deviations; NaN where the two cannot be compared.
    """

    channel: str
    scale: float = math.nan
    shift: float = math.nan

    @property
    def wide(self) -> bool:
        """Whether they see another image: brighter or darker by more than a deviation, of twice or half the contrast, or not comparable."""
        return not (abs(self.shift) <= 1.0 and 0.5 <= self.scale <= 2.0)

    def __str__(self) -> str:
        if math.isnan(self.scale):
            return f"{self.channel} in another kind of range"
        return f"{self.channel} x {self.scale:.3g} {'-' if self.shift < 0 else '+'} {abs(self.shift):.3g}"


def gaps(theirs: Normalisation, ours: Normalisation) -> tuple[Gap, ...]:
    """Channels of both names that the two bring to different numbers; windows and clipping beyond the linear part are not compared."""
    found = []
    for place, channel in enumerate(ours.channels):
        if channel not in theirs.channels:
            continue
        other = theirs.channels.index(channel)
        units = {_unit(theirs, other), _unit(ours, place)} - {""}
        if len(units) > 1 or ("source" in (theirs.mode, ours.mode) and theirs.mode != ours.mode):
            found.append(Gap(channel=channel))
            continue
        (centre, spread), (their_centre, their_spread) = _linear(ours, place), _linear(theirs, other)
        gap = Gap(channel=channel, scale=spread / their_spread, shift=(centre - their_centre) / their_spread)
        if not (math.isclose(gap.scale, 1.0, rel_tol=1e-3) and math.isclose(gap.shift, 0.0, abs_tol=1e-3)):
            found.append(gap)
    return tuple(found)


def _linear(numbers: Normalisation, place: int) -> tuple[float, float]:
    """The value that becomes 0 and the difference that becomes 1, in the channel's unit or, of each source's own range, in 0..1."""
    low, high = (0.0, 1.0) if numbers.mode == "source" else (numbers.low[place], numbers.high[place])
    return low + (high - low) * numbers.mean[place], (high - low) * numbers.std[place]


def _unit(numbers: Normalisation, place: int) -> str:
    return numbers.units[place] if numbers.units else ""
