"""Where slices lie: their order along the normal, their grid, and what is refused because it is no grid. Headers only.

Equations: PS3.3 C.7.6.2.1.1 (image plane to patient space). Positions are LPS mm until the affine. Nothing is assumed regular: what
is not is refused with numbers, or given a straight grid to be resampled to where the user asks for that (``resample_series``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinodomain.errors import BadSource
from dinodomain_medical.dicom_header import Header
from dinodomain_medical.geometry import LPS_TO_RAS
from dinodomain_medical.resample_series import MAX_MISSING, StraightGrid, refuse_holes, straighten

SAME_PLANE_MM = 0.01
"""Slices closer than this along the normal lie at one position."""

Irregular = Literal["refuse", "resample"]

_UNEVEN_MM, _UNEVEN_SHARE = 0.05, 0.01
_SAME_DIRECTION = 1e-3
_RESAMPLE = "ingest.irregular=resample brings it to a straight, even grid by linear interpolation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Slices in order along the normal.

    Attributes:
        planes: Per position, the headers that lie there (more than one: duplicates to be compared by pixels).
        affine: 4x4, index (column, row, slice) to RAS+ mm; of the new grid where the slices are to be resampled.
        grid: The straight grid to resample to, or None where the slices are one already.
        warnings: What does not fit the header but is no reason to refuse.
    """

    planes: tuple[tuple[Header, ...], ...]
    affine: np.ndarray
    grid: StraightGrid | None = None
    warnings: tuple[str, ...] = ()


def arrange(headers: Sequence[Header], uri: str, irregular: Irregular = "refuse") -> Stack:
    """Orders slices along their normal and derives the affine.

    Raises:
        BadSource: Slices without position, a single position; gantry tilt or shear, missing slices, uneven spacing unless they are to
            be resampled; more than ``MAX_MISSING`` slices missing at one place in any case.
    """
    lacking = [header for header in headers if None in (header.position, header.orientation, header.spacing)]
    if lacking:
        raise BadSource(
            str(lacking[0].path),
            "no ImagePositionPatient, ImageOrientationPatient or PixelSpacing",
            "exclude it: its place in the patient is unknown",
        )
    first = headers[0]
    assert first.orientation is not None
    assert first.spacing is not None
    if min(first.spacing) <= 0:
        raise BadSource(str(first.path), f"PixelSpacing {first.spacing[0]:g}x{first.spacing[1]:g} mm", "repair the header, or exclude it")
    across, down = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if max(abs(np.linalg.norm(across) - 1), abs(np.linalg.norm(down) - 1), abs(across @ down)) > _SAME_DIRECTION:
        raise BadSource(
            str(first.path), "ImageOrientationPatient is not two unit vectors at a right angle", "repair the header, or exclude it"
        )
    normal = np.cross(across, down)
    planes, places = _planes(headers, normal, uri)
    fault = _fault(places, normal, first.tilt)
    if fault and irregular == "refuse":
        refuse_holes(places, normal, [plane[0] for plane in planes], uri)  # a key that would not help is not named
        raise BadSource(uri, fault, _RESAMPLE + ("; or bring the missing slices" if "missing" in fault else "; or exclude it"))
    if fault:
        grid = straighten(places, across, down, first.spacing, [plane[0] for plane in planes], fault, uri)
        return Stack(planes=planes, affine=LPS_TO_RAS @ grid.affine, grid=grid)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * first.spacing[1], down * first.spacing[0]
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
    affine[:3, 3] = places[0]
    return Stack(planes=planes, affine=LPS_TO_RAS @ affine, warnings=_tilt_warning(first.tilt, affine[:3, 2], normal))


def _planes(headers: Sequence[Header], normal: np.ndarray, uri: str) -> tuple[tuple[tuple[Header, ...], ...], np.ndarray]:
    """Headers grouped by position along the normal, and the LPS position of each group [n, 3]."""
    positions = np.array([header.position for header in headers], dtype=np.float64)
    depths = positions @ normal
    order = sorted(range(len(headers)), key=lambda at: (round(float(depths[at]), 4), headers[at].path, headers[at].frame or 0))
    planes: list[list[Header]] = []
    places: list[int] = []
    for at in order:
        if places and depths[at] - depths[places[-1]] < SAME_PLANE_MM:
            apart = float(np.linalg.norm(positions[at] - positions[places[-1]]))
            if apart > _UNEVEN_MM:
                raise BadSource(uri, f"two images in one plane, {apart:.2f} mm apart", "keep one of them (ingest.exclude)")
            planes[-1].append(headers[at])
        else:
            planes.append([headers[at]])
            places.append(at)
    if len(planes) < 2:
        raise BadSource(uri, "one slice is no volume", "exclude it, or bring the rest of its series")
    return tuple(map(tuple, planes)), positions[places]


def _fault(places: np.ndarray, normal: np.ndarray, tilt: float | None) -> str | None:
    """What is irregular about the slices, with numbers; None where they make a straight, even grid."""
    steps = np.diff(places, axis=0)
    gaps = steps @ normal
    usual = float(np.median(gaps))
    lateral = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    # The sideways shift of a tilted gantry grows with the gap, so the worst slice is compared with its own gap.
    worst = int(np.argmax(lateral / gaps))
    off = np.abs(gaps - usual)
    uneven = (off > _UNEVEN_MM) & (off > _UNEVEN_SHARE * usual)
    if lateral[worst] > _UNEVEN_MM and lateral[worst] > _UNEVEN_SHARE * gaps[worst]:
        angle = float(np.degrees(np.arctan2(lateral[worst], gaps[worst])))
        stated = "" if tilt is None else f", header states {tilt:g} degrees"
        spacing = f"; spacing {gaps.min():.2f}..{gaps.max():.2f} mm" if uneven.any() else ""
        return f"slices are sheared by {angle:.1f} degrees (gantry tilt{stated}){spacing}"
    if not uneven.any():
        return None
    at = int(np.argmax(uneven))
    ratio = float(gaps[at]) / usual
    if round(ratio) >= 2 and abs(ratio - round(ratio)) < 0.05:
        return f"{round(ratio) - 1} missing between slices {at + 1} and {at + 2} (gap {gaps[at]:.2f} mm, usually {usual:.2f} mm)"
    return f"uneven slice spacing {gaps.min():.2f}..{gaps.max():.2f} mm (usually {usual:.2f} mm)"


def _tilt_warning(tilt: float | None, step: np.ndarray, normal: np.ndarray) -> tuple[str, ...]:
    if tilt is None or abs(tilt) < 0.5 or np.linalg.norm(step - (step @ normal) * normal) > _UNEVEN_MM:
        return ()
    return (f"the header states a gantry tilt of {tilt:g} degrees, the slice positions show none; positions are believed",)


__all__ = ["MAX_MISSING", "SAME_PLANE_MM", "Irregular", "Stack", "arrange"]
