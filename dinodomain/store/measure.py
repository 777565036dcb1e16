"""What is learned from pixels while they stream by: validity, statistics of valid pixels, valid share per chunk, content hash.

A slab is all channels and some lines of the first spatial axis, [C, n, ...]. Nothing here holds more than one slab and a bounded sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.types import NODATA, Record, Window

_SAMPLE_PER_CHANNEL, _SAMPLE_TOTAL, _SAMPLE_LEAST = 2**22, 2**24, 2**18
_WORTH_COUNTING = 2**17
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStats:
    """Statistics of the valid pixels, one value per channel, in physical units; NaN where no pixel is valid.

    Attributes:
        low: 0.5 percentile.
        high: 99.5 percentile.
        mean: Mean.
        std: Standard deviation.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PixelSample:
    """Valid pixels of a source: all of them up to 4 Mi per channel, beyond that every k-th of each line at an offset that hops by line.

    The choice depends on the shape alone, never on how the source was cut into slabs, so statistics are reproducible. Integers are
    counted by value, which is exact and several times faster than keeping and sorting them; floats and small images are kept.

    Args:
        shape: (C, ...) of the whole source.
        dtype: Stored dtype.
    """

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        limit = min(_SAMPLE_PER_CHANNEL, max(_SAMPLE_LEAST, _SAMPLE_TOTAL // shape[0]))
        self._step = -(-math.prod(shape[1:]) // limit)
        few = math.prod(shape[1:]) < _WORTH_COUNTING
        self._held: _Counted | _Kept = _Kept() if few or np.dtype(dtype).kind == "f" else _Counted(shape[0], np.dtype(dtype))

    def add(self, first: int, pixels: np.ndarray, bits: np.ndarray) -> None:
        """Adds slab ``pixels`` [C, n, ...] that begins at line ``first``; ``bits`` [n, ...] is 0 where valid."""
        if self._step == 1:
            self._keep(pixels.reshape(pixels.shape[0], -1), bits.reshape(-1))
            return
        for line in range(pixels.shape[1]):
            # Knuth's multiplicative hash: consecutive lines start far apart, so no stripe of the grid is favoured.
            take = slice((first + line) * 2654435761 % 2**32 % self._step, None, self._step)
            self._keep(pixels[:, line].reshape(pixels.shape[0], -1)[:, take], bits[line].reshape(-1)[take])

    def _keep(self, values: np.ndarray, bits: np.ndarray) -> None:
        self._held.add(values[:, bits == 0] if bits.any() else values)

    def stats(self, scale: Sequence[float], offset: Sequence[float]) -> ChannelStats:
        """Statistics in physical units."""
        mean, std, ends = self._held.summary()
        gain, shift = np.asarray(scale, dtype=np.float64), np.asarray(offset, dtype=np.float64)
        ends = ends * gain + shift
        return ChannelStats(  # a negative scale exchanges the two ends
            low=tuple(ends.min(axis=0).tolist()),
            high=tuple(ends.max(axis=0).tolist()),
            mean=tuple((mean * gain + shift).tolist()),
            std=tuple((std * np.abs(gain)).tolist()),
        )


Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Mean [C], standard deviation [C] and percentiles [2, C] of stored values, float64; NaN where there are none."""


class _Kept:
    """Values kept until the end."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        self._parts.append(values if values.base is None else values.copy())  # a view would keep its whole slab

    def summary(self) -> Moments:
        values = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts, axis=1)
        if values.shape[1] == 0:
            nothing = np.full(len(values), np.nan)
            return nothing, nothing, np.stack([nothing, nothing])
        ends = np.percentile(values, _PERCENTILES, axis=1).astype(np.float64)
        return values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64), ends


class _Counted:
    """Integers of 8 or 16 bits, counted by value: [C, 2^bits]."""

    def __init__(self, channels: int, dtype: np.dtype[np.generic]) -> None:
        self._lowest = int(np.iinfo(dtype.name).min)
        self._counts = np.zeros((channels, 1 << (dtype.itemsize * 8)), dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        for counts, channel in zip(self._counts, values):
            # As unsigned numbers, negative values come after the positive ones; `summary` turns them back.
            found = np.bincount(channel.view(f"u{channel.dtype.itemsize}"))
            counts[: len(found)] += found

    def summary(self) -> Moments:
        size = self._counts.shape[1]
        counts = np.roll(self._counts, size // 2, axis=1) if self._lowest else self._counts
        values = np.arange(self._lowest, self._lowest + size, dtype=np.float64)
        totals = counts.sum(axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0: a channel without a valid pixel has no statistics
            mean = counts @ values / totals
            std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / totals)
        return mean, std, np.stack([[_percentile(row, values, share) for row in counts] for share in _PERCENTILES])


def _percentile(counts: np.ndarray, values: np.ndarray, share: float) -> float:
    """The linearly interpolated percentile of ``numpy.percentile``, from counts of ascending values."""
    total = int(counts.sum())
    if total == 0:
        return math.nan
    rank = (total - 1) * share / 100
    below = math.floor(rank)
    low, high = values[np.searchsorted(np.cumsum(counts), (below, min(below + 1, total - 1)), side="right")]
    return float(low + (high - low) * (rank - below))


class ValidShare:
    """Valid pixels per cell of the spatial chunk grid.

    Args:
        spatial: Spatial shape of the source.
        chunk: Spatial chunk shape.
    """

    def __init__(self, spatial: Sequence[int], chunk: Sequence[int]) -> None:
        self._chunk = tuple(chunk)
        # A source smaller than its chunk is whole at full share; a sliver at the edge of a large one is not.
        self._full = math.prod(min(size, side) for size, side in zip(spatial, chunk))
        self._counts = np.zeros([-(-size // side) for size, side in zip(spatial, chunk)], dtype=np.int64)

    def add(self, first: int, bits: np.ndarray) -> None:
        """Adds slab ``bits`` [n, ...], one row of chunks that begins at line ``first``."""
        counts = np.count_nonzero(bits == 0, axis=0) if bits.any() else np.full(bits.shape[1:], bits.shape[0], dtype=np.int64)
        for axis, side in enumerate(self._chunk[1:]):
            counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], side), axis=axis)
        self._counts[first // self._chunk[0]] += counts

    def fractions(self) -> np.ndarray:
        """float32 over the chunk grid."""
        return (self._counts / self._full).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Checked pixels of some lines of a source.

    Attributes:
        first: First line.
        pixels: [C, n, ...] in the stored dtype, free of NaN and infinity.
        bits: [n, ...] uint8, 0 where valid.
        mended: Number of spatial pixels whose value was not finite.
    """

    first: int
    pixels: np.ndarray
    bits: np.ndarray
    mended: int


def slabs(record: Record, lines: int) -> Iterator[Slab]:
    """The source in slabs of ``lines`` lines, in order."""
    spatial = record.shape[1:]
    for first in range(0, spatial[0], lines):
        stop = min(first + lines, spatial[0])
        yield read_slab(record, (slice(first, stop), *(slice(0, size) for size in spatial[1:])))


def read_slab(record: Record, window: Window) -> Slab:
    """Reads one window and derives its validity from nodata values, non-finite values and the record's own field."""
    pixels = _checked(record, window)
    bits = np.zeros(pixels.shape[1:], dtype=np.uint8)
    if record.read_valid is not None:
        given = np.asarray(record.read_valid(window))
        if given.shape != bits.shape or given.dtype != np.uint8:
            raise UserError("record", f"read_valid gave {given.dtype} {given.shape}", allowed=f"uint8 {bits.shape}")
        bits |= given
    pixels, bad = _mend(pixels)
    bad_or_none = _is_nodata(pixels, record.nodata) | bad
    if bad_or_none.any():
        bits[bad_or_none] |= NODATA
    return Slab(first=window[0].start, pixels=pixels, bits=bits, mended=int(np.count_nonzero(bad)))


def _checked(record: Record, window: Window) -> np.ndarray:
    pixels = np.asarray(record.read(window))
    expected = (len(record.channels), *(part.stop - part.start for part in window))
    if pixels.shape != expected or pixels.dtype.name != record.dtype:
        raise UserError("record", f"read gave {pixels.dtype.name} {pixels.shape}", allowed=f"{record.dtype} {expected}")
    return pixels


def _mend(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-finite values become 0 (0 x NaN would spread through every resampling), and are reported as [n, ...] bool."""
    if pixels.dtype.kind != "f":
        return pixels, np.zeros(pixels.shape[1:], dtype=bool)
    finite = np.isfinite(pixels)
    if finite.all():
        return pixels, np.zeros(pixels.shape[1:], dtype=bool)
    return np.where(finite, pixels, pixels.dtype.type(0)), ~finite.all(axis=0)


def _is_nodata(pixels: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray:
    """True where any channel holds its nodata value: the field has no channel axis, and no nodata value may pass for a measurement."""
    found = np.zeros(pixels.shape[1:], dtype=bool)
    for channel, value in zip(pixels, nodata):
        stored = None if value is None else _stored(value, pixels.dtype)
        if stored is not None:
            found |= channel == stored
    return found


def _stored(value: float, dtype: np.dtype[np.generic]) -> np.generic | None:
    """The nodata value in the stored dtype; None where the dtype cannot hold it (so that no pixel equals it)."""
    if not math.isfinite(value):
        return None  # pixels that are not finite were mended and flagged already
    if dtype.kind == "f":
        return np.float32(value) if abs(value) <= float(np.finfo(np.float32).max) else None
    bounds = np.iinfo(dtype.name)
    return dtype.type(int(value)) if value == int(value) and bounds.min <= value <= bounds.max else None
