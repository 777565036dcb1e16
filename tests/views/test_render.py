"""Renderers agree with each other, with the plain twin and with other people's code; validity; geometry; independence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dinodomain.domain import Blur, ViewPolicy, linear_to_unit
from dinodomain.errors import UserError
from dinodomain.policy import operations
from dinodomain.types import Normalisation
from dinodomain.views import ViewsPlan, render
from dinodomain.views.banded import Scratch, blur_bands, contract_window
from dinodomain.views.draw import GroupParams, ViewParams
from dinodomain.views.matmul import Matmul
from dinodomain.views.reference import blur_matrix, reference_view
from dinodomain.views.reference import resample as plain_resample
from dinodomain.views.render import choose_warp
from dinodomain.views.resample import gaussian_matrices
from dinodomain.views.warp import Banded, Resize, Tiles, interleaved

SMALL = ViewsPlan(global_size=32, local_size=16, num_local=3)
# A worker of the machine may pause for longer than hypothesis' deadline.
relaxed = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def params_for(boxes, size: int, kind: str = "cubic", *, flips=None, transpose=None, sigma=None, turns: bool = False) -> ViewParams:
    """Parameters of one view per sample, without intensity."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    rows, ndim = boxes.shape[:2]
    no = torch.zeros(rows, dtype=torch.bool)
    group = GroupParams(
        name="global", size=size, num_views=1, boxes=boxes, flips=torch.zeros(rows, ndim, dtype=torch.bool) if flips is None else flips,
        transpose=no if transpose is None else transpose, angle=torch.zeros(rows), key=torch.arange(rows), operations={},
        sigma=torch.zeros(rows, ndim) if sigma is None else sigma.reshape(rows, -1).expand(-1, ndim),
    )  # fmt: skip
    policy = ViewPolicy(
        axes=("z", "y", "x")[-ndim:], quarter_turns=turns, jitter=None, gamma=None, noise=None, blur=None if sigma is None else Blur()
    )
    return ViewParams(groups=(group,), policy=policy, renderer="fastest", filter=kind)


def warped(kind, params: ViewParams, pixels: torch.Tensor, known: torch.Tensor | None = None):
    tiles = Tiles(pixels=pixels[:, None], known=None if known is None else known[:, None], info=None)
    tiles = interleaved(tiles) if kind is Resize else tiles
    return kind(params.groups[0], params)(tiles, 0, params.groups[0].boxes.shape[0])


def photograph(channels: int, height: int, width: int) -> torch.Tensor:
    """Structure at several scales, 0..255."""
    torch.manual_seed(0)
    parts = [torch.nn.functional.interpolate(torch.rand(1, channels, s, s), (height, width), mode="bilinear")[0] for s in (3, 12, 48)]
    return 255 * torch.stack(parts).mean(dim=0)


# --- other people's code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warp", [Matmul, Banded, Resize])
@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize(("box", "size"), [(((10, 310), (40, 290)), 96), (((0, 30), (200, 237)), 224), (((5, 6), (0, 320)), 48)])
def test_float_crops_are_torchvisions_antialiased_resized_crop(warp, kind, box, size):
    image = photograph(3, 320, 320)
    mode = InterpolationMode.BILINEAR if kind == "linear" else InterpolationMode.BICUBIC
    (top, bottom), (left, right) = box
    wanted = tv.resized_crop(image, top, left, bottom - top, right - left, [size, size], mode, antialias=True)
    found, _ = warped(warp, params_for([box], size, kind), image[None])
    assert float((found[0] - wanted).abs().max()) <= 0.01  # of 255


@pytest.mark.parametrize(("kind", "levels"), [("linear", 1), ("cubic", 4)])
def test_uint8_crops_are_pils_up_to_rounding(kind, levels):
    image = photograph(3, 320, 320).round().to(torch.uint8)
    how = Image.Resampling.BILINEAR if kind == "linear" else Image.Resampling.BICUBIC
    crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((40, 10, 290, 310)).resize((96, 96), how)
    wanted = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float()
    for warp in (Matmul, Banded, Resize):
        found, _ = warped(warp, params_for([((10, 310), (40, 290))], 96, kind), image[None])
        assert float((found[0] - wanted).abs().max()) <= levels


