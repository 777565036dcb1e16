"""Parameters: pure, independent of the batch, inside their ranges, at their rates."""

from __future__ import annotations

import math
import typing
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from dinodomain.domain import Blur, CoarserPixels, DropChannels, Jitter, Noise, Solarise, Thickness, ViewPolicy
from dinodomain.errors import UserError
from dinodomain.policy import chances, operations, parameters
from dinodomain.views import GroupParams, ViewsPlan, counter, draw
from dinodomain.views.boxes import TRIES, words_of
from dinodomain.views.draw import channels_kept, word
from dinodomain.views.noise import noise

PLAN = ViewsPlan(global_size=64, local_size=32)
CLASSES: dict[str, Any] = {
    name: item for name, kind in typing.get_type_hints(ViewPolicy).items() for item in typing.get_args(kind) if is_dataclass(item)
}


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


def every_operation(chance: float | tuple[float, float, float] | None = None) -> ViewPolicy:
    """All of them, in 3-D, with ranges that hold more than one value; each at its own three rates unless one is given."""
    ops: dict[str, Any] = {}
    for place, (name, kind) in enumerate(CLASSES.items()):
        own = kind()
        ranges = {item.name: (item.low, item.high) for item in parameters(own)}
        wider = {key: (0.25, 0.75) for key, (low, high) in ranges.items() if low == high}
        rates = tuple((0.15 + 0.04 * place + shift) % 0.9 + 0.05 for shift in (0.0, 0.3, 0.6)) if chance is None else chance
        ops[name] = replace(own, probability=rates, **wider)
    return ViewPolicy(axes=("IS", "AP", "LR"), flip={"IS": 0.2, "AP": 0.5, "LR": 0.7}, quarter_turns=True, **ops)


VOLUME = ((0, 60), (0, 300), (0, 300))


def test_every_operation_acts_as_often_as_its_policy_says_in_every_kind_of_view():
    policy, count = every_operation(), 4000
    wide, local = many(policy, count=count, box=VOLUME).groups
    for name, operation in operations(policy).items():
        views = [wide.operations[name].on[:count], wide.operations[name].on[count:], local.operations[name].on]
        for on, rate in zip(views, chances(operation)):
            assert abs(float(on.double().mean()) - rate) < 4.5 * (rate * (1 - rate) / len(on)) ** 0.5, (name, rate)
    for axis, rate in enumerate(policy.flip.values()):
        assert abs(float(local.flips[:, axis].double().mean()) - rate) < 4.5 * (rate * (1 - rate) / len(local.flips)) ** 0.5
    assert len({chances(operation) for operation in operations(policy).values()}) == len(CLASSES)


def test_parameters_are_spread_over_their_ranges_and_neutral_where_off():
    policy = every_operation(0.6)
    for group in many(policy, count=3000, box=VOLUME, sources=(0, 1, 2)).groups:
        for name, operation in operations(policy).items():
            drawn = group.operations[name]
            assert set(drawn.values) == {item.name for item in parameters(operation)}
            for item in parameters(operation):
                values = drawn.values[item.name].double()
                assert bool((values[~drawn.on] == item.neutral).all()), (name, item.name)
                acting, low, high = values[drawn.on].flatten(), item.low, item.high
                assert low - 1e-6 <= float(acting.min()) <= float(acting.max()) <= high + 1e-6, (name, item.name)
                if item.log:
                    acting, low, high = acting.log(), math.log(low), math.log(high)
                share = (acting - low) / (high - low)  # uniform in 0..1, logarithmically where the policy says so
                margin = 4.5 / (12 * len(share)) ** 0.5
                assert abs(float(share.mean()) - 0.5) < margin, (name, item.name)
                assert abs(float(share.std()) - 12**-0.5) < margin, (name, item.name)
                assert float(share.min()) < 0.01
                assert float(share.max()) > 0.99


