"""Shows the encoder a corner of each image, scaled up to the whole: what an image looks like to whoever was given a part of it only.

n images, B tiles, E width, D axes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from dinodomain.audit.observe.observer import Observer, Shown

SIDE = 0.5
"""Of the image's side; a quarter of an image, an eighth of a volume."""
LEAST_KNOWN = 0.5
"""Share of a corner that must have data."""


def look_at_corners(observer: Observer, numbers: np.ndarray, width: int, seed: int) -> dict[str, np.ndarray]:
    """Features of one corner of each image, drawn at random.

    Args:
        observer: Shows the images.
        numbers: [n] rows of the whole audited set, sorted.
        width: E.
        seed: Decides the corners; each image has its own whatever the batch.

    Returns:
        ``audited`` and ``untrained`` to [n, E]; NaN where the corner has little data.
    """
    out = {name: np.full((len(numbers), width), np.nan, np.float32) for name in ("audited", "untrained")}
    for rows, shown in observer.placed(numbers):
        part = _corners(shown, seed)
        there = part.valid.float().flatten(1).mean(dim=1).cpu().numpy() >= LEAST_KNOWN
        for name, backbone in (("audited", observer.backbone), ("untrained", observer.frozen.untrained)):
            out[name][rows[there]] = observer.features(part, backbone=backbone)[there]
    return out


def _corners(shown: Shown, seed: int) -> Shown:
    """The tiles with a corner of each in their place, at the same size and so at finer spacing."""
    size = shown.pixels.shape[2:]
    sides = [max(1, round(SIDE * side)) for side in size]
    pixels, valid = [], []
    for number, image, known in zip(shown.rows.tolist(), shown.pixels, shown.valid):
        ends = np.random.default_rng([seed, 0xC0A, number]).integers(0, 2, len(size))
        cut = tuple(slice(side - part, None) if end else slice(part) for end, side, part in zip(ends, size, sides))
        pixels.append(F.interpolate(image[None, :, *cut], size=size, mode="trilinear" if len(size) == 3 else "bilinear")[0])
        valid.append(F.interpolate(known[None, None, *cut].float(), size=size)[0, 0] > 0)
    spacing = shown.about.spacing
    finer = None if spacing is None else spacing * torch.tensor([part / side for part, side in zip(sides, size)]).to(spacing)
    return replace(shown, pixels=torch.stack(pixels), valid=torch.stack(valid), about=replace(shown.about, spacing=finer))
