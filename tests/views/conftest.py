"""Made-up batches; the maker is a fixture, because tests are never imported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dinodomain.domain import (
    BiasField,
    CoarserPixels,
    DropChannels,
    Gain,
    Haze,
    Jitter,
    Noise,
    Rician,
    Shadow,
    Solarise,
    Speckle,
    SubsetChannels,
    Thickness,
    ValueNoise,
    ViewPolicy,
    Window,
)
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewParams, ViewsPlan, draw
from dinodomain.views.normalise import known_of

HIGH = {torch.uint8: 255, torch.uint16: 40000, torch.int16: 3000, torch.float32: 1}


def _make_batch(
    count: int = 3,
    channels: int = 2,
    extent: tuple[int, ...] = (70, 80),
    dtype: torch.dtype = torch.int16,
    *,
    valid: torch.Tensor | None = None,
    seed: int = 0,
    spacing: tuple[float, ...] | None = None,
) -> Batch:
    source = torch.Generator().manual_seed(seed)
    pixels = (torch.rand(count, 1, channels, *extent, generator=source) * HIGH[dtype]).to(dtype)
    ones, ids = torch.ones(count, channels), torch.arange(count)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=HIGH[dtype] * ones,
        spacing=torch.tensor(spacing or (1.0,) * len(extent)).expand(count, -1),
        valid_box=torch.tensor([[0, side] for side in extent]).expand(count, -1, -1),
    )  # fmt: skip
    return Batch(
        pixels=pixels, valid=valid, info=info, channels=tuple(f"band {i}" for i in range(channels)),
        tile_ids=ids * 7919 - 5,
        epochs=0 * ids, draws=0 * ids, rows=ids, origins=torch.zeros(count, len(extent), dtype=torch.int64), slots=ids,
    )  # fmt: skip


def _draw_for(batch: Batch, policy: ViewPolicy, plan: ViewsPlan, seed: int = 1) -> ViewParams:
    return draw(
        policy, plan, seed=seed, tile_ids=batch.tile_ids, epochs=batch.epochs, draws=batch.draws, valid_box=batch.info.valid_box,
        spacing=batch.info.spacing, sources=range(len(batch.channels)), known=known_of(batch),
    )  # fmt: skip


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return _make_batch


@pytest.fixture
def draw_for() -> Callable[..., ViewParams]:
    return _draw_for


@pytest.fixture
def normalisation() -> Callable[[Batch], Normalisation]:
    """The range of the made-up dtype becomes 0..1."""

    def make(batch: Batch) -> Normalisation:
        count, high = len(batch.channels), float(HIGH[batch.pixels.dtype])
        return Normalisation(
            mode="domain", channels=batch.channels, low=(0.0,) * count, high=(high,) * count, mean=(0.4,) * count, std=(0.25,) * count
        )

    return make


@pytest.fixture
def policy() -> Callable[[int], ViewPolicy]:
    """Every operation, at high rates."""

    def make(ndim: int) -> ViewPolicy:
        axes = ("IS", "AP", "LR")[-ndim:]
        return ViewPolicy(
            axes=axes, flip=dict.fromkeys(axes, 0.5), quarter_turns=True, jitter=Jitter(per_channel=True),
            solarise=Solarise(probability=0.5), noise=Noise(probability=0.5), gain=Gain(), window=Window(),
            drop_channels=DropChannels(share=(0.2, 0.2)),
        )  # fmt: skip

    return make


@pytest.fixture
def every_operation() -> Callable[[int], ViewPolicy]:
    """Every operation on pixels there is, each for half of the views; no instrument has them all."""

    def make(ndim: int) -> ViewPolicy:
        axes = ("IS", "AP", "LR")[-ndim:]
        return ViewPolicy(
            axes=axes, flip=dict.fromkeys(axes, 0.5), quarter_turns=True, thickness=Thickness(probability=0.5, axis=axes[0]),
            coarser_pixels=CoarserPixels(probability=0.5), bias_field=BiasField(probability=0.5), shadow=Shadow(probability=0.5),
            speckle=Speckle(probability=0.5, scale="power"), rician=Rician(probability=0.5),
            value_noise=ValueNoise(probability=0.5, std=(0.0, 0.03)),
            gain=Gain(probability=0.5, offset=(-0.05, 0.05)), haze=Haze(probability=0.5), window=Window(probability=0.5),
            jitter=Jitter(probability=0.5, per_channel=True), noise=Noise(probability=0.5, shot=(0.0, 0.05)),
            solarise=Solarise(probability=0.5), drop_channels=DropChannels(probability=0.5, share=(0.2, 0.2)),
            subset_channels=SubsetChannels(probability=0.5), wavelengths_nm={"band 0": 443.0, "band 1": 1610.0},
        )  # fmt: skip

    return make
