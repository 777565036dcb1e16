"""Turns records into arrays of a store: scenes and volumes stream through in rows of chunks, whole images are packed into stacks.

Ingest decides where arrays go and writes the tables (``tables.py``); nothing here knows ids, units or holdouts. Called in ingest workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import UserError
from dinodomain.lineage import ContentHash, write_bytes
from dinodomain.store.arrays import ArrayWriter
from dinodomain.store.attributes import pixel_attributes, scene_attributes, valid_attributes, volume_attributes
from dinodomain.store.codec import group_metadata
from dinodomain.store.coordinates import Coordinate, band_names, scene_coordinates
from dinodomain.store.format import Codec, Grid, StorePlan, array_name, check_dtype, extent_of, stack_grid, window_grid
from dinodomain.store.measure import ChannelStats, PixelSample, ValidShare, read_slab, slabs
from dinodomain.types import Record

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one source became, without its pixels; goes through JSON (``lineage.to_json`` and ``written_from_json``).

    Attributes:
        array: Name of the array in its folder (``data`` or ``0``).
        extent: Spatial shape of the array, or of the slot for whole images.
        chunk: Spatial inner chunk, or the slot for whole images.
        content_hash: Hash of the stored pixels, see ``lineage.content_hash``.
        stats: Statistics per channel, physical.
        valid_fraction: float32 over the spatial chunk grid; [1] for whole images.
        has_valid: Whether a ``valid`` field is needed.
        stages: What was done to the pixels here, to be added to ``Record.stages``.
        digest: Digest of the files of array and valid field; "" for whole images, whose stack has its own.
    """

    array: str
    extent: tuple[int, ...]
    chunk: tuple[int, ...]
    content_hash: str
    stats: ChannelStats
    valid_fraction: np.ndarray
    has_valid: bool
    stages: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A whole image in memory, ready to be packed.

    Attributes:
        pixels: [C, (Z,) Y, X].
        bits: [(Z,) Y, X] uint8 bit field, or None where every pixel is valid.
        written: Its description.
    """

    pixels: np.ndarray
    bits: np.ndarray | None
    written: Written


def written_from_json(value: Mapping[str, Json]) -> Written:
    """The inverse of ``lineage.to_json`` for a ``Written`` (NaN travels as null)."""
    stats = {name: tuple(float("nan") if item is None else float(item) for item in row) for name, row in value["stats"].items()}
    tuples = {name: tuple(value[name]) for name in ("extent", "chunk", "stages")}
    fractions = np.asarray(value["valid_fraction"], dtype=np.float32)
    return Written(**{**value, **tuples, "stats": ChannelStats(**stats), "valid_fraction": fractions})


def write_scene(folder: Path, record: Record, plan: StorePlan) -> Written:
    """Writes a raster (C, Y, X) into ``folder`` as ``data`` and, where needed, ``valid``.

    Args:
        folder: ``<store>/scenes/<id>``; made if absent.
        record: The opened source; read once, one row of chunks at a time, over its full width.
        plan: Layout.

    Raises:
        UserError: The record's dtype or shape cannot be stored, or ``read`` gives something else than it says.
    """
    _check_shape(record, 2)
    dims = ("band", "y", "x")
    written, arrays = _write_window(folder, record, plan, dims=dims, data=pixel_attributes(record), valid=valid_attributes(record))
    _close_group(folder, scene_attributes(record), arrays, scene_coordinates(record))
    return written


def write_volume(folder: Path, record: Record, plan: StorePlan) -> Written:
    """Writes a volume (C, Z, Y, X) into ``folder`` as ``0`` and, where needed, ``valid``; see ``write_scene``."""
    _check_shape(record, 3)
    dims = ("z", "y", "x") if record.shape[0] == 1 else ("c", "z", "y", "x")
    written, arrays = _write_window(folder, record, plan, dims=dims, data={}, valid=valid_attributes())
    _close_group(folder, volume_attributes(record, written.stats), arrays)
    return written


def _check_shape(record: Record, ndim: int) -> None:
    if len(record.shape) != ndim + 1 or min(record.shape) < 1 or record.shape[0] != len(record.channels):
        raise UserError("record", f"shape {record.shape} with {len(record.channels)} channels", allowed=f"(channels, {ndim} extents >= 1)")
    check_dtype(record.dtype)


def _close_group(folder: Path, attributes: Mapping[str, Json], arrays: Mapping[str, bytes], coordinates: Iterable[Coordinate] = ()) -> None:
    """Writes the coordinates and, last, the ``zarr.json`` of the group, which repeats that of every array in it."""
    members = dict(arrays)
    for coordinate in coordinates:
        coordinate.write(folder)
        members[coordinate.name] = coordinate.metadata
    write_bytes(folder / "zarr.json", group_metadata(attributes, members))


def _write_window(
    folder: Path, record: Record, plan: StorePlan, *, dims: Sequence[str], data: Mapping[str, Json], valid: Mapping[str, Json]
) -> tuple[Written, dict[str, bytes]]:
    """Writes pixels and bit field with these attributes; gives the description, and the metadata of each array by its name."""
    ndim = len(record.shape) - 1
    grid = window_grid(record.shape, record.dtype, plan.chunk)
    chunk = grid.chunk[-ndim:]
    hasher = ContentHash(np.dtype(record.dtype).str[1:], record.shape, record.channels)
    sample, share, mended = PixelSample(record.shape, record.dtype), ValidShare(record.shape[1:], chunk), 0
    name = array_name("window", ndim)
    with (
        _writer(folder / name, grid, record.dtype, dims, plan.codec, data) as pixels,
        _ValidWriter(folder, grid, dims, ndim, plan.codec, valid) as bits,
    ):
        for slab in slabs(record, chunk[0]):
            corner = (slab.first, *(0,) * (ndim - 1))
            hasher.update(slab.pixels)
            sample.add(slab.first, slab.pixels, slab.bits)
            share.add(slab.first, slab.bits)
            pixels.write((0,) * (len(grid.shape) - ndim) + corner, slab.pixels.reshape(*grid.shape[:-ndim], *slab.pixels.shape[1:]))
            bits.write(corner, slab.bits)
            mended += slab.mended
    written = Written(
        array=name,
        extent=tuple(record.shape[1:]),
        chunk=chunk,
        content_hash=hasher.hexdigest(),
        stats=sample.stats(record.scale, record.offset),
        valid_fraction=share.fractions(),
        has_valid=bits.digest != "",
        stages=_stages(mended),
        digest=pixels.digest + bits.digest,
    )
    return written, {name: pixels.metadata, **bits.member}


def _writer(path: Path, grid: Grid, dtype: str, dims: Sequence[str], codec: Codec, attributes: Mapping[str, Json]) -> ArrayWriter:
    return ArrayWriter.create(
        path, shape=grid.shape, dtype=dtype, dims=dims, chunk=grid.chunk, shard=grid.shard, codec=codec, attributes=attributes
    )


def _stages(mended: int) -> tuple[str, ...]:
    return (f"{mended} pixels that were not finite set to 0 and flagged as nodata",) if mended else ()


class _ValidWriter:
    """The ``valid`` array beside ``data``; begun at the first pixel that is not valid, so that it is absent where all are."""

    def __init__(
        self, folder: Path, grid: Grid, dims: Sequence[str], ndim: int, codec: Codec, attributes: Mapping[str, Json], *, lead: int = 0
    ) -> None:
        """``lead`` 1 keeps the item axis of a stack."""

        def without_channels(values: Sequence[Any]) -> tuple[Any, ...]:
            return (*values[:lead], *values[-ndim:])

        self._grid = Grid(shape=without_channels(grid.shape), chunk=without_channels(grid.chunk), shard=without_channels(grid.shard))
        self._dims, self._path, self._codec, self._attributes = without_channels(dims), folder / "valid", codec, attributes
        self._writer: ArrayWriter | None = None
        self.digest = ""
        self.member: dict[str, bytes] = {}

    def write(self, start: Sequence[int], bits: np.ndarray) -> None:
        # Skipping an all-valid block gives the same bytes as writing it: chunks of fill values are not stored.
        if self._writer is None and bits.any():
            self._writer = _writer(self._path, self._grid, "uint8", self._dims, self._codec, self._attributes)
        if self._writer is not None:
            self._writer.write(start, bits)

    def __enter__(self) -> _ValidWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        if kind is None:
            self.digest, self.member = self._writer.close(), {"valid": self._writer.metadata}
        else:
            self._writer.abort()


def prepare_whole(record: Record) -> Whole:
    """Reads a whole image into memory and describes it.

    Raises:
        UserError: See ``write_scene``.
    """
    _check_shape(record, len(record.shape) - 1)
    slab = read_slab(record, tuple(slice(0, size) for size in record.shape[1:]))
    sample, has_valid = PixelSample(record.shape, record.dtype), bool(slab.bits.any())
    share = float(np.mean(slab.bits == 0)) if has_valid else 1.0
    sample.add(0, slab.pixels, slab.bits)
    hasher = ContentHash(np.dtype(record.dtype).str[1:], record.shape, record.channels)
    extent = extent_of(record.shape[1:])
    written = Written(
        array=array_name("whole", len(extent)),
        extent=extent,
        chunk=extent,
        content_hash=hasher.update(slab.pixels).hexdigest(),
        stats=sample.stats(record.scale, record.offset),
        valid_fraction=np.array([share], dtype=np.float32),
        has_valid=has_valid,
        stages=_stages(slab.mended),
        digest="",
    )
    return Whole(pixels=slab.pixels, bits=slab.bits if has_valid else None, written=written)


def write_stack(
    folder: Path,
    items: Iterable[tuple[np.ndarray, np.ndarray | None]],
    *,
    count: int,
    channels: Sequence[str],
    extent: Sequence[int],
    dtype: str,
    codec: Codec = "fast",
) -> str:
    """Packs whole images of one bucket into one array, in the given order, padding each to the slot with the fill value.

    Args:
        folder: ``<store>/stacks/<bucket>/NNNN``; made if absent.
        items: Pixels [C, (Z,) Y, X] and bit field [(Z,) Y, X] or None, one image at a time: only one chunk of images is held.
        count: Number of images.
        channels: Channel names.
        extent: Slot extent.
        dtype: Stored dtype.
        codec: Codec.

    Returns:
        Digest of the files.
    """
    ndim, grid = len(extent), stack_grid(count, len(channels), extent, dtype)
    dims = ("item", "band", *("z", "y", "x")[-ndim:])
    block = np.zeros(grid.chunk, dtype=dtype)
    field = np.zeros((grid.chunk[0], *extent), dtype=np.uint8)
    stored, held = 0, 0
    with (
        _writer(folder / "data", grid, dtype, dims, codec, {}) as pixels,
        _ValidWriter(folder, grid, dims, ndim, codec, valid_attributes(), lead=1) as bits,
    ):
        for image, flags in items:
            _place(block[held], image)
            _place(field[held], np.zeros(image.shape[1:], np.uint8) if flags is None else flags)
            held += 1
            if held == grid.chunk[0] or stored + held == count:
                pixels.write((stored, *(0,) * (ndim + 1)), block[:held])
                bits.write((stored, *(0,) * ndim), field[:held])
                stored, held = stored + held, 0
        assert (stored, held) == (count, 0), f"{stored + held} images where {count} were announced"
    arrays = {"data": pixels.metadata, **bits.member}
    _close_group(folder, {"dinodomain": {"channels": list(channels)}}, arrays, [band_names(channels)])
    return pixels.digest + bits.digest


def _place(slot: np.ndarray, image: np.ndarray) -> None:
    """Puts an image at the origin of its slot; the rest is fill value."""
    slot[...] = 0
    slot[tuple(slice(0, size) for size in image.shape)] = image
