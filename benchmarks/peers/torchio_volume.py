"""TorchIO: crops sliced by hand, because it has no random crop of random size; then its own transforms."""

from __future__ import annotations

import SimpleITK as sitk
import torch
import torchio as tio
from torch import Tensor

from peers.common import GAMMA, NOISE, Images, Pipeline, View, collate, log_uniform, views

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def volumes(images: Images) -> Pipeline:
    """Linear resampling, not antialiased."""
    side = images.pixels.shape[-1]

    def chain(view: View) -> tio.Compose:
        return tio.Compose([
            tio.Resize(view.size), tio.RandomFlip((0, 1, 2), 0.5),
            tio.Lambda(_jitter, p=0.8), tio.RandomGamma(tuple(torch.tensor(GAMMA).log().tolist()), p=0.8),
            tio.RandomBlur((0.1, 2.0), p=view.blur), tio.RandomNoise(0, (0, 2 * NOISE), p=0.2), tio.Lambda(_normalise),
        ])  # fmt: skip

    chains = [(view, chain(view)) for view in views(96, 48)]

    def run(turn: int) -> int:
        torch.manual_seed(turn)
        return collate([[_made(unit, side, view, make) for view, make in chains] for unit in map(images.unit, images.pixels)])

    return run


def _made(unit: Tensor, side: int, view: View, make: tio.Compose) -> Tensor:
    extent = [min(side, round(side * log_uniform(*view.scale) ** (1 / 3))) for _ in range(3)]
    start = [int(torch.randint(side - length + 1, ())) for length in extent]
    crop = unit[(slice(None), *(slice(a, a + length) for a, length in zip(start, extent)))]
    return make(tio.ScalarImage(tensor=crop)).data


def _jitter(image: Tensor) -> Tensor:
    mean = image.mean()
    return ((image - mean) * (0.8 + 0.4 * torch.rand(())) + mean + 0.4 * (torch.rand(()) - 0.5)).clamp_(0, 1)


def _normalise(image: Tensor) -> Tensor:
    return (image - 0.5).div_(0.25)
