"""Rotary positions: queries and keys are turned by the coordinates of their patches (Su 2021), axis by axis as in DINOv3.

Of a head's h channels each of the D axes turns n = h // (2 D) pairs, pair i by the angle 2 pi * coordinate / base ** (i / n)
(Simeoni 2025, "DINOv3", and its published code; there D = 2). Pairs are (c, c + h / 2); those that do not divide evenly among the axes,
and class and register tokens, are turned by 0. Trigonometry is float32; the angles of a crop size are made once for all blocks.

Shapes: N images, P patches, R class and register tokens, L = R + P, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dinodomain.errors import UserError
from dinodomain.model.plan import ModelPlan
from dinodomain.model.positions import Grid
from dinodomain.types import Acquisition


class Turn(NamedTuple):
    """How the queries and keys of one crop size are turned.

    Attributes:
        cos: [N or 1, L, 1, h] float32; 1 where nothing is turned.
        sin: The same, with the sign that a channel's partner comes in with: minus in the first half; 0 where nothing is turned.
    """

    cos: Tensor
    sin: Tensor

    def of_samples(self, samples: Tensor) -> Turn:
        """That of some samples [n]; one that all share stays as it is."""
        return self if self.cos.shape[0] == 1 else Turn(self.cos.index_select(0, samples), self.sin.index_select(0, samples))

    def of_tokens(self, tokens: Tensor) -> Turn:
        """That of other tokens in each sample, [N, L'] places among L."""
        index = tokens[:, :, None, None].expand(-1, -1, -1, self.cos.shape[-1])
        cos, sin = (part.expand(tokens.shape[0], -1, -1, -1).gather(1, index) for part in self)
        return Turn(cos, sin)


class Rope:
    """Makes turns; holds numbers of the plan, no weights.

    Args:
        plan: With ``position="rope"``.
        patch: Sides of a patch in pixels, one per axis.
        grid: Patches per axis of a global crop.
        prefix: R, tokens before the patches.

    Raises:
        UserError: Heads are too narrow for the axes, or physical units have no length.
    """

    def __init__(self, plan: ModelPlan, *, patch: Grid, grid: Grid, prefix: int) -> None:
        width, least = plan.dim // plan.heads, 2 * len(patch)
        if width < least:
            found = f"{plan.heads} heads of {width} channels each: rope needs a pair for each of {len(patch)} axes"
            raise UserError(
                "model.heads", found, allowed=f"heads of {least} channels or more", remedy="take fewer heads or a larger model.dim"
            )
        if plan.rope_unit == "physical" and plan.rope_length is None:
            found = "is not known, and positions are measured in mm or m (model.rope_unit=physical)"
            raise UserError("model.rope_length", found, remedy="give it; half the side of a global crop is a good choice")
        self.plan, self.patch, self.grid, self.prefix = plan, patch, grid, prefix
        self.half, self.pairs = width // 2, width // least

    def turn(self, x: Tensor, grid: Grid, about: Acquisition | None, *, training: bool) -> Turn:
        """The turn of images [N, C, *size] on their token grid.

        Args:
            x: Says how many images there are, and on which device.
            grid: Their patches per axis.
            about: Holds their spacing; looked at in physical units only.
            training: Whether to shift, stretch and rescale coordinates at random, all images of ``x`` alike (DINOv3); draws come from
                torch's default generator of the device.

        Raises:
            UserError: Physical units, and a spacing is missing or unknown.
        """
        with torch.autocast(x.device.type, enabled=False):
            coordinates = self._coordinates(x, grid, about, training=training)
            coordinates = self.varied(coordinates) if training else coordinates
            exponents = torch.arange(self.pairs, dtype=torch.float32, device=x.device) / self.pairs
            angles = 2 * math.pi * coordinates[..., None] / self.plan.rope_base**exponents
            angles = angles.flatten(2)
            angles = functional.pad(angles, (0, self.half - angles.shape[2], self.prefix, 0))[:, :, None]
            cos, sin = angles.cos(), angles.sin()
            return Turn(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))

    def _coordinates(self, x: Tensor, grid: Grid, about: Acquisition | None, *, training: bool) -> Tensor:
        """[N or 1, P, D] float32 of the centres of patches from the middle of the crop, row-major over the grid."""
        length = self.plan.rope_length
        if self.plan.rope_unit == "crop":
            sides = [2 * (torch.arange(0.5, count, device=x.device) / count) - 1 for count in grid]
        elif self.plan.rope_unit == "patch":
            reach = [length or count / 2 for count in self.grid]
            sides = [(torch.arange(0.5, count, device=x.device) - count / 2) / own for count, own in zip(grid, reach)]
        else:
            sides = [(torch.arange(0.5, count, device=x.device) - count / 2) * own for count, own in zip(grid, self.patch)]
        places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)[None]
        if self.plan.rope_unit != "physical":
            return places
        assert length is not None
        sizes = spacing_of(about, x.shape[0], len(grid), training=training).to(x.device, torch.float32)
        return places * (sizes / length)[:, None]

    def varied(self, coordinates: Tensor) -> Tensor:
        """Coordinates shifted, stretched along each axis, and rescaled along all of them, in this order."""
        plan, ndim = self.plan, coordinates.shape[-1]
        if plan.rope_shift > 0:
            coordinates = coordinates + coordinates.new_empty(ndim).uniform_(-plan.rope_shift, plan.rope_shift)
        for largest, axes in ((plan.rope_jitter, ndim), (plan.rope_rescale, 1)):
            if largest > 1:
                coordinates = coordinates * coordinates.new_empty(axes).uniform_(-math.log(largest), math.log(largest)).exp()
        return coordinates


def turned(x: Tensor, turn: Turn) -> Tensor:
    """[N, L, H, h] turned, in its own type."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * turn.cos.to(x.dtype), torch.cat([second, first], dim=-1), turn.sin.to(x.dtype))


def spacing_of(about: Acquisition | None, count: int, ndim: int, *, training: bool = False) -> Tensor:
    """[N, D] pixel sizes of images, all known.

    Looking at values on an accelerator waits for it. In training that is left out: there the engine has asked the store, and what is not
    finite never reaches a weight.

    Raises:
        UserError: They are missing, of another shape, or one is unknown.
    """
    spacing = None if about is None else about.spacing
    place, remedy = "spacing", "tell the pixel size of every image (Acquisition.spacing), or train with model.rope_unit=crop"
    if spacing is None:
        raise UserError(place, "is not told, and this network measures positions in mm or m (model.rope_unit=physical)", remedy=remedy)
    if tuple(spacing.shape) != (count, ndim):
        allowed = f"{(count, ndim)}, a pixel size along each axis of every image"
        raise UserError(place, f"has shape {tuple(spacing.shape)}", allowed=allowed, remedy=remedy)
    trusted = training and spacing.device.type != "cpu"
    if not (trusted or torch.compiler.is_compiling()):
        unknown = ~(torch.isfinite(spacing) & (spacing > 0)).all(dim=1)
        if bool(unknown.any()):
            found = f"is unknown of {int(unknown.sum())} of {count} images, which this network needs (model.rope_unit=physical)"
            raise UserError(place, found, allowed="numbers above 0, in the unit of training", remedy=remedy)
    return spacing
