"""kornia on whole batches in float32: the form that it is written for."""

from __future__ import annotations

import kornia.augmentation as K
import torch

from peers.common import GAMMA, NOISE, Images, Pipeline, View, views

PART = {3: 16, 12: 4}
"""Images of one batch by channels: its fastest here (tried 1, 4, 8, 16); larger batches of 12 bands leave the caches of a CPU."""


def rgb(images: Images) -> Pipeline:
    """Crops sliced and resized, bilinear; it has no antialiasing there."""
    colour = [K.RandomBrightness((0.8, 1.2), p=0.8), K.RandomContrast((0.8, 1.2), p=0.8), K.RandomGamma(GAMMA, p=0.8)]
    return _batched(images, colour, solarise=True)


def bands(images: Images) -> Pipeline:
    """The same with brightness, contrast and gamma of each band written by hand in place: its own change all bands alike."""

    class Jitter(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            acts = (torch.rand(len(x), 1, 1, 1) < 0.8).float()
            factor = 1 + acts * 0.4 * (torch.rand(*x.shape[:2], 1, 1) - 0.5)
            shift = acts * 0.4 * (torch.rand(*x.shape[:2], 1, 1) - 0.5)
            mean = x.mean(dim=(2, 3), keepdim=True)
            x = torch.addcmul(mean * (1 - factor) + shift, x, factor).clamp_(1e-6, 1.0)
            exponent = torch.exp(acts * torch.empty(len(x), 1, 1, 1).uniform_(*torch.tensor(GAMMA).log().tolist()))
            return x.log_().mul_(exponent).exp_()

    return _batched(images, [Jitter()], solarise=False)


def _batched(images: Images, colour: list[torch.nn.Module], *, solarise: bool) -> Pipeline:
    def chain(view: View) -> torch.nn.Module:
        return torch.nn.Sequential(
            K.RandomResizedCrop((view.size, view.size), scale=view.scale, cropping_mode="slice"),
            K.RandomHorizontalFlip(), K.RandomVerticalFlip(), *colour,
            *([K.RandomGaussianBlur((9, 9), (0.1, 2.0), p=view.blur)] if view.blur else []),
            *([K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=view.solarise)] if solarise and view.solarise else []),
            K.RandomGaussianNoise(std=NOISE, p=0.2), K.Normalize(0.5, 0.25),
        )  # fmt: skip

    chains = [chain(view) for view in views(224, 96)]

    def run(turn: int) -> int:
        torch.manual_seed(turn)
        for part in images.pixels.split(PART[images.channels]):
            unit = images.unit(part)
            for make in chains:
                make(unit)
        return len(images.pixels)

    return run
