"""Shows images to the encoder with a region taken away, and with a region of the same shape taken away elsewhere.

What a decision rests on shows only here: a map says where to look, taking the place away says whether it mattered.
n images, E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.audit.masks.regions import patch_share, regions_of
from dinodomain.audit.observe.observer import Observer, Shown
from dinodomain.embed import pool_features

LEAST = 0.002
"""Share of an image that a region must cover to count as there, and at most the rest of it."""

BLUR = 4
"""Cells per axis of the blurred image that fills a region: coarse enough that no text or marker is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Pooled features of images without a region.

    Attributes:
        there: [n] bool, images that have the region; others are unchanged.
        blurred: [n, E] the region filled with a blur of its surroundings.
        elsewhere: [n, E] the same shape, moved by a random distance, filled alike: the control.
        dropped: [n, E] the patches that the region covers by half or more never shown to the encoder.
        share: Mean share of the image that the region covers, where it is there.
    """

    there: np.ndarray
    blurred: np.ndarray
    elsewhere: np.ndarray
    dropped: np.ndarray
    share: float


def look_without(observer: Observer, numbers: np.ndarray, plain: np.ndarray, seed: int) -> dict[str, Replaced]:
    """Features without each region that some images have.

    Args:
        observer: Shows the images.
        numbers: [n] rows of the whole audited set, sorted.
        plain: [n, E] features of the images as they are.
        seed: Decides where the control region lies.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, np.ndarray]] = {}
    for rows, shown in observer.placed(numbers):
        for name, region in regions_of(shown).items():
            share = region.flatten(1).float().mean(dim=1)
            there = ((share >= LEAST) & (share <= 1 - LEAST)).numpy()
            if there.any():
                arrays = found.setdefault(name, _empty(plain))
                _fill(arrays, observer, shown, region, there, rows, generator)
                arrays["share"][rows] = share.numpy()
    return {name: _replaced(arrays) for name, arrays in found.items()}


def _empty(plain: np.ndarray) -> dict[str, np.ndarray]:
    kinds = {kind: plain.copy() for kind in ("blurred", "elsewhere", "dropped")}
    return {**kinds, "there": np.zeros(len(plain), bool), "share": np.zeros(len(plain))}


def _fill(
    arrays: Mapping[str, np.ndarray], observer: Observer, shown: Shown, region: Tensor, there: np.ndarray, rows: np.ndarray,
    generator: torch.Generator,
) -> None:  # fmt: skip
    arrays["there"][rows] = there
    versions = {
        "blurred": observer.features(shown, blurred(shown.pixels, region)),
        "elsewhere": observer.features(shown, blurred(shown.pixels, moved(region, generator))),
        "dropped": _dropped(observer, shown, region, arrays["dropped"].shape[1]),
    }
    for kind, features in versions.items():
        arrays[kind][rows[there]] = features[there]


def _replaced(arrays: Mapping[str, np.ndarray]) -> Replaced:
    kinds = {kind: arrays[kind] for kind in ("there", "blurred", "elsewhere", "dropped")}
    return Replaced(**kinds, share=float(arrays["share"][arrays["there"]].mean()))


def blurred(pixels: Tensor, region: Tensor) -> Tensor:
    """The images with the region filled by what surrounds it: means over coarse cells of the pixels outside it, interpolated.

    Args:
        pixels: [B, C, *size].
        region: [B, *size] bool.
    """
    pool = F.adaptive_avg_pool2d if pixels.ndim == 4 else F.adaptive_avg_pool3d
    inside = region[:, None].to(pixels)
    kept = pool(1 - inside, BLUR)
    whole = (pixels * (1 - inside)).flatten(2).sum(dim=2) / (1 - inside).flatten(2).sum(dim=2).clamp_min(1)
    whole = whole.reshape(*whole.shape, *(1,) * (pixels.ndim - 2))
    coarse = torch.where(kept > 1e-3, pool(pixels * (1 - inside), BLUR) / kept.clamp_min(1e-3), whole)
    mode = "bilinear" if pixels.ndim == 4 else "trilinear"
    smooth = F.interpolate(coarse, size=pixels.shape[2:], mode=mode, align_corners=False)
    return torch.where(inside > 0, smooth, pixels)


def moved(region: Tensor, generator: torch.Generator) -> Tensor:
    """Each region moved in plane by a random quarter to three quarters of the image, round its edges: the same area and shape."""
    out = []
    for one in region:
        steps = [int(side / 4 + torch.rand((), generator=generator).item() * side / 2) for side in one.shape[-2:]]
        out.append(torch.roll(one, steps, dims=(-2, -1)))
    return torch.stack(out)


@torch.no_grad()
def _dropped(observer: Observer, shown: Shown, region: Tensor, width: int) -> np.ndarray:
    """[B, E] features of the patches that the region leaves; images that leave equally many go together."""
    backbone = observer.backbone
    keep = patch_share(region, backbone.patch) < 0.5
    keep[:, 0] |= ~keep.any(dim=1)
    weights = patch_share(shown.valid.cpu(), backbone.patch)
    out: np.ndarray = np.empty((len(keep), width), np.float32)
    for count in set(keep.sum(dim=1).tolist()):
        group = torch.nonzero(keep.sum(dim=1) == count)[:, 0]
        part = shown.pick(group)
        found = backbone.encode(part.pixels.to(backbone.device), keep=keep[group].to(backbone.device), about=part.about)
        known = weights[group][keep[group]].reshape(len(group), -1).to(backbone.device)
        out[group.numpy()] = pool_features(found, known, backbone.pooling).cpu().numpy()
    return out
