"""Histograms of channels side by side, each in its own unit. Takes counts, writes one PNG; equal counts give equal bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinodomain.errors import require
from dinodomain.lineage import write_bytes

_COLUMNS = 4
_INCHES = (2.6, 1.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One histogram.

    Attributes:
        title: Name of the channel.
        unit: Unit of the values, or empty.
        start: Lower edge of the first bin.
        width: Width of a bin.
        counts: Per bin.
        outside: Values beyond both ends.
    """

    title: str
    unit: str
    start: float
    width: float
    counts: Sequence[int]
    outside: int


def draw_histograms(bars: Sequence[Bars], path: Path, *, title: str) -> Path:
    """Writes the figure; one or more histograms."""
    assert bars, "a figure needs a histogram"
    figure_module = require("matplotlib.figure", extra="dev", wanted_by="histograms")
    agg = require("matplotlib.backends.backend_agg", extra="dev", wanted_by="histograms")
    columns = min(_COLUMNS, len(bars))
    rows = math.ceil(len(bars) / columns)
    size = (max(columns * _INCHES[0], 5.0), rows * _INCHES[1] + 0.6)
    figure = figure_module.Figure(figsize=size, dpi=100, layout="constrained")
    agg.FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(bars) :]:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, bars):
        edges = one.start + one.width * np.arange(len(one.counts) + 1)
        axes.stairs(one.counts, edges, fill=True, color="#4477aa")
        axes.set_title(f"{one.title} ({one.outside} beyond the ends)" if one.outside else one.title, fontsize=7)
        axes.set_xlabel(one.unit if one.unit != "1" else "", fontsize=6)
        axes.tick_params(labelsize=6)
        axes.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path
