"""Keyed permutations of any size, without tables: a Feistel network over the next power of two, walked until it lands inside.

After Black and Rogaway, "Ciphers with arbitrary finite domains" (2002). Everything is a pure function of integers; nothing is stored.
"""

from __future__ import annotations

import numpy as np

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
