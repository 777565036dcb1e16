"""A vision transformer for images and volumes.

In 2-D its parameter names and its arithmetic are those of timm's ``VisionTransformer``, so that other people's pipelines load it;
the 3-D twin differs in the patch projection and the position grid only. Shapes as in ``dinodomain.types``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dinodomain.errors import UserError
from dinodomain.model.block import Block, Layout
from dinodomain.model.patch_embed import PatchEmbed, grid_of
from dinodomain.model.plan import ModelPlan
from dinodomain.model.positions import Grid, resample, sincos
from dinodomain.types import Features


class VisionTransformer(nn.Module):
    """Tokens of images or volumes.

    Args:
        plan: Sizes.
        in_channels: C.
        ndim: 2 (images) or 3 (volumes).
        image_size: Sides in pixels of a global crop in pretraining; positions live on its grid and are resampled to others.

    Raises:
        UserError: ``image_size`` is not a multiple of the patch, or has the wrong number of axes.
    """

    def __init__(self, plan: ModelPlan, *, in_channels: int, ndim: int, image_size: int | Sequence[int]) -> None:
        super().__init__()
        self.plan, self.ndim, self.in_channels = plan, ndim, in_channels
        self.image_size = sides(image_size, ndim)
        self.grid = grid_of(self.image_size, plan.patch)
        self.num_prefix = 1 + plan.registers
        self.patch_embed = PatchEmbed(in_channels, plan.dim, plan.patch, ndim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, plan.dim))
        # An attribute that is None has no place in the state dict, as in timm.
        self.reg_token = nn.Parameter(torch.zeros(1, plan.registers, plan.dim)) if plan.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, plan.dim))
        positions = math.prod(self.grid) + (self.num_prefix if plan.class_position else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, plan.dim), requires_grad=plan.position == "learned")
        self.blocks = nn.ModuleList(
            Block(plan.dim, plan.heads, mlp_ratio=plan.mlp_ratio, layer_scale=plan.layer_scale, drop_path=plan.drop_path)
            for _ in range(plan.depth)
        )
        self.norm = nn.LayerNorm(plan.dim, eps=1e-6)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws fresh weights from torch's default generator: linears by ``plan.init``, positions truncated normal 0.02."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                if self.plan.init == "xavier":
                    nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2.0))
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if self.plan.position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed[0, self.pos_embed.shape[1] - math.prod(self.grid) :] = sincos(self.grid, self.plan.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Tokens after the final norm.

        Args:
            x: [N, C, *size] in the network's range.
            mask: [N, P] bool; True patches are replaced by the learned mask token (iBOT).

        Raises:
            UserError: The shape of ``x`` does not fit.
        """
        return self.forward_many([x], [mask])[0]

    def forward_many(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Tokens of several crop sizes in one pass; the same result as one ``forward`` per size.

        Args:
            images: One [N, C, *size] tensor per crop size.
            masks: For each of them a [N, P] bool mask, or None.

        Returns:
            One Features for each entry of ``images``.
        """
        masks = masks if masks is not None else [None] * len(images)
        tokens = [self._embed(x, mask) for x, mask in zip(images, masks, strict=True)]
        layout: Layout = tuple((part.shape[0], part.shape[1]) for part in tokens)
        packed = self.norm(self._run(_pack(tokens), layout, self.plan.depth))
        parts = packed.split([count * length for count, length in layout])
        return [self._features(part.view(*size, -1), self.patch_embed.grid(x)) for part, size, x in zip(parts, layout, images)]

    def encode(self, x: Tensor, keep: Tensor | None = None, layer: int | None = None) -> Features:
        """Tokens of a whole image, of some of its patches, or of an inner layer.

        Args:
            x: [N, C, *size] in the network's range.
            keep: [N, P] bool; patches that are False are left out after positions were added. Every row keeps the same number.
            layer: None for the tokens after the final norm; k for the raw tokens after the first k blocks (0: embedded patches).

        Returns:
            Features whose ``patches`` hold the kept patches in row-major order.

        Raises:
            UserError: ``keep`` or ``layer`` does not fit.
        """
        depth = self.plan.depth
        if layer is not None and not 0 <= layer <= depth:
            raise UserError("layer", f"is {layer}", allowed=f"0..{depth} blocks, or None for the final norm")
        tokens = self._embed(x, None)
        if keep is not None:
            tokens = self._drop_tokens(tokens, keep)
        count, length, _ = tokens.shape
        packed = self._run(tokens.flatten(0, 1), ((count, length),), depth if layer is None else layer)
        packed = self.norm(packed) if layer is None else packed
        return self._features(packed.view(count, length, -1), self.patch_embed.grid(x))

    def timm_state(self) -> dict[str, Tensor]:
        """The state dict that timm's ``VisionTransformer`` loads strictly: all weights but the mask token, which only iBOT uses."""
        return without_mask_token(self.state_dict())

    def _run(self, packed: Tensor, layout: Layout, depth: int) -> Tensor:
        for block in self.blocks[:depth]:
            packed = block(packed, layout)
        return packed

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[N, 1 + R + P, E]: class, registers and patches with their positions."""
        patches = self.patch_embed(x)
        if mask is not None:
            patches = torch.where(mask[:, :, None], self.mask_token.to(patches.dtype), patches)
        leading, positions = self._positions(self.patch_embed.grid(x))
        prefix = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], dim=1)
        prefix = prefix if leading is None else prefix + leading
        return torch.cat([prefix.expand(x.shape[0], -1, -1), patches + positions], dim=1)

    def _positions(self, grid: Grid) -> tuple[Tensor | None, Tensor]:
        if not self.plan.class_position:
            return None, resample(self.pos_embed, self.grid, grid)
        return self.pos_embed[:, : self.num_prefix], resample(self.pos_embed[:, self.num_prefix :], self.grid, grid)

    def _drop_tokens(self, tokens: Tensor, keep: Tensor) -> Tensor:
        count, length = tokens.shape[0], tokens.shape[1] - self.num_prefix
        if tuple(keep.shape) != (count, length) or keep.dtype != torch.bool:
            raise UserError("keep", f"is {keep.dtype} {tuple(keep.shape)}", allowed=f"bool {(count, length)}")
        kept = keep.sum(dim=1)
        if count and bool((kept != kept[0]).any()):
            problem = f"keeps {int(kept.min())} to {int(kept.max())} patches"
            raise UserError("keep", problem, remedy="encode rows with equal counts together")
        places = keep.nonzero()[:, 1].view(count, -1)
        patches = tokens[:, self.num_prefix :].gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, : self.num_prefix], patches], dim=1)

    def _features(self, tokens: Tensor, grid: Grid) -> Features:
        first = self.num_prefix
        return Features(cls=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:], grid=grid)


def sides(image_size: int | Sequence[int], ndim: int) -> Grid:
    """One side per spatial axis.

    Raises:
        UserError: The number of sides is not ``ndim``.
    """
    if ndim not in (2, 3):
        raise UserError("ndim", f"is {ndim}", allowed="2 (images) or 3 (volumes)")
    result = (image_size,) * ndim if isinstance(image_size, int) else tuple(image_size)
    if len(result) != ndim:
        raise UserError("image size", f"{result} has {len(result)} sides", allowed=f"one number, or {ndim} of them")
    return result


def without_mask_token(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the mask token."""
    return {name: value for name, value in state.items() if name != "mask_token"}


def _pack(tokens: Sequence[Tensor]) -> Tensor:
    return tokens[0].flatten(0, 1) if len(tokens) == 1 else torch.cat([part.flatten(0, 1) for part in tokens])
