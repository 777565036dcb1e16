"""The endless stream of one bucket's tiles, of which batches are consecutive places.

Tiles of one store come epoch after epoch, each a keyed permutation of all of them, so that nothing is lost or doubled. Where several
stores are mixed, places are dealt to them by a smooth weighted cycle, and each store has epochs of its own. Places of a mix change seats
within windows of 16: else two ranks of a mix of halves would read one store each. Any place costs the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinodomain.loader.cycle import Cycle, closely
from dinodomain.loader.permute import key_of, permute

_WINDOW = 16


class Stream:
    """Which tile lies at which place.

    Args:
        seed: Of the order.
        bucket: Number of the bucket.
        sizes: [stores] tiles of each store in this bucket; the tiles of one follow those of the one before.
        shares: [stores] how the places are shared; 0 where a store has none. All 0: the stream is empty and never asked.
    """

    def __init__(self, seed: int, bucket: int, sizes: Sequence[int] | np.ndarray, shares: Sequence[float] | np.ndarray) -> None:
        self._seed, self._bucket, self._sizes = seed, bucket, [int(size) for size in sizes]
        self._firsts = np.cumsum([0, *self._sizes[:-1]])
        shares = np.asarray(shares, dtype=np.float64)
        counts = closely(shares) if np.any(shares > 0) else np.zeros(len(self._sizes), dtype=np.int64)
        turn = max(1, int(counts.sum()))
        self._cycle = Cycle(counts, int(key_of(seed, bucket, -2)[0] % np.uint64(turn)))

    @property
    def size(self) -> int:
        """Number of tiles."""
        return sum(self._sizes)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tile within the bucket and epoch of its store, [n] int64 each, at places of the stream."""
        places = self._seat(places)
        owners = self._cycle.at(places)
        turns = self._cycle.earlier(places, owners)
        tiles, epochs = np.empty_like(places), np.empty_like(places)
        for store in np.unique(owners).tolist():
            mine = owners == store
            tiles[mine], epochs[mine] = self._of_store(store, turns[mine])
        return tiles, epochs

    def _seat(self, places: np.ndarray) -> np.ndarray:
        if len(self._sizes) == 1:
            return places
        windows, inside = np.divmod(places, _WINDOW)
        seats: np.ndarray = windows * _WINDOW + permute(inside, _WINDOW, key_of(self._seed, self._bucket, -3, windows))
        return seats

    def _of_store(self, store: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self._sizes[store]
        epochs, index = np.divmod(turns, size)
        # A store on its own keeps the order that it has always had: runs resume.
        key = key_of(self._seed, self._bucket, epochs) if len(self._sizes) == 1 else key_of(self._seed, self._bucket, epochs, store)
        return permute(index, size, key) + self._firsts[store], epochs

    def counts(self, place: int) -> np.ndarray:
        """[size] int64, how often each tile lies at places 0..place-1."""
        if place == 0:
            return np.zeros(self.size, dtype=np.int64)
        whole = place if len(self._sizes) == 1 else place - place % _WINDOW
        found = np.concatenate([self._counts_of(store, int(turns)) for store, turns in enumerate(self._cycle.before(whole))])
        if whole < place:
            np.add.at(found, self.at(np.arange(whole, place, dtype=np.int64))[0], 1)
        return found

    def _counts_of(self, store: int, turns: int) -> np.ndarray:
        size = self._sizes[store]
        whole, rest = divmod(turns, max(size, 1))
        found = np.full(size, whole, dtype=np.int64)
        if rest:
            tiles, _ = self._of_store(store, np.arange(whole * size, whole * size + rest, dtype=np.int64))
            found[tiles - self._firsts[store]] += 1
        return found
