"""Walks a store once and gives each tile's features: by a frozen backbone, or by shrinking the pixels themselves.

A tile is shrunk or enlarged so that its longest side is the backbone's pretraining size, the size of the global crops it was trained
on; proportions stay to the nearest patch. Padding and pixels without data are left out of pooled features.
Shapes: B tiles, C channels, D axes, P tokens, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.domain import Domain
from dinodomain.embed.inputs import fit_channels, network_input
from dinodomain.embed.table import TokenTable
from dinodomain.errors import Problems, UserError
from dinodomain.loader import LoaderPlan, find_tiles, sweep
from dinodomain.model import Backbone, Pooling
from dinodomain.store import Store
from dinodomain.types import Acquisition, Batch, Features, FeatureTable, Normalisation
from dinodomain.views import resolve_normalisation, to_network

Holdout = Literal["exclude", "only", "include"]

COLUMNS = ("source_id", "split", "acquired", "lon", "lat")
"""Columns of the index that every table carries along, beside ``holdout``."""

SMALL = {2: 16, 3: 8}
"""Side of the shrunk tile whose raw values are the pixel baseline, by number of axes."""


@overload
def embed_store(
    backbone: Backbone, store: Store, domain: Domain, *, batch: int = ..., tokens: Literal[False] = ..., holdout: Holdout = ...,
    pool: Pooling | None = ..., size: int | None = ..., rows: Iterable[int] | None = ..., plan: LoaderPlan | None = ...,
) -> FeatureTable: ...  # fmt: skip
@overload
def embed_store(
    backbone: Backbone, store: Store, domain: Domain, *, batch: int = ..., tokens: Literal[True], holdout: Holdout = ...,
    pool: Pooling | None = ..., size: int | None = ..., rows: Iterable[int] | None = ..., plan: LoaderPlan | None = ...,
) -> tuple[FeatureTable, TokenTable]: ...  # fmt: skip
def embed_store(
    backbone: Backbone,
    store: Store,
    domain: Domain,
    *,
    batch: int = 64,
    tokens: bool = False,
    holdout: Holdout = "include",
    pool: Pooling | None = None,
    size: int | None = None,
    rows: Iterable[int] | None = None,
    plan: LoaderPlan | None = None,
) -> FeatureTable | tuple[FeatureTable, TokenTable]:
    """Features of every eligible tile, in index order.

    Args:
        backbone: Frozen; runs on its own device.
        store: What to embed.
        domain: The domain that made it.
        batch: Tiles at a time.
        tokens: Also return patch tokens.
        holdout: Whether tiles of the audit holdout are taken.
        pool: ``cls+mean``, ``cls`` or ``mean``; None takes the backbone's own.
        size: Longest side given to the network, pixels; None takes the pretraining size.
        rows: Rows of the index to embed; None for all.
        plan: Tile side and least valid share; None for the defaults.

    Raises:
        UserError: The store has channels the backbone cannot take, or sizes do not fit its patches.
    """
    backbone = fit_channels(backbone, store, domain)
    kind = pool or backbone.pooling
    kept: dict[str, np.ndarray] = {}

    def encode(tile: Batch) -> np.ndarray:
        sides = sides_for(tuple(tile.pixels.shape[3:]), size or max(backbone.image_size), backbone.patch)
        shown = network_input(backbone, tile, domain, sides)
        features = encode_frozen(backbone, shown.pixels, shown.about)
        if tokens:
            hashes = store.column("content_hash")[tile.rows.cpu().numpy()]
            kept.update(_named_tokens(features, hashes, tile.tile_ids.tolist()))
        return pool_features(features, token_weights(shown.valid, backbone.patch), kind).cpu().numpy()

    chosen = _plan(plan, batch)
    table = _collect(store, chosen, encode, holdout=holdout, rows=rows, device=backbone.device)
    return (table, TokenTable(tokens=kept)) if tokens else table


def pixel_features(
    store: Store,
    domain: Domain,
    *,
    side: int | None = None,
    normalisation: Normalisation | None = None,
    batch: int = 64,
    holdout: Holdout = "include",
    rows: Iterable[int] | None = None,
    plan: LoaderPlan | None = None,
) -> FeatureTable:
    """The honest baseline without a network: area means of the pixels in the network's range, flattened.

    Args:
        store: What to describe.
        domain: The domain that made it.
        side: Cells per axis; None takes 16 (2-D) or 8 (3-D).
        normalisation: Numbers of the network's range, best the backbone's; None takes the domain's default.
        batch: Tiles at a time.
        holdout: Whether tiles of the audit holdout are taken.
        rows: Rows of the index to take; None for all.
        plan: Tile side and least valid share; None for the defaults.

    Returns:
        Rows of [C * side^D] float32, channel first; a cell without any valid pixel is 0, the middle of the network's range.
    """
    cells = side or SMALL[store.ndim]
    chosen = _plan(plan, batch)

    def shrink(tile: Batch) -> np.ndarray:
        numbers = normalisation or _default_normalisation(store, domain, tile.channels)
        pixels, valid = to_network(tile, to_float=domain.to_float, normalisation=numbers, size=None)
        return area_mean(pixels, valid, cells).flatten(1).cpu().numpy()

    return _collect(store, chosen, shrink, holdout=holdout, rows=rows, device=torch.device("cpu"))


def sides_for(extent: tuple[int, ...], longest: int, patch: int | tuple[int, ...]) -> tuple[int, ...]:
    """Output sides for a tile: the longest becomes ``longest``, the others keep the proportion, each a multiple of the patch.

    Args:
        extent: Of the tile, pixels.
        longest: Longest side of the output, pixels.
        patch: Sides of a patch in pixels, one for each axis or one for all.

    Raises:
        UserError: ``longest`` is not a multiple of the patch along the longest axis.
    """
    own = (patch,) * len(extent) if isinstance(patch, int) else patch
    step = math.lcm(*(one for side, one in zip(extent, own, strict=True) if side == max(extent)))
    if longest % step:
        near = max(step, round(longest / step) * step)
        raise UserError("embed.size", f"is {longest}", allowed=f"a multiple of the patch {step}, for example {near}")
    return tuple(max(one, round(side * longest / max(extent) / one) * one) for side, one in zip(extent, own, strict=True))


@torch.no_grad()
def encode_frozen(backbone: Backbone, pixels: Tensor, about: Acquisition | None = None) -> Features:
    """Tokens after the final norm, without gradients and without stochastic depth; the backbone's mode is left as it was."""
    training = backbone.training
    backbone.eval()
    try:
        return backbone.encode(pixels.to(backbone.device), about=about)
    finally:
        backbone.train(training)


