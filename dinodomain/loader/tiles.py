"""Which tiles of a store may be drawn: fixed before training, from the tables alone, without opening an array.

A tile of a window array is a block of whole chunks; blocks start on the chunk grid, evenly spaced so that they cover the array. A source
smaller than the tile gives one padded tile. A whole image is one tile. Units: pixels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from dinodomain.errors import UserError
from dinodomain.lineage import canonical, tile_id
from dinodomain.loader.plan import LoaderPlan
from dinodomain.store import Store, bucket_of

Holdout = Literal["exclude", "only", "include"]
_BLOCK = {2: 1, 3: 3}
"""Chunks per side of a tile by default: a scene chunk is a tile, a volume chunk of 32 is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What tiles of one batch have in common.

    Attributes:
        name: ``store.bucket_of`` these values.
        dtype: Stored dtype.
        channels: Channel names.
        extent: Spatial extent of a tile.
    """

    name: str
    dtype: str
    channels: tuple[str, ...]
    extent: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The eligible tiles of a store, in index order.

    Attributes:
        buckets: Buckets, sorted by name.
        rows: [n] int64 row of the store index.
        starts: [n, D] int64 first pixel in the array (the slot, for whole images).
        bucket: [n] int64 position in ``buckets``.
        tile_ids: [n] int64.
        units: [n] unit of the tile's centre.
        valid_fraction: [n] float32 valid pixels / min(tile, source) pixels.
    """

    buckets: tuple[Bucket, ...]
    rows: np.ndarray
    starts: np.ndarray
    bucket: np.ndarray
    tile_ids: np.ndarray
    units: np.ndarray
    valid_fraction: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """Indexes of the tiles of each bucket, in order."""
        return tuple(np.flatnonzero(self.bucket == i) for i in range(len(self.buckets)))

    def of_rows(self, rows: Iterable[int]) -> Tiles:
        """The tiles of some rows of the index only; buckets stay, even where empty.

        Raises:
            UserError: None is left.
        """
        kept = np.isin(self.rows, np.fromiter(rows, dtype=np.int64))
        if not kept.any():
            raise UserError("rows", "none of the chosen sources has an eligible tile", remedy="lower loader.min_valid, or choose others")
        columns = ("rows", "starts", "bucket", "tile_ids", "units", "valid_fraction")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})

    @cached_property
    def digest(self) -> str:
        """Digest of the list: equal where the same tiles would be drawn."""
        found = hashlib.sha256(canonical([bucket.name for bucket in self.buckets]).encode())
        for values in (self.bucket, self.tile_ids, self.starts):
            found.update(np.ascontiguousarray(values, dtype="<i8").data)
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class _Found:
    """Tiles of one source before selection: n starts with their facts."""

    row: int
    bucket: Bucket
    starts: np.ndarray
    index: np.ndarray
    units: np.ndarray
    fraction: np.ndarray
    holdout: np.ndarray


def find_tiles(store: Store, plan: LoaderPlan, *, holdout: Holdout = "exclude") -> Tiles:
    """Lists the eligible tiles of a store.

    Args:
        store: An opened store.
        plan: Tile side and least valid share.
        holdout: Whether tiles that touch the audit holdout or its buffer are left out, taken alone, or treated like others.

    Raises:
        UserError: The tile does not fit the chunk grid, or no tile is eligible.
    """
    kept: list[tuple[_Found, np.ndarray]] = []
    for found in _candidates(store, plan):
        # Fractions of blocks are sums of float32; a full tile must not miss min_valid=1 by rounding.
        take = found.fraction >= plan.min_valid - 1e-6
        if holdout != "include":
            take &= found.holdout == (holdout == "only")
        if take.any():
            kept.append((found, np.flatnonzero(take)))
    if not kept:
        raise _nothing(store, plan, holdout)
    return _joined(store, kept)


def _nothing(store: Store, plan: LoaderPlan, holdout: Holdout) -> UserError:
    what = {"exclude": "outside the audit holdout", "only": "inside the audit holdout", "include": "at all"}[holdout]
    remedy = "lower loader.min_valid, or add sources to the store"
    return UserError(str(store.path), f"no tile {what} has {plan.min_valid:.0%} valid pixels", remedy=remedy)


def _candidates(store: Store, plan: LoaderPlan) -> Iterator[_Found]:
    table = store.chunks
    rows = table["row"].to_numpy()
    fraction, units = table["valid_fraction"].to_numpy(), table["unit"].to_numpy()
    held = table["holdout"].to_numpy() | store.column("holdout").astype(bool)[rows]
    ends = np.searchsorted(rows, np.arange(len(store) + 1))
    names = ("layout", "dtype", "channels", "shape", "chunk", "unit")
    columns = zip(*(store.column(name) for name in names))
    buckets: dict[tuple[object, ...], Bucket] = {}
    for row, (layout, dtype, channels, shape, chunk, unit) in enumerate(columns):
        part = slice(ends[row], ends[row + 1])
        block = (1,) * len(chunk) if layout == "whole" else _block(plan, chunk)
        extent = tuple(side * n for side, n in zip(chunk, block))
        bucket = _bucket(buckets, dtype, tuple(channels), extent)
        facts = (fraction[part], units[part], held[part])
        found = _whole(row, bucket, *facts) if layout == "whole" else _window(row, bucket, shape[1:], chunk, block, *facts)
        if unit:
            found.units[:] = unit
        yield found


