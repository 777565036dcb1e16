"""Which tiles of a store may be drawn: fixed before training, from the tables alone, without opening an array.

A tile of a window array is a block of whole chunks; blocks start on the chunk grid, evenly spaced so that they cover the array. A source
smaller than the tile gives one padded tile. A whole image is one tile. With ``pairs=dates`` only tiles whose ground is seen at enough dates
are listed (``dates.py``). All sources are worked on at once, column by column. Units: pixels; S sources, D spatial axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from dinodomain.errors import UserError
from dinodomain.lineage import canonical
from dinodomain.loader.columns import expand, list_codes, row_codes, slabs, text_codes
from dinodomain.loader.dates import Dates
from dinodomain.loader.grid import ChunkGrid
from dinodomain.loader.plan import LoaderPlan
from dinodomain.store import Store, bucket_of
from dinodomain.store.place import shown

Holdout = Literal["exclude", "only", "include"]
_BLOCK = {2: 1, 3: 3}
"""Chunks per side of a tile by default: a scene chunk is a tile, a volume chunk of 32 is not."""
_SLAB = 2**18
"""Tiles that are judged in one go."""


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
        rule: What else decides where reads begin (``aligned=false``, ``pairs=dates``), as one text; empty where reads are the tiles.
        dates: The other dates of each tile; None unless ``pairs=dates``.
    """

    buckets: tuple[Bucket, ...]
    rows: np.ndarray
    starts: np.ndarray
    bucket: np.ndarray
    tile_ids: np.ndarray
    units: np.ndarray
    valid_fraction: np.ndarray
    rule: str = ""
    dates: Dates | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """Indexes of the tiles of each bucket, in order."""
        return tuple(np.flatnonzero(self.bucket == i) for i in range(len(self.buckets)))

    @cached_property
    def extents(self) -> np.ndarray:
        """[buckets, D] int64 extent of the tiles of each bucket."""
        return np.array([bucket.extent for bucket in self.buckets], dtype=np.int64)

    def of_rows(self, rows: Iterable[int]) -> Tiles:
        """The tiles of some rows of the index only; buckets stay, even where empty. Other dates are taken from these rows, too.

        Raises:
            UserError: None is left.
        """
        chosen = np.fromiter(rows, dtype=np.int64)
        kept = np.isin(self.rows, chosen)
        if not kept.any():
            raise UserError("rows", "none of the chosen sources has an eligible tile", remedy="lower loader.min_valid, or choose others")
        left = self.only(kept)
        if self.dates is None:
            return left
        dated = left._dated(self.dates.of_rows(chosen))
        if not len(dated):
            problem = f"none of the chosen sources has an eligible tile with {self.dates.num} dates among them"
            raise UserError("rows", problem, remedy="choose others, or set loader.pairs=none")
        return dated

    def only(self, kept: np.ndarray) -> Tiles:
        """The tiles of a mask [n] bool, or of positions [m] int64 in their order; buckets stay, even where empty."""
        columns = ("rows", "starts", "bucket", "tile_ids", "units", "valid_fraction")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})

    def _dated(self, dates: Dates) -> Tiles:
        """The tiles that have enough dates."""
        enough = dates.enough(self.rows, self.starts, self.extents[self.bucket])
        return replace(self.only(enough), dates=dates)

    @cached_property
    def digest(self) -> str:
        """Digest of the list: equal where the same tiles would be drawn."""
        found = hashlib.sha256(canonical([bucket.name for bucket in self.buckets]).encode())
        for values in (self.bucket, self.tile_ids, self.starts):
            found.update(np.ascontiguousarray(values, dtype="<i8").data)
        found.update(self.rule.encode())
        for values in () if self.dates is None else self.dates.described:
            found.update(np.ascontiguousarray(values, dtype="<i8").data)
        return found.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """How each source is cut into tiles.

    Attributes:
        bucket: [S] int64 position in ``buckets``.
        buckets: In order of first appearance.
        block: [S, D] int64 chunks per side of a tile.
    """

    bucket: np.ndarray
    buckets: Sequence[Bucket]
    block: np.ndarray


@dataclass(frozen=True, slots=True)
class _Found:
    """Tiles of some sources that passed: n rows and corner cells with what was measured."""

    rows: np.ndarray
    corners: np.ndarray
    fraction: np.ndarray


def find_tiles(store: Store, plan: LoaderPlan, *, holdout: Holdout = "exclude") -> Tiles:
    """Lists the eligible tiles of a store.

    Args:
        store: An opened store.
        plan: Tile side, least valid share, dates.
        holdout: Whether tiles that touch the audit holdout or its buffer are left out, taken alone, or treated like others.

    Raises:
        UserError: The tile does not fit the chunk grid, or no tile is eligible.
    """
    if plan.pairs == "dates" and store.ndim != 2:
        raise UserError("loader.pairs", "is dates, but volumes of one patient are not registered to each other: no two boxes show the same",
                        allowed="none for volumes")  # fmt: skip
    grid = ChunkGrid.of(store)
    cut = _cut(store, plan, grid)
    parts = [_kept(grid, cut, sources, plan, holdout) for sources in _runs(grid, cut)]
    found = _Found(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Found.__slots__))
    if not len(found.rows):
        raise _nothing(store, plan, holdout)
    tiles = _joined(store, grid, cut, found, "" if plan.aligned and plan.pairs == "none" else _rule(plan))
    if plan.pairs == "none":
        return tiles
    dates = Dates.of(store, grid, plan)
    dated = tiles._dated(dates)
    if not len(dated):
        raise dates.too_few(store, tiles.rows, tiles.starts, tiles.extents[tiles.bucket])
    return dated


