"""What is read and what a batch is made of, as plain arrays: the one thing that order, boxes and readers have in common. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tiles that are read together, once, whatever number of batches they are drawn for.

    Attributes:
        key: (bucket, group): equal keys are equal reads. A part that is still held is not read again.
        rows: [n, T] int64 rows of the store index; T dates of one place, else 1.
        starts: [n, T, D] int64 first pixel of each box in its array (the slot, for whole images).
        last: No later batch draws this part: it need not be held.
    """

    key: tuple[int, int]
    rows: np.ndarray
    starts: np.ndarray
    last: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One batch of one rank: its parts one after the other, all of one bucket. B is the sum of the parts' n.

    Attributes:
        bucket: Position in ``Tiles.buckets``.
        parts: What it is made of.
        tile_ids: [B] int64.
        epochs: [B] int64.
        draws: [B] int64.
        slots: [B] int64.
    """

    bucket: int
    parts: tuple[Part, ...]
    tile_ids: np.ndarray
    epochs: np.ndarray
    draws: np.ndarray
    slots: np.ndarray
