"""Statistics of a whole store per channel, from a fixed sample of its training pixels.

Held-out chunks are left out before any pixel is read, which per-source statistics (they see every pixel of a scene) could not do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store.place import shown

if TYPE_CHECKING:
    from dinodomain.store.read import Store

_CHUNKS, _PIXELS = 512, 8192
"""At most so many chunks are read, and so many pixels of each are used: about 4 million values per channel."""


class ChannelSummary(NamedTuple):
    """Physical statistics of one channel.

    Attributes:
        mean: Mean.
        std: Standard deviation.
        low: 0.5 percentile.
        high: 99.5 percentile.
    """

    mean: float
    std: float
    low: float
    high: float


def summarise(store: Store) -> Mapping[str, ChannelSummary]:
    """Pools the sampled pixels of all sources, each brought to physical units first.

    Raises:
        UserError: Every chunk is held out or empty.
    """
    found = {name: _summary(values) for name, values in sampled(store).items()}
    if not found:
        raise UserError(shown(store.location), "no valid pixels outside the audit holdout", remedy="add sources to the store")
    return found


def sampled(store: Store) -> dict[str, np.ndarray]:
    """The sample itself: float64 physical values of every channel that has any, from chunks that are trained on."""
    values: dict[str, list[np.ndarray]] = {}
    for row, start in _chosen(store):
        facts = store.row(row)
        pixels = _valid_pixels(store, row, start, facts["dtype"])
        for name, channel, gain, shift in zip(facts["channels"], pixels, facts["scale"], facts["offset"]):
            values.setdefault(name, []).append(channel.astype(np.float64) * gain + shift)
    return {name: np.concatenate(parts) for name, parts in values.items() if sum(part.size for part in parts)}


def _chosen(store: Store) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Rows and first pixels of the chunks to read: evenly spread over the training chunks in table order."""
    rows = store.chunks["row"].to_numpy()
    kept = ~store.chunks["holdout"].to_numpy() & ~store.column("holdout")[rows] & (store.chunks["valid_fraction"].to_numpy() > 0)
    usable = np.flatnonzero(kept)
    picks = usable[np.unique(np.linspace(0, len(usable) - 1, min(len(usable), _CHUNKS)).astype(np.int64))]
    for row, cell in zip(rows[picks].tolist(), store.chunks["chunk"].take(picks).to_pylist()):
        chunk = store.chunk_shape(row)
        whole = store.row(row)["layout"] == "whole"
        yield row, (0,) * len(chunk) if whole else tuple(i * side for i, side in zip(cell, chunk))


def _valid_pixels(store: Store, row: int, start: tuple[int, ...], dtype: str) -> np.ndarray:
    """[C, n] stored values of at most ``_PIXELS`` valid pixels inside the real image."""
    extent, box = store.chunk_shape(row), store.valid_box(row, start, store.chunk_shape(row))
    pixels = np.empty((len(store.row(row)["channels"]), *extent), dtype=dtype)
    bits = np.empty(extent, dtype=np.uint8)
    store.read_box(row, start, pixels)
    store.read_valid(row, start, bits)
    inside = tuple(slice(low, high) for low, high in box.tolist())
    values = pixels[(slice(None), *inside)][:, bits[inside] == 0]
    # An odd stride shares no factor with the usual even row lengths.
    return values[:, :: (-(-values.shape[1] // _PIXELS)) | 1]


def _summary(values: np.ndarray) -> ChannelSummary:
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelSummary(mean=float(values.mean()), std=float(values.std()), low=float(low), high=float(high))
