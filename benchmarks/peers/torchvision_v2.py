"""torchvision's second transforms, image by image: batched, they would give every image the same crop."""

from __future__ import annotations

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from peers.common import GAMMA, NOISE, Images, Pipeline, View, collate, log_uniform, views


def rgb(images: Images) -> Pipeline:
    """On uint8 tensors with channels-last strides until the noise: its fastest form, antialiased bicubic."""

    def chain(view: View) -> v2.Compose:
        return v2.Compose([
            *_geometry(view),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2), v2.Lambda(lambda image: functional.adjust_gamma(image, log_uniform(*GAMMA)))], p=0.8),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=view.blur),
            v2.RandomSolarize(128, p=view.solarise),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.GaussianNoise(sigma=NOISE, clip=False)], p=0.2),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ])  # fmt: skip

    chains = [chain(view) for view in views(224, 96)]
    pixels = images.pixels.contiguous(memory_format=torch.channels_last)

    def run(turn: int) -> int:
        torch.manual_seed(turn)
        return collate([[make(image) for make in chains] for image in pixels])

    return run


def bands(images: Images) -> Pipeline:
    """In float32, with brightness and contrast of each band written by hand in place: its own are for RGB."""
    channels = images.channels

    def jitter(image: torch.Tensor) -> torch.Tensor:
        mean = image.mean(dim=(1, 2), keepdim=True)
        factor, shift = 1 + 0.4 * (torch.rand(channels, 1, 1) - 0.5), 0.4 * (torch.rand(channels, 1, 1) - 0.5)
        image = torch.addcmul(mean * (1 - factor) + shift, image, factor).clamp_(1e-6, 1.0)
        return image.log_().mul_(log_uniform(*GAMMA)).exp_()  # torch.pow takes four times as long

    def chain(view: View) -> v2.Compose:
        return v2.Compose([
            *_geometry(view),
            v2.RandomApply([v2.Lambda(jitter)], p=0.8),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=view.blur),
            v2.RandomApply([v2.GaussianNoise(sigma=NOISE, clip=False)], p=0.2),
            v2.Normalize([0.5] * channels, [0.25] * channels, inplace=True),
        ])  # fmt: skip

    chains = [chain(view) for view in views(224, 96)]

    def run(turn: int) -> int:
        torch.manual_seed(turn)
        return collate([[make(unit) for make in chains] for unit in map(images.unit, images.pixels)])

    return run


def _geometry(view: View) -> list[torch.nn.Module]:
    return [
        v2.RandomResizedCrop(view.size, scale=view.scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
    ]  # fmt: skip
