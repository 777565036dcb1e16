"""Regions that patch tokens form without labels: clusters over several images, and an object cut out of one.

Pure functions of arrays. Legend: n tokens, E width, K regions.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

NEAR = 0.2
"""Cosine from which two patches are joined in the graph of TokenCut (Wang 2022, section 3.2)."""

_APART = 1e-5
_NODES = 1000
"""Patches in the graph of a cut: eigenvectors of more take seconds."""

_SAMPLE = 1500
"""Tokens that the silhouette is measured on: it takes all pairs."""


def unit_rows(tokens: np.ndarray) -> np.ndarray:
    """[n, E] rows of length 1."""
    result: np.ndarray = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    return result


def cluster(tokens: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means of token directions.

    Args:
        tokens: [n, E], best centred.
        count: K.
        seed: Of the starts.

    Returns:
        [n] int64 regions, numbered by size (0 the largest), and [K, E] centres.
    """
    fitted = KMeans(count, n_init=4, random_state=seed).fit(unit_rows(tokens).astype(np.float64))
    order = np.argsort(-np.bincount(fitted.labels_, minlength=count), kind="stable")
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    return place[fitted.labels_], fitted.cluster_centers_[order]


def assign(tokens: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[n] the nearest centre of each token's direction."""
    rows = unit_rows(tokens)
    distance = -2 * rows @ centres.T + (centres**2).sum(axis=1)
    nearest: np.ndarray = distance.argmin(axis=1)
    return nearest


def silhouette(tokens: np.ndarray, regions: np.ndarray, seed: int) -> float:
    """Mean silhouette of token directions (Rousseeuw 1987), -1..1; NaN where there is one region only."""
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(tokens)) if len(tokens) <= _SAMPLE else rng.choice(len(tokens), _SAMPLE, replace=False)
    kept = regions[chosen]
    if not 2 <= len(np.unique(kept)) < len(kept):
        return float("nan")
    return float(silhouette_score(unit_rows(tokens[chosen]), kept))


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two labellings of the same places: 1 equal, 0 as by chance; NaN where both know one and the same label only.

    Args:
        first: [n] labels.
        second: [n] labels.
    """
    if not len(first):
        return float("nan")
    count = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(labels, minlength=count) / len(labels) for labels in (first, second)]
    chance = float(shares[0] @ shares[1])
    return float("nan") if chance >= 1 - 1e-12 else float(((first == second).mean() - chance) / (1 - chance))


def normalised_cut(tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The object of one image by TokenCut (Wang 2022): the second smallest eigenvector of the normalised graph, cut at its mean.

    Tokens are centred over the image first, so that a common offset does not join all patches. The object is the side that holds the
    largest absolute entry, as published. Of more than 1000 patches every k-th is a node of the graph, and the others take the mean of the
    nodes that they are joined to (Nystrom).

    Args:
        tokens: [P, E].
        valid: [P] bool; other patches are never object.

    Returns:
        [P] bool.
    """
    object_ = np.zeros(len(tokens), bool)
    count = int(valid.sum())
    if count < 4:
        return object_
    rows = unit_rows(tokens[valid] - tokens[valid].mean(axis=0))
    step = -(-count // _NODES)
    nodes = rows[::step]
    split = _second_eigenvector(np.where(nodes @ nodes.T > NEAR, 1.0, _APART))
    if step > 1:
        joined = np.where(rows @ nodes.T > NEAR, 1.0, _APART)
        split = joined @ split / joined.sum(axis=1)
    side = split > split.mean()
    if not side[int(np.abs(split).argmax())]:
        side = ~side
    object_[valid] = side
    return object_


def _second_eigenvector(joined: np.ndarray) -> np.ndarray:
    """Of the normalised graph Laplacian D^-1/2 (D - W) D^-1/2, scaled back by D^-1/2 (Shi and Malik 2000)."""
    count = len(joined)
    root = 1.0 / np.sqrt(joined.sum(axis=1))
    # Its smallest eigenvalues are the largest of D^-1/2 W D^-1/2; that plus 1 has no negative ones, which Lanczos might find first.
    graph = LinearOperator((count, count), matvec=lambda v: root * (joined @ (root * v.ravel())) + v.ravel(), dtype=np.float64)
    values, vectors = eigsh(graph, k=2, which="LA", v0=np.cos(np.arange(count) * 1.234))
    found: np.ndarray = root * vectors[:, int(values.argmin())]
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0


def best_overlap(regions: np.ndarray, mask: np.ndarray, count: int) -> float:
    """The largest intersection over union of a mask with any one region: what choosing by hand would reach."""
    return max(overlap(regions == region, mask) for region in range(count))
