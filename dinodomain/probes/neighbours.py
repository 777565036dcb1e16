"""Retrieval: the tiles most like a query, those of its own unit left out, and what such neighbours have in common.

Pure functions of arrays. Legend: n tiles, E width, k neighbours.
"""

from __future__ import annotations

import numpy as np

from dinodomain.probes.regions import unit_rows


def nearest_of_others(features: np.ndarray, units: np.ndarray, count: int) -> np.ndarray:
    """The most similar tiles of other units, by cosine of centred features.

    Args:
        features: [n, E].
        units: [n].
        count: k.

    Returns:
        [n, k] int64, most similar first; -1 where there are fewer.
    """
    rows = unit_rows(features - features.mean(axis=0))
    _, unit = np.unique(units, return_inverse=True)
    out = np.full((len(rows), count), -1, np.int64)
    for number, row in enumerate(rows):
        similarity = np.where(unit == unit[number], -np.inf, rows @ row)
        order = np.argsort(-similarity, kind="stable")[:count]
        kept = order[np.isfinite(similarity[order])]
        out[number, : len(kept)] = kept
    return out


def same_value(near: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[n] share of each tile's neighbours that have its value; NaN where it has no neighbour.

    Args:
        near: [n, k], -1 for none.
        values: [n].
    """
    known = near >= 0
    hits = (values[np.maximum(near, 0)] == values[:, None]) & known
    count = known.sum(axis=1)
    return np.where(count > 0, hits.sum(axis=1) / np.maximum(count, 1), np.nan)


def chance_same_value(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """[n] share of all tiles of other units that have the tile's value: what a blind choice finds."""
    other = units[:, None] != units[None, :]
    same = values[:, None] == values[None, :]
    count = other.sum(axis=1)
    return np.where(count > 0, (same & other).sum(axis=1) / np.maximum(count, 1), np.nan)


def reciprocal_rank(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[n] one over the rank of each tile's own second crop among all second crops, by cosine of centred features; ties count against it.

    Args:
        first: [n, E] of the first crops.
        second: [n, E] of the second crops, in the same order.
    """
    queries, keys = (unit_rows(part - part.mean(axis=0)) for part in (first, second))
    similarity = queries @ keys.T
    own = np.diagonal(similarity)
    rank = (similarity >= own[:, None] - 1e-12).sum(axis=1)
    result: np.ndarray = 1.0 / rank
    return result
