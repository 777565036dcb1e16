"""Draws the parameters of every view: pure functions of integers, no generator, no host synchronisation.

Shapes: B samples, T dates, V views of one size, N = V x B rows (row v * B + b is view v of sample b), D spatial axes in array order,
K network channels. Every number is a hash of (seed, epoch, tile id, draw, view, parameter name), so a sample's views do not depend on
its batch, rank, order, device or number of dates; only where a crop lies may depend on pixels, and only on which of them are known.
All numbers of a group come from one call of the hash: on an accelerator that is a dozen launches instead of one for each parameter.
Arithmetic is float64; what leaves is float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.policy import Jitter, Parameter, ViewPolicy, chances, changed, operations, parameters, without_augmentation
from dinodomain.types import Batch, Normalisation
from dinodomain.views import counter
from dinodomain.views.boxes import Ground, crop_boxes, known_cells
from dinodomain.views.dates import per_row
from dinodomain.views.normalise import constants, known_of, source_channels
from dinodomain.views.plan import ViewsPlan

BLUR_REFERENCE = {2: 224, 3: 96}
"""Side of the global crop that a policy's ``blur.sigma`` speaks of, by number of axes."""

FWHM = math.sqrt(8 * math.log(2))
"""Full width at half maximum of a Gaussian, in sigmas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpParams:
    """Drawn parameters of one operation.

    Attributes:
        on: [N] bool, whether it acts on this row.
        values: Parameter name to [N] or, drawn per channel, [N, K] float32; neutral where it does not act.
    """

    on: Tensor
    values: Mapping[str, Tensor]

    def map(self, act: Callable[[Tensor], Tensor]) -> OpParams:
        """Applies a function to every tensor."""
        return OpParams(on=act(self.on), values={name: act(value) for name, value in self.values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupParams:
    """Parameters of all views of one size.

    Attributes:
        name: ``global`` or ``local``.
        size: Side of the output, pixels.
        num_views: V.
        boxes: [N, D, 2] float32 start and stop in tile pixels, whole numbers; pixel i covers [i, i + 1).
        flips: [N, D] bool, reverse this axis of the crop.
        transpose: [N] bool, exchange the last two axes after the flips.
        angle: [N] float32 radians, turn the crop about its centre in its last two axes, before the flips; 0 for none.
        sigma: [N, D] float32 Gaussian blur along each axis in output pixels (blur, slice profile and point spread together); 0 for none.
        key: [N] int64, from which what is drawn per pixel or node comes.
        operations: By name, for the operations of the policy.
    """

    name: Literal["global", "local"]
    size: int
    num_views: int
    boxes: Tensor
    flips: Tensor
    transpose: Tensor
    angle: Tensor
    sigma: Tensor
    key: Tensor
    operations: Mapping[str, OpParams]

    def map(self, act: Callable[[Tensor], Tensor]) -> GroupParams:
        """Applies a function to every tensor."""
        changes: dict[str, Any] = {f.name: act(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, operations={name: item.map(act) for name, item in self.operations.items()}, **changes)

    def rows(self, start: int, stop: int) -> GroupParams:
        """Rows start..stop."""
        return self.map(lambda t: t[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParams:
    """Parameters of all views of a batch, largest size first.

    Attributes:
        groups: One per crop size.
        policy: The policy the parameters were drawn under, after ``plan.policy`` and ``plan.augment``.
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


def draw(
    policy: ViewPolicy, plan: ViewsPlan, *, seed: int, tile_ids: Tensor, epochs: Tensor, draws: Tensor, valid_box: Tensor, spacing: Tensor,
    sources: Sequence[int], known: Tensor | None = None,
) -> ViewParams:  # fmt: skip
    """Draws the views of a batch.

    Args:
        policy: What the domain allows; ``plan.policy`` changes it.
        plan: Sizes, counts and scales.
        seed: The run's seed.
        tile_ids: [B] int64.
        epochs: [B] int64.
        draws: [B] int64, repeats of a tile within its epoch.
        valid_box: [B * T, D, 2] int64, T dates of each sample (``dates``); crops lie inside that of their date.
        spacing: [B * T, D] mm or m, NaN where unknown; makes the aspect ratio one of lengths, not of pixels.
        sources: K numbers, the channel of the tiles behind each channel of the network; channels of one source share its calibration.
        known: [B, T, 1, *L] bool, see ``known_of``; None where every pixel is known.

    Returns:
        Parameters on the device of ``tile_ids``.

    Raises:
        UserError: The policy names another number of axes than the tiles have.
    """
    policy = effective_policy(policy, plan)
    ndim = valid_box.shape[1]
    if len(policy.axes) != ndim:
        raise UserError("view policy", f"names {len(policy.axes)} axes {policy.axes}, the tiles have {ndim}")
    key = counter.absorb(counter.absorb(counter.absorb(counter.mix(epochs), counter.signed(seed)), tile_ids), draws)
    ground = None if known is None else Ground(cells=known_cells(known.flatten(0, 1)), extent=tuple(known.shape[3:]))
    groups = []
    for index, views in enumerate((plan.num_global, plan.num_local)):
        if views:
            words = torch.arange(views, device=key.device)[:, None] + (index << 32)
            rows = counter.absorb(key[None], words).flatten()
            groups.append(_draw_group(policy, plan, index, views, rows, valid_box, spacing, sources, ground))
    kind = plan.filter if plan.filter != "auto" else ("cubic" if ndim == 2 else "linear")
    return ViewParams(groups=tuple(groups), policy=policy, renderer=plan.renderer, filter=kind)


