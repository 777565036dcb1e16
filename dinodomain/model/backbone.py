"""The backbone as everybody else uses it: a transformer that knows its channels, its normalisation and how it pools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dinodomain.errors import UserError
from dinodomain.model.bands import Band, Vocabulary, as_bands
from dinodomain.model.channels import WavelengthPatchEmbed, sharing
from dinodomain.model.plan import ModelPlan
from dinodomain.model.vit import VisionTransformer
from dinodomain.types import Acquisition, Features, Normalisation

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
        bands: Sequence[Band] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> Backbone:
        """A backbone with fresh weights from torch's default generator.

        Args:
            plan: Sizes.
            ndim: 2 (images) or 3 (volumes).
            image_size: Sides in pixels of a global crop in pretraining.
            normalisation: Numbers of the network's range; names its channels.
            domain: Name of the domain.
            pooling: How ``features`` pools.
            bands: The same channels with their wavelengths, for ``model.channels=wavelength``; None: no channel has one.
            vocabulary: What there are weights for; None: what ``bands`` need.
        """
        told = [Band(name) for name in normalisation.channels] if bands is None else list(bands)
        vit = VisionTransformer(
            plan, in_channels=len(normalisation.channels), ndim=ndim, image_size=image_size, bands=told, vocabulary=vocabulary
        )
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
            **_bands_in(spec),
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
            **self._bands_spec(),
            "normalisation": {name: _plain(value) for name, value in _recorded(normalisation).items()},
            "domain": self.domain,
            "pooling": self.pooling,
        }

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the network's channels in input order; display windows of one stored channel are several."""
        return self.normalisation.channels

    @property
    def bands(self) -> tuple[Band, ...]:
        """The network's channels with their wavelengths; a network with a kernel for each channel knows names only."""
        embed = self.vit.patch_embed
        return embed.bands if isinstance(embed, WavelengthPatchEmbed) else tuple(map(Band, self.channels))

    @property
    def any_channels(self) -> bool:
        """Whether it takes any subset of its channels, and others (``with_bands``)."""
        return isinstance(self.vit.patch_embed, WavelengthPatchEmbed)

    @property
    def needs_spacing(self) -> bool:
        """Whether it must be told the pixel size of every image (``Acquisition.spacing``)."""
        return self.vit.plan.position == "rope" and self.vit.plan.rope_unit == "physical"

    def with_bands(self, bands: Mapping[str, float | None] | Sequence[Band], normalisation: Normalisation | None = None) -> Backbone:
        """The same network for the channels of another sensor; weights are shared, not copied.

        Args:
            bands: ``{"B1": 443.0, "VV": 5.55e7, "ct": None}`` in nm, or bands; wavelengths may be ones it was never trained on.
            normalisation: Numbers of the network's range for these channels; None keeps those of channels that it has, and gives each
                new one those of the channel nearest in wavelength, which fits sensors of the same quantity.

        Raises:
            UserError: This network has a kernel for each channel; a name has no embedding; the normalisation names other channels.
        """
        embed = self.vit.patch_embed
        if not isinstance(embed, WavelengthPatchEmbed):
            raise UserError(
                "model.channels", "is fixed: the network has a kernel for each channel", remedy="train with channels=wavelength"
            )
        wanted = as_bands(bands)
        names = tuple(band.name for band in wanted)
        numbers = normalisation or self._nearest(wanted)
        if numbers.channels != names:
            raise UserError("normalisation", f"names {', '.join(numbers.channels)}", allowed=", ".join(names))
        vit = sharing(self.vit)
        vit.patch_embed, vit.in_channels = embed.with_bands(wanted), len(wanted)
        return Backbone(vit, normalisation=numbers, domain=self.domain, pooling=self.pooling).train(self.training)

    def _nearest(self, wanted: Sequence[Band]) -> Normalisation:
        """Numbers of the channels of these names, or else of those nearest in log wavelength."""
        own = {band.name: place for place, band in enumerate(self.bands)}
        waves = [(place, band.wavelength_nm) for place, band in enumerate(self.bands) if band.wavelength_nm is not None]
        places = []
        for band in wanted:
            wave = band.wavelength_nm
            if band.name not in own and (wave is None or not waves):
                raise UserError("normalisation", f"says nothing of {band.name!r}", remedy="give a normalisation for the new channels")
            near = min(waves, key=lambda item: abs(math.log(item[1] / wave)))[0] if wave is not None and waves else 0
            places.append(own.get(band.name, near))
        picked = pick_channels(self.normalisation, places)
        # A new channel is its own source; one that is kept may be a window of another.
        sources = tuple(source if band.name in own else band.name for band, source in zip(wanted, picked.sources))
        return replace(picked, channels=tuple(band.name for band in wanted), sources=sources)

    def _bands_spec(self) -> dict[str, Any]:
        """What tells channels apart; only where the network looks at it, so that other specs stay what they always were."""
        embed = self.vit.patch_embed
        if not isinstance(embed, WavelengthPatchEmbed):
            return {}
        known = embed.channel.vocabulary
        return {
            "wavelengths_nm": [band.wavelength_nm for band in embed.bands],
            "vocabulary": {"names": list(known.names), "wavelengths": known.wavelengths},
        }

    @property
    def ndim(self) -> int:
        """Spatial axes, 2 or 3."""
        return self.vit.ndim

    @property
    def image_size(self) -> tuple[int, ...]:
        """Sides in pixels of a global crop in pretraining."""
        return self.vit.image_size

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of a patch in pixels, one per axis."""
        return self.vit.patch

    @property
    def num_features(self) -> int:
        """Width of a row of ``features``."""
        return self.vit.plan.dim * (2 if self.pooling == "cls+mean" else 1)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.vit.cls_token.device

    def forward(self, x: Tensor, mask: Tensor | None = None, about: Acquisition | None = None) -> Features:
        """See ``VisionTransformer.forward``."""
        features: Features = self.vit(x, mask, about)
        return features

    def encode(self, x: Tensor, keep: Tensor | None = None, layer: int | None = None, about: Acquisition | None = None) -> Features:
        """See ``VisionTransformer.encode``; gradients flow to ``x``, so attribution methods work on it."""
        return self.vit.encode(x, keep, layer, about)

    def encode_alone(self, x: Tensor, about: Acquisition | None = None) -> Tensor:
        """See ``VisionTransformer.encode_alone``."""
        return self.vit.encode_alone(x, about)

    def pool(self, features: Features) -> Tensor:
        """One vector per image, [N, num_features]."""
        if self.pooling == "cls":
            return features.cls
        mean = features.patches.mean(dim=1)
        return mean if self.pooling == "mean" else torch.cat([features.cls, mean], dim=1)

    @torch.no_grad()
    def features(self, x: Tensor, about: Acquisition | None = None) -> np.ndarray:
        """Pooled features of a batch on the host, without gradients and without stochastic depth.

        Args:
            x: [n, C, *size] in the network's range, on any device.
            about: What is known of the images beside their pixels.

        Returns:
            [n, num_features] float32.
        """
        training = self.training
        self.eval()
        try:
            pooled = self.pool(self.encode(x.to(self.device), about=about))
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
            **_bands_in(backbone.spec),
        )
    return fresh.to(backbone.device).eval()


def pick_channels(normalisation: Normalisation, places: Sequence[int]) -> Normalisation:
    """The numbers of some channels of a network, in the order given."""
    fields = ("channels", "low", "high", "mean", "std", "sources", "units")
    columns: dict[str, Any] = {name: getattr(normalisation, name) for name in fields}
    picked: dict[str, Any] = {name: tuple(column[place] for place in places) for name, column in columns.items() if column}
    return replace(normalisation, **picked)


def _bands_in(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``Backbone.create`` that a spec holds where the network tells channels apart by wavelength."""
    if "wavelengths_nm" not in spec:
        return {}
    bands = [Band(name, wave) for name, wave in zip(spec["channels"], spec["wavelengths_nm"], strict=True)]
    known = spec["vocabulary"]
    return {"bands": bands, "vocabulary": Vocabulary(tuple(known["names"]), known["wavelengths"])}


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
