"""Dense matching: which patch of one image is which of another, by similarity alone, against known geometry."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from dinodomain.probes.matching import Matches, chance, close, match
from dinodomain.properties.picture import View, image_panel, views_of
from dinodomain.properties.report import REFERENCE, UNTRAINED, NotPossible, Property, measured
from dinodomain.properties.scene import PIXELS, Pair, Picture, Scene
from dinodomain.show.panels import BAD, GOOD, NEUTRAL, Lines, Panel, draw_panels
from dinodomain.show.sides import planes_of

_LINES = 14
_SHOWN = 3
_WORDS = (
    "Two crops of one tile, cut at different places and sizes, so that the true partner of every patch is known. A line joins two patches "
    "that are each other's most similar one: green where the partner lies within one patch of the true place, red where it does not. "
    "The second "
    "figure joins tiles of different patients or places, where no truth is known: judge by eye whether like meets like."
)


def matching(scene: Scene, out: Path) -> Property:
    """Share of patches that find their place, and lines between crops and between tiles."""
    pairs = [pair for pair in scene.pairs if (pair.index >= 0).sum() >= 4]
    if not pairs:
        raise NotPossible("no two crops of a tile overlap by four patches with data")
    kinds, units = tuple(scene.encoders), [pair.first.unit for pair in pairs]
    found = {kind: [_match(pair.first, pair.second, kind) for pair in pairs] for kind in kinds}
    hits = [
        {kind: close(found[kind][place].nearest, pair.position, pair.second.grid) for kind in kinds} for place, pair in enumerate(pairs)
    ]
    counted = [pair.index >= 0 for pair in pairs]
    blind = np.array([chance(pair.position, seen, pair.second.valid, pair.second.grid) for pair, seen in zip(pairs, counted)])
    numbers = [
        measured("found", "share of the patches seen in both crops whose most similar patch lies within one patch of the true place, 0 "
                          "to 1.",
                 {kind: np.array([hit[kind][seen].mean() for hit, seen in zip(hits, counted)]) for kind in kinds},
                 chance=blind, units=units),
        measured("true among mutual", "share of the lines (patches seen in both crops that are each other's most similar) that are "
                                      "true, 0 to 1.",
                 {kind: np.array([_true(found[kind][place], hits[place][kind], counted[place]) for place in range(len(pairs))])
                  for kind in kinds},
                 chance=blind, units=units),
    ]  # fmt: skip
    figures = [_draw(scene, out, pairs, found, hits)]
    other = _others(scene.tiles)
    if other:
        figures.append(_draw_others(scene, out, other))
        numbers.append(
            measured("mutual between tiles", "share of the patches that are each other's most similar in tiles of two units, 0 to 1; no "
                                             "truth is known.",
                     {kind: np.array([_mutual(*two, kind) for two in other]) for kind in kinds}, better="neither")
        )  # fmt: skip
    return Property(name="matching", title="Dense matching", words=_WORDS, figures=tuple(figures), numbers=tuple(numbers))


def _match(first: Picture, second: Picture, kind: str) -> Matches:
    one, two = first.seen[kind].tokens, second.seen[kind].tokens
    centre = np.concatenate([one[first.valid], two[second.valid]]).mean(axis=0)
    return match(one, two, first.valid, second.valid, centre)


def _true(found: Matches, hit: np.ndarray, counted: np.ndarray) -> float:
    """Share of the mutual matches of patches that have a partner; 0 where none has one, because no line is no success."""
    lines = found.mutual & counted
    return float(hit[lines].mean()) if lines.any() else 0.0


def _mutual(first: Picture, second: Picture, kind: str) -> float:
    return float(_match(first, second, kind).mutual[first.valid].mean())


def _others(tiles: list[Picture]) -> list[tuple[Picture, Picture]]:
    """Neighbouring tiles of the list that belong to two units and have data."""
    two = [(one, other) for one, other in pairwise(tiles) if one.unit != other.unit]
    return [(one, other) for one, other in two if one.valid.any() and other.valid.any() and len(one.grid) == len(other.grid)]


def _draw(scene: Scene, out: Path, pairs: list[Pair], found: dict[str, list[Matches]], hits: list[dict[str, np.ndarray]]) -> str:
    shown = _telling(pairs)
    rows: list[list[Panel | None]] = []
    labels, lines = [], []
    for place in shown:
        pair = pairs[place]
        plane = planes_of(pair.first.frame)[0]
        here, there = _cuts(pair, plane.through)
        one, two = (View(number=place, tile=picture, plane=plane, at=at) for picture, at in ((pair.first, here), (pair.second, there)))
        row: list[Panel | None] = []
        for kind in (REFERENCE, UNTRAINED, PIXELS):
            chosen = _chosen(found[kind][place], pair.first, one, pair.index >= 0)
            colours = [GOOD if hits[place][kind][patch] else BAD for patch in chosen]
            right = sum(colour == GOOD for colour in colours)
            lines.append(Lines(row=len(rows), column=len(row)))
            row += _joined(scene, one, two, chosen, found[kind][place].nearest[chosen], colours, f"{right} of {len(chosen)} lines true")
        rows.append(row)
        labels.append("\n".join(part for part in (f"tile {place + 1}", plane.name) if part))
    columns = ["pretrained:\ncrop 1", "crop 2", "untrained:\ncrop 1", "crop 2", "raw pixels:\ncrop 1", "crop 2"]
    deep = (
        "\nVolumes: crop 2 is shown at the true depth of crop 1's slice; a partner may lie at another depth, and is then red."
        if scene.store.ndim == 3
        else ""
    )
    draw_panels(rows, out / "matching.png", title=f"{scene.domain.name}: the same place in two crops", columns=columns,
                labels=labels,
                words=f"Lines join patches that are each other's most similar. Green: within one patch of the true place; red: "
                      f"elsewhere.{deep}",
                lines=lines, notice=scene.plan.notice)  # fmt: skip
    return "matching.png"


def _draw_others(scene: Scene, out: Path, other: list[tuple[Picture, Picture]]) -> str:
    rows: list[list[Panel | None]] = []
    labels, lines = [], []
    for first, second in other[:_SHOWN]:
        one, two = (views_of([picture])[0] for picture in (first, second))
        row: list[Panel | None] = []
        for kind in (REFERENCE, UNTRAINED, PIXELS):
            found = _match(first, second, kind)
            chosen = _chosen(found, first, one, first.valid)
            lines.append(Lines(row=len(rows), column=len(row)))
            row += _joined(scene, one, two, chosen, found.nearest[chosen], [NEUTRAL] * len(chosen), "")
        rows.append(row)
        labels.append(f"two tiles\n{one.plane.name}")
    columns = ["pretrained:\none tile", "another", "untrained:\none tile", "another", "raw pixels:\none tile", "another"]
    draw_panels(rows, out / "matching_others.png", title=f"{scene.domain.name}: alike places in two different tiles", columns=columns,
                labels=labels,
                words="Lines join patches that are each other's most similar, in tiles of two units (patients, places). No truth is "
                      "known: does like meet like?",
                lines=lines, notice=scene.plan.notice)  # fmt: skip
    return "matching_others.png"


def _telling(pairs: list[Pair]) -> list[int]:
    """The first pairs of which a quarter or more of the patches is seen twice, and further ones where those are too few."""
    order = sorted(range(len(pairs)), key=lambda place: (pairs[place].index >= 0).mean() < 0.25)  # stable
    return sorted(order[:_SHOWN])


def _cuts(pair: Pair, through: int | None) -> tuple[float, float]:
    """Shares of the way through both crops: a slice near the middle of the first that the second holds, and its true depth there."""
    if through is None:
        return 0.5, 0.5
    depth = np.unravel_index(np.arange(len(pair.index)), pair.first.grid)[through]
    seen = pair.index >= 0
    slices, counts = np.unique(depth[seen], return_counts=True)
    full = slices[counts >= 0.8 * counts.max()]
    best = int(full[np.abs(full - pair.first.grid[through] / 2).argmin()])
    true = float(pair.position[seen & (depth == best), through].mean())
    return (best + 0.5) / pair.first.grid[through], (true + 0.5) / pair.second.grid[through]


def _chosen(found: Matches, first: Picture, view: View, allowed: np.ndarray) -> np.ndarray:
    """Mutual matches that are drawn: spread evenly over those of the plane that is shown."""
    mutual = found.mutual & allowed
    if view.plane.through is not None:
        depth = np.unravel_index(np.arange(len(mutual)), first.grid)[view.plane.through]
        mutual &= depth == min(int(view.at * first.grid[view.plane.through]), first.grid[view.plane.through] - 1)
    places = np.flatnonzero(mutual)
    return places[np.unique(np.linspace(0, len(places) - 1, min(_LINES, len(places))).round().astype(int))] if len(places) else places


def _joined(
    scene: Scene, one: View, two: View, here: np.ndarray, there: np.ndarray, colours: list[str], caption: str
) -> list[Panel | None]:
    panels: list[Panel | None] = []
    for view, patches in ((one, here), (two, there)):
        base = image_panel(scene, view, caption=caption if view is one else "")
        cells = np.stack(np.unravel_index(patches, view.tile.grid), axis=-1)
        side = np.array([size / count for size, count in zip(view.tile.pixels.shape[1:], view.tile.grid)])
        across, down = view.plane.place((cells + 0.5) * side - 0.5, view.tile.pixels.shape[1:])
        panels.append(
            Panel(picture=base.picture, aspect=base.aspect, caption=base.caption, sides=base.sides,
                  points=np.stack([across, down], axis=-1), colours=colours)
        )  # fmt: skip
    return panels
