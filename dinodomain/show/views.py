"""Source tiles, the boxes of their crops drawn back on them, and the crops: for judging a view policy before training.

A block of rows per sample: one row of an image; axial, coronal and sagittal rows of a volume, each tile and crop at its own middle plane.
Where a sample is several dates of one place, a tile per date with its label, and each box on the date it was cut from. Boxes come from
``ViewGroup.to_tile``, the geometry that dense losses and attributions use; the dot is the crop's first pixel, so a flip or a turn shows.
A box is solid where it crosses the plane that is shown and faint where it lies before or behind it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.policy import ViewPolicy
from dinodomain.show.captions import Setting, has_light, length_unit, lost_words, number, operation_words
from dinodomain.show.sides import Plane, convention
from dinodomain.show.sight import (
    Image,
    Sight,
    crop_steps,
    draw_scale,
    name_sides,
    new_figure,
    paint,
    place_axes,
    save,
    unit_crop,
    unit_of,
    unit_tiles,
    write_words,
)
from dinodomain.types import Batch, ViewGroup, Views
from dinodomain.views.dates import date_of
from dinodomain.views.draw import GroupParams, ViewParams

_CELL, _HEAD, _LINE, _TEXT, _WRAP = 1.9, 0.6, 0.095, 5.5, 42
_COLOURS = {"global": "#ff7f0e", "local": "#17becf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """What is drawn from.

    Attributes:
        batch: Tiles as stored.
        views: Rendered from them.
        params: Drawn for them.
        sight: How things are shown.
        blur: What the policy's blur is multiplied with.
        tiles: [B * T] in the unit range.
    """

    batch: Batch
    views: Views
    params: ViewParams
    sight: Sight
    blur: float
    tiles: Sequence[Image]

    @property
    def samples(self) -> int:
        return int(self.batch.pixels.shape[0])

    @property
    def dates(self) -> int:
        return int(self.batch.pixels.shape[1])

    def crops(self, sample: int) -> list[tuple[ViewGroup, GroupParams, int, int, int]]:
        """Group, its parameters, view, row and image of every crop of a sample."""
        return [
            (group, drawn, view, view * self.samples + sample, sample * self.dates + date_of(view, self.dates))
            for group, drawn in zip(self.views.groups, self.params.groups)
            for view in range(group.num_views)
        ]

    def spacing(self, image: int) -> list[float]:
        """[D] of a tile."""
        found: list[float] = self.batch.info.spacing[image].tolist()
        return found


def draw_views(
    batch: Batch, views: Views, params: ViewParams, path: Path, *, sight: Sight, blur: float, title: str, labels: Sequence[str] = ()
) -> Path:
    """Writes the figure as a PNG; equal views give equal bytes.

    Args:
        batch: Tiles as stored.
        views: Rendered from them.
        params: Drawn for them.
        path: The file.
        sight: How things are shown.
        blur: What the policy's blur is multiplied with (``draw.blur_scale``).
        title: Heading.
        labels: Name of every image, [B * T], written where a sample has several dates; empty for their numbers.
    """
    sheet = _Sheet(batch=batch, views=views, params=params, sight=sight, blur=blur, tiles=unit_tiles(sight, batch))
    planes = len(sight.planes(0))
    captions = [_captions(sheet, sample, labels) for sample in range(sheet.samples)]
    heights = [_LINE * (1 + max(len(lines) for lines in own)) for own in captions]
    width, height = _CELL * len(captions[0]), _HEAD + sum(heights) + _CELL * planes * sheet.samples
    figure = new_figure(width, height, "a figure of views")
    write_words(figure, 0.05, 0.05, title, size=9, weight="bold")
    write_words(figure, 0.05, 0.22, "\n".join(_how_to_read(sheet, width)), size=6.5)
    top = _HEAD
    for sample, (own, tall) in enumerate(zip(captions, heights)):
        _draw_sample(figure, sheet, sample, own, top, top + tall)
        top += tall + _CELL * planes
    return save(figure, path)


def _how_to_read(sheet: _Sheet, width: float) -> list[str]:
    words = [
        sheet.sight.range_words(), "hatched: unknown", "dot: first pixel of the crop", *sorted({convention(f) for f in sheet.sight.frames}),
    ]  # fmt: skip
    if len(sheet.sight.planes(0)) > 1:
        words.append("each at its own middle plane; a box is faint where it does not cross the plane shown")
    return textwrap.wrap("; ".join(words), int(width * 19))[:4]


def _captions(sheet: _Sheet, sample: int, labels: Sequence[str]) -> list[list[str]]:
    """Lines above each column: dates first, then crops."""
    unit, found = unit_of(sheet.sight), []
    for date in range(sheet.dates):
        image = sample * sheet.dates + date
        own = (labels[image] if labels else "") or f"date {date}"
        name = f"tile {sample}" + (f", {own}" if sheet.dates > 1 else "")
        found.append([name, _size(sheet.spacing(image), unit)])
    for group, drawn, view, row, image in sheet.crops(sample):
        date = date_of(view, sheet.dates)
        words = crop_words(drawn, row, sheet.params.policy, sheet, group, image)
        name = f"{group.name} {view}: {_size(group.spacing[row].tolist(), unit)}" + (f", date {date}" if sheet.dates > 1 else "")
        found.append([name, *textwrap.wrap(", ".join(words), _WRAP)])
    return found


def crop_words(drawn: GroupParams, row: int, policy: ViewPolicy, sheet: _Sheet, group: ViewGroup, image: int) -> list[str]:
    """What happened to one crop, in few words each."""
    flips = [f"flip {axis}" for axis, on in zip(policy.axes, drawn.flips[row].tolist()) if on]
    turned = [f"{policy.axes[-2]} and {policy.axes[-1]} exchanged"] if bool(drawn.transpose[row]) else []
    setting = Setting(
        scale=sheet.sight.scale,
        policy=policy,
        spacing=sheet.spacing(image),
        blur=sheet.blur,
        length=length_unit(policy.axes),
        light=has_light(policy, sheet.sight.sources),
    )
    acted = [
        operation_words(name, _shown_values(item.values, row, sheet.sight.bands), setting)
        for name, item in drawn.operations.items()
        if bool(item.on[row])
    ]
    return [word for word in (*flips, *turned, *acted, lost_words(sheet.views.channels, group.kept[row].tolist())) if word]


def _shown_values(values: Mapping[str, Any], row: int, bands: Sequence[int]) -> dict[str, list[float]]:
    """One number for each parameter, or one for each band that is shown."""
    own = {name: value[row] for name, value in values.items()}
    return {name: [float(value)] if value.ndim == 0 else [float(value[band]) for band in bands] for name, value in own.items()}


def _size(spacing: Sequence[float], unit: str) -> str:
    """Pixel size: one number where all axes are alike to a tenth."""
    if any(value != value for value in spacing):
        return "pixel size unknown"
    if max(spacing) <= 1.1 * min(spacing):
        return f"{number(float(np.mean(spacing)), 2)} {unit}"
    return f"{' x '.join(number(value, 2) for value in spacing)} {unit}"


def _draw_sample(figure: Any, sheet: _Sheet, sample: int, captions: Sequence[Sequence[str]], head: float, top: float) -> None:
    crops = sheet.crops(sample)
    for column, lines in enumerate(captions):
        color = "black" if column < sheet.dates else _COLOURS[crops[column - sheet.dates][0].name]
        write_words(figure, column * _CELL + 0.04, head + 0.04, lines[0], size=_TEXT + 0.5, color=color, weight="bold")
        write_words(figure, column * _CELL + 0.04, head + 0.04 + _LINE, "\n".join(lines[1:]), size=_TEXT)
    for place, plane in enumerate(sheet.sight.planes(sample * sheet.dates)):
        for date in range(sheet.dates):
            axes = _cell(figure, date, top + place * _CELL)
            _draw_tile(axes, sheet, sample * sheet.dates + date, plane, crops)
        for column, (group, _, _, row, image) in enumerate(crops, start=sheet.dates):
            axes = _cell(figure, column, top + place * _CELL)
            paint(axes, unit_crop(sheet.sight, group, row), plane, sheet.sight, spacing=group.spacing[row].tolist())
            name_sides(axes, sheet.sight.frames[image], plane, crop_steps(group, row, sheet.spacing(image)))


def _cell(figure: Any, column: int, top: float) -> Any:
    return place_axes(figure, column * _CELL + 0.03, top + 0.03, _CELL - 0.06, _CELL - 0.06)


def _draw_tile(axes: Any, sheet: _Sheet, image: int, plane: Plane, crops: Sequence[tuple[ViewGroup, GroupParams, int, int, int]]) -> None:
    spacing, extent = sheet.spacing(image), sheet.tiles[image][1].shape
    start = sheet.batch.info.valid_box[image, :, 0].cpu().numpy()
    paint(axes, sheet.tiles[image], plane, sheet.sight, spacing=spacing)
    name_sides(axes, sheet.sight.frames[image], plane)
    draw_scale(axes, plane, extent, spacing, unit_of(sheet.sight))
    if plane.name:
        axes.text(0.02, 0.98, plane.name, transform=axes.transAxes, va="top", color="yellow", fontsize=5.5)
    for group, _, view, row, of in crops:
        if of == image:
            _draw_box(axes, group, row, view, plane, start, extent)


def _draw_box(axes: Any, group: ViewGroup, row: int, view: int, plane: Plane, start: np.ndarray, extent: Sequence[int]) -> None:
    """The crop's outline, from the first real pixel of the tile; pixel edges lie half a pixel outside the centres."""
    matrix = group.to_tile[row].cpu().numpy().astype(float)
    matrix[:, -1] -= start
    x, y = plane.place(_outline(matrix, group.pixels.shape[-1], plane), extent)
    crosses = plane.through is None or _crosses(matrix, group.pixels.shape[-1], plane.through, extent)
    color, alpha = _COLOURS[group.name], 1.0 if crosses else 0.35
    axes.plot(x, y, "-" if group.name == "global" else "--", color=color, linewidth=0.8, alpha=alpha)
    first_x, first_y = plane.place(matrix @ np.array([*[0.0] * len(matrix), 1.0]), extent)
    axes.plot(first_x, first_y, "o", color=color, markersize=2, alpha=alpha)
    axes.text(first_x, first_y, str(view), color=color, fontsize=5, alpha=alpha, clip_on=True)


