"""Which token lies where: against a twin of loops, by round trip, to the tile and to the source."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinodomain.domain import Rotation, ViewPolicy
from dinodomain.errors import UserError
from dinodomain.types import Normalisation, ViewGroup
from dinodomain.views import (
    ViewParams,
    ViewsPlan,
    correspond,
    map_points,
    render,
    rows_of_view,
    tile_to_crop,
    to_source,
    token_centres,
    token_grid,
)
from dinodomain.views.draw import GroupParams
from dinodomain.views.geometry import rotation, to_tile

# A worker of the machine may pause for longer than hypothesis' deadline.
relaxed = settings(max_examples=60, deadline=None)


def group_of(
    boxes, size: int, patch: int, *, flips=None, transpose=None, angle=None, valid: torch.Tensor | None = None, name: str = "global"
) -> ViewGroup:
    """Crops without pixels worth looking at: one view of each sample."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    rows, ndim = boxes.shape[:2]
    params = GroupParams(
        name="global", size=size, num_views=1, boxes=boxes, flips=torch.zeros(rows, ndim, dtype=torch.bool) if flips is None else flips,
        transpose=torch.zeros(rows, dtype=torch.bool) if transpose is None else transpose,
        angle=torch.zeros(rows) if angle is None else torch.as_tensor(angle), sigma=torch.zeros(rows, ndim), key=torch.arange(rows),
        operations={},
    )  # fmt: skip
    tokens = (size // patch) ** ndim
    return ViewGroup(
        name=name, pixels=torch.zeros(rows, 1, *(size,) * ndim), valid=torch.ones(rows, tokens) if valid is None else valid,
        to_tile=to_tile(params), spacing=torch.ones(rows, ndim), kept=torch.ones(rows, 1, dtype=torch.bool), num_views=1,
    )  # fmt: skip


def plain_place(group: GroupParams, row: int, index: np.ndarray) -> np.ndarray:
    """Tile coordinates of a crop's pixel, step by step in float64: transpose, flips, turn, box."""
    place, size = np.array(index, dtype=np.float64), group.size
    if bool(group.transpose[row]):
        place[-1], place[-2] = place[-2], place[-1]
    for axis in range(len(place)):
        if bool(group.flips[row, axis]):
            place[axis] = size - 1 - place[axis]
    centre, angle = (size - 1) / 2, float(group.angle[row])
    y, x = place[-2] - centre, place[-1] - centre
    place[-2] = centre + math.cos(angle) * y + math.sin(angle) * x
    place[-1] = centre - math.sin(angle) * y + math.cos(angle) * x
    start, stop = group.boxes[row].double().numpy().T
    return start + (place + 0.5) * (stop - start) / size - 0.5


# --- the map of a crop -------------------------------------------------------------------------------------------------


def test_a_quarter_turn_is_rot90():
    image = np.arange(25).reshape(5, 5)
    matrix, turned = rotation(torch.tensor([math.pi / 2]), 2)[0].numpy(), np.rot90(image)
    for y in range(5):
        for x in range(5):
            source = matrix @ np.array([y - 2, x - 2]) + 2
            assert turned[y, x] == image[tuple(np.round(source).astype(int))]


def test_a_turn_leaves_the_axes_across_the_plane():
    matrix = rotation(torch.tensor([0.3]), 3)[0]
    assert matrix[0].tolist() == [1, 0, 0]
    assert matrix[:, 0].tolist() == [1, 0, 0]
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).double())


@st.composite
def crops(draw_from, ndim: int | None = None, count: int = 3):
    ndim = draw_from(st.sampled_from([2, 3])) if ndim is None else ndim
    size = draw_from(st.sampled_from([8, 16, 24]))
    boxes, flips = [], []
    for _ in range(count):
        starts = [draw_from(st.integers(0, 100)) for _ in range(ndim)]
        boxes.append([(start, start + draw_from(st.integers(1, 100))) for start in starts])
        flips.append([draw_from(st.booleans()) for _ in range(ndim)])
    return GroupParams(
        name="global", size=size, num_views=1, boxes=torch.tensor(boxes, dtype=torch.float32), flips=torch.tensor(flips),
        transpose=torch.tensor([draw_from(st.booleans()) for _ in range(count)]), sigma=torch.zeros(count, ndim),
        angle=torch.tensor([draw_from(st.sampled_from([0.0, 0.1, -0.4, 1.0])) for _ in range(count)]), key=torch.arange(count),
        operations={},
    )  # fmt: skip


