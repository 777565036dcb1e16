"""What maps of class attention say in numbers: how sharp they are, how far heads differ, and what they lie on.

Pure functions of arrays. Legend: H heads, P patches of one image.
"""

from __future__ import annotations

import numpy as np

MASS = 0.6
"""Share of the attention that Caron (2021, figure 4) keeps to turn a map into a mask."""


def entropy(attention: np.ndarray, valid: np.ndarray) -> float:
    """Mean entropy of the heads over valid patches as a share of the largest, 0 (one patch) to 1 (all alike).

    Args:
        attention: [H, P] weights, 0 or more.
        valid: [P] bool; fewer than two give NaN.
    """
    shares = _shares(attention, valid)
    if shares.shape[1] < 2:
        return float("nan")
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return float(-(shares * logs).sum(axis=1).mean() / np.log(shares.shape[1]))


def area_of_mass(attention: np.ndarray, valid: np.ndarray, mass: float = MASS) -> float:
    """Mean share of the valid patches that hold ``mass`` of a head's attention, the strongest first; ``mass`` where all are alike.

    Args:
        attention: [H, P].
        valid: [P] bool.
        mass: 0..1.
    """
    shares = -np.sort(-_shares(attention, valid), axis=1)
    reached = np.cumsum(shares, axis=1) >= mass - 1e-9
    return float((reached.argmax(axis=1) + 1).mean() / shares.shape[1])


def share_on(attention: np.ndarray, where: np.ndarray) -> float:
    """Share of the attention to patches that goes where ``where`` [P] is 1 (bool, or a share 0..1), mean over heads."""
    total = np.maximum(attention.sum(axis=1), 1e-12)
    return float(((attention * where).sum(axis=1) / total).mean())


def lift(attention: np.ndarray, valid: np.ndarray, amount: np.ndarray) -> float:
    """Attention-weighted mean of an amount over its plain mean: 1 where attention does not care, above 1 where it seeks it out.

    Args:
        attention: [H, P].
        valid: [P] bool.
        amount: [P], 0 or more, for example the contrast inside each patch; NaN comes back where it is 0 everywhere.
    """
    plain = float(amount[valid].mean())
    return float((_shares(attention, valid) @ amount[valid]).mean() / plain) if plain > 0 else float("nan")


def head_difference(attention: np.ndarray, valid: np.ndarray) -> float:
    """Mean total variation distance between two heads, 0 (they look at the same) to 1 (at nothing in common); NaN for one head."""
    shares = _shares(attention, valid)
    if len(shares) < 2:
        return float("nan")
    first, second = np.triu_indices(len(shares), k=1)
    return float(np.abs(shares[first] - shares[second]).sum(axis=1).mean() / 2)


def _shares(attention: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[H, valid patches] float64, each row adding up to 1."""
    kept = attention[:, valid].astype(np.float64)
    shares: np.ndarray = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-300)
    return shares