def _outline(matrix: np.ndarray, size: int, plane: Plane) -> np.ndarray:
    """[5, D] corners of the crop in a plane. Where a turned crop is seen from its side, the box that holds it."""
    low, high, ndim = -0.5, size - 0.5, len(matrix)
    if ndim == 2 or {plane.down, plane.across} == {ndim - 2, ndim - 1}:
        corners = np.array([(low, low), (low, high), (high, high), (high, low), (low, low)])
        index = np.concatenate([np.full((5, ndim - 2), (size - 1) / 2), corners], axis=1)
        turned: np.ndarray = index @ matrix[:, :-1].T + matrix[:, -1]
        return turned
    every = np.stack(np.meshgrid(*[(low, high)] * ndim, indexing="ij"), axis=-1).reshape(-1, ndim) @ matrix[:, :-1].T + matrix[:, -1]
    start, stop, found = every.min(axis=0), every.max(axis=0), np.zeros((5, ndim))
    found[:, plane.down] = np.array([start, start, stop, stop, start])[:, plane.down]
    found[:, plane.across] = np.array([start, stop, stop, start, start])[:, plane.across]
    return found


def _crosses(matrix: np.ndarray, size: int, through: int, extent: Sequence[int]) -> bool:
    """Whether a crop meets the tile's middle plane across an axis."""
    centre = matrix[through, :-1].sum() * (size - 1) / 2 + matrix[through, -1]
    half = np.abs(matrix[through, :-1]).sum() * size / 2
    return bool(abs(centre - extent[through] // 2) <= half)
