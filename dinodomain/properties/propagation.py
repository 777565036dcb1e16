"""A mask carried by similarity of patches: through the slices of a volume, and from one date of a place to another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dinodomain.errors import UserError
from dinodomain.loader import Loader, find_tiles
from dinodomain.probes.matching import chance, close, match
from dinodomain.probes.propagate import carry, there_and_back, walks
from dinodomain.probes.regions import normalised_cut, overlap
from dinodomain.properties.masks import Masks
from dinodomain.properties.picture import View, image_panel, mask_panel
from dinodomain.properties.report import REFERENCE, UNTRAINED, NotPossible, Number, Property, measured
from dinodomain.properties.scene import PIXELS, Pair, Picture, Scene
from dinodomain.show.panels import Panel, draw_panels
from dinodomain.show.sides import Plane, planes_of
from dinodomain.types import Batch

_SHOWN = 7
_NAMES = {REFERENCE: "pretrained", UNTRAINED: "untrained", PIXELS: "raw pixels"}
_CUT = "found by cutting it where its raw pixels are least alike, which favours no network, but raw pixels"
_MOVE = 4
"""One part in this many of a side by which the second date is cut elsewhere."""
_SLICES = (
    "A region in one slice ({origin}) is carried slice by slice to both ends of the volume: each patch takes over what the patches "
    "most like it in the slices before were (DINO's protocol for video). Rows show the same start carried by each kind of features. "
    "{judged}"
)
_DATES = (
    "A region found at one date ({origin}) is carried to another date of the same place by similarity of patches. Images of both dates "
    "lie on one pixel grid, so the true partner of every patch is known. For the first number the two images are cut out of the dates at "
    "different places: features that only know where a patch lies in its image find nothing. High numbers mean that features look through "
    "season and light; real change on the ground lowers them, too."
)
_CYCLE = (
    "Without masks the number is what is left of the region after the way there and back. It punishes losing the region, and rewards "
    "features "
    "that only know where a patch lies; read it together with the picture. Give masks=CSV for a number against the truth."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volume:
    """One volume as a sequence of slices.

    Attributes:
        number: Of the tile.
        tile: The tile.
        plane: The plane of its slices.
        begin: Slice in which the region is given.
        start: [P'] the region in that slice.
        truth: [S, P'] masks of all slices, or None.
        valid: [S, P'].
    """

    number: int
    tile: Picture
    plane: Plane
    begin: int
    start: np.ndarray
    truth: np.ndarray | None
    valid: np.ndarray

    @property
    def axis(self) -> int:
        """Array axis across the slices."""
        assert self.plane.through is not None
        return self.plane.through

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a slice."""
        rows, columns = (side for axis, side in enumerate(self.tile.grid) if axis != self.axis)
        return rows, columns

    def slices(self, values: np.ndarray) -> np.ndarray:
        """[P, ...] of the volume to [S, P', ...]."""
        shaped = np.moveaxis(values.reshape(*self.tile.grid, *values.shape[1:]), self.axis, 0)
        return shaped.reshape(len(shaped), -1, *values.shape[1:])

    @property
    def walks(self) -> list[list[int]]:
        """Slices in the order in which they are visited, from the middle to both ends of what holds data."""
        real = np.flatnonzero(self.valid.any(axis=1))
        first, stop = int(real[0]), int(real[-1]) + 1
        return [[first + step for step in walk] for walk in walks(self.begin - first, stop - first)]

    def whole(self, values: np.ndarray) -> np.ndarray:
        """[S, P'] back to [P]."""
        found: np.ndarray = np.moveaxis(values.reshape(len(values), *self.grid), 0, self.axis).reshape(-1)
        return found


def slices(scene: Scene, out: Path, masks: Masks) -> Property:
    """Masks carried through slices, against masks where there are some, else there and back."""
    if scene.store.ndim != 3:
        raise NotPossible("the store holds images, and slices are those of volumes")
    volumes = [found for number, tile in enumerate(scene.tiles) if (found := _volume(scene, number, tile, masks)) is not None]
    if not volumes:
        raise NotPossible("no volume has a region in the slice where it would begin that could be carried")
    carried = {kind: [_carried(volume, kind) for volume in volumes] for kind in scene.encoders}
    drawn = all(volume.truth is not None for volume in volumes)
    numbers = [_judge(volumes, carried) if drawn else _cycles(volumes, tuple(scene.encoders))]
    origin = "the mask given, in the slice that holds most of it" if drawn else f"the middle one of those with data, {_CUT}"
    words = _SLICES.format(origin=origin, judged="" if drawn else _CYCLE)
    return Property(name="slices", title="A region carried through slices", words=words,
                    figures=(_draw_slices(scene, out, volumes, carried),), numbers=tuple(numbers))  # fmt: skip


def _volume(scene: Scene, number: int, tile: Picture, masks: Masks) -> _Volume | None:
    plane = next((one for one in planes_of(tile.frame) if one.name == "axial"), planes_of(tile.frame)[0])
    assert plane.through is not None
    count = tile.grid[plane.through]
    bare = _Volume(number=number, tile=tile, plane=plane, begin=count // 2, start=np.zeros(0), truth=None, valid=np.zeros(0))
    valid = bare.slices(tile.valid)
    mask = masks.of(tile)
    if mask is not None:
        truth = bare.slices(mask)
        begin = int(truth.sum(axis=1).argmax())
        return replace(bare, begin=begin, start=truth[begin], truth=truth, valid=valid) if truth.any() and count > 1 else None
    real = np.flatnonzero(valid.any(axis=1))
    if len(real) < 2:
        return None
    begin = int(real[len(real) // 2])
    start = normalised_cut(bare.slices(tile.seen[PIXELS].tokens)[begin], valid[begin])
    return replace(bare, begin=begin, start=start, valid=valid) if start.any() else None


def _carried(volume: _Volume, kind: str) -> np.ndarray:
    """[S, P'] bool."""
    tokens = volume.slices(volume.tile.seen[kind].tokens)
    tokens = tokens - tokens.mean(axis=(0, 1))
    out = np.zeros(tokens.shape[:2], bool)
    out[volume.begin] = volume.start
    for walk in volume.walks:
        out[walk] = carry(tokens[walk], volume.start, volume.grid) >= 0.5
    out &= volume.valid
    return out


def _judge(volumes: list[_Volume], carried: Mapping[str, list[np.ndarray]]) -> Number:
    meaning = "mean intersection over union of carried and true mask over the slices that hold either, the first left out, 0 to 1."
    values = {kind: np.array([_score(volume, own) for volume, own in zip(volumes, found)]) for kind, found in carried.items()}
    still = np.array([_score(volume, volume.start & volume.valid) for volume in volumes])  # as what is carried is cut
    return measured("overlap with masks", meaning, values, chance=still, chance_name="left where it is", units=_units(volumes))


def _units(volumes: list[_Volume]) -> list[str]:
    return [volume.tile.unit for volume in volumes]


def _score(volume: _Volume, own: np.ndarray) -> float:
    assert volume.truth is not None
    judged = [
        overlap(own[place], volume.truth[place])
        for place in range(len(own))
        if place != volume.begin and (own[place] | volume.truth[place]).any()
    ]
    return float(np.mean(judged)) if judged else math.nan


def _cycles(volumes: list[_Volume], kinds: tuple[str, ...]) -> Number:
    meaning = "intersection over union of the region before and after the way to the last slice and back, mean of both ends, 0 to 1."
    return measured(
        "left after there and back",
        meaning,
        {kind: np.array([_cycle(volume, kind) for volume in volumes]) for kind in kinds},
        units=_units(volumes),
    )


def _cycle(volume: _Volume, kind: str) -> float:
    tokens = volume.slices(volume.tile.seen[kind].tokens)
    tokens = tokens - tokens.mean(axis=(0, 1))
    back = [there_and_back(tokens[walk], volume.start, volume.grid) for walk in volume.walks]
    return float(np.mean([overlap(found, volume.start.astype(bool)) for found in back]))


def _draw_slices(scene: Scene, out: Path, volumes: list[_Volume], carried: Mapping[str, list[np.ndarray]]) -> str:
    rows: list[list[Panel | None]] = []
    labels = []
    count = min(volume.tile.grid[volume.axis] for volume in volumes)
    for place, volume in enumerate(volumes[:2]):
        cuts = np.unique(np.linspace(0.12, 0.88, min(_SHOWN, count)) * count // 1).astype(int)
        cuts = np.unique(np.append(cuts, volume.begin))[: _SHOWN + 1]
        maps = {_NAMES[kind]: carried[kind][place] for kind in _NAMES}
        maps |= {} if volume.truth is None else {"mask given": volume.truth}
        for name, own in maps.items():
            flat = volume.whole(own)
            rows.append([_slice(scene, volume, int(cut), flat) for cut in cuts])
            labels.append(f"tile {volume.number + 1}\n{name}")
    most = max(len(row) for row in rows)
    name = volumes[0].plane.name
    words = f"Cyan: the region where it was given; yellow: as carried from there, slice by slice. Some of the {name} slices are shown."
    draw_panels(rows, out / "slices.png", title=f"{scene.domain.name}: a region carried through slices", columns=[""] * most,
                labels=labels, words=words, notice=scene.plan.notice, cell=1.15)  # fmt: skip
    return "slices.png"


def _slice(scene: Scene, volume: _Volume, cut: int, flat: np.ndarray) -> Panel:
    count = volume.tile.grid[volume.axis]
    view = View(number=volume.number, tile=volume.tile, plane=volume.plane, at=(cut + 0.5) / count)
    own = cut == volume.begin
    step = volume.tile.spacing[volume.axis] * scene.backbone.patch[volume.axis] * (cut - volume.begin)
    told = f"{step:+.0f} mm" if math.isfinite(step) else f"slice {cut - volume.begin:+d}"
    return mask_panel(scene, view, flat, caption="start" if own else told, colour="#4fe3ff" if own else "#ffd23f")


def dates(scene: Scene, out: Path, masks: Masks) -> Property:
    """Places found again at another date, and a region carried there."""
    twins = _twins(scene)
    kinds, units = tuple(scene.encoders), [one.unit for one, _ in twins]
    moved = [_moved(scene, one, two) for one, two in twins]
    found = {kind: [math.nan if pair is None else _across(pair, kind) for pair in moved] for kind in kinds}
    blind = np.array([math.nan if pair is None else _blind(pair) for pair in moved])
    starts = [_region(scene, one, masks) for one, _ in twins]
    carried = {kind: [_to_date(*twin, start, kind) for twin, start in zip(twins, starts)] for kind in kinds}
    numbers = [
        measured("found", "share of the patches of a crop whose most similar patch in another crop at the other date lies within one patch "
                          "of the same place, 0 to 1.",
                 {kind: np.array(found[kind]) for kind in kinds}, chance=blind, units=units),
        _date_masks(scene, twins, carried, masks) or measured(
            "left after there and back", "intersection over union of the region before and after the way to the other date and back, 0 "
                                         "to 1.",
            {kind: np.array([_date_cycle(*twin, start, kind) for twin, start in zip(twins, starts)]) for kind in kinds}, units=units),
    ]  # fmt: skip
    origin = "the mask given" if masks else _CUT
    return Property(name="dates", title="The same place at another date", words=_DATES.format(origin=origin),
                    figures=(_draw_dates(scene, out, twins, starts, carried),), numbers=tuple(numbers))  # fmt: skip


def _twins(scene: Scene) -> list[tuple[Picture, Picture]]:
    """Tiles at two dates.

    Raises:
        NotPossible: No tile has two.
    """
    if scene.store.ndim == 3:
        raise NotPossible("volumes of one patient are not registered to each other, so no two boxes show the same place")
    plan = replace(scene.plan.loader, pairs="dates", dates=2, batch=1)
    try:
        tiles = find_tiles(scene.store, plan)
    except UserError as error:
        raise NotPossible(f"the store has no two dates of one place: {error.problem}") from None
    kept: list[tuple[Picture, Picture]] = []
    with closing(iter(Loader(scene.store, plan, seed=scene.plan.seed, tiles=tiles))) as batches:
        for _ in range(min(scene.plan.num, len(tiles))):
            one, two = (scene.picture(part) for part in _apart(next(batches)))
            if one.valid.any() and two.valid.any():
                kept.append((one, two))
    if not kept:
        raise NotPossible("no tile has data at both dates")
    return kept


def _apart(batch: Batch) -> Iterator[Batch]:
    """The dates of a batch of one, each as a batch of one date."""
    for date in range(batch.pixels.shape[1]):
        info = {name: getattr(batch.info, name)[date : date + 1] for name in type(batch.info).__dataclass_fields__}
        valid = None if batch.valid is None else batch.valid[:, date : date + 1]
        own = slice(date, date + 1)
        yield replace(batch, pixels=batch.pixels[:, own], valid=valid, info=replace(batch.info, **info), rows=batch.rows[own],
                      origins=batch.origins[own])  # fmt: skip


def _centred(one: Picture, two: Picture, kind: str) -> np.ndarray:
    """[2, P, E] tokens of both dates, each date's mean taken off: light and season shift all patches alike."""
    parts = [picture.seen[kind].tokens - picture.seen[kind].tokens[picture.valid].mean(axis=0) for picture in (one, two)]
    return np.stack(parts)


def _moved(scene: Scene, one: Picture, two: Picture) -> Pair | None:
    """Crops of both dates that begin at different patches; None where the grid is too small for that.

    At one place in both, features that hold nothing but a position would find every patch.
    """
    shift = np.maximum(2, np.array(one.grid) // _MOVE)  # more than the one patch that a match may lie beside
    count = tuple((np.array(one.grid) - shift).tolist())
    if (np.array(count) <= shift).any() or one.grid != two.grid:
        return None
    first, second = scene.part(one, (0,) * len(count), count), scene.part(two, tuple(shift.tolist()), count)
    true = np.stack(np.unravel_index(np.arange(len(first.valid)), count), axis=-1) - shift
    inside = (true >= 0).all(axis=1) & first.valid
    index = np.ravel_multi_index(np.maximum(true, 0).T, count)
    index = np.where(inside & second.valid[index], index, -1)
    return Pair(first=first, second=second, index=index, position=true.astype(float)) if (index >= 0).any() else None


def _across(pair: Pair, kind: str) -> float:
    tokens = _centred(pair.first, pair.second, kind)
    found = match(tokens[0], tokens[1], pair.first.valid, pair.second.valid, np.zeros(tokens.shape[2]))
    return float(close(found.nearest, pair.position, pair.second.grid)[pair.index >= 0].mean())


def _blind(pair: Pair) -> float:
    return chance(pair.position, pair.index >= 0, pair.second.valid, pair.second.grid)


def _region(scene: Scene, tile: Picture, masks: Masks) -> np.ndarray:
    mask = masks.of(tile)
    return mask if mask is not None and mask.any() else normalised_cut(tile.seen[PIXELS].tokens, tile.valid)


def _grid(tile: Picture) -> tuple[int, int]:
    rows, columns = tile.grid
    return rows, columns


def _to_date(one: Picture, two: Picture, start: np.ndarray, kind: str) -> np.ndarray:
    found: np.ndarray = (carry(_centred(one, two, kind), start, _grid(one))[1] >= 0.5) & two.valid
    return found


def _date_cycle(one: Picture, two: Picture, start: np.ndarray, kind: str) -> float:
    return overlap(there_and_back(_centred(one, two, kind), start, _grid(one)), start) if start.any() else math.nan


def _date_masks(scene: Scene, twins: list[tuple[Picture, Picture]], carried: Mapping[str, list[np.ndarray]], masks: Masks) -> Number | None:
    """Overlap with the masks of the other date; None where no place has masks of both dates with something in them."""
    truth = [(masks.of(one), masks.of(two)) for one, two in twins]
    kept = [
        (place, first, second)
        for place, (first, second) in enumerate(truth)
        if first is not None and second is not None and first.any() and second.any()
    ]
    if not kept:
        return None
    values = {kind: np.array([overlap(own[place], second) for place, _, second in kept]) for kind, own in carried.items()}
    still = np.array([overlap(first & twins[place][1].valid, second) for place, first, second in kept])
    meaning = "intersection over union of the carried mask with that of the other date, 0 to 1."
    return measured(
        "overlap with masks",
        meaning,
        values,
        chance=still,
        chance_name="left as it was",
        units=[twins[place][0].unit for place, _, _ in kept],
    )


def _draw_dates(
    scene: Scene, out: Path, twins: list[tuple[Picture, Picture]], starts: list[np.ndarray], carried: Mapping[str, list[np.ndarray]]
) -> str:
    rows: list[list[Panel | None]] = []
    labels = []
    for place, (one, two) in enumerate(twins[:4]):
        first, second = (View(number=place, tile=tile, plane=planes_of(tile.frame)[0]) for tile in (one, two))
        row: list[Panel | None] = [mask_panel(scene, first, starts[place], caption=one.label, colour="#4fe3ff")]
        row.append(image_panel(scene, second, caption=two.label))
        rows.append(row + [mask_panel(scene, second, carried[kind][place], caption=two.label) for kind in _NAMES])
        labels.append(f"pair {place + 1}")
    columns = ["one date:\nregion given", "other date", *(f"other date:\n{name}" for name in _NAMES.values())]
    draw_panels(rows, out / "dates.png", title=f"{scene.domain.name}: a region carried to another date", columns=columns, labels=labels,
                words="Cyan: the region at one date; yellow: as carried to the other date by each kind of features.",
                notice=scene.plan.notice)  # fmt: skip
    return "dates.png"
