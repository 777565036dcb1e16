"""Which tiles a run measures its teacher on and never trains on: a pure function of the tile list, the seed and the plan.

Tiles are taken one of each unit before a second of any, in the order of a keyed hash of (seed, tile id), so that the group is the same
in every process and after every resume. With a held tile goes whatever would show its pixels in training: tiles of its source that overlap
it (further ones where reads move, ``loader.aligned=false``), its copies elsewhere in the store, and where several dates are drawn together
its whole source. Not the audit holdout, which no part of a run ever reads. Shapes: n tiles, D axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinodomain.loader import LoaderPlan, Tiles
from dinodomain.loader.permute import key_of, mix

MOST = 0.05
"""Share of the tiles of a bucket that training may lose: a twentieth of the data shifts results by less than another seed does."""

FEWEST = 16
"""Held tiles below which numbers say too little (a share of 16 has a standard error of an eighth)."""

_KEY = 0x7761746368
"""Keeps this order apart from that of training, which has the same seed."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Tiles to measure on, and those that are left to train on.

    Attributes:
        tiles: To measure on, in index order; None where watching is off.
        left: To train on.
        trained: Whether the measured tiles are trained on, too, because there are too few to hold any back.
        reason: What was settled and why, one line.
    """

    tiles: Tiles | None
    left: Tiles
    trained: bool
    reason: str


def hold(tiles: Tiles, num: int, *, seed: int, loader: LoaderPlan) -> Held:
    """Chooses tiles to measure on.

    Args:
        tiles: All eligible tiles.
        num: How many are asked for (``watch.tiles``); 0 for none.
        seed: The run's.
        loader: Says how tiles are read in training, and which buckets are not drawn at all.
    """
    if num == 0:
        return Held(tiles=None, left=tiles, trained=False, reason="watch: off (watch.tiles=0)")
    order = watch_order(tiles, seed)
    drawn = np.array([loader.weights.get(bucket.name, 1.0) > 0 for bucket in tiles.buckets])
    order = order[drawn[tiles.bucket[order]]]
    chosen, gone = _take(tiles, order, num, loader)
    if len(chosen) >= FEWEST:
        held, left = tiles.only(np.sort(chosen)), _without(tiles, gone, loader)
        units = len(set(held.units.tolist()))
        less = "" if len(chosen) == num else f", fewer than watch.tiles={num} so that training keeps {1 - MOST:.0%} of its tiles"
        reason = f"watch: {len(held)} tiles of {units} units are measured on and not trained on ({int(gone.sum())} left out{less})"
        return Held(tiles=held, left=left, trained=False, reason=reason)
    shown = tiles.only(np.sort(order[:num]))
    reason = (
        f"watch: {len(shown)} tiles are measured on that are trained on, too: {len(tiles)} tiles are too few to hold {FEWEST} back "
        f"(at most {MOST:.0%} of them)"
    )
    return Held(tiles=shown, left=tiles, trained=True, reason=reason)


def watch_order(tiles: Tiles, seed: int) -> np.ndarray:
    """[n] positions: the first tile of every unit, then the second of every unit and so on, by a keyed hash of the tile ids."""
    keys = key_of(seed, tiles.tile_ids ^ _KEY)
    _, unit = np.unique(tiles.units.astype(str), return_inverse=True)
    by_unit = np.lexsort((keys, unit))
    first = np.searchsorted(unit[by_unit], np.arange(unit.max() + 1))
    turn = np.empty(len(tiles), dtype=np.int64)
    turn[by_unit] = np.arange(len(tiles)) - first[unit[by_unit]]
    order: np.ndarray = np.lexsort((mix(keys), turn))
    return order


def _take(tiles: Tiles, order: np.ndarray, num: int, loader: LoaderPlan) -> tuple[np.ndarray, np.ndarray]:
    """Positions of held tiles, and a mask [n] of those that training loses; no bucket loses more than its share."""
    room = np.floor(MOST * np.bincount(tiles.bucket, minlength=len(tiles.buckets)))
    lost = np.zeros(len(tiles.buckets))
    gone = np.zeros(len(tiles), dtype=bool)
    sources, copies = _Groups(tiles.rows), _Groups(tiles.tile_ids)
    chosen: list[int] = []
    for place in order[: 8 * num].tolist():  # tiles whose bucket has no room left are passed over, but not for ever
        if len(chosen) == num:
            break
        twins = copies.of(tiles.tile_ids[place])
        if np.isin(twins, chosen).any():
            continue  # a copy of it is watched already, and would be its neighbour
        near = np.unique(np.concatenate([_near(tiles, twin, sources, loader) for twin in twins.tolist()]))
        new = near[~gone[near]]
        would = np.bincount(tiles.bucket[new], minlength=len(room))
        if (lost + would <= room).all():
            lost, gone[new] = lost + would, True
            chosen.append(place)
    return np.array(chosen, dtype=np.int64), gone


def _near(tiles: Tiles, place: int, sources: _Groups, loader: LoaderPlan) -> np.ndarray:
    """Positions of the tiles whose reads may show pixels of one tile, itself among them."""
    own = sources.of(tiles.rows[place])
    if loader.pairs == "dates":
        return own
    extent = tiles.extents[tiles.bucket[place]]
    reach = extent if loader.aligned else extent + extent // 2
    close: np.ndarray = own[(np.abs(tiles.starts[own] - tiles.starts[place]) < reach).all(axis=1)]
    return close


def _without(tiles: Tiles, gone: np.ndarray, loader: LoaderPlan) -> Tiles:
    if loader.pairs == "dates":  # a held source must not come in as another's date either
        return tiles.of_rows(np.unique(tiles.rows[~gone]))
    return tiles.only(~gone)


class _Groups:
    """Positions of equal values, found without a table of all of them."""

    def __init__(self, values: np.ndarray) -> None:
        self._order = np.argsort(values, kind="stable")
        self._sorted = values[self._order]

    def of(self, value: int) -> np.ndarray:
        """Positions of one value, ascending."""
        first, last = np.searchsorted(self._sorted, value, "left"), np.searchsorted(self._sorted, value, "right")
        found: np.ndarray = self._order[first:last]
        return found
