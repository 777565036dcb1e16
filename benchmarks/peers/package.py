"""This package, from a batch as its loader gives it."""

from __future__ import annotations

import torch

from dinodomain.domain import linear_to_unit
from dinodomain.policy import ViewPolicy
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, render
from peers.common import Images, Pipeline


def batch_of(images: Images) -> tuple[Batch, Normalisation]:
    """The images as tiles whose every pixel is known, and the normalisation of a run."""
    count, channels, *extent = images.pixels.shape
    names = tuple(f"band {i}" for i in range(channels))
    ones, ids = torch.ones(count, channels), torch.arange(count)
    box = torch.tensor([[0, side] for side in extent]).expand(count, -1, -1)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=images.low * ones, high=images.high * ones,
        spacing=torch.ones(count, len(extent)), valid_box=box,
    )  # fmt: skip
    batch = Batch(
        pixels=images.pixels[:, None], valid=None, info=info, channels=names, tile_ids=ids, epochs=0 * ids, draws=0 * ids, rows=ids,
        origins=torch.zeros(count, len(extent), dtype=torch.int64), slots=ids,
    )  # fmt: skip
    same = {name: (value,) * channels for name, value in (("low", images.low), ("high", images.high), ("mean", 0.5), ("std", 0.25))}
    return batch, Normalisation(mode="domain", channels=names, **same)


def ours(images: Images, policy: ViewPolicy, plan: ViewsPlan) -> Pipeline:
    """Draws and renders all views of the batch."""
    batch, normalisation = batch_of(images)

    def run(turn: int) -> int:
        params = draw_batch(policy, plan, batch, seed=turn, normalisation=normalisation)
        render(batch, params, to_float=linear_to_unit, normalisation=normalisation, patch_size=8)
        return len(images.pixels)

    return run
