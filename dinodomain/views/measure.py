"""What a policy draws, in numbers: the size of crops on the patient or ground, their share of a tile, and of known ground.

Shapes: B samples, D spatial axes, N crops of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dinodomain.domain import linear_to_unit
from dinodomain.policy import ViewPolicy, operations
from dinodomain.types import Batch, Normalisation
from dinodomain.views.boxes import Ground, known_share
from dinodomain.views.dates import per_row
from dinodomain.views.draw import GroupParams, draw_batch, effective_policy
from dinodomain.views.geometry import patch_sides
from dinodomain.views.normalise import known_of
from dinodomain.views.plan import ViewsPlan
from dinodomain.views.render import render

TOKENS_OF = 64
"""Crops of each size, at most, whose tokens are looked at where tiles have unknown pixels: they must be resampled for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Crops of one size as they were drawn.

    Attributes:
        name: ``global`` or ``local``.
        extents: [N, D] along the tile's axes in mm or m; NaN where the spacing is unknown.
        pixels: [N, D] the same in tile pixels.
        pixel_size: [N, D] of the crop's own pixels, mm or m, along the tile's axes.
        share: [N] of the tile's area or volume.
        known: [N] share of known pixels.
        tokens_known: [n] share of the crop's tokens of which at least half is known; n is at most N.
        tokens: Patch tokens of a crop.
    """

    name: str
    extents: Tensor
    pixels: Tensor
    pixel_size: Tensor
    share: Tensor
    known: Tensor
    tokens_known: Tensor
    tokens: int


def measure(
    policy: ViewPolicy, plan: ViewsPlan, batches: Sequence[Batch], *, seed: int, draws: int, normalisation: Normalisation,
    patch: int | Sequence[int],
) -> tuple[Drawn, ...]:  # fmt: skip
    """Draws the views of tiles many times over.

    Args:
        policy: The domain's; the plan's changes come on top.
        plan: As in a run.
        batches: Tiles.
        seed: As in a run.
        draws: Samples to draw, at least, over all batches.
        normalisation: The run's.
        patch: Side of a patch token, pixels; one, or one for each axis.

    Returns:
        One for each crop size, in the order of the views.
    """
    samples = sum(len(batch.tile_ids) for batch in batches)
    rounds = math.ceil(draws / samples)
    parts: list[tuple[Drawn, ...]] = []
    for number, batch in enumerate(batches):
        for count in range(rounds):
            again = replace(batch, draws=batch.draws + count)
            looked = min(TOKENS_OF, draws) > number * len(batch.tile_ids) + count * samples
            parts.append(_measured(policy, plan, again, seed, normalisation, patch, tokens=looked))
    return tuple(_joined(same) for same in zip(*parts))


def _measured(
    policy: ViewPolicy, plan: ViewsPlan, batch: Batch, seed: int, normalisation: Normalisation, patch: int | Sequence[int], *, tokens: bool
) -> tuple[Drawn, ...]:
    params = draw_batch(policy, plan, batch, seed=seed, normalisation=normalisation)
    known = known_of(batch)
    shares = _known_tokens(policy, plan, batch, known, seed, patch) if known is not None and tokens else None
    found = []
    for place, group in enumerate(params.groups):
        own = torch.ones(len(group.key), dtype=torch.float64) if known is None else _known(batch, group, known)
        share = own[:0] if shares is None and known is not None else own if shares is None else shares[place]
        found.append(_of_group(batch, group, own, share, patch))
    return tuple(found)


def _of_group(batch: Batch, group: GroupParams, known: Tensor, tokens_known: Tensor, patch: int | Sequence[int]) -> Drawn:
    samples = len(batch.tile_ids)
    sides = (group.boxes[..., 1] - group.boxes[..., 0]).double()
    spacing = per_row(batch.info.spacing, group.num_views, samples).double()
    box = per_row(batch.info.valid_box, group.num_views, samples).double()
    extents = sides * spacing
    return Drawn(
        name=group.name, extents=extents, pixels=sides, pixel_size=extents / group.size,
        share=(sides / (box[..., 1] - box[..., 0])).prod(dim=1), known=known, tokens_known=tokens_known,
        tokens=math.prod(group.size // side for side in patch_sides(patch, (group.size,) * sides.shape[1], group.name)),
    )  # fmt: skip


def _known(batch: Batch, group: GroupParams, known: Tensor) -> Tensor:
    ground = Ground.of(known.flatten(0, 1)).of_group(group.num_views, len(batch.tile_ids))
    start, stop = group.boxes[..., 0].double(), group.boxes[..., 1].double()
    return known_share(ground, start[:, None], (stop - start)[:, None])[:, 0]


def _known_tokens(policy: ViewPolicy, plan: ViewsPlan, batch: Batch, known: Tensor, seed: int, patch: int | Sequence[int]) -> list[Tensor]:
    """Share of usable tokens of every crop of every size: the validity that ``render`` finds, for one channel of nothing."""
    plain = replace(effective_policy(policy, plan), **dict.fromkeys(_pixelwise(policy)))  # type: ignore[arg-type]
    images = batch.pixels.shape[0] * batch.pixels.shape[1]
    one, zero = torch.ones(images, 1), torch.zeros(images, 1)
    info = replace(batch.info, scale=one, offset=zero, nodata=zero * math.nan, low=zero, high=one)
    empty = replace(
        batch, pixels=torch.zeros_like(batch.pixels[:, :, :1], dtype=torch.uint8), valid=(~known[:, :, 0]).to(torch.uint8), info=info,
        channels=("nothing",),
    )  # fmt: skip
    norm = Normalisation(mode="domain", channels=("nothing",), low=(0.0,), high=(1.0,), mean=(0.5,), std=(0.25,))
    params = draw_batch(plain, replace(plan, policy={}, augment=True), empty, seed=seed, normalisation=norm)
    views = render(empty, params, to_float=linear_to_unit, normalisation=norm, patch_size=patch)
    return [(group.valid >= 0.5).double().mean(dim=1) for group in views.groups]


def _pixelwise(policy: ViewPolicy) -> list[str]:
    """Operations that leave geometry and validity alone."""
    return [name for name in operations(policy) if name not in ("rotation", "blur", "thickness", "coarser_pixels")]


def _joined(parts: Iterable[Drawn]) -> Drawn:
    parts = list(parts)
    names = ("extents", "pixels", "pixel_size", "share", "known", "tokens_known")
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined)