def draw_batch(policy: ViewPolicy, plan: ViewsPlan, batch: Batch, *, seed: int, normalisation: Normalisation) -> ViewParams:
    """Draws the views of a batch of tiles, see ``draw``.

    Raises:
        UserError: The policy names another number of axes than the tiles have, or the batch has other channels than the network.
    """
    return draw(
        policy, plan, seed=seed, tile_ids=batch.tile_ids, epochs=batch.epochs, draws=batch.draws, valid_box=batch.info.valid_box,
        spacing=batch.info.spacing, sources=source_channels(normalisation, batch.channels), known=known_of(batch),
    )  # fmt: skip


def effective_policy(policy: ViewPolicy, plan: ViewsPlan) -> ViewPolicy:
    """The domain's policy with the plan's changes.

    Raises:
        Problems: Changes that the policy refuses.
    """
    policy = changed(policy, plan.policy)
    return policy if plan.augment else without_augmentation(policy)


def blur_scale(plan: ViewsPlan, ndim: int) -> float:
    """What a policy's blur is multiplied with: it is stated for the papers' global crops, and smaller crops hold less detail to lose."""
    return plan.global_size / BLUR_REFERENCE[ndim]


@lru_cache(maxsize=1024)
def word(name: str) -> int:
    """The word of the hash that stands for a parameter; a function of its name, so that no number can be used twice."""
    return counter.signed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


class _Numbers:
    """All uniform numbers of a group, [N, W] float64, by name."""

    def __init__(self, key: Tensor, names: Sequence[str]) -> None:
        self._column = {name: place for place, name in enumerate(names)}
        self._values = counter.uniform(key[:, None], constants(tuple(word(name) for name in names), key.device, torch.int64)[None])

    def __getitem__(self, name: str) -> Tensor:
        """[N]."""
        return self._values[:, self._column[name]]

    def columns(self, names: Sequence[str]) -> Tensor:
        """[N, len(names)]; names that follow one another."""
        first = self._column[names[0]]
        return self._values[:, first : first + len(names)]


def _draw_group(
    policy: ViewPolicy, plan: ViewsPlan, index: int, views: int, key: Tensor, valid_box: Tensor, spacing: Tensor, sources: Sequence[int],
    ground: Ground | None,
) -> GroupParams:  # fmt: skip
    samples, size = len(key) // views, plan.local_size if index else plan.global_size
    box, pitch = per_row(valid_box, views, samples), per_row(spacing, views, samples)
    own = None if ground is None else replace(ground, cells=per_row(ground.cells, views, samples))
    boxes = crop_boxes(policy, plan, key, box, pitch, local=bool(index), ground=own)
    flip_names, op_names = [f"flip.{axis}" for axis in policy.axes], list(operations(policy))
    numbers = _Numbers(key, [*flip_names, "turn", *(f"{name}.on" for name in op_names), *_drawn_names(policy)])
    ops = _draw_operations(policy, numbers, index, views, key, sources)
    flips = numbers.columns(flip_names) < constants(tuple(policy.flip.get(axis, 0.0) for axis in policy.axes), key.device)
    return GroupParams(
        name="local" if index else "global",
        size=size,
        num_views=views,
        boxes=boxes,
        flips=flips,
        transpose=numbers["turn"] < (0.5 if policy.quarter_turns else 0.0),
        angle=ops["rotation"].values["degrees"] * (math.pi / 180) if policy.rotation else torch.zeros_like(boxes[:, 0, 0]),
        sigma=_sigma(policy, ops, boxes, pitch, size, blur_scale(plan, boxes.shape[1])),
        key=key,
        operations=ops,
    )


def _drawn_names(policy: ViewPolicy) -> list[str]:
    return [f"{name}.{item.name}" for name, operation in operations(policy).items() for item in parameters(operation)]


