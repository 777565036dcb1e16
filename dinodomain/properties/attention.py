"""Where the class token looks, head by head (Caron 2021, figure 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.probes import attention_stats as stats
from dinodomain.probes.components import split_threshold
from dinodomain.properties.masks import Masks
from dinodomain.properties.picture import View, image_panel, map_panel, views_of
from dinodomain.properties.report import REFERENCE, UNTRAINED, Number, Property, measured
from dinodomain.properties.scene import PIXELS, Picture, Scene
from dinodomain.show.captions import length_unit
from dinodomain.show.panels import Panel, draw_panels, heat

_HEADS = 6
_WORDS = (
    "Each map shows which patches of the image the network's summary (its class token) reads in the last layer, one map for each attention "
    "head. Yellow is read most, black least; every map has a scale of its own. After pretraining heads usually settle on different things "
    "(an organ, the border of the body, roads, bright roofs); an untrained network reads everywhere alike."
)


def attention(scene: Scene, out: Path, masks: Masks) -> Property:
    """Maps of the heads, and how sharp, how different and how tied to content they are."""
    tiles = scene.tiles
    own = {kind: [_attention(tile, kind) for tile in tiles] for kind in scene.networks}
    contrast = [_contrast(tile) for tile in tiles]
    units = [tile.unit for tile in tiles]

    def told(name: str, meaning: str, measure: Callable[[np.ndarray, int], float], **more: Any) -> Number:
        values = {kind: np.array([measure(heads, place) for place, heads in enumerate(maps)]) for kind, maps in own.items()}
        return measured(name, meaning, values, units=units, **{"better": "neither", **more})

    numbers = [
        told("contrast sought", "mean contrast inside the patches that are read over that of all patches; 1: attention does not care "
                                "what it "
             "sees.", lambda heads, place: stats.lift(heads, tiles[place].valid, contrast[place]), chance=1.0, chance_name="no preference"),
        told("spread", "entropy of a head over the patches, 0 (one patch) to 1 (all alike).",
             lambda heads, place: stats.entropy(heads, tiles[place].valid)),
        told("area read", f"share of the patches that hold {stats.MASS:.0%} of a head's attention.",
             lambda heads, place: stats.area_of_mass(heads, tiles[place].valid), chance=stats.MASS, chance_name="all alike"),
        told("heads differ", "mean distance between the maps of two heads, 0 (the same) to 1 (nothing in common).",
             lambda heads, place: stats.head_difference(heads, tiles[place].valid)),
    ]  # fmt: skip
    for name, meaning, parts in _places(scene, tiles, masks):
        area = np.array([np.nan if part is None else part.sum() / len(part) for part in parts])
        numbers.append(told(name, meaning, _share_on(parts), chance=area, chance_name="its area"))
    figure = _draw(scene, out, own)
    return Property(name="attention", title="Attention of the class token", words=_WORDS, figures=(figure,), numbers=tuple(numbers))


def _attention(tile: Picture, kind: str) -> np.ndarray:
    found = tile.seen[kind].attention
    assert found is not None
    return found


def _contrast(tile: Picture) -> np.ndarray:
    """[P] standard deviation of the pixels inside each patch, mean over channels: a plain colour is no contrast."""
    own = tile.seen[PIXELS].tokens
    found: np.ndarray = own.reshape(len(own), len(tile.pixels), -1).std(axis=2).mean(axis=1)
    return found


def _places(scene: Scene, tiles: list[Picture], masks: Masks) -> Iterator[tuple[str, str, list[np.ndarray | None]]]:
    """What attention may lie on: name, meaning, and patches [P] bool of each tile; None for tiles that are not asked."""
    if not all(tile.valid.all() for tile in tiles):
        yield (
            "on real image",
            "share of the attention that goes to real image, not to padding or pixels without data.",
            [t.valid for t in tiles],
        )
    if length_unit(scene.domain.view_policy().axes) == "mm":
        bright: list[np.ndarray | None] = [_bright(tile) for tile in tiles]
        yield (
            "on bright patches",
            "share of the attention that goes to the brighter patches (tissue rather than air, by Otsu's threshold).",
            bright,
        )
    given = [masks.of(tile) for tile in tiles]
    drawn = [mask if mask is not None and mask.any() else None for mask in given]
    if any(mask is not None for mask in drawn):
        yield "on the mask", "share of the attention that goes to the masks given.", drawn


def _share_on(parts: list[np.ndarray | None]) -> Callable[[np.ndarray, int], float]:
    def measure(heads: np.ndarray, place: int) -> float:
        part = parts[place]
        return math.nan if part is None else stats.share_on(heads, part)

    return measure


def _bright(tile: Picture) -> np.ndarray:
    mean = tile.seen[PIXELS].tokens.mean(axis=1)
    found: np.ndarray = (mean > split_threshold(mean[tile.valid])) & tile.valid
    return found


def _draw(scene: Scene, out: Path, own: Mapping[str, list[np.ndarray]]) -> str:
    heads = min(_HEADS, len(own[REFERENCE][0]))
    rows = []
    views = views_of(scene.tiles)
    for view in views:
        maps = own[REFERENCE][view.number]
        row: list[Panel | None] = [image_panel(scene, view)]
        row += [_heat(scene, view, head) for head in maps[:heads]]
        row += [_heat(scene, view, own[kind][view.number].mean(axis=0)) for kind in (REFERENCE, UNTRAINED)]
        rows.append(row)
    names = ["image", *(f"pretrained\nhead {head + 1}" for head in range(heads)), "pretrained\nall heads", "untrained\nall heads"]
    words = "Brightness: how much the class token reads a patch in the last layer (black least, yellow most; each map on its own scale)."
    draw_panels(rows, out / "attention.png", title=f"{scene.domain.name}: attention of the class token", columns=names,
                labels=[view.label for view in views], words=words, notice=scene.plan.notice, cell=1.25)  # fmt: skip
    return "attention.png"


def _heat(scene: Scene, view: View, weights: np.ndarray) -> Panel:
    shown = np.where(view.tile.valid, weights, 0.0)
    low, high = np.percentile(shown[view.tile.valid], [1, 99.5]) if view.tile.valid.any() else (0.0, 1.0)
    return map_panel(scene, view, heat(np.maximum(shown - low, 0), max(float(high - low), 1e-12)), share=0.8)
