"""How tiles are chosen, batched and read ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dinodomain.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderPlan:
    """Which tiles are drawn, and how they are read.

    Attributes:
        batch: Tiles per step over all ranks (the global batch).
        tile: Tile side in pixels for scenes and volumes, a multiple of the chunk side; null means one chunk of a scene, three of a volume.
        min_valid: Tiles with a smaller share of valid pixels are never drawn.
        workers: Decode threads; 0 decodes in the calling thread. They change speed, never results.
        prefetch: Batches that are read ahead.
        weights: Bucket name to how much more often its tiles are drawn than others; 1 where not named, 0 leaves a bucket out.
    """

    batch: int = 64
    tile: int | None = None
    min_valid: float = 0.5
    workers: int = 2
    prefetch: int = 4
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"loader.{name}", f"{getattr(self, name)}", allowed=f"at least {least}")
        if self.tile is not None and self.tile < 1:
            raise UserError("loader.tile", f"{self.tile} pixels", allowed="at least 1")
        if not 0 <= self.min_valid <= 1:
            raise UserError("loader.min_valid", f"{self.min_valid}", allowed="0 to 1")
        for bucket, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"loader.weights.{bucket}", f"{weight}", allowed="a finite number, 0 or more")
