"""Where crops lie: inside their bounds, of the asked extents, with room to turn, on known ground."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinodomain.domain import Rotation, ViewPolicy
from dinodomain.views import ViewParams, ViewsPlan, draw
from dinodomain.views.boxes import Ground, known_counts, known_share

PLAN = ViewsPlan(global_size=64, local_size=32)
AXES = ("IS", "AP", "LR")
# A worker of the machine may pause for longer than hypothesis' deadline.
relaxed = settings(max_examples=40, deadline=None)


def drawn(
    box: tuple[tuple[int, int], ...], plan: ViewsPlan = PLAN, *, count: int = 1000, ids: torch.Tensor | None = None,
    spacing: tuple[float, ...] | None = None, known: torch.Tensor | None = None, **policy: object,
) -> ViewParams:  # fmt: skip
    """Views of tiles of one valid box."""
    ids = torch.arange(count) * 104729 if ids is None else ids
    count = len(ids)
    return draw(
        ViewPolicy(axes=AXES[-len(box) :], **policy), plan, seed=3, tile_ids=ids, epochs=0 * ids, draws=0 * ids,
        valid_box=torch.tensor(box).expand(count, -1, -1), sources=(0,), known=known,
        spacing=torch.tensor(spacing or (1.0,) * len(box)).expand(count, -1),
    )  # fmt: skip


def sides_of(params: ViewParams, group: int) -> torch.Tensor:
    boxes = params.groups[group].boxes
    return (boxes[..., 1] - boxes[..., 0]).double()


def assert_inside(params: ViewParams, box: tuple[tuple[int, int], ...]) -> None:
    low, high = torch.tensor(box).float().unbind(-1)
    for group in params.groups:
        assert torch.equal(group.boxes, group.boxes.round())  # NaN is not equal to itself
        assert bool((group.boxes[..., 0] >= low).all())
        assert bool((group.boxes[..., 1] <= high).all())
        assert bool((group.boxes[..., 1] - group.boxes[..., 0] >= 1).all())


# --- extents -----------------------------------------------------------------------------------------------------------

BOXES = [
    ((0, 300), (0, 300)),
    ((5, 6), (3, 4)),  # one pixel
    ((7, 8), (0, 500)),  # oblong beyond any aspect
    ((0, 2), (10, 13)),
    ((0, 40), (2, 160), (0, 100)),
    ((0, 1), (0, 1), (4, 5)),
    ((3, 4), (0, 200), (1, 2)),
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("spacing", [1.0, 0.3, 40.0, math.nan, 0.0, math.inf])
def test_thousand_boxes_lie_inside_the_valid_box(box, lengths, spacing):
    plan = replace(PLAN, global_extent=(50.0, 400.0), local_extent=(0.5, 20.0), global_depth=(10.0, 60.0), local_depth=(0.1, 9.0))
    assert_inside(drawn(box, plan if lengths else PLAN, count=1250, spacing=(spacing,) * len(box)), box)


def test_extents_in_millimetres_are_drawn_log_uniformly_whatever_the_spacing():
    plan = replace(PLAN, local_extent=(25.0, 100.0))
    for spacing in ((0.5, 0.5), (1.0, 0.25)):
        sides = sides_of(drawn(((0, 2000), (0, 2000)), plan, spacing=spacing), 1) * torch.tensor(spacing)
        length = sides.prod(dim=1).sqrt().log()
        assert float(length.min()) == pytest.approx(math.log(25), abs=0.03)
        assert float(length.max()) == pytest.approx(math.log(100), abs=0.03)
        assert float(length.mean()) == pytest.approx(math.log(50), abs=0.02)  # four standard errors of 8,000 draws
        ratio = (sides[:, 1] / sides[:, 0]).log()
        assert float(ratio.abs().max()) <= math.log(4 / 3) + 0.05
        assert float(ratio.mean()) == pytest.approx(0, abs=0.02)


def test_depth_is_drawn_apart_from_the_plane():
    plan = replace(PLAN, global_extent=(100.0, 200.0), global_depth=(20.0, 40.0))
    sides = sides_of(drawn(((0, 300), (0, 900), (0, 900)), plan, spacing=(0.2, 0.5, 0.5)), 0) * torch.tensor([0.2, 0.5, 0.5])
    depth, plane = sides[:, 0].log(), sides[:, 1:].prod(dim=1).sqrt().log()
    assert float(depth.min()) == pytest.approx(math.log(20), abs=0.02)
    assert float(depth.max()) == pytest.approx(math.log(40), abs=0.02)
    assert float(plane.min()) == pytest.approx(math.log(100), abs=0.02)
    assert float(plane.max()) == pytest.approx(math.log(200), abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([depth, plane]))[0, 1])) < 0.1  # 1 / sqrt(2000) is 0.022


def test_a_fraction_of_the_depth_with_a_length_in_the_plane():
    plan = replace(PLAN, local_extent=(30.0, 30.0), local_scale=(0.125, 0.125))
    sides = sides_of(drawn(((0, 80), (0, 400), (0, 400)), plan, aspect=(1.0, 1.0)), 1)
    assert torch.equal(sides.unique(dim=0), torch.tensor([[40.0, 30.0, 30.0]]).double())


def test_tiles_of_unknown_spacing_take_fractions():
    plan = replace(PLAN, global_extent=(10.0, 20.0), local_extent=(1.0, 2.0), global_depth=(1.0, 2.0), local_depth=(1.0, 2.0))
    box = ((0, 40), (0, 160), (0, 100))
    fractions = drawn(box, spacing=(math.nan,) * 3)
    for group, plain in zip(drawn(box, plan, spacing=(math.nan,) * 3).groups, fractions.groups):
        assert torch.equal(group.boxes, plain.boxes)
    depths = sides_of(drawn(box, plan, spacing=(0.5, math.nan, math.nan)), 0)[:, 0]
    assert depths.unique().tolist() == [2.0, 3.0, 4.0]  # its own is known


@pytest.mark.parametrize("box", [((0, 90), (0, 900)), ((0, 900), (0, 90))])
def test_area_is_kept_in_an_oblong_tile_and_the_aspect_gives_way(box):
    """A tenth as wide as long: a crop of 32 % or more has no room for 4/3."""
    sides = sides_of(drawn(box), 0)
    share = sides.prod(dim=1) / 81000
    assert float(share.min()) > 0.315
    assert float(share.mean()) == pytest.approx(0.66, abs=0.02)  # four standard errors of 2,000 draws
    assert float((sides.amax(dim=1) / sides.amin(dim=1)).min()) > 4 / 3
    small = sides_of(drawn(box, replace(PLAN, local_scale=(0.03, 0.05))), 1)
    assert float((small[:, 1] / small[:, 0]).log().abs().max()) <= math.log(4 / 3) + 0.04


# --- turned crops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box", [((0, 70), (5, 85)), ((0, 3), (0, 3)), ((2, 9), (0, 300)), ((0, 1), (0, 40), (0, 50)), ((0, 4), (0, 3), (0, 5))]
)
@pytest.mark.parametrize("degrees", [(-10.0, 10.0), (45.0, 45.0), (30.0, 160.0)])
def test_what_a_turned_crop_shows_lies_inside_the_valid_box(box, degrees):
    params = drawn(box, rotation=Rotation(probability=1.0, degrees=degrees))
    assert_inside(params, box)
    low, high = torch.tensor(box).double().unbind(-1)
    for group in params.groups:
        start, stop = group.boxes.double().unbind(-1)
        grown = (group.angle.double().cos().abs() + group.angle.double().sin().abs())[:, None]
        half = (stop - start)[:, -2:] * grown / 2
        middle = ((start + stop) / 2)[:, -2:]
        assert bool((middle - half >= low[-2:]).all())  # exactly: a hair beyond is a pixel of padding
        assert bool((middle + half <= high[-2:]).all())


def test_room_to_turn_keeps_the_aspect_and_rows_that_do_not_turn():
    box = ((0, 200), (0, 300))
    plain = drawn(box)
    turned = drawn(box, rotation=Rotation(probability=0.5, degrees=(20.0, 20.0)))
    for number, group in enumerate(turned.groups):
        still = group.angle == 0
        assert 0.4 < float(still.float().mean()) < 0.6
        assert torch.equal(group.boxes[still], plain.groups[number].boxes[still])
        before, after = (sides_of(params, number)[~still] for params in (plain, turned))
        assert float(((after[:, 1] / after[:, 0]) / (before[:, 1] / before[:, 0])).log().abs().max()) < 0.05
        assert bool((after <= before).all())


@pytest.mark.parametrize("box", [((0, 1), (0, 1)), ((0, 2), (0, 2)), ((0, 5), (0, 1))])
def test_a_valid_box_too_small_to_turn_in_still_gives_a_box(box):
    assert_inside(drawn(box, rotation=Rotation(probability=1.0, degrees=(10.0, 10.0))), box)


# --- known ground ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [(256, 256), (70, 300), (10, 65), (64, 1), (40, 33, 70), (1100, 17 * 64)])
def test_counts_in_cells_are_those_of_a_loop(extent):
    known = torch.rand(2, 1, *extent, generator=torch.Generator().manual_seed(1)) > 0.4
    most = 64 if len(extent) == 2 else 32
    counts, cell = known_counts(known).numpy(), [math.ceil(length / most) for length in extent]
    assert counts.shape == (2, *(math.ceil(length / side) for length, side in zip(extent, cell)))
    for place in [*np.ndindex(counts.shape)][:: max(1, counts.size // 200)]:
        window = tuple(slice(i * side, (i + 1) * side) for i, side in zip(place[1:], cell))
        assert counts[place] == int(known[place[0], 0][window].sum())


def test_counts_of_large_cells_do_not_overflow():
    known = torch.ones(1, 1, 520, 520, 33, dtype=torch.bool)  # 17 x 17 of a cell's 17 x 17 x 2 are more than a byte holds
    counts = known_counts(known)
    assert int(counts.sum()) == known.numel()
    assert int(counts.max()) == 17 * 17 * 2


@st.composite
def grounds(draw_from):
    ndim = draw_from(st.sampled_from([2, 3]))
    extent = tuple(draw_from(st.integers(1, 200 if ndim == 2 else 40)) for _ in range(ndim))
    return extent, draw_from(st.integers(0, 2**16)), draw_from(st.floats(0.05, 0.95))


@given(grounds())
@relaxed
def test_share_of_a_box_on_cell_edges_is_a_plain_count(case):
    extent, seed, rate = case
    source = np.random.default_rng(seed)
    known = torch.from_numpy(source.random((2, 1, *extent)) < rate)
    cell = [math.ceil(length / (64 if len(extent) == 2 else 32)) for length in extent]
    start, stop, wanted = np.zeros((2, 5, len(extent))), np.zeros((2, 5, len(extent))), np.zeros((2, 5))
    for row, place in np.ndindex(2, 5):
        for axis, (length, side) in enumerate(zip(extent, cell)):
            edges = [*range(0, length, side), length]
            first = int(source.integers(0, len(edges) - 1))
            start[row, place, axis], stop[row, place, axis] = edges[first], edges[source.integers(first + 1, len(edges))]
        window = tuple(slice(int(a), int(b)) for a, b in zip(start[row, place], stop[row, place]))
        wanted[row, place] = known[row, 0][window].double().mean()
    found = known_share(Ground.of(known), torch.from_numpy(start), torch.from_numpy(stop - start))
    assert np.abs(found.numpy() - wanted).max() <= 1e-9


@given(grounds())
@relaxed
def test_share_of_any_box_counts_parts_of_cells_by_their_share(case):
    extent, seed, rate = case
    source = np.random.default_rng(seed)
    known = torch.from_numpy(source.random((1, 1, *extent)) < rate)
    cell = [math.ceil(length / (64 if len(extent) == 2 else 32)) for length in extent]
    spread = np.zeros(extent)  # every pixel holds its cell's share
    for place in np.ndindex(*(math.ceil(length / side) for length, side in zip(extent, cell))):
        window = tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, cell))
        spread[window] = known[0, 0].numpy()[window].mean()
    start = np.array([source.integers(0, length) for length in extent])
    stop = np.array([source.integers(first + 1, length + 1) for first, length in zip(start, extent)])
    wanted = spread[tuple(slice(a, b) for a, b in zip(start, stop))].mean()
    found = known_share(Ground.of(known), torch.from_numpy(start).double()[None, None], torch.from_numpy(stop - start).double()[None, None])
    assert float(found) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("extent", [(256, 256), (200, 230), (64, 60, 72)])
def test_all_known_gives_the_boxes_of_no_field(extent):
    box = tuple((0, length) for length in extent)
    with_field = drawn(box, count=6, known=torch.ones(6, 1, 1, *extent, dtype=torch.bool))
    for one, two in zip(drawn(box, count=6).groups, with_field.groups):
        assert torch.equal(one.boxes, two.boxes)


@pytest.mark.parametrize("extent", [(128, 128), (64, 64, 64)])
def test_boxes_do_not_depend_on_batch_mates(extent):
    """Straight edges give many places of one share, so the choice hangs on the last bit of sums."""
    known = torch.ones(24, 1, 1, *extent, dtype=torch.bool)
    for row in range(24):
        known[row, ..., : 8 * (row % 7), :] = False
        known[row, ..., 100 - 2 * row :] = False
    box, ids = tuple((0, length) for length in extent), torch.arange(24) * 7919
    whole = drawn(box, ids=ids, known=known, min_valid=1.0)
    for rows in ([5], [23, 2, 11], [*range(8, 17)]):
        some = drawn(box, ids=ids[rows], known=known[rows], min_valid=1.0)
        for large, small in zip(whole.groups, some.groups):
            assert torch.equal(large.boxes.unflatten(0, (-1, 24))[:, rows].flatten(0, 1), small.boxes)


@pytest.mark.parametrize("extent", [(128, 128), (64, 64, 64)])
def test_a_tile_half_unknown_gives_known_crops_wherever_a_place_was_tried(extent):
    known = torch.ones(400, 1, 1, *extent, dtype=torch.bool)
    known[..., : extent[-1] // 2] = False
    box = tuple((0, length) for length in extent)

    def shares(params: ViewParams) -> torch.Tensor:
        boxes = params.groups[1].boxes.double()  # the unknown half begins at a cell's edge, so shares of cells are exact
        inside = (boxes[:, -1, 1] - boxes[:, -1, 0].clamp_min(extent[-1] // 2)).clamp_min(0)
        return inside / (boxes[:, -1, 1] - boxes[:, -1, 0])

    blind, seeing = shares(drawn(box, count=400)), shares(drawn(box, count=400, known=known))
    assert float((blind < 0.5).double().mean()) > 0.4
    # Each place is known enough with a chance of about one half, so eight in a row fail once in 256 times.
    assert float((seeing < 0.5).double().mean()) < 0.02
    assert torch.equal(seeing[blind >= 0.5], blind[blind >= 0.5])  # the first place is kept where it is good
    assert torch.equal(sides_of(drawn(box, count=400), 1), sides_of(drawn(box, count=400, known=known), 1))


def test_the_best_place_is_taken_where_none_is_good():
    known = torch.zeros(300, 1, 1, 128, 128, dtype=torch.bool)
    known[..., 40:48, 40:48] = True
    box = ((0, 128), (0, 128))
    plan = replace(PLAN, local_scale=(0.05, 0.05))
    with_field, without = (drawn(box, plan, count=300, known=field).groups[1].boxes for field in (known, None))

    def overlap(boxes: torch.Tensor) -> torch.Tensor:
        return (boxes[..., 1].clamp_max(48) - boxes[..., 0].clamp_min(40)).clamp_min(0).prod(dim=1)

    assert bool((overlap(with_field) >= overlap(without)).all())
    assert float(overlap(with_field).mean()) > 3 * float(overlap(without).mean())


@pytest.mark.parametrize("extent", [(128, 128), (32, 40, 48)])
def test_an_unknown_tile_still_gives_the_boxes_of_a_known_one(extent):
    box = tuple((0, length) for length in extent)
    known = torch.zeros(20, 1, 1, *extent, dtype=torch.bool)
    for one, two in zip(drawn(box, count=20).groups, drawn(box, count=20, known=known).groups):
        assert torch.equal(one.boxes, two.boxes)
