"""Images of any set of channels to one token per patch: a patch embedding that is told what each channel is.

After Panopticon (Waldmann 2025, arXiv 2503.10845): every channel passes through one single-channel kernel, gets an embedding of its
wavelength (DOFA, Xiong 2024) or its name, and a learned query attends over the channels of each patch. Differences: no norm and no
non-linearity lie between kernel and attention, so that channel tokens, [N, P, C, E], never have to exist: with a constant query the
scores of a patch are one product of its pixels with a small matrix, and the attention mixes pixels, not tokens. The same numbers
(``reference``) at a fraction of the arithmetic of a fixed embedding; what follows costs the same for 3 channels and for 300.

Always in full float32, for the reason given in ``patch_embed``. Legend: N images, P patches, C channels, Q pixels of a patch, E width,
H attention heads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinodomain.errors import UserError
from dinodomain.exact import full_float32
from dinodomain.model.bands import Band, Vocabulary, check_known, order_in
from dinodomain.model.patch_embed import PatchEmbed, grid_of, unfold
from dinodomain.model.plan import ModelPlan
from dinodomain.model.positions import Grid, sides
from dinodomain.types import Acquisition

Module = TypeVar("Module", bound=nn.Module)

HEADS: Final = 16
"""Most attention heads (Panopticon's number); a head is one mixture of channels, so few would lose colour."""

RATES: Final = 16
"""Pairs of sines and cosines that describe a wavelength."""

PERIODS: Final = (32.0, 0.125)
"""Longest and shortest period in log wavelength: 300 nm to 30 cm span 14, and bands 1 % apart are a twelfth of a turn apart."""


class ChannelEmbed(nn.Module):
    """One embedding for each channel: of its wavelength, its name, or (microwaves) their sum.

    Args:
        bands: The channels.
        dim: Width E.
        vocabulary: What there are weights for; None: what ``bands`` need.
    """

    waves: Tensor
    """[C, 2 * RATES] sines and cosines of the wavelengths; 0 where a channel has none."""

    has_wave: Tensor
    """[C, 1] bool."""

    rows: Tensor
    """[C] int64 places among the names; 0 where a channel is not told by name."""

    has_name: Tensor
    """[C, 1] bool."""

    def __init__(self, bands: Sequence[Band], dim: int, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary or Vocabulary.of(bands)
        names = self.vocabulary.names
        # A part that no channel uses would wait for a gradient for ever; it is not made.
        self.by_wave = nn.Sequential(nn.Linear(2 * RATES, dim), nn.GELU(), nn.Linear(dim, dim)) if self.vocabulary.wavelengths else None
        self.by_name = nn.Parameter(torch.randn(len(names), dim) / math.sqrt(2.0)) if names else None
        self.set_bands(bands)

    def set_bands(self, bands: Sequence[Band]) -> None:
        """Takes other channels; weights stay.

        Raises:
            Problems: A channel that nothing is known of.
        """
        check_known(bands, self.vocabulary)
        names = self.vocabulary.names
        device = self.waves.device if "waves" in self._buffers else None
        tables = {
            "waves": wave_features([band.wavelength_nm for band in bands]),
            "has_wave": torch.tensor([[band.wavelength_nm is not None] for band in bands]),
            "rows": torch.tensor([names.index(band.name) if band.by_name else 0 for band in bands]),
            "has_name": torch.tensor([[band.by_name] for band in bands]),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(device), persistent=False)
        self.bands = tuple(bands)

    def forward(self) -> Tensor:
        """[C, E]: the embeddings of all channels."""
        parts = []
        if self.by_wave is not None:
            weight = next(self.by_wave.parameters())
            parts.append(self.by_wave(self.waves.to(weight.dtype)) * self.has_wave)
        if self.by_name is not None:
            parts.append(self.by_name[self.rows] * self.has_name)
        return torch.stack(parts).sum(0)


def wave_features(wavelengths_nm: Sequence[float | None]) -> Tensor:
    """Sines and cosines of log wavelength, [C, 2 * RATES] float32; 0 for None.

    The logarithm, because bands are the wider and the farther apart the longer the wavelength; smooth over several per cent, so that a
    band between two trained ones lies between them.
    """
    longest, shortest = PERIODS
    rates = 2 * math.pi / longest * (longest / shortest) ** (torch.arange(RATES, dtype=torch.float64) / (RATES - 1))
    logs = torch.tensor([[math.log((wave or 1000.0) / 1000.0)] for wave in wavelengths_nm], dtype=torch.float64)
    known = torch.tensor([[wave is not None] for wave in wavelengths_nm])
    return (torch.cat([(logs * rates).sin(), (logs * rates).cos()], dim=1) * known).float()


class WavelengthPatchEmbed(nn.Module):
    """Patches of any channels to tokens.

    Args:
        bands: The network's channels.
        dim: Token width E.
        patch: Sides of a patch in pixels, one per axis, or one for all.
        ndim: 2 or 3 spatial axes.
        vocabulary: See ``ChannelEmbed``.

    Attributes:
        proj: The kernel that all channels share.
        query: [H, E / H] what the attention looks for.
    """

    def __init__(self, bands: Sequence[Band], dim: int, patch: int | Grid, ndim: int, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.patch, self.ndim = sides(patch, ndim, "model.patch"), ndim
        own: Any = self.patch
        self.proj: nn.Conv2d | nn.Conv3d = convolution(1, dim, kernel_size=own, stride=own, bias=False)
        self.channel = ChannelEmbed(bands, dim, vocabulary)
        heads = next(count for count in range(min(HEADS, dim), 0, -1) if dim % count == 0)
        # Without a bias: a constant added to all scores of a patch changes nothing.
        self.key, self.value, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.query = nn.Parameter(torch.randn(heads, dim // heads))
        for linear in (self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def bands(self) -> tuple[Band, ...]:
        """The channels, in order."""
        return self.channel.bands

    def with_bands(self, bands: Sequence[Band]) -> WavelengthPatchEmbed:
        """The same weights, shared, for other channels.

        Raises:
            Problems: A channel that nothing is known of.
        """
        twin = sharing(self)
        twin.channel.set_bands(bands)
        return twin

    def grid(self, x: Tensor) -> Grid:
        """Checks an input [N, C, *size] and gives its token grid.

        Raises:
            UserError: Wrong number of axes, no channel, or a side that is not a multiple of the patch.
        """
        if x.ndim != self.ndim + 2 or x.shape[1] < 1:
            raise UserError("image", f"has shape {tuple(x.shape)}", allowed=f"[N, C, {'Z, Y, X' if self.ndim == 3 else 'Y, X'}]")
        return grid_of(tuple(x.shape[2:]), self.patch)

    def forward(self, x: Tensor, about: Acquisition | None = None) -> Tensor:
        """[N, C, *size] to [N, P, E] in the weights' type, row-major over the grid.

        Args:
            x: Images in the network's range.
            about: ``channels`` names those of ``x``, any of the network's in any order; channels that are not ``kept`` take no part, and a
                patch that lost all of them gives the bias alone.

        Raises:
            UserError: Unknown channels, or another number of them than ``x`` has.
        """
        grid, chosen = self.grid(x), self._chosen(x, about)
        wide = torch.promote_types(self.proj.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False), full_float32():
            told = _picked(self.channel().to(wide), chosen)
            tokens = self._mix(unfold(x.to(wide), grid, self.patch), told, _kept(x, about), wide)
        return tokens.to(self.proj.weight.dtype)

    def _mix(self, pixels: Tensor, told: Tensor, kept: Tensor | None, wide: torch.dtype) -> Tensor:
        """[N, P, C, Q] pixels and [C, E] embeddings to [N, P, E], see the head of this file."""
        heads, width = self.query.shape
        kernel = self.proj.weight.to(wide).flatten(1)
        # [H, E]: what a channel token is multiplied with for its score.
        look = torch.einsum("hd,hde->he", self.query.to(wide), self.key.weight.to(wide).view(heads, width, -1)) / math.sqrt(width)
        scores = pixels @ (look @ kernel).T + told @ look.T
        weights = over_channels(scores, kept).transpose(2, 3)
        value = self.value.weight.to(wide).view(heads, width, -1)
        seen = torch.einsum("nphq,hdq->nphd", weights @ pixels, value @ kernel)
        known = torch.einsum("nphc,chd->nphd", weights, (told @ value.flatten(0, 1).T).view(-1, heads, width))
        return functional.linear((seen + known).flatten(2), self.out.weight.to(wide), self.out.bias.to(wide))

    def _chosen(self, x: Tensor, about: Acquisition | None) -> tuple[int, ...]:
        return order_in([band.name for band in self.bands], () if about is None else about.channels, x.shape[1])


def make_patch_embed(
    plan: ModelPlan, in_channels: int, ndim: int, bands: Sequence[Band] = (), vocabulary: Vocabulary | None = None
) -> PatchEmbed | WavelengthPatchEmbed:
    """The patch embedding that a plan asks for.

    Args:
        plan: ``channels``, ``dim`` and ``patch``.
        in_channels: C.
        ndim: 2 or 3 spatial axes.
        bands: The C channels; ``fixed`` does without.
        vocabulary: See ``ChannelEmbed``.

    Raises:
        UserError: ``wavelength`` without bands, or another number of them than C.
    """
    if len(bands) != in_channels and (bands or plan.channels == "wavelength"):
        remedy = "give one Band for each channel" if plan.channels == "wavelength" else None
        raise UserError("bands", f"are {len(bands)} for {in_channels} channels", allowed=str(in_channels), remedy=remedy)
    if plan.channels == "wavelength":
        return WavelengthPatchEmbed(bands, plan.dim, plan.patch, ndim, vocabulary)
    return PatchEmbed(in_channels, plan.dim, plan.patch, ndim, [band.name for band in bands])


def over_channels(scores: Tensor, kept: Tensor | None) -> Tensor:
    """Softmax over channels, [N, P, C, H]; exactly 0 for channels that were not kept, also where none was.

    Args:
        scores: [N, P, C, H].
        kept: [N, C] bool, or None for all.
    """
    if kept is None:
        return scores.softmax(dim=2)
    here = kept[:, None, :, None]
    return scores.masked_fill(~here, torch.finfo(scores.dtype).min).softmax(dim=2) * here


def reference(embed: WavelengthPatchEmbed, x: Tensor, about: Acquisition | None = None) -> Tensor:
    """The plain twin of ``WavelengthPatchEmbed.forward``: one patch, one head, one channel at a time; [N, P, E] in x's type."""
    grid, chosen, kept = embed.grid(x), embed._chosen(x, about), _kept(x, about)
    told, kernel = embed.channel().to(x.dtype)[list(chosen)], embed.proj.weight.to(x.dtype).flatten(1)
    heads, width = embed.query.shape
    images = []
    for n, patches in enumerate(unfold(x, grid, embed.patch)):
        places = []
        for patch in patches:
            channels = [c for c in range(x.shape[1]) if kept is None or bool(kept[n, c])]
            tokens = [kernel @ patch[c] + told[c] for c in channels]
            mixed = torch.zeros(heads, width, dtype=x.dtype)
            for h in range(heads if tokens else 0):
                rows = slice(h * width, (h + 1) * width)
                key, value = (part.weight.to(x.dtype)[rows] for part in (embed.key, embed.value))
                scores = torch.stack([embed.query[h].to(x.dtype) @ (key @ token) / width**0.5 for token in tokens])
                mixed[h] = sum((share * (value @ token) for share, token in zip(scores.softmax(0), tokens)), mixed[h])
            places.append(embed.out.weight.to(x.dtype) @ mixed.flatten() + embed.out.bias.to(x.dtype))
        images.append(torch.stack(places))
    return torch.stack(images)


def sharing(module: Module) -> Module:
    """A copy that has the same parameters, not copies of them."""
    return copy.deepcopy(module, {id(weight): weight for weight in module.parameters()})


def _picked(told: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """Rows of the channels that an image has; nothing is copied to a device where it has all of them in order."""
    return told if chosen == tuple(range(len(told))) else told[list(chosen)]


def _kept(x: Tensor, about: Acquisition | None) -> Tensor | None:
    kept = None if about is None else about.kept
    if kept is not None and (tuple(kept.shape) != tuple(x.shape[:2]) or kept.dtype != torch.bool):
        raise UserError("about.kept", f"is {kept.dtype} {tuple(kept.shape)}", allowed=f"bool {tuple(x.shape[:2])}")
    return None if kept is None else kept.to(x.device)
