"""Gaussian noise from a counter: no generator, the same numbers on every device.

A table of 2**18 standard normal numbers (the normal's own quantiles, shuffled by the counter hash) is read with an offset,
an odd stride and a jump per 2**18 pixels that come from the key. Drawing fresh numbers per pixel would cost a CPU more than
all other intensity operations together, and logarithms differ between devices in the last bit; a table does neither.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dinodomain.views import counter

_BITS = 18
_MASK = (1 << _BITS) - 1


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    index = torch.arange(1 << _BITS)
    quantiles = torch.special.ndtri((index.double() + 0.5) / (1 << _BITS)).float()
    return quantiles[torch.argsort(counter.mix(index + 1))].to(device)


@lru_cache(maxsize=8)
def _positions(device: torch.device, count: int) -> tuple[Tensor, Tensor]:
    index = torch.arange(count, device=device, dtype=torch.int32)
    return index, index >> _BITS


def noise(key: Tensor, count: int) -> Tensor:
    """Standard normal numbers.

    Args:
        key: [n] int64.
        count: Numbers per key.

    Returns:
        [n, count] float32.
    """
    offset, stride, jump = ((key >> shift & _MASK).int()[:, None] for shift in (0, _BITS, 2 * _BITS))
    index, block = _positions(key.device, count)
    where = (index * (stride | 1)).add_(offset)  # int32 wraps: only the low bits count
    if count > 1 << _BITS:
        where.add_(block * jump)
    return _table(key.device).index_select(0, where.bitwise_and_(_MASK).flatten()).reshape(where.shape)
