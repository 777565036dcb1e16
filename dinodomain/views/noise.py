"""Gaussian noise from a counter: no generator, the same numbers on every device.

A table of standard normal numbers (the normal's own quantiles, shuffled by the counter hash) is read in runs of 256 that begin
where a hash of the key and the run's number says. Drawing fresh numbers per pixel would cost a CPU more than all other
intensity operations together, and logarithms differ between devices in the last bit; a table does neither.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dinodomain.views import counter

_BITS = 18
_RUN = 256


@lru_cache(maxsize=8)
def _runs(device: torch.device) -> Tensor:
    """[2**18, run] overlapping views of the table, one for each place where a run may begin."""
    length = (1 << _BITS) + _RUN
    index = torch.arange(length)
    quantiles = torch.special.ndtri((index.double() + 0.5) / length).float()
    table = quantiles[torch.argsort(counter.mix(index + 1))].to(device)
    runs: Tensor = table.as_strided((1 << _BITS, _RUN), (1, 1))
    return runs


def noise(key: Tensor, count: int) -> Tensor:
    """Standard normal numbers.

    Args:
        key: [n] int64.
        count: Numbers per key.

    Returns:
        [n, count] float32.
    """
    runs = -(-count // _RUN)
    begin = counter.absorb(key[:, None], torch.arange(runs, device=key.device)) & ((1 << _BITS) - 1)
    numbers = _runs(key.device).index_select(0, begin.flatten())
    return numbers.reshape(len(key), runs * _RUN)[:, :count]
