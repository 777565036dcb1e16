"""Regions without labels: clusters of patch tokens over images, and an object cut out of each (TokenCut)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinodomain.probes.regions import agreement, assign, best_overlap, cluster, normalised_cut, overlap, silhouette
from dinodomain.properties.masks import Masks
from dinodomain.properties.picture import image_panel, map_panel, mask_panel, views_of
from dinodomain.properties.report import REFERENCE, UNTRAINED, NotPossible, Number, Property, measured
from dinodomain.properties.scene import PIXELS, Pair, Scene
from dinodomain.show.panels import Panel, draw_panels, region_colours

_WORDS = (
    "Patch tokens of all images are sorted into {count} groups by similarity alone (k-means); no label was given. One colour is one "
    "group, the "
    "same in all images of a column. Colours of two columns have nothing to do with each other. In the column 'cut' each image by "
    "itself is "
    "divided in two where its patches are least alike (TokenCut), and the part found is kept bright. The first number asks whether a "
    "place is "
    "given the same group when it is seen again in another crop: a grouping that only follows the position in the crop fails that."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Of one kind of features: groups of each tile [P] (-1 without data), centres, what is taken off tokens, silhouette, cuts."""

    regions: list[np.ndarray]
    centres: np.ndarray
    centre: np.ndarray
    silhouette: float
    cuts: list[np.ndarray]


def regions(scene: Scene, out: Path, masks: Masks) -> Property:
    """Groups, how stable they are from crop to crop, and how they fit masks where there are some."""
    valid = sum(int(tile.valid.sum()) for tile in scene.tiles)
    if valid < 4 * scene.plan.regions:
        raise NotPossible(f"{valid} patches are too few for {scene.plan.regions} groups; raise num or size, or lower regions")
    found = {kind: _group(scene, kind) for kind in scene.encoders}
    pairs = scene.pairs
    units = [pair.first.unit for pair in pairs]
    cuts = {kind: [_cuts(pair, kind) for pair in pairs] for kind in found}
    numbers = [
        measured("same group in another crop", "chance-corrected share (Cohen's kappa) of places that fall into the same group in two "
                                               "crops "
                 "of a tile, 0 (as by chance) to 1.",
                 {kind: np.array([_same(pair, kind, own) for pair in pairs]) for kind, own in found.items()}, chance=0.0, units=units),
        measured("same cut in another crop", "the same for the cut, 0 to 1; by chance: the pretrained network's cuts of two tiles.",
                 {kind: np.array([_same_cut(*two) for two in zip(pairs, own, strict=True)]) for kind, own in cuts.items()},
                 chance=_cut_by_chance(pairs, cuts[REFERENCE]), chance_name="another tile", units=units),
        measured("silhouette", "how far groups lie apart, -1 to 1; says whether there are groups, not whether they mean anything.",
                 {kind: own.silhouette for kind, own in found.items()}, better="neither"),
        *_on_masks(scene, found, masks),
    ]  # fmt: skip
    return Property(
        name="regions", title="Regions without labels", words=_WORDS.format(count=scene.plan.regions), figures=(_draw(scene, out, found),),
        numbers=tuple(numbers),
    )  # fmt: skip


def _group(scene: Scene, kind: str) -> _Found:
    tiles = scene.tiles
    valid = np.concatenate([tile.valid for tile in tiles])
    tokens = np.concatenate([tile.seen[kind].tokens for tile in tiles])
    centre = tokens[valid].mean(axis=0)
    own = tokens[valid] - centre
    labels, centres = cluster(own, scene.plan.regions, scene.plan.seed)
    every = np.full(len(valid), -1)
    every[valid] = labels
    ends = np.cumsum([len(tile.valid) for tile in tiles])[:-1]
    return _Found(
        regions=np.split(every, ends), centres=centres, centre=centre, silhouette=silhouette(own, labels, scene.plan.seed),
        cuts=[normalised_cut(tile.seen[kind].tokens, tile.valid) for tile in tiles],
    )  # fmt: skip


