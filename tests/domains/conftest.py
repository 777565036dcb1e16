"""Many draws of one record under a policy, in physical units or those of the unit range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dinodomain.domain import Domain, ViewPolicy
from dinodomain.policy import operations
from dinodomain.types import Batch, Record, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, render
from dinodomain.views.normalise import resolve_normalisation

DRAWS, CHUNK = 64, 16
SIZE = {2: 64, 3: 24}
TILE = 256  # the middle of larger records


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One global view of each draw.

    Attributes:
        unit: [64, K, *S] unit range; noise may leave it.
        physical: [64, K, *S] in the channels' units.
        network: [64, K, *S] as the network sees it.
        channels: K names.
        flips: [64, D] bool.
        turned: [64] bool, whether the last two axes were exchanged.
    """

    unit: np.ndarray
    physical: np.ndarray
    network: np.ndarray
    channels: tuple[str, ...]
    flips: np.ndarray
    turned: np.ndarray


def _strong(policy: ViewPolicy) -> ViewPolicy:
    return replace(policy, **{name: replace(operation, probability=1.0) for name, operation in operations(policy).items()})


def _batch(record: Record, pixels: np.ndarray, draws: range) -> Batch:
    count, channels = len(draws), len(record.channels)
    scaled = (image.astype(float) * scale + offset for image, scale, offset in zip(pixels, record.scale, record.offset))
    measured = [np.percentile(image, (0.5, 99.5)) for image in scaled]

    def rows(values) -> torch.Tensor:
        return torch.tensor([list(values)], dtype=torch.float32).expand(count, -1)

    ids = torch.zeros(count, dtype=torch.int64)
    info = TileInfo(
        scale=rows(record.scale), offset=rows(record.offset), nodata=torch.full((count, channels), torch.nan),
        low=rows(low for low, _ in measured), high=rows(high for _, high in measured), spacing=rows(record.spacing),
        valid_box=torch.tensor([[0, side] for side in pixels.shape[1:]]).expand(count, -1, -1),
    )  # fmt: skip
    tile = torch.from_numpy(np.ascontiguousarray(pixels))[None, None].expand(count, 1, *pixels.shape)
    return Batch(
        pixels=tile.contiguous(), valid=None, info=info, channels=record.channels, tile_ids=ids + 7919, epochs=ids,
        draws=torch.tensor(list(draws)), rows=ids, origins=torch.zeros(count, len(pixels.shape) - 1, dtype=torch.int64), slots=ids,
    )  # fmt: skip


def _draw_many(
    record: Record,
    domain: Domain,
    policy: ViewPolicy,
    *,
    windows: tuple[str, ...] = (),
    mode: str = "domain",
    scale: tuple[float, float] = (0.32, 1.0),
) -> Drawn:
    middle = tuple(slice(max(0, (side - TILE) // 2), min(side, (side + TILE) // 2)) for side in record.shape[1:])
    pixels = record.read(middle)
    assert np.isfinite(pixels).all(), "choose a record without nodata"
    normalisation = resolve_normalisation(mode, policy, domain.channels, record.channels, None, windows)
    plan = ViewsPlan(global_size=SIZE[domain.ndim], num_global=1, num_local=0, filter="linear", global_scale=scale)
    network, numbers, bounds = [], [], []
    for start in range(0, DRAWS, CHUNK):
        batch = _batch(record, pixels, range(start, start + CHUNK))
        params = draw_batch(policy, plan, batch, seed=3, normalisation=normalisation)
        views = render(batch, params, to_float=domain.to_float, normalisation=normalisation, patch_size=8)
        network.append(views.groups[0].pixels.numpy().astype(np.float64))
        numbers.append((params.groups[0].flips.numpy(), params.groups[0].transpose.numpy()))
        bounds = [batch.info.low[0].numpy(), batch.info.high[0].numpy()]
    if mode != "source":
        bounds = [np.array(normalisation.low), np.array(normalisation.high)]
    seen = np.concatenate(network)
    shape = (1, -1, *(1,) * (seen.ndim - 2))
    mean, std, low, high = (np.reshape(column, shape) for column in (normalisation.mean, normalisation.std, *bounds))
    unit = seen * std + mean
    flips, turned = (np.concatenate(column) for column in zip(*numbers))
    return Drawn(
        unit=unit, physical=unit * (high - low) + low, network=seen, channels=normalisation.channels, flips=flips, turned=turned
    )  # fmt: skip


@pytest.fixture(scope="session")
def draw_many() -> Callable[..., Drawn]:
    """64 draws of a record: ``draw_many(record, domain, policy)``; equal places for policies that differ in intensity only."""
    return _draw_many


@pytest.fixture(scope="session")
def strong() -> Callable[[ViewPolicy], ViewPolicy]:
    """The policy with every operation acting in every view."""
    return _strong
