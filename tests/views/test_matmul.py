"""The accelerators' resampling: same matrices, any part of the samples at a time, and products from halves that TF32 holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dinodomain.domain import Blur, ViewPolicy
from dinodomain.views import ViewsPlan, matmul
from dinodomain.views.dates import date_of
from dinodomain.views.reference import resample as plain_resample
from dinodomain.views.resample import axis_matrices, gaussian_matrices
from dinodomain.views.warp import Tiles

PLAN = ViewsPlan(global_size=32, local_size=16, num_local=3)


def shapes_of(params):
    return [(group, (group.size,) * group.boxes.shape[1]) for group in params.groups]


def rounded(x: torch.Tensor, how: str) -> torch.Tensor:
    """Float32 numbers as a TF32 unit takes them: to the nearest of 10 mantissa bits, or cut."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12) if how == "nearest" else bits) & -(1 << 13)).view(torch.float32)


def tf32_product(how: str, calls: list[int]):
    def product(a, b, onto=None):
        calls.append(1)
        found = torch.bmm(rounded(a, how), rounded(b, how))
        return found if onto is None else onto.add_(found)

    return product


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("extent", [(50, 70), (70, 50), (20, 31, 26)])
def test_matrices_of_all_views_are_those_made_one_by_one(make_batch, draw_for, policy, extent, kind):
    params = draw_for(make_batch(3, 1, extent), policy(len(extent)), replace(PLAN, filter=kind))
    parts = matmul._parts_of(shapes_of(params), 1)
    found = matmul.matrices_of(params, parts, slice(1, 3), 3, extent)
    for group, items in zip(params.groups, found):
        for axis, length in enumerate(extent):
            sharp = axis_matrices(group.boxes[:, axis], group.flips[:, axis], size=group.size, length=length, kind=kind)
            wanted = torch.bmm(gaussian_matrices(group.sigma[:, axis], group.size), sharp).unflatten(0, (-1, 3))[:, 1:3]
            assert float((items[axis] - wanted.transpose(0, 1).flatten(0, 1)).abs().max()) < 2e-6


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 24, 24), (24, 16, 24)])
def test_outputs_need_not_be_square(make_batch, draw_for, policy, shape):
    quiet = replace(policy(len(shape)), quarter_turns=False)
    batch = make_batch(2, 2, (30, 34, 26)[: len(shape)])
    params = draw_for(batch, quiet, PLAN)
    group = params.groups[0]
    tiles = Tiles(pixels=batch.pixels, known=None, info=batch.info)
    found, _ = matmul.Matmul(group, params, shape)(tiles, 0, len(group.boxes))
    for row in range(len(group.boxes)):
        wanted = batch.pixels[row % 2, 0].double()
        for axis, size in enumerate(shape):
            one = slice(row, row + 1)
            sharp = axis_matrices(
                group.boxes[one, axis], group.flips[one, axis], size=size, length=wanted.shape[1 + axis], kind=params.filter
            )
            whole = torch.bmm(gaussian_matrices(group.sigma[one, axis], size), sharp)[0].double()
            wanted = torch.tensordot(whole, wanted, dims=([1], [1 + axis])).movedim(0, 1 + axis)
        assert float((found[row] - wanted).abs().max()) < 0.02  # of 3000