def _same(pair: Pair, kind: str, found: _Found) -> float:
    seen = pair.index >= 0
    first, second = (assign(picture.seen[kind].tokens - found.centre, found.centres) for picture in (pair.first, pair.second))
    return agreement(first[seen], second[pair.index[seen]])


def _cuts(pair: Pair, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """[P] bool of both crops."""
    first, second = (normalised_cut(picture.seen[kind].tokens, picture.valid) for picture in (pair.first, pair.second))
    return first, second


def _same_cut(pair: Pair, cuts: tuple[np.ndarray, np.ndarray]) -> float:
    """Which side is the object may change with what else a crop holds; the better of both ways counts, and 0 is the least."""
    seen = pair.index >= 0
    here, there = cuts[0][seen], cuts[1][pair.index[seen]]
    found = [agreement(here.astype(int), side.astype(int)) for side in (there, ~there)]
    return 0.0 if not np.isfinite(found).any() else max(0.0, float(np.nanmax(found)))


def _cut_by_chance(pairs: list[Pair], cuts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """[pairs] the same, mean over the second crops of all other tiles: the better of both ways is above 0 for unlike cuts as well."""
    others = [[second for _, second in cuts[:place] + cuts[place + 1 :]] for place in range(len(pairs))]
    return np.array(
        [
            np.mean([_same_cut(pair, (own[0], second)) for second in unlike]) if unlike else np.nan
            for pair, own, unlike in zip(pairs, cuts, others, strict=True)
        ]
    )


def _on_masks(scene: Scene, found: Mapping[str, _Found], masks: Masks) -> list[Number]:
    drawn = [masks.of(tile) for tile in scene.tiles]
    kept = [(place, mask) for place, mask in enumerate(drawn) if mask is not None and mask.any()]
    if not kept:
        return []
    valid = [tile.valid for tile in scene.tiles]
    count, units = scene.plan.regions, [scene.tiles[place].unit for place, _ in kept]
    return [
        measured("mask: best group", "intersection over union of the masks given with the group that fits each best, 0 to 1.",
                 {kind: np.array([best_overlap(own.regions[place], mask, count) for place, mask in kept]) for kind, own in found.items()},
                 units=units),
        measured("mask: cut", "intersection over union of the masks given with the better side of the cut, 0 to 1.",
                 {kind: np.array([_better_side(own.cuts[place], mask, valid[place]) for place, mask in kept])
                  for kind, own in found.items()},
                 units=units),
    ]  # fmt: skip


def _better_side(cut: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> float:
    return max(overlap(cut, mask), overlap(~cut & valid, mask))


def _draw(scene: Scene, out: Path, found: Mapping[str, _Found]) -> str:
    views = views_of(scene.tiles)
    rows: list[list[Panel | None]] = []
    for view in views:
        row: list[Panel | None] = [image_panel(scene, view)]
        row += [
            map_panel(scene, view, region_colours(found[kind].regions[view.number]), share=0.65) for kind in (REFERENCE, UNTRAINED, PIXELS)
        ]
        row += [mask_panel(scene, view, found[kind].cuts[view.number]) for kind in (REFERENCE, UNTRAINED)]
        rows.append(row)
    columns = ["image", "groups:\npretrained", "groups:\nuntrained", "groups:\nraw pixels", "cut:\npretrained", "cut:\nuntrained"]
    words = (
        f"{scene.plan.regions} groups of patches by similarity alone, without labels; one colour is one group, the same down a column "
        f"(columns are "
        "independent).\nCut: each image divided in two where its patches are least alike; the part found is kept bright."
    )
    draw_panels(rows, out / "regions.png", title=f"{scene.domain.name}: regions without labels", columns=columns,
                labels=[view.label for view in views], words=words, notice=scene.plan.notice)  # fmt: skip
    return "regions.png"
