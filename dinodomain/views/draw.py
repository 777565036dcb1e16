"""Draws the parameters of every view: pure functions of integers, no generator, no host synchronisation.

Shapes: B samples, T dates, V views of one size, N = V x B rows (row v * B + b is view v of sample b), D spatial axes in array order,
K network channels. Every number is a hash of (seed, epoch, tile id, draw, view, parameter name), so a sample's views do not depend on
its batch, rank, order, device or number of dates; only where a crop lies may depend on pixels, and only on which of them are known.
All numbers of a batch come from one call of the hash: on an accelerator that is a dozen launches instead of a dozen for each parameter.
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
from dinodomain.views.boxes import NARROWEST, TRIES, Ground, Spans, crop_boxes, words_of
from dinodomain.views.dates import per_row, per_rows
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
    renderer: Literal["fastest", "matmul", "resize"]
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
        found = f"names {len(policy.axes)} axes {policy.axes}, the tiles have {ndim}"
        raise UserError("view policy", found, allowed=f"a domain of {ndim}-D tiles", remedy="name it: domain=NAME")
    salts = tuple(word(f"{name} of seed {counter.signed(seed)}") for name in ("tile", "epoch", "draw"))
    key = counter.join((tile_ids, epochs, draws), constants(salts, tile_ids.device, torch.int64))
    ground = None if known is None else Ground.of(known.flatten(0, 1))
    counts = [views for views in (plan.num_global, plan.num_local) if views]
    words = tuple(view + (index << 32) for index, views in enumerate(counts) for view in range(views))
    rows = counter.absorb(key[None], constants(words, key.device, torch.int64)[:, None]).flatten()
    numbers = _Numbers(policy, rows, sources, tries=1 if ground is None else TRIES)
    groups = _draw_groups(policy, plan, numbers, counts, rows, valid_box, spacing, ground)
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
    """All uniform numbers of a batch, [N, W] float64 of the rows of all groups, by name."""

    def __init__(self, policy: ViewPolicy, rows: Tensor, sources: Sequence[int], *, tries: int) -> None:
        self.gates = [f"{name}.on" for name in operations(policy)]
        self.drawn = _drawn(policy, sources)
        self.turns = [*(f"flip.{axis}" for axis in policy.axes), "turn"]
        names = [*self.turns, *self.gates, *(name for item in self.drawn for name in item.names)]
        words = (*words_of(len(policy.axes), tries=tries), *(word(name) for name in names))
        columns = {item: place for place, item in enumerate(words)}
        # The channels of two displays of one source share their numbers, so a word may be there twice; runs begin at its first column.
        self._first = len(words) - len(names)
        self._names = {name: place for place, name in reversed([*enumerate(names)])}
        self.hashed = counter.Hashed.of(rows, constants(words, rows.device, torch.int64), columns)

    def columns(self, first: str, count: int) -> Tensor:
        """[N, count] from a name on."""
        start = self._first + self._names[first]
        return self.hashed.values[:, start : start + count]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A parameter of an operation: one column, or one for each channel of the network.

    Attributes:
        operation: Name.
        place: Place of the operation among those of the policy.
        parameter: Its range.
        names: Name of each number.
        per_channel: Whether every channel has its own.
    """

    operation: str
    place: int
    parameter: Parameter
    names: tuple[str, ...]
    per_channel: bool


def _drawn(policy: ViewPolicy, sources: Sequence[int]) -> list[_Drawn]:
    """What is drawn, in order; a channel's numbers do not depend on how many there are."""
    found = []
    for place, (name, operation) in enumerate(operations(policy).items()):
        own = _is_per_channel(policy, name)
        for item in parameters(operation):
            names = tuple(f"{name}.{item.name}.{source}" for source in sources) if own else (f"{name}.{item.name}",)
            found.append(_Drawn(name, place, item, names, own))
    return found


def _turns(policy: ViewPolicy, numbers: _Numbers) -> Tensor:
    """[N, D + 1] bool: flip of each axis, exchange of the last two."""
    rates = (*(policy.flip.get(axis, 0.0) for axis in policy.axes), 0.5 if policy.quarter_turns else 0.0)
    unit = numbers.columns(numbers.turns[0], len(rates))
    return unit < constants(rates, unit.device)


def _draw_groups(
    policy: ViewPolicy, plan: ViewsPlan, numbers: _Numbers, counts: Sequence[int], key: Tensor, valid_box: Tensor, spacing: Tensor,
    ground: Ground | None,
) -> list[GroupParams]:  # fmt: skip
    """All groups, ``counts`` views of each; drawn together and then cut apart."""
    samples, ndim = len(key) // sum(counts), valid_box.shape[1]
    ops = _draw_operations(policy, numbers, counts, samples)
    angle = _angles(ops["rotation"], per_rows(valid_box, counts, samples)) if policy.rotation else None
    boxes = _draw_boxes(policy, plan, numbers.hashed, counts, samples, valid_box, spacing, angle, ground)
    sides = (plan.global_size, plan.local_size)
    size = _per_view([float(side) for side in sides[: len(counts)]], counts, samples, key.device, torch.float32)[:, None]
    turns = _turns(policy, numbers)
    own = GroupParams(
        name="global",
        size=plan.global_size,
        num_views=counts[0],
        boxes=boxes,
        flips=turns[:, :-1],
        transpose=turns[:, -1],
        angle=torch.zeros_like(boxes[:, 0, 0]) if angle is None else angle,
        sigma=_sigma(policy, ops, boxes, per_rows(spacing, counts, samples), size, blur_scale(plan, ndim)),
        key=key,
        operations=ops,
    )
    groups = [own.rows(0, counts[0] * samples)]
    if len(counts) == 2:
        groups.append(replace(own.rows(counts[0] * samples, len(key)), name="local", size=plan.local_size, num_views=counts[1]))
    return groups


