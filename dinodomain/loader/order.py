"""The order of training tiles as a pure function of (seed, step): nothing is shuffled, stored or replayed.

A step belongs to a bucket by a smooth weighted cycle. Inside a bucket batches are consecutive places of its endless stream
(``stream.py``) and run across epoch borders, so that nothing is lost or doubled. Any step costs the same.

Several draws of one read: with k draws a batch of B tiles is made of k groups of G = B / k. Group r of a bucket (places r G to r G + G - 1
of its stream) is drawn at the bucket's own steps r - j * spread for j = k - 1 ... 0, those below 0 left out; so a step t draws the groups
t, t + spread ... t + (k - 1) * spread, one of them for the first time and one for the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError
from dinodomain.loader.cycle import Cycle, nearly
from dinodomain.loader.permute import key_of
from dinodomain.loader.stream import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The tiles of one step, over all ranks, group after group.

    Attributes:
        bucket: Bucket of the step.
        groups: [k] int64 numbers of the groups; the first is drawn for the last time.
        positions: [B] int64 places in the bucket's endless stream.
        tiles: [B] int64 tile within the bucket.
        epochs: [B] int64 how many times the stream (of the tile's store) had wrapped.
        draws: [B] int64 repeats of the tile within its epoch.
    """

    bucket: int
    groups: np.ndarray
    positions: np.ndarray
    tiles: np.ndarray
    epochs: np.ndarray
    draws: np.ndarray


class Order:
    """What is drawn at each step.

    Args:
        seed: -2^63 to 2^63 - 1.
        sizes: Number of tiles, [buckets], or [buckets, stores] where several stores are mixed.
        weights: [buckets], how much more often a bucket's tiles are drawn than others (1 = equally often).
        global_batch: Samples per step over all ranks, a multiple of ``draws``.
        draws: Samples of each tile that is read.
        spread: A bucket's steps between two of them.
        shares: [stores], of all samples; of any sum.

    Raises:
        UserError: Every bucket, or every bucket of a mixed store, is empty or has weight 0.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int] | Sequence[Sequence[int]] | np.ndarray,
        weights: Sequence[float],
        global_batch: int,
        *,
        draws: int = 1,
        spread: int = 1,
        shares: Sequence[float] = (1.0,),
    ) -> None:
        assert global_batch % draws == 0, f"{draws} draws for a batch of {global_batch}"
        table = np.asarray(sizes, dtype=np.int64).reshape(len(weights), len(shares))
        parts = _parts(table, np.asarray(weights, dtype=np.float64), np.asarray(shares, dtype=np.float64))
        counts = nearly(parts.sum(axis=1))
        self._cycle = Cycle(counts, int(key_of(seed, -1)[0] % np.uint64(counts.sum())))
        self._streams = [Stream(seed, bucket, *row) for bucket, row in enumerate(zip(table, parts))]
        self._draws, self._spread, self._group = draws, spread, global_batch // draws

    def bucket_at(self, step: int) -> int:
        """The bucket that a step belongs to."""
        return int(self._cycle.at(np.asarray([step]))[0])

    def steps_before(self, step: int) -> np.ndarray:
        """[buckets] int64, how many of the steps 0..step-1 belonged to each bucket."""
        return self._cycle.before(step)

    def at(self, step: int) -> Draw:
        """The global batch of a step, in O(batch) whatever the step."""
        bucket = self.bucket_at(step)
        own = int(self.steps_before(step)[bucket])
        ahead = np.arange(self._draws, dtype=np.int64)
        groups = own + ahead * self._spread
        positions = (groups[:, None] * self._group + np.arange(self._group)).reshape(-1)
        tiles, epochs = self._streams[bucket].at(positions)
        # A group of the first steps has draws that would lie before step 0; those it has are counted from 0.
        draws = np.minimum(self._draws - 1, groups // self._spread) - ahead
        return Draw(
            bucket=bucket, groups=groups, positions=positions, tiles=tiles, epochs=epochs, draws=np.repeat(draws, self._group)
        )  # fmt: skip

    def counts(self, step: int) -> list[np.ndarray]:
        """Per bucket [size] int64: how often each tile was drawn in steps 0..step-1."""
        return [self._counts(stream, int(steps)) for stream, steps in zip(self._streams, self.steps_before(step))]

    def _counts(self, stream: Stream, steps: int) -> np.ndarray:
        """The groups that ``steps`` steps draw as their j-th are consecutive: a difference of two counts from the beginning."""
        total = np.zeros(stream.size, dtype=np.int64)
        for first in range(0, self._draws * self._spread if steps else 0, self._spread):
            total += stream.counts((first + steps) * self._group) - stream.counts(first * self._group)
        return total


def _parts(sizes: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """[buckets, stores] how all samples are shared, of any sum: each store has its share, and inside it each tile its bucket's weight."""
    drawn: np.ndarray = sizes * weights[:, None]
    totals = drawn.sum(axis=0)
    if not np.any(totals > 0):
        raise UserError("loader.weights", "leave no bucket to draw from", remedy="give at least one bucket a weight above 0")
    if len(shares) == 1:
        return drawn
    for store in np.flatnonzero(totals == 0).tolist():
        raise UserError(f"stores[{store}]", "has no tile to draw: all are held out, too empty or in buckets of weight 0",
                        remedy="take it out of the mix, lower loader.min_valid, or give one of its buckets a weight")  # fmt: skip
    parts: np.ndarray = drawn / totals * shares
    return parts
