"""Bringing volumes of one frame of reference to one grid, and putting them together as the channels of one record.

Affines map index (x, y, z) to RAS+ mm; arrays are (z, y, x). Values are interpolated linearly in float32 as they are stored, so each
channel keeps its own scale and offset; a member that lies on the grid already is taken as it is, bit by bit. Where the grid is coarser
than a member along one of its axes, the member is low-pass filtered along it first, with the Gaussian that turns its point spread into
that of the coarser voxel (Cardoso et al. 2015, doi:10.1007/978-3-319-24571-3_81: full widths at half maximum subtract in
squares). Voxels whose centres lie outside a member's outermost voxels are no data. Registers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain.types import NODATA, Record
from dinodomain_medical.geometry import largest_shift_mm, spacing_zyx
from dinodomain_medical.opened import Cut, CutValid

_SAME_GRID_MM = 1e-3
_TRUNCATED = 4.0  # standard deviations
_FWHM = 2 * math.sqrt(2 * math.log(2))
_OUTSIDE = 256  # beyond the bits of a valid field
_LITTLE_OVERLAP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: (z, y, x).
        affine: 4x4, index (x, y, z) to RAS+ mm.
        name: In words.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """One channel on the grid.

    Attributes:
        array: (z, y, x); the member's own type where nothing was resampled, else float32.
        valid: (z, y, x) uint8 bit field, or None where all is valid.
        method: ``none``, ``linear`` or ``low-pass, linear``.
    """

    array: np.ndarray
    valid: np.ndarray | None
    method: str


def choose_grid(records: Sequence[Record], names: Sequence[str], wanted: str) -> Grid:
    """The grid of a stack.

    Args:
        records: One-channel volumes.
        names: Their channels, in the same order.
        wanted: ``finest`` (the member with the smallest voxels, the first of equals), one of ``names``, or a voxel size in mm: then the
            axes and the field of view of the finest member.
    """
    grids = [_grid_of(record, f"{name} ({_by(spacing_zyx(_affine(record)))} mm)") for record, name in zip(records, names)]
    if wanted in names:
        return grids[list(names).index(wanted)]
    finest = min(grids, key=lambda grid: round(abs(np.linalg.det(grid.affine[:3, :3])), 6))
    return finest if wanted == "finest" else _isotropic(finest, float(wanted))


def _grid_of(record: Record, name: str) -> Grid:
    z, y, x = record.shape[1:]
    return Grid(shape=(z, y, x), affine=_affine(record), name=name)


def _isotropic(grid: Grid, side: float) -> Grid:
    """Cubes of ``side`` mm along the same axes from the same outer edge, as many as fit into the field of view, at least one."""
    sizes = np.linalg.norm(grid.affine[:3, :3], axis=0)
    counts = np.maximum(1, np.floor(np.array(grid.shape[::-1]) * sizes / side + 1e-6)).astype(int)
    axes = grid.affine[:3, :3] / sizes
    affine = np.eye(4)
    affine[:3, :3] = axes * side
    affine[:3, 3] = grid.affine[:3, 3] + axes @ ((side - sizes) / 2)
    x, y, z = map(int, counts)
    return Grid(shape=(z, y, x), affine=affine, name=f"{side:g} mm cubes along the axes of {grid.name}")


def stack_records(records: Sequence[Record], names: Sequence[str], wanted: str, uri: str) -> Record:
    """One record with a channel per member.

    All channels keep their stored integers if none was resampled (the smallest 16-bit type that holds all exactly, else float32);
    as soon as one was, all are float32, which holds 16-bit integers exactly.

    Args:
        records: One-channel volumes, their geometry on canonical axes.
        names: Their channels, in the order of the stack.
        wanted: See ``choose_grid``.
        uri: For messages.

    Raises:
        BadSource: A member has no voxel in common with the grid.
    """
    grid = choose_grid(records, names, wanted)
    parts = [resample(record, grid) for record in records]
    warnings = [f"{name}: {warning}" for name, record in zip(names, records) for warning in record.warnings]
    for name, part in zip(names, parts):
        share = 1.0 if part.valid is None else float((part.valid == 0).mean())
        if share == 0:
            raise BadSource(
                uri, f"{name} has no voxel in common with the grid of {grid.name}", "check that they are of one examination, or exclude one"
            )
        if share < _LITTLE_OVERLAP:
            warnings.append(f"{name} covers {share:.0%} of the grid of {grid.name}")
    dtype = _common_type([part.array.dtype for part in parts])
    array = np.stack([part.array.astype(dtype, copy=False) for part in parts])
    valid = _together([part.valid for part in parts])
    return Record(
        channels=tuple(names),
        shape=array.shape,
        dtype=dtype.name,
        spacing=spacing_zyx(grid.affine),
        affine=tuple(float(value) for value in grid.affine.ravel()),
        crs=None,
        scale=tuple(record.scale[0] for record in records),
        offset=tuple(record.offset[0] for record in records),
        # Interpolation leaves no stored value that could mean "no data"; the bit field says it instead.
        nodata=tuple(record.nodata[0] if part.method == "none" else None for record, part in zip(records, parts)),
        layout="window",
        read=Cut(array),
        read_valid=None if valid is None else CutValid(valid),
        acquired=next((record.acquired for record in records if record.acquired), None),
        fields=_fields(records, names, parts, grid),
        stages=_stages(records, names, parts, grid, dtype),
        warnings=tuple(warnings),
    )


def resample(record: Record, grid: Grid) -> Resampled:
    """A one-channel record on the grid."""
    window = tuple(slice(0, size) for size in record.shape[1:])
    array = record.read(window)[0]
    valid = None if record.read_valid is None else record.read_valid(window)
    affine = _affine(record)
    if array.shape == grid.shape and largest_shift_mm(affine, grid.affine, grid.shape[::-1]) < _SAME_GRID_MM:
        return Resampled(array=array, valid=valid, method="none")
    to_member = np.linalg.inv(affine) @ grid.affine
    # Voxels of the member that one step on the grid crosses, per axis of the member (x, y, z).
    steps = np.linalg.norm(to_member[:3, :3], axis=1)
    variances = [(max(step, 1.0) ** 2 - 1) / _FWHM**2 if step > 1 + 1e-3 else 0.0 for step in steps]
    values = _interpolated(array.astype(np.float32, copy=False), valid, to_member, grid.shape, variances)
    bits = np.zeros(array.shape, dtype=np.uint8) if valid is None else valid
    moved = _moved(bits.astype(np.int16), to_member, grid.shape, nearest=True, outside=_OUTSIDE)
    moved = np.where(moved == _OUTSIDE, NODATA, moved).astype(np.uint8)
    values[moved != 0] = 0
    return Resampled(array=values, valid=moved if moved.any() else None, method="low-pass, linear" if any(variances) else "linear")


def _interpolated(
    values: np.ndarray, valid: np.ndarray | None, to_member: np.ndarray, shape: tuple[int, int, int], variances: Sequence[float]
) -> np.ndarray:
    """Weighted by validity, so that the values of invalid voxels reach nobody."""
    if valid is None or not valid.any():
        return _moved(_smoothed(values, variances), to_member, shape)
    weights = (valid == 0).astype(np.float32)
    amount = _moved(_smoothed(values * weights, variances), to_member, shape)
    weight = _moved(_smoothed(weights, variances), to_member, shape)
    moved: np.ndarray = np.divide(amount, weight, out=np.zeros_like(amount), where=weight > 1e-3)
    return moved


def _smoothed(values: np.ndarray, variances: Sequence[float]) -> np.ndarray:
    """Gaussian of a variance in voxels squared per axis (x, y, z); beyond the border the outermost voxels go on."""
    for axis, variance in zip((2, 1, 0), variances):
        if variance > 0:
            values = _smoothed_along(values, axis, math.sqrt(variance))
    return values


def _smoothed_along(values: np.ndarray, axis: int, sigma: float) -> np.ndarray:
    reach = math.ceil(_TRUNCATED * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    size = values.shape[axis]
    out = np.zeros_like(values)
    for shift, weight in zip(range(-reach, reach + 1), weights):
        out += np.float32(weight) * values.take(np.clip(np.arange(size) + shift, 0, size - 1), axis=axis)
    return out


def _moved(
    values: np.ndarray, to_member: np.ndarray, shape: tuple[int, int, int], *, nearest: bool = False, outside: float = 0.0
) -> np.ndarray:
    """Resampling in index space, where sheared axes are as good as any; inside is up to the outer edges of the outermost voxels."""
    itk = _itk()
    transform = itk.AffineTransform(3)
    transform.SetMatrix(to_member[:3, :3].ravel().tolist())
    transform.SetTranslation(to_member[:3, 3].tolist())
    method = itk.sitkNearestNeighbor if nearest else itk.sitkLinear
    size = [int(extent) for extent in shape[::-1]]
    unit = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    moved = itk.Resample(itk.GetImageFromArray(values), size, transform, method, *unit, float(outside))
    return np.array(itk.GetArrayViewFromImage(moved))


def _common_type(dtypes: Sequence[np.dtype]) -> np.dtype:
    together = np.result_type(*dtypes)
    return together if together.kind in "iu" and together.itemsize <= 2 else np.dtype(np.float32)


def _together(fields: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [field for field in fields if field is not None]
    together: np.ndarray | None = np.bitwise_or.reduce(known) if known else None
    return together


def _fields(
    records: Sequence[Record], names: Sequence[str], parts: Sequence[Resampled], grid: Grid
) -> dict[str, str | int | float | bool | None]:
    """What all members share under its own name, the rest under ``CHANNEL.name``."""
    all_names = dict.fromkeys(name for record in records for name in record.fields)
    fields: dict[str, str | int | float | bool | None] = {"stack": "+".join(names), "grid": grid.name}
    for name in all_names:
        values = [record.fields.get(name) for record in records]
        if all(value == values[0] for value in values):
            fields[name] = values[0]
        else:
            fields |= {f"{channel}.{name}": value for channel, value in zip(names, values) if value is not None}
    for channel, record, part in zip(names, records, parts):
        fields |= {f"{channel}.native_mm": _by(spacing_zyx(_affine(record))), f"{channel}.resampling": part.method}
    return fields


def _stages(records: Sequence[Record], names: Sequence[str], parts: Sequence[Resampled], grid: Grid, dtype: np.dtype) -> tuple[str, ...]:
    stages = [f"{name}: {stage}" for name, record in zip(names, records) for stage in record.stages]
    for name, record, part in zip(names, records, parts):
        native = _by(spacing_zyx(_affine(record)))
        done = "already on" if part.method == "none" else f"{part.method} from {native} mm to"
        stages.append(f"{name}: {done} the grid of {grid.name}")
    if any(part.array.dtype != dtype for part in parts):
        stages.append(f"all channels as {dtype.name}, exact")
    return tuple(stages)


def _affine(record: Record) -> np.ndarray:
    assert record.affine is not None, "medical volumes have affines"
    return np.reshape(record.affine, (4, 4))


def _by(spacing: Sequence[float]) -> str:
    return "x".join(f"{size:.4g}" for size in spacing[::-1])


def _itk() -> Any:
    return require("SimpleITK", extra="medical", wanted_by="ingest.stack")
