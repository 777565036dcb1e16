"""DICOM slices to volumes: what is refused by header, decoding, one scale for all slices, and resampling where it was asked for.

Grouping lies in ``series_split``, geometry in ``series_geometry``. Slices with their own slope and intercept come to one integer scale
exactly where 16 bits hold it, else to float32; the field ``scale_kind`` says which (``shared``, ``integer``, ``float32``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np

from dinodomain.errors import BadSource
from dinodomain.types import NODATA
from dinodomain_medical.dicom_fields import FieldValue
from dinodomain_medical.dicom_header import Header, read_headers
from dinodomain_medical.dicom_pixels import Frame, check_single_grey, decode, decode_frames, invert, shows_low_as_white
from dinodomain_medical.resample_series import resample
from dinodomain_medical.series_geometry import Irregular, arrange
from dinodomain_medical.series_split import Series, SplitKey, group
from dinodomain_medical.values import Stored, one_scale, storable

_HOUNSFIELD = ("", "HU", "US", "HU_MOD")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesVolume:
    """Decoded voxels (slice, row, column) on one scale, before re-orientation.

    Attributes:
        array: Stored values.
        affine: 4x4, index (column, row, slice) to RAS+ mm.
        scale: physical = stored * scale + offset.
        offset: See ``scale``.
        nodata: Stored padding value, or None.
        valid: Bit field of voxels that were not measured, on the same axes, or None.
        header: Header of the first slice.
        fields: What all slices together say: ``scale_kind``, ``lossy``.
        stages: What was done.
        warnings: What a person should look at.
    """

    array: np.ndarray
    affine: np.ndarray
    scale: float
    offset: float
    nodata: float | None
    valid: np.ndarray | None
    header: Header
    fields: Mapping[str, FieldValue]
    stages: tuple[str, ...]
    warnings: tuple[str, ...]


def check(series: Series, *, uri: str, hounsfield: bool, irregular: Irregular = "refuse") -> None:
    """Refuses by headers alone what is no volume of this domain.

    Raises:
        BadSource: Localizer, frames without geometry, colour, mosaics, values that are not Hounsfield units though they
            should be, one slice, or anything ``arrange`` refuses.
    """
    first = series.headers[0]
    for header in series.headers:
        check_single_grey(header)
        if hounsfield and header.rescale_type not in _HOUNSFIELD:
            raise BadSource(
                uri,
                f"values are {_short(header.rescale_type)} (RescaleType), not Hounsfield units",
                "exclude it: spectral and density maps are no CT numbers",
            )
    if "LOCALIZER" in first.image_type:
        raise BadSource(uri, "a localizer (ImageType says LOCALIZER)", "exclude it: scouts are no volumes")
    if "MOSAIC" in first.image_type:
        raise BadSource(uri, "a mosaic: many slices tiled into one picture", "unpack it (for example dcm2niix) and ingest the volumes")
    arrange(series.headers, uri, irregular)


def _short(word: str) -> str:
    return "".join(letter for letter in word if letter.isalnum() or letter == "_")[:16]


def headers_of(uris: Iterable[str], frames: Iterable[Sequence[int] | None]) -> list[Header]:
    """The headers of a source again: per file all its images (None), or only some frames of it (numbers from 0)."""
    found: list[Header] = []
    for uri, wanted in zip(uris, frames):
        found += [header for header in read_headers(Path(uri)) if wanted is None or header.frame in wanted]
    return found


def read_series(headers: Sequence[Header], uri: str, *, hounsfield: bool, irregular: Irregular = "refuse") -> SeriesVolume:
    """Decodes one volume.

    Args:
        headers: Exactly those of one ``Series``.
        uri: Name of the series for messages about all of it; messages about one file name that file.
        hounsfield: Whether values are Hounsfield units: then MONOCHROME1 changes the display only, and padding is no data.
        irregular: What becomes of tilted, missing or uneven slices.

    Raises:
        BadSource: A file cannot be decoded, or two different images lie at one position.
    """
    stack = arrange(headers, uri, irregular)
    decoded = _decoded(stack.planes)
    frames = [_one_of(plane, decoded, uri) for plane in stack.planes]
    dropped = sum(len(plane) - 1 for plane in stack.planes)
    del decoded
    stages = [*dict.fromkeys(stage for frame in frames for stage in frame.stages)]
    if dropped:
        stages.append(f"{dropped} duplicate slices dropped")
    valid = _padded(frames) if hounsfield else None
    arrays = [frame.stored for frame in frames]
    if any(map(shows_low_as_white, frames)):
        stages.append("MONOCHROME1: display only, values kept" if hounsfield else "MONOCHROME1 inverted")
        if not hounsfield:
            arrays = [invert(frame) if shows_low_as_white(frame) else frame.stored for frame in frames]
    common = _on_one_scale(frames, arrays, uri)
    padding = {frame.header.padding for frame in frames}
    only = next(iter(padding)) if len(padding) == 1 else None
    same = common.kind == "shared" and only is not None and only[0] == only[1] and valid is not None
    nodata = float(only[0]) if same and only else None
    array = common.stored.array
    stages += [*common.stages, *common.stored.stages]
    if stack.grid is not None:
        fill = float(array.min()) if nodata is None else nodata
        array, valid = resample(array, valid, stack.grid, fill)
        valid = valid if valid.any() else None
        stages += [stack.grid.stage, *(["resampled values rounded to whole stored numbers"] if array.dtype.kind != "f" else [])]
    lossy = any(bool(frame.header.fields.get("lossy")) for frame in frames)
    return SeriesVolume(
        array=array,
        affine=stack.affine,
        scale=common.scale,
        offset=common.offset,
        nodata=nodata,
        valid=valid,
        header=frames[0].header,
        fields={"scale_kind": common.kind, "lossy": lossy},
        stages=tuple(stages),
        warnings=stack.warnings,
    )


_Decoded = dict[tuple[Path, int | None], Frame]


def _decoded(planes: Sequence[Sequence[Header]]) -> _Decoded:
    """Every image, each multi-frame file opened once and read frame by frame."""
    found: _Decoded = {}
    ordered = sorted((header for plane in planes for header in plane), key=lambda header: (header.path, header.frame or 0))
    for path, members in groupby(ordered, key=lambda header: header.path):
        for frame in _frames_of(path, list(members)):
            found[path, frame.header.frame] = frame
    return found


def _frames_of(path: Path, headers: Sequence[Header]) -> Iterator[Frame]:
    if headers[0].frame is None:
        yield decode(path, headers[0])
    else:
        yield from decode_frames(path, headers)


def _one_of(plane: Sequence[Header], decoded: _Decoded, uri: str) -> Frame:
    """The image of one position; several are one image only if their pixels and scale are equal."""
    frames = [decoded[header.path, header.frame] for header in plane]
    if len(frames) == 1:
        return frames[0]
    prints = {(hashlib.sha256(frame.stored.tobytes()).digest(), frame.stored.dtype, frame.slope, frame.offset) for frame in frames}
    if len(prints) > 1:
        place = ", ".join(f"{value:g}" for value in plane[0].position or ())
        raise BadSource(
            uri,
            f"two series that cannot be told apart: {len(plane)} different images at position ({place}) mm",
            "move them into folders of their own, or keep one by ingest.exclude",
        )
    return frames[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    stored: Stored
    scale: float
    offset: float
    kind: str
    stages: tuple[str, ...] = ()


def _on_one_scale(frames: Sequence[Frame], arrays: Sequence[np.ndarray], uri: str) -> _Common:
    scales = {(frame.slope, frame.offset) for frame in frames}
    if len(scales) == 1:
        slope, offset = scales.pop()
        return _Common(stored=storable(np.stack(arrays), uri), scale=float(slope), offset=float(offset), kind="shared")
    slopes, offsets = [frame.slope for frame in frames], [frame.offset for frame in frames]
    whole = all(array.dtype.kind in "iu" for array in arrays)
    common = one_scale(slopes, offsets, [(int(array.min()), int(array.max())) for array in arrays]) if whole else None
    if common is not None:
        volume = np.stack(
            [(array.astype(np.int64) * gain + shift).astype(common.dtype) for array, gain, shift in zip(arrays, common.gain, common.shift)]
        )
        return _Common(
            stored=Stored(array=volume),
            scale=float(common.scale),
            offset=float(common.offset),
            kind="integer",
            stages=(f"{len(scales)} slice scales -> one integer scale, exact",),
        )
    physical = np.stack([_physical(array, slope, offset) for array, slope, offset in zip(arrays, slopes, offsets)])
    stages = (f"{len(scales)} slice scales -> float32",)
    return _Common(stored=storable(physical, uri), scale=1.0, offset=0.0, kind="float32", stages=stages)


def _physical(array: np.ndarray, slope: Fraction, offset: Fraction) -> np.ndarray:
    return (array.astype(np.float64) * float(slope) + float(offset)).astype(np.float32)


def _padded(frames: Sequence[Frame]) -> np.ndarray | None:
    """Bit field of voxels that hold their slice's PixelPaddingValue (or lie within its range), or None where there are none."""
    masks = [_padding_mask(frame) for frame in frames]
    return np.stack(masks).astype(np.uint8) * np.uint8(NODATA) if any(mask.any() for mask in masks) else None


def _padding_mask(frame: Frame) -> np.ndarray:
    if frame.header.padding is None:
        return np.zeros(frame.stored.shape, dtype=bool)
    # Some writers give a negative padding as unsigned; it wraps at the allocated width.
    low, high = sorted(value - 65536 if frame.low < 0 and value > 32767 else value for value in frame.header.padding)
    return (frame.stored >= low) & (frame.stored <= high)


__all__ = ["Series", "SeriesVolume", "SplitKey", "arrange", "check", "group", "headers_of", "read_series"]
