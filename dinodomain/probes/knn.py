"""Nearest-neighbour probe: cosine similarity and a temperature-weighted vote, as DINO evaluates (Caron et al. 2021, appendix).

Folds are by unit, so a row never votes for another row of its own unit. n rows, C classes.
"""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 20
TEMPERATURE = 0.07
_BLOCK = 2048  # query rows at a time: bounds the similarity matrix


def knn(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, *, classes: int | None, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Predicts test rows by their k most similar training rows, each weighted exp(similarity / temperature).

    Features are centred on the training mean before the cosine: a common offset otherwise makes all rows alike.

    Args:
        train: [m, E] features.
        y: [m] class indices, or numbers when ``classes`` is None.
        test: [q, E] features.
        classes: C, or None to predict the weighted mean of ``y``.
        k: Neighbours; lowered to m where the training set is smaller.
        temperature: Smaller lets the nearest decide.

    Returns:
        [q, C] vote shares, or [q] means.
    """
    centre = train.mean(axis=0)
    keys, queries = _unit_length(train - centre), _unit_length(test - centre)
    votes = np.eye(classes)[y] if classes is not None else np.asarray(y, np.float64)[:, None]
    k = min(k, len(keys))
    out = np.empty((len(queries), votes.shape[1]))
    for start in range(0, len(queries), _BLOCK):
        similarity = queries[start : start + _BLOCK] @ keys.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        closeness = np.take_along_axis(similarity, near, axis=1)
        weight = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / temperature)
        out[start : start + _BLOCK] = np.einsum("qk,qkc->qc", weight / weight.sum(axis=1, keepdims=True), votes[near])
    return out if classes is not None else out[:, 0]


def _unit_length(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return result