def _angles(rotation: OpParams, valid_box: Tensor) -> Tensor:
    """[N] float32 radians; 0 where a valid box is too narrow for a turned crop to stay inside."""
    narrow = (valid_box[..., 1] - valid_box[..., 0])[:, -2:].amin(dim=1) < NARROWEST
    return torch.where(narrow, 0.0, rotation.values["degrees"] * (math.pi / 180))


def _per_view(
    values: Sequence[float], counts: Sequence[int], samples: int, device: torch.device, dtype: torch.dtype = torch.float64
) -> Tensor:
    """[N], one value for the rows of each group."""
    views = tuple(value for value, count in zip(values, counts) for _ in range(count))
    return constants(views, device, dtype)[:, None].expand(-1, samples).reshape(-1)


def _draw_boxes(
    policy: ViewPolicy, plan: ViewsPlan, numbers: counter.Hashed, counts: Sequence[int], samples: int, valid_box: Tensor, spacing: Tensor,
    angle: Tensor | None, ground: Ground | None,
) -> Tensor:  # fmt: skip
    """[N, D, 2] of all groups, together where their sizes are of one kind."""
    each = [Spans.of(policy, plan, local=bool(index)) for index in range(len(counts))]
    if len({spans.kind() for spans in each}) == 1:
        box, pitch = per_rows(valid_box, counts, samples), per_rows(spacing, counts, samples)
        known = None if ground is None else replace(ground, image=per_rows(ground.image, counts, samples))
        return crop_boxes(policy, _merged(each, counts, samples, box.device), numbers, box, pitch, angle, ground=known)
    found, start = [], 0
    for spans, views in zip(each, counts):
        stop = start + views * samples
        box, pitch = per_row(valid_box, views, samples), per_row(spacing, views, samples)
        known = None if ground is None else replace(ground, image=per_row(ground.image, views, samples))
        turned = None if angle is None else angle[start:stop]
        found.append(crop_boxes(policy, spans, numbers.rows(start, stop), box, pitch, turned, ground=known))
        start = stop
    return torch.cat(found)


def _merged(each: Sequence[Spans], counts: Sequence[int], samples: int, device: torch.device) -> Spans:
    """Spans of every row."""

    def rows(spans: Sequence[Any]) -> Any:
        if spans[0] is None:
            return None
        return tuple(_per_view([span[end] for span in spans], counts, samples, device) for end in (0, 1))

    return Spans(*(rows([getattr(spans, item.name) for spans in each]) for item in fields(Spans)))


def _draw_operations(policy: ViewPolicy, numbers: _Numbers, counts: Sequence[int], samples: int) -> dict[str, OpParams]:
    """Parameters of the rows of all groups, ``counts`` views of each."""
    ops, device = operations(policy), numbers.hashed.values.device
    if not ops:
        return {}
    order = [place for index, views in enumerate(counts) for place in ([2] * views if index else [0, *[1] * (views - 1)])]
    rates = tuple(chances(operation)[place] for place in order for operation in ops.values())
    gates = numbers.columns(numbers.gates[0], len(ops)).reshape(len(order), samples, len(ops))
    on = (gates < constants(rates, device).reshape(len(order), 1, len(ops))).flatten(0, 1)
    found = {name: OpParams(on=on[:, place], values={}) for place, name in enumerate(ops)}
    if not numbers.drawn:
        return found
    flat = [item for item in numbers.drawn for _ in item.names]
    gate = on.index_select(1, constants(tuple(item.place for item in flat), device, torch.int64))
    values, column = _ranged(numbers.columns(flat[0].names[0], len(flat)), gate, [item.parameter for item in flat]), 0
    for item in numbers.drawn:
        own = values[:, column : column + len(item.names)] if item.per_channel else values[:, column]
        found[item.operation] = replace(found[item.operation], values={**found[item.operation].values, item.parameter.name: own})
        column += len(item.names)
    return found


def _ranged(unit: Tensor, on: Tensor, items: Sequence[Parameter]) -> Tensor:
    """[..., P] float32 parameters from uniform numbers of the same shape; neutral where ``on`` is False."""
    bounds = [(math.log(p.low), math.log(p.high)) if p.log else (p.low, p.high) for p in items]
    low = constants(tuple(bound[0] for bound in bounds), unit.device)
    value = low + constants(tuple(bound[1] - bound[0] for bound in bounds), unit.device) * unit
    if any(p.log for p in items):
        value = torch.where(constants(tuple(p.log for p in items), unit.device, torch.bool), torch.exp(value), value)
    return torch.where(on, value, constants(tuple(p.neutral for p in items), unit.device)).float()


def _is_per_channel(policy: ViewPolicy, name: str) -> bool:
    operation = getattr(policy, name)
    return name == "gain" or (isinstance(operation, Jitter) and operation.per_channel)


def _sigma(policy: ViewPolicy, ops: Mapping[str, OpParams], boxes: Tensor, spacing: Tensor, size: Tensor, scale: float) -> Tensor:
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
    return variance.sqrt().float()


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
        share = group.operations["subset_channels"].values["keep"].double()
        count = torch.ceil(share * num_channels - 1e-6).clamp_min(1.0)  # 0.3 is float32: 0.3 of 10 channels would be 4
        keep = keep & (rank < count[:, None])
        keep = keep | ((rank == 0) & ~keep.any(dim=1, keepdim=True))
    return keep
