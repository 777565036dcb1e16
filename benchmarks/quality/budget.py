"""How many steps fit into so many CPU-minutes, the same way for both sides: schedules have to span them, so the number is needed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Trained = TypeVar("Trained")
SHORT = (8, 56)
"""Steps of the two runs from whose difference the time of a step is guessed."""
SPARE = 0.98
"""Share of the time that steps get; the rest is for building, saving and figures."""
TOLERANCE, TRIES = 0.12, 2
"""A run that took another time than it had, by more than this share, is done again with as many steps as would have fitted."""


def timed(
    train: Callable[[int, str], tuple[Trained, float]], minutes: float, pace: float | None = None
) -> tuple[int, Trained, float]:  # fmt: skip
    """Trains for about so many CPU-minutes.

    Args:
        train: Takes steps and the name of a folder; returns what it made and CPU-seconds.
        minutes: CPU-minutes.
        pace: Steps a CPU-second of the same training with another seed; None finds it by two short runs.

    Returns:
        Steps, what was made, CPU-seconds. The last try counts whatever it took: a busy machine changes the CPU time of a step.
    """
    if pace is None:
        few, more = (train(steps, f"speed-{steps}")[1] for steps in SHORT)
        pace = SPARE * (SHORT[1] - SHORT[0]) / (more - few)
    steps = max(10, int(60 * minutes * pace))
    for turn in range(TRIES):
        made, spent = train(steps, "run")
        if turn == TRIES - 1 or abs(spent / (60 * minutes) - 1) <= TOLERANCE:
            break
        steps = max(10, int(steps * 60 * minutes / spent))
    return steps, made, spent
