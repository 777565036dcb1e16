"""Which rows carry a label when only a few do: n per class, each from another unit while units last.

Does not fit. A label costs an expert's minutes, so the budget is counted in labels, and labels of one patient repeat each other.
"""

from __future__ import annotations

import numpy as np

from dinodomain.errors import UserError


def draw_labelled(y: np.ndarray, units: np.ndarray, per_class: int, *, names: tuple[str, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Draws ``per_class`` rows of every class.

    Args:
        y: [m] class indices of the rows that may be labelled.
        units: [m] unit ids.
        per_class: Labels per class, at least 1.
        names: Class names, for the message.
        seed: Decides the draw.

    Returns:
        Sorted row numbers, ``per_class`` x C.

    Raises:
        UserError: A class has fewer rows than that.
    """
    generator = np.random.default_rng([*seed, 0xFE3])
    picked = []
    for index, name in enumerate(names):
        rows = generator.permutation(np.flatnonzero(y == index))
        if len(rows) < per_class:
            raise UserError(
                "labels_per_class", f"{per_class}, but class {name!r} has {len(rows)} rows outside one fold", allowed=f"1 to {len(rows)}"
            )
        _, first = np.unique(units[rows], return_index=True)
        later = np.ones(len(rows), bool)
        later[first] = False
        ordered = np.r_[rows[np.sort(first)], rows[later]]  # one row of each unit before a second one of any
        picked.append(ordered[:per_class])
    return np.sort(np.concatenate(picked))
