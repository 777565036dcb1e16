"""Small rotations: what a turned view shows, against scipy and the plain twin, and that other rows keep their bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from dinodomain.domain import Blur, Rotation, ViewPolicy, linear_to_unit
from dinodomain.policy import operations
from dinodomain.views import ViewsPlan, render
from dinodomain.views.draw import GroupParams, ViewParams
from dinodomain.views.geometry import to_tile
from dinodomain.views.matmul import Matmul
from dinodomain.views.reference import reference_view, rotate
from dinodomain.views.rotate import Turned, canvas_boxes, canvas_size, sampling_grid
from dinodomain.views.warp import Banded, Tiles

PLAN = ViewsPlan(global_size=32, local_size=16, num_local=3)


def turned_params(boxes, size: int, angles, kind: str, *, flips=None, transpose=None, sigma: float = 0.0, degrees: float = 25.0):
    """One view per sample, turned, without intensity."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    rows, ndim = boxes.shape[:2]
    group = GroupParams(
        name="global", size=size, num_views=1, boxes=boxes, key=torch.arange(rows), operations={},
        flips=torch.zeros(rows, ndim, dtype=torch.bool) if flips is None else torch.tensor(flips),
        transpose=torch.zeros(rows, dtype=torch.bool) if transpose is None else torch.tensor(transpose),
        angle=torch.tensor(angles, dtype=torch.float32), sigma=torch.full((rows, ndim), sigma),
    )  # fmt: skip
    policy = ViewPolicy(
        axes=("z", "y", "x")[-ndim:], quarter_turns=transpose is not None, jitter=None, gamma=None, noise=None,
        blur=Blur() if sigma else None, rotation=Rotation(degrees=(-degrees, degrees)),
    )  # fmt: skip
    return ViewParams(groups=(group,), policy=policy, renderer="fastest", filter=kind)


def turned(params: ViewParams, pixels: torch.Tensor, known: torch.Tensor | None = None):
    group = params.groups[0]
    tiles = Tiles(pixels=pixels[:, None], known=None if known is None else known[:, None], info=None)
    warp = Turned(Banded(group, params), group, params, pixels.shape[2:])
    return warp(tiles, 0, len(group.boxes))


def waves(*extent: int) -> torch.Tensor:
    """Smooth structure, 0..1000, that no symmetry leaves alone."""
    grid = torch.meshgrid(*(torch.arange(float(n)) for n in extent), indexing="ij")
    total = sum(torch.sin(axis * (0.13 + 0.05 * place)) * (place + 1) for place, axis in enumerate(grid)) + 0.02 * grid[-1] * grid[-2]
    return 1000 * (total - total.min()) / (total.max() - total.min())


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize(("flips", "transpose"), [([False, False], False), ([True, False], False), ([False, True], True)])
@pytest.mark.parametrize("degrees", [-25.0, 7.0, 20.0])
def test_a_turned_view_is_scipys_affine_transform(kind, flips, transpose, degrees):
    """At the tile's own pixel size; both interpolate, on grids that are a fraction of a pixel apart, so smooth images agree."""
    image = waves(90, 100)
    params = turned_params([((20, 68), (30, 78))], 48, [math.radians(degrees)], kind, flips=[flips], transpose=[transpose])
    matrix = to_tile(params.groups[0])[0].double().numpy()
    wanted = ndimage.affine_transform(image.double().numpy(), matrix[:, :2], matrix[:, 2], (48, 48), order=1)
    found, _ = turned(params, image[None, None])
    assert np.abs(found[0, 0].numpy() - wanted).max() <= 6
    assert np.abs(found[0, 0].numpy() - np.roll(wanted, 1, axis=0)).max() > 20  # a pixel aside would be seen


def test_a_positive_angle_turns_counter_clockwise():
    image = torch.zeros(1, 1, 61, 61)
    image[0, 0, 30, 45:55] = 1  # points right
    params = turned_params([((10, 51), (10, 51))], 41, [math.radians(25)], "linear")
    found, _ = turned(params, image)
    rows, columns = torch.nonzero(found[0, 0] > 0.3, as_tuple=True)
    assert (columns > 20).all()
    assert (rows < 20).all()  # and now right and up


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_turned_views_are_the_plain_twin(kind, ndim, sigma, masked):
    torch.manual_seed(0)
    extent, size = ((70, 64), 24) if ndim == 2 else ((14, 40, 36), 12)
    boxes = torch.tensor([((3, 11), (12, 40), (9, 31))[-ndim:]] * 3)
    params = turned_params(
        boxes, size, [0.3, -0.41, 0.1], kind, sigma=sigma, transpose=[False, True, True],
        flips=[[True, True, False][-ndim:], [False, False, True][-ndim:], [True, True, True][-ndim:]],
    )  # fmt: skip
    pixels = (torch.rand(3, 2, *extent) * 30000).to(torch.int16)
    known = torch.rand(3, 1, *extent) > 0.3 if masked else None
    found, weight = turned(params, pixels, known)
    for row in range(3):
        share = np.ones((1, *extent)) if known is None else known[row].numpy().astype(np.float64)
        wanted = rotate(pixels[row].double().numpy() * share, params.groups[0], row, kind, 25.0)
        assert np.abs(found[row].numpy() - wanted).max() <= 2e-5 * 30000
        if weight is not None:
            assert np.abs(weight[row].numpy() - rotate(share, params.groups[0], row, kind, 25.0)).max() <= 2e-5


