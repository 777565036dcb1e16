"""Random numbers from integers: the same words give the same number on every device, in any order and any batch.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators"),
in int64 arithmetic that wraps modulo 2**64. It is a hash of its words, not a stream: nothing has a state.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Scrambles int64 words, one to one."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def absorb(key: Tensor, word: Tensor | int) -> Tensor:
    """Takes one more word into a key; int64, shapes broadcast."""
    return mix((key ^ word) + _GOLDEN)


def signed(word: int) -> int:
    """The low 64 bits of a Python integer as a signed number, which is what an int64 tensor holds."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


def uniform(key: Tensor, word: Tensor | int) -> Tensor:
    """Float64 numbers in [0, 1) with 32 random bits, from a key and one more word."""
    return _shift(absorb(key, word), 32).to(torch.float64) * 2.0**-32
