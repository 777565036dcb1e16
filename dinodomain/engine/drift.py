"""What patch similarities were at the first look of a run, kept in a small file so that a resumed run compares with the same.

Written whole by rank 0 as ``RUN/watch.safetensors``: at most 2016 cosines of each held tile (about 1 MB for 128 tiles), the step they
are of and which tiles. A first look is compared with what was written, too, so that it gives the same numbers when it is done again.
"""

from __future__ import annotations

import logging
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dinodomain import lineage
from dinodomain.engine.measures import mean_correlation

FILE = "watch.safetensors"
_NAME = "similarity"

logger = logging.getLogger("dinodomain")


class Drift:
    """Compares similarities with those of the first look.

    Args:
        folder: Run folder; exists.
        tiles: Digest of the held tiles: of others there is nothing to compare.
    """

    def __init__(self, folder: Path, tiles: str) -> None:
        self._path, self._tiles = folder / FILE, tiles
        self._first: tuple[int, Tensor] | None = None

    def since_first(self, similarity: Tensor, step: int) -> float:
        """1 less the mean correlation with the first look, which this becomes where there is none.

        Args:
            similarity: [n, M] float32 on the host.
            step: Finished steps. A first look at a later step is of a future that was lost and is replaced.
        """
        first = self._first or self._read(similarity)
        if first is None or first[0] > step:
            self._write(similarity, step)
            first = step, similarity
        self._first = first
        return 1.0 - mean_correlation(similarity, first[1])

    def _read(self, like: Tensor) -> tuple[int, Tensor] | None:
        if not self._path.is_file():
            return None
        try:
            with safetensors.safe_open(self._path, framework="pt") as handle:
                about, kept = handle.metadata() or {}, handle.get_tensor(_NAME)
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s): watch_dense_drift begins anew", self._path, error)
            return None
        if about.get("tiles") != self._tiles or kept.shape != like.shape:
            logger.warning("%s is of other tiles: watch_dense_drift begins anew", self._path)
            return None
        return int(about["step"]), kept

    def _write(self, similarity: Tensor, step: int) -> None:
        about = {"tiles": self._tiles, "step": str(step)}
        try:
            lineage.write_bytes(self._path, safetensors.torch.save({_NAME: similarity.float().contiguous()}, metadata=about))
        except OSError as error:  # a full disk costs a comparison after a resume, not the run
            logger.warning("%s cannot be written (%s): after a resume watch_dense_drift begins anew", self._path, error.strerror or error)


def spread_tokens(count: int, most: int = 64) -> Tensor:
    """[min(count, most)] int64 places of tokens, evenly spaced over the row-major grid."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()
