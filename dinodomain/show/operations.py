"""Every operation of a view policy by itself, from none to its strongest: for judging whether a range is physical.

One row per operation (or parameter, where these act apart): the same crop without it, at three strengths, and what the strongest changes.
All of it comes from ``views.alone``, which draws and renders as training does.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.policy import ViewPolicy, operations, without_augmentation
from dinodomain.show.captions import Setting, lost_words, number, operation_words
from dinodomain.show.sides import Plane
from dinodomain.show.sight import (
    Image,
    Sight,
    aspect_of,
    crop_steps,
    draw_scale,
    name_sides,
    new_figure,
    paint,
    place_axes,
    save,
    unit_crop,
    unit_of,
    write_words,
)
from dinodomain.types import Batch, Normalisation, ViewGroup, Views
from dinodomain.views.alone import Trial, at_levels, one_crop, trials, turned_over
from dinodomain.views.draw import ViewParams
from dinodomain.views.plan import ViewsPlan

_CELL, _HEAD, _LABEL, _CAPTION, _TEXT = 1.9, 0.5, 1.1, 0.3, 6.0
_COLUMNS = 5
_NOTHING = 1e-5
Render = Callable[[Batch, ViewParams], Views]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of the figure.

    Attributes:
        name: Written on its left.
        captions: Of its pictures.
        groups: One crop each.
        plane: In which it is shown.
        difference: Whether the last picture minus the first is shown besides.
    """

    name: str
    captions: tuple[str, ...]
    groups: tuple[ViewGroup, ...]
    plane: Plane
    difference: bool


def draw_operations(
    batch: Batch, policy: ViewPolicy, plan: ViewsPlan, path: Path, *, render: Render, seed: int, sight: Sight, setting: Setting, title: str
) -> Path:
    """Writes the figure as a PNG; equal tiles and policies give equal bytes.

    Args:
        batch: One tile (all its dates; the first is shown).
        policy: In force.
        plan: Sizes and extents.
        path: The file.
        render: From a batch and parameters to views.
        seed: Decides where the crop lies.
        sight: How things are shown.
        setting: For the words.
        title: Heading.
    """
    rows = _rows(batch, policy, plan, render, seed, sight, setting)
    width, height = _LABEL + _CELL * _COLUMNS, _HEAD + (_CELL + _CAPTION) * max(1, len(rows))
    figure = new_figure(width, height, "a figure of operations")
    write_words(figure, 0.05, 0.05, title, size=9, weight="bold")
    words = f"one global crop; {sight.range_words()}; last column: the picture before it minus the first, red more, blue less"
    write_words(figure, 0.05, 0.24, "\n".join(textwrap.wrap(words, int(width * 18))), size=6.5)
    if not rows:
        write_words(figure, 0.05, _HEAD, "no operation, no flip and no turn: crops only", size=8)
    for place, row in enumerate(rows):
        _draw_row(figure, row, _HEAD + place * (_CELL + _CAPTION), sight, batch)
    return save(figure, path)


def _rows(batch: Batch, policy: ViewPolicy, plan: ViewsPlan, render: Render, seed: int, sight: Sight, setting: Setting) -> list[_Row]:
    norm = sight.normalisation
    rows = _turns(batch, policy, plan, render, seed, sight)
    for trial in trials(policy):
        drawn = at_levels(policy, plan, batch, trial, seed=seed, normalisation=norm)
        groups = tuple(render(batch, params).groups[0] for params in drawn)
        captions = ("without", *(_level_words(trial, level, drawn, groups, norm, setting) for level in range(len(trial.levels))))
        rows.append(_Row(name=_name(trial, policy), captions=captions, groups=groups, plane=_plane(trial, policy, sight), difference=True))
    return rows


def _turns(batch: Batch, policy: ViewPolicy, plan: ViewsPlan, render: Render, seed: int, sight: Sight) -> list[_Row]:
    """Flips and quarter turns; those of a volume in a plane in which they show."""
    still = one_crop(without_augmentation(policy), plan, batch, seed=seed, normalisation=sight.normalisation)
    found: list[tuple[str, int | None]] = [(f"flip {axis}", policy.axes.index(axis)) for axis, chance in policy.flip.items() if chance]
    found += [(f"{policy.axes[-2]} and {policy.axes[-1]} exchanged", None)] if policy.quarter_turns else []
    first = render(batch, still).groups[0]
    rows = []
    for start in range(0, len(found), _COLUMNS - 1):
        part = found[start : start + _COLUMNS - 1]
        groups = tuple(render(batch, turned_over(still, axis=axis)).groups[0] for _, axis in part)
        plane = _showing(sight, {axis for _, axis in part if axis is not None})
        captions = ("without", *(words for words, _ in part))
        rows.append(_Row(name="flips and turns", captions=captions, groups=(first, *groups), plane=plane, difference=False))
    return rows


