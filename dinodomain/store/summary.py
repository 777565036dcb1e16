"""Statistics of a whole store per channel, from a fixed sample of its training pixels.

Held-out chunks are left out before any pixel is read, which per-source statistics (they see every pixel of a scene) could not do.

Of a mix every store is sampled as it would be alone, and each of its n sampled values of a channel weighs share / n: mean, standard
deviation and percentiles are those of pixels drawn with the mix's shares, however large its stores are. A channel that some stores lack is
weighted among those that have it. A percentile is the smallest sampled value at or below which that much of the weight lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dinodomain.errors import UserError
from dinodomain.store.place import shown

if TYPE_CHECKING:
    from dinodomain.store.read import Store

_CHUNKS, _PIXELS = 512, 8192
"""At most so many chunks are read, and so many pixels of each are used: about 4 million values per channel."""
_TOGETHER = 16
"""Chunks that are asked for at a time, where they lie on a server."""


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
    found = _weighted(store) if len(store.shares) > 1 else {name: _summary(values) for name, values in sampled(store).items()}
    if not found:
        raise UserError(shown(store.location), "no valid pixels outside the audit holdout", remedy="add sources to the store")
    return found


def _weighted(store: Store) -> dict[str, ChannelSummary]:
    """Over the stores of a mix."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for number, share in enumerate(store.shares):
        for name, values in sampled(store, member=number).items():
            parts.setdefault(name, []).append((values, np.full(len(values), share / len(values))))
    return {name: _weighted_summary(*map(np.concatenate, zip(*pairs))) for name, pairs in parts.items()}


def _weighted_summary(values: np.ndarray, weights: np.ndarray) -> ChannelSummary:
    order = np.argsort(values, kind="stable")
    mean = float(np.average(values, weights=weights))
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.array([0.005, 0.995]) * reached[-1])
    low, high = values[order[np.minimum(places, len(values) - 1)]].tolist()
    return ChannelSummary(mean=mean, std=float(np.sqrt(np.average((values - mean) ** 2, weights=weights))), low=low, high=high)


def sampled(store: Store, *, member: int | None = None) -> dict[str, np.ndarray]:
    """The sample itself: float64 physical values of every channel that has any, from chunks that are trained on.

    Args:
        store: An opened store.
        member: Only from this store of a mix; None for all rows alike.
    """
    values: dict[str, list[np.ndarray]] = {}
    chosen = _chosen(store, member)
    while group := list(itertools.islice(chosen, _TOGETHER)):
        for (row, _), pixels in zip(group, _valid_pixels(store, group)):
            facts = store.row(row)
            for name, channel, gain, shift in zip(facts["channels"], pixels, facts["scale"], facts["offset"]):
                values.setdefault(name, []).append(channel.astype(np.float64) * gain + shift)
    return {name: np.concatenate(parts) for name, parts in values.items() if sum(part.size for part in parts)}


def _chosen(store: Store, member: int | None) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Rows and first pixels of the chunks to read: evenly spread over the training chunks in table order."""
    rows = store.chunks["row"].to_numpy()
    kept = ~store.chunks["holdout"].to_numpy() & ~store.column("holdout")[rows] & (store.chunks["valid_fraction"].to_numpy() > 0)
    usable = np.flatnonzero(kept if member is None else kept & (store.member[rows] == member))
    if not len(usable):
        return
    picks = usable[np.unique(np.linspace(0, len(usable) - 1, min(len(usable), _CHUNKS)).astype(np.int64))]
    for row, cell in zip(rows[picks].tolist(), store.chunks["chunk"].take(picks).to_pylist()):
        chunk = store.chunk_shape(row)
        whole = store.row(row)["layout"] == "whole"
        yield row, (0,) * len(chunk) if whole else tuple(i * side for i, side in zip(cell, chunk))


def _valid_pixels(store: Store, chosen: Sequence[tuple[int, tuple[int, ...]]]) -> Iterator[np.ndarray]:
    """[C, n] stored values of at most ``_PIXELS`` valid pixels inside the real image, for each of some chunks that are read together."""
    extents = [store.chunk_shape(row) for row, _ in chosen]
    pixels = [
        np.empty((len(facts["channels"]), *extent), facts["dtype"]) for facts, extent in zip((store.row(row) for row, _ in chosen), extents)
    ]
    bits = [np.zeros(extent, np.uint8) for extent in extents]
    fields = [(store.valid_address(row, start), out) for (row, start), out in zip(chosen, bits)]
    boxes = [(store.address(row, start), out) for (row, start), out in zip(chosen, pixels)]
    store.arrays.read_many([*boxes, *((address, out) for address, out in fields if address is not None)])
    for (row, start), extent, image, field in zip(chosen, extents, pixels, bits):
        inside = tuple(slice(low, high) for low, high in store.valid_box(row, start, extent).tolist())
        values = image[(slice(None), *inside)][:, field[inside] == 0]
        # An odd stride shares no factor with the usual even row lengths.
        yield values[:, :: (-(-values.shape[1] // _PIXELS)) | 1]


def _summary(values: np.ndarray) -> ChannelSummary:
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelSummary(mean=float(values.mean()), std=float(values.std()), low=float(low), high=float(high))
