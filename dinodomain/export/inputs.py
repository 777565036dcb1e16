"""What each channel of an exported network is made from, in words and as plain values, so that nobody has to guess it from a name."""

from __future__ import annotations

from typing import Any

from dinodomain.lineage import Json
from dinodomain.types import Normalisation
from dinodomain.views.normalise import stored_channels


def input_facts(numbers: Normalisation) -> list[dict[str, Json]]:
    """One entry for each channel of the network, in input order.

    ``low`` and ``high`` are physical values of the stored ``source`` and None where each source brings its own; ``unit`` is None where
    nobody recorded it; ``centre`` and ``width`` are there for display windows only.
    """
    return [_fact(numbers, place) for place in range(len(numbers.channels))]


def _fact(numbers: Normalisation, place: int) -> dict[str, Any]:
    name, source = numbers.channels[place], stored_channels(numbers)[place]
    low, high = (None, None) if numbers.mode == "source" else (numbers.low[place], numbers.high[place])
    fact: dict[str, Any] = {
        "name": name, "source": source, "unit": (numbers.units[place] or None) if numbers.units else None, "low": low, "high": high,
        "mean": numbers.mean[place], "std": numbers.std[place],
    }  # fmt: skip
    if name != source:
        fact |= {"centre": (numbers.low[place] + numbers.high[place]) / 2, "width": numbers.high[place] - numbers.low[place]}
    return fact


def window_lines(numbers: Normalisation) -> list[str]:
    """One line for each channel that is a display window of a stored channel; empty where none is."""
    lines = []
    for fact in input_facts(numbers):
        if "centre" in fact:
            unit = f" {fact['unit']}" if fact["unit"] else ""
            lines.append(f"{fact['name']}: window of {fact['source']}, centre {fact['centre']:g}{unit}, width {fact['width']:g}{unit}")
    return lines
