"""Principal components of patch tokens as colours (DINOv2, figure 1), shared over images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinodomain.probes.components import colours, components, explained_by, split_threshold
from dinodomain.probes.regions import overlap
from dinodomain.properties.masks import Masks
from dinodomain.properties.picture import image_panel, map_panel, views_of
from dinodomain.properties.report import REFERENCE, UNTRAINED, Property, measured
from dinodomain.properties.scene import PIXELS, Picture, Scene
from dinodomain.show.panels import Panel, draw_panels

_WORDS = (
    "The three directions in which patch tokens of all shown images differ most become red, green and blue, with one colour code for all "
    "images: patches of one colour are alike to the network, in whichever image they lie. So look for one tissue, organ or land cover that "
    "keeps its colour from image to image. In the column 'foreground' the first component is cut in two, the side that touches the "
    "image border "
    "more is taken for background and greyed, and the rest is coloured anew, as DINOv2's figure does; where there "
    "is no background (most maps) that column means little. The numbers say how much of these colours plain brightness, mere position "
    "or the image as a whole would have given."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maps:
    """Of one kind of features: colours and foreground of each tile, and four scalars."""

    colours: list[np.ndarray]
    foreground: list[np.ndarray]
    cut_colours: list[np.ndarray]
    explained: float
    by_brightness: float
    by_place: float
    by_image: float


def principal(scene: Scene, out: Path, masks: Masks) -> Property:
    """Maps, explained variance, and what brightness and place alone explain of them."""
    tiles = scene.tiles
    found = {kind: _maps(tiles, kind) for kind in scene.encoders}
    numbers = [
        measured("explained", "share of the variance of patch tokens that the three colours hold, 0 to 1.",
                 {kind: maps.explained for kind, maps in found.items()}, better="neither"),
        measured("only brightness", "share of the three components that the mean and the contrast of a patch's pixels explain, 0 to 1; "
                 "what is left is more than brightness.",
                 {kind: maps.by_brightness for kind, maps in found.items() if kind != PIXELS}, better="neither"),
        measured("only place", "share of the three components that the position in the image explains, 0 to 1; high values say that the "
                               "map "
                 "shows where a patch lies and not what it holds.",
                 {kind: maps.by_place for kind, maps in found.items()}, better="neither"),
        measured("only the image", "share of the three components that knowing which image a patch is from explains, 0 to 1; high "
                                   "values say "
                 "that images differ from each other more than what lies in them.",
                 {kind: maps.by_image for kind, maps in found.items()}, better="neither"),
    ]  # fmt: skip
    drawn = [masks.of(tile) for tile in tiles]
    if any(mask is not None and mask.any() for mask in drawn):
        values = {
            kind: np.array([_best(part, mask, tile.valid) for part, mask, tile in zip(maps.foreground, drawn, tiles)])
            for kind, maps in found.items()
        }
        numbers.insert(0, measured("overlap with masks", "intersection over union of the better side of the first component with the masks "
                                   "given, 0 to 1.", values, units=[tile.unit for tile in tiles]))  # fmt: skip
    return Property(name="components", title="Principal components of patch tokens", words=_WORDS, figures=(_draw(scene, out, found),),
                    numbers=tuple(numbers))  # fmt: skip


def _best(part: np.ndarray, mask: np.ndarray | None, valid: np.ndarray) -> float:
    """NaN where there is nothing to overlap with."""
    if mask is None or not mask.any():
        return math.nan
    return max(overlap(part, mask), overlap(~part & valid, mask))


def _maps(tiles: list[Picture], kind: str) -> _Maps:
    valid = np.concatenate([tile.valid for tile in tiles])
    tokens = np.concatenate([tile.seen[kind].tokens for tile in tiles])
    ends = np.cumsum([len(tile.valid) for tile in tiles])[:-1]
    found = components(tokens[valid])
    scores = _three(found.scores(tokens))
    first = scores[:, 0] > split_threshold(scores[valid, 0])
    border = np.concatenate([_border(tile.grid) for tile in tiles]) & valid
    shares = [(border & side & valid).sum() / max((side & valid).sum(), 1) for side in (first, ~first)]
    foreground = (first if shares[0] <= shares[1] else ~first) & valid
    again = _three(components(tokens[foreground]).scores(tokens)) if foreground.sum() > 3 else scores
    inner = colours(again, foreground if foreground.any() else valid)
    weight = np.pad(found.explained, (0, 3 - len(found.explained)))
    return _Maps(
        colours=np.split(colours(scores, valid), ends),
        foreground=np.split(foreground, ends),
        cut_colours=np.split(np.where(foreground[:, None], inner, 0.15), ends),
        explained=float(found.explained.sum()),
        by_brightness=explained_by(scores[valid], np.concatenate([_brightness(tile) for tile in tiles])[valid], weight),
        by_image=explained_by(scores[valid], np.eye(len(tiles))[_numbers(tiles)][valid], weight),
        by_place=explained_by(scores[valid], np.concatenate([_place(tile.grid) for tile in tiles])[valid], weight),
    )


def _three(scores: np.ndarray) -> np.ndarray:
    return np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))


def _brightness(tile: Picture) -> np.ndarray:
    """[P, 2 C] mean and contrast of each channel of each patch."""
    own = tile.seen[PIXELS].tokens.reshape(len(tile.valid), len(tile.pixels), -1)
    return np.concatenate([own.mean(axis=2), own.std(axis=2)], axis=1)


def _numbers(tiles: list[Picture]) -> np.ndarray:
    """[n] which tile each patch belongs to."""
    return np.repeat(np.arange(len(tiles)), [len(tile.valid) for tile in tiles])


def _place(grid: tuple[int, ...]) -> np.ndarray:
    """[P, ...] powers up to the second of the position along each axis."""
    axes = [np.linspace(-1, 1, side) for side in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(grid))
    products = [places[:, one] * places[:, two] for one in range(len(grid)) for two in range(one, len(grid))]
    return np.concatenate([places, np.stack(products, axis=1)], axis=1)


def _border(grid: tuple[int, ...]) -> np.ndarray:
    inside = np.zeros(grid, bool)
    inside[tuple(slice(1, -1) for _ in grid)] = True
    return ~inside.reshape(-1)


def _draw(scene: Scene, out: Path, found: Mapping[str, _Maps]) -> str:
    views = views_of(scene.tiles)
    kinds = [kind for kind in (REFERENCE, UNTRAINED, PIXELS) if kind in found]
    rows: list[list[Panel | None]] = []
    for view in views:
        row: list[Panel | None] = [image_panel(scene, view)]
        for kind in kinds:
            row.append(map_panel(scene, view, found[kind].colours[view.number], share=0.9))
            if kind == REFERENCE:
                row.append(map_panel(scene, view, found[kind].cut_colours[view.number], share=0.9))
        rows.append(row)
    columns = ["image", "pretrained", "pretrained,\nforeground", "untrained", "raw pixels"]
    words = (
        "Colours: the three directions in which patches of all images differ most; one colour code per column, shared by all its images.\n"
    )
    words += "Follow one structure down a column: it should keep its colour. Foreground: background greyed, the rest coloured anew."
    draw_panels(rows, out / "components.png", title=f"{scene.domain.name}: principal components of patch tokens", columns=columns,
                labels=[view.label for view in views], words=words, notice=scene.plan.notice)  # fmt: skip
    return "components.png"