@given(crops())
@relaxed
def test_maps_are_those_of_steps_and_their_inverses_lead_back(params):
    group = replace(group_of(params.boxes, params.size, 4), to_tile=to_tile(params))
    ndim = params.boxes.shape[1]
    points = torch.tensor([[0.0] * ndim, [params.size - 1.0] * ndim, [*range(1, ndim + 1)], [2.5] * ndim]).double()
    found = map_points(group.to_tile, points)
    for row in range(len(found)):
        for number, point in enumerate(points.numpy()):
            assert np.abs(found[row, number].numpy() - plain_place(params, row, point)).max() <= 1e-4
    assert torch.allclose(map_points(tile_to_crop(group), found), points.expand(len(found), -1, -1), atol=1e-6)


# --- correspondences ---------------------------------------------------------------------------------------------------


def plain_correspond(first: GroupParams, second: GroupParams, patch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Index and position of every token of one pair, by looking at all tokens of the second view."""
    ndim = first.boxes.shape[1]
    here, there = ([*np.ndindex((group.size // patch,) * ndim)] for group in (first, second))
    linear = np.stack([plain_place(second, row, np.eye(ndim)[axis]) for axis in range(ndim)], axis=1)
    origin = plain_place(second, row, np.zeros(ndim))
    linear = linear - origin[:, None]
    index, position = [], []
    for token in here:
        place = plain_place(first, row, np.array(token) * patch + (patch - 1) / 2)
        pixel = np.linalg.solve(linear, place - origin)
        inside = bool(((pixel >= -0.5) & (pixel < second.size - 0.5)).all())
        position.append((pixel - (patch - 1) / 2) / patch)
        far = [np.abs(np.array(other) - position[-1]).max() for other in there]
        index.append(int(np.argmin(far)) if inside else -1)
    return np.array(index), np.array(position)


@given(st.sampled_from([2, 3]).flatmap(lambda ndim: st.tuples(crops(ndim), crops(ndim))), st.sampled_from([4, 8]))
@relaxed
def test_correspondences_are_those_of_the_plain_twin(pair, patch):
    first, second = pair
    groups = [replace(group_of(params.boxes, params.size, patch), to_tile=to_tile(params)) for params in pair]
    rows = torch.arange(len(first.boxes))
    found = correspond(groups[0], rows, groups[1], rows, patch)
    for row in range(len(rows)):
        index, position = plain_correspond(first, second, patch, row)
        assert np.abs(found.position[row].numpy() - position).max() <= 1e-3 * max(1.0, np.abs(position).max())
        clear = (np.abs(position - np.floor(position) - 0.5) > 1e-3).all(axis=1)  # between two tokens either is the nearest
        assert np.array_equal(found.index[row].numpy()[clear], index[clear])
        assert np.array_equal(found.inside[row].numpy()[clear], index[clear] >= 0)


@given(st.sampled_from([2, 3]).flatmap(lambda ndim: st.tuples(crops(ndim), crops(ndim))))
@relaxed
def test_there_and_back_ends_within_half_a_token(pair):
    """From a token to the nearest of the other view is at most half of one of its tokens along each of its axes."""
    one, two = (replace(group_of(params.boxes, params.size, 4), to_tile=to_tile(params)) for params in pair)
    rows = torch.arange(3)
    there = correspond(one, rows, two, rows, 4)
    landed = there.index.clamp_min(0)
    back = correspond(two, rows, one, rows, 4).position.gather(1, landed[..., None].expand(-1, -1, two.to_tile.shape[1]))
    home = _token_indexes(one, 4).expand_as(back)
    # Half a token of the second view, seen in tokens of the first.
    size = (tile_to_crop(one)[:, :, :-1] @ two.to_tile[..., :-1].double()).abs().sum(dim=-1)[:, None] / 2
    missed = ((back - home).abs() <= size + 1e-3 * (1 + size)) | ~(there.index >= 0)[..., None]
    assert bool(missed.all())


def _token_indexes(group: ViewGroup, patch: int) -> torch.Tensor:
    grid = token_grid(group, patch)
    return torch.stack(torch.meshgrid(*(torch.arange(float(count)) for count in grid), indexing="ij"), dim=-1).flatten(0, -2)[None]


@pytest.mark.parametrize("ndim", [2, 3])
def test_equally_large_crops_that_overlap_lead_back_to_the_same_token(ndim):
    """Boxes of one size that differ by whole tokens: every token inside comes home exactly."""
    boxes = torch.tensor([[(10, 42)] * ndim, [(0, 32)] * ndim], dtype=torch.float32)
    moved = boxes + torch.tensor([8.0, -4.0, 12.0])[:ndim].reshape(1, ndim, 1)
    flips = torch.tensor([[True, False, True][:ndim], [False] * ndim])
    one, two = group_of(boxes, 32, 4), group_of(moved, 32, 4, flips=flips, transpose=torch.tensor([True, False]))
    rows = torch.arange(2)
    there, back = correspond(one, rows, two, rows, 4), correspond(two, rows, one, rows, 4)
    inside = there.index >= 0
    tokens = 8**ndim
    share = (6 / 8) * (7 / 8) * ((5 / 8) if ndim == 3 else 1)
    assert inside.sum(dim=1).tolist() == [round(tokens * share)] * 2
    home = back.index.gather(1, there.index.clamp_min(0))
    assert torch.equal(home[inside], torch.arange(tokens).expand(2, -1)[inside])


@given(crops(), st.sampled_from([2, 4, 8]))
@relaxed
def test_a_view_corresponds_to_itself(params, patch):
    group = replace(group_of(params.boxes, params.size, patch), to_tile=to_tile(params))
    rows = torch.arange(3)
    found = correspond(group, rows, group, rows, patch)
    assert bool(found.inside.all())
    assert torch.equal(found.index, torch.arange(found.index.shape[1]).expand(3, -1))
    assert torch.allclose(found.position, _token_indexes(group, patch).expand_as(found.position), atol=1e-4)


def test_disjoint_views_share_nothing():
    left, right = group_of([((0, 20), (0, 20))], 16, 4), group_of([((0, 20), (20, 40))], 16, 4)
    rows = torch.arange(1)
    for first, second in ((left, right), (right, left)):
        found = correspond(first, rows, second, rows, 4)
        assert not found.inside.any()
        assert (found.index == -1).all()
    assert float(correspond(left, rows, right, rows, 4).position[..., 1].max()) == pytest.approx(-1.0)  # one token beyond the edge


def test_a_local_crop_finds_itself_in_a_global_one():
    """A quarter of the tile, at twice the magnification: each of its tokens lies a quarter off a token's centre."""
    wide, close = group_of([((0, 64), (0, 64))], 32, 8), group_of([((32, 64), (0, 32))], 32, 8, name="local")
    found = correspond(close, torch.tensor([0]), wide, torch.tensor([0]), 8)
    assert found.index.reshape(4, 4).tolist() == [[8, 8, 9, 9], [8, 8, 9, 9], [12, 12, 13, 13], [12, 12, 13, 13]]
    assert found.position.reshape(4, 4, 2)[0, 0].tolist() == [1.75, -0.25]
    back = correspond(wide, torch.tensor([0]), close, torch.tensor([0]), 8)
    assert int(back.inside.sum()) == 4


@pytest.mark.parametrize("turn", [False, True])
def test_tokens_that_are_not_valid_correspond_to_nothing(turn):
    valid, other = torch.ones(1, 16), torch.ones(1, 16)
    valid[0, 5], valid[0, 6], other[0, 10], other[0, 3] = 0.49, 0.5, 0.0, 0.2
    transpose = torch.tensor([turn])
    one = group_of([((0, 32), (0, 32))], 16, 4, valid=valid)
    two = group_of([((0, 32), (0, 32))], 16, 4, valid=other, transpose=transpose)
    found = correspond(one, torch.tensor([0]), two, torch.tensor([0]), 4)
    wanted = torch.arange(16).reshape(4, 4)
    wanted = (wanted.T if turn else wanted).flatten()
    gone = (torch.arange(16) == 5) | (wanted == 10) | (wanted == 3)
    assert torch.equal(found.index[0], torch.where(gone, -1, wanted))
    assert bool(found.inside.all())


def test_pairs_of_rows_in_any_order_are_those_one_by_one():
    torch.manual_seed(0)
    start = torch.randint(0, 30, (5, 2, 1))
    boxes = torch.cat([start, start + torch.randint(8, 40, (5, 2, 1))], dim=-1)
    one, two = group_of(boxes, 16, 4), group_of(boxes.flip(0), 32, 4, angle=[0.2, 0.0, -0.1, 0.0, 0.3])
    first, second = torch.tensor([3, 0, 3, 4]), torch.tensor([1, 1, 0, 4])
    together = correspond(one, first, two, second, 4)
    for number in range(4):
        alone = correspond(one, first[number : number + 1], two, second[number : number + 1], 4)
        assert torch.equal(together.index[number], alone.index[0])
        assert torch.equal(together.position[number], alone.position[0])


def test_patches_may_differ_along_axes():
    group = group_of([((0, 16), (0, 32), (0, 32))], 16, 4)
    assert token_grid(group, (2, 4, 8)) == (8, 4, 2)
    centres = token_centres(group, (2, 4, 8))
    assert centres.shape == (1, 64, 3)
    assert centres[0, 0].tolist() == [0.5, 3.5, 7.5]
    assert centres[0, 1].tolist() == [0.5, 3.5, 23.5]  # row-major: the last axis runs fastest
    valid = replace(group, valid=torch.ones(1, 64))
    found = correspond(valid, torch.tensor([0]), valid, torch.tensor([0]), (2, 4, 8))
    assert torch.equal(found.index[0], torch.arange(64))


@pytest.mark.parametrize("patch", [5, (4,), (4, 4, 4), 0, (4, 3)])
def test_patches_that_do_not_divide_the_crop_are_refused(patch):
    group = group_of([((0, 16), (0, 32))], 16, 4)
    with pytest.raises(UserError, match=r"patch: is .* for global crops of \(16, 16\) pixels; allowed: sides that divide the crop"):
        correspond(group, torch.tensor([0]), group, torch.tensor([0]), patch)


# --- rendered views ----------------------------------------------------------------------------------------------------


def rendered(batch, draw_for: Callable[..., ViewParams], ndim: int, **changes: object):
    """Views that show what the tile holds, unchanged in value; enlarged, as linear interpolation then shows a coordinate exactly."""
    axes = ("IS", "AP", "LR")[-ndim:]
    policy = ViewPolicy(axes=axes, flip=dict.fromkeys(axes, 0.5), quarter_turns=True, jitter=None, gamma=None, noise=None, blur=None)
    large, small = (64, 48) if ndim == 2 else (40, 32)
    plan = ViewsPlan(global_size=large, local_size=small, num_local=3, filter="linear", global_scale=(0.3, 0.6), local_scale=(0.2, 0.3))
    params = draw_for(batch, replace(policy, **changes), plan)
    count = len(batch.channels)
    plain = Normalisation(
        mode="domain", channels=batch.channels, low=(0.0,) * count, high=(1.0,) * count, mean=(0.0,) * count, std=(1.0,) * count
    )
    return render(batch, params, to_float=lambda stored, info: stored, normalisation=plain, patch_size=4)


def ramp(extent: tuple[int, ...]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in extent), indexing="ij"))


