"""Erasing a concept from features so that no linear probe reads it, with the least change otherwise (LEACE). m rows, E width, k concepts.

Closed form (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3): x - W⁺ Q W (x - mean), where W whitens x and Q projects on the columns
of W cov(x, z). Any invertible W makes the erasure exact on the rows it was fitted to; the covariance is shrunk (Ledoit and Wolf 2004)
so that it also carries over to others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf

_RANK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Eraser:
    """An affine map.

    Attributes:
        mean: [E].
        out: [E, r] directions that are subtracted.
        read: [r, E] what reads their amount.
    """

    mean: np.ndarray
    out: np.ndarray
    read: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[m, E] without the concept."""
        result: np.ndarray = x - (x - self.mean) @ self.read.T @ self.out.T
        return result


def fit_eraser(x: np.ndarray, z: np.ndarray, *, shrink: bool = True) -> Eraser:
    """Fits the erasure.

    Args:
        x: [m, E] features.
        z: [m, k] concept: indicators of classes, or a number.
        shrink: Shrink the covariance of the features; False takes it as it is, for comparison with other implementations.
    """
    mean = x.mean(axis=0)
    centred = x - mean
    covariance = ledoit_wolf(centred, assume_centered=True)[0] if shrink else centred.T @ centred / len(x)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 1e-300) * len(values) * np.finfo(float).eps
    roots = np.sqrt(values[kept])
    whiten, undo = (vectors[:, kept] / roots) @ vectors[:, kept].T, (vectors[:, kept] * roots) @ vectors[:, kept].T
    shared = whiten @ (centred.T @ (z - z.mean(axis=0)) / len(x))
    directions, sizes, _ = np.linalg.svd(shared, full_matrices=False)
    directions = directions[:, sizes > _RANK * max(float(sizes.max(initial=0.0)), 1e-300)]
    return Eraser(mean=mean, out=undo @ directions, read=directions.T @ whiten)
