"""Which way up a picture is shown, and what its sides are called.

Radiological display: the viewer faces the patient, so the patient's right is on the left of an axial or coronal picture, anterior is on
top of an axial one and on the left of a sagittal one, and superior is on top of the others. Maps are shown with north on top. Where
nothing says which way an image lies it is shown as stored, and its sides stay unnamed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_LEAN = math.sin(math.radians(15))
_LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
_COMPASS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
_TOWARDS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
_ACROSS = {0: "sagittal", 1: "coronal", 2: "axial"}
_AXES = {"LR": 0, "AP": 1, "IS": 2}


def letters(direction: np.ndarray) -> str:
    """Where a direction (R, A, S) leads, the strongest first; sides that lean by 15 degrees or more are named by several letters."""
    order = sorted(range(3), key=lambda world: -abs(direction[world]))
    return "".join(_LETTERS[world][int(direction[world] < 0)] for world in order if abs(direction[world]) >= _LEAN)


def compass(east: float, north: float) -> str:
    """Name of a direction, one of sixteen."""
    return _COMPASS[round(math.degrees(math.atan2(east, north)) / 22.5) % 16]


def volume_directions(affine: Sequence[float] | None) -> np.ndarray | None:
    """Unit vectors (R, A, S) along which array axes 0 z, 1 y, 2 x run."""
    if affine is None:
        return None
    columns = np.reshape(affine, (4, 4))[:3, :3]
    unit: np.ndarray = (columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)).T[::-1]
    return unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """How the axes of an image's array lie in a body or on the ground.

    Attributes:
        kind: ``body`` (R, A, S), ``ground`` (east, north), or ``unknown``.
        directions: [D, 3] or [D, 2] unit vectors along which the array axes run; None where nothing says so.
        axes: What the domain calls its axes, in array order.
    """

    kind: Literal["body", "ground", "unknown"]
    directions: np.ndarray | None
    axes: tuple[str, ...]


def frame_of(facts: Mapping[str, Any], fields: Mapping[str, Any], axes: tuple[str, ...]) -> Frame:
    """The frame of one source.

    Args:
        facts: Its row of a store's index.
        fields: Its acquisition fields.
        axes: Axis names of the domain's policy.
    """
    affine = facts["affine"]
    if len(axes) == 3:
        found = volume_directions(affine) if affine is not None and len(affine) == 16 else None
        return Frame(kind="unknown" if found is None else "body", directions=found, axes=axes)
    if facts["crs"] and affine is not None:
        a, b, _, d, e = affine[:5]
        steps = np.array([[b, e], [a, d]], dtype=float)
        return Frame(kind="ground", directions=steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12), axes=axes)
    return _radiograph(str(fields.get("patient_orientation") or ""), axes)


def _radiograph(orientation: str, axes: tuple[str, ...]) -> Frame:
    r"""By DICOM's PatientOrientation, for example ``L\F``: where its columns run to, and its rows."""
    parts = [part.strip().upper() for part in orientation.replace("/", "\\").split("\\")]
    if len(parts) != 2 or not all(part and set(part) <= set(_TOWARDS) for part in parts):
        return Frame(kind="unknown", directions=None, axes=axes)
    vectors = np.array([sum((np.array(_TOWARDS[letter], float) for letter in part), np.zeros(3)) for part in reversed(parts)])
    return Frame(kind="body", directions=vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), axes=axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """A plane of an image as it is shown.

    Attributes:
        name: ``axial``, ``coronal``, ``sagittal``; empty for images.
        through: Array axis that the plane is cut across, None for images.
        down: Array axis shown from top to bottom.
        across: Array axis shown from left to right.
        flip_down: Whether it is shown from its end.
        flip_across: The same.
    """

    name: str
    through: int | None
    down: int
    across: int
    flip_down: bool = False
    flip_across: bool = False

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """[C, (Z,) Y, X] to [rows, columns, C] as shown; of a volume the middle plane."""
        if self.through is not None:
            pixels = pixels.take(pixels.shape[1 + self.through] // 2, axis=1 + self.through)
            order = sorted((self.down, self.across))
            swap = order[0] != self.down
        else:
            swap = self.down == 1
        picture = np.moveaxis(pixels, 0, -1)
        picture = picture.swapaxes(0, 1) if swap else picture
        return picture[:: -1 if self.flip_down else 1, :: -1 if self.flip_across else 1]

    def place(self, points: np.ndarray, extent: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Array coordinates [..., D] as places across and down the picture."""
        across, down = points[..., self.across], points[..., self.down]
        across = extent[self.across] - 1 - across if self.flip_across else across
        down = extent[self.down] - 1 - down if self.flip_down else down
        return across, down


def planes_of(frame: Frame) -> tuple[Plane, ...]:
    """The planes in which an image is shown: one of an image, axial, coronal and sagittal of a volume."""
    if len(frame.axes) == 2:
        return (_plane(frame, (0, 1), None),)
    found = [_plane(frame, tuple(axis for axis in range(3) if axis != through), through) for through in range(3)]
    return tuple(found)


def _plane(frame: Frame, pair: tuple[int, ...], through: int | None) -> Plane:
    name = "" if through is None else _ACROSS.get(_AXES.get(frame.axes[through], -1), f"across {frame.axes[through]}")
    directions = frame.directions
    if directions is None:
        return Plane(name=name, through=through, down=pair[0], across=pair[1])
    own = directions[list(pair)]
    if frame.kind == "ground":
        swap = abs(own[0, 0]) + abs(own[1, 1]) > abs(own[0, 1]) + abs(own[1, 0])
        down, across = (pair[1], pair[0]) if swap else pair
        return Plane(
            name=name, through=through, down=down, across=across, flip_down=directions[down, 1] > 0, flip_across=directions[across, 0] < 0
        )
    world = np.abs(own).argmax(axis=1)
    down, across = pair if world[0] > world[1] else (pair[1], pair[0])
    ends = {axis: bool(directions[axis, np.abs(directions[axis]).argmax()] > 0) for axis in pair}
    return Plane(name=name, through=through, down=down, across=across, flip_down=ends[down], flip_across=ends[across])


def side_names(frame: Frame, plane: Plane, steps: np.ndarray | None = None) -> tuple[str, str, str, str]:
    """What lies left, right, on top and at the bottom of a picture; empty where unknown.

    Args:
        frame: Of the image.
        plane: As shown.
        steps: [D, D] the way in the image (lengths, array order) that one pixel along each axis of a crop is, as columns: a crop that was
            flipped, turned or rotated has sides of its own. None for the image itself.
    """
    if frame.directions is None:
        return "", "", "", ""
    towards = frame.directions if steps is None else steps.T @ frame.directions
    towards = towards / np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12)
    right = towards[plane.across] * (-1 if plane.flip_across else 1)
    bottom = towards[plane.down] * (-1 if plane.flip_down else 1)
    name = letters if frame.kind == "body" else lambda vector: compass(float(vector[0]), float(vector[1]))
    return name(-right), name(right), name(-bottom), name(bottom)


def convention(frame: Frame) -> str:
    """How a picture's sides are to be read, in a line."""
    words = {
        "body": "radiological display: the patient's right (R) is on the left, superior or anterior on top",
        "ground": "north is on top, as far as turning by right angles can do",
        "unknown": "shown as stored: nothing says which way it lies",
    }
    return words[frame.kind]