@pytest.mark.parametrize("extent", [(70, 80), (24, 26, 28)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_that_are_not_turned_keep_their_bits(make_batch, draw_for, normalisation, policy, extent, dtype, masked):
    torch.manual_seed(0)
    valid = (torch.rand(3, 1, *extent) < 0.1).to(torch.uint8) if masked else None
    batch = make_batch(3, 3, extent, dtype, valid=valid)
    with_turns = replace(policy(len(extent)), rotation=Rotation(probability=0.5))
    params = draw_for(batch, with_turns, PLAN)
    still = replace(params, policy=replace(params.policy, rotation=None))
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
    first, second = render(batch, params, **shared), render(batch, still, **shared)
    for group, a, b in zip(params.groups, first.groups, second.groups):
        same = group.angle == 0
        assert 0 < int(same.sum()) < len(same)
        assert torch.equal(a.pixels[same], b.pixels[same])
        assert torch.equal(a.valid[same], b.valid[same])
        assert not any(torch.equal(x, y) for x, y in zip(a.pixels[~same], b.pixels[~same]))


@pytest.mark.parametrize("extent", [(70, 80), (24, 26, 28)])
def test_whole_turned_views_are_the_plain_twin(make_batch, draw_for, normalisation, policy, extent):
    torch.manual_seed(0)
    batch = make_batch(2, 2, extent, torch.int16, valid=(torch.rand(2, 1, *extent) < 0.1).to(torch.uint8))
    params = draw_for(batch, replace(policy(len(extent)), rotation=Rotation(probability=0.7)), replace(PLAN, num_local=1))
    views = render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    for index, group in enumerate(views.groups):
        for row in range(len(group.pixels)):
            wanted, _ = reference_view(batch, params, index, row, to_float=linear_to_unit, normalisation=normalisation(batch))
            assert np.quantile(np.abs(group.pixels[row].numpy() - wanted), 0.998) <= 2e-4


@pytest.mark.parametrize("extent", [(70, 80), (24, 26, 28)])
def test_the_accelerators_canvas_is_the_cpus(make_batch, draw_for, policy, extent):
    """Both kinds of canvas on this machine; the device tests run the other path where there is a device."""
    batch = make_batch(3, 2, extent, torch.int16)
    params = draw_for(batch, replace(policy(len(extent)), rotation=Rotation(probability=1.0)), PLAN)
    for group in params.groups:
        size = canvas_size(params.policy, group.size)
        shape = (*(group.size,) * (len(extent) - 2), size, size)
        own = Turned(Banded(group, params), group, params, extent)
        tiles = Tiles(pixels=batch.pixels, known=None, info=batch.info)
        dense, _ = Matmul(own._canvas._group, params, shape)(tiles, 0, len(group.boxes))
        banded, _ = own._canvas(tiles, 0, len(group.boxes))
        assert dense.shape[2:] == shape
        assert float((dense - banded).abs().max()) <= 2e-5 * 3000


@pytest.mark.parametrize("degrees", [3.0, 45.0, 170.0])
def test_turned_crops_stay_on_their_canvas_and_canvases_in_the_tile(make_batch, draw_for, policy, degrees):
    """So nothing beyond the tile is made up: at most the kernel's own reach is repeated at an edge."""
    batch = make_batch(200, 1, (60, 70))
    params = draw_for(batch, replace(policy(2), rotation=Rotation(probability=1.0, degrees=(-degrees, degrees))), PLAN)
    for group in params.groups:
        boxes = canvas_boxes(group, (60, 70))
        assert (boxes[..., 0] >= 0).all()
        assert (boxes[..., 1] <= torch.tensor([60.0, 70.0])).all()
        assert float(sampling_grid(group, boxes).abs().max()) <= 1 + 1e-4
        pitch, step = boxes.diff(dim=-1)[..., 0] / canvas_size(params.policy, group.size), group.boxes.diff(dim=-1)[..., 0] / group.size
        assert (pitch <= step * (1 + 1e-6)).all()  # never coarser than the output


def test_a_turned_view_does_not_depend_on_its_batch(make_batch, draw_for, normalisation, policy):
    batch = make_batch(4, 2, (70, 80), torch.uint16)
    quiet = replace(policy(2), **dict.fromkeys(operations(policy(2))), rotation=Rotation(probability=0.5))
    params = draw_for(batch, quiet, PLAN)
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
    whole = render(batch, params, **shared)
    info = replace(batch.info, **{name: getattr(batch.info, name)[2:] for name in batch.info.__dataclass_fields__})
    moved = {name: getattr(batch, name)[2:] for name in ("pixels", "tile_ids", "epochs", "draws", "rows", "origins", "slots")}
    part = replace(batch, info=info, **moved)
    views = render(part, draw_for(part, quiet, PLAN), **shared)
    for a, b in zip(whole.groups, views.groups):
        assert torch.equal(a.pixels.unflatten(0, (-1, 4))[:, 2:].flatten(0, 1), b.pixels)
