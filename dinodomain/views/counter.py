"""Random numbers from integers: the same words give the same number on every device, in any order and any batch.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators"),
in int64 arithmetic that wraps modulo 2**64. It is a hash of its words, not a stream: nothing has a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def join(words: Sequence[Tensor], salts: Tensor) -> Tensor:
    """One key of several words at once: each is scrambled with its own salt, and they are added.

    Args:
        words: W tensors [n] int64.
        salts: [W] int64, all different.

    Returns:
        [n] int64.
    """
    return mix(torch.stack(list(words)) ^ salts[:, None]).sum(dim=0)


@dataclass(frozen=True, slots=True)
class Hashed:
    """Uniform numbers of many words, made with one call: on an accelerator a dozen launches instead of a dozen for each word.

    Attributes:
        values: [N, W] float64.
        columns: Word to column.
    """

    values: Tensor
    columns: Mapping[int, int]

    @classmethod
    def of(cls, key: Tensor, words: Tensor, columns: Mapping[int, int]) -> Hashed:
        """The same numbers as ``uniform`` gives.

        Args:
            key: [N] int64.
            words: [W] int64.
            columns: Place of each word in ``words``.
        """
        return cls(uniform(key[:, None], words[None]), columns)

    def rows(self, start: int, stop: int) -> Hashed:
        """Rows start..stop."""
        return Hashed(self.values[start:stop], self.columns)

    def __getitem__(self, word: int) -> Tensor:
        """[N]."""
        return self.values[:, self.columns[word]]

    def several(self, words: Sequence[int]) -> Tensor:
        """[N, len(words)]; words that follow one another."""
        first = self.columns[words[0]]
        return self.values[:, first : first + len(words)]


def uniform(key: Tensor, word: Tensor | int) -> Tensor:
    """Float64 numbers in [0, 1) with 32 random bits, from a key and one more word."""
    return _shift(absorb(key, word), 32).to(torch.float64) * 2.0**-32
