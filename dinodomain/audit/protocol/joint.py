"""Several looks at one attribute as a single test: how far each stands out, against the largest of permuted looks (max-T).

With hundreds of places the best one always looks good; the largest of permuted values says how good by chance. So many looks cost the
correction over a question one test. Source: Westfall and Young 1993, 2.8. P looks, K permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standing(scores: np.ndarray) -> np.ndarray:
    """[1 + K, P] distance of scores from their mean in their deviations, the found ones first; NaN where there are none.

    What was found counts as one more permutation: measured by the others' mean and deviation alone, with 200 permutations of 196 looks it
    stands out in 7 % of worlds at a level of 5 %.
    """
    result: np.ndarray = (scores - scores.mean(axis=0)) / np.maximum(scores.std(axis=0), 1e-9)
    return result


def joint_of(stands: np.ndarray) -> np.ndarray:
    """[P] chance that any look at permuted values stands out as much as each found one does; 1 where there is no value."""
    largest = np.max(np.where(np.isnan(stands), -np.inf, stands), axis=1)
    result: np.ndarray = np.where(np.isnan(stands[0]), 1.0, (largest[:, None] >= stands[0]).mean(axis=0))
    return result


def joint_p(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """The same of scores.

    Args:
        value: [P], NaN where there is none.
        null: [K, P] the same of permuted values, from the same permutations for all.

    Returns:
        [P]; 1 where there is no value.
    """
    return joint_of(standing(np.vstack([value, null])))


def carried(p: Sequence[float], adjusted: float, family: int) -> tuple[float, ...]:
    """The joint p values of all looks, corrected over a question.

    Args:
        p: Of each look.
        adjusted: The smallest of them, as the question's correction left it.
        family: Tests that were corrected together: the others count as its first (Bonferroni), and none below the smallest.
    """
    smallest = min(p)
    return tuple(adjusted if value == smallest else max(adjusted, min(1.0, value * family)) for value in p)
