"""Tokens and pixels of the same patches, of images as they are and with made-up text in them: what a decoder is trained and tried on.

n images, B tiles, P patches, E width, Q pixels of a patch over all channels, C channels, D axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dinodomain.audit.masks.ocr import Plant, as_pictures, plant
from dinodomain.audit.observe.observer import Observer, Shown
from dinodomain.embed import encode_frozen
from dinodomain.model import Backbone

KINDS = ("audited", "untrained")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched:
    """Images of one size, patch by patch.

    Attributes:
        numbers: [n] rows of the whole audited set.
        tokens: Each of ``KINDS`` to [n, P, E] final tokens.
        patches: [n, P, Q] pixels in the unit range.
        grid: Patches per axis.
        patch: Sides of a patch.
        planted: The text written into each image; empty where none was.
    """

    numbers: np.ndarray
    tokens: Mapping[str, np.ndarray]
    patches: np.ndarray
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    planted: tuple[Plant, ...] = ()

    def images(self, patches: np.ndarray) -> Tensor:
        """[n, C, *size] of patches [n, P, Q]."""
        ndim = len(self.grid)
        shaped = torch.from_numpy(np.ascontiguousarray(patches)).reshape(len(patches), *self.grid, -1, *self.patch)
        order = [0, 1 + ndim, *(at for axis in range(ndim) for at in (1 + axis, 2 + ndim + axis))]
        size = (count * side for count, side in zip(self.grid, self.patch))
        return shaped.permute(*order).reshape(len(patches), -1, *size)


def both(one: Patched, other: Patched) -> Patched:
    """The images of both, without what is known of planted text."""
    return replace(
        one, numbers=np.concatenate([one.numbers, other.numbers]), patches=np.concatenate([one.patches, other.patches]), planted=(),
        tokens={kind: np.concatenate([one.tokens[kind], other.tokens[kind]]) for kind in one.tokens},
    )  # fmt: skip


def patches_of(images: Tensor, patch: tuple[int, ...]) -> np.ndarray:
    """[n, P, Q] patches of images [n, C, *size]; the way back is ``Patched.images``."""
    ndim, grid = len(patch), tuple(side // one for side, one in zip(images.shape[2:], patch))
    split = images.reshape(*images.shape[:2], *(part for pair in zip(grid, patch) for part in pair))
    order = [0, *(2 + 2 * axis for axis in range(ndim)), 1, *(3 + 2 * axis for axis in range(ndim))]
    result: np.ndarray = split.permute(*order).reshape(len(images), int(np.prod(grid)), -1).float().cpu().numpy()
    return result


def look_at_patches(observer: Observer, numbers: np.ndarray) -> Patched:
    """Tokens and pixels of images as they are.

    Args:
        observer: Shows them.
        numbers: [n] rows of the whole audited set, of one size.
    """
    return _joined(observer, [_patched(observer, shown, shown.pixels) for shown in observer.show(numbers)])


def look_at_planted(observer: Observer, numbers: np.ndarray, cells: Sequence[tuple[int, int]], seed: int) -> Patched:
    """The same of images with an upright made-up id in each; images in which none has room are left out.

    Args:
        observer: Shows them.
        numbers: [n] rows of the whole audited set, of one size.
        cells: Sizes (pixels) and contrasts (of 255) in turn.
        seed: Decides text and place.
    """
    parts = []
    for shown in observer.show(numbers):
        mean, deviation = observer.levels(shown)
        pixels, kept, planted = [], [], []
        for at, (number, image) in enumerate(zip(shown.rows.tolist(), shown.pixels)):
            size, contrast = cells[number % len(cells)]
            made = _written((image * deviation + mean).clamp(0, 1).cpu(), size, contrast, np.random.default_rng([seed, 0x9EC, number]))
            if made is not None:
                pixels.append((made[0].to(image) - mean) / deviation)
                kept.append(at)
                planted.append(made[1])
        if kept:
            part = shown.pick(torch.tensor(kept))
            parts.append(replace(_patched(observer, part, torch.stack(pixels)), planted=tuple(planted)))
    return _joined(observer, parts)


def _written(unit: Tensor, size: int, contrast: int, generator: np.random.Generator) -> tuple[Tensor, Plant] | None:
    """An image [C, *size] in the unit range with text, as bright as it would be in a picture stretched to what the image holds."""
    picture = as_pictures(unit[None])[0]
    found = plant(picture, size=size, contrast=contrast, rotation=0, generator=generator)
    if found is None:
        return None
    change = torch.from_numpy(found[0].astype(np.float32) - picture).permute(2, 0, 1) / 255 * (unit.max() - unit.min())
    change = change if len(unit) == 3 else change[:1]
    return (unit + (change if unit.ndim == 3 else change[:, None])).clamp(0, 1), found[1]


@torch.no_grad()
def _patched(observer: Observer, shown: Shown, pixels: Tensor) -> Patched:
    (mean, deviation), patch = observer.levels(shown), observer.backbone.patch
    encoders: Mapping[str, Backbone] = {"audited": observer.backbone, "untrained": observer.frozen.untrained}
    return Patched(
        numbers=shown.rows, patch=patch, patches=patches_of((pixels * deviation + mean).clamp(0, 1), patch),
        tokens={name: encode_frozen(encoder, pixels, shown.about).patches.float().cpu().numpy() for name, encoder in encoders.items()},
        grid=tuple(side // one for side, one in zip(pixels.shape[2:], patch, strict=True)),
    )  # fmt: skip


def _joined(observer: Observer, parts: Sequence[Patched]) -> Patched:
    assert parts, "asked for images that there are"
    joined = np.concatenate([part.numbers for part in parts])
    order = np.argsort(joined, kind="stable")
    planted = [one for part in parts for one in part.planted]
    return Patched(
        numbers=joined[order], tokens={kind: np.concatenate([part.tokens[kind] for part in parts])[order] for kind in KINDS},
        patches=np.concatenate([part.patches for part in parts])[order], grid=parts[0].grid, patch=observer.backbone.patch,
        planted=tuple(planted[at] for at in order) if planted else (),
    )  # fmt: skip
