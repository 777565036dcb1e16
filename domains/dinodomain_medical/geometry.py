"""Affines, orientation and spacing of volumes. Pure functions of small arrays; nibabel at the point of use.

Affines map array index (x, y, z) to RAS+ mm. Arrays handed out are C-order (z, y, x). Re-orientation is a permutation and
flips, never a resampling, so an oblique volume stays oblique.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinodomain.errors import BadSource, require

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK measure towards left and posterior, NIfTI towards right and anterior."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oriented:
    """A volume on closest-canonical axes.

    Attributes:
        array: (z, y, x), C-order.
        affine: 4x4, index (x, y, z) to RAS+ mm, of ``array``.
        original_affine: The affine before re-orientation, or None if nothing moved.
        stage: What was done, or None.
    """

    array: np.ndarray
    affine: np.ndarray
    original_affine: np.ndarray | None
    stage: str | None


def to_canonical(array_xyz: np.ndarray, affine: np.ndarray, uri: str) -> Oriented:
    """Permutes and flips a volume to the axes closest to RAS+ (the same choice as ``nibabel.as_closest_canonical``).

    Args:
        array_xyz: (x, y, z) in the order of the affine; any memory order.
        affine: 4x4, index to RAS+ mm.
        uri: The file, for the message.

    Raises:
        BadSource: The affine names no three different directions.
    """
    orientations = require("nibabel.orientations", extra="medical", wanted_by="medical volumes")
    check_affine(affine, uri)
    turn = orientations.io_orientation(affine)
    stage = None
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    if not np.array_equal(turn, canonical):
        stage = f"reoriented {''.join(orientations.aff2axcodes(affine))} -> RAS"
    turned = orientations.apply_orientation(array_xyz, turn)
    new_affine = affine @ orientations.inv_ornt_aff(turn, array_xyz.shape)
    return Oriented(array=np.ascontiguousarray(turned.T), affine=new_affine, original_affine=affine if stage else None, stage=stage)


def check_affine(affine: np.ndarray, uri: str) -> None:
    """Refuses affines that are not finite or that flatten the volume."""
    if not np.isfinite(affine).all():
        raise BadSource(uri, "the affine holds NaN or infinite numbers", "repair the header (sform or qform) and ingest again")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / np.where(lengths == 0, 1, lengths))) < 1e-3:
        raise BadSource(
            uri, f"the affine is singular (voxel sizes {_list(lengths)} mm)", "repair the header (sform or qform) and ingest again"
        )


def spacing_zyx(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size per array axis (z, y, x) in mm."""
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def largest_shift_mm(first: np.ndarray, second: np.ndarray, shape_xyz: tuple[int, ...]) -> float:
    """Largest distance between where two affines put a corner voxel, in mm."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape_xyz[:3]], (1,), indexing="ij")).reshape(4, -1)
    return float(np.linalg.norm((first @ corners - second @ corners)[:3], axis=0).max())


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
