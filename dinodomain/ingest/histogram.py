"""Histograms of a store's channels in physical units, from the fixed sample that its statistics come from: training chunks only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dinodomain.domain import find_domain, installed_domains
from dinodomain.errors import MissingExtra
from dinodomain.store.summary import sampled

if TYPE_CHECKING:
    from dinodomain.store.read import Store

_BINS = 64
_ENDS = (0.1, 99.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Sampled pixels of one channel by physical value.

    Attributes:
        unit: Physical unit, empty where the domain is not installed.
        start: Lower edge of the first bin.
        width: Width of a bin.
        counts: Pixels per bin, at most 64 bins between the 0.1 and the 99.9 percentile.
        below: Pixels below the first bin.
        above: Pixels above the last.
    """

    unit: str
    start: float
    width: float
    counts: tuple[int, ...]
    below: int
    above: int


def histograms(store: Store) -> dict[str, Histogram]:
    """By channel, in the order of the store; a channel without a valid training pixel is absent."""
    values, units, steps = sampled(store), _units(store.domain), _steps(store)
    return {name: histogram(values[name], units.get(name, ""), steps.get(name, 0.0)) for name in store.channels if name in values}


def histogram(values: np.ndarray, unit: str = "", step: float = 0.0) -> Histogram:
    """Counts values.

    Args:
        values: [n] physical values, one or more.
        unit: Their unit.
        step: Distance between neighbouring values of an integer scale, so that every bin holds equally many of them; 0 if there is none.
    """
    low, high = (float(end) for end in np.percentile(values, _ENDS, method="nearest"))
    if step:
        width = step * max(1, int(np.ceil((high - low) / step / _BINS + 1e-9)))
        start = low - step / 2
        bins = min(_BINS, int(np.floor((high - start) / width)) + 1)
    else:
        width = (high - low) / _BINS or max(abs(low), 1.0) / _BINS
        start, bins = low, _BINS
    places = np.floor((values - start) / width).astype(np.int64)
    places[(values == high) & (places == bins)] = bins - 1  # the last bin is closed
    inside = places[(places >= 0) & (places < bins)]
    counts = np.bincount(inside, minlength=bins)
    below, above = int((places < 0).sum()), int((places >= bins).sum())
    return Histogram(unit=unit, start=start, width=width, counts=tuple(counts.tolist()), below=below, above=above)


def _units(domain: str) -> Mapping[str, str]:
    """Physical units by channel, where the domain can be asked."""
    if domain not in installed_domains():
        return {}
    try:
        return {name: channel.unit for name, channel in find_domain(domain).channels.items()}
    except MissingExtra:
        return {}


def _steps(store: Store) -> dict[str, float]:
    """Step of each channel whose sources are integers of one scale and offset."""
    found: dict[str, set[tuple[float, float]]] = {}
    for dtype, names, scales, offsets in zip(*(store.index[name].to_pylist() for name in ("dtype", "channels", "scale", "offset"))):
        for channel, scale, offset in zip(names, scales, offsets):
            found.setdefault(channel, set()).add((0.0, 0.0) if dtype.startswith("float") else (abs(scale), offset))
    return {channel: next(iter(pairs))[0] for channel, pairs in found.items() if len(pairs) == 1}