def test_numbers_of_different_parameters_gates_and_places_have_nothing_in_common():
    """Correlations of 24,000 draws; 4.5 standard errors are 0.029, and 40 parameters make 780 pairs."""
    on, sometimes = (many(every_operation(rate), count=3000, box=VOLUME).groups[1] for rate in (1.0, 0.5))
    columns = {f"{name}.on": item.on for name, item in sometimes.operations.items()}
    for name, item in on.operations.items():
        for key, value in item.values.items():
            columns.update({f"{name}.{key}.{place}": part for place, part in enumerate(value.reshape(len(value), -1).unbind(1))})
    columns |= {f"flip.{axis}": flip for axis, flip in enumerate(on.flips.unbind(1))} | {"turn": on.transpose}
    still = many(replace(every_operation(1.0), rotation=None), count=3000, box=VOLUME).groups[1]  # a turned crop is placed with room
    start, side = still.boxes[..., 0], still.boxes[..., 1] - still.boxes[..., 0]
    where = {f"place.{axis}": (start / (torch.tensor([60.0, 300, 300]) - side).clamp_min(1))[:, axis] for axis in range(3)}
    columns |= where | {"depth": side[:, 0], "area": side[:, 1] * side[:, 2], "aspect": side[:, 1] / side[:, 2]}
    matrix = torch.corrcoef(torch.stack([value.double() for value in columns.values()])).fill_diagonal_(0)
    assert len(columns) > 50
    assert torch.isfinite(matrix).all()
    worst = int(matrix.abs().argmax())
    names = list(columns)
    assert float(matrix.abs().max()) < 0.03, (names[worst // len(names)], names[worst % len(names)])


def test_what_is_drawn_stays_where_another_operation_comes_or_goes():
    whole = every_operation(0.5)
    full = many(whole, count=200, box=VOLUME)
    for name in CLASSES:
        fewer = many(replace(whole, **{name: None}), count=200, box=VOLUME)
        for one, two in zip(full.groups, fewer.groups):
            kept = tensors(two)
            assert not any(key.startswith(f"{name}.") for key in kept)
            changed = {key for key, value in kept.items() if not torch.equal(value, tensors(one)[key])}
            # A turn moves boxes, and the blur of a step follows its box; three operations add to the blur.
            assert changed <= ({"boxes", "sigma", "angle"} if name == "rotation" else {"sigma"} if name in BLURRING else set()), name


BLURRING = ("blur", "thickness", "coarser_pixels")


def test_what_leaves_is_float32():
    """Only keys are integers: float64 of any parameter would make a device compute in it."""
    for group in many(every_operation(0.5), count=3, box=VOLUME).groups:
        found = {name: value.dtype for name, value in tensors(group).items()}
        assert {name for name, dtype in found.items() if dtype == torch.bool} == {
            "flips", "transpose", *(name for name in found if name.endswith(".on"))
        }  # fmt: skip
        assert {name: dtype for name, dtype in found.items() if dtype not in (torch.bool, torch.float32)} == {"key": torch.int64}


def test_words_are_unique():
    names = [f"flip.{axis}" for axis in ("IS", "AP", "LR", "NS", "EW", "y", "x")] + ["turn", "drop_channels", "subset_channels"]
    names += [*CLASSES]  # keys of numbers for pixels and nodes
    for name, kind in CLASSES.items():
        names.append(f"{name}.on")
        for item in parameters(kind()):
            names += [f"{name}.{item.name}", *(f"{name}.{item.name}.{source}" for source in range(500))]
    words = [word(name) for name in dict.fromkeys(names)] + words_of(3, tries=TRIES)
    assert len(words) > 5000
    assert len(set(words)) == len(words)


def test_channels_made_from_one_source_share_its_calibration():
    """Three display windows of one stored channel are one acquisition; another channel has numbers of its own."""
    policy = every_operation(1.0)
    policy = replace(policy, jitter=replace(policy.jitter, per_channel=True))
    group = many(policy, count=300, box=VOLUME, sources=(1, 0, 1, 1)).groups[0]
    alone = many(policy, count=300, box=VOLUME, sources=(0, 1)).groups[0]
    for name in ("gain", "jitter"):
        for key, values in group.operations[name].values.items():
            assert torch.equal(values[:, 0], values[:, 2])
            assert torch.equal(values[:, 0], values[:, 3])
            assert float((values[:, 0] != values[:, 1]).float().mean()) > 0.99
            assert torch.equal(values[:, :2], alone.operations[name].values[key].flip(1))


# --- blur of the resampling --------------------------------------------------------------------------------------------


def quiet(axes: tuple[str, ...], **own: Any) -> ViewPolicy:
    return ViewPolicy(axes=axes, **{"blur": None, "jitter": None, "gamma": None, "noise": None, **own})


def steps(group: GroupParams) -> torch.Tensor:
    """[N, D] tile pixels per output pixel."""
    return (group.boxes[..., 1] - group.boxes[..., 0]) / group.size


@pytest.mark.parametrize(
    ("thick", "spacing", "wanted"), [(5.0, 3.0, 4.0), (5.0, 4.0, 3.0), (2.0, 2.0, 0.0), (1.0, 2.5, 0.0), (6.0, math.nan, 0.0)]
)
def test_a_slice_profile_adds_what_the_scans_own_lacks(thick, spacing, wanted):
    """A profile of t mm from slices of d mm: t^2 - d^2 of squared full width at half maximum; 5, 3, 4."""
    policy = quiet(("IS", "AP", "LR"), thickness=Thickness(probability=1.0, mm=(thick, thick)))
    for group in many(policy, count=50, box=VOLUME, spacing=torch.tensor([spacing, 1.0, 1.0]).expand(50, -1)).groups:
        assert torch.equal(group.sigma[:, 1:], torch.zeros_like(group.sigma[:, 1:]))
        millimetres = group.sigma[:, 0] * steps(group)[:, 0] * (spacing if wanted else 1.0)
        assert torch.allclose(millimetres * 2.354820045, torch.tensor(wanted), atol=1e-4)


def test_a_slice_profile_acts_on_the_axis_that_is_named():
    policy = quiet(("IS", "AP", "LR"), thickness=Thickness(probability=1.0, axis="LR", mm=(5.0, 5.0)))
    sigma = many(policy, count=50, box=VOLUME, spacing=torch.tensor([1.0, 1.0, 3.0]).expand(50, -1)).groups[0].sigma
    assert bool((sigma[:, 2] > 0).all())
    assert not sigma[:, :2].any()


@pytest.mark.parametrize(("axes", "box"), [(("NS", "EW"), VOLUME[1:]), (("IS", "AP", "LR"), VOLUME)])
def test_coarser_pixels_add_what_the_tiles_own_lack(axes, box):
    """Pixels of twice the size: a point spread of sqrt(2^2 - 1) own pixels at half maximum more, in the plane."""
    policy = quiet(axes, coarser_pixels=CoarserPixels(probability=1.0, factor=(2.0, 2.0)))
    for group in many(policy, count=50, box=box).groups:
        own = group.sigma * steps(group)
        assert torch.allclose(own[:, -2:], torch.tensor(3**0.5 / 2.354820045), rtol=1e-5)
        assert not own[:, :-2].any()


@pytest.mark.parametrize(("axes", "box", "reference"), [(("NS", "EW"), VOLUME[1:], 224), (("IS", "AP", "LR"), VOLUME, 96)])
def test_blur_is_stated_for_the_papers_crops(axes, box, reference):
    policy = quiet(axes, blur=Blur(probability=1.0, sigma=(1.5, 1.5)))
    for group in many(policy, count=20, box=box).groups:
        assert torch.allclose(group.sigma, torch.tensor(1.5 * 64 / reference), rtol=1e-6)


def test_blurs_after_one_another_add_their_variances():
    own = {
        "blur": Blur(probability=1.0, sigma=(2.0, 2.0)), "coarser_pixels": CoarserPixels(probability=1.0, factor=(3.0, 3.0)),
        "thickness": Thickness(probability=1.0, axis="AP", mm=(5.0, 5.0)),
    }  # fmt: skip
    shared = {"count": 40, "box": VOLUME, "spacing": torch.tensor([1.0, 3.0, 1.0]).expand(40, -1)}
    whole = many(quiet(("IS", "AP", "LR"), **own), **shared)
    parts = [many(quiet(("IS", "AP", "LR"), **{name: item}), **shared) for name, item in own.items()]
    for number, group in enumerate(whole.groups):
        variance = sum(part.groups[number].sigma.double().square() for part in parts)
        assert torch.allclose(group.sigma.double(), variance.sqrt(), rtol=1e-5)


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
