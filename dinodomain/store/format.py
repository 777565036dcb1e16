"""What lies on disk, format 1: names, chunk and shard shapes, buckets. The columns of the tables are in ``schema.py``.

    STORE/zarr.json                           group
    STORE/scenes/<id>/{zarr.json,data,valid}   dims band,y,x; inner chunk all bands x 256 x 256, shard 2048 x 2048
    STORE/scenes/<id>/{spatial_ref,x,y,band}   for other readers only (``coordinates.py``); ``band`` in stacks, too
    STORE/volumes/<id>/{zarr.json,0,valid}     dims (c,)z,y,x; inner chunk 32^3, one shard up to 512^3
    STORE/stacks/<bucket>/NNNN/{zarr.json,data,valid}   dims item,band,(z,)y,x; inner chunk one item, or as many as reach 64 KiB
    STORE/index.parquet  chunks.parquet  lineage.json  manifest.json (last)

``valid`` is a uint8 bit field on the spatial grid of ``data`` (0 valid; bits in ``types``); it is absent where every pixel is valid.
Every array is plain Zarr v3 (regular grid, ``sharding_indexed``, ``bytes`` + ``blosc`` + ``crc32c``), so any Zarr reader opens it.
Groups of sources and stacks carry consolidated metadata; the store and its folders do not, since theirs would grow with every source.
Sizes are in pixels; no reading or writing happens here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dinodomain.errors import UserError
from dinodomain.lineage import digest

if TYPE_CHECKING:
    from dinodomain.types import Layout

FORMAT = 1
DTYPES = ("uint8", "uint16", "int16", "float32")
SIDES = (32, 64, 128, 256, 384, 512, 768, 1024)
MANIFEST, INDEX, CHUNKS, LINEAGE = "manifest.json", "index.parquet", "chunks.parquet", "lineage.json"
PENDING = "withdrawal"
"""Folder in a store with the tables that hold from now on, while sources are being withdrawn; see ``ingest/withdraw.py``."""

_CHUNK_BYTES = 4 * 2**20
_ITEM_CHUNK_BYTES = 64 * 2**10
_STACK_SHARD_BYTES = 64 * 2**20
_SCENE_CHUNK, _SCENE_SHARD = 256, 2048
_VOLUME_CHUNK, _VOLUME_SHARD = 32, 512

Codec = Literal["fast", "small", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """How pixels are laid out on disk.

    Attributes:
        chunk: Chunk side in pixels; None means 256 for scenes, 32 for volumes. Lowered so that a chunk stays within 4 MiB.
        codec: ``fast`` (blosc lz4), ``small`` (blosc zstd; slower to write and to read) or ``none``.
    """

    chunk: int | None = None
    codec: Codec = "fast"

    def __post_init__(self) -> None:
        if self.chunk is not None and not 8 <= self.chunk <= 2048:
            raise UserError("chunk", f"{self.chunk} pixels", allowed="8 to 2048, or null for the default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Chunk and shard shape of one array, in array order.

    Attributes:
        shape: Array shape.
        chunk: Inner chunk shape.
        shard: Shard shape, a multiple of ``chunk`` per axis.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    @property
    def cells(self) -> tuple[int, ...]:
        """Number of inner chunks per axis."""
        return tuple(-(-size // side) for size, side in zip(self.shape, self.chunk))


def check_dtype(dtype: str) -> np.dtype[np.generic]:
    """The stored dtype, or a UserError where format 1 has none such."""
    if dtype not in DTYPES:
        raise UserError("dtype", f"{dtype} cannot be stored", allowed=", ".join(DTYPES), remedy="the domain's reader must cast it")
    return np.dtype(dtype)


def window_grid(shape: Sequence[int], dtype: str, chunk: int | None = None) -> Grid:
    """Layout of a scene (C, Y, X) or a volume (C, Z, Y, X); a one-channel volume drops its channel axis.

    Args:
        shape: Shape with channels first.
        dtype: One of ``DTYPES``.
        chunk: Wished spatial side, or None.
    """
    channels, spatial = int(shape[0]), tuple(int(size) for size in shape[1:])
    scene = len(spatial) == 2
    side = chunk or (_SCENE_CHUNK if scene else _VOLUME_CHUNK)
    itemsize = check_dtype(dtype).itemsize
    while side > 1 and channels * itemsize * side ** len(spatial) > _CHUNK_BYTES:
        side //= 2
    cap = max(1, (_SCENE_SHARD if scene else _VOLUME_SHARD) // side)
    shard = tuple(side * min(cap, -(-size // side)) for size in spatial)
    lead = () if channels == 1 and not scene else (channels,)
    return Grid(shape=(*lead, *spatial), chunk=(*lead, *(side for _ in spatial)), shard=(*lead, *shard))


def stack_grid(count: int, channels: int, extent: Sequence[int], dtype: str) -> Grid:
    """Layout of ``count`` whole images of one bucket: (item, band, (z,) y, x)."""
    item = (channels, *(int(side) for side in extent))
    size = math.prod(item) * check_dtype(dtype).itemsize
    per_chunk = min(count, max(1, _ITEM_CHUNK_BYTES // size))
    per_shard = min(-(-count // per_chunk), max(1, _STACK_SHARD_BYTES // (size * per_chunk))) * per_chunk
    return Grid(shape=(count, *item), chunk=(per_chunk, *item), shard=(per_shard, *item))


def round_side(side: int) -> int:
    """The bucket side that holds ``side`` pixels; past 1024 the next multiple of 512."""
    return next((step for step in SIDES if side <= step), -(-side // 512) * 512)


def extent_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Slot extent of a whole image of spatial shape ``shape``."""
    return tuple(round_side(int(side)) for side in shape)


def bucket_of(dtype: str, channels: Sequence[str], extent: Sequence[int]) -> str:
    """Name of the set of tiles that may share a batch: one dtype, one channel tuple, one extent. Safe as a folder name."""
    size = "x".join(str(int(side)) for side in extent)
    return f"{dtype}-{len(channels)}ch-{size}-{digest(list(channels))[:8]}"


def stored_id(source_id: str) -> str:
    """Folder name of a source: the first 16 hex digits of the sha256 of its stored id."""
    return hashlib.sha256(source_id.encode()).hexdigest()[:16]


def source_folder(source_id: str, ndim: int) -> str:
    """Folder of a window source below the store, ``scenes/<id>`` or ``volumes/<id>``."""
    return f"{'scenes' if ndim == 2 else 'volumes'}/{stored_id(source_id)}"


def stack_folder(bucket: str, number: int) -> str:
    """Folder of one stack array below the store; a later ingest takes the next number."""
    return f"stacks/{bucket}/{number:04d}"


def array_name(layout: Layout, ndim: int) -> str:
    """Name of the pixel array inside its folder."""
    return "0" if layout == "window" and ndim == 3 else "data"
