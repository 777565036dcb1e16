"""Dense matching between two images by similarity of patch tokens, and how often it finds the true place.

Pure functions of arrays. Legend: P and Q patches of the first and second image, E width, D spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinodomain.probes.regions import unit_rows

WITHIN = 1.0
"""Patches that a match may lie beside the true place along each axis."""

_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """What similarity alone makes of two images.

    Attributes:
        nearest: [P] int64 most similar valid patch of the second image.
        similarity: [P] cosine to it.
        mutual: [P] bool, whether its own most similar valid patch is this one; never where this one is not valid.
    """

    nearest: np.ndarray
    similarity: np.ndarray
    mutual: np.ndarray


def match(first: np.ndarray, second: np.ndarray, valid_first: np.ndarray, valid_second: np.ndarray, centre: np.ndarray) -> Matches:
    """Finds every patch of one image in another.

    Args:
        first: [P, E] tokens.
        second: [Q, E] tokens.
        valid_first: [P] bool.
        valid_second: [Q] bool, at least one.
        centre: [E] taken off both: a common offset makes all cosines alike.
    """
    similarity = unit_rows(first - centre) @ unit_rows(second - centre).T
    there = np.where(valid_second[None, :], similarity, -np.inf)
    back = np.where(valid_first[:, None], similarity, -np.inf)
    nearest = there.argmax(axis=1)
    mutual = (back.argmax(axis=0)[nearest] == np.arange(len(first))) & valid_first
    return Matches(nearest=nearest, similarity=there.max(axis=1), mutual=mutual)


def close(nearest: np.ndarray, position: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """[P] bool, whether a match lies within one patch of the true place along every axis.

    Args:
        nearest: [P] patch of the second image, row-major.
        position: [P, D] true place in its token grid.
        grid: Its tokens along each axis.
    """
    found = np.stack(np.unravel_index(nearest, grid), axis=-1)
    result: np.ndarray = (np.abs(found - position) <= WITHIN + _ROUNDING).all(axis=-1)
    return result


def chance(position: np.ndarray, counted: np.ndarray, valid: np.ndarray, grid: tuple[int, ...]) -> float:
    """Share that is found by pointing at a valid patch at random.

    Args:
        position: [P, D] true places.
        counted: [P] bool, the patches that have one.
        valid: [Q] bool of the second image.
        grid: Its tokens along each axis.
    """
    cells = np.stack(np.unravel_index(np.flatnonzero(valid), grid), axis=-1)
    if not counted.any() or not len(cells):
        return float("nan")
    near = (np.abs(cells[None] - position[counted][:, None]) <= WITHIN + _ROUNDING).all(axis=-1)
    return float(near.mean())
