"""What every batch needs to know of its sources, as arrays made once from the index: no array is opened for it.

N images, C channels, D spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dinodomain.loader.columns import matrix, ragged
from dinodomain.loader.tiles import Bucket
from dinodomain.store import Store
from dinodomain.types import TileInfo

_CHANNEL = ("scale", "offset", "nodata", "low", "high")


@dataclass(frozen=True, slots=True)
class _Table:
    """Values of the sources of one number of channels and axes.

    Attributes:
        place: [sources of the store] int64 position in the arrays; -1 where a source has other numbers.
        values: Column to [m, C] or [m, D] float32.
        sizes: [m, D] int64 spatial shape.
    """

    place: np.ndarray
    values: dict[str, np.ndarray]
    sizes: np.ndarray


class SourceFacts:
    """Per-source values, for all buckets of a store.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: dict[tuple[int, int], _Table] = {}
        self._has_valid: dict[Bucket, bool] = {}

    def has_valid(self, bucket: Bucket) -> bool:
        """Whether any source with the bucket's dtype and channels has bit fields."""
        if bucket not in self._has_valid:
            self._has_valid[bucket] = any(self._store.has_valid(row) for row in self._rows_of(bucket).tolist())
        return self._has_valid[bucket]

    def _rows_of(self, bucket: Bucket) -> np.ndarray:
        """Rows of sources with the bucket's dtype and channels."""
        rows = self._table(len(bucket.channels), len(bucket.extent)).place >= 0
        rows[rows] &= self._store.column("dtype")[rows] == bucket.dtype
        channels = self._store.index["channels"].take(np.flatnonzero(rows)).combine_chunks().flatten()
        names = np.asarray(channels.to_pylist(), dtype=object).reshape(-1, len(bucket.channels))
        rows[rows] &= (names == np.asarray(bucket.channels, dtype=object)).all(axis=1)
        return np.flatnonzero(rows)

    def of(self, bucket: Bucket, rows: np.ndarray, starts: np.ndarray) -> TileInfo:
        """The meaning of N images of a bucket.

        Args:
            bucket: Their bucket.
            rows: [N] rows of the index.
            starts: [N, D] first pixel of each.
        """
        table = self._table(len(bucket.channels), len(bucket.extent))
        place = table.place[rows]
        ends = np.stack([-starts, table.sizes[place] - starts], axis=-1)
        box = np.clip(ends, 0, np.asarray(bucket.extent)[None, :, None])
        values = {name: torch.from_numpy(found[place]) for name, found in table.values.items()}
        return TileInfo(**values, valid_box=torch.from_numpy(box))

    def _table(self, channels: int, axes: int) -> _Table:
        if (channels, axes) not in self._tables:
            self._tables[channels, axes] = self._made(channels, axes)
        return self._tables[channels, axes]

    def _made(self, channels: int, axes: int) -> _Table:
        index = self._store.index
        (_, of_channels), (_, of_axes) = ragged(index, "scale"), ragged(index, "spacing")
        rows = np.flatnonzero((of_channels == channels) & (of_axes == axes))
        place = np.full(len(self._store), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        kept = index.select([*_CHANNEL, "spacing", "shape"]).take(rows)
        widths = {**dict.fromkeys(_CHANNEL, channels), "spacing": axes}
        values = {name: ragged(kept, name)[0].reshape(-1, width).astype(np.float32) for name, width in widths.items()}  # unknown is NaN
        return _Table(place, values, matrix(kept, "shape")[:, 1:])
