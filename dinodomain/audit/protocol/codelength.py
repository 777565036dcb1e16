"""How many bits it takes to tell somebody the labels who has the features: a score that counts what a probe costs to learn, too.

Online coding: units come in growing blocks, each told by a probe of all before it, the first without one. Features from which few labels
suffice give short codes although the final probes may be alike. Source: Voita and Titov 2020. n rows, C classes.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Of the units, at the end of each block."""
STRENGTHS = (0.001, 0.01, 0.1)
"""C of the probes; the shortest code counts, with the bits that say which."""
_EVEN = 0.01  # of each distribution is spread evenly: no label may cost endless bits


def codelength(features: np.ndarray, y: np.ndarray, units: np.ndarray, classes: int, seed: int) -> float:
    """Bits a row; log2(C) where the features know nothing and nothing is learned.

    Args:
        features: [n, E].
        y: [n] class indices.
        units: [n] 0.., told whole.
        classes: C.
        seed: Decides the order of the units.
    """
    place = np.random.default_rng([seed, 0xC0DE]).permutation(int(units.max()) + 1)[units] / (int(units.max()) + 1)
    return float(min(_told(features, y, place, classes, strength) for strength in STRENGTHS) + np.log2(len(STRENGTHS)) / len(y))


def _told(features: np.ndarray, y: np.ndarray, place: np.ndarray, classes: int, strength: float) -> float:
    total, before = 0.0, np.zeros(len(y), bool)
    for share in SHARES:
        block = (place < share) & ~before
        if block.any():
            found = _probabilities(features[before], y[before], features[block], classes, strength)
            total -= np.log2(found[np.arange(len(found)), y[block]]).sum()
        before |= block
    return total / len(y)


def _probabilities(x: np.ndarray, y: np.ndarray, asked: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """[q, C] by a probe of what was told so far; even where that holds no two classes."""
    out, known = np.zeros((len(asked), classes)), np.unique(y)
    if len(known) < 2:
        return np.full(out.shape, 1 / classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200, tol=1e-3)).fit(x, y)
    out[:, known] = model.predict_proba(asked)
    return (1 - _EVEN) * out + _EVEN / classes
