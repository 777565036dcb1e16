"""What is not known changes nothing: no box, no view, no loss; tokens count what is known; crops hold no padding."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from dinodomain.checkpoint import CheckpointPlan
from dinodomain.domain import (
    BiasField,
    Blur,
    CoarserPixels,
    DropChannels,
    Gain,
    Gamma,
    Haze,
    Jitter,
    Noise,
    Rician,
    Rotation,
    Shadow,
    Solarise,
    Speckle,
    SubsetChannels,
    Thickness,
    ValueNoise,
    ViewPolicy,
    Window,
    linear_to_unit,
)  # fmt: skip
from dinodomain.engine import EnginePlan, PretrainPlan, build, train_step
from dinodomain.engine.loop import host_values
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.policy import Operation, operations
from dinodomain.testing import SyntheticImages, SyntheticVolumes, tiny_store
from dinodomain.types import Batch, Views
from dinodomain.views import GroupParams, ViewParams, ViewsPlan, render
from dinodomain.views.reference import reference_view

SMALL = ViewsPlan(global_size=32, local_size=16, num_local=3)
EVERYTHING = {
    "rotation": Rotation(), "blur": Blur(probability=0.5), "coarser_pixels": CoarserPixels(probability=0.5), "bias_field": BiasField(),
    "shadow": Shadow(probability=0.5), "speckle": Speckle(scale="power"), "rician": Rician(probability=0.5), "gain": Gain(),
    "haze": Haze(probability=0.5), "window": Window(), "jitter": Jitter(per_channel=True), "gamma": Gamma(),
    "noise": Noise(probability=0.5, shot=(0.01, 0.05)), "solarise": Solarise(probability=0.3), "drop_channels": DropChannels(),
    "subset_channels": SubsetChannels(), "value_noise": ValueNoise(std=(0.0, 0.05)),
}  # fmt: skip


def every_operation(ndim: int) -> ViewPolicy:
    axes = ("IS", "AP", "LR")[-ndim:]
    wavelengths = {"band 0": 490.0, "band 1": 842.0}
    own = {**EVERYTHING, "thickness": Thickness(axis=axes[0], mm=(1.0, 4.0))}
    policy = ViewPolicy(axes=axes, flip=dict.fromkeys(axes, 0.5), quarter_turns=True, wavelengths_nm=wavelengths, **own)
    assert len(operations(policy)) == len(typing.get_args(Operation))
    return policy


def no_operation(ndim: int, **own: object) -> ViewPolicy:
    axes = ("IS", "AP", "LR")[-ndim:]
    bare = ViewPolicy(axes=axes, flip=dict.fromkeys(axes, 0.5), quarter_turns=True)
    return replace(bare, **{**dict.fromkeys(operations(bare)), **own})


def holes(batch: Batch, share: float = 0.4) -> Batch:
    """Blocks of unknown pixels, of every kind, in all samples but the first."""
    source = torch.Generator().manual_seed(5)
    extent = batch.pixels.shape[3:]
    coarse = torch.rand(batch.pixels.shape[0], 1, *(-(-length // 8) for length in extent), generator=source) < share
    for axis in range(len(extent)):
        coarse = coarse.repeat_interleave(8, dim=2 + axis)
    valid = coarse[(slice(None), slice(None), *(slice(length) for length in extent))] * torch.tensor(5, dtype=torch.uint8)
    valid[0] = 0
    return replace(batch, valid=valid.to(torch.uint8))


def refilled(batch: Batch, value: float) -> Batch:
    """Another stored value where nothing is known."""
    assert batch.valid is not None
    filled = torch.where(batch.valid[:, :, None] > 0, torch.tensor(value), batch.pixels.double()).to(batch.pixels.dtype)
    assert not torch.equal(filled, batch.pixels)
    return replace(batch, pixels=filled)


def assert_same(one: Views, other: Views) -> None:
    for a, b in zip(one.groups, other.groups):
        for name in ("pixels", "valid", "to_tile", "spacing", "kept"):
            assert torch.equal(getattr(a, name), getattr(b, name)), (a.name, name)
        assert torch.isfinite(a.pixels).all()


# --- the fill value ----------------------------------------------------------------------------------------------------

FILLS = [
    (torch.uint8, (0.0, 255.0)),
    (torch.uint16, (0.0, 65535.0)),
    (torch.int16, (-32768.0, 32767.0)),
    (torch.float32, (-9999.0, float("nan"), float("inf"), 3e38)),
]


@pytest.mark.parametrize(
    ("extent", "renderer"),
    [((70, 80), "matmul"), ((70, 80), "resize"), ((40, 50), "fastest"), ((40, 50), "resize"), ((24, 26, 28), "fastest")],
)
@pytest.mark.parametrize(("dtype", "fills"), FILLS)
def test_fill_value_changes_no_box_and_no_view(make_batch, draw_for, normalisation, extent, dtype, fills, renderer):
    batch = holes(make_batch(3, 2, extent, dtype))
    policy, plan = every_operation(len(extent)), replace(SMALL, renderer=renderer)
    how = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
    params = draw_for(batch, policy, plan)
    wanted = render(batch, params, **how)
    assert any((group.valid < 1).any() for group in wanted.groups)
    for value in fills:
        other = refilled(batch, value)
        again = draw_for(other, policy, plan)
        for one, two in zip(params.groups, again.groups):
            assert torch.equal(one.boxes, two.boxes)
        assert_same(wanted, render(other, again, **how))


@pytest.mark.parametrize("extent", [(70, 80), (24, 26, 28)])
def test_nan_alone_marks_a_pixel_as_a_field_would(make_batch, draw_for, normalisation, extent):
    batch = holes(make_batch(3, 2, extent, torch.float32))
    bare = replace(refilled(batch, float("nan")), valid=None)
    how = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
    policy = every_operation(len(extent))
    one, two = (render(item, draw_for(item, policy, SMALL), **how) for item in (batch, bare))
    assert_same(one, two)


@pytest.fixture(scope="module", params=["images", "volumes"])
def tiny_run(request, tmp_path_factory) -> tuple[PretrainPlan, SyntheticImages | SyntheticVolumes]:
    domain = SyntheticImages(size=(32, 32)) if request.param == "images" else SyntheticVolumes(size=(32, 32, 32))
    folder = tmp_path_factory.mktemp(request.param)
    store = tiny_store(folder / "store", domain=domain, num=4)
    plan = PretrainPlan(
        domain="synthetic", store=str(store), out=str(folder / "run"), loader=LoaderPlan(batch=4, threads=0),
        views=ViewsPlan(global_size=16, local_size=8, num_local=2), checkpoint=CheckpointPlan(every=5),
        model=ModelPlan(dim=16, depth=2, heads=2, patch=4, registers=1),
        objective=ObjectivePlan(prototypes=16, head_hidden=16, bottleneck=8, head_layers=2, mask_probability=1.0),
        engine=EnginePlan(steps=10, device="cpu", precision="fp32", threads=1, trackers=()),
    )  # fmt: skip
    return plan, domain


def stepped(run, change: Callable[[Batch], Batch]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses of one step on the first batch, changed, and the student's weights after it."""
    plan, domain = run
    setup = build(plan, domain)
    result = train_step(setup.training, change(next(iter(setup.loader))))
    assert not result.skipped
    return dict(host_values(result)), {name: value.clone() for name, value in setup.training.pair.student.state_dict().items()}


