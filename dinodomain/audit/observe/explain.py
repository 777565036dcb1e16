"""Maps of a few images, and the controls that say whether they may be believed. n images, R regions, E width."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinodomain.audit.attribution import EncoderObjective
from dinodomain.audit.maps import Look, Method, baselines, cells, explain
from dinodomain.audit.masks.regions import regions_of
from dinodomain.audit.observe.observer import Observer, Shown
from dinodomain.audit.sanity import between_images, deletion, enrichment, pointing, similarity
from dinodomain.errors import require
from dinodomain.model import Backbone, random_like

JITTER = 0.02
"""Deviation of the noise added to the network's input (whose own deviation is about 1) for the test of repeatability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """A linear probe on pooled features: ``features @ weight + bias``.

    Attributes:
        weight: [E].
        bias: Number.
    """

    weight: np.ndarray
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What became of one method on these images.

    Attributes:
        complete: Share of images whose integrated gradients add up; 1 for other methods.
        randomised: Mean similarity of the maps to those of the network with fresh weights, the same images.
        between: 95th percentile of the similarity of maps of different images.
        repeated: Mean similarity to the maps of the same images with a little noise.
        infidelity: Mean of Captum's infidelity over that of the same values in a random order; below 1 is better than chance.
        sensitivity: Mean of Captum's largest change of the map under small perturbations, relative to the map.
        deletion: How much faster the score falls in the map's order than in a random one.
        enriched: Region to mean mass share / area share.
        permuted: Region to the same for probes of permuted labels, one number a probe.
        pointing: Region to the share of maps whose largest value lies there.
    """

    complete: float
    randomised: float
    between: float
    repeated: float
    infidelity: float
    sensitivity: float
    deletion: float
    enriched: Mapping[str, float]
    permuted: Mapping[str, tuple[float, ...]]
    pointing: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Maps of a few images.

    Attributes:
        numbers: [n] rows of the whole audited set.
        controls: By method.
        picture: PNG of images and maps.
    """

    numbers: np.ndarray
    controls: Mapping[Method, Controls]
    picture: bytes


def look_at_maps(
    observer: Observer,
    numbers: np.ndarray,
    probe: Direction,
    permuted: Sequence[Direction],
    methods: Sequence[Method],
    *,
    steps: int,
    seed: int,
) -> Explained:
    """Makes maps and tries them.

    Args:
        observer: Shows the images.
        numbers: [n] rows of the whole audited set: none of their units may have fitted the probes.
        probe: What is explained.
        permuted: Probes of permuted labels: what regions get from a probe that knows nothing.
        methods: Of ``maps.METHODS``.
        steps: Of integrated gradients, samples of GradientShap.
        seed: Of everything random.
    """
    shown = _together(observer, numbers)
    look = Look(steps=steps, patch=observer.backbone.patch, batch=observer.batch, seed=seed)
    made = _Maker(observer=observer, shown=shown, look=look)
    maps = {method: made.maps(method, probe) for method in methods}
    controls = {method: made.controls(method, found, probe, permuted) for method, found in maps.items()}
    return Explained(numbers=shown.rows, controls=controls, picture=_picture(shown, maps))


def _together(observer: Observer, numbers: np.ndarray) -> Shown:
    """The images as one batch: those of the first shape that comes."""
    parts = list(observer.show(numbers))
    alike = [part for part in parts if part.pixels.shape[1:] == parts[0].pixels.shape[1:]]
    return alike[0].joined(alike[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    observer: Observer
    shown: Shown
    look: Look

    @property
    def images(self) -> Tensor:
        return self.shown.pixels.to(self.observer.backbone.device)

    @property
    def extra(self) -> tuple[Any, ...]:
        """Arguments of the objective after the images: no reference, the spacing where the encoder needs it."""
        about = self.shown.about
        return (None, about.spacing, about.kept) if self.observer.backbone.needs_spacing or about.kept is not None else ()

    def objective(self, probe: Direction, backbone: Backbone | None = None) -> EncoderObjective:
        encoder = backbone or self.observer.backbone
        weight = torch.from_numpy(probe.weight).float().to(encoder.device)
        found = EncoderObjective(
            encoder, "probe", weight=weight, bias=probe.bias, pool=encoder.pooling, channels=self.shown.about.channels
        )  # fmt: skip
        return found.to(encoder.device)

    def maps(self, method: Method, probe: Direction, *, images: Tensor | None = None, backbone: Backbone | None = None) -> Tensor:
        """[n, *size]; of images whose integrated gradients do not add up as well: ``controls`` counts them."""
        return self._made(method, probe, images, backbone)[0]

    def _made(self, method: Method, probe: Direction, images: Tensor | None, backbone: Backbone | None) -> tuple[Tensor, Tensor]:
        given = self.images if images is None else images
        found = explain(
            self.objective(probe, backbone), given, method, self.look, baseline=baselines(given)["blur"], extra=self.extra
        )  # fmt: skip
        return found.values, found.complete

    def controls(self, method: Method, maps: Tensor, probe: Direction, permuted: Sequence[Direction]) -> Controls:
        generator = torch.Generator().manual_seed(self.look.seed)
        jittered = self.images + (JITTER * torch.randn(self.images.shape, generator=generator)).to(self.images)
        other = self.maps(method, probe, images=jittered)
        fresh = self.maps(method, probe, backbone=random_like(self.observer.backbone, self.look.seed + 1))
        regions = {name: region for name, region in regions_of(self.shown).items() if region.flatten(1).any(dim=1).float().mean() >= 0.5}
        unknowing = [self.maps(method, one) for one in permuted]
        objective = self.objective(probe)
        score = lambda images: objective(images, *self.extra).detach()  # noqa: E731
        numbers = cells(self.images, self.look.patch)[0, 0].cpu()
        size = float(maps.flatten(1).norm(dim=1).clamp_min(1e-12).mean())
        return Controls(
            complete=float(self._made(method, probe, None, None)[1].float().mean()) if method == "integrated_gradients" else 1.0,
            randomised=float(similarity(maps, fresh).mean()),
            between=between_images(maps),
            repeated=float(similarity(maps, other).mean()),
            infidelity=self._infidelity(objective, maps),
            sensitivity=float((other - maps).flatten(1).norm(dim=1).mean()) / size,
            deletion=deletion(score, self.images, maps, numbers, baselines(self.images)["blur"], seed=self.look.seed),
            enriched={name: _mean(enrichment(maps, region)) for name, region in regions.items()},
            permuted={name: tuple(_mean(enrichment(one, region)) for one in unknowing) for name, region in regions.items()},
            pointing={name: _mean(pointing(maps, region, min(self.look.patch))) for name, region in regions.items()},
        )

    def _infidelity(self, objective: EncoderObjective, maps: Tensor) -> float:
        """Captum's infidelity (Yeh et al. 2019) of the maps over that of the same values at random places; patches go at random."""
        metrics = require("captum.metrics", extra="audit", wanted_by="attribution maps")
        images, blur = self.images, baselines(self.images)["blur"]
        numbers = cells(images, self.look.patch).cpu()
        generator = torch.Generator().manual_seed(self.look.seed)

        def perturb(inputs: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
            gone = torch.rand(len(inputs), int(numbers.max()) + 1, generator=generator) < 0.25
            mask = gone[:, numbers.flatten()].reshape(len(inputs), 1, *inputs.shape[2:]).to(inputs)
            change = (inputs - base) * mask
            return change, inputs - change

        def of(values: Tensor) -> float:
            # Contributions per pixel as Captum wants them: times the change they give the contribution of what went.
            spread = (
                values[:, None].expand_as(images).to(images) / images.shape[1] / (images - blur).where((images - blur).abs() > 1e-6, 1.0)
            )
            found = metrics.infidelity(
                objective, perturb, images, spread, baselines=blur, additional_forward_args=self.extra or None, n_perturb_samples=8,
                normalize=True,
            )  # fmt: skip
            return float(found.detach().nan_to_num().mean())

        order = torch.randperm(maps[0].numel(), generator=generator)
        return of(maps) / max(of(maps.flatten(1)[:, order].reshape(maps.shape)), 1e-12)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _picture(shown: Shown, maps: Mapping[Method, Tensor]) -> bytes:
    """Images and maps side by side; of volumes the slice where the map has most mass."""
    figure_module = require("matplotlib.figure", extra="all", wanted_by="figures")
    count = min(12, len(shown.rows))
    figure = figure_module.Figure(figsize=(2 * (1 + len(maps)), 2 * count), layout="constrained")
    for row, line in enumerate(figure.subplots(count, 1 + len(maps), squeeze=False)):
        image = shown.pixels[row].float().mean(dim=0).cpu()
        slices = [_flat(found[row], found[row]) for found in maps.values()]
        line[0].imshow(_flat(image, next(iter(maps.values()))[row]), cmap="gray")
        for axes, name, values in zip(line[1:], maps, slices):
            reach = float(np.abs(values).max()) or 1.0
            axes.imshow(values, cmap="PuOr_r", vmin=-reach, vmax=reach)
            axes.set_title(name.replace("_", " "), fontsize=7)
        for axes in line:
            axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()


def _flat(image: Tensor, weights: Tensor) -> np.ndarray:
    found: np.ndarray = (image if image.ndim == 2 else image[int(weights.abs().flatten(1).sum(dim=1).argmax())]).numpy()
    return found
