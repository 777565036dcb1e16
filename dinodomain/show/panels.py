"""A grid of pictures of one size with short captions: images, maps of tokens over them, outlines, lines between matched places.

Arrays of 0..1 go in, a PNG comes out. Rows are what is looked at (a tile, a plane), columns are kinds of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import require
from dinodomain.show.sight import new_figure, place_axes, save, write_words

CELL, LABEL, HEAD, LINE, GAP = 1.55, 0.95, 0.62, 0.15, 0.06
GOOD, BAD, NEUTRAL = "#2fd07a", "#ff4d4d", "#ffd23f"

REGION_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#ff9da7", "#bab0ac")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        picture: [rows, columns, 3] in 0..1.
        aspect: Height of a pixel over its width.
        caption: Below it, one line.
        sides: Left, right, top, bottom; empty strings where unknown.
        outline: [rows, columns] bool that is drawn round; None for none.
        outline_colour: Of it.
        edge: Colour of a frame, or empty.
        points: [m, 2] places (across, down) in pixels of the picture.
        colours: One for each point.
    """

    picture: np.ndarray
    aspect: float = 1.0
    caption: str = ""
    sides: tuple[str, str, str, str] = ("", "", "", "")
    outline: np.ndarray | None = None
    outline_colour: str = NEUTRAL
    edge: str = ""
    points: np.ndarray | None = None
    colours: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines from places of one panel to places of the next one in its row.

    Attributes:
        row: Of the panels.
        column: Of the first panel.
    """

    row: int
    column: int


def heat(values: np.ndarray, high: float) -> np.ndarray:
    """[...] numbers, 0 to ``high``, as colours from black over red to yellow: [..., 3]."""
    colormaps = require("matplotlib", extra="dev", wanted_by="figures").colormaps
    colours: np.ndarray = np.asarray(colormaps["inferno"](np.clip(values / high if high > 0 else values * 0, 0, 1)))[..., :3]
    return colours


def region_colours(regions: np.ndarray) -> np.ndarray:
    """[...] numbers of regions as colours [..., 3]; -1 is grey."""
    rgb = np.array([[int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)] for text in REGION_COLOURS])
    return np.where((regions >= 0)[..., None], rgb[np.maximum(regions, 0) % len(rgb)], 0.25)


def enlarged(small: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[rows, columns, ...] repeated to the shape of a picture, nearest."""
    rows, columns = (np.minimum((np.arange(new) * old) // new, old - 1) for new, old in zip(shape, small.shape[:2]))
    result: np.ndarray = small[rows[:, None], columns[None, :]]
    return result


def blend(picture: np.ndarray, colours: np.ndarray, share: float = 0.6) -> np.ndarray:
    """Colours of tokens [r, c, 3] over a picture in grey."""
    grey = np.repeat(picture.mean(axis=-1, keepdims=True), 3, axis=-1)
    return (1 - share) * grey + share * enlarged(colours, (picture.shape[0], picture.shape[1]))


def draw_panels(
    rows: Sequence[Sequence[Panel | None]], path: Path, *, title: str, columns: Sequence[str], labels: Sequence[str], words: str,
    lines: Sequence[Lines] = (), notice: str = "", cell: float = CELL,
) -> Path:  # fmt: skip
    """Draws a grid.

    Args:
        rows: Panels; None leaves a gap.
        path: PNG to write.
        title: Above.
        columns: What each column is.
        labels: What each row is.
        words: How to read it, below the title; lines end where they say.
        lines: Which neighbouring panels are joined point by point.
        notice: In red above everything else.
        cell: Side of a picture, inches.
    """
    captions = any(panel is not None and panel.caption for row in rows for panel in row)
    step = cell + GAP + (LINE if captions else 0.0)
    told = words.split("\n")
    top = HEAD - 0.24 + LINE * (len(told) + (1 if notice else 0)) + LINE * 1.7 * max(name.count("\n") + 1 for name in columns)
    width = max(LABEL + len(columns) * (cell + GAP) + 0.1, 0.055 * max(len(line) for line in [*told, title]) + 0.3)
    figure = new_figure(width, top + len(rows) * step + 0.05, "figures of properties")
    write_words(figure, 0.1, 0.07, title, size=9.5, weight="bold")
    write_words(figure, 0.1, 0.29, words, size=7)
    if notice:
        write_words(figure, 0.1, 0.29 + LINE * len(told), notice, size=7, color="#c00000")
    for place, name in enumerate(columns):
        write_words(figure, LABEL + place * (cell + GAP), top - LINE * 1.15 * (name.count("\n") + 1), name, size=7.5, weight="bold")
    axes: dict[tuple[int, int], Any] = {}
    for line, row in enumerate(rows):
        write_words(figure, 0.1, top + line * step + 0.35 * cell, labels[line], size=7)
        for place, panel in enumerate(row):
            if panel is not None:
                axes[line, place] = place_axes(figure, LABEL + place * (cell + GAP), top + line * step, cell, cell)
                _paint(axes[line, place], panel)
                if panel.caption:
                    write_words(figure, LABEL + place * (cell + GAP), top + line * step + cell + 0.01, panel.caption, size=6)
    for item in lines:
        _join(figure, axes, rows, item)
    return save(figure, path)


def _paint(axes: Any, panel: Panel) -> None:
    axes.imshow(np.clip(panel.picture, 0, 1), interpolation="nearest", aspect=panel.aspect)
    if panel.outline is not None and panel.outline.any() and not panel.outline.all():
        height, width = panel.picture.shape[:2]
        down, across = (np.arange(new) for new in (height, width))
        axes.contour(
            across, down, enlarged(panel.outline, (height, width)).astype(float), [0.5], colors=panel.outline_colour, linewidths=1.0
        )
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for text, (x, y, across_, up) in zip(panel.sides, places):
        axes.text(x, y, text, transform=axes.transAxes, ha=across_, va=up, color="yellow", fontsize=6, fontweight="bold")
    if panel.points is not None and len(panel.points):
        axes.scatter(panel.points[:, 0], panel.points[:, 1], s=7, c=list(panel.colours), edgecolors="black", linewidths=0.3)
    if panel.edge:
        patches = require("matplotlib.patches", extra="dev", wanted_by="figures")
        axes.add_patch(patches.Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=panel.edge, linewidth=3))


def _join(figure: Any, axes: Any, rows: Sequence[Sequence[Panel | None]], item: Lines) -> None:
    patches = require("matplotlib.patches", extra="dev", wanted_by="figures")
    first, second = rows[item.row][item.column], rows[item.row][item.column + 1]
    if first is None or second is None or first.points is None or second.points is None:
        return
    for one, two, colour in zip(first.points, second.points, first.colours):
        figure.add_artist(
            patches.ConnectionPatch(
                xyA=tuple(one),
                coordsA=axes[item.row, item.column].transData,
                xyB=tuple(two),
                coordsB=axes[item.row, item.column + 1].transData,
                color=colour,
                linewidth=0.7,
                alpha=0.85,
            )
        )