def test_fill_value_changes_no_bit_of_a_training_step(tiny_run):
    first, second, whole = (
        stepped(tiny_run, change)
        for change in (lambda batch: refilled(holes(batch), 0.0), lambda batch: refilled(holes(batch), 111.0), lambda batch: batch)
    )
    assert first[0] == second[0]
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())
    assert first[0] != whole[0]  # holes do change a step


# --- what tokens count -------------------------------------------------------------------------------------------------


def plain_share(known: np.ndarray, group: GroupParams, row: int, patch: tuple[int, ...]) -> np.ndarray:
    """Share of known pixels of every token of a crop that shows the tile pixel by pixel."""
    window = tuple(slice(int(a), int(b)) for a, b in group.boxes[row].tolist())
    crop = known[window]
    for axis, flip in enumerate(group.flips[row].tolist()):
        crop = np.flip(crop, axis) if flip else crop
    crop = np.swapaxes(crop, -1, -2) if bool(group.transpose[row]) else crop
    return share_under(crop, patch)


def share_under(known: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """Mean of a crop [*S] under each of its tokens, row-major."""
    grid = [length // side for length, side in zip(known.shape, patch)]
    windows = [tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, patch)) for place in np.ndindex(*grid)]
    return np.array([known[window].mean() for window in windows])


