"""A mask carried from one image of a sequence to the next by similarity of patch tokens: slices of a volume, dates of a place.

The protocol of DINO on DAVIS (Caron 2021, section 4.2.3, after Jabri 2020): every patch takes the labels of the patches most like it in
the first image and in those just before, within a neighbourhood. Pure functions of arrays. Legend: S images, P patches, E width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinodomain.probes.regions import unit_rows

NEIGHBOURS, TEMPERATURE, CONTEXT = 5, 0.1, 7
"""Patches that vote, softness of their weights, and images before that are asked, besides the first; as published."""

REACH = 0.25
"""Neighbourhood, as a share of the longest side of the token grid: 12 of 60 to 107 tokens as published."""


def carry(
    tokens: np.ndarray, mask: np.ndarray, grid: tuple[int, int], *, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE,
    context: int = CONTEXT, reach: float = REACH,
) -> np.ndarray:  # fmt: skip
    """Carries a mask through a sequence that begins where the mask is known.

    Args:
        tokens: [S, P, E].
        mask: [P] bool or shares 0..1, of image 0.
        grid: P as rows and columns.
        neighbours: Patches that vote.
        temperature: Softness of their weights.
        context: Images just before that are asked, besides the first.
        reach: Neighbourhood as a share of the longest side of the grid, one patch at least.

    Returns:
        [S, P] float shares 0..1; image 0 as given. A mask is where they are 0.5 or more.
    """
    rows = unit_rows(tokens)
    near = _within(grid, max(1.0, reach * max(grid)))
    out = np.zeros(tokens.shape[:2])
    out[0] = mask
    for image in range(1, len(tokens)):
        asked = sorted({0, *range(max(0, image - context), image)})
        similarity = np.concatenate([np.where(near, rows[image] @ rows[one].T, -np.inf) for one in asked], axis=1)
        labels = np.concatenate([out[one] for one in asked])
        best = np.argpartition(-similarity, min(neighbours, similarity.shape[1]) - 1, axis=1)[:, :neighbours]
        close = np.take_along_axis(similarity, best, axis=1)
        weight = np.exp((close - close.max(axis=1, keepdims=True)) / temperature)
        out[image] = (weight * labels[best]).sum(axis=1) / weight.sum(axis=1)
    return out


def there_and_back(tokens: np.ndarray, mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The mask after it was carried to the last image and, from there alone, back to the first: [P] bool."""
    far = carry(tokens, mask, grid)[-1] >= 0.5
    result: np.ndarray = carry(tokens[::-1], far, grid)[-1] >= 0.5
    return result


def walks(start: int, count: int) -> tuple[Sequence[int], ...]:
    """The orders in which images are visited from a middle one: to the last, and to the first; single images are no walk."""
    return tuple(walk for walk in (range(start, count), range(start, -1, -1)) if len(walk) > 1)


def _within(grid: tuple[int, int], radius: float) -> np.ndarray:
    """[P, P] bool, patches whose places differ by at most a radius along each axis."""
    places = np.stack(np.meshgrid(*(np.arange(side) for side in grid), indexing="ij"), axis=-1).reshape(-1, 2)
    result: np.ndarray = (np.abs(places[:, None] - places[None]) <= radius).all(axis=-1)
    return result
