"""MONAI: random crop of random size, resize, flips and the same intensity operations, without its metadata (faster)."""

from __future__ import annotations

import monai
import torch
from monai import transforms as M

from peers.common import GAMMA, NOISE, Images, Pipeline, View, collate, views


def plain(images: Images) -> Pipeline:
    """Trilinear, not antialiased: its fastest."""
    return _volumes(images, antialias=False)


def antialiased(images: Images) -> Pipeline:
    """Trilinear after its Gaussian."""
    return _volumes(images, antialias=True)


def _volumes(images: Images, *, antialias: bool) -> Pipeline:
    side = images.pixels.shape[-1]
    monai.data.set_track_meta(False)

    def chain(view: View) -> M.Compose:
        least, most = (round(side * share ** (1 / 3)) for share in view.scale)
        return M.Compose([
            M.RandSpatialCrop((least,) * 3, (most,) * 3, random_size=True),
            M.Resize((view.size,) * 3, mode="trilinear", anti_aliasing=antialias),
            *(M.RandFlip(0.5, axis) for axis in range(3)),
            M.RandScaleIntensity(0.2, prob=0.8), M.RandShiftIntensity(0.2, prob=0.8), M.RandAdjustContrast(prob=0.8, gamma=GAMMA),
            M.RandGaussianSmooth((0.1, 2.0), (0.1, 2.0), (0.1, 2.0), prob=view.blur, approx="sampled"),
            M.RandGaussianNoise(prob=0.2, std=2 * NOISE),
            M.NormalizeIntensity(0.5, 0.25),
        ])  # fmt: skip

    chains = [chain(view) for view in views(96, 48)]

    def run(turn: int) -> int:
        for place, make in enumerate(chains):
            make.set_random_state(100 * turn + place)
        return collate([[torch.as_tensor(make(unit)) for make in chains] for unit in map(images.unit, images.pixels)])

    return run
