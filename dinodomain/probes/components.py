"""Principal components of patch tokens: the maps of DINOv2's figure 1, and how much of them plain brightness or place explains.

Pure functions of arrays. Legend: n tokens of all images together, E width, D spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinodomain.probes.regions import unit_rows

SHOWN = 3
"""Components that become red, green and blue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """A principal component analysis.

    Attributes:
        mean: [E].
        axes: [K, E] unit vectors, strongest first, 0 where nothing varies; signs by the largest loading, so that equal tokens
            give equal components.
        explained: [K] share of the variance.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def scores(self, tokens: np.ndarray) -> np.ndarray:
        """[..., E] to [..., K]."""
        result: np.ndarray = (tokens - self.mean) @ self.axes.T
        return result


def components(tokens: np.ndarray, keep: int = SHOWN) -> Components:
    """The leading components of tokens.

    Args:
        tokens: [n, E]; the smaller of n x n and E x E numbers are held: raw patches of volumes are wider than there are patches.
        keep: How many; lowered to n or E where there are fewer.
    """
    exact = tokens.astype(np.float64)
    mean = exact.mean(axis=0)
    centred = exact - mean
    narrow = exact.shape[1] <= len(exact)
    values, vectors = np.linalg.eigh((centred.T @ centred if narrow else centred @ centred.T) / max(len(exact), 1))
    order = np.argsort(-values)[:keep]
    axes = vectors[:, order].T if narrow else unit_rows(vectors[:, order].T @ centred)
    axes = axes * np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    total = float(np.maximum(values, 0).sum())
    return Components(mean=mean, axes=axes, explained=np.maximum(values[order], 0) / total if total > 0 else np.zeros(len(order)))


def colours(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Three components as colours, each stretched between the 2nd and 98th percentile of the tokens ``among``.

    Args:
        scores: [n, 3].
        among: [n] bool, which tokens set the range.

    Returns:
        [n, 3] in 0..1.
    """
    low, high = np.percentile(scores[among], [2, 98], axis=0)
    stretched: np.ndarray = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return stretched


def split_threshold(values: np.ndarray) -> float:
    """The threshold between two groups of numbers that makes their means differ most (Otsu 1979).

    Args:
        values: [n]; all alike give that value.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return float(ordered[0]) if len(ordered) else 0.0
    below = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)[:-1]
    gap = sums / below - (ordered.sum() - sums) / (len(ordered) - below)
    best = int((below * (len(ordered) - below) * gap**2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def explained_by(scores: np.ndarray, given: np.ndarray, weight: np.ndarray) -> float:
    """Share of the variance of components that a linear fit of given numbers explains, 0..1: R^2, weighted by variance.

    Args:
        scores: [n, K].
        given: [n, G], for example brightness of each patch; a constant is added.
        weight: [K] weights of the components, for example the variance that each explains.
    """
    design = np.concatenate([given.astype(np.float64), np.ones((len(given), 1))], axis=1)
    fitted = design @ np.linalg.lstsq(design, scores, rcond=None)[0]
    spread = ((scores - scores.mean(axis=0)) ** 2).sum(axis=0)
    left = ((scores - fitted) ** 2).sum(axis=0)
    each = np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1.0), 0.0)
    return float((np.clip(each, 0, 1) * weight).sum() / max(float(weight.sum()), 1e-12))