@pytest.mark.parametrize("extent", [(70, 80), (40, 50), (24, 30, 28)])
@pytest.mark.parametrize(("kind", "patch"), [("linear", 4), ("cubic", 4), ("linear", (2, 4, 8))])
def test_tokens_hold_the_share_of_known_pixels_under_them(make_batch, draw_for, normalisation, extent, kind, patch):
    """Crops as large as their output, so that an output pixel is a pixel of the tile."""
    batch = holes(make_batch(4, 1, extent), share=0.3)
    known = (batch.valid[:, 0] == 0).numpy()
    given = patch if isinstance(patch, int) else patch[-len(extent) :]
    sides = (given,) * len(extent) if isinstance(given, int) else given
    drawn = draw_for(batch, no_operation(len(extent)), replace(SMALL, global_size=16, local_size=16, filter=kind, num_global=4))
    groups = []
    for group in drawn.groups:
        room = torch.tensor(extent) - 16
        start = group.boxes[..., 0].minimum(room.float())
        groups.append(replace(group, boxes=torch.stack([start, start + 16], dim=-1)))
    params: ViewParams = replace(drawn, groups=tuple(groups))
    views = render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=given)
    partly = 0
    for group, found in zip(params.groups, views.groups):
        assert group.flips.any()
        assert group.transpose.any()
        for row in range(len(found.valid)):
            wanted = plain_share(known[row % 4], group, row, sides)
            assert np.allclose(found.valid[row].numpy(), wanted, atol=1e-6)
            partly += int(((wanted > 0) & (wanted < 1)).sum())
    assert partly > 20


@pytest.mark.parametrize(("extent", "patch"), [((40, 50), (4, 16)), ((20, 24, 28), (2, 8, 4))])
def test_tokens_of_long_patches_are_those_of_the_plain_twin(make_batch, draw_for, normalisation, policy, extent, patch):
    batch = holes(make_batch(2, 1, extent), share=0.3)
    params = draw_for(batch, policy(len(extent)), replace(SMALL, global_size=16, local_size=16, num_local=1))
    how = {"to_float": linear_to_unit, "normalisation": normalisation(batch)}
    views = render(batch, params, **how, patch_size=patch)
    for place, group in enumerate(views.groups):
        for row in range(len(group.valid)):
            _, known = reference_view(batch, params, place, row, **how)
            assert np.allclose(group.valid[row].numpy(), share_under(known, patch), atol=2 / np.prod(patch))  # a pixel on the edge of known
    assert bool(((group.valid > 0) & (group.valid < 1)).any())


# --- padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "renderer"),
    [
        (((6, 60), (0, 71)), "fastest"), (((33, 40), (9, 12)), "matmul"), (((6, 60), (0, 71)), "resize"), (((33, 40), (9, 12)), "resize"),
        (((5, 20), (6, 25), (0, 17)), "fastest"), (((3, 10), (11, 15), (20, 26)), "matmul"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_crops_hold_no_padding(make_batch, draw_for, normalisation, box, renderer, turned):
    """Real pixels are 7, padding is 30,000: any share of it would show."""
    ndim, extent = len(box), (70, 80) if len(box) == 2 else (24, 28, 30)
    batch = make_batch(6, 1, extent)
    batch.pixels.fill_(30_000)
    batch.pixels[(..., *(slice(low, high) for low, high in box))] = 7
    batch = replace(batch, info=replace(batch.info, valid_box=torch.tensor(box).expand(6, -1, -1)))
    policy = no_operation(ndim, blur=Blur(probability=1.0), rotation=Rotation(probability=0.7, degrees=(-30.0, 30.0)) if turned else None)
    for kind in ("linear", "cubic"):
        params = draw_for(batch, policy, replace(SMALL, renderer=renderer, filter=kind, num_global=4, num_local=6))
        plain = replace(normalisation(batch), mean=(0.0,), std=(1.0,))
        views = render(batch, params, to_float=lambda stored, info: stored, normalisation=plain, patch_size=8)
        for group in views.groups:
            assert float((group.pixels - 7).abs().max()) <= 1e-3
