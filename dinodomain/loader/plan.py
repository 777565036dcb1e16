"""How tiles are chosen, batched and read ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dinodomain.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderPlan:
    """Which tiles are drawn, and how they are read.

    Attributes:
        batch: Samples per step over all ranks (the global batch).
        tile: Tile side in pixels for scenes and volumes, a multiple of the chunk side; null means one chunk of a scene, three of a volume.
        min_valid: Tiles with a smaller share of valid pixels are never drawn.
        aligned: Tiles begin on the chunk grid, so that nothing is decoded in vain. False moves every read by up to half a tile, drawn
            anew each epoch.
        draws: Samples that each read of a tile gives, each with views of its own and each in another step. Above 1 where reading is too
            slow for the device.
        spread: Steps between two samples of one read (``draws`` above 1). More makes steps less alike and holds more tiles in the
            device's memory.
        pairs: ``dates`` draws several dates of one place together; ``none`` draws single tiles.
        dates: Dates per sample (``pairs=dates``).
        min_days: Days that two dates of a sample are apart at least (``pairs=dates``).
        workers: Processes that read; 0 reads in threads of this process. null chooses by the cores for pretraining and means 0
            elsewhere. They change speed, never results.
        threads: Decode threads of each such process; 0, with ``workers=0``, decodes in the calling thread.
        requests: Requests in flight per process where the store lies behind a URL.
        prefetch: Batches that are read ahead.
        ring_dir: Folder for the memory that processes share, instead of an anonymous file; null means the system's folder for temporary
            files where there are no anonymous files.
        weights: Bucket name to how much more often its tiles are drawn than others; 1 where not named, 0 leaves a bucket out.
    """

    batch: int = 64
    tile: int | None = None
    min_valid: float = 0.5
    aligned: bool = True
    draws: int = 1
    spread: int = 4
    pairs: Literal["none", "dates"] = "none"
    dates: int = 2
    min_days: int = 1
    workers: int | None = None
    threads: int = 2
    requests: int = 32
    prefetch: int = 4
    ring_dir: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"batch": 1, "draws": 1, "spread": 1, "dates": 2, "min_days": 0, "workers": 0, "threads": 0, "requests": 1, "prefetch": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"loader.{name}", f"{value}", allowed=f"at least {bound}")
        if self.threads == 0 and self.workers:
            raise UserError("loader.threads", f"is 0 with {self.workers} reader processes", allowed="at least 1")
        if self.batch % self.draws:
            raise UserError(
                "loader.draws", f"is {self.draws}, which does not divide loader.batch={self.batch}", allowed="a divisor of the batch"
            )
        if self.tile is not None and self.tile < 1:
            raise UserError("loader.tile", f"{self.tile} pixels", allowed="at least 1")
        if not 0 <= self.min_valid <= 1:
            raise UserError("loader.min_valid", f"{self.min_valid}", allowed="0 to 1")
        for bucket, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"loader.weights.{bucket}", f"{weight}", allowed="a finite number, 0 or more")