@pytest.mark.parametrize("warp", [Matmul, Banded])
def test_enlarged_volumes_are_torchs_and_monais_trilinear(warp):
    from monai.transforms import Resize as MonaiResize

    volume = torch.rand(1, 2, 20, 24, 28) * 1000
    crop = volume[:, :, 2:18, 4:20, 6:26]
    found, _ = warped(warp, params_for([((2, 18), (4, 20), (6, 26))], 32, "linear"), volume)
    wanted = torch.nn.functional.interpolate(crop, (32, 32, 32), mode="trilinear", align_corners=False)
    assert float((found - wanted).abs().max()) <= 1e-3
    monai = MonaiResize((32, 32, 32), mode="trilinear")(crop[0])
    assert float((found[0] - monai.as_tensor()).abs().max()) <= 1e-3


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 2.0])
def test_blur_is_scipys_gaussian_normalised_at_the_border(sigma):
    image = photograph(2, 64, 64)

    def scipy_blur(x):
        return ndimage.gaussian_filter(x.astype(np.float64), (0, sigma, sigma), mode="constant", truncate=8)

    wanted = scipy_blur(image.numpy()) / scipy_blur(np.ones((2, 64, 64)))
    whole = params_for([((0, 64), (0, 64))], 64, "linear", sigma=torch.tensor([sigma]))
    for warp in (Matmul, Banded, Resize):
        found, _ = warped(warp, whole, image[None])
        assert np.abs(found[0].numpy() - wanted).max() <= 0.002


@pytest.mark.parametrize("size", [1, 50, 130])
def test_both_blurs_are_the_plain_one(size):
    image = photograph(2, size, size)
    sigma = torch.tensor([0.3, 1.7, 0.0])
    dense, bands = gaussian_matrices(sigma, size), blur_bands(sigma, size)
    for row, own in enumerate(sigma.tolist()):
        plain = blur_matrix(own, size) if own else np.eye(size)
        assert np.abs(dense[row].numpy() - plain).max() < 1e-6
        out = torch.empty(2, size, size)
        contract_window(image, (bands[row], bands[0]), out, Scratch())
        wanted = plain @ image.numpy().astype(np.float64) @ blur_matrix(0.3, size).T
        assert np.abs(out.numpy() - wanted).max() < 1e-3


# --- each other and the twin -------------------------------------------------------------------------------------------


@st.composite
def warps(draw):
    ndim = draw(st.sampled_from([2, 2, 3]))
    extent = [draw(st.integers(1, 40 if ndim == 3 else 90)) for _ in range(ndim)]
    whole = draw(st.booleans())
    box = []
    for length in extent:
        start = draw(st.integers(0, length - 1))
        stop = draw(st.integers(start + 1, length))
        slack = 0.0 if whole else draw(st.floats(0, 0.45))
        box.append((start + slack, stop - slack))
    return {
        "extent": extent, "box": box, "whole": whole, "size": draw(st.integers(1, 20 if ndim == 3 else 70)),
        "channels": draw(st.integers(1, 16 if ndim == 2 else 3)), "kind": draw(st.sampled_from(["linear", "cubic"])),
        "dtype": draw(st.sampled_from([torch.uint8, torch.uint16, torch.int16, torch.float32])),
        "flips": [draw(st.booleans()) for _ in range(ndim)], "turned": draw(st.booleans()),
        "sigma": [draw(st.sampled_from([0.0, 0.2, 1.0, 2.0])) for _ in range(ndim)],
        "masked": draw(st.booleans()),
    }  # fmt: skip