def token_weights(valid: Tensor, patch: int | tuple[int, ...]) -> Tensor:
    """[B, *size] bool to [B, P] float32 share of valid pixels under each patch."""
    pooled = F.avg_pool2d if valid.ndim == 3 else F.avg_pool3d
    return pooled(valid[:, None].float(), patch).flatten(1)


def pool_features(features: Features, weights: Tensor, pool: Pooling) -> Tensor:
    """[B, E or 2 E] float32; patches count by their share of valid pixels, and equally where a tile has none.

    Args:
        features: Of B tiles.
        weights: [B, P].
        pool: How.
    """
    weights = weights.to(features.patches)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    mean = (features.patches * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
    return {"cls": features.cls, "mean": mean, "cls+mean": torch.cat([features.cls, mean], dim=1)}[pool].float()


def area_mean(pixels: Tensor, valid: Tensor, cells: int) -> Tensor:
    """Mean of the valid pixels of each cell, [B, C, cells, ...]; 0 where a cell has none.

    Args:
        pixels: [B, C, *size], 0 where invalid.
        valid: [B, *size] bool.
        cells: Per axis.
    """
    pool = F.adaptive_avg_pool2d if pixels.ndim == 4 else F.adaptive_avg_pool3d
    share = pool(valid[:, None].float(), cells)
    return pool(pixels, cells) / share.clamp_min(1e-6)


def check_loader(plan: LoaderPlan) -> None:
    """Refuses keys that draw samples: here every tile is read once, where it lies.

    Raises:
        Problems: One entry per key.
    """
    plain = LoaderPlan()
    changed = [name for name in ("aligned", "draws", "pairs", "weights") if getattr(plan, name) != getattr(plain, name)]
    problems = [
        UserError(f"loader.{name}", f"is {getattr(plan, name)} where every tile is read once", allowed=str(getattr(plain, name)))
        for name in changed
    ]
    if problems:
        raise Problems(problems)


def _plan(plan: LoaderPlan | None, batch: int) -> LoaderPlan:
    held = plan or LoaderPlan()
    check_loader(held)
    return replace(held, batch=batch)


@dataclass(frozen=True, slots=True)
class _Part:
    rows: np.ndarray
    origins: np.ndarray
    tile_ids: np.ndarray
    features: np.ndarray


def _collect(
    store: Store,
    plan: LoaderPlan,
    describe: Callable[[Batch], np.ndarray],
    *,
    holdout: Holdout,
    rows: Iterable[int] | None,
    device: torch.device,
) -> FeatureTable:
    """Runs over all tiles and puts them into index order, whatever buckets they came in."""
    with closing(sweep(store, plan, rows=rows, holdout=holdout, device=device)) as batches:
        parts = list(_parts(batches, describe))
    if not parts:
        raise UserError("rows", "choose no eligible tile of the store")
    row, origin, ids, features = (np.concatenate([getattr(part, name) for part in parts]) for name in _Part.__slots__)
    order = np.lexsort((*origin.T[::-1], row))
    return _table(store, plan, row[order], origin[order], ids[order], features[order])


def _parts(batches: Iterator[Batch], describe: Callable[[Batch], np.ndarray]) -> Iterator[_Part]:
    for batch in batches:
        found = describe(batch)
        yield _Part(batch.rows.cpu().numpy(), batch.origins.cpu().numpy(), batch.tile_ids.cpu().numpy(), found)


def _table(store: Store, plan: LoaderPlan, rows: np.ndarray, origins: np.ndarray, ids: np.ndarray, features: np.ndarray) -> FeatureTable:
    tiles = find_tiles(store, plan, holdout="include")
    place = {(row, *start): index for index, (row, start) in enumerate(zip(tiles.rows.tolist(), tiles.starts.tolist()))}
    where = np.array([place[row, *start] for row, start in zip(rows.tolist(), origins.tolist())])
    held = _held_out(store, plan)
    columns = {name: store.column(name)[rows] for name in COLUMNS}
    columns["holdout"] = np.array([(row, *start) in held for row, start in zip(rows.tolist(), origins.tolist())])
    columns["valid_fraction"] = tiles.valid_fraction[where].astype(np.float64)
    return FeatureTable(
        features=features.astype(np.float32), content_hash=store.column("content_hash")[rows], tile_ids=ids, rows=rows,
        units=tiles.units[where], columns=columns,
    )  # fmt: skip


def _held_out(store: Store, plan: LoaderPlan) -> set[tuple[int, ...]]:
    """(row, *start) of the tiles that touch the audit holdout."""
    flags = store.chunks["holdout"].to_numpy(zero_copy_only=False)
    if not (flags.any() or store.column("holdout").any()):
        return set()
    tiles = find_tiles(store, LoaderPlan(tile=plan.tile, min_valid=0.0), holdout="only")
    return {(row, *start) for row, start in zip(tiles.rows.tolist(), tiles.starts.tolist())}


def _named_tokens(features: Features, hashes: np.ndarray, ids: list[int]) -> dict[str, np.ndarray]:
    grids = features.patches.reshape(len(hashes), *features.grid, -1).half().cpu().numpy()
    return {TokenTable.key(str(content), tile): grid for content, tile, grid in zip(hashes, ids, grids)}


def _default_normalisation(store: Store, domain: Domain, channels: tuple[str, ...]) -> Normalisation:
    return resolve_normalisation("auto", domain.view_policy(), domain.channels, channels, store.stats)
