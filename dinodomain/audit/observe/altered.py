"""A domain whose pixels come out altered, as re-encoded copies look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dinodomain.domain import Domain
from dinodomain.types import TileInfo


class AlteredDomain:
    """A domain whose pixels come out with another exposure, contrast and a little noise: what a re-encoded copy looks like."""

    def __init__(self, domain: Domain, seed: int) -> None:
        self._domain, self._seed = domain, seed

    def __getattr__(self, name: str) -> Any:
        """Everything else is the domain's own."""
        return getattr(self._domain, name)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """The domain's values in the unit range, altered."""
        unit = self._domain.to_float(pixels, info)
        generator = torch.Generator().manual_seed(self._seed)
        noise = 0.01 * torch.randn(unit.shape, generator=generator).to(unit)
        altered: Tensor = (0.85 * unit.clamp(0, 1) ** 0.9 + 0.05 + noise).clamp(0, 1)
        return altered
