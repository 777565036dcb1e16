"""Shows images to the encoder with what another device or a worse day does to them: eight corruptions at five strengths.

They act on the unit range, before the network's mean and deviation, so that strengths mean the same for every domain.
Strengths follow Hendrycks and Dietterich 2019 in kind, in smaller steps. n images, E width, B tiles, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinodomain.audit.observe.observer import Observer, Shown

LEVELS = 5
Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""(unit [C, *size], strength 1..5, generator of this image) to the same shape."""


def look_corrupted(observer: Observer, numbers: np.ndarray, width: int, seed: int) -> dict[str, np.ndarray]:
    """Features under each corruption that these images can have.

    Args:
        observer: Shows the images.
        numbers: [n] rows of the whole audited set, sorted.
        width: E.
        seed: Decides noise.

    Returns:
        Name to [5, n, E], strength 1 first.
    """
    found: dict[str, np.ndarray] = {}
    for rows, shown in observer.placed(numbers):
        for name, corruption in applicable(shown.pixels).items():
            out = found.setdefault(name, np.zeros((LEVELS, len(numbers), width), np.float32))
            for level in range(1, LEVELS + 1):
                out[level - 1, rows] = observer.features(shown, _corrupted(observer, shown, corruption, level, seed))
    return found


def _corrupted(observer: Observer, shown: Shown, corruption: Corruption, level: int, seed: int) -> Tensor:
    """The tiles in the network's range, corrupted; noise of a tile is its own whatever the batch."""
    (mean, std), out = observer.levels(shown), []
    for number, pixels in zip(shown.rows.tolist(), shown.pixels):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        unit = corruption((pixels * std + mean).clamp(0, 1).cpu(), level, generator).clamp(0, 1)
        out.append((unit.to(pixels) - mean) / std)
    known = shown.valid[:, None].to(shown.pixels)
    return torch.stack(out) * known + shown.pixels * (1 - known)


def applicable(pixels: Tensor) -> dict[str, Corruption]:
    """Corruptions of images like these [B, C, *size]: JPEG needs pictures of one or three channels, lost bands need several."""
    channels, flat = pixels.shape[1], pixels.ndim == 4
    without = {*(() if flat and channels in (1, 3) else ("jpeg",)), *(() if channels > 1 else ("lost bands",))}
    return {name: corruption for name, corruption in CORRUPTIONS.items() if name not in without}


def _noise(unit: Tensor, level: int, generator: torch.Generator) -> Tensor:
    return unit + 0.02 * level * torch.randn(unit.shape, generator=generator)


def _blur(unit: Tensor, level: int, _: torch.Generator) -> Tensor:
    """A Gaussian of 0.6 pixels per level along every axis."""
    sigma = 0.6 * level
    reach = int(3 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    return _along(unit, kernel / kernel.sum(), range(1, unit.ndim))


def _motion(unit: Tensor, level: int, _: torch.Generator) -> Tensor:
    """A box along the last axis: 3, 5 ... 11 pixels."""
    return _along(unit, torch.full((2 * level + 1,), 1 / (2 * level + 1)), [unit.ndim - 1])


def _along(unit: Tensor, kernel: Tensor, axes: range | list[int]) -> Tensor:
    reach = len(kernel) // 2
    for axis in axes:
        lines = unit.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
        unit = F.conv1d(flat, kernel[None, None]).reshape(lines.shape).movedim(-1, axis)
    return unit


def _gamma(unit: Tensor, level: int, _: torch.Generator) -> Tensor:
    """Darker mid-tones and less contrast, as another window or exposure gives: exponents 1.2 to 2, range down to 60 %."""
    return 0.08 * level / 2 + (1 - 0.08 * level) * unit ** (1 + 0.2 * level)


def _jpeg(unit: Tensor, level: int, _: torch.Generator) -> Tensor:
    """Qualities 60, 40, 25, 12, 6."""
    from PIL import Image

    values = (unit.movedim(0, -1) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(buffer, "JPEG", quality=(60, 40, 25, 12, 6)[level - 1])
    with Image.open(buffer) as image:
        again = np.asarray(image, np.float32) / 255
    return torch.from_numpy(again.copy()).reshape(*again.shape[:2], -1).movedim(-1, 0)


def _coarser(unit: Tensor, level: int, _: torch.Generator) -> Tensor:
    """Sampled at 1.5 to 3.5 times the pixel size and back."""
    size = unit.shape[1:]
    less = [max(2, round(side / (1 + 0.5 * level))) for side in size]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    coarse = F.interpolate(unit[None], size=less, mode="area")
    return F.interpolate(coarse, size=size, mode=mode, align_corners=False)[0]


def _veil(unit: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Something bright and smooth over the image (haze, thin cloud, a coil's bias): 10 to 50 % where it is thickest."""
    size = unit.shape[1:]
    coarse = torch.rand(1, 1, *(3,) * len(size), generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)[0]
    weight = 0.1 * level * smooth
    return unit * (1 - weight) + weight


def _lost(unit: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """A tenth of the bands per level, at least one, replaced by their mean."""
    count = min(unit.shape[0] - 1, max(1, round(0.1 * level * unit.shape[0])))
    bands = torch.randperm(unit.shape[0], generator=generator)[:count]
    out = unit.clone()
    out[bands] = unit[bands].flatten(1).mean(dim=1).reshape(-1, *(1,) * (unit.ndim - 1)).expand_as(out[bands])
    return out


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": _noise, "blur": _blur, "motion": _motion, "gamma": _gamma, "jpeg": _jpeg, "coarser pixels": _coarser, "veil": _veil,
    "lost bands": _lost,
}  # fmt: skip
