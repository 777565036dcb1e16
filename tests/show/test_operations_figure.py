"""The figure of operations: each by itself, through the same draw and render as in training, at the ends of its range."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinodomain.domain import linear_to_unit
from dinodomain.errors import UserError
from dinodomain.policy import (
    BiasField,
    Blur,
    CoarserPixels,
    Gamma,
    Haze,
    Jitter,
    Noise,
    Rician,
    Rotation,
    Shadow,
    Speckle,
    SubsetChannels,
    Thickness,
    ViewPolicy,
    Window,
    operations,
)
from dinodomain.show.captions import Scale, Setting
from dinodomain.show.operations import draw_operations
from dinodomain.show.sides import Frame
from dinodomain.show.sight import Sight
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views import ViewsPlan, draw_batch, render
from dinodomain.views.alone import Trial, alone, at_levels, one_crop, one_sample, trials, turned_over

PLAN = ViewsPlan(global_size=16, local_size=8, num_local=2)
NORM = Normalisation(mode="domain", channels=("a",), low=(0.0,), high=(200.0,), mean=(0.5,), std=(0.25,))
PLAIN = {"blur": None, "jitter": None, "gamma": None, "noise": None}
RENDER = partial(render, to_float=linear_to_unit, normalisation=NORM, patch_size=8)


def tiles(*extent: int) -> Batch:
    torch.manual_seed(0)
    ones, ids = torch.ones(2, 1), torch.arange(2)
    info = TileInfo(
        scale=ones, offset=0 * ones, nodata=ones * torch.nan, low=0 * ones, high=200 * ones, spacing=torch.ones(2, len(extent)),
        valid_box=torch.tensor([[0, side] for side in extent]).expand(2, -1, -1),
    )  # fmt: skip
    return Batch(
        pixels=torch.randint(40, 160, (2, 1, 1, *extent), dtype=torch.uint8), valid=None, info=info, channels=("a",), tile_ids=ids,
        epochs=0 * ids, draws=0 * ids, rows=ids, origins=torch.zeros(2, len(extent), dtype=torch.int64), slots=ids,
    )  # fmt: skip


def shown(policy: ViewPolicy, batch: Batch, trial: Trial) -> list[torch.Tensor]:
    drawn = at_levels(policy, PLAN, batch, trial, seed=0, normalisation=NORM)
    return [RENDER(batch, params).groups[0].pixels for params in drawn]


def test_an_operation_alone_is_the_one_that_training_renders():
    policy = ViewPolicy(axes=("y", "x"), **{**PLAIN, "gamma": Gamma(probability=0.3, exponent=(0.5, 2.0))})
    only = alone(policy, "gamma", {"exponent": 2.0})
    assert list(operations(only)) == ["gamma"]
    batch = tiles(40, 40)
    unit = RENDER(batch, one_crop(only, PLAN, batch, seed=0, normalisation=NORM)).groups[0].pixels * 0.25 + 0.5
    before = shown(policy, batch, trials(policy)[0])[0] * 0.25 + 0.5
    assert torch.allclose(unit, before**2, atol=1e-4)


def test_the_crop_is_that_of_a_run_of_the_same_seed():
    policy, batch = ViewPolicy(axes=("y", "x")), tiles(40, 40)
    run = draw_batch(policy, PLAN, batch, seed=3, normalisation=NORM).groups[0]
    own = one_crop(alone(policy, "blur", {"sigma": 1.0}), PLAN, batch, seed=3, normalisation=NORM).groups[0]
    assert torch.equal(own.boxes, run.boxes[:2])


def test_what_a_policy_does_not_use_cannot_be_looked_at():
    policy = ViewPolicy(axes=("y", "x"), **PLAIN, window=Window())
    with pytest.raises(UserError, match="haze: is no operation that the policy uses; allowed: window"):
        alone(policy, "haze", {})
    with pytest.raises(UserError, match=r"window.size: is no parameter; allowed: centre, width"):
        alone(policy, "window", {"size": 1.0})


def test_trials_go_from_the_weakest_to_the_strongest():
    policy = ViewPolicy(
        axes=("y", "x"), gamma=None, blur=Blur(sigma=(0.2, 1.0)), jitter=Jitter(brightness=(-0.1, 0.2), contrast=(1.0, 1.0)),
        noise=Noise(probability=0.0), speckle=Speckle(looks=(4.0, 16.0)), window=Window(),
    )  # fmt: skip
    found = {(trial.operation, *trial.varied): [list(level.values()) for level in trial.levels] for trial in trials(policy)}
    assert found[("blur", "sigma")] == [[0.2], [0.6], [1.0]]
    assert found[("speckle", "looks")] == [[16.0], [pytest.approx(8.0)], [4.0]], "fewer looks are noisier; the middle of a log range"
    assert found[("jitter", "brightness")] == [[-0.1], [0.1], [0.2]], "both sides of no effect"
    assert set(found) == {
        ("blur", "sigma"), ("speckle", "looks"), ("jitter", "brightness"), ("window", "centre"), ("window", "width"),
    }, "what never acts, and what can only be neutral, is left out"  # fmt: skip


def test_an_operation_whose_parameters_are_fixed_has_one_level():
    policy = ViewPolicy(axes=("y", "x"), **{**PLAIN, "gamma": Gamma(exponent=(2.0, 2.0))})
    assert [trial.levels for trial in trials(policy)] == [({"exponent": 2.0},)]


USED = {
    "rotation": Rotation(degrees=(-20.0, 20.0)),
    "blur": Blur(sigma=(5.0, 20.0)),
    "coarser_pixels": CoarserPixels(),
    "bias_field": BiasField(),
    "shadow": Shadow(),
    "speckle": Speckle(scale="power"),
    "rician": Rician(),
    "haze": Haze(amount=(0.0, 1.0)),
    "window": Window(),
    "jitter": Jitter(),
    "gamma": Gamma(),
    "noise": Noise(std=(0.0, 0.1)),
}


@pytest.mark.parametrize("name", USED)
def test_every_operation_changes_its_crop_more_at_its_strongest(name):
    policy = ViewPolicy(axes=("y", "x"), wavelengths_nm={"a": 490.0}, **{**PLAIN, name: USED[name]})
    batch = tiles(40, 40)
    for trial in trials(policy):
        without, *levels = shown(policy, batch, trial)
        change = [float((pixels - without).square().mean()) for pixels in levels]
        assert change[-1] > 1e-6, trial
        assert change[-1] >= change[1], trial


def test_flips_and_turns_are_those_of_the_array():
    batch = tiles(40, 40)
    still = one_crop(ViewPolicy(axes=("y", "x"), **PLAIN), PLAN, batch, seed=0, normalisation=NORM)
    before, flipped, turned = (
        RENDER(batch, params).groups[0].pixels for params in (still, turned_over(still, axis=1), turned_over(still, axis=None))
    )
    assert torch.allclose(flipped, before.flip(-1), atol=1e-5)
    assert torch.allclose(turned, before.transpose(-1, -2), atol=1e-5)


def figure(path: Path, policy: ViewPolicy, batch: Batch) -> np.ndarray:
    frame = Frame(kind="unknown", directions=None, axes=policy.axes)
    sight = Sight(to_float=linear_to_unit, normalisation=NORM, bands=(0,), frames=(frame,), scale=Scale(span=200.0, unit=""), low=0.0)
    setting = Setting(scale=sight.scale, policy=policy, spacing=(1.0,) * len(policy.axes), blur=1.0, length="mm")
    draw_operations(one_sample(batch, 0), policy, PLAN, path, render=RENDER, seed=0, sight=sight, setting=setting, title="t")
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_figure_has_a_row_per_trial_and_equal_bytes(tmp_path: Path):
    few = ViewPolicy(axes=("y", "x"), **PLAIN, window=Window())
    more = ViewPolicy(axes=("y", "x"), flip={"y": 0.5}, **{**PLAIN, "gamma": Gamma(), "subset_channels": SubsetChannels()}, window=Window())
    batch = tiles(40, 40)
    one, two = figure(tmp_path / "a.png", few, batch), figure(tmp_path / "b.png", more, batch)
    assert ((one.shape[0] - 50) / 220, (two.shape[0] - 50) / 220) == (2, 5), "window has two parameters; flips, gamma and channels beside"
    figure(tmp_path / "c.png", few, batch)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_a_policy_of_nothing_says_so(tmp_path: Path):
    assert figure(tmp_path / "a.png", ViewPolicy(axes=("y", "x"), **PLAIN), tiles(40, 40)).std() > 0


def test_thicker_slices_are_shown_across_them(tmp_path: Path):
    policy = ViewPolicy(axes=("IS", "AP", "LR"), **PLAIN, thickness=Thickness(mm=(2.0, 6.0)))
    batch = tiles(24, 24, 24)
    without, *levels = shown(policy, batch, trials(policy)[0])
    steps = [float(pixels.diff(dim=2).abs().mean()) for pixels in (without, *levels)]
    assert steps == sorted(steps, reverse=True), "thicker slices are smoother along IS"
    assert figure(tmp_path / "a.png", policy, batch).shape[0] == 270
