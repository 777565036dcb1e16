"""Controls of attribution maps: does a map change when the network is re-initialised, hold under small changes, and order what matters?

All eight saliency methods that Arun et al. 2021 tried on chest X-rays fail at least one such test, so none is taken on trust.
B images, M pixels or patches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Images [B, C, *size] to one number each, [B]."""


def similarity(one: Tensor, other: Tensor) -> np.ndarray:
    """[B] Spearman correlation of the absolute values of two maps [B, *size] of the same images."""
    a, b = (rankdata(values.abs().flatten(1).numpy(), axis=1) for values in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    result: np.ndarray = (a * b).sum(axis=1) / np.maximum(norm, 1e-12)
    return result


def between_images(maps: Tensor) -> float:
    """95th percentile of the similarity of maps of different images: as alike as maps are that explain different things."""
    count = len(maps)
    first, second = np.triu_indices(count, 1)
    return float(np.quantile(similarity(maps[first], maps[second]), 0.95)) if count > 1 else 1.0


def deletion(score: Score, images: Tensor, maps: Tensor, patches: Tensor, fill: Tensor, *, steps: int = 8, seed: int = 0) -> float:
    """How much faster the score falls when patches go in the map's order than in a random one, as a share of the score's whole fall.

    Args:
        score: What was explained.
        images: [B, C, *size].
        maps: [B, *size].
        patches: [*size] number of the patch of each pixel.
        fill: [B, C, *size] that takes the place of deleted patches.
        steps: Shares of the patches deleted at a time.
        seed: Of the random order.

    Returns:
        Mean over images and steps; above 0 the map orders better than chance. Source: Petsiuk et al. 2018.
    """
    count = int(patches.max()) + 1
    flat = patches.flatten().expand(len(maps), -1)
    weight = torch.zeros(len(maps), count).scatter_add_(1, flat, maps.flatten(1).float())
    sign = torch.sign(score(images) - score(fill)).cpu()
    ours = (weight * sign[:, None]).argsort(dim=1, descending=True)
    chance = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    start, end = score(images).cpu(), score(fill).cpu()
    span = (start - end).abs().clamp_min(1e-6)
    fallen = [
        torch.stack([(start - value) * sign / span for value in _deleted(score, images, order, patches, fill, steps)])
        for order in (ours, chance)
    ]
    return float((fallen[0] - fallen[1]).mean(dim=0).clamp(-2, 2).mean())


def _deleted(score: Score, images: Tensor, order: Tensor, patches: Tensor, fill: Tensor, steps: int) -> list[Tensor]:
    """Scores after each further share of the patches is gone."""
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    place = rank.gather(1, patches.flatten().expand(len(order), -1)).reshape(len(order), 1, *patches.shape)
    out = []
    for step in range(1, steps):
        gone = (place < step * order.shape[1] / steps).to(images.device)
        out.append(score(torch.where(gone, fill, images)).cpu())
    return out


def enrichment(maps: Tensor, region: Tensor) -> np.ndarray:
    """[B] share of a map's mass inside a region over the region's share of the image; NaN where the image has no such region.

    Args:
        maps: [B, *size].
        region: [B, *size] bool.
    """
    mass, inside = maps.abs().flatten(1), region.flatten(1)
    area = inside.float().mean(dim=1)
    share = (mass * inside).sum(dim=1) / mass.sum(dim=1).clamp_min(1e-12)
    return torch.where(area > 0, share / area.clamp_min(1e-12), torch.nan).numpy()


def pointing(maps: Tensor, region: Tensor, tolerance: int) -> np.ndarray:
    """[B] whether the map's largest value lies in a region or within ``tolerance`` pixels of it; NaN without one (Zhang et al. 2018)."""
    grown = region[:, None].float()
    pool = torch.nn.functional.max_pool2d if region.ndim == 3 else torch.nn.functional.max_pool3d
    grown = pool(grown, 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0] > 0
    peak = maps.abs().flatten(1).argmax(dim=1)
    hit = grown.flatten(1).gather(1, peak[:, None])[:, 0].float()
    return torch.where(region.flatten(1).any(dim=1), hit, torch.nan).numpy()