def _draw_operations(
    policy: ViewPolicy, numbers: _Numbers, index: int, views: int, key: Tensor, sources: Sequence[int]
) -> dict[str, OpParams]:
    ops = operations(policy)
    if not ops:
        return {}
    gates = numbers.columns([f"{name}.on" for name in ops])
    order = [2] * views if index else [0, *[1] * (views - 1)]
    rates = tuple(chances(operation)[place] for place in order for operation in ops.values())
    limit = constants(rates, key.device).reshape(views, 1, len(ops)).expand(-1, len(key) // views, -1).flatten(0, 1)
    on = gates < limit
    drawn = {name: [*parameters(operation)] for name, operation in ops.items()}
    flat = [item for items in drawn.values() for item in items]
    owner = [place for place, items in enumerate(drawn.values()) for _ in items]
    gate = on.index_select(1, constants(tuple(owner), key.device, torch.int64))
    values = _ranged(numbers.columns(_drawn_names(policy)), gate, flat)
    found, column = {}, 0
    for place, (name, items) in enumerate(drawn.items()):
        own = {item.name: values[:, column + offset] for offset, item in enumerate(items)}
        found[name] = OpParams(on=on[:, place], values=own)
        column += len(items)
    for name in ops:
        if _is_per_channel(policy, name):
            found[name] = _per_channel(name, found[name], drawn[name], key, sources)
    return found


def _ranged(unit: Tensor, on: Tensor, items: Sequence[Parameter]) -> Tensor:
    """[..., P] float32 parameters from uniform numbers of the same shape; neutral where ``on`` is False."""
    bounds = [(math.log(p.low), math.log(p.high)) if p.log else (p.low, p.high) for p in items]
    low = constants(tuple(bound[0] for bound in bounds), unit.device)
    span = constants(tuple(bound[1] - bound[0] for bound in bounds), unit.device)
    linear = low + span * unit
    logs = constants(tuple(float(p.log) for p in items), unit.device) > 0
    value = torch.where(logs, torch.exp(torch.where(logs, linear, 0.0)), linear)
    return torch.where(on, value, constants(tuple(p.neutral for p in items), unit.device)).float()


def _is_per_channel(policy: ViewPolicy, name: str) -> bool:
    operation = getattr(policy, name)
    return name == "gain" or (isinstance(operation, Jitter) and operation.per_channel)


def _per_channel(name: str, row: OpParams, items: Sequence[Parameter], key: Tensor, sources: Sequence[int]) -> OpParams:
    """The same operation with numbers of its own for each channel; a channel's do not depend on how many there are."""
    words = tuple(word(f"{name}.{item.name}.{source}") for source in sources for item in items)
    unit = counter.uniform(key[:, None], constants(words, key.device, torch.int64)[None])
    values = _ranged(unit.reshape(len(key), len(sources), len(items)), row.on[:, None, None], items)
    return OpParams(on=row.on, values={item.name: values[..., place] for place, item in enumerate(items)})


def _sigma(policy: ViewPolicy, ops: Mapping[str, OpParams], boxes: Tensor, spacing: Tensor, size: int, scale: float) -> Tensor:
    """[N, D] blur of each axis: Gaussians after one another add their variances.

    A slice profile of width t seen with slices of width d leaves t^2 - d^2 to add; so does a pixel of f times the tile's own.
    """
    step = (boxes[..., 1] - boxes[..., 0]) / size
    variance = torch.zeros_like(step)
    if "blur" in ops:
        variance = variance + (scale * ops["blur"].values["sigma"]).square()[:, None]
    if policy.thickness is not None:
        axis = policy.axes.index(policy.thickness.axis)
        own = spacing[:, axis].float()
        excess = (ops["thickness"].values["mm"].square() - own.square()).clamp_min(0.0) / (FWHM * own * step[:, axis]).square()
        column = constants(tuple(float(place == axis) for place in range(step.shape[1])), step.device, torch.float32)
        variance = variance + torch.nan_to_num(excess)[:, None] * column
    if policy.coarser_pixels is not None:
        excess = (ops["coarser_pixels"].values["factor"].square() - 1.0) / FWHM**2
        column = constants(tuple(float(place >= step.shape[1] - 2) for place in range(step.shape[1])), step.device, torch.float32)
        variance = variance + excess[:, None] * column / step.square()
    return variance.sqrt()


def channels_kept(policy: ViewPolicy, group: GroupParams, num_channels: int) -> Tensor | None:
    """[N, K] bool, False where a channel is lost; None where the policy loses none. At least one channel stays."""
    if policy.drop_channels is None and policy.subset_channels is None:
        return None
    places = torch.arange(num_channels, device=group.key.device)
    keep = torch.ones((len(group.key), num_channels), dtype=torch.bool, device=group.key.device)
    if policy.drop_channels is not None:
        luck = counter.uniform(counter.absorb(group.key, word("drop_channels"))[:, None], places[None])
        share = group.operations["drop_channels"].values["share"].double()[:, None]
        keep = keep & ((luck >= share) | (luck >= luck.amax(dim=1, keepdim=True)))  # the luckiest channel stays
    if policy.subset_channels is not None:
        luck = counter.uniform(counter.absorb(group.key, word("subset_channels"))[:, None], places[None])
        rank = (luck[:, :, None] < luck[:, None, :]).sum(dim=2)
        count = torch.ceil(group.operations["subset_channels"].values["keep"].double() * num_channels).clamp_min(1.0)
        keep = keep & (rank < count[:, None])
        keep = keep | ((rank == 0) & ~keep.any(dim=1, keepdim=True))
    return keep
