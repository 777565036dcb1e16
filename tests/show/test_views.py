"""The figure of tiles and views is drawn for planes and volumes, and equal views give equal bytes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinodomain.domain import ViewPolicy, linear_to_unit
from dinodomain.show.views import draw_views
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw, render


def made_up(channels: int, extent: tuple[int, ...]) -> tuple[Batch, Normalisation]:
    ones, ids = torch.ones(2, channels), torch.arange(2)
    torch.manual_seed(0)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=255 * ones, spacing=torch.ones(2, len(extent)),
        valid_box=torch.tensor([[0, side] for side in extent]).expand(2, -1, -1),
    )  # fmt: skip
    batch = Batch(
        pixels=torch.randint(0, 255, (2, 1, channels, *extent), dtype=torch.uint8), valid=None, info=info,
        channels=tuple("abcd"[:channels]), tile_ids=ids, epochs=0 * ids, draws=0 * ids, rows=ids,
        origins=torch.zeros(2, len(extent), dtype=torch.int64), slots=ids,
    )  # fmt: skip
    norm = Normalisation(
        mode="domain",
        channels=batch.channels,
        low=(0.0,) * channels,
        high=(255.0,) * channels,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    return batch, norm


@pytest.mark.parametrize(("channels", "extent", "bands"), [(1, (40, 50), ()), (4, (40, 50), ("d", "b", "a")), (1, (20, 24, 28), ())])
def test_figure_has_a_row_per_sample_and_equal_bytes(tmp_path: Path, channels, extent, bands):
    batch, norm = made_up(channels, extent)
    plan = ViewsPlan(global_size=16, local_size=8, num_local=1)
    policy = ViewPolicy(axes=("z", "y", "x")[-len(extent) :], quarter_turns=True)
    params = draw(
        policy, plan, seed=0, tile_ids=batch.tile_ids, epochs=batch.epochs, draws=batch.draws,
        valid_box=batch.info.valid_box, spacing=batch.info.spacing, sources=range(len(batch.channels)),
    )  # fmt: skip
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    shared = {"to_float": linear_to_unit, "normalisation": norm, "bands": bands, "samples": 2 if bands else 1}
    file = draw_views(batch, views, tmp_path / "a.png", **shared)
    if bands:
        assert draw_views(batch, views, tmp_path / "b.png", **shared).read_bytes() == file.read_bytes()
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert picture.shape[1] > picture.shape[0]
    assert (np.abs(picture.astype(int) - (255, 127, 14)).sum(axis=-1) < 30).any()  # boxes of global views


def two_dates(tmp_path: Path, plan: ViewsPlan, name: str = "a.png", **keys: object) -> np.ndarray:
    """The picture [Y, X, 3] of two samples of two dates, 1.9 inches of 100 dots a column."""
    one, norm = made_up(1, (40, 50))
    pair = {item.name: getattr(one.info, item.name).repeat_interleave(2, dim=0) for item in fields(TileInfo)}
    batch = replace(one, pixels=torch.cat([one.pixels, 255 - one.pixels], dim=1), info=TileInfo(**pair), rows=torch.arange(4))
    params = draw(
        ViewPolicy(axes=("y", "x")), plan, seed=0, tile_ids=batch.tile_ids, epochs=batch.epochs, draws=batch.draws,
        valid_box=batch.info.valid_box, spacing=batch.info.spacing, sources=range(len(batch.channels)),
    )  # fmt: skip
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    return np.asarray(
        Image.open(draw_views(batch, views, tmp_path / name, to_float=linear_to_unit, normalisation=norm, **keys)).convert("RGB")
    )


def test_every_box_is_drawn_on_the_date_it_was_cut_from(tmp_path: Path):
    both = two_dates(tmp_path, ViewsPlan(global_size=16, num_global=2, num_local=0))
    first = two_dates(tmp_path, ViewsPlan(global_size=16, num_global=1, num_local=0))
    for picture, columns, boxed in ((both, 4, [True, True]), (first, 3, [True, False])):
        assert picture.shape[1] == columns * 190
        tiles = [picture[45:, 190 * date : 190 * (date + 1)] for date in range(2)]  # below the heading
        orange = [bool((np.abs(tile.astype(int) - (255, 127, 14)).sum(axis=-1) < 30).any()) for tile in tiles]
        assert orange == boxed


def test_dates_are_named_by_their_labels_or_numbers(tmp_path: Path):
    plan = ViewsPlan(global_size=16, num_global=1, num_local=0)
    labels = ["2020-03-01", "2021-08-30", "2020-03-01", "2021-08-30"]
    pictures = [two_dates(tmp_path, plan, f"{i}.png", labels=keys) for i, keys in enumerate((labels, labels, [], [""] * 4))]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[2], pictures[3]), "an image without a date is told by its number"
