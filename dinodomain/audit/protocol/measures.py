"""Scores beside the AUROC: usable bits, chance-corrected balanced accuracy, lift of the average precision. n rows, B weightings, C classes.

Fits nothing and judges nothing.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score

from dinodomain.probes.scores import balanced_accuracy

RARE = 0.05  # below this share of a class its AUROC hides how few of those found are right
_LEAST = 1e-12


def usable_bits(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What a probe knows of a class, in bits a row: entropy of the classes minus cross-entropy of its out-of-fold probabilities.

    Below 0 where the probe is surer than it may be. Source: predictive V-information, Xu et al. 2020.

    Args:
        probabilities: [n, C], rows sum to 1.
        truth: [n] class indices.
        weights: [B, n].

    Returns:
        [B].
    """
    share = weights / weights.sum(axis=1, keepdims=True)
    prior = share @ (truth[:, None] == np.arange(probabilities.shape[1]))
    entropy = -(prior * np.log2(np.maximum(prior, _LEAST))).sum(axis=1)
    told = np.log2(np.maximum(probabilities[np.arange(len(truth)), truth], _LEAST))
    result: np.ndarray = entropy + share @ told
    return result


def beyond_chance(predictions: np.ndarray, truth: np.ndarray) -> float:
    """Balanced accuracy with chance at 0 and perfect at 1: (BA - 1/C) / (1 - 1/C)."""
    chance = 1 / predictions.shape[1]
    return float((balanced_accuracy(predictions, truth, np.ones((1, len(truth))))[0] - chance) / (1 - chance))


def precision_lift(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Average precision over the share of positives, 1 for a probe that knows nothing; None where positives are no rare class."""
    share = float(np.mean(positive))
    if not 0 < share < RARE:
        return None
    return float(average_precision_score(positive, scores) / share)
