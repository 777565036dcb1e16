"""One operation of a policy at a time, at chosen strengths: what a person looks at to judge a range.

Nothing is drawn or rendered here: an operation alone is a policy of that one operation, whose ranges are single values, and goes through
the same ``draw`` and ``render`` as in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dinodomain.errors import UserError
from dinodomain.policy import Parameter, ViewPolicy, chances, operations, parameters, without_augmentation
from dinodomain.types import Batch, Normalisation, TileInfo
from dinodomain.views.draw import ViewParams, draw_batch
from dinodomain.views.plan import ViewsPlan

APART = ("gain", "window", "jitter")
"""Operations whose parameters are judged one by one: each of them acts without the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An operation, or one parameter of it, at three strengths.

    Attributes:
        operation: Field of the policy.
        varied: Parameters that vary.
        levels: Three settings of them, from the weakest to the strongest; where a range lies on both sides of no effect, its lower end,
            half of its upper end, and its upper end; one where nothing varies.
    """

    operation: str
    varied: tuple[str, ...]
    levels: tuple[Mapping[str, float], ...]


def trials(policy: ViewPolicy) -> tuple[Trial, ...]:
    """What there is to look at in a policy. An operation that never acts, and a parameter that can only be neutral, are left out."""
    found = []
    for name, operation in operations(policy).items():
        items = [item for item in parameters(operation) if not item.low == item.high == item.neutral]
        if not any(chances(operation)):
            continue
        for part in [[item] for item in items] if name in APART else [items]:
            if part:
                names, levels = tuple(item.name for item in part), dict.fromkeys(zip(*(_levels(item) for item in part)))
                found.append(Trial(operation=name, varied=names, levels=tuple(dict(zip(names, level)) for level in levels)))
    return tuple(found)


def _levels(item: Parameter) -> tuple[float, float, float]:
    """Three values of a range, weakest first."""
    if item.low < item.neutral < item.high and math.isfinite(item.neutral):
        return item.low, _between(item, item.neutral, item.high), item.high
    weak, strong = (item.low, item.high) if abs(item.low - item.neutral) <= abs(item.high - item.neutral) else (item.high, item.low)
    if not math.isfinite(item.neutral):
        weak, strong = item.high, item.low
    return weak, _between(item, item.low, item.high), strong


def _between(item: Parameter, low: float, high: float) -> float:
    return math.sqrt(low * high) if item.log else (low + high) / 2


def alone(policy: ViewPolicy, name: str, values: Mapping[str, float]) -> ViewPolicy:
    """A policy of crops and one operation, which always acts, with given values; what is not given is neutral, if neutral is a number.

    Args:
        policy: Where crops, axes and wavelengths come from, and the operation's fixed settings.
        name: Field of the operation.
        values: Parameter to value.

    Raises:
        UserError: The policy does not use this operation, or it has no such parameter.
    """
    used = operations(policy)
    if name not in used:
        raise UserError(name, "is no operation that the policy uses", allowed=", ".join(used))
    items = {item.name: item for item in parameters(used[name])}
    strange = [key for key in values if key not in items]
    if strange:
        raise UserError(f"{name}.{strange[0]}", "is no parameter", allowed=", ".join(items))
    rest = {key: item.neutral if math.isfinite(item.neutral) else item.low for key, item in items.items()}
    ranges: dict[str, Any] = {key: (value, value) for key, value in {**rest, **values}.items()}
    only: dict[str, Any] = {name: replace(used[name], probability=1.0, **ranges)}
    return replace(without_augmentation(policy), **only)


def one_sample(batch: Batch, sample: int) -> Batch:
    """One sample of a batch, with all its dates."""
    dates = batch.pixels.shape[1]
    per_image = slice(sample * dates, (sample + 1) * dates)
    own: dict[str, Any] = {name: getattr(batch, name)[sample : sample + 1] for name in ("pixels", "tile_ids", "epochs", "draws", "slots")}
    own |= {name: getattr(batch, name)[per_image] for name in ("rows", "origins")}
    info: dict[str, Any] = {name: getattr(batch.info, name)[per_image] for name in type(batch.info).__dataclass_fields__}
    valid = None if batch.valid is None else batch.valid[sample : sample + 1]
    return replace(batch, valid=valid, info=replace(batch.info, **info), **own)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples of several that have tiles of one kind."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    info = {name: torch.cat([getattr(batch.info, name) for batch in batches]) for name in type(batches[0].info).__dataclass_fields__}
    names = ("pixels", "tile_ids", "epochs", "draws", "rows", "origins", "slots")
    valid = None if batches[0].valid is None else cat("valid")
    own: dict[str, Any] = {name: cat(name) for name in names}
    return replace(batches[0], info=TileInfo(**info), valid=valid, **own)


def one_crop(policy: ViewPolicy, plan: ViewsPlan, batch: Batch, *, seed: int, normalisation: Normalisation) -> ViewParams:
    """The first global crop of every sample under a policy as it stands, whatever the plan changes.

    Args:
        policy: For example from ``alone``.
        plan: Sizes and extents.
        batch: Tiles.
        seed: Decides where the crop lies, as in a run.
        normalisation: The run's.
    """
    return draw_batch(
        policy, replace(plan, policy={}, augment=True, num_global=1, num_local=0), batch, seed=seed, normalisation=normalisation
    )


def at_levels(
    policy: ViewPolicy, plan: ViewsPlan, batch: Batch, trial: Trial, *, seed: int, normalisation: Normalisation
) -> tuple[ViewParams, ...]:
    """The first global crop without an operation, and with it at each of its strengths: one place, one draw of everything random."""
    variants = [without_augmentation(policy), *(alone(policy, trial.operation, level) for level in trial.levels)]
    drawn = [one_crop(variant, plan, batch, seed=seed, normalisation=normalisation) for variant in variants]
    # A crop that turns is smaller, so that it stays on known ground: all take the smallest box.
    boxes = torch.stack([params.groups[0].boxes for params in drawn])
    extent = (boxes[..., 1] - boxes[..., 0]).flatten(1).sum(dim=1)
    smallest = boxes[int(extent.argmin())]
    return tuple(replace(params, groups=(replace(params.groups[0], boxes=smallest),)) for params in drawn)


def turned_over(params: ViewParams, *, axis: int | None) -> ViewParams:
    """The same crop reversed along an axis, or, with None, with its last two axes exchanged."""
    group, policy = params.groups[0], params.policy
    flips, transpose = group.flips.clone(), group.transpose
    if axis is None:
        policy, transpose = replace(policy, quarter_turns=True), torch.ones_like(transpose)
    else:
        policy = replace(policy, flip={**policy.flip, policy.axes[axis]: 1.0})
        flips[:, axis] = True
    return replace(params, policy=policy, groups=(replace(group, flips=flips, transpose=transpose),))
