"""Several looks at one attribute as a single test: how far each stands out, against the largest of permuted looks (max-T).

With hundreds of places the best one always looks good; the largest of permuted values says how good by chance. So many looks cost the
correction over a question one test. Source: Westfall and Young 1993, 2.8. P looks, K permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standing(value: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[P] and [K, P] distance from the null's mean in its deviations; NaN where there is no value."""
    mean, spread = null.mean(axis=0), np.maximum(null.std(axis=0), 1e-9)
    return (value - mean) / spread, (null - mean) / spread


def joint_p(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Chance that any look at permuted values stands out as much as each of these does, corrected over all of them.

    Args:
        value: [P], NaN where there is none.
        null: [K, P] the same of permuted values, from the same permutations for all.

    Returns:
        [P]; 1 where there is no value.
    """
    found, chance = standing(value, null)
    largest = np.nanmax(chance, axis=1)
    reached = (largest[:, None] >= np.where(np.isnan(found), -np.inf, found)).sum(axis=0)
    result: np.ndarray = (1 + reached) / (1 + len(null))
    return result


def carried(p: Sequence[float], adjusted: float) -> tuple[float, ...]:
    """The joint p values of all looks, corrected over a question as their smallest one was: to the adjusted value."""
    factor = adjusted / min(p)
    return tuple(min(1.0, value * factor) for value in p)