@pytest.mark.parametrize("extent", [(60, 70), (24, 40, 36)])
@pytest.mark.parametrize("turned", [False, True])
def test_corresponding_tokens_of_rendered_views_show_one_place(make_batch, draw_for, extent, turned):
    """A tile that holds its own coordinates: the mean of a token's pixels is the place of its centre."""
    ndim = len(extent)
    batch = replace(make_batch(3, ndim, extent, torch.float32), pixels=ramp(extent)[None, None].repeat(3, 1, *(1,) * (ndim + 1)))
    views = rendered(batch, draw_for, ndim, rotation=Rotation(probability=1.0, degrees=(-20.0, 20.0)) if turned else None)
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    shown = [pool(group.pixels, 4).flatten(2).mT for group in views.groups]
    for group, places in zip(views.groups, shown):
        middle = ((_token_indexes(group, 4) > 0) & (_token_indexes(group, 4) < group.pixels.shape[-1] // 4 - 1)).all(dim=-1)[0]
        assert float((token_centres(group, 4) - places)[:, middle].abs().max()) < 0.02  # at edges there is less to interpolate
    found_some = 0
    for view in range(3):
        wide, close = views.groups
        rows_wide, rows_close = rows_of_view(wide, 1), rows_of_view(close, view)
        found = correspond(close, rows_close, wide, rows_wide, 4)
        step = wide.to_tile[rows_wide][..., :-1].abs().sum(dim=-1) * 4 / 2 + 0.7  # half a token of the wide view in tile pixels
        places = shown[0][rows_wide].gather(1, found.index.clamp_min(0)[..., None].expand(-1, -1, ndim))
        apart = (places - shown[1][rows_close]).abs() <= step[:, None]
        assert bool((apart | (found.index < 0)[..., None]).all())
        found_some += int((found.index >= 0).sum())
    assert found_some > 50


def test_crops_lead_back_to_the_source_array(make_batch, draw_for):
    extent = (60, 70)
    origins = torch.tensor([[0, 0], [60, 140], [240, 70_000_000]])
    pixels = ramp(extent)[None, None] + torch.tensor([[0.0, 0], [60, 140], [240, 0]])[:, None, :, None, None]
    batch = replace(make_batch(3, 2, extent, torch.float32), pixels=pixels, origins=origins)
    views = rendered(batch, draw_for, 2)
    for group in views.groups:
        size = group.pixels.shape[-1]
        maps = to_source(group, origins)
        shown = group.pixels[..., size // 2, size // 2].double()
        place = map_points(maps, torch.full((1, 2), float(size // 2)))[:, 0]
        place[2::3, 1] -= 70_000_000
        assert float((place - shown).abs().max()) < 1e-3


def test_views_of_two_dates_of_one_place_correspond(make_batch, draw_for):
    """Tiles of one grid lie at different places of their sources; their views meet in the tile's coordinates."""
    extent = (60, 70)
    batch = make_batch(2, 2, extent, torch.float32)
    info = replace(batch.info, **{name: getattr(batch.info, name).repeat_interleave(2, dim=0) for name in _INFO})
    origins = torch.tensor([[0, 0], [500, 300], [60, 70], [560, 370]])
    batch = replace(batch, pixels=ramp(extent)[None, None].repeat(2, 2, 1, 1, 1), info=info, origins=origins, rows=torch.arange(4))
    views = rendered(batch, draw_for, 2)
    wide = views.groups[0]
    first, second = rows_of_view(wide, 0), rows_of_view(wide, 1)
    found = correspond(wide, first, wide, second, 4)
    assert int((found.index >= 0).sum()) > 20
    shown = torch.nn.functional.avg_pool2d(wide.pixels, 4).flatten(2).mT
    places = shown[second].gather(1, found.index.clamp_min(0)[..., None].expand(-1, -1, 2))
    step = wide.to_tile[second][..., :-1].abs().sum(dim=-1) * 2 + 0.7
    assert bool((((places - shown[first]).abs() <= step[:, None]) | (found.index < 0)[..., None]).all())
    for rows, date in ((first, 0), (second, 1)):
        away = (to_source(wide, origins)[rows, :, -1] - wide.to_tile[rows, :, -1]).round().long()
        assert torch.equal(away, origins[date::2])


_INFO = ("scale", "offset", "nodata", "low", "high", "spacing", "valid_box")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ndim", [2, 3])
def test_on_a_device_nothing_waits_and_indexes_are_those_of_the_host(ndim):
    torch.manual_seed(0)
    start = torch.randint(0, 30, (6, ndim, 1))
    boxes = torch.cat([start, start + torch.randint(8, 40, (6, ndim, 1))], dim=-1)
    one, two = group_of(boxes, 16, 4), group_of(boxes.flip(0), 32, 4, angle=torch.linspace(-0.3, 0.3, 6))
    rows = torch.arange(6)
    wanted = correspond(one, rows, two, rows, 4)
    there = [replace(group, **{name: getattr(group, name).cuda() for name in ("pixels", "valid", "to_tile")}) for group in (one, two)]
    on_device = rows.cuda()
    correspond(there[0], on_device, there[1], on_device, 4)  # constants reach the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = correspond(there[0], on_device, there[1], on_device, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(found.position.cpu(), wanted.position, atol=1e-4)
    clear = ((wanted.position - wanted.position.floor() - 0.5).abs() > 1e-3).all(dim=-1)
    assert torch.equal(found.index.cpu()[clear], wanted.index[clear])
