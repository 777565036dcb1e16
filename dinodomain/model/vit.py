"""A vision transformer for images and volumes.

In 2-D its parameter names and its arithmetic are those of timm's ``VisionTransformer``, so that other people's pipelines load it;
the 3-D twin differs in the patch projection and the position grid only. Shapes as in ``dinodomain.types``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinodomain.errors import UserError
from dinodomain.model.bands import Band, Vocabulary
from dinodomain.model.block import Block, Layout, Turns, draw_toss
from dinodomain.model.channels import make_patch_embed
from dinodomain.model.patch_embed import grid_of
from dinodomain.model.plan import ModelPlan
from dinodomain.model.positions import Grid, resample, sides, sincos
from dinodomain.model.rope import Rope, Turn
from dinodomain.types import Acquisition, Features


class VisionTransformer(nn.Module):
    """Tokens of images or volumes.

    Args:
        plan: Sizes.
        in_channels: C.
        ndim: 2 (images) or 3 (volumes).
        image_size: Sides in pixels of a global crop in pretraining; positions live on its grid and are resampled to others.
        bands: The C channels, for ``plan.channels=wavelength``; for ``fixed`` their names at most.
        vocabulary: Of which channels there are weights, see ``channels.ChannelEmbed``.

    Attributes:
        checkpointing: Whether blocks keep only their input for the backward pass and run a second time in it (Chen 2016).

    Raises:
        UserError: ``image_size`` is not a multiple of the patch, patch or size have the wrong number of axes, or RoPE does not fit them.
    """

    def __init__(
        self,
        plan: ModelPlan,
        *,
        in_channels: int,
        ndim: int,
        image_size: int | Sequence[int],
        bands: Sequence[Band] = (),
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.ndim, self.in_channels = plan, ndim, in_channels
        self.image_size, self.patch = sides(image_size, ndim, "image size"), sides(plan.patch, ndim, "model.patch")
        self.grid = grid_of(self.image_size, self.patch)
        self.num_prefix, self.checkpointing = 1 + plan.registers, False
        self.patch_embed = make_patch_embed(plan, in_channels, ndim, bands, vocabulary)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, plan.dim))
        # An attribute that is None has no place in the state dict, as in timm.
        self.reg_token = nn.Parameter(torch.zeros(1, plan.registers, plan.dim)) if plan.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, plan.dim))
        self.rope = Rope(plan, patch=self.patch, grid=self.grid, prefix=self.num_prefix) if plan.position == "rope" else None
        positions = math.prod(self.grid) + (self.num_prefix if plan.class_position else 0)
        added = nn.Parameter(torch.zeros(1, positions, plan.dim), requires_grad=plan.position == "learned")
        self.pos_embed = added if self.rope is None else None
        self.blocks = nn.ModuleList(Block(plan) for _ in range(plan.depth))
        self.norm = nn.LayerNorm(plan.dim, eps=plan.norm_eps)
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
        if self.pos_embed is not None and self.plan.position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        elif self.pos_embed is not None:
            self.pos_embed[0, self.pos_embed.shape[1] - math.prod(self.grid) :] = sincos(self.grid, self.plan.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, about: Acquisition | None = None) -> Features:
        """Tokens after the final norm.

        Args:
            x: [N, C, *size] in the network's range.
            mask: [N, P] bool; True patches are replaced by the learned mask token (iBOT).
            about: What is known of the images beside their pixels.

        Raises:
            UserError: The shape of ``x`` does not fit.
        """
        return self.forward_many([x], [mask], [about])[0]

    def forward_many(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        about: Sequence[Acquisition | None] | None = None,
    ) -> list[Features]:
        """Tokens of several crop sizes in one pass; the same result as one ``forward`` per size.

        Args:
            images: One [N, C, *size] tensor per crop size.
            masks: For each of them a [N, P] bool mask, or None.
            about: For each of them what is known of its images, or None.

        Returns:
            One Features for each entry of ``images``.
        """
        masks = masks if masks is not None else [None] * len(images)
        about = about if about is not None else [None] * len(images)
        tokens = [self._embed(x, mask, told) for x, mask, told in zip(images, masks, about, strict=True)]
        layout: Layout = tuple((part.shape[0], part.shape[1]) for part in tokens)
        turns = [self.turn(x, told) for x, told in zip(images, about)]
        packed = self.norm(self._run(_pack(tokens), layout, turns, self.plan.depth))
        parts = packed.split([count * length for count, length in layout])
        return [self._features(part.view(*size, -1), self.patch_embed.grid(x)) for part, size, x in zip(parts, layout, images)]

    def encode(self, x: Tensor, keep: Tensor | None = None, layer: int | None = None, about: Acquisition | None = None) -> Features:
        """Tokens of a whole image, of some of its patches, or of an inner layer.

        Args:
            x: [N, C, *size] in the network's range.
            keep: [N, P] bool; patches that are False are left out after positions were added. Every row keeps the same number.
            layer: None for the tokens after the final norm; k for the raw tokens after the first k blocks (0: embedded patches).
            about: What is known of the images beside their pixels.

        Returns:
            Features whose ``patches`` hold the kept patches in row-major order.

        Raises:
            UserError: ``keep`` or ``layer`` does not fit.
        """
        depth = self.plan.depth
        if layer is not None and not 0 <= layer <= depth:
            raise UserError("layer", f"is {layer}", allowed=f"0..{depth} blocks, or None for the final norm")
        tokens, turn = self._embed(x, None, about), self.turn(x, about)
        if keep is not None:
            kept = self._kept(tokens, keep)
            tokens = tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
            turn = None if turn is None else turn.of_tokens(kept)
        count, length, _ = tokens.shape
        packed = self._run(tokens.flatten(0, 1), ((count, length),), [turn], depth if layer is None else layer)
        packed = self.norm(packed) if layer is None else packed
        return self._features(packed.view(count, length, -1), self.patch_embed.grid(x))

    def encode_alone(self, x: Tensor, about: Acquisition | None = None) -> Tensor:
        """Every patch token as it comes out when no other patch is there: what it holds by itself, without what attention brings.

        Args:
            x: [N, C, *size] in the network's range.
            about: What is known of the images beside their pixels.

        Returns:
            [N, P, E] after the final norm; row (n, p) is ``encode(x[n : n + 1], keep=only p).patches``. Works on N P sequences at once.
        """
        tokens, turn, prefix = self._embed(x, None, about), self.turn(x, about), self.num_prefix
        count, patches = tokens.shape[0], tokens.shape[1] - prefix
        leading = tokens[:, None, :prefix].expand(-1, patches, -1, -1)
        alone = torch.cat([leading, tokens[:, prefix:, None]], dim=2).flatten(0, 1)
        if turn is not None:
            own = torch.arange(prefix, prefix + patches, device=x.device).repeat(count)[:, None]
            places = torch.cat([torch.arange(prefix, device=x.device).expand(len(own), -1), own], dim=1)
            turn = turn.of_samples(torch.arange(count, device=x.device).repeat_interleave(patches)).of_tokens(places)
        packed = self.norm(self._run(alone.flatten(0, 1), ((count * patches, prefix + 1),), [turn], self.plan.depth))
        found: Tensor = packed.view(count, patches, prefix + 1, -1)[:, :, prefix]
        return found

    def timm_state(self) -> dict[str, Tensor]:
        """The state dict that timm's ``VisionTransformer`` loads strictly: all weights but the mask token, which only iBOT uses."""
        return without_mask_token(self.state_dict())

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles each block by itself, in place: names in the state dict stay, and blocks of one kind share one program.

        Args:
            backend: torch's name of what turns a captured block into a program.
        """
        for block in self.blocks:
            block.compile(dynamic=False, backend=backend)

    def turn(self, x: Tensor, about: Acquisition | None = None) -> Turn | None:
        """How every block turns the queries and keys of images [N, C, *size]; None where positions are not rotary."""
        return None if self.rope is None else self.rope.turn(x, self.patch_embed.grid(x), about, training=self.training)

    def _run(self, packed: Tensor, layout: Layout, each: Sequence[Turn | None], depth: int) -> Tensor:
        turns: Turns = tuple(turn for turn in each if turn is not None) or None
        toss = draw_toss() if self.training and self.plan.drop_path else 0.0
        for block in self.blocks[:depth]:
            assert isinstance(block, Block)
            subsets = block.draw(layout, packed.device, toss)
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing is drawn inside, so generators need not be wound back.
                packed = checkpoint(block, packed, layout, turns, subsets, use_reentrant=False, preserve_rng_state=False)
            else:
                packed = block(packed, layout, turns, subsets)
        return packed

    def _embed(self, x: Tensor, mask: Tensor | None, about: Acquisition | None) -> Tensor:
        """[N, 1 + R + P, E]: class, registers and patches with their positions."""
        patches = self.patch_embed(x, about)
        if mask is not None:
            patches = torch.where(mask[:, :, None], self.mask_token.to(patches.dtype), patches)
        prefix = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], dim=1)
        if self.pos_embed is not None:
            leading, positions = self._positions(self.pos_embed, self.patch_embed.grid(x))
            prefix, patches = prefix if leading is None else prefix + leading, patches + positions
        return torch.cat([prefix.expand(x.shape[0], -1, -1), patches], dim=1)

    def _positions(self, positions: Tensor, grid: Grid) -> tuple[Tensor | None, Tensor]:
        if not self.plan.class_position:
            return None, resample(positions, self.grid, grid)
        return positions[:, : self.num_prefix], resample(positions[:, self.num_prefix :], self.grid, grid)

    def _kept(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """[N, 1 + R + P'] places of the tokens that stay: class, registers and kept patches."""
        count, length = tokens.shape[0], tokens.shape[1] - self.num_prefix
        if tuple(keep.shape) != (count, length) or keep.dtype != torch.bool:
            raise UserError("keep", f"is {keep.dtype} {tuple(keep.shape)}", allowed=f"bool {(count, length)}")
        kept = keep.sum(dim=1)
        if count and bool((kept != kept[0]).any()):
            problem = f"keeps {int(kept.min())} to {int(kept.max())} patches"
            raise UserError("keep", problem, remedy="encode rows with equal counts together")
        places = keep.nonzero()[:, 1].view(count, -1)
        leading = torch.arange(self.num_prefix, device=places.device).expand(count, -1)
        return torch.cat([leading, places + self.num_prefix], dim=1)

    def _features(self, tokens: Tensor, grid: Grid) -> Features:
        first = self.num_prefix
        return Features(cls=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:], grid=grid)


def without_mask_token(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the mask token."""
    return {name: value for name, value in state.items() if name != "mask_token"}


def _pack(tokens: Sequence[Tensor]) -> Tensor:
    return tokens[0].flatten(0, 1) if len(tokens) == 1 else torch.cat([part.flatten(0, 1) for part in tokens])
