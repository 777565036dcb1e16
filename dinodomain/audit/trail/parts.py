"""Parts of a volume inside another, whatever their headers say: slices as small pictures, matched along the slice axis.

A pair of volumes is compared slice by slice: with z-scored thumbnails of d cells, r = (a . b) / d for every pair of slices; a part that
lies in another gives a diagonal of high r, whose offset says where. V volumes, n and m slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store import Store

SIDE = 16
MOST_VOLUMES = 500
LEAST_SLICES = 8
MATCH = 0.95
"""Least mean correlation of slices along the diagonal."""

SHARP = 0.005
"""How much higher the diagonal must be than any that is shifted by more than two slices: anatomy alone resembles itself everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One volume found in another.

    Attributes:
        whole: Row of the index of the longer one.
        part: Of the shorter one.
        offset: Slice of the longer at which the shorter begins.
        slices: How many slices match.
        correlation: Mean over these.
        flipped: Whether the shorter runs the other way.
    """

    whole: int
    part: int
    offset: int
    slices: int
    correlation: float
    flipped: bool


def read_volumes(store: Store) -> dict[int, np.ndarray]:
    """Row of the index to [n, SIDE * SIDE] float32 thumbnails of its slices along the first axis, of at most 500 volumes; first channel."""
    found = {}
    for row in range(min(len(store), MOST_VOLUMES)):
        facts = store.row(row)
        shape, lines = facts["shape"], max(1, int(facts["chunk"][0]))
        pieces = []
        try:
            for start in range(0, shape[1], lines):
                slab = np.zeros((shape[0], min(lines, shape[1] - start), *shape[2:]), facts["dtype"])
                store.read_box(row, (start, 0, 0), slab)
                pieces.append(thumbnails(slab[0]))
        except UserError:  # a damaged file is what rehashing tells
            continue
        found[row] = np.concatenate(pieces)
    return found


def thumbnails(slices: np.ndarray) -> np.ndarray:
    """[n, SIDE * SIDE] float32 area means of [n, Y, X], each slice with mean 0 and deviation 1; a flat slice is 0."""
    count, height, width = slices.shape
    down = _cells(height)
    across = _cells(width)
    small = np.einsum("ay,nyx,bx->nab", down, slices.astype(np.float32), across, optimize=True).reshape(count, -1)
    small -= small.mean(axis=1, keepdims=True)
    deviation = small.std(axis=1, keepdims=True)
    flat = deviation < 1e-3 * max(1e-6, float(np.abs(slices).max()))
    result: np.ndarray = np.where(flat, 0.0, small / np.where(flat, 1.0, deviation)).astype(np.float32)
    return result


def _cells(size: int) -> np.ndarray:
    """[SIDE, size] weights of area means."""
    edges = np.linspace(0, size, SIDE + 1)
    starts = np.arange(size)
    overlap = np.clip(np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts), 0, None)
    result: np.ndarray = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def find_parts(volumes: Mapping[int, np.ndarray]) -> list[Part]:
    """All pairs of volumes of which the shorter lies in the longer."""
    rows = sorted(volumes)
    found = []
    for place, one in enumerate(rows):
        for other in rows[place + 1 :]:
            long, short = (one, other) if len(volumes[one]) >= len(volumes[other]) else (other, one)
            part = _inside(volumes[long], volumes[short], long, short)
            if part is not None:
                found.append(part)
    return found


def _inside(whole: np.ndarray, part: np.ndarray, row: int, other: int) -> Part | None:
    if len(part) < LEAST_SLICES:
        return None
    best: Part | None = None
    for flipped in (False, True):
        similar = whole @ (part[::-1] if flipped else part).T / whole.shape[1]  # [n, m]
        means = np.array([np.trace(similar, offset=-start) / len(part) for start in range(len(whole) - len(part) + 1)])
        offset = int(means.argmax())
        others = means[np.abs(np.arange(len(means)) - offset) > 2]
        sharp = not len(others) or means[offset] - others.max() >= SHARP
        if means[offset] >= MATCH and sharp and (best is None or means[offset] > best.correlation):
            best = Part(whole=row, part=other, offset=offset, slices=len(part), correlation=float(means[offset]), flipped=flipped)
    return best
