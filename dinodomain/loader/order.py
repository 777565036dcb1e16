"""The order of training tiles as a pure function of (seed, step): nothing is shuffled, stored or replayed.

A step belongs to a bucket by a smooth weighted cycle. Inside a bucket tiles form an endless stream, epoch after epoch, each a keyed
permutation: a Feistel network over the next power of two, walked until it lands inside (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). Batches are consecutive positions of the stream and run across epoch borders, so that nothing is lost
or doubled. Any step costs the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import UserError

_CYCLE = 4096
_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 finaliser (Steele, Lea and Flood 2014) of uint64 values."""
    x = values + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def key_of(*parts: np.ndarray | int) -> np.ndarray:
    """One uint64 key per element from several integers."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = mix(key ^ mix(np.atleast_1d(np.asarray(part, dtype=np.int64)).view(np.uint64)))
    return key


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of 0..size-1 sends each index.

    Args:
        index: [n] int64 in 0..size-1.
        size: Number of elements.
        key: [n] or [1] uint64; equal keys are the same permutation.

    Returns:
        [n] int64 in 0..size-1.
    """
    bits = max(4, (size - 1).bit_length())  # fewer would leave Feistel halves of one bit, which permute too few ways
    rounds = np.stack([mix(key ^ np.uint64(number)) for number in range(_ROUNDS)])
    values, keys = index.astype(np.uint64), np.broadcast_to(rounds, (_ROUNDS, len(index)))
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], bits, keys[:, walking])
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
    """A bijection of 0..2^bits-1; the halves differ by one bit where ``bits`` is odd and change places every round."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(right_bits), values & np.uint64(2**right_bits - 1)
    for key in round_keys:
        left, right = right, left ^ (mix(key ^ right) & np.uint64(2**left_bits - 1))
        left_bits, right_bits = right_bits, left_bits
    joined: np.ndarray = (left << np.uint64(right_bits)) | right
    return joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The tiles of one step, over all ranks.

    Attributes:
        bucket: Bucket of the step.
        positions: [B] int64 positions in the bucket's endless stream.
        tiles: [B] int64 tile within the bucket.
        epochs: [B] int64 how many times the stream had wrapped.
        draws: [B] int64 repeats of the tile within its epoch.
    """

    bucket: int
    positions: np.ndarray
    tiles: np.ndarray
    epochs: np.ndarray
    draws: np.ndarray


class Order:
    """What is drawn at each step.

    Args:
        seed: Any integer.
        bucket_sizes: Number of tiles per bucket.
        weights: How much more often a bucket's tiles are drawn than others (1 = equally often).
        global_batch: Tiles per step over all ranks.

    Raises:
        UserError: Every bucket is empty or has weight 0.
    """

    def __init__(self, seed: int, bucket_sizes: Sequence[int], weights: Sequence[float], global_batch: int) -> None:
        assert len(bucket_sizes) == len(weights)
        self._seed, self._batch, self._sizes = seed, global_batch, tuple(bucket_sizes)
        self._cycle = _smooth_cycle(_cycle_counts([size * weight for size, weight in zip(bucket_sizes, weights)]))
        seen = np.zeros((len(self._cycle) + 1, len(bucket_sizes)), dtype=np.int64)
        np.add.at(seen, (np.arange(1, len(self._cycle) + 1), self._cycle), 1)
        self._seen = seen.cumsum(axis=0)
        self._shift = int(key_of(seed, -1)[0] % np.uint64(len(self._cycle)))

    def bucket_at(self, step: int) -> int:
        """The bucket that a step belongs to."""
        return int(self._cycle[(step + self._shift) % len(self._cycle)])

    def steps_before(self, step: int) -> np.ndarray:
        """[buckets] int64, how many of the steps 0..step-1 belonged to each bucket."""
        before: np.ndarray = self._total(step + self._shift) - self._total(self._shift)
        return before

    def _total(self, step: int) -> np.ndarray:
        turns, rest = divmod(step, len(self._cycle))
        total: np.ndarray = turns * self._seen[-1] + self._seen[rest]
        return total

    def at(self, step: int) -> Draw:
        """The global batch of a step, in O(batch) whatever the step."""
        bucket = self.bucket_at(step)
        first = int(self.steps_before(step)[bucket]) * self._batch
        positions = np.arange(first, first + self._batch, dtype=np.int64)
        tiles, epochs = self.stream(bucket, positions)
        return Draw(bucket=bucket, positions=positions, tiles=tiles, epochs=epochs, draws=np.zeros_like(positions))

    def stream(self, bucket: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tile and epoch at positions of a bucket's endless stream."""
        epochs, index = np.divmod(positions, self._sizes[bucket])
        return permute(index, self._sizes[bucket], key_of(self._seed, bucket, epochs)), epochs

    def counts(self, step: int) -> list[np.ndarray]:
        """Per bucket [size] int64: how often each tile was drawn in steps 0..step-1."""
        found = []
        for bucket, (size, steps) in enumerate(zip(self._sizes, self.steps_before(step))):
            whole, rest = divmod(int(steps) * self._batch, max(size, 1))
            drawn = np.full(size, whole, dtype=np.int64)
            if rest:
                tiles, _ = self.stream(bucket, np.arange(whole * size, whole * size + rest, dtype=np.int64))
                drawn[tiles] += 1
            found.append(drawn)
        return found


def _cycle_counts(shares: Sequence[float]) -> np.ndarray:
    """Steps per bucket in one cycle: largest remainders, at least one for every bucket that is drawn at all."""
    wanted = np.asarray(shares, dtype=np.float64)
    if not np.any(wanted > 0):
        raise UserError("loader.weights", "leave no bucket to draw from", remedy="give at least one bucket a weight above 0")
    used = sum(share > 0 for share in shares)
    if used == 1:
        return (wanted > 0).astype(np.int64)
    length = max(_CYCLE, 16 * used)
    exact = wanted / wanted.sum() * length
    counts = np.where(wanted > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    missing = max(0, length - int(counts.sum()))
    counts[np.argsort(np.floor(exact) - exact, kind="stable")[:missing]] += 1
    divisor: int = np.gcd.reduce(counts)
    return counts // divisor


def _smooth_cycle(counts: np.ndarray) -> np.ndarray:
    """Smooth weighted round robin: each bucket ``counts`` times, as evenly spread as can be."""
    credit, total = np.zeros(len(counts), dtype=np.int64), int(counts.sum())
    cycle = np.empty(total, dtype=np.int64)
    for step in range(total):
        credit += counts
        cycle[step] = np.argmax(credit)
        credit[cycle[step]] -= total
    return cycle
