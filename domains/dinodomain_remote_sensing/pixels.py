"""Reads calibrated windows of one scene lazily: decode, find missing pixels, bring every band to one grid, cast to the stored dtype.

Datasets are opened once per reader, at the first read, and closed with it. Nothing here crosses a process or a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain.types import NODATA, SATURATED, Window
from dinodomain_remote_sensing import remote
from dinodomain_remote_sensing.geometry import Relation
from dinodomain_remote_sensing.header import EXTRA, WANTED_BY, Header, open_dataset, patiently
from dinodomain_remote_sensing.place import Cut
from dinodomain_remote_sensing.quality import Flags
from dinodomain_remote_sensing.resample import resampled, taken_nearest
from dinodomain_remote_sensing.sensor import Band, Calibration
from dinodomain_remote_sensing.warp import Warp

BELOW_POWER = -1.0
"""Subtracting noise leaves powers a little below 0, never this far."""

SCAN = 256
"""Side of the blocks in which channels are searched for any data: small, for they are decoded again when they are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One channel of a scene.

    Attributes:
        band: File and band number.
        calibration: Meaning of its numbers.
        relation: How it comes to the scene's grid.
    """

    band: Band
    calibration: Calibration
    relation: Relation | Warp


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A quality raster on the scene's grid.

    Attributes:
        flags: Its meaning.
        relation: How it comes to the scene's grid.
    """

    flags: Flags
    relation: Relation | Warp


