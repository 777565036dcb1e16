"""Parameters: pure, independent of the batch, inside their ranges, at their rates."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import chain

import numpy as np
import pytest
import torch

from dinodomain.domain import Blur, DropChannels, Jitter, Noise, Solarise, ViewPolicy
from dinodomain.errors import UserError
from dinodomain.views import GroupParams, ViewsPlan, counter, draw
from dinodomain.views.draw import channels_kept
from dinodomain.views.noise import noise

PLAN = ViewsPlan(global_size=64, local_size=32)


def many(
    policy: ViewPolicy, plan: ViewsPlan = PLAN, *, count: int = 2000, box: tuple[tuple[int, int], ...] = ((0, 300), (0, 300)), **other
):
    ids = torch.arange(count) * 104729
    words = {"seed": 3, "epochs": 0 * ids, "draws": 0 * ids, "spacing": torch.ones(count, len(box)), "sources": (0, 1), **other}
    return draw(policy, plan, tile_ids=ids, valid_box=torch.tensor(box).expand(count, -1, -1), **words)


def tensors(group: GroupParams) -> dict[str, torch.Tensor]:
    own = {f.name: getattr(group, f.name) for f in fields(group) if isinstance(getattr(group, f.name), torch.Tensor)}
    items = group.operations.items()
    gates = {f"{name}.on": item.on for name, item in items}
    return own | gates | dict(chain.from_iterable(((f"{name}.{key}", value) for key, value in item.values.items()) for name, item in items))


def python_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_mixer_is_splitmix64():
    # First outputs of the reference generator with seed 1234567 (Vigna, splitmix64.c).
    state, found = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        found.append(int(counter.mix(torch.tensor(counter.signed(state)))) % 2**64)
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_mixer_equals_arithmetic_of_whole_numbers():
    words = [0, 1, -1, 2**63 - 1, -(2**63), 123456789123456789]
    mixed = counter.mix(torch.tensor(words)).tolist()
    assert [value % 2**64 for value in mixed] == [python_mix(word % 2**64) for word in words]


def test_views_do_not_depend_on_batch_or_order(policy):
    whole = many(policy(2), count=12)
    order = torch.tensor([7, 3, 11])
    some = draw(
        policy(2), PLAN, seed=3, tile_ids=order * 104729, epochs=0 * order, draws=0 * order,
        valid_box=torch.tensor([[0, 300], [0, 300]]).expand(3, 2, 2), spacing=torch.ones(3, 2), sources=(0, 1),
    )  # fmt: skip
    for large, small in zip(whole.groups, some.groups):
        for name, value in tensors(small).items():
            assert torch.equal(value, tensors(large)[name].unflatten(0, (large.num_views, 12))[:, order].flatten(0, 1)), name


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"epochs": torch.ones(2000, dtype=torch.int64)}, {"draws": torch.ones(2000, dtype=torch.int64)}]
)
def test_another_seed_epoch_or_draw_gives_other_views(policy, change):
    first, second = many(policy(2)).groups[0], many(policy(2), **change).groups[0]
    assert (first.boxes != second.boxes).flatten(1).any(dim=1).float().mean() > 0.99


def test_views_of_one_sample_differ(policy):
    boxes = many(policy(2)).groups[1].boxes.unflatten(0, (8, 2000))
    assert all((boxes[a] != boxes[b]).flatten(1).any(dim=1).float().mean() > 0.99 for a in range(8) for b in range(a))


def test_number_of_global_views_leaves_local_views_alone(policy):
    two, three = many(policy(2)), many(policy(2), replace(PLAN, num_global=3))
    assert all(torch.equal(value, tensors(three.groups[1])[name]) for name, value in tensors(two.groups[1]).items())


@pytest.mark.parametrize("box", [((0, 300), (0, 300)), ((5, 64), (10, 330)), ((3, 4), (0, 7)), ((0, 40), (2, 160), (0, 100))])
def test_boxes_lie_inside_the_valid_box_and_are_whole(policy, box):
    for group in many(policy(len(box)), box=box).groups:
        start, stop = group.boxes.unbind(-1)
        low, high = torch.tensor(box).float().unbind(-1)
        assert (start >= low).all()
        assert (stop <= high).all()
        assert (stop - start >= 1).all()
        assert torch.equal(group.boxes, group.boxes.round())


def test_fractions_and_ratios_follow_the_policy(policy):
    box = ((0, 3000), (0, 3000))
    extent = (lambda b: (b[..., 1] - b[..., 0]).double())(many(policy(2), box=box).groups[1].boxes)
    share = extent.prod(dim=1) / 9e6
    assert 0.049 < share.min() < 0.06
    assert 0.31 < share.max() < 0.321
    assert float(share.mean()) == pytest.approx(0.185, abs=0.005)
    ratio = torch.log(extent[:, 1] / extent[:, 0])
    assert float(ratio.abs().max()) <= np.log(4 / 3) + 0.01
    assert float(ratio.mean()) == pytest.approx(0, abs=0.01)
    assert float(ratio.std()) == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), rel=0.03)


def test_volume_fraction_is_kept_with_anisotropic_extent(policy):
    group = many(policy(3), box=((0, 400), (0, 2000), (0, 1500))).groups[0]
    share = (group.boxes[..., 1] - group.boxes[..., 0]).double().prod(dim=1) / (400 * 2000 * 1500)
    assert share.min() > 0.315
    assert share.max() <= 1.0
    # Drawn apart through and in the plane: E[f^(1/3)] E[f^(2/3)] for f uniform in 0.32..1.
    thirds = [(1 - 0.32 ** (1 + power)) / ((1 + power) * 0.68) for power in (1 / 3, 2 / 3)]
    assert float(share.mean()) == pytest.approx(thirds[0] * thirds[1], abs=0.01)


def test_ratio_is_one_of_lengths():
    policy = ViewPolicy(axes=("IS", "AP", "LR"), aspect=(1.0, 1.0), local_scale=(0.05, 0.1))
    spacing = torch.tensor([3.0, 1.0, 0.5]).expand(2000, -1)
    group = many(policy, box=((0, 50), (0, 1000), (0, 2000)), spacing=spacing).groups[1]
    extent = (group.boxes[..., 1] - group.boxes[..., 0]) * torch.tensor([3.0, 1.0, 0.5])
    assert torch.allclose(extent[:, 1], extent[:, 2], rtol=0.01)


def test_unknown_spacing_counts_as_square():
    policy = ViewPolicy(axes=("y", "x"))
    unknown = many(policy, spacing=torch.full((2000, 2), torch.nan))
    assert torch.equal(unknown.groups[0].boxes, many(policy).groups[0].boxes)


def test_rates_are_those_of_the_policy():
    policy = ViewPolicy(
        axes=("NS", "EW"), flip={"EW": 0.3}, quarter_turns=True, blur=Blur(probability=(0.9, 0.1, 0.5)), noise=Noise(probability=0.2),
        jitter=Jitter(probability=0.7), drop_channels=DropChannels(share=(0.25, 0.25)), solarise=Solarise(probability=(0.0, 0.2, 0.0)),
    )  # fmt: skip
    params = many(policy, count=4000)
    wide, local = params.groups
    rates = {
        "blur": [(wide.sigma[:, 0].unflatten(0, (2, -1)) > 0).float().mean(dim=1), torch.tensor([0.9, 0.1])],
        "local blur": [(local.sigma[:, 1] > 0).float().mean(), torch.tensor(0.5)],
        "solarise": [wide.operations["solarise"].on.unflatten(0, (2, -1)).float().mean(dim=1), torch.tensor([0.0, 0.2])],
        "noise": [local.operations["noise"].on.float().mean(), torch.tensor(0.2)],
        "jitter": [local.operations["jitter"].on.float().mean(), torch.tensor(0.7)],
        "flips": [local.flips.float().mean(dim=0), torch.tensor([0.0, 0.3])],
        "turn": [local.transpose.float().mean(), torch.tensor(0.5)],
        "drop": [1 - channels_kept(policy, local, 12).float().mean(), torch.tensor(0.25)],
    }
    for name, (found, wanted) in rates.items():
        assert torch.allclose(found, wanted, atol=0.025), name  # above four standard errors of 4,000 draws
    assert not local.operations["solarise"].on.any()


def test_numbers_of_a_channel_do_not_depend_on_how_many_there_are(policy):
    few, many_more = (many(policy(2), count=50, sources=range(count)).groups[0].operations["jitter"].values for count in (3, 9))
    assert torch.equal(few["brightness"], many_more["brightness"][:, :3])
    assert torch.equal(few["contrast"], many_more["contrast"][:, :3])


def test_one_channel_always_stays():
    policy = ViewPolicy(axes=("y", "x"), drop_channels=DropChannels(share=(0.999, 0.999)))
    assert (channels_kept(policy, many(policy).groups[0], 4).sum(dim=1) >= 1).all()


def test_without_augmentation_only_crops_are_drawn(policy):
    for group in many(policy(2), replace(PLAN, augment=False)).groups:
        assert not any(tensors(group)[name].any() for name in ("flips", "transpose", "sigma", "angle"))
        assert not group.operations
    assert torch.equal(many(policy(2)).groups[0].boxes, many(policy(2), replace(PLAN, augment=False)).groups[0].boxes)


def test_noise_is_normal_and_white():
    sample = noise(torch.arange(3) * 987654321, 500_000).double()
    assert torch.allclose(sample.mean(dim=1), torch.zeros(3).double(), atol=0.006)
    assert torch.allclose(sample.std(dim=1), torch.ones(3).double(), atol=0.006)
    assert float((sample.abs() > 3).double().mean()) == pytest.approx(0.0027, abs=0.0005)
    for lag in (1, 2, 96, 256, 96 * 96):
        assert abs(float((sample[:, lag:] * sample[:, :-lag]).mean())) < 0.006
    assert float(torch.corrcoef(sample).fill_diagonal_(0).abs().max()) < 0.01


def test_policy_with_other_axes_is_refused():
    with pytest.raises(UserError, match="names 2 axes"):
        many(ViewPolicy(axes=("NS", "EW")), box=((0, 9), (0, 9), (0, 9)))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"global_size": 0}, "views.global_size: is 0"),
        ({"num_local": -1}, "views.num_local: is -1"),
        ({"global_size": 32, "local_size": 64}, "views.local_size: is 64; allowed: at most global_size, 32"),
        ({"local_scale": (0.5, 0.2)}, "views.local_scale: is .0.5, 0.2."),
    ],
)
def test_plan_names_what_is_wrong(wrong, text):
    with pytest.raises(UserError, match=text):
        ViewsPlan(**wrong)
