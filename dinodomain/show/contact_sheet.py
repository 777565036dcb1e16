"""A sheet of small pictures, each with a title and, where they are known, the names of its sides.

Takes pictures that are ready to be shown: (H, W) grey or (H, W, 3) colour, float in 0..1, first row on top. Which side of a
patient lies where is decided by the caller and written on the figure here, never guessed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import require
from dinodomain.lineage import write_bytes

_COLUMNS = 6
_INCHES = 2.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of the sheet.

    Attributes:
        pixels: (H, W) or (H, W, 3) float in 0..1.
        title: Printed above it.
        sides: What lies left, right, on top and at the bottom (``R``, ``L``, ``A``, ``P``; ``N`` ...); empty where unknown.
        aspect: Height of a pixel over its width.
    """

    pixels: np.ndarray
    title: str
    sides: tuple[str, str, str, str] = ("", "", "", "")
    aspect: float = 1.0


def draw_contact_sheet(pictures: Sequence[Picture], path: Path, *, title: str, note: str = "") -> Path:
    """Writes the sheet as a PNG; equal pictures give equal bytes.

    Args:
        pictures: One or more.
        path: The file.
        title: Heading.
        note: A line below it, for example how the sides are to be read.
    """
    assert pictures, "a sheet needs a picture"
    figure_module = require("matplotlib.figure", extra="dev", wanted_by="a contact sheet")
    agg = require("matplotlib.backends.backend_agg", extra="dev", wanted_by="a contact sheet")
    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = figure_module.Figure(figsize=(max(columns * _INCHES, 6.0), rows * (_INCHES + 0.35) + 0.9), dpi=100, layout="constrained")
    agg.FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture in zip(grid.flat, pictures):
        _draw(axes, picture)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def _draw(axes: Any, picture: Picture) -> None:
    """One cell of the sheet; ``axes`` is matplotlib's."""
    axes.imshow(picture.pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=picture.aspect)
    axes.set_title(picture.title, fontsize=6)
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for text, (x, y, across, up) in zip(picture.sides, places):
        options = {"ha": across, "va": up, "color": "yellow", "fontsize": 8, "fontweight": "bold"}
        axes.text(x, y, text, transform=axes.transAxes, **options)
