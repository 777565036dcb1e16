"""Source tiles, the boxes of their crops drawn back on them, and the crops: for judging a view policy before training.

One row per sample; where it is several dates of one place, a tile per date with its label, and each box on the date it was cut from.
Boxes are drawn from ``ViewGroup.to_tile``, the geometry that dense losses and attributions use; the dot is the crop's first pixel, so a
flip or a turn shows. Volumes show the middle plane of the first axis of the tile and of each crop, and boxes in that plane's two axes.
Pixels are shown in the unit range; unknown pixels are grey.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import require
from dinodomain.lineage import write_bytes
from dinodomain.types import Batch, Normalisation, ViewGroup, Views
from dinodomain.views.dates import date_of
from dinodomain.views.normalise import ToFloat, apply_range, known_pixels

_INCHES = 1.9
_COLOURS = {"global": "#ff7f0e", "local": "#17becf"}
_GREY = 0.5


def draw_views(
    batch: Batch, views: Views, path: Path, *, to_float: ToFloat, normalisation: Normalisation, bands: tuple[str, ...] = (),
    samples: int = 4, title: str = "", labels: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Writes the figure as a PNG; equal views give equal bytes.

    Args:
        batch: Tiles as stored.
        views: Rendered from them.
        path: The file.
        to_float: The domain's.
        normalisation: As used for ``views``.
        bands: One or three channel names to show; empty for the first three, or the first where there are fewer.
        samples: Rows of the figure at most.
        title: Heading.
        labels: Name of every image, [B * T], written where a sample has several dates; empty for their numbers.
    """
    figure_module = require("matplotlib.figure", extra="dev", wanted_by="a figure of views")
    agg = require("matplotlib.backends.backend_agg", extra="dev", wanted_by="a figure of views")
    count, dates = min(samples, batch.pixels.shape[0]), batch.pixels.shape[1]
    columns = dates + sum(group.num_views for group in views.groups)
    shown = _shown(batch.channels, bands)
    tiles = _tiles(batch, to_float, normalisation, shown)
    figure = figure_module.Figure(figsize=(columns * _INCHES, count * _INCHES + 0.5), dpi=100, layout="constrained")
    agg.FigureCanvasAgg(figure)
    figure.suptitle(title or "source tile and its views", fontsize=9)
    grid = figure.subplots(count, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for sample in range(count):
        names = _date_names(sample, dates, labels)
        for date in range(dates):
            _imshow(grid[sample, date], tiles[sample * dates + date])
            if names[date]:
                grid[sample, date].set_title(names[date], fontsize=6)
        column = dates
        for group in views.groups:
            for view in range(group.num_views):
                row, date = view * batch.pixels.shape[0] + sample, date_of(view, dates)
                _draw_box(grid[sample, date], group, row)
                _imshow(grid[sample, column], _crop(group, row, normalisation, batch.channels, shown))
                name = f"{group.name} {view}" + (f", {names[date]}" if names[date] else "")
                grid[sample, column].set_title(name, fontsize=6, color=_COLOURS[group.name])
                column += 1
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def _date_names(sample: int, dates: int, labels: Sequence[str]) -> list[str]:
    """What is written above the tiles of a sample; nothing where there is one date."""
    if dates == 1:
        return [""]
    own = labels[sample * dates : (sample + 1) * dates]
    return [label or f"date {number}" for number, label in enumerate(own or [""] * dates)]


def _shown(channels: tuple[str, ...], bands: tuple[str, ...]) -> list[int]:
    if bands:
        return [channels.index(name) for name in bands]
    return [0, 1, 2] if len(channels) >= 3 else [0]


def _tiles(batch: Batch, to_float: ToFloat, normalisation: Normalisation, shown: list[int]) -> np.ndarray:
    """[B * T, Y, X, bands] in the unit range."""
    pixels = batch.pixels.flatten(0, 1)
    known = known_pixels(pixels, None if batch.valid is None else batch.valid.flatten(0, 1))
    stored = pixels.float() if known is None else pixels.float().masked_fill(~known, 0.0)
    unit = to_float(stored.clone(), apply_range(batch.info, normalisation, batch.channels))
    unit = unit if known is None else unit.masked_fill(~known, _GREY)
    return _plane(unit[:, shown].cpu().numpy())


def _crop(group: ViewGroup, row: int, normalisation: Normalisation, channels: tuple[str, ...], shown: list[int]) -> np.ndarray:
    """[Y, X, bands] in the unit range; what is unknown is 0 in the network's range, so it shows as the mean."""
    order = [normalisation.channels.index(channels[i]) for i in shown]
    pixels = group.pixels[row : row + 1, shown].cpu().numpy()
    shape = (1, -1, *(1,) * (pixels.ndim - 2))
    mean, std = (np.asarray(column)[order].reshape(shape) for column in (normalisation.mean, normalisation.std))
    plane: np.ndarray = _plane(pixels * std + mean)[0]
    return plane


def _plane(pixels: np.ndarray) -> np.ndarray:
    """[n, C, (Z,) Y, X] to [n, Y, X, C], the middle plane of a volume."""
    if pixels.ndim == 5:
        pixels = pixels[:, :, pixels.shape[2] // 2]
    return np.moveaxis(pixels, 1, -1)


def _imshow(axes: Any, pixels: np.ndarray) -> None:
    pixels = np.clip(pixels, 0, 1)
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _draw_box(axes: Any, group: ViewGroup, row: int) -> None:
    """The crop's outline in tile coordinates; pixel edges lie half a pixel outside the centres."""
    matrix, size = group.to_tile[row].cpu().numpy(), group.pixels.shape[-1]
    low, high, middle = -0.5, size - 0.5, (size - 1) / 2
    corners = [(low, low), (low, high), (high, high), (high, low), (low, low)]
    index = np.array([[middle] * (matrix.shape[0] - 2) + list(corner) for corner in corners])
    place = index @ matrix[:, :-1].T + matrix[:, -1]
    style = "-" if group.name == "global" else "--"
    axes.plot(place[:, -1], place[:, -2], style, color=_COLOURS[group.name], linewidth=0.8)
    axes.plot(place[0, -1], place[0, -2], "o", color=_COLOURS[group.name], markersize=2)
