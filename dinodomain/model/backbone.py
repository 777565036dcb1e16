"""The backbone as everybody else uses it: a transformer that knows its channels, its normalisation and how it pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dinodomain.errors import UserError
from dinodomain.model.plan import ModelPlan
from dinodomain.model.vit import VisionTransformer
from dinodomain.types import Features, Normalisation

Pooling = Literal["cls+mean", "cls", "mean"]
"""How an image becomes one vector: class token, mean of its patches, or both side by side."""

FORMAT: Final = 1
"""Version of a backbone's spec."""


@final
class Backbone(nn.Module):
    """Transformer, normalisation and names; everything that is needed to run it again lies in ``spec`` and ``state_dict()``.

    Args:
        vit: The transformer.
        normalisation: Which numbers its inputs were brought to the network's range with; names its channels.
        domain: Name of the domain that it was trained on.
        pooling: How ``features`` pools.

    Raises:
        UserError: The number of channels differs, or the pooling is unknown.
    """

    def __init__(self, vit: VisionTransformer, *, normalisation: Normalisation, domain: str, pooling: Pooling = "cls+mean") -> None:
        super().__init__()
        if len(normalisation.channels) != vit.in_channels:
            names = ", ".join(normalisation.channels)
            raise UserError("channels", f"{len(normalisation.channels)} named ({names}), {vit.in_channels} in the network")
        if len(normalisation.sources) not in (0, vit.in_channels):
            raise UserError("channels", f"{len(normalisation.sources)} stored channels for {vit.in_channels} in the network")
        if pooling not in get_args(Pooling):
            raise UserError("pooling", f"is {pooling!r}", allowed=", ".join(get_args(Pooling)))
        self.vit = vit
        self.normalisation, self.domain, self.pooling = normalisation, domain, pooling

    @classmethod
    def create(
        cls,
        plan: ModelPlan,
        *,
        ndim: int,
        image_size: int | tuple[int, ...],
        normalisation: Normalisation,
        domain: str,
        pooling: Pooling = "cls+mean",
    ) -> Backbone:
        """A backbone with fresh weights from torch's default generator."""
        vit = VisionTransformer(plan, in_channels=len(normalisation.channels), ndim=ndim, image_size=image_size)
        return cls(vit, normalisation=normalisation, domain=domain, pooling=pooling)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> Backbone:
        """The backbone that ``spec`` and ``state_dict()`` came from, in evaluation mode on the host.

        Raises:
            UserError: The spec is of another version, or the weights do not fit it.
        """
        if spec.get("format") != FORMAT:
            found = f"has format {spec.get('format')!r}"
            raise UserError("backbone spec", found, allowed=str(FORMAT), remedy="load it with a newer dinodomain")
        backbone = cls.create(
            ModelPlan(**spec["model"]),
            ndim=spec["ndim"],
            image_size=tuple(spec["image_size"]),
            normalisation=normalisation_of(spec),
            domain=spec["domain"],
            pooling=spec["pooling"],
        )
        try:
            backbone.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise UserError("backbone weights", str(error), remedy="give the weights that were saved beside this spec") from error
        return backbone.eval()

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON values from which ``from_spec`` builds the same network."""
        plan, normalisation = self.vit.plan, self.normalisation
        return {
            "format": FORMAT,
            "model": {name: getattr(plan, name) for name in ModelPlan.__dataclass_fields__},
            "ndim": self.ndim,
            "image_size": list(self.image_size),
            "channels": list(self.channels),
            "normalisation": {name: _plain(value) for name, value in _recorded(normalisation).items()},
            "domain": self.domain,
            "pooling": self.pooling,
        }

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the network's channels in input order; display windows of one stored channel are several."""
        return self.normalisation.channels

    @property
    def ndim(self) -> int:
        """Spatial axes, 2 or 3."""
        return self.vit.ndim

    @property
    def image_size(self) -> tuple[int, ...]:
        """Sides in pixels of a global crop in pretraining."""
        return self.vit.image_size

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.vit.plan.patch

    @property
    def num_features(self) -> int:
        """Width of a row of ``features``."""
        return self.vit.plan.dim * (2 if self.pooling == "cls+mean" else 1)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.vit.cls_token.device

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """See ``VisionTransformer.forward``."""
        features: Features = self.vit(x, mask)
        return features

    def encode(self, x: Tensor, keep: Tensor | None = None, layer: int | None = None) -> Features:
        """See ``VisionTransformer.encode``; gradients flow to ``x``, so attribution methods work on it."""
        return self.vit.encode(x, keep, layer)

    def pool(self, features: Features) -> Tensor:
        """One vector per image, [N, num_features]."""
        if self.pooling == "cls":
            return features.cls
        mean = features.patches.mean(dim=1)
        return mean if self.pooling == "mean" else torch.cat([features.cls, mean], dim=1)

    @torch.no_grad()
    def features(self, x: Tensor) -> np.ndarray:
        """Pooled features of a batch on the host, without gradients and without stochastic depth.

        Args:
            x: [n, C, *size] in the network's range, on any device.

        Returns:
            [n, num_features] float32.
        """
        training = self.training
        self.eval()
        try:
            pooled = self.pool(self.encode(x.to(self.device)))
        finally:
            self.train(training)
        result: np.ndarray = pooled.float().cpu().numpy()
        return result


def random_like(backbone: Backbone, seed: int) -> Backbone:
    """The untrained baseline: the same network with fresh weights; torch's generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Backbone.create(
            backbone.vit.plan,
            ndim=backbone.ndim,
            image_size=backbone.image_size,
            normalisation=backbone.normalisation,
            domain=backbone.domain,
            pooling=backbone.pooling,
        )
    return fresh.to(backbone.device).eval()


def normalisation_of(spec: Mapping[str, Any]) -> Normalisation:
    """The numbers of the network's range that ``Backbone.spec`` holds."""
    values = spec["normalisation"]
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Normalisation(**fields)


def _recorded(normalisation: Normalisation) -> dict[str, Any]:
    """Its fields; ``sources`` and ``units`` only where there are any, so that other specs stay what they always were."""
    fields = {name: getattr(normalisation, name) for name in Normalisation.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value != ()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
