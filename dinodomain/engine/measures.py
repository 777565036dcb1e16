"""What is measured of tokens to tell whether features are worth having: pure functions of tensors, no network and no files.

Legend: n tiles, P patch tokens of a crop, E width, D spatial axes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-7
"""Added to each share of RankMe, as published for float32."""

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of the labelled nearest-neighbour vote (Caron 2021, appendix F.1)."""

FAR = 4.0
"""Median absolute deviations beyond the median from which a patch's norm is an outlier: 0.35 % of normal values are."""

WITHIN = 1.0
"""Patches that a match may lie beside the true place, along each axis."""


def rankme(features: Tensor) -> float:
    """Exponential of the entropy of the singular values' shares (Garrido 2023, equation 3; not centred), 1..min(n, E).

    Args:
        features: [n, E].
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(EPSILON) + EPSILON
    return math.exp(float(-(shares * shares.log()).sum()))


def effective_rank(features: Tensor) -> float:
    """Effective rank of the centred features (Roy and Vetterli 2007) as a share of the largest that n rows of E numbers can have, 0..1."""
    most = min(len(features) - 1, features.shape[1])
    centred = features.double() - features.double().mean(0)
    if most < 1 or not float(centred.abs().max()) > 0:
        return 0.0
    return min(1.0, rankme(centred) / most)


def feature_std(features: Tensor) -> float:
    """Std over tiles of unit features times sqrt(E), mean over dimensions: about 1 where directions are spread, 0 where all are alike."""
    unit = functional.normalize(features.float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def own_neighbour(first: Tensor, second: Tensor) -> float:
    """Share of tiles whose most similar second crop is their own; 1/n by chance. Both are centred: an offset makes all alike.

    Args:
        first: [n, E] of the first crops.
        second: [n, E] of the second crops, in the same order.
    """
    keys, queries = (functional.normalize(part.double() - part.double().mean(0), dim=1) for part in (second, first))
    nearest = (queries @ keys.T).argmax(1)
    return float((nearest == torch.arange(len(first), device=nearest.device)).double().mean())


def labelled_neighbours(features: Tensor, labels: Tensor, units: Tensor) -> float:
    """Balanced accuracy of a nearest-neighbour vote in which no tile is asked about its own unit.

    Args:
        features: [n, E].
        labels: [n] int64 classes; a class that only one unit has cannot be found and is left out.
        units: [n] int64.

    Returns:
        Mean over classes of the share that is found, 0..1; NaN where fewer than two classes are left.
    """
    own = functional.normalize(features.double() - features.double().mean(0), dim=1)
    similarity = (own @ own.T).masked_fill(units[:, None] == units[None, :], -math.inf)
    near, place = similarity.topk(min(NEIGHBOURS, len(own) - 1), dim=1)
    weight = torch.exp((near - near[:, :1]) / TEMPERATURE).nan_to_num(0.0)  # a tile that has no other unit to ask votes for nothing
    votes = torch.einsum("nk,nkc->nc", weight, functional.one_hot(labels, int(labels.max()) + 1).double()[place])
    right = votes.argmax(1) == labels
    classes = [label for label in sorted(set(labels.tolist())) if len(set(units[labels == label].tolist())) > 1]
    shares = [float(right[labels == label].double().mean()) for label in classes]
    return sum(shares) / len(shares) if len(shares) > 1 else math.nan


def dense_matches(first: Tensor, second: Tensor, valid: Tensor, index: Tensor, position: Tensor, grid: tuple[int, ...]) -> Tensor:
    """How many tokens of first crops find their place in second crops by similarity alone.

    Args:
        first: [n, P, E] tokens of the first crops.
        second: [n, Q, E] tokens of the second crops.
        valid: [n, Q] bool, which of the second may be found.
        index: [n, P] from ``views.correspond``: -1 where a token has no counterpart.
        position: [n, P, D] true place of each in the second crop's token grid.
        grid: Tokens of the second crop along each axis.

    Returns:
        [n, 2] float32: matches that lie within one patch of the true place along every axis, and tokens that have a counterpart.
    """
    similarity = functional.normalize(first.float(), dim=2) @ functional.normalize(second.float(), dim=2).mT
    nearest = similarity.masked_fill(~valid[:, None, :], -math.inf).argmax(2)
    found = torch.stack(torch.unravel_index(nearest, grid), dim=-1)
    close = ((found - position).abs() <= WITHIN + 1e-4).all(-1)
    counted = index >= 0
    return torch.stack([(close & counted).sum(1), counted.sum(1)], dim=1).float()


def patch_similarity(patches: Tensor, valid: Tensor) -> Tensor:
    """Cosines between the patches of each tile, the upper triangle of the matrix that Gram anchoring holds (DINOv3, section 4.2).

    Args:
        patches: [n, T, E].
        valid: [n, T] bool.

    Returns:
        [n, T (T - 1) / 2] float32; NaN where either patch is not valid.
    """
    unit = functional.normalize(patches.float(), dim=2)
    rows, columns = torch.triu_indices(patches.shape[1], patches.shape[1], offset=1, device=patches.device)
    both = valid[:, rows] & valid[:, columns]
    return torch.where(both, (unit @ unit.mT)[:, rows, columns], math.nan)


def mean_correlation(now: Tensor, then: Tensor) -> float:
    """Mean over tiles of the correlation between two sets of similarities; NaN where no tile has two valid ones that differ.

    Args:
        now: [n, M], NaN where there is none.
        then: [n, M].
    """
    both = torch.isfinite(now) & torch.isfinite(then)
    count = both.sum(1, keepdim=True).clamp_min(1)
    deviations = []
    for part in (now, then):
        known = torch.where(both, part, 0.0).double()
        deviations.append(torch.where(both, known - known.sum(1, keepdim=True) / count, 0.0))
    x, y = deviations
    spread = (x.square().sum(1) * y.square().sum(1)).sqrt()
    usable = spread > 1e-12
    return float(((x * y).sum(1)[usable] / spread[usable]).mean()) if bool(usable.any()) else math.nan


def class_to_patches(cls: Tensor, patches: Tensor, valid: Tensor) -> Tensor:
    """[n] mean cosine between class token and valid patches: it rises where patches lose what is local to them (DINOv3, section 4.1)."""
    cosine = functional.cosine_similarity(patches.float(), cls.float()[:, None], dim=2)
    return (cosine * valid).sum(1) / valid.sum(1).clamp_min(1)


def outlier_share(norms: Tensor) -> float:
    """Share of patch norms far beyond their median: artefacts that registers take up (Darcet 2024), about 2 % in DINOv2 without them.

    Args:
        norms: [m] of all valid patches, before the final norm.
    """
    if not len(norms):
        return math.nan
    middle = norms.median()
    return float((norms > middle + FAR * (norms - middle).abs().median()).double().mean())
