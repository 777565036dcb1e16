"""Several dates of one place: view v is that of date v mod T alone, with that date's own meaning, validity and geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from dinodomain.domain import ViewPolicy, linear_to_unit
from dinodomain.errors import UserError
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, render, to_network
from dinodomain.views.dates import date_of, per_row
from dinodomain.views.reference import reference_view

SMALL = ViewsPlan(global_size=32, local_size=16, num_local=3)
FLAT, DEEP = (70, 80), (24, 28, 32)


def stacked(dates: list[Batch]) -> Batch:
    """One batch of the dates of equal samples."""

    def images(name: str) -> torch.Tensor:
        return torch.stack([getattr(one.info, name) for one in dates], dim=1).flatten(0, 1)

    info = TileInfo(**{item.name: images(item.name) for item in fields(TileInfo)})
    valid = [one.valid for one in dates]
    count = dates[0].pixels.shape[0]
    return replace(
        dates[0], pixels=torch.cat([one.pixels for one in dates], dim=1), info=info,
        valid=None if valid[0] is None else torch.cat(valid, dim=1),
        rows=torch.arange(count * len(dates)), origins=torch.cat([dates[0].origins] * len(dates)),
    )  # fmt: skip


@pytest.fixture
def make_dates(make_batch) -> Callable[..., list[Batch]]:
    """Dates that differ in pixels, validity, scale, offset, range, spacing and valid box."""

    def make(count: int, extent: tuple[int, ...], dtype: torch.dtype, *, holes: bool) -> list[Batch]:
        found = []
        for date in range(count):
            valid = torch.zeros(3, 1, *extent, dtype=torch.uint8) if holes else None
            if valid is not None and date:  # the first date is whole
                valid[:, :, : 10 + 5 * date, ..., : extent[-1] // 2] = 1
            batch = make_batch(3, 2, extent, dtype, valid=valid, seed=date, spacing=(10.0 + date,) * len(extent))
            info, box = batch.info, torch.tensor([[date, side - 2 * date] for side in extent])
            own = replace(info, scale=info.scale * (1 + date), offset=info.offset - 100.0 * date, valid_box=box.expand(3, -1, -1))
            found.append(replace(batch, info=own))
        return found

    return make


def test_entry_by_entry_a_row_has_what_its_image_has():
    values = torch.arange(4 * 3 * 5).reshape(12, 5)  # 4 samples of 3 dates
    found = per_row(values, views=8, samples=4)
    for row in range(32):
        view, sample = divmod(row, 4)
        assert torch.equal(found[row], values[sample * 3 + view % 3])
    assert [date_of(view, 3) for view in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("dates", [2, 3, 6])
@pytest.mark.parametrize(
    ("extent", "dtype", "renderer", "holes"),
    [
        (FLAT, torch.int16, "fastest", False),  # dense products
        (FLAT, torch.float32, "resize", True),
        ((130, 90), torch.uint16, "matmul", True),  # banded
        (DEEP, torch.int16, "fastest", True),
    ],
)
def test_every_view_is_bit_equal_to_that_of_its_date_alone(
    make_dates, draw_for, normalisation, policy, dates, extent, dtype, renderer, holes
):
    alone = make_dates(dates, extent, dtype, holes=holes)
    if dtype == torch.float32:
        alone[-1].pixels[0, 0, 0, :9] = torch.nan
    how = {"to_float": linear_to_unit, "normalisation": normalisation(alone[0]), "patch_size": 8}
    plan = replace(SMALL, renderer=renderer)

    def rendered(batch: Batch):
        return render(batch, draw_for(batch, policy(len(extent)), plan), **how)

    together, singles = rendered(stacked(alone)), [rendered(one) for one in alone]
    for number, group in enumerate(together.groups):
        for view in range(group.num_views):
            rows, single = slice(view * 3, view * 3 + 3), singles[date_of(view, dates)].groups[number]
            for name in ("pixels", "valid", "to_tile", "spacing"):
                assert torch.equal(getattr(group, name)[rows], getattr(single, name)[rows]), (group.name, view, name)
    assert not torch.equal(singles[0].groups[0].pixels, singles[1].groups[0].pixels)


@pytest.mark.parametrize("renderer", ["matmul", "resize"])
def test_renderers_agree_with_the_plain_twin_on_several_dates(make_dates, draw_for, normalisation, policy, renderer):
    batch = stacked(make_dates(3, FLAT, torch.int16, holes=True))
    params = draw_for(batch, policy(2), replace(SMALL, renderer=renderer))
    norm = normalisation(batch)
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    for index, row in ((0, 0), (0, 4), (1, 2), (1, 8)):
        wanted, known = reference_view(batch, params, index, row, to_float=linear_to_unit, normalisation=norm)
        error = np.abs(views.groups[index].pixels[row].numpy() - wanted)
        # A value at the solarisation threshold may fall on either side; all others agree.
        assert np.quantile(error, 0.999) <= 1e-4, (index, row)
        share = known.reshape(*(side for length in known.shape for side in (length // 8, 8))).mean(axis=(1, 3))
        assert np.allclose(views.groups[index].valid[row].numpy(), share.ravel(), atol=1e-6)


def test_boxes_lie_in_the_valid_box_of_their_own_date(make_dates, draw_for, policy):
    batch = stacked(make_dates(2, FLAT, torch.int16, holes=False))
    boxes = batch.info.valid_box.clone()
    boxes[1::2, 0] = torch.tensor([40, 70])  # the second date of each sample: its lower part
    batch = replace(batch, info=replace(batch.info, valid_box=boxes))
    for group in draw_for(batch, policy(2), SMALL).groups:
        for row, box in enumerate(group.boxes):
            allowed = boxes[row % 3 * 2 + date_of(row // 3, 2)]
            assert bool((box[:, 0] >= allowed[:, 0]).all() and (box[:, 1] <= allowed[:, 1]).all())


def test_a_crop_goes_back_to_the_place_in_its_date_that_it_was_cut_from(make_batch, draw_for):
    """Each date holds its rows' and columns' coordinates plus 1000 times its number; a crop must find its own."""
    y, x = torch.meshgrid(torch.arange(70.0), torch.arange(80.0), indexing="ij")
    batch = make_batch(2, 2, FLAT, torch.float32)
    dates = stacked([replace(batch, pixels=(torch.stack([y, x]) + 1000 * date).expand(2, 1, -1, -1, -1)) for date in range(3)])
    policy = ViewPolicy(axes=("y", "x"), flip={"y": 0.5, "x": 0.5}, quarter_turns=True)
    params = draw_for(dates, policy, replace(SMALL, augment=False, filter="linear"))
    plain = Normalisation(mode="domain", channels=batch.channels, low=(0.0,) * 2, high=(1.0,) * 2, mean=(0.0,) * 2, std=(1.0,) * 2)
    views = render(dates, params, to_float=lambda stored, info: stored, normalisation=plain, patch_size=8)
    for group in views.groups:
        middle = torch.full((2,), (group.pixels.shape[-1] - 1) / 2)
        found = group.pixels[..., 7:9, 7:9] if group.name == "local" else group.pixels[..., 15:17, 15:17]
        place = group.to_tile[:, :, :2] @ middle + group.to_tile[:, :, 2]
        date = torch.tensor([1000.0 * date_of(row // 2, 3) for row in range(len(place))])
        assert torch.allclose(found.mean(dim=(2, 3)), place + date[:, None], atol=1e-2)


def test_whole_tiles_of_two_dates_are_refused(make_batch, normalisation):
    batch = make_batch(2)
    pair = replace(batch, pixels=batch.pixels.repeat(1, 2, 1, 1, 1))
    with pytest.raises(UserError, match=r"loader\.pairs: the batch holds 2 dates of each place; allowed: one date"):
        to_network(pair, to_float=linear_to_unit, normalisation=normalisation(batch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("extent", "dtype"), [(FLAT, torch.uint16), (DEEP, torch.int16)])
def test_views_of_dates_on_a_device_are_those_of_the_host(make_dates, draw_for, normalisation, policy, extent, dtype):
    host = stacked(make_dates(3, extent, dtype, holes=True))
    moved = {item.name: getattr(host.info, item.name).cuda() for item in fields(TileInfo)}
    ids = {name: getattr(host, name).cuda() for name in ("tile_ids", "epochs", "draws", "rows", "origins", "slots")}
    device = replace(host, pixels=host.pixels.cuda(), valid=host.valid.cuda(), info=TileInfo(**moved), **ids)
    keys = {"to_float": linear_to_unit, "normalisation": normalisation(host), "patch_size": 8}
    there, here = (render(batch, draw_for(batch, policy(len(extent)), SMALL), **keys) for batch in (device, host))
    for one, two in zip(there.groups, here.groups):
        error = (one.pixels.cpu() - two.pixels).abs()
        # A value at the solarisation threshold may fall on either side; all others agree.
        assert float(torch.quantile(error.flatten()[:: max(1, error.numel() // 100_000)], 0.999)) <= 1e-4
        assert torch.allclose(one.valid.cpu(), two.valid, atol=1e-2)
        assert torch.equal(one.to_tile.cpu(), two.to_tile)
        assert torch.equal(one.spacing.cpu(), two.spacing)