def _name(trial: Trial, policy: ViewPolicy) -> str:
    own = operations(policy)[trial.operation]
    apart = f".{trial.varied[0]}" if len(trial.varied) == 1 else ""
    chance = own.probability
    words = " / ".join(map(number, chance)) if isinstance(chance, tuple) else number(chance)
    return f"{trial.operation}{apart}\nprobability\n{words}"


def _level_words(
    trial: Trial, level: int, drawn: Sequence[ViewParams], groups: Sequence[ViewGroup], norm: Normalisation, setting: Setting
) -> str:
    values = {name: [value] for name, value in trial.levels[level].items()}
    full = {name: [float(value.flatten()[0])] for name, value in drawn[level + 1].groups[0].operations[trial.operation].values.items()}
    lost = lost_words(norm.channels, groups[level + 1].kept[0].tolist())
    words = operation_words(trial.operation, full | values, setting)
    return "\n".join(textwrap.wrap(", ".join(word for word in (words, lost) if word) or "no channel lost", 40)[:2])


def _plane(trial: Trial, policy: ViewPolicy, sight: Sight) -> Plane:
    """A plane in which the operation shows: one that holds the axis of thicker slices, else that of rotation, the last two axes."""
    if trial.operation == "thickness" and policy.thickness is not None:
        return _showing(sight, {policy.axes.index(policy.thickness.axis)})
    return _showing(sight, {len(policy.axes) - 2, len(policy.axes) - 1})


def _showing(sight: Sight, axes: set[int]) -> Plane:
    return max(sight.planes(0), key=lambda plane: len({plane.down, plane.across} & axes))


def _draw_row(figure: Any, row: _Row, top: float, sight: Sight, batch: Batch) -> None:
    write_words(figure, 0.05, top + _CAPTION + 0.1, row.name, size=_TEXT + 0.5, weight="bold")
    images = [unit_crop(sight, group, 0) for group in row.groups]
    for column, (image, group, words) in enumerate(zip(images, row.groups, row.captions)):
        write_words(figure, _LABEL + column * _CELL + 0.03, top + 0.06, words, size=_TEXT)
        axes = _cell(figure, column, top)
        spacing = group.spacing[0].tolist()
        paint(axes, image, row.plane, sight, spacing=spacing)
        name_sides(axes, sight.frames[0], row.plane, crop_steps(group, 0, batch.info.spacing[0].tolist()))
        if column == 0:
            draw_scale(axes, row.plane, group.pixels.shape[2:], spacing, unit_of(sight))
    if row.difference:
        column, aspect = len(images), aspect_of(row.plane, row.groups[0].spacing[0].tolist())
        words = _draw_difference(_cell(figure, column, top), images[0], images[-1], row.plane, sight, aspect)
        write_words(figure, _LABEL + column * _CELL + 0.03, top + 0.06, words, size=_TEXT)


def _cell(figure: Any, column: int, top: float) -> Any:
    return place_axes(figure, _LABEL + column * _CELL + 0.03, top + _CAPTION + 0.02, _CELL - 0.06, _CELL - 0.06)


def _draw_difference(axes: Any, before: Image, after: Image, plane: Plane, sight: Sight, aspect: float) -> str:
    """The change of the mean over bands where both are known, in a range of its own; returns what that range is."""
    known = plane.cut((before[1] & after[1])[None])[..., 0]
    change = plane.cut(after[0] - before[0]).mean(axis=-1)
    values = np.abs(change[known])
    peak = float(np.percentile(values, 99.5)) if values.size else 0.0
    rms = float(np.sqrt(np.mean(np.square(change[known])))) if values.size else 0.0
    if peak < _NOTHING:
        axes.text(0.5, 0.5, "no difference", transform=axes.transAxes, ha="center", fontsize=_TEXT)
        return "no difference"
    limit = peak
    axes.imshow(np.where(known, change, 0.0), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect=aspect)
    return f"difference, colours ±{sight.scale.amount(limit)}\nroot mean square {sight.scale.amount(rms)}"
