"""Which rows of features are nearer than unrelated ones are: the distance below which two images count as copies. N rows, M null pairs.

"Near" is set from pairs of different units, so that an image without any copy is matched by mistake in one of ten thousand cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinodomain.probes.ridge import standardise

FALSE_RATE = 1e-4  # per image, against all others
NULL_PAIRS = 200_000
TAIL = (0.002, 0.02)  # quantiles of null distances between which the tail's exponent is measured, in large sets
COPIES_PER_IMAGE = 4  # in small sets the quantiles move up, so that this many copies of every image do not reach them
_BLOCK = 1024
_PAIRS = 16_384  # measured exactly at once
_SLACK = 1e-5  # more than single precision errs in the cosine of rows of unit length


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One kind of features, ready for distances.

    Attributes:
        rows: [N, E] of unit length.
        near: Chord distance below which two rows count as copies.
    """

    rows: np.ndarray
    near: float


def prepare(kind: str, features: np.ndarray) -> np.ndarray:
    """Pixels are taken relative to their own mean and deviation, so that another exposure does not hide a copy."""
    rows = np.asarray(features, np.float64)
    if kind != "pixels":
        return rows
    result: np.ndarray = (rows - rows.mean(axis=1, keepdims=True)) / np.maximum(rows.std(axis=1, keepdims=True), 1e-9)
    return result


def make_space(features: np.ndarray, keys: np.ndarray, sources: np.ndarray, seed: int) -> Space:
    """Standardises, scales to unit length and sets the distance that counts as near.

    Distances r of unrelated points with D degrees of freedom fall below r with a chance of c r^D, so two low quantiles give D, and D
    gives the distance whose chance is 1e-4 / N (Levina and Bickel 2004). The quantiles lie above what copies make up.
    """
    rows = unit_length(standardise(np.asarray(features, np.float64))[0])
    distance = _null_distances(rows, keys, sources, seed)
    if not len(distance):
        return Space(rows=rows, near=0.0)
    tail = np.minimum(max(1.0, COPIES_PER_IMAGE / len(rows) / TAIL[0]) * np.array(TAIL), (0.05, 0.5))
    lower, upper = np.quantile(distance, tail)
    if lower <= 1e-6 or upper <= lower:
        return Space(rows=rows, near=0.0)  # collapsed features: unrelated images coincide, nothing can be told
    degrees = np.log(tail[1] / tail[0]) / np.log(upper / lower)
    return Space(rows=rows, near=float(lower * (FALSE_RATE / len(rows) / tail[0]) ** (1 / degrees)))


def _null_distances(rows: np.ndarray, keys: np.ndarray, sources: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng([seed, 0xD0B])
    a, b = generator.integers(0, len(rows), (2, min(NULL_PAIRS, len(rows) ** 2)))
    apart = (keys[a] != keys[b]) & (sources[a] != sources[b])
    a, b = a[apart], b[apart]
    pieces = [np.linalg.norm(rows[a[s : s + _BLOCK * 16]] - rows[b[s : s + _BLOCK * 16]], axis=1) for s in range(0, len(a), _BLOCK * 16)]
    return np.concatenate(pieces) if pieces else np.empty(0)


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays."""
    result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return result


def near_pairs(spaces: list[Space], sources: np.ndarray) -> np.ndarray:
    """Pairs of different images that are near in every space: [P, 2], first < second.

    The first space is searched in single precision with some slack; what it leaves, which is little, is measured exactly in all spaces.
    """
    found = [np.empty((0, 2), np.int64)]
    if min(space.near for space in spaces) <= 0:
        return found[0]
    rows, least = spaces[0].rows.astype(np.float32), np.float32(1 - spaces[0].near ** 2 / 2 - _SLACK)
    for start in range(0, len(sources), _BLOCK):
        first, second = np.nonzero(rows[start : start + _BLOCK] @ rows[start:].T > least)
        keep = (second > first) & (sources[first + start] != sources[second + start])
        found.append(_near_in_all(spaces, np.stack([first[keep], second[keep]], axis=1) + start))
    return np.concatenate(found)


def _near_in_all(spaces: list[Space], pairs: np.ndarray) -> np.ndarray:
    for space in spaces:
        parts = [pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS)]
        kept = [part[np.einsum("ij,ij->i", *(space.rows[part[:, side]] for side in (0, 1))) > 1 - space.near**2 / 2] for part in parts]
        pairs = np.concatenate([pairs[:0], *kept])
    return pairs