@pytest.mark.parametrize("extent", [(50, 60), (20, 24, 22)])
@pytest.mark.parametrize("dates", [1, 3])
@pytest.mark.parametrize("split", [False, True])
def test_parts_of_the_samples_give_the_same_bits(make_batch, draw_for, policy, monkeypatch, extent, dates, split):
    batch = make_batch(5 * dates, 2, extent)
    valid = torch.rand(batch.pixels.shape[0], 1, 1, *extent, generator=torch.Generator().manual_seed(3)) > 0.2
    valid[2] = True
    params = draw_for(make_batch(5, 2, extent), policy(len(extent)), PLAN)
    fold = (5, dates, *batch.pixels.shape[2:])
    tiles = Tiles(pixels=batch.pixels.reshape(fold), known=valid.reshape(5, dates, 1, *extent), info=batch.info)
    monkeypatch.setattr(matmul, "splits", lambda _: split)
    whole = matmul.resampled(tiles, shapes_of(params), params)
    calls: list[int] = []
    real = matmul.contracted
    monkeypatch.setattr(matmul, "contracted", lambda *given: (calls.append(given[2]), real(*given))[1])
    for budget in (1, 1 << 20):
        calls.clear()
        monkeypatch.setattr(matmul, "BUDGET", budget)
        parts = matmul.resampled(tiles, shapes_of(params), params)
        assert max(calls) < 5
        for (a, weight_a), (b, weight_b) in zip(whole, parts):
            assert torch.equal(a, b)
            assert torch.equal(weight_a, weight_b)
    for group, (stored, weight) in zip(params.groups, whole):
        for row in range(len(stored)):
            sample, date = row % 5, date_of(row // 5, dates)
            share = tiles.known[sample, date].numpy().astype(np.float64)
            assert np.abs(weight[row].numpy() - plain_resample(share, group, row, params.filter)).max() < 2e-5
            wanted = plain_resample(np.where(share > 0, tiles.pixels[sample, date].numpy(), 0.0), group, row, params.filter)
            assert np.abs(stored[row].numpy() - wanted).max() < 2e-5 * 3000


def test_the_high_half_is_what_tf32_holds_and_the_rest_fits_it():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(-6, 6, 10_000)
    first = matmul.high(x)
    low = x - first
    assert torch.equal(rounded(first, "nearest"), first)
    assert torch.equal(rounded(first, "cut"), first)
    assert torch.equal(first + low, x)
    assert float(((rounded(low, "cut") - low).abs() / x.abs()).max()) < 2**-19
    whole = torch.arange(256).float()
    assert torch.equal(matmul.high(whole), whole)


# --- precision: emulated TF32 against the float64 twin, in units of the domain ---------------------------------------------------

# (name, values, dtype, bound): a CT in HU, reflectance stored times 10,000, decibels stored as floats.
HU = ("HU", (-1024, 3071), torch.int16, 1.0)
REFLECTANCE = ("reflectance x 10,000", (0, 10_000), torch.uint16, 1e-4 * 10_000)
DECIBEL = ("dB", (-50.0, 10.0), torch.float32, 0.05)
LEVEL = ("level of 255", (0, 255), torch.uint8, 0.01)


def hardest(values: tuple[float, float], dtype: torch.dtype, extent: tuple[int, ...], pattern: str) -> torch.Tensor:
    """[2, 1, 1, *L] noise over the whole range, or its upper end with single pixels at the lower: errors of weights add up on both."""
    low, high = values
    source = torch.Generator().manual_seed(5)
    share = torch.rand(2, 1, 1, *extent, generator=source)
    share = share if pattern == "noise" else (share > 0.05).float()
    return (low + (high - low) * share).to(dtype)


def worst(params, pixels: torch.Tensor) -> float:
    """Largest difference from the float64 twin over all views."""
    tiles = Tiles(pixels=pixels, known=None, info=None)
    return max(
        float(np.abs(stored[row].numpy() - plain_resample(pixels[row % 2, 0].numpy(), group, row, params.filter)).max())
        for group, (stored, _) in zip(params.groups, matmul.resampled(tiles, shapes_of(params), params))
        for row in range(len(stored))
    )


@pytest.fixture
def hard_views(make_batch, draw_for):
    """Enlarged, shrunk and blurred views of tiles of a shape."""

    def make(extent: tuple[int, ...]):
        axes = ("IS", "AP", "LR")[-len(extent) :]
        policy = ViewPolicy(axes=axes, flip=dict.fromkeys(axes, 0.5), jitter=None, gamma=None, noise=None, blur=Blur(probability=0.5))
        size = 96 if len(extent) == 2 else 32
        return draw_for(make_batch(2, 1, extent), policy, ViewsPlan(global_size=size, local_size=size // 2, num_local=3))

    return make


@pytest.mark.parametrize("extent", [(200, 180), (40, 44, 48)])
@pytest.mark.parametrize("how", ["nearest", "cut"])
@pytest.mark.parametrize("case", [HU, REFLECTANCE, DECIBEL, LEVEL], ids=lambda case: case[0])
def test_split_products_keep_the_units_of_a_domain(hard_views, monkeypatch, extent, how, case):
    _, values, dtype, bound = case
    params, calls = hard_views(extent), []
    monkeypatch.setattr(matmul, "product", tf32_product(how, calls))
    monkeypatch.setattr(matmul, "splits", lambda _: True)
    errors = [worst(params, hardest(values, dtype, extent, pattern)) for pattern in ("noise", "peaks")]
    assert calls
    assert max(errors) <= bound / 20  # far inside, because a device's sums are coarser than these


@pytest.mark.parametrize("extent", [(200, 180), (40, 44, 48)])
def test_plain_tf32_would_not(hard_views, monkeypatch, extent):
    params = hard_views(extent)
    monkeypatch.setattr(matmul, "product", tf32_product("nearest", []))
    monkeypatch.setattr(matmul, "splits", lambda _: False)
    assert worst(params, hardest(HU[1], HU[2], extent, "noise")) > HU[3]


def test_precision_is_set_back(monkeypatch):
    before = torch.get_float32_matmul_precision()
    with matmul._tf32():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(RuntimeError, match="inside"), matmul._tf32():
        raise RuntimeError("inside")
    assert torch.get_float32_matmul_precision() == before


def test_only_devices_with_the_units_split(monkeypatch):
    assert not matmul.splits(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, wanted in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert matmul.splits(torch.device("cuda")) is wanted
    monkeypatch.setattr(matmul, "SPLIT", False)
    assert not matmul.splits(torch.device("cuda"))
