"""DICOM slices to volumes: grouping, splitting, ordering, one scale. Nothing is assumed regular: what is not is refused with numbers.

A series splits by orientation, matrix, pixel spacing, echo, b-value, temporal position and complex component, and by
acquisition number where its acquisitions overlap or do not join evenly. Slices are then ordered by their position along the
normal. Equations: PS3.3 C.7.6.2.1.1 (image plane to patient space). Positions are LPS mm until the last step.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from dinodomain.errors import BadSource
from dinodomain.types import NODATA
from dinodomain_medical.dicom_header import Header, read_header
from dinodomain_medical.dicom_pixels import Frame, check_single_grey, decode, invert, shows_low_as_white
from dinodomain_medical.geometry import LPS_TO_RAS
from dinodomain_medical.values import Stored, one_scale, storable

SAME_PLANE_MM = 0.01
"""Slices closer than this along the normal lie at one position."""

_UNEVEN_MM, _UNEVEN_SHARE = 0.05, 0.01
_SAME_DIRECTION = 1e-3

SplitKey = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Headers that belong to one volume.

    Attributes:
        uid: SeriesInstanceUID; empty where a file states none.
        label: What tells it from the other parts of its series (``b=1000``), empty if it is whole.
        key: All that it was split by, with the UID: equal keys in two folders are one series.
        headers: Sorted by path.
    """

    uid: str
    label: str
    key: SplitKey
    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Slices in order along the normal.

    Attributes:
        planes: Per position, the headers that lie there (more than one: duplicates to be compared by pixels).
        affine: 4x4, index (column, row, slice) to RAS+ mm.
    """

    planes: tuple[tuple[Header, ...], ...]
    affine: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesVolume:
    """Decoded voxels (slice, row, column) on one scale, before re-orientation.

    Attributes:
        array: Stored values.
        affine: 4x4, index (column, row, slice) to RAS+ mm.
        scale: physical = stored * scale + offset.
        offset: See ``scale``.
        nodata: Stored padding value, or None.
        valid: Bit field of padded voxels on the same axes, or None.
        header: Header of the first slice.
        stages: What was done.
    """

    array: np.ndarray
    affine: np.ndarray
    scale: float
    offset: float
    nodata: float | None
    valid: np.ndarray | None
    header: Header
    stages: tuple[str, ...]


def group(headers: Sequence[Header]) -> list[Series]:
    """Splits the headers of one folder into volumes, sorted by UID and label."""
    by_uid: dict[str, list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda header: header.path):
        by_uid[header.keys.get("SeriesInstanceUID", "")].append(header)
    return [series for uid in sorted(by_uid) for series in _split(uid, by_uid[uid])]


def _split(uid: str, headers: list[Header]) -> list[Series]:
    directions: list[tuple[float, ...]] = []
    parts: dict[SplitKey, list[Header]] = defaultdict(list)
    for header in headers:
        parts[_split_key(header, directions)].append(header)
    finer: dict[SplitKey, list[Header]] = {}
    for key, members in parts.items():
        for acquisition, some in _by_acquisition(members).items():
            finer[(*key, ("acquisition", acquisition))] = some
    varying = {name for name in dict(next(iter(finer))) if len({dict(key)[name] for key in finer}) > 1}
    series = [
        Series(
            uid=uid,
            label=";".join(f"{name}={value}" for name, value in key if name in varying),
            key=(("uid", uid), *key),
            headers=tuple(some),
        )
        for key, some in finer.items()
    ]
    return sorted(series, key=lambda one: one.label)


def _split_key(header: Header, directions: list[tuple[float, ...]]) -> SplitKey:
    """``directions`` collects the orientations met so far; small jitter between slices falls to the first that is near."""
    parts = dict(header.parts)
    return (
        ("modality", header.modality),
        ("orientation", _direction(header.orientation, directions)),
        ("matrix", f"{header.columns}x{header.rows}"),
        ("spacing", "" if header.spacing is None else f"{header.spacing[0]:.4f}x{header.spacing[1]:.4f}"),
        ("localizer", str("LOCALIZER" in header.image_type)),
        *((name, parts.get(name, "")) for name in ("echo", "b", "time", "component")),
    )


def _direction(orientation: tuple[float, ...] | None, directions: list[tuple[float, ...]]) -> str:
    if orientation is None:
        return ""
    for number, known in enumerate(directions):
        if np.abs(np.subtract(orientation, known)).max() < _SAME_DIRECTION:
            return str(number + 1)
    directions.append(orientation)
    return str(len(directions))


def _by_acquisition(headers: list[Header]) -> dict[str, list[Header]]:
    """Some scanners number each slice as its own acquisition, so the number splits only what does not form one volume as it is."""
    split: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        split[header.acquisition].append(header)
    if len(split) == 1 or min(map(len, split.values())) < 2:
        return {"": headers}
    try:
        planes = arrange(headers, "").planes
    except BadSource:
        return split
    return split if any(len(plane) > 1 for plane in planes) else {"": headers}


def check(series: Series, *, modalities: Sequence[str], domain: str, uri: str) -> None:
    """Refuses by headers alone what is no regular volume of this domain.

    Raises:
        BadSource: Wrong modality, localizer, multi-frame, colour, no geometry, one slice, or anything ``arrange`` refuses.
    """
    first = series.headers[0]
    if first.modality not in modalities:
        raise BadSource(
            uri,
            f"modality {first.modality or 'not stated'} is not read by domain {domain!r} ({', '.join(modalities)})",
            "exclude it, or ingest it with its own domain",
        )
    for header in series.headers:
        check_single_grey(header)
    if "LOCALIZER" in first.image_type:
        raise BadSource(uri, "a localizer (ImageType says LOCALIZER)", "exclude it: scouts are no volumes")
    arrange(series.headers, uri)


def arrange(headers: Sequence[Header], uri: str) -> Stack:
    """Orders slices along their normal and derives the affine.

    Raises:
        BadSource: Slices without position, a single position, gantry tilt or shear, missing slices, uneven spacing.
    """
    geometry = [(header, header.position, header.orientation, header.spacing) for header in headers]
    lacking = [header for header, *values in geometry if None in values]
    if lacking:
        raise BadSource(
            str(lacking[0].path),
            "no ImagePositionPatient, ImageOrientationPatient or PixelSpacing",
            "exclude it: its place in the patient is unknown",
        )
    first = headers[0]
    assert first.orientation is not None
    assert first.spacing is not None
    across, down = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if max(abs(np.linalg.norm(across) - 1), abs(np.linalg.norm(down) - 1), abs(across @ down)) > _SAME_DIRECTION:
        raise BadSource(
            str(first.path), "ImageOrientationPatient is not two unit vectors at a right angle", "repair the header, or exclude it"
        )
    normal = np.cross(across, down)
    planes, places = _planes(headers, normal, uri)
    _check_steps(places, normal, first.tilt, uri)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * first.spacing[1], down * first.spacing[0]
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
    affine[:3, 3] = places[0]
    return Stack(planes=planes, affine=LPS_TO_RAS @ affine)


def _planes(headers: Sequence[Header], normal: np.ndarray, uri: str) -> tuple[tuple[tuple[Header, ...], ...], np.ndarray]:
    """Headers grouped by position along the normal, and the LPS position of each group [n, 3]."""
    ordered = sorted(headers, key=lambda header: (round(float(np.dot(header.position or (), normal)), 4), header.path))
    planes: list[list[Header]] = []
    places: list[np.ndarray] = []
    for header in ordered:
        place = np.array(header.position)
        if places and (place - places[-1]) @ normal < SAME_PLANE_MM:
            apart = float(np.linalg.norm(place - places[-1]))
            if apart > _UNEVEN_MM:
                raise BadSource(uri, f"two images in one plane, {apart:.2f} mm apart", "keep one of them (ingest.exclude)")
            planes[-1].append(header)
        else:
            planes.append([header])
            places.append(place)
    if len(planes) < 2:
        raise BadSource(uri, "one slice is no volume", "exclude it, or bring the rest of its series")
    return tuple(map(tuple, planes)), np.array(places)


def _check_steps(places: np.ndarray, normal: np.ndarray, tilt: float | None, uri: str) -> None:
    steps = np.diff(places, axis=0)
    gaps = steps @ normal
    usual = float(np.median(gaps))
    lateral = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    # The sideways shift of a tilted gantry grows with the gap, so the worst slice is compared with its own gap.
    worst = int(np.argmax(lateral / gaps))
    if lateral[worst] > _UNEVEN_MM and lateral[worst] > _UNEVEN_SHARE * gaps[worst]:
        angle = float(np.degrees(np.arctan2(lateral[worst], gaps[worst])))
        stated = "" if tilt is None else f", header states {tilt:g} degrees"
        spacing = "" if np.ptp(gaps) <= _UNEVEN_MM else f"; spacing {gaps.min():.2f}..{gaps.max():.2f} mm"
        raise BadSource(
            uri,
            f"slices are sheared by {angle:.1f} degrees (gantry tilt{stated}){spacing}",
            "resample it to a straight grid (for example dcm2niix) and ingest that",
        )
    off = np.abs(gaps - usual)
    uneven = (off > _UNEVEN_MM) & (off > _UNEVEN_SHARE * usual)
    if not uneven.any():
        return
    at = int(np.argmax(uneven))
    ratio = float(gaps[at]) / usual
    if round(ratio) >= 2 and abs(ratio - round(ratio)) < 0.05:
        raise BadSource(
            uri,
            f"{round(ratio) - 1} missing between slices {at + 1} and {at + 2} (gap {gaps[at]:.2f} mm, usually {usual:.2f} mm)",
            "bring the missing slices, or exclude the series",
        )
    raise BadSource(
        uri,
        f"uneven slice spacing {gaps.min():.2f}..{gaps.max():.2f} mm (usually {usual:.2f} mm)",
        "resample it to an even grid and ingest that, or exclude it",
    )


def read_series(paths: Sequence[Path], uri: str, *, hounsfield: bool) -> SeriesVolume:
    """Decodes one volume.

    Args:
        paths: Exactly the files of one ``Series``.
        uri: Name of the series for messages about all of it; messages about one file name that file.
        hounsfield: Whether values are Hounsfield units: then MONOCHROME1 changes the display only, and padding is no data.

    Raises:
        BadSource: A file cannot be decoded, or two different images lie at one position.
    """
    stack = arrange([read_header(path) for path in paths], uri)
    frames: list[Frame] = []
    dropped = 0
    for plane in stack.planes:
        frame = _one_of(plane, uri)
        frames.append(frame)
        dropped += len(plane) - 1
    stages = [*dict.fromkeys(stage for frame in frames for stage in frame.stages)]
    if dropped:
        stages.append(f"{dropped} duplicate slices dropped")
    valid = _padded(frames) if hounsfield else None
    arrays = [frame.stored for frame in frames]
    if any(map(shows_low_as_white, frames)):
        stages.append("MONOCHROME1: display only, values kept" if hounsfield else "MONOCHROME1 inverted")
        if not hounsfield:
            arrays = [invert(frame) if shows_low_as_white(frame) else frame.stored for frame in frames]
    stored, scale, offset, note = _on_one_scale(frames, arrays, uri)
    padding = frames[0].header.padding
    same = note is None and padding is not None and padding[0] == padding[1] and valid is not None
    return SeriesVolume(
        array=stored.array,
        affine=stack.affine,
        scale=scale,
        offset=offset,
        nodata=float(padding[0]) if same and padding else None,
        valid=valid,
        header=frames[0].header,
        stages=(*stages, *([note] if note else []), *stored.stages),
    )


def _one_of(plane: Sequence[Header], uri: str) -> Frame:
    """The image of one position; several are one image only if their pixels and scale are equal."""
    frames = [decode(header.path) for header in plane]
    prints = {(hashlib.sha256(frame.stored.tobytes()).digest(), frame.stored.dtype, frame.slope, frame.offset) for frame in frames}
    if len(prints) > 1:
        place = ", ".join(f"{value:g}" for value in plane[0].position or ())
        raise BadSource(
            uri,
            f"two series that cannot be told apart: {len(plane)} different images at position ({place}) mm",
            "move them into folders of their own, or keep one by ingest.exclude",
        )
    return frames[0]


def _on_one_scale(frames: Sequence[Frame], arrays: Sequence[np.ndarray], uri: str) -> tuple[Stored, float, float, str | None]:
    scales = {(frame.slope, frame.offset) for frame in frames}
    if len(scales) == 1:
        slope, offset = scales.pop()
        return storable(np.stack(arrays), uri), float(slope), float(offset), None
    slopes, offsets = [frame.slope for frame in frames], [frame.offset for frame in frames]
    common = one_scale(slopes, offsets, [(int(array.min()), int(array.max())) for array in arrays])
    if common is not None:
        volume = np.stack(
            [(array.astype(np.int64) * gain + shift).astype(common.dtype) for array, gain, shift in zip(arrays, common.gain, common.shift)]
        )
        return Stored(array=volume), float(common.scale), float(common.offset), f"{len(scales)} slice scales -> one integer scale, exact"
    physical = np.stack([_physical(array, slope, offset) for array, slope, offset in zip(arrays, slopes, offsets)])
    return storable(physical, uri), 1.0, 0.0, f"{len(scales)} slice scales -> float32"


def _physical(array: np.ndarray, slope: Fraction, offset: Fraction) -> np.ndarray:
    return (array.astype(np.float64) * float(slope) + float(offset)).astype(np.float32)


def _padded(frames: Sequence[Frame]) -> np.ndarray | None:
    """Bit field of voxels that hold PixelPaddingValue (or lie within its range), or None where there are none."""
    masks = [_padding_mask(frame) for frame in frames]
    return np.stack(masks).astype(np.uint8) * np.uint8(NODATA) if any(mask.any() for mask in masks) else None


def _padding_mask(frame: Frame) -> np.ndarray:
    if frame.header.padding is None:
        return np.zeros(frame.stored.shape, dtype=bool)
    # Some writers give a negative padding as unsigned; it wraps at the allocated width.
    low, high = sorted(value - 65536 if frame.low < 0 and value > 32767 else value for value in frame.header.padding)
    return (frame.stored >= low) & (frame.stored <= high)