@given(warps())
@relaxed
def test_every_renderer_is_the_plain_twin(case):
    torch.manual_seed(1)
    high = {torch.uint8: 255, torch.uint16: 60000, torch.int16: 30000, torch.float32: 1}[case["dtype"]]
    pixels = (torch.rand(1, case["channels"], *case["extent"]) * high).to(case["dtype"])
    known = torch.rand(1, 1, *case["extent"]) > 0.3 if case["masked"] else None
    params = params_for(
        [case["box"]], case["size"], case["kind"], flips=torch.tensor([case["flips"]]), transpose=torch.tensor([case["turned"]]),
        sigma=torch.tensor([case["sigma"]]), turns=True,
    )  # fmt: skip
    share = np.ones((1, *case["extent"])) if known is None else known[0].numpy()
    group = params.groups[0]
    stored = plain_resample(pixels[0].numpy().astype(np.float64) * share, group, 0, case["kind"])
    weight = plain_resample(share, group, 0, case["kind"])
    for warp in [Matmul, Banded] + [Resize] * (case["whole"] and len(case["extent"]) == 2 and case["dtype"] != torch.uint8):
        found, found_weight = warped(warp, params, pixels, known)
        assert np.abs(found[0].numpy() - stored).max() <= 2e-5 * high
        if found_weight is not None:
            assert np.abs(found_weight[0].numpy() - weight).max() <= 2e-5


QUANTITIES = {
    "HU": (torch.int16, 1.0, 0.0, (-1024, 3071), 1.0),
    "reflectance": (torch.uint16, 1e-4, -0.1, (0, 1), 1e-4),
    "dB of whole numbers": (torch.int16, 0.01, 0.0, (-30, 20), 0.05),
    "dB": (torch.float32, 1.0, 0.0, (-30, 20), 0.05),
}
"""Stored type, scale, offset, range in the unit, and by how much a renderer may be off in the unit."""


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_renderers_agree_in_the_channels_unit(quantity, kind, ndim):
    """Noise over the whole range, the hardest there is, with a slice profile along one axis only."""
    dtype, scale, offset, (low, high), bound = QUANTITIES[quantity]
    torch.manual_seed(2)
    extent, box = ((120, 110), ((7, 103), (20, 109))) if ndim == 2 else ((30, 34, 40), ((3, 27), (1, 30), (5, 38)))
    physical = low + (high - low) * torch.rand(1, 2, *extent, dtype=torch.float64)
    pixels = ((physical - offset) / scale).round().to(dtype) if dtype != torch.float32 else physical.to(dtype)
    sigma = torch.tensor([[1.3] + [0.0] * (ndim - 1)])
    params = params_for([box], 56 if ndim == 2 else 24, kind, sigma=sigma, flips=torch.tensor([[True] + [False] * (ndim - 1)]))
    wanted = plain_resample(pixels[0].double().numpy(), params.groups[0], 0, kind)
    found = {warp: warped(warp, params, pixels)[0][0].double().numpy() for warp in [Matmul, Banded] + [Resize] * (ndim == 2)}
    for image in found.values():
        assert np.abs(image - wanted).max() * scale <= bound
        assert np.abs(image - found[Banded]).max() * scale <= bound


