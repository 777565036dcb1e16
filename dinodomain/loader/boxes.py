"""Where each read begins: at its tile, moved by a keyed offset (``aligned=false``), and at further dates (``pairs=dates``).

A pure function of seed, epoch and tile: the same whatever batch, rank or worker asks. Units: pixels; n draws, T dates, D spatial axes.
"""

from __future__ import annotations

import numpy as np

from dinodomain.loader.dates import Anchors
from dinodomain.loader.grid import ChunkGrid
from dinodomain.loader.permute import key_of, mix
from dinodomain.loader.plan import LoaderPlan
from dinodomain.loader.tiles import Tiles
from dinodomain.store import Store

_TRIES = 8
_OFFSET, _DATES = 0x6F6666, 0x646174
"""Keep these draws apart from the order's, which has the same seed."""


class Boxes:
    """The boxes that draws of tiles read.

    With ``aligned=false`` the start of a tile moves, on every axis on which its source is larger than the tile, by a whole number of pixels
    drawn uniformly from -half to +half the tile's side, and then back into the source as far as it sticks out. A moved box is taken if it
    touches no held-out chunk and its estimated valid share (``ChunkGrid.measure``) is at least ``loader.min_valid``; with ``pairs=dates``
    it must have enough dates, too. Of eight offsets the first such is taken, else the tile itself. A tile that touches held-out chunks
    (from ``find_tiles(..., holdout="only")`` or ``"include"``) does not move.

    Args:
        store: The store of the tiles.
        tiles: Tiles found with the same plan.
        plan: ``aligned``, ``min_valid``, ``pairs``, ``dates``, ``min_days``.
        seed: Key of all offsets and choices.
    """

    def __init__(self, store: Store, tiles: Tiles, plan: LoaderPlan, seed: int) -> None:
        assert (tiles.dates is None) == (plan.pairs == "none"), "tiles of another plan"
        self._tiles, self._seed, self._min_valid = tiles, seed, plan.min_valid
        # Most tiles take their first offset; what is left tries all others at once, because calls are dear and boxes are cheap.
        self._rounds = () if plan.aligned else (range(1), range(1, _TRIES))
        self._dates = tiles.dates
        self._grid: ChunkGrid | None = None
        if self._dates is not None or self._rounds:
            self._grid = ChunkGrid.of(store) if self._dates is None else self._dates.grid

    @property
    def dates(self) -> int:
        """Boxes per draw, T."""
        return 1 if self._dates is None else self._dates.num

    def of(self, tiles: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The boxes of some draws.

        Args:
            tiles: [n] int64 indexes into the tile list.
            epochs: [n] int64 epoch of each draw; another epoch may choose another offset and other dates.

        Returns:
            Rows of the index [n, T] int64, and first pixels [n, T, D] int64. With several dates the tile's own source is the first, and
            all boxes of a draw show the same ground.
        """
        rows, starts = self._tiles.rows[tiles], self._tiles.starts[tiles]
        if self._grid is None:
            return rows[:, None], starts[:, None]
        extents = self._tiles.extents[self._tiles.bucket[tiles]]
        held = self._grid.measure(rows, starts, extents).held if self._grid.held.any() else np.zeros(len(rows), dtype=bool)
        anchors = Anchors(rows, starts, extents, held)
        keys = key_of(self._seed, epochs, self._tiles.tile_ids[tiles])
        found_rows, found_starts = np.empty((len(rows), self.dates), np.int64), np.empty((len(rows), self.dates, starts.shape[1]), np.int64)
        waiting = np.arange(len(rows))
        for tries in self._rounds:
            moved = self._moved(anchors.take(np.repeat(waiting, len(tries))), np.repeat(keys[waiting], len(tries)), tries)
            fit, chosen = self._tried(moved, np.repeat(keys[waiting], len(tries)))
            by_tile = fit.reshape(-1, len(tries))
            best = by_tile.argmax(axis=1) + np.arange(len(waiting)) * len(tries)
            some = by_tile.any(axis=1)
            found_rows[waiting[some]], found_starts[waiting[some]] = self._placed(moved.take(best[some]), chosen[best[some]])
            waiting = waiting[~some]
        where, chosen = anchors.take(waiting), self._chosen(anchors.take(waiting), keys[waiting])
        assert (chosen >= 0).all(), "a tile that is listed can be drawn where it is"
        found_rows[waiting], found_starts[waiting] = self._placed(where, chosen)
        return found_rows, found_starts

    def _moved(self, boxes: Anchors, keys: np.ndarray, tries: range) -> Anchors:
        """The boxes under the offsets of ``tries``, which they go through in turn."""
        assert self._grid is not None
        ndim = boxes.starts.shape[1]
        number = np.resize(np.arange(tries.start * ndim, tries.stop * ndim, dtype=np.uint64), (len(boxes), ndim))
        half = boxes.extents // 2
        drawn = mix(mix(keys ^ np.uint64(_OFFSET))[:, None] ^ mix(number)) >> np.uint64(32)
        # The high half of a 32-bit number times the number of values: uniform to within values / 2^32.
        offset = ((drawn * (2 * half + 1).astype(np.uint64)) >> np.uint64(32)).astype(np.int64) - half
        room = self._grid.size[boxes.rows] - boxes.extents
        moved = np.where((room > 0) & ~boxes.held[:, None], np.clip(boxes.starts + offset, 0, np.maximum(room, 0)), boxes.starts)
        return Anchors(boxes.rows, moved, boxes.extents, boxes.held)

    def _tried(self, boxes: Anchors, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which boxes [n] bool can be drawn, and the entries of their other dates [n, T - 1]."""
        assert self._grid is not None
        measured = self._grid.measure(boxes.rows, boxes.starts, boxes.extents)
        fit = (measured.share >= self._min_valid - 1e-6) & (boxes.held | ~measured.held)
        chosen = np.full((len(boxes), self.dates - 1), -1, dtype=np.int64)
        chosen[fit] = self._chosen(boxes.take(fit), keys[fit])
        return fit & (chosen >= 0).all(axis=1), chosen

    def _chosen(self, boxes: Anchors, keys: np.ndarray) -> np.ndarray:
        if self._dates is None or not len(boxes):
            return np.empty((len(boxes), self.dates - 1), dtype=np.int64)
        return self._dates.choose(boxes, mix(keys ^ np.uint64(_DATES)))

    def _placed(self, boxes: Anchors, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._dates is None:
            return boxes.rows[:, None], boxes.starts[:, None]
        return self._dates.placed(boxes, chosen)