class SceneReader:
    """Windows of a scene as stored values, and their validity.

    Args:
        layers: One per channel.
        shape: (rows, columns) of the scene's grid, before ``orientation``.
        dtype: Stored dtype.
        alpha: Header and 1-based band number of an alpha band, or None.
        orientation: EXIF orientation 1..8 of a picture without georeference.
        masks: Quality rasters.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        shape: tuple[int, int],
        dtype: str,
        alpha: tuple[Header, int] | None = None,
        orientation: int = 1,
        masks: Sequence[Mask] = (),
    ) -> None:
        self._layers, self._shape, self._dtype, self._masks = tuple(layers), shape, np.dtype(dtype), tuple(masks)
        self._alpha, self._orientation = alpha, orientation
        self._datasets: dict[str, Any] = {}
        self._last: tuple[Window, np.ndarray] | None = None
        self._together = _read_together(self._layers)
        self._stack: tuple[tuple[str, slice, slice], Mapping[int, np.ndarray]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) as read."""
        rows, columns = self._shape
        return (columns, rows) if self._orientation >= 5 else (rows, columns)

    @property
    def may_miss(self) -> bool:
        """Whether a pixel of this scene can be invalid at all."""
        return bool(self._alpha is not None or self._masks) or any(map(_can_miss, self._layers))

    def read(self, window: Window) -> np.ndarray:
        """[C, *window] in the stored dtype; missing values of floating point are 0.

        Raises:
            BadSource: A file cannot be decoded, or holds infinite values.
        """
        rows, columns = _turned(window, self._shape, self._orientation)
        out = np.empty((len(self._layers), rows.stop - rows.start, columns.stop - columns.start), self._dtype)
        missing, dark, full = np.zeros(out.shape[1:], bool), np.ones(out.shape[1:], bool), np.zeros(out.shape[1:], bool)
        for index, layer in enumerate(self._layers):
            values, gone, saturated = resampled(lambda y, x, layer=layer: self._block(layer, y, x), layer.relation, rows, columns)  # type: ignore[misc]
            out[index] = _stored(values, gone, layer, self._dtype)
            if layer.calibration.shared_nodata:
                dark &= gone
            else:
                missing |= gone
            if saturated is not None:
                full |= saturated & ~gone
        if any(layer.calibration.shared_nodata for layer in self._layers):
            missing |= dark
        if self._alpha is not None:
            missing |= self._alpha_values(rows, columns) == 0
        bits = np.where(missing, np.uint8(NODATA), np.uint8(0)) | np.where(full, np.uint8(SATURATED), np.uint8(0))
        for mask in self._masks:
            bits |= self._flagged(mask, rows, columns)
        self._stack = None
        self._last = window, np.ascontiguousarray(_oriented(bits, self._orientation))
        return np.ascontiguousarray(_oriented(out, self._orientation))

    def read_valid(self, window: Window) -> np.ndarray:
        """uint8 bit field over the window.

        Bit 1 where a channel (all of them, if their nodata is shared), alpha or mask has no data; bit 32 where a channel is saturated;
        and what the quality rasters say.
        """
        if self._last is None or self._last[0] != window:
            self.read(window)
        assert self._last is not None
        return self._last[1].copy()

    def empty_layers(self) -> frozenset[int]:
        """Indexes of the channels that hold no data anywhere; stops as soon as every channel has shown some."""
        left = {index for index, layer in enumerate(self._layers) if _can_miss(layer)}
        for rows, columns in _blocks(self._shape):
            if not left:
                break
            left = {index for index in left if self._missing(self._layers[index], rows, columns).all()}
        return frozenset(left)

    def _missing(self, layer: Layer, rows: slice, columns: slice) -> np.ndarray:
        return resampled(lambda y, x: self._block(layer, y, x), layer.relation, rows, columns)[1]

    def _alpha_values(self, rows: slice, columns: slice) -> np.ndarray:
        assert self._alpha is not None
        header, index = self._alpha
        relation = self._layers[0].relation
        if not isinstance(relation, Warp):
            return self._decoded(header, index, rows, columns)
        return taken_nearest(lambda y, x: self._decoded(header, index, y, x), replace(relation, method="nearest"), rows, columns)

    def alpha_levels(self) -> int:
        """Number of different alpha values in the middle of the picture."""
        if self._alpha is None:
            return 0
        rows, columns = (slice(max(0, side // 2 - 256), min(side, side // 2 + 256)) for side in self._shape)
        return len(np.unique(self._alpha_values(rows, columns)))

    def _flagged(self, mask: Mask, rows: slice, columns: slice) -> np.ndarray:
        flags = mask.flags
        return flags.bits(taken_nearest(lambda y, x: self._mask_values(flags, y, x), mask.relation, rows, columns))

    def _mask_values(self, flags: Flags, rows: slice, columns: slice) -> np.ndarray:
        if flags.outlines is None:
            return self._decoded(flags.header, flags.index, rows, columns)
        assert flags.header.transform is not None
        return flags.outlines.drawn(flags.header.transform, rows, columns)

    def _block(self, layer: Layer, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Values, missing and saturated pixels of a band on its own grid; decibels are linear power here where they get mixed."""
        header = layer.band.header
        values = self._values(header, layer.band.index, rows, columns)
        missing = _equals_any(values, layer.calibration.nodata)
        if header.mask:
            missing |= self._decoded(header, layer.band.index, rows, columns, mask=True) == 0
        if np.issubdtype(values.dtype, np.floating):
            missing |= np.isnan(values)
            if (np.isinf(values) & ~missing).any():
                raise BadSource(header.path, "infinite values", "replace them by NaN, or by a declared nodata value")
        if layer.calibration.decode != "none":
            if (values[~missing] < BELOW_POWER).any():
                problem = f"{layer.calibration.decode} below {BELOW_POWER:g}, which cannot be: are these decibels?"
                raise BadSource(header.path, problem, "correct its tags, or ingest.sar=db")
            missing |= ~(values > 0)
        full = _equals_any(values, layer.calibration.saturated) if layer.calibration.saturated else None
        return (_to_power(values, missing, layer) if _mixes_decibels(layer) else values), missing, full

    def _values(self, header: Header, index: int, rows: slice, columns: slice) -> np.ndarray:
        """One band; all channels of a stack are decoded in one call, for GDAL's cost of a call grows with the bands of the file."""
        indexes = self._together.get(header.path, ())
        if index not in indexes:
            return self._decoded(header, index, rows, columns)
        key = header.path, rows, columns
        if self._stack is None or self._stack[0] != key:
            block = self._decoded(header, list(indexes), rows, columns)
            self._stack = key, dict(zip(indexes, block))
        return self._stack[1][index]

    def _decoded(self, header: Header, index: int | list[int], rows: slice, columns: slice, *, mask: bool = False) -> np.ndarray:
        rasterio = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY)
        window = rasterio.windows.Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop))

        def attempt() -> np.ndarray:
            with remote.environment(header.path, sidecars=header.sidecars):
                dataset = self._dataset(header)
                block: np.ndarray = dataset.read_masks(index, window=window) if mask else dataset.read(index, window=window)
            return block

        remedy = "the file is damaged or cut short; copy it again"
        return patiently(attempt, header.path, "cannot be decoded", remedy, between=lambda: self._forget(header.path))

    def _dataset(self, header: Header) -> Any:
        if header.path not in self._datasets:
            self._datasets[header.path] = open_dataset(header.path, sidecars=header.sidecars)
        return self._datasets[header.path]

    def _forget(self, path: str) -> None:
        """Closes one file, so that the next read begins with nothing that a broken transfer left behind."""
        dataset = self._datasets.pop(path, None)
        if dataset is not None:
            with remote.environment(path):
                dataset.close()

    def close(self) -> None:
        """Closes the files; the next read opens them again."""
        for path in list(self._datasets):
            self._forget(path)

    def __del__(self) -> None:
        self.close()


class Windowed:
    """The part of a scene that is taken: windows count from its corner.

    Args:
        reader: The whole scene.
        cut: The part, or None for the whole.
    """

    def __init__(self, reader: SceneReader, cut: Cut | None) -> None:
        self._reader, self._cut = reader, cut

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the part."""
        return self._reader.shape if self._cut is None else (self._cut.grid.height, self._cut.grid.width)

    @property
    def may_miss(self) -> bool:
        """Whether a pixel can be invalid at all."""
        return self._reader.may_miss or (self._cut is not None and self._cut.polygon is not None)

    def read(self, window: Window) -> np.ndarray:
        """[C, *window]; see ``SceneReader.read``."""
        return self._reader.read(window if self._cut is None else self._cut.outer(window))

    def read_valid(self, window: Window) -> np.ndarray:
        """uint8 bit field; see ``SceneReader.read_valid``. The user's bit is set outside the area."""
        if self._cut is None:
            return self._reader.read_valid(window)
        bits: np.ndarray = self._reader.read_valid(self._cut.outer(window)) | self._cut.outside(window)
        return bits


def _read_together(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """Band numbers by file, of files that hold several channels of one dtype."""
    found: dict[str, list[Band]] = {}
    for layer in layers:
        found.setdefault(layer.band.header.path, []).append(layer.band)
    several = {path: bands for path, bands in found.items() if len(bands) > 1}
    return {
        path: tuple(sorted(band.index for band in bands))
        for path, bands in several.items()
        if len({band.header.dtypes[band.place] for band in bands}) == 1
    }


def _equals_any(values: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    found = np.zeros(values.shape, bool)
    for value in wanted:
        found |= values == value
    return found


def _is_float(band: Band) -> bool:
    return band.header.dtypes[band.place].startswith("float")


def _can_miss(layer: Layer) -> bool:
    calibration = layer.calibration
    stated = calibration.nodata or calibration.saturated or calibration.decode != "none" or layer.band.header.mask
    return bool(stated) or _is_float(layer.band) or isinstance(layer.relation, Warp)


def _mixes_decibels(layer: Layer) -> bool:
    """Decibels and amplitudes must become power before they are averaged: the mean of logarithms is not the logarithm of the mean."""
    return layer.calibration.decode != "none" or (
        layer.relation.method not in ("native", "replicate") and layer.calibration.channel in ("VV", "VH", "HH", "HV")
    )


def _to_power(values: np.ndarray, missing: np.ndarray, layer: Layer) -> np.ndarray:
    wide = np.where(missing, 1.0, values.astype(np.float64))
    if layer.calibration.decode == "none":
        return np.asarray(10.0 ** ((wide * layer.calibration.scale + layer.calibration.offset) / 10.0))
    return wide * wide if layer.calibration.decode == "amplitude" else wide


def _stored(values: np.ndarray, missing: np.ndarray, layer: Layer, dtype: np.dtype[Any]) -> np.ndarray:
    """Casts to the stored dtype; a missing resampled or floating-point value becomes the channel's nodata, else 0."""
    if _mixes_decibels(layer):
        # Decoded values have scale 1 and offset 0.
        values = (10.0 * np.log10(np.where(missing, 1.0, values)) - layer.calibration.offset) / layer.calibration.scale
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = np.where(missing, 0, values).astype(dtype)
        if np.isinf(narrow).any():
            raise BadSource(layer.band.header.path, f"values beyond {dtype}", "scale them to the range of 32-bit floating point")
        return narrow
    if layer.relation.method in ("native", "replicate"):
        return values.astype(dtype, copy=False)
    fill = layer.calibration.nodata[0] if layer.calibration.nodata else 0
    return np.where(missing, fill, np.rint(values)).astype(dtype)


def _blocks(shape: tuple[int, int]) -> Iterator[Window]:
    for row in range(0, shape[0], SCAN):
        for column in range(0, shape[1], SCAN):
            yield slice(row, min(row + SCAN, shape[0])), slice(column, min(column + SCAN, shape[1]))


def _turned(window: Window, shape: tuple[int, int], orientation: int) -> Window:
    """The window of the file that holds a window of the upright picture (EXIF 2.3, tag 0x0112)."""
    rows, columns = window
    if orientation >= 5:
        rows, columns = columns, rows
    if orientation in (3, 4, 6, 7):
        rows = slice(shape[0] - rows.stop, shape[0] - rows.start)
    if orientation in (2, 3, 7, 8):
        columns = slice(shape[1] - columns.stop, shape[1] - columns.start)
    return rows, columns


def _oriented(block: np.ndarray, orientation: int) -> np.ndarray:
    """Mirrors and transposes the last two axes of a file's block to the upright picture."""
    if orientation in (3, 4, 6, 7):
        block = block[..., ::-1, :]
    if orientation in (2, 3, 7, 8):
        block = block[..., ::-1]
    return np.swapaxes(block, -1, -2) if orientation >= 5 else block
