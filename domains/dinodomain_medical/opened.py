"""From an array in memory to a Record: what every volume reader shares.

A medical volume is decoded as a whole (compressed files allow nothing else) and windows are cut from memory; at 512^3 voxels of
16 bits that is 256 MB per ingest worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dinodomain.types import Record, Window
from dinodomain_medical.geometry import Oriented, spacing_zyx

Fields = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFile:
    """What the header of a NIfTI, NRRD or MHA file says of the volumes in it.

    Attributes:
        shape: (x, y, z) as stored.
        frames: Number of volumes; 1 for a 3-D file.
        item_bytes: Bytes per voxel as a store will hold it, at most.
        space: The coordinates that its affine leads to, in words; empty where they are not known. Files of one folder and one space
            may be stacked.
        b_values: Per frame, s/mm2; empty where they are not stated.
        frame: The frame that is meant, from 0; None for all of the file.
    """

    shape: tuple[int, int, int]
    frames: int
    item_bytes: int
    space: str
    b_values: tuple[float, ...] = ()
    frame: int | None = None

    @property
    def b_value(self) -> float | None:
        """b-value of the frame that is meant, s/mm2."""
        return self.b_values[self.frame] if self.b_values and self.frame is not None else None


@dataclass(frozen=True, slots=True)
class Cut:
    """Cuts windows out of a (C, ...) array; the result is contiguous and owns its memory."""

    array: np.ndarray

    def __call__(self, window: Window) -> np.ndarray:
        """Gives ``(C, *window)`` in the stored dtype."""
        return self.array[(slice(None), *window)].copy()


@dataclass(frozen=True, slots=True)
class CutValid:
    """Cuts windows out of a spatial uint8 bit field."""

    array: np.ndarray

    def __call__(self, window: Window) -> np.ndarray:
        """Gives the bit field over the window."""
        return self.array[window].copy()


def volume_record(
    oriented: Oriented,
    *,
    channel: str,
    scale: float,
    offset: float,
    fields: Fields,
    stages: tuple[str, ...],
    nodata: float | None = None,
    valid: np.ndarray | None = None,
    acquired: str | None = None,
    warnings: tuple[str, ...] = (),
) -> Record:
    """A one-channel volume on canonical axes as a Record; ``valid`` is a bit field on the same axes."""
    original = oriented.original_affine
    read_valid: Callable[[Window], np.ndarray] | None = None if valid is None else CutValid(valid)
    return Record(
        channels=(channel,),
        shape=(1, *oriented.array.shape),
        dtype=oriented.array.dtype.name,
        spacing=spacing_zyx(oriented.affine),
        affine=_flat(oriented.affine),
        crs=None,
        scale=(scale,),
        offset=(offset,),
        nodata=(nodata,),
        layout="window",
        read=Cut(oriented.array[None]),
        read_valid=read_valid,
        acquired=acquired,
        fields=fields,
        original_affine=None if original is None else _flat(original),
        stages=(*stages, oriented.stage) if oriented.stage else stages,
        warnings=warnings,
    )


def _flat(affine: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in affine.ravel())
