"""A rank's batch in equal parts, for gradient accumulation. Slices only; nothing is copied."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from dinodomain.types import Batch, TileInfo


def micro_batches(batch: Batch, parts: int) -> list[Batch]:
    """The samples of a batch in ``parts`` runs of equal length, in order.

    Args:
        batch: B samples of T dates.
        parts: Must divide B, which ``resolve`` sees to.
    """
    samples = len(batch.tile_ids)
    assert samples % parts == 0, f"{samples} samples in {parts} parts"
    each = samples // parts
    return [_samples(batch, start, start + each) for start in range(0, samples, each)]


def _samples(batch: Batch, start: int, stop: int) -> Batch:
    dates = batch.pixels.shape[1]
    images = slice(start * dates, stop * dates)
    info = TileInfo(**{field.name: getattr(batch.info, field.name)[images] for field in fields(batch.info)})
    own: dict[str, Any] = {name: getattr(batch, name)[start:stop] for name in ("pixels", "tile_ids", "epochs", "draws", "slots")}
    valid: Tensor | None = None if batch.valid is None else batch.valid[start:stop]
    return replace(batch, info=info, valid=valid, rows=batch.rows[images], origins=batch.origins[images], **own)
