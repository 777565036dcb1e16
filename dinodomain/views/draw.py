"""Draws the parameters of every view: pure functions of integers, no pixels, no generator, no host synchronisation.

Shapes: B samples, V views of one size, N = V x B rows (row v * B + b is view v of sample b), D spatial axes in array order.
Each number is a hash of (seed, epoch, tile id, draw, view, parameter), so a sample's views do not depend on its batch, rank,
order, device or number of dates. Arithmetic is float64; what leaves is float32. Boxes are edges in tile pixels: pixel i covers [i, i + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dinodomain.domain import ViewPolicy
from dinodomain.errors import UserError
from dinodomain.views import counter
from dinodomain.views.dates import per_row
from dinodomain.views.plan import ViewsPlan

# Words of the hash. A number here is part of every training run: never reuse or renumber one.
_SCALE, _ASPECT, _TURN = 1, 2, 3
_JITTER, _BRIGHTNESS, _CONTRAST, _GAMMA = 4, 5, 6, 7
_BLUR, _SIGMA, _NOISE, _NOISE_STD, _NOISE_KEY, _SOLARISE, _CHANNEL = 8, 9, 10, 11, 12, 13, 14
_PLACE, _FLIP = 32, 40

BLUR_REFERENCE = {2: 224, 3: 96}
"""Side of the global crop that a policy's ``blur_sigma`` speaks of, by number of axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupParams:
    """Parameters of all views of one size.

    Attributes:
        name: ``global`` or ``local``.
        size: Side of the output, pixels.
        num_views: V.
        boxes: [N, D, 2] float32 start and stop in tile pixels; whole numbers.
        flips: [N, D] bool, reverse this axis of the crop.
        transpose: [N] bool, exchange the last two axes after the flips.
        sigma: [N] float32 Gaussian blur in output pixels; 0 for none.
        jitter: [N] bool, whether brightness, contrast and gamma act.
        brightness: [N] float32 shift in the unit range.
        contrast: [N] float32 factor about the crop's mean.
        gamma: [N] float32 exponent.
        noise_std: [N] float32 in the unit range; 0 for none.
        noise_key: [N] int64 counter of the noise.
        solarise: [N] bool.
        key: [N] int64, from which parameters of single channels are drawn.
    """

    name: Literal["global", "local"]
    size: int
    num_views: int
    boxes: Tensor
    flips: Tensor
    transpose: Tensor
    sigma: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    noise_std: Tensor
    noise_key: Tensor
    solarise: Tensor
    key: Tensor

    def map(self, act: Callable[[Tensor], Tensor]) -> GroupParams:
        """Applies a function to every tensor."""
        changed: dict[str, Any] = {f.name: act(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **changed)

    def rows(self, start: int, stop: int) -> GroupParams:
        """Rows start..stop."""
        return self.map(lambda t: t[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParams:
    """Parameters of all views of a batch, largest size first.

    Attributes:
        groups: One per crop size.
        policy: The policy the parameters were drawn under, after ``plan.augment``.
        renderer: As in the plan.
        filter: Resampling filter, resolved.
    """

    groups: tuple[GroupParams, ...]
    policy: ViewPolicy
    renderer: Literal["auto", "matmul", "resize"]
    filter: Literal["linear", "cubic"]

    def to(self, device: torch.device) -> ViewParams:
        """The same on another device."""
        return replace(self, groups=tuple(group.map(lambda t: t.to(device, non_blocking=True)) for group in self.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelParams:
    """Intensity parameters of single channels.

    Attributes:
        brightness: [N, C] float32 shift in the unit range.
        contrast: [N, C] float32 factor.
        keep: [N, C] bool, False where the channel is dropped.
    """

    brightness: Tensor
    contrast: Tensor
    keep: Tensor

    def rows(self, start: int, stop: int) -> ChannelParams:
        """Rows start..stop."""
        return ChannelParams(brightness=self.brightness[start:stop], contrast=self.contrast[start:stop], keep=self.keep[start:stop])


def draw(
    policy: ViewPolicy, plan: ViewsPlan, *, seed: int, tile_ids: Tensor, epochs: Tensor, draws: Tensor, valid_box: Tensor, spacing: Tensor
) -> ViewParams:
    """Draws the views of a batch.

    Args:
        policy: What the domain allows.
        plan: Sizes, counts and scales.
        seed: The run's seed.
        tile_ids: [B] int64.
        epochs: [B] int64.
        draws: [B] int64, repeats of a tile within its epoch.
        valid_box: [B * T, D, 2] int64, T dates of each sample (``dates``); crops lie inside that of their date.
        spacing: [B * T, D] mm or m, NaN where unknown; makes the aspect ratio one of lengths, not of pixels.

    Returns:
        Parameters on the device of ``tile_ids``.

    Raises:
        UserError: The policy names another number of axes than the tiles have.
    """
    ndim = valid_box.shape[1]
    if len(policy.axes) != ndim:
        raise UserError("view policy", f"names {len(policy.axes)} axes {policy.axes}, the tiles have {ndim}")
    policy = policy if plan.augment else _crops_only(policy)
    key = counter.absorb(counter.absorb(counter.absorb(counter.mix(epochs), counter.signed(seed)), tile_ids), draws)
    groups = []
    for index, views in enumerate((plan.num_global, plan.num_local)):
        if views:
            words = torch.arange(views, device=key.device)[:, None] + (index << 32)
            groups.append(_draw_group(policy, plan, index, views, counter.absorb(key[None], words).flatten(), valid_box, spacing))
    kind = plan.filter if plan.filter != "auto" else ("cubic" if ndim == 2 else "linear")
    return ViewParams(groups=tuple(groups), policy=policy, renderer=plan.renderer, filter=kind)


def channel_params(policy: ViewPolicy, group: GroupParams, num_channels: int) -> ChannelParams:
    """Draws what differs between channels; a channel's numbers do not depend on how many there are.

    Args:
        policy: As in ``ViewParams``.
        group: Rows to draw for.
        num_channels: C.
    """
    shape = (group.key.shape[0], num_channels)
    brightness, contrast = group.brightness[:, None].expand(shape), group.contrast[:, None].expand(shape)
    keep = torch.ones(shape, dtype=torch.bool, device=group.key.device)
    if not (policy.per_channel or policy.channel_drop > 0):
        return ChannelParams(brightness=brightness, contrast=contrast, keep=keep)
    key = counter.absorb(group.key[:, None], _CHANNEL + (torch.arange(num_channels, device=group.key.device)[None] << 8))
    if policy.per_channel:
        gate = group.jitter[:, None]
        brightness = _gated(gate, _between(key, _BRIGHTNESS, -policy.brightness, policy.brightness), 0.0)
        contrast = _gated(gate, _between(key, _CONTRAST, 1 - policy.contrast, 1 + policy.contrast), 1.0)
    if policy.channel_drop > 0:
        chance = counter.uniform(key, _CHANNEL)
        keep = (chance >= policy.channel_drop) | (chance >= chance.amax(dim=1, keepdim=True))  # the luckiest channel stays
    return ChannelParams(brightness=brightness, contrast=contrast, keep=keep)


def blur_scale(plan: ViewsPlan, ndim: int) -> float:
    """What a policy's blur is multiplied with: it is stated for the papers' global crops, and smaller crops hold less detail to lose."""
    return plan.global_size / BLUR_REFERENCE[ndim]


def _crops_only(policy: ViewPolicy) -> ViewPolicy:
    return replace(
        policy, flips={}, quarter_turns=False, intensity_probability=0.0, blur_probability=(0.0, 0.0, 0.0),
        noise_probability=0.0, channel_drop=0.0, solarise_probability=0.0,
    )  # fmt: skip


def _between(key: Tensor, word: int, low: float, high: float) -> Tensor:
    return low + (high - low) * counter.uniform(key, word)


def _log_between(key: Tensor, word: int, low: float, high: float) -> Tensor:
    return torch.exp(_between(key, word, math.log(low), math.log(high)))


def _gated(gate: Tensor, value: Tensor, otherwise: float) -> Tensor:
    return torch.where(gate, value, otherwise).float()


def _per_view(values: Sequence[float], rows: int, device: torch.device) -> Tensor:
    """[N] from one number per view, filled on the device: a copy from the host would wait for it."""
    parts = [torch.full((rows // len(values),), value, dtype=torch.float64, device=device) for value in values]
    return torch.cat(parts)


def _draw_group(
    policy: ViewPolicy, plan: ViewsPlan, index: int, views: int, key: Tensor, valid_box: Tensor, spacing: Tensor
) -> GroupParams:
    own = plan.local_scale if index else plan.global_scale
    scale = own or (policy.local_scale if index else policy.global_scale)
    rows, samples, device = key.shape[0], key.shape[0] // views, key.device
    first, second, local = policy.blur_probability
    # The paper's rates: DINOv2's code applies blur with 1 - p where p was meant.
    blur = [local] * views if index else [first, *[second] * (views - 1)]
    solarise = [0.0] * views if index else [0.0, *[policy.solarise_probability] * (views - 1)]
    jitter = counter.uniform(key, _JITTER) < policy.intensity_probability
    noisy = counter.uniform(key, _NOISE) < policy.noise_probability
    blurred = counter.uniform(key, _BLUR) < _per_view(blur, rows, device)
    return GroupParams(
        name="local" if index else "global",
        size=plan.local_size if index else plan.global_size,
        num_views=views,
        boxes=random_boxes(key, per_row(valid_box, views, samples), per_row(spacing, views, samples), scale, policy.aspect),
        flips=_draw_flips(policy, key),
        transpose=(counter.uniform(key, _TURN) < (0.5 if policy.quarter_turns else 0.0)),
        sigma=_gated(blurred, blur_scale(plan, valid_box.shape[1]) * _between(key, _SIGMA, *policy.blur_sigma), 0.0),
        jitter=jitter,
        brightness=_gated(jitter, _between(key, _BRIGHTNESS, -policy.brightness, policy.brightness), 0.0),
        contrast=_gated(jitter, _between(key, _CONTRAST, 1 - policy.contrast, 1 + policy.contrast), 1.0),
        gamma=_gated(jitter, _log_between(key, _GAMMA, *policy.gamma), 1.0),
        noise_std=_gated(noisy, _between(key, _NOISE_STD, *policy.noise_std), 0.0),
        noise_key=counter.absorb(key, _NOISE_KEY),
        solarise=counter.uniform(key, _SOLARISE) < _per_view(solarise, rows, device),
        key=key,
    )


def _draw_flips(policy: ViewPolicy, key: Tensor) -> Tensor:
    chances = [policy.flips.get(name, 0.0) for name in policy.axes]
    return torch.stack([counter.uniform(key, _FLIP + axis) < chance for axis, chance in enumerate(chances)], dim=1)


def random_boxes(key: Tensor, valid_box: Tensor, spacing: Tensor, scale: tuple[float, float], aspect: tuple[float, float]) -> Tensor:
    """Random resized crops (Szegedy et al., 2015, "Going deeper with convolutions") without rejection.

    The fraction is uniform; through-plane the crop takes fraction ** (1 / D) of the extent, in-plane the rest, so that its area
    is kept exactly. The in-plane ratio of lengths (columns to rows) is log-uniform on the part of ``aspect`` that fits the box,
    or the nearest ratio that fits. torchvision throws such draws away and draws the fraction again, so it sees slightly
    fewer large crops on oblong images.

    Args:
        key: [N] int64.
        valid_box: [N, D, 2] whole numbers.
        spacing: [N, D], NaN where unknown (then pixels count as square).
        scale: Range of the area or volume fraction.
        aspect: Range of the ratio.

    Returns:
        [N, D, 2] float32 whole numbers inside ``valid_box``, at least one pixel wide.
    """
    low, high = valid_box[..., 0].double(), valid_box[..., 1].double()
    full = high - low
    ndim = full.shape[1]
    side = (_between(key, _SCALE, *scale) ** (1 / ndim))[:, None]
    rows, columns = full[:, -2], full[:, -1]
    area = rows * columns * side[:, 0] ** 2
    pixel = spacing[:, -2].double() / spacing[:, -1].double()
    pixel = torch.where(torch.isfinite(pixel) & (pixel > 0), pixel, 1.0)  # how many columns make the length of a row
    most, least = columns**2 / area, area / rows**2  # ratios in pixels at which the crop just fits
    floor, ceiling = torch.minimum(aspect[0] * pixel, most).maximum(least), torch.maximum(aspect[1] * pixel, least).minimum(most)
    ratio = floor * (ceiling / floor) ** counter.uniform(key, _ASPECT)
    extent = torch.cat([full[:, :-2] * side, torch.sqrt(area / ratio)[:, None], torch.sqrt(area * ratio)[:, None]], dim=1)
    extent = torch.floor(extent + 0.5).clamp_min(1.0).minimum(full)
    places = torch.stack([counter.uniform(key, _PLACE + axis) for axis in range(ndim)], dim=1)
    start = low + torch.floor(places * (full - extent + 1))
    return torch.stack([start, start + extent], dim=-1).float()
