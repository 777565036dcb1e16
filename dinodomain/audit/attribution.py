"""One number per image, so that attribution methods (Captum and others) can ask what moves it.

Works on any module with ``encode(x, keep=None, layer=None) -> types.Features``, in 2-D and 3-D; one that can be told of images beside
their pixels also takes ``about``. Draws no maps and judges none: a map says where to look, only replacing a region shows that it matters.
B images, E embedding width, P patch tokens, C channels, D axes.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from dinodomain.errors import UserError
from dinodomain.types import Acquisition, Features

Mode = Literal["probe", "cosine", "label_free", "token"]
Pool = Literal["cls", "mean", "cls+mean"]

MODES: Final = get_args(Mode)


class Encoder(Protocol):
    """What can be explained."""

    def encode(self, x: Tensor, keep: Tensor | None = None, layer: int | None = None, *, about: Acquisition | None = None) -> Features:
        """Tokens of [B, C, (Z,) Y, X]; gradients flow to ``x``."""
        ...


class EncoderObjective(nn.Module):
    """Wraps an encoder into a function of the pixels with one value per image.

    Modes:
        ``probe``: logit of a linear probe on the pooled features, ``features @ weight + bias``.
        ``cosine``: cosine similarity of the pooled features to a reference.
        ``label_free``: inner product of the pooled features with those of the image itself, held constant (Crabbé and van der Schaar
            2022, equation 2): what the whole representation depends on, without any label.
        ``token``: one patch token along a direction: what a place in the feature map depends on.

    Captum repeats its inputs; what belongs to each image must be repeated with them. Hence ``reference`` is an argument of ``forward``
    (``additional_forward_args``) and ``reference_of`` makes it; and hence spacing and lost channels are plain tensors there, in the order
    ``reference, spacing, kept``.

    Args:
        encoder: A frozen encoder; its parameters are not changed, and it is put into evaluation mode.
        mode: See above.
        weight: [E'] probe weights (``probe``), reference (``cosine``, the same for all images) or direction (``token``).
        bias: Probe bias.
        token: Row-major index of the patch token (``token``).
        layer: Block whose raw tokens are used; None is the final, normed output.
        pool: How tokens become one vector.
        channels: Names of the channels of all images, where they are not all of the encoder's (``Acquisition.channels``).

    Raises:
        UserError: The mode is unknown, or lacks its weight or token.
    """

    def __init__(
        self,
        encoder: nn.Module,
        mode: Mode,
        *,
        weight: Tensor | None = None,
        bias: float = 0.0,
        token: int | None = None,
        layer: int | None = None,
        pool: Pool = "cls+mean",
        channels: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        _check(mode, weight, token, pool)
        self.encoder = encoder.eval()
        self.mode, self.bias, self.token, self.layer, self.pool = mode, bias, token, layer, pool
        self.channels = tuple(channels)
        self.register_buffer("weight", None if weight is None else weight.detach().clone())

    def pooled(self, x: Tensor, spacing: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """[B, E'] features of the images, see ``forward``."""
        features = self._encode(x, spacing, kept)
        if self.pool == "cls":
            return features.cls
        mean = features.patches.mean(dim=1)
        return mean if self.pool == "mean" else torch.cat([features.cls, mean], dim=1)

    @torch.no_grad()
    def reference_of(self, x: Tensor, spacing: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """[B, E'] constant features, to be passed as ``reference`` of ``cosine`` and ``label_free``."""
        return self.pooled(x, spacing, kept)

    def forward(self, x: Tensor, reference: Tensor | None = None, spacing: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """One value per image.

        Args:
            x: [B, C, (Z,) Y, X] in the network's range.
            reference: [B, E'] for ``label_free``, and for ``cosine`` where no common reference was given.
            spacing: [B, D] pixel size along each axis, mm or m, for encoders that need it.
            kept: [B, C] bool, False where a channel was lost.

        Returns:
            [B].
        """
        if self.mode == "token":
            return self._token(x, spacing, kept)
        features = self.pooled(x, spacing, kept)
        if self.mode == "probe":
            return features @ self._direction(features.shape[1]) + self.bias
        if reference is None:
            if self.mode == "label_free":
                raise UserError("reference", "missing", remedy="pass reference_of(images) as additional_forward_args")
            reference = self._direction(features.shape[1]).expand_as(features)
        if reference.shape != features.shape:
            raise UserError("reference", f"has shape {tuple(reference.shape)}", allowed=f"{tuple(features.shape)}")
        return cosine_similarity(features, reference, dim=1) if self.mode == "cosine" else (features * reference).sum(dim=1)

    def _token(self, x: Tensor, spacing: Tensor | None, kept: Tensor | None) -> Tensor:
        patches = self._encode(x, spacing, kept).patches
        assert self.token is not None, "checked at construction"
        if not 0 <= self.token < patches.shape[1]:
            raise UserError("token", str(self.token), allowed=f"0 to {patches.shape[1] - 1} for images of this size")
        return patches[:, self.token] @ self._direction(patches.shape[2])

    def _direction(self, width: int) -> Tensor:
        weight = self.weight
        if weight is None:
            raise UserError("reference", "missing", remedy="give weight, or pass reference_of(images) as additional_forward_args")
        assert isinstance(weight, Tensor)
        if weight.shape != (width,):
            raise UserError("weight", f"has shape {tuple(weight.shape)}", allowed=f"({width},), the width of the features")
        return weight

    def _encode(self, x: Tensor, spacing: Tensor | None, kept: Tensor | None) -> Features:
        told = spacing is not None or kept is not None or bool(self.channels)
        about = {"about": Acquisition(spacing=spacing, kept=kept, channels=self.channels)} if told else {}
        features: Features = self.encoder.encode(x, layer=self.layer, **about)  # type: ignore[operator]
        return features


def _check(mode: str, weight: Tensor | None, token: int | None, pool: str) -> None:
    if mode not in MODES:
        raise UserError("mode", f"unknown {mode!r}", allowed=", ".join(MODES))
    if pool not in get_args(Pool):
        raise UserError("pool", f"unknown {pool!r}", allowed=", ".join(get_args(Pool)))
    if mode in ("probe", "token") and weight is None:
        raise UserError("weight", f"missing for mode {mode!r}", remedy="give the probe's weights or the direction")
    if (mode == "token") != (token is not None):
        raise UserError("token", f"{token} for mode {mode!r}", allowed="an index for mode 'token', none otherwise")
