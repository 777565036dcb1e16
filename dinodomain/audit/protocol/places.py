"""Places on earth: blocks of units, folds with a buffer around them, and how far predicted places lie off. n rows, k blocks.

Distances are great circles on a sphere of the earth's mean radius.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dinodomain.probes.folds import grouped_folds, index_units
from dinodomain.probes.knn import knn
from dinodomain.probes.ridge import FoldedRidge, standardise

RADIUS_KM = 6371.0088
BLOCK_KM, BUFFER_KM = 100.0, 50.0
NEIGHBOURS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Rows with a place.

    Attributes:
        vectors: [n, 3] on the unit sphere.
        blocks: [n] 0..k-1; rows of one unit, or of one 100 km cell, share one.
        folds: [n] by block.
    """

    vectors: np.ndarray
    blocks: np.ndarray
    folds: np.ndarray

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Training and held-out rows of each fold; training rows within 50 km of a held-out one are left out."""
        chord = 2 * np.sin(BUFFER_KM / RADIUS_KM / 2)
        for fold in np.unique(self.folds):
            test, train = np.flatnonzero(self.folds == fold), np.flatnonzero(self.folds != fold)
            near, _ = cKDTree(self.vectors[test]).query(self.vectors[train])
            yield train[near > chord], test


def to_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """[n, 3] unit vectors of degrees."""
    east, north = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)


def distance_km(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] great circle between unit vectors [n, 3]."""
    result: np.ndarray = RADIUS_KM * 2 * np.arcsin(np.clip(np.linalg.norm(one - other, axis=1) / 2, 0, 1))
    return result


def place(lon: np.ndarray, lat: np.ndarray, units: np.ndarray, num_folds: int, seed: int) -> Places:
    """Blocks and folds of rows with a place; fewer folds where there are fewer blocks, and one without training rows for a single block.

    Args:
        lon: [n] degrees.
        lat: [n] degrees.
        units: [n].
        num_folds: At most.
        seed: Decides the folds.
    """
    vectors = to_vectors(lon, lat)
    step = np.degrees(BLOCK_KM / RADIUS_KM)
    band = np.floor((lat + 90) / step).astype(np.int64)
    wide = step / np.maximum(np.cos(np.radians((band + 0.5) * step - 90)), 1e-3)  # degrees of longitude that are 100 km here
    cells = np.unique(np.stack([band, np.floor((lon % 360) / wide).astype(np.int64)], axis=1), axis=0, return_inverse=True)[1]
    blocks = _joined(cells.reshape(-1), index_units(units))
    count = int(blocks.max()) + 1
    none = np.zeros(len(blocks), np.int64)
    folds = grouped_folds(blocks, none, min(num_folds, count), seed) if count > 1 else none
    return Places(vectors=vectors, blocks=blocks, folds=folds)


def _joined(cells: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Cells that share a unit are one block."""
    size = int(cells.max()) + int(units.max()) + 2
    links = coo_array((np.ones(len(cells), np.int8), (cells, units + int(cells.max()) + 1)), shape=(size, size))
    return index_units(connected_components(links, directed=False)[1][cells])


def off_by(features: np.ndarray | None, places: Places) -> np.ndarray:
    """[n] km between each row's place and where a probe puts it that never saw its block.

    Two probes are tried, ridge to the unit vector and the mean place of the ten nearest rows; inside the training rows of each fold the
    one with the smaller median error is taken. Without features every row is put where most training rows are near.

    Args:
        features: [n, E], or None.
        places: Where the rows are.
    """
    out = np.full(len(places.vectors), np.nan)
    for train, test in places.parts():
        if len(train) == 0:
            continue
        found = _densest(places.vectors[train]) if features is None else _better(features, places, train, test)
        out[test] = distance_km(np.broadcast_to(found, (len(test), 3)), places.vectors[test])
    return out


def _densest(vectors: np.ndarray) -> np.ndarray:
    chord = 2 * np.sin(200 / RADIUS_KM / 2)
    tree = cKDTree(vectors)
    counts = tree.query_ball_point(vectors, chord, return_length=True)
    result: np.ndarray = vectors[int(np.argmax(counts))]
    return result


def _better(features: np.ndarray, places: Places, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    blocks = np.unique(places.blocks[train])
    inner = np.isin(places.blocks[train], blocks[::3])
    options = (_ridge, _nearest)
    if not 0 < inner.sum() < len(train):
        return _ridge(features, places, train, test)
    errors = [
        np.median(distance_km(probe(features, places, train[~inner], train[inner]), places.vectors[train[inner]])) for probe in options
    ]
    return options[int(np.argmin(errors))](features, places, train, test)


def _ridge(features: np.ndarray, places: Places, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    rows = np.r_[train, test]
    folds = np.repeat([-1, 0], [len(train), len(test)])
    return _on_sphere(FoldedRidge(features[rows], places.blocks[rows], folds).scores(places.vectors[rows])[len(train) :])


def _nearest(features: np.ndarray, places: Places, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    x, asked = standardise(np.asarray(features[train], np.float64), np.asarray(features[test], np.float64))
    found = [knn(x, places.vectors[train, axis], asked, classes=None, k=NEIGHBOURS) for axis in range(3)]
    return _on_sphere(np.stack(found, axis=1))


def _on_sphere(vectors: np.ndarray) -> np.ndarray:
    result: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return result
