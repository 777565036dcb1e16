"""Features of a store by a checkpoint, by the same network untrained, and by plain pixels: three aligned tables.

Fits and scores nothing. n tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dinodomain.checkpoint import load_backbone, origin
from dinodomain.domain import Domain, find_domain
from dinodomain.embed import embed_store, fit_channels, narrowed, pixel_features
from dinodomain.errors import UserError
from dinodomain.lineage import Json
from dinodomain.model import Backbone, random_like
from dinodomain.parallel import choose_device
from dinodomain.store import Store, open_store
from dinodomain.types import FeatureTable, Labels, Normalisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What was loaded, ready to describe tiles.

    Attributes:
        backbone: The checkpoint's.
        untrained: The same network with fresh weights.
        store: The opened store.
        domain: The domain that made it.
        origin: Lineage record of the checkpoint.
    """

    backbone: Backbone
    untrained: Backbone
    store: Store
    domain: Domain
    origin: Mapping[str, Json]

    def describe(self, *, domain: Domain | None = None, **keys: Any) -> dict[str, FeatureTable]:
        """``pretrained``, ``random_init`` and ``pixels`` of the same tiles in the same order.

        Args:
            domain: Reads the pixels instead of the store's own, for example altered ones.
            **keys: ``batch``, ``holdout`` and ``rows`` of ``embed.embed_store``.
        """
        domain = domain or self.domain
        tables = {
            "pretrained": embed_store(self.backbone, self.store, domain, **keys),
            "random_init": embed_store(self.untrained, self.store, domain, **keys),
            "pixels": pixel_features(self.store, domain, normalisation=_pixel_range(self.backbone, self.store), **keys),
        }
        ids = tables["pretrained"].tile_ids
        assert all(np.array_equal(table.tile_ids, ids) for table in tables.values()), "one walk, one order"
        return tables


def load_frozen(checkpoint: str, store: str, *, device: str, key: str, seed: int, domain: Domain | None = None) -> Frozen:
    """Opens checkpoint and store.

    Args:
        checkpoint: Run folder, checkpoint or exported file.
        store: Folder of the store.
        device: Where the networks run.
        key: The user's key for ``device``, for messages.
        seed: Decides the untrained weights.
        domain: The domain object; None finds the one that made the store.

    Raises:
        UserError: Either cannot be used.
    """
    where, _ = choose_device(device, key=key)
    opened = open_store(store)
    domain = domain if domain is not None else find_domain(opened.domain)
    backbone = fit_channels(load_backbone(checkpoint).to(where), opened, domain)
    return Frozen(
        backbone=backbone,
        untrained=random_like(backbone, seed),
        store=opened,
        domain=domain,
        origin=origin(checkpoint),
    )


def _pixel_range(backbone: Backbone, store: Store) -> Normalisation:
    """The network's range of the channels that a store has.

    Raises:
        UserError: Its sources have different channels: a network may take them, but rows of plain pixels would differ in length.
    """
    lists = {tuple(names) for names in store.column("channels")}
    if len({frozenset(names) for names in lists}) > 1:
        told = "; ".join(", ".join(names) for names in sorted(lists))
        raise UserError("store", f"has sources with different channels ({told}), which plain pixels cannot be compared by",
                        remedy="choose one list with ingest.bands")  # fmt: skip
    return narrowed(backbone, next(iter(lists)))


def column_of(labels: Labels, rows: np.ndarray, values: Sequence[Any] | np.ndarray, missing: Any = "") -> np.ndarray:
    """Brings a column of joined labels to the tiles of a table: [n], ``missing`` where a tile's source has no label.

    Args:
        labels: Joined labels; ``labels.rows`` is sorted.
        rows: [n] row of the index of each tile.
        values: One value per joined row.
        missing: What stands for none.
    """
    if not len(labels.rows):
        return np.full(len(rows), missing, dtype=object)
    place = np.minimum(np.searchsorted(labels.rows, rows), len(labels.rows) - 1)
    found = np.asarray(values, dtype=object)[place]
    return np.where(labels.rows[place] == rows, found, missing)


def group_column(labels: Labels, group: str, place: str) -> Sequence[str]:
    """The column that names units.

    Raises:
        UserError: There is none of that name.
    """
    if group not in labels.columns:
        raise UserError("group", f"{place} has no column {group!r}", allowed=", ".join(labels.columns))
    return labels.columns[group]


def own_units(units: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Unit of each tile as text; a source without one stands for itself, which is all that is known of it."""
    text = units.astype(str)
    return np.where(text == "", np.char.add("source ", rows.astype(str)), text)


def linked_units(tile_rows: np.ndarray, tile_units: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Unit of each labelled source; sources that share a unit (a ground cell at two dates) are one, also by way of a third.

    Args:
        tile_rows: [n] source of each tile.
        tile_units: [n] its unit, "" where unknown: the source then stands for itself.
        rows: [m] labelled sources, sorted.
    """
    ours = np.isin(tile_rows, rows)
    names, unit = np.unique(own_units(tile_units[ours], tile_rows[ours]), return_inverse=True)
    source, size = np.searchsorted(rows, tile_rows[ours]), len(rows) + len(names)
    links = coo_array((np.ones(len(source), np.int8), (source, len(rows) + unit.reshape(-1))), shape=(size, size))
    _, part = connected_components(links, directed=False)
    first = {piece: number for number, piece in reversed(list(enumerate(part[len(rows) :].tolist())))}
    return names[[first[piece] for piece in part[: len(rows)].tolist()]]


def label_units(rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    """[n] unit of each tile for labels that are of whole sources: all tiles of a source share its label, so they are one unit.

    Args:
        rows: [n] source of each tile.
        units: [n] unit of each tile, "" where unknown.
    """
    sources, place = np.unique(rows, return_inverse=True)
    return linked_units(rows, units, sources)[place.reshape(-1)]