@pytest.mark.parametrize(("kind", "levels"), [("linear", 1.01), ("cubic", 4)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sigma", [(0.0, 0.0), (0.0, 1.2), (0.9, 0.9)])
def test_bytes_of_a_photograph_are_within_levels(kind, levels, channels, sigma):
    image = photograph(channels, 130, 150).round().to(torch.uint8)
    flips, turn = torch.tensor([[True, False], [False, True], [True, True]]), torch.tensor([False, True, True])
    params = params_for(
        [((3, 120), (9, 140)), ((60, 100), (20, 75)), ((0, 130), (0, 150))], 64, kind, flips=flips, transpose=turn, turns=True,
        sigma=torch.tensor([sigma] * 3),
    )  # fmt: skip
    found, _ = warped(Resize, params, image.expand(3, -1, -1, -1))
    for row in range(3):
        error = found[row].numpy() - plain_resample(image.numpy().astype(np.float64), params.groups[0], row, kind)
        assert np.abs(error).max() <= levels
        assert np.sqrt((error**2).mean()) <= 0.5


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_interleaved_bytes_are_those_of_planes(channels):
    image = (torch.rand(2, 1, channels, 40, 50) * 255).to(torch.uint8)
    tiles = interleaved(Tiles(pixels=image, known=None, info=None))
    assert torch.equal(tiles.words[:, :, :channels], image)
    assert (tiles.words[:, :, channels:] == 0).all()
    params = params_for([((0, 40), (3, 47)), ((11, 31), (0, 50))], 24, flips=torch.tensor([[True, False], [False, True]]))
    planes = Resize(params.groups[0], params)(Tiles(pixels=image, known=None, info=None), 0, 2)[0]
    assert torch.equal(planes, Resize(params.groups[0], params)(tiles, 0, 2)[0])


@pytest.mark.parametrize(
    ("extent", "dtype", "channels", "wanted"),
    [
        ((70, 80), torch.uint8, 3, Resize),
        ((70, 80), torch.uint8, 5, Banded),
        ((70, 80), torch.uint16, 3, Banded),
        ((24, 26, 28), torch.uint8, 3, Banded),
        ((40, 50), torch.uint8, 3, Matmul),
    ],
)
def test_the_fastest_renderer_is_taken(make_batch, draw_for, policy, extent, dtype, channels, wanted):
    batch = make_batch(1, channels, extent, dtype)
    assert choose_warp(draw_for(batch, policy(len(extent)), SMALL), batch.pixels) is wanted
    chosen = draw_for(batch, policy(len(extent)), replace(SMALL, renderer="matmul"))
    assert choose_warp(chosen, batch.pixels) is (Matmul if wanted is Matmul else Banded)


@given(warps())
@relaxed
def test_uint8_resize_is_within_a_level_with_the_linear_filter(case):
    if len(case["extent"]) == 3 or not case["whole"]:
        return
    pixels = (torch.rand(1, case["channels"], *case["extent"]) * 255).to(torch.uint8)
    params = params_for(
        [case["box"]], case["size"], "linear", flips=torch.tensor([case["flips"]]), transpose=torch.tensor([case["turned"]]), turns=True
    )
    assert float((warped(Resize, params, pixels)[0] - warped(Matmul, params, pixels)[0]).abs().max()) <= 1.01


@pytest.mark.parametrize(("extent", "dtype"), [((70, 80), torch.uint16), ((24, 30, 28), torch.int16)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("renderer", ["fastest", "matmul"])
def test_whole_views_are_the_plain_twin(make_batch, draw_for, normalisation, policy, extent, dtype, masked, renderer):
    torch.manual_seed(0)
    valid = (torch.rand(2, 1, *extent) < 0.2).to(torch.uint8) if masked else None
    batch = make_batch(2, 3, extent, dtype, valid=valid)
    params = draw_for(batch, policy(len(extent)), replace(SMALL, renderer=renderer))
    views = render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    for index, group in enumerate(views.groups):
        for row in range(group.pixels.shape[0]):
            wanted, known = reference_view(batch, params, index, row, to_float=linear_to_unit, normalisation=normalisation(batch))
            error = np.abs(group.pixels[row].numpy() - wanted)
            # A value at the solarisation threshold may fall on either side; all others agree.
            assert np.quantile(error, 0.999) <= 5e-5
            share = known.reshape(*(s for side in known.shape for s in (side // 8, 8))).mean(axis=tuple(range(1, 2 * known.ndim, 2)))
            # A pixel with exactly half of its weight known may fall on either side.
            apart = np.abs(group.valid[row].numpy() - share.ravel())
            assert apart.max() <= 1.01 / 8**known.ndim
            assert (apart > 1e-6).sum() <= 1


# --- validity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [(70, 80), (40, 50), (24, 26, 28)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_fill_value_changes_no_bit(make_batch, draw_for, normalisation, policy, extent, dtype):
    valid = (torch.rand(3, 1, *extent) < 0.3).to(torch.uint8) * 4
    valid[0] = 0
    batch = make_batch(3, 2, extent, dtype, valid=valid)
    other = batch.pixels.float().masked_fill(valid[:, :, None] > 0, 77.0).to(dtype)
    renderers = ["fastest", "matmul"] + ["resize"] * (len(extent) == 2)
    for renderer in renderers:
        params = draw_for(batch, policy(len(extent)), replace(SMALL, renderer=renderer))
        shared = {"to_float": linear_to_unit, "normalisation": normalisation(batch), "patch_size": 8}
        first, second = render(batch, params, **shared), render(replace(batch, pixels=other), params, **shared)
        assert all(torch.equal(a.pixels, b.pixels) and torch.equal(a.valid, b.valid) for a, b in zip(first.groups, second.groups))


def test_nan_in_float_pixels_is_unknown(make_batch, draw_for, normalisation, policy):
    batch = make_batch(2, 2, (70, 80), torch.float32)
    batch.pixels[:, :, 1, 20:50, 20:50] = torch.nan
    views = render(batch, draw_for(batch, policy(2), SMALL), to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    for group in views.groups:
        assert torch.isfinite(group.pixels).all()
    assert views.groups[0].valid.min() == 0


def test_unknown_output_is_zero_and_tokens_count_it(make_batch, normalisation):
    valid = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    valid[..., 32:] = 1
    batch = make_batch(1, 2, (64, 64), valid=valid)
    views = render(batch, params_for([((0, 64), (0, 64))], 32), to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    group = views.groups[0]
    assert (group.pixels[..., 16:] == 0).all()
    assert torch.equal(group.valid.reshape(4, 4), torch.tensor([1.0, 1, 0, 0]).expand(4, 4))


@pytest.mark.parametrize("extent", [(70, 80), (40, 50), (24, 26, 28)])
def test_an_all_valid_field_gives_the_bits_of_no_field(make_batch, draw_for, normalisation, policy, extent):
    without = make_batch(3, 2, extent)
    hole = torch.zeros(3, 1, *extent, dtype=torch.uint8)
    hole[2] = 1  # another sample of the batch is not whole, so the masked path runs
    params = draw_for(without, policy(len(extent)), SMALL)
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(without), "patch_size": 8}
    first, second = render(without, params, **shared), render(replace(without, valid=hole), params, **shared)
    for a, b in zip(first.groups, second.groups):
        kept = torch.arange(a.pixels.shape[0]) % 3 != 2
        assert torch.equal(a.pixels[kept], b.pixels[kept])
        assert (b.valid[~kept] == 0).all()


# --- geometry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [(60, 70), (20, 24, 28)])
def test_geometry_leads_back_to_the_tile(make_batch, draw_for, policy, extent):
    """A tile that holds its own coordinates: what a crop shows at a pixel is where ``to_tile`` says the pixel lies."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in extent), indexing="ij"))
    batch = replace(make_batch(3, len(extent), extent, torch.float32), pixels=grid[None, None].repeat(3, 1, *(1,) * grid.ndim))
    quiet = replace(
        policy(len(extent)),
        **dict.fromkeys(operations(policy(len(extent)))),
    )
    size = 80 if len(extent) == 2 else 32  # enlarged crops: linear interpolation shows a coordinate exactly
    params = draw_for(batch, quiet, replace(SMALL, filter="linear", global_size=size, local_size=size))
    norm = resolve_plain(batch, 1000.0)
    batch = replace(batch, info=replace(batch.info, high=batch.info.high * 1000))
    views = render(batch, params, to_float=linear_to_unit, normalisation=norm, patch_size=8)
    for drawn, group in zip(params.groups, views.groups):
        assert drawn.transpose.any()
        assert drawn.flips.any()
        index = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for _ in extent), indexing="ij")).flatten(1)
        place = group.to_tile[..., :-1] @ index + group.to_tile[..., -1:]
        shown = group.pixels.flatten(2) * 1000
        edge = size // 6  # beyond the centre of a crop's last pixel there is nothing to interpolate
        inner = ((index >= edge) & (index < size - edge)).all(dim=0)
        assert float((place - shown)[..., inner].abs().max()) < 2e-3


def resolve_plain(batch, high: float):
    count = len(batch.channels)
    ones = (1.0,) * count
    return Normalisation(mode="domain", channels=batch.channels, low=(0.0,) * count, high=(high,) * count, mean=(0.0,) * count, std=ones)


def test_spacing_of_a_turned_crop_is_turned(make_batch, normalisation):
    batch = make_batch(2, 1, (60, 80), spacing=(2.0, 0.5))
    turned = torch.tensor([False, True])
    params = params_for([((0, 60), (0, 80))] * 2, 20, transpose=turned, turns=True)
    group = render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=4).groups[0]
    assert group.spacing.tolist() == [[6.0, 2.0], [2.0, 6.0]]


# --- independence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [(70, 80), (40, 50), (24, 26, 28)])
@pytest.mark.parametrize("renderer", ["fastest", "matmul"])
def test_views_are_bit_equal_in_any_batch_and_order(make_batch, draw_for, normalisation, policy, extent, renderer):
    whole = make_batch(5, 3, extent, torch.uint16)
    order = torch.tensor([3, 0, 4])
    info = replace(
        whole.info,
        **{name: getattr(whole.info, name)[order] for name in ("scale", "offset", "nodata", "low", "high", "spacing", "valid_box")},
    )
    moved = {name: getattr(whole, name)[order] for name in ("tile_ids", "epochs", "draws", "rows", "origins", "slots")}
    some = replace(whole, pixels=whole.pixels[order.tolist()], info=info, **moved)
    shared = {"to_float": linear_to_unit, "normalisation": normalisation(whole), "patch_size": 8}
    plan = replace(SMALL, renderer=renderer)
    large, small = (render(b, draw_for(b, policy(len(extent)), plan), **shared) for b in (whole, some))
    for a, b in zip(large.groups, small.groups):
        assert torch.equal(a.pixels.unflatten(0, (a.num_views, 5))[:, order].flatten(0, 1), b.pixels)
    again = render(whole, draw_for(whole, policy(len(extent)), plan), **shared)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(large.groups, again.groups))


def test_global_random_state_has_no_say(make_batch, draw_for, normalisation, policy):
    batch, found = make_batch(2), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        params = draw_for(batch, policy(2), SMALL)
        found.append(render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8).groups[0].pixels)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_the_batch_is_left_as_it_was(make_batch, draw_for, normalisation, policy, dtype):
    batch = make_batch(2, dtype=dtype)
    before = batch.pixels.clone()
    for renderer in ("matmul", "resize"):
        params = draw_for(batch, policy(2), replace(SMALL, renderer=renderer))
        render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    assert torch.equal(batch.pixels, before)


def test_rows_are_view_major_and_groups_largest_first(make_batch, draw_for, normalisation, policy):
    batch = make_batch(3)
    views = render(batch, draw_for(batch, policy(2), SMALL), to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
    assert [(g.name, g.num_views, tuple(g.pixels.shape)) for g in views.groups] == [
        ("global", 2, (6, 2, 32, 32)),
        ("local", 3, (9, 2, 16, 16)),
    ]
    assert [tuple(g.valid.shape) for g in views.groups] == [(6, 16), (9, 4)]
    assert torch.equal(views.tile_ids, batch.tile_ids)


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_a_patch_that_does_not_divide_the_crop_is_refused(make_batch, draw_for, normalisation, policy):
    batch = make_batch(2)
    with pytest.raises(UserError, match=r"patch: is 14 for global crops of \(32, 32\) pixels; allowed: sides that divide the crop"):
        render(batch, draw_for(batch, policy(2), SMALL), to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=14)


def test_resize_of_volumes_is_refused(make_batch, draw_for, normalisation, policy):
    batch = make_batch(1, 1, (20, 20, 20))
    params = draw_for(batch, policy(3), replace(SMALL, renderer="resize"))
    with pytest.raises(UserError, match=r"views\.renderer: is resize for 3-D tiles"):
        render(batch, params, to_float=linear_to_unit, normalisation=normalisation(batch), patch_size=8)