def _bucket(known: dict[tuple[object, ...], Bucket], dtype: str, channels: tuple[str, ...], extent: tuple[int, ...]) -> Bucket:
    key = (dtype, channels, extent)
    if key not in known:
        known[key] = Bucket(name=bucket_of(dtype, channels, extent), dtype=dtype, channels=channels, extent=extent)
    return known[key]


def _block(plan: LoaderPlan, chunk: Sequence[int]) -> tuple[int, ...]:
    """Chunks per side of a tile."""
    if plan.tile is None:
        return (_BLOCK[len(chunk)],) * len(chunk)
    if any(plan.tile % side for side in chunk):
        raise UserError(
            "loader.tile",
            f"{plan.tile} pixels do not divide into chunks of {'x'.join(map(str, chunk))}",
            allowed=f"multiples of {max(chunk)}",
            remedy="or ingest with another store.chunk",
        )
    return tuple(plan.tile // side for side in chunk)


def _whole(row: int, bucket: Bucket, fraction: np.ndarray, units: np.ndarray, held: np.ndarray) -> _Found:
    starts = np.zeros((1, len(bucket.extent)), dtype=np.int64)
    return _Found(row, bucket, starts, np.zeros(1, dtype=np.int64), units.copy(), fraction, held)


def _window(
    row: int,
    bucket: Bucket,
    spatial: Sequence[int],
    chunk: Sequence[int],
    block: tuple[int, ...],
    fraction: np.ndarray,
    units: np.ndarray,
    held: np.ndarray,
) -> _Found:
    cells = tuple(-(-size // side) for size, side in zip(spatial, chunk))
    corners = [_origins(count, n) for count, n in zip(cells, block)]
    # From shares of a chunk to shares of a tile, each relative to the most that this source could fill.
    per_chunk = np.prod([min(size, side) for size, side in zip(spatial, chunk)], dtype=np.float64)
    per_tile = np.prod([min(size, side) for size, side in zip(spatial, bucket.extent)], dtype=np.float64)
    share = _blocks(fraction.astype(np.float64).reshape(cells), block, corners) * (per_chunk / per_tile)
    touched = _blocks(held.astype(np.float64).reshape(cells), block, corners) > 0
    grid = np.stack(np.meshgrid(*corners, indexing="ij"), axis=-1).reshape(-1, len(cells))
    centre = np.minimum(grid + np.asarray(block) // 2, np.asarray(cells) - 1)
    return _Found(
        row,
        bucket,
        grid * np.asarray(chunk),
        np.ravel_multi_index(tuple(grid.T), cells).astype(np.int64),
        units[np.ravel_multi_index(tuple(centre.T), cells)],
        share.reshape(-1).astype(np.float32),
        touched.reshape(-1),
    )


def _origins(cells: int, block: int) -> np.ndarray:
    """First cells of as few blocks as cover the axis, evenly spaced; the last one ends with the grid."""
    return np.linspace(0, max(cells - block, 0), -(-cells // block)).round().astype(np.int64)


def _blocks(values: np.ndarray, block: tuple[int, ...], corners: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of each block of cells; cells past the grid count as 0."""
    padded = np.pad(values, [(0, max(n - count, 0)) for count, n in zip(values.shape, block)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, block)
    summed: np.ndarray = windows[np.ix_(*corners)].sum(axis=tuple(range(values.ndim, 2 * values.ndim)))
    return summed


def _joined(store: Store, kept: Sequence[tuple[_Found, np.ndarray]]) -> Tiles:
    buckets = tuple(sorted({found.bucket for found, _ in kept}, key=lambda bucket: bucket.name))
    number = {bucket: i for i, bucket in enumerate(buckets)}
    hashes = store.column("content_hash")
    ids = itertools.chain.from_iterable((tile_id(hashes[found.row], i) for i in found.index[take].tolist()) for found, take in kept)
    total = sum(len(take) for _, take in kept)
    return Tiles(
        buckets=buckets,
        rows=np.concatenate([np.full(len(take), found.row, dtype=np.int64) for found, take in kept]),
        starts=np.concatenate([found.starts[take] for found, take in kept]),
        bucket=np.concatenate([np.full(len(take), number[found.bucket], dtype=np.int64) for found, take in kept]),
        tile_ids=np.fromiter(ids, dtype=np.int64, count=total),
        units=np.concatenate([found.units[take] for found, take in kept]),
        valid_fraction=np.concatenate([found.fraction[take] for found, take in kept]),
    )