def _rule(plan: LoaderPlan) -> str:
    dates = {} if plan.pairs == "none" else {"dates": plan.dates, "min_days": plan.min_days}
    return canonical({"aligned": plan.aligned, "min_valid": plan.min_valid, **dates})


def _nothing(store: Store, plan: LoaderPlan, holdout: Holdout) -> UserError:
    what = {"exclude": "outside the audit holdout", "only": "inside the audit holdout", "include": "at all"}[holdout]
    remedy = "lower loader.min_valid, or add sources to the store"
    return UserError(shown(store.location), f"no tile {what} has {plan.min_valid:.0%} valid pixels", remedy=remedy)


def _cut(store: Store, plan: LoaderPlan, grid: ChunkGrid) -> _Cut:
    """Blocks and buckets, each made once per distinct layout and chunk, or dtype, channels and extent."""
    layouts, layout_names = text_codes(store.index["layout"])
    kinds, first = row_codes(np.concatenate([layouts[:, None], grid.side], axis=1))
    blocks = [
        (1,) * grid.side.shape[1] if layout_names[layouts[row]] == "whole" else _block(plan, grid.side[row].tolist())
        for row in first.tolist()
    ]
    block = np.array(blocks, dtype=np.int64)[kinds]
    dtypes, dtype_names = text_codes(store.index["dtype"])
    extents, channels = grid.side * block, list_codes(store.index, "channels")
    bucket, first = row_codes(np.concatenate([dtypes[:, None], channels[:, None], extents], axis=1))
    names = store.index["channels"].take(first).to_pylist()
    buckets = [
        _bucket(str(dtype_names[dtypes[row]]), tuple(listed), tuple(extents[row].tolist())) for row, listed in zip(first.tolist(), names)
    ]
    return _Cut(bucket=bucket, buckets=buckets, block=block)


def _bucket(dtype: str, channels: tuple[str, ...], extent: tuple[int, ...]) -> Bucket:
    return Bucket(name=bucket_of(dtype, channels, extent), dtype=dtype, channels=channels, extent=extent)


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


def _runs(grid: ChunkGrid, cut: _Cut) -> Iterator[np.ndarray]:
    """Rows of the index, in order, a bounded number of tiles at a time."""
    for part in slabs((-(-grid.cells // cut.block)).prod(axis=1), _SLAB):
        yield np.arange(part.start, part.stop)


def _kept(grid: ChunkGrid, cut: _Cut, sources: np.ndarray, plan: LoaderPlan, holdout: Holdout) -> _Found:
    """The tiles of some sources that are valid enough and on the wanted side of the holdout."""
    rows, corners = _corners(sources, grid.cells[sources], cut.block[sources])
    side = grid.side[rows]
    measured = grid.measure(rows, corners * side, cut.block[rows] * side)
    # Fractions of blocks are sums of float32; a full tile must not miss min_valid=1 by rounding.
    take = measured.share >= plan.min_valid - 1e-6
    if holdout != "include":
        take &= measured.held == (holdout == "only")
    return _Found(rows[take], corners[take], measured.share[take])


def _corners(sources: np.ndarray, cells: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n] and first cells [n, D] of as few blocks as cover each source, in C order.

    On each axis blocks are evenly spaced and the last one ends with the grid: ``linspace(0, cells - block, ceil(cells / block))``, rounded.
    """
    counts = -(-cells // block)
    source, rest = expand(counts.prod(axis=1))
    corners = np.empty((len(source), cells.shape[1]), dtype=np.int64)
    for axis in reversed(range(cells.shape[1])):
        last = np.maximum(cells[:, axis] - block[:, axis], 0)
        step = last / np.maximum(counts[:, axis] - 1, 1)
        rest, place = np.divmod(rest, counts[source, axis])
        spaced = np.rint(place * step[source]).astype(np.int64)
        corners[:, axis] = np.where((place > 0) & (place == counts[source, axis] - 1), last[source], spaced)
    return sources[source], corners


def _joined(store: Store, grid: ChunkGrid, cut: _Cut, found: _Found, rule: str) -> Tiles:
    present = np.unique(cut.bucket[found.rows])
    buckets = sorted(present.tolist(), key=lambda number: cut.buckets[number].name)
    place = np.zeros(len(cut.buckets), dtype=np.int64)
    place[buckets] = np.arange(len(buckets))
    centre = np.minimum(found.corners + cut.block[found.rows] // 2, grid.cells[found.rows] - 1)
    return Tiles(
        buckets=tuple(cut.buckets[number] for number in buckets),
        rows=found.rows,
        starts=found.corners * grid.side[found.rows],
        bucket=place[cut.bucket[found.rows]],
        tile_ids=_tile_ids(store.column("content_hash"), found.rows, grid.within(found.rows, found.corners)),
        units=grid.unit_names[grid.units[grid.index(found.rows, centre)]],
        valid_fraction=found.fraction,
        rule=rule,
    )


def _tile_ids(hashes: np.ndarray, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``lineage.tile_id`` of many tiles."""
    blake = hashlib.blake2b
    texts = (f"{content}:{number}".encode() for content, number in zip(hashes[rows].tolist(), index.tolist()))
    return np.frombuffer(b"".join([blake(text, digest_size=8).digest() for text in texts]), dtype="<i8").astype(np.int64)
