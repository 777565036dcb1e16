"""Regions of images that no model should need: the border, what lies outside the body, clouds, masks that people drew. Finds no text.

B tiles, D axes, P patches. A region is a mask over the pixels that the encoder is shown; where it is absent it is False everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from dinodomain.audit.observe.observer import Shown
from dinodomain.types import CLOUD, OUTSIDE_BODY, SHADOW_SNOW, USER_MASK

WORDS: Mapping[str, str] = {"invalid": "area without data", "user": "area that a mask marks", "cloud": "clouds"}
"""What regions are called in a sentence, where their name is no word for it."""

BORDER = 1 / 16
"""Width of the border ring over the shorter side, at least one pixel: where burned-in text, markers and collimators lie."""

PROVENANCE: Mapping[str, str] = {
    "border": "a ring of a sixteenth of the side along the edges in plane",
    "background": "pixels outside the largest bright object (Otsu 1979), holes filled, where most of them are dark; or marked as "
    "outside the body at ingest",
    "invalid": "pixels without data",
    "cloud": "pixels marked as cloud, shadow or snow at ingest",
    "user": "pixels that a mask given at ingest marks",
}

_LEAST_OBJECT, _MOST_OBJECT = 0.1, 0.9
"""Share of an image that an object must fill at least and at most to be told from its background."""
_MOST_BRIGHT = 0.15
"""Share of a background that may be as bright as the object. Textures have no background: a third is bright in aerial photographs, and 1 to
6 % around bodies in radiographs and MR slices."""


def regions_of(shown: Shown) -> dict[str, Tensor]:
    """[B, *size] bool by name: ``border``, ``background``, ``invalid`` and, where any tile has them, ``cloud`` and ``user``."""
    size = tuple(shown.pixels.shape[2:])
    marked = _marked(shown, OUTSIDE_BODY, size)
    found = {
        "border": border(size).expand(len(shown.pixels), *size),
        "background": (background(shown.pixels, shown.valid) if marked is None else marked) & shown.valid.cpu(),
        "invalid": ~shown.valid.cpu(),
    }
    for name, bits in (("cloud", CLOUD | SHADOW_SNOW), ("user", USER_MASK)):
        marks = _marked(shown, bits, size)
        if marks is not None:
            found[name] = marks
    return found


def border(size: tuple[int, ...]) -> Tensor:
    """[*size] bool ring along the edges of the last two axes; slices of a volume each have it."""
    width = max(1, round(BORDER * min(size[-2:])))
    ring = torch.ones(size, dtype=torch.bool)
    ring[..., width:-width, width:-width] = False
    return ring


def background(pixels: Tensor, valid: Tensor) -> Tensor:
    """[B, *size] bool, what is outside the largest object of each image; nowhere in an image that shows none.

    Args:
        pixels: [B, C, *size] in the network's range.
        valid: [B, *size] bool.
    """
    light = pixels.float().mean(dim=1).cpu().numpy()
    seen = valid.cpu().numpy()
    return torch.from_numpy(np.stack([_outside(image, known) for image, known in zip(light, seen)]))


def _outside(light: np.ndarray, known: np.ndarray) -> np.ndarray:
    nothing = np.zeros(light.shape, bool)
    if not known.any() or light[known].min() == light[known].max():
        return nothing
    bright = (light > otsu(light[known])) & known
    parts, count = ndimage.label(bright)
    if not count:
        return nothing
    largest = 1 + int(np.argmax(ndimage.sum_labels(bright, parts, np.arange(1, count + 1))))
    body = ndimage.binary_fill_holes(parts == largest)
    outside = ~body & known
    large = _LEAST_OBJECT <= body.sum() / known.sum() <= _MOST_OBJECT
    return outside if large and (bright & outside).sum() <= _MOST_BRIGHT * outside.sum() else nothing


def otsu(values: np.ndarray) -> float:
    """The threshold with the largest variance between the two sides, over 256 bins. Source: Otsu 1979, equation 18."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = below * above * np.square(sums / below - (sums[-1] - sums) / above)
    return float(edges[1 + int(np.nanargmax(spread))])


def _marked(shown: Shown, bits: int, size: tuple[int, ...]) -> Tensor | None:
    """[B, *size] bool, where ingest set one of the bits; None where it set none in this batch."""
    if shown.batch.valid is None:
        return None
    stored = (shown.batch.valid[:, 0].cpu() & bits) != 0
    return F.interpolate(stored[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0 if bool(stored.any()) else None


def patch_share(region: Tensor, patch: tuple[int, ...]) -> Tensor:
    """[B, *size] bool to [B, P] float32 share of each patch that the region covers."""
    pooled = F.avg_pool2d if region.ndim == 3 else F.avg_pool3d
    return pooled(region[:, None].float(), patch).flatten(1)
