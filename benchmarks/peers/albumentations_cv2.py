"""albumentations on numpy images, cv2 with one thread like the rest."""

from __future__ import annotations

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2

from peers.common import GAMMA, NOISE, Images, Pipeline, View, collate, log_uniform, views

cv2.setNumThreads(1)


def rgb(images: Images) -> Pipeline:
    """On uint8: lookup tables for colour, area averages where a crop shrinks."""

    def tail(view: View) -> list[A.BasicTransform]:
        return [
            A.RandomBrightnessContrast(0.2, 0.2, p=0.8), A.RandomGamma((80, 125), p=0.8), _blur(view),
            A.Solarize((0.5, 0.5), p=view.solarise), A.GaussNoise((NOISE, NOISE), p=0.2), A.Normalize((0.5,) * 3, (0.25,) * 3),
        ]  # fmt: skip

    return _chains(images, tail, lambda image: image)


def bands(images: Images) -> Pipeline:
    """On float32 in the unit range, brought there once for all views; brightness and contrast of each band written by hand."""
    channels = images.channels

    def jitter(image: np.ndarray, **_: object) -> np.ndarray:
        mean = np.asarray(cv2.reduce(image.reshape(-1, channels), 0, cv2.REDUCE_AVG)[0])
        factor, shift = np.random.uniform(0.8, 1.2, channels).astype(np.float32), np.random.uniform(-0.2, 0.2, channels).astype(np.float32)
        image = image * factor
        image += mean * (1 - factor) + shift
        np.clip(image, 0, 1, out=image)
        return np.asarray(cv2.pow(image, log_uniform(*GAMMA)))

    def tail(view: View) -> list[A.BasicTransform]:
        return [
            A.Lambda(image=jitter, p=0.8), _blur(view), A.GaussNoise((NOISE, NOISE), p=0.2),
            A.Normalize((0.5,) * channels, (0.25,) * channels, max_pixel_value=1.0),
        ]  # fmt: skip

    return _chains(images, tail, lambda image: unit_array(images, image))


def unit_array(images: Images, image: np.ndarray) -> np.ndarray:
    """A stored image as float32 in the unit range."""
    out = image.astype(np.float32)
    out -= images.low
    out *= 1 / (images.high - images.low)
    return out


def _blur(view: View) -> A.BasicTransform:
    return A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=view.blur)


def _chains(images: Images, tail: object, prepare: object) -> Pipeline:
    def chain(view: View) -> A.Compose:
        crop = A.RandomResizedCrop((view.size,) * 2, view.scale, interpolation=cv2.INTER_CUBIC, area_for_downscale="image")
        return A.Compose([crop, A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), *tail(view), ToTensorV2()])

    chains, arrays = [chain(view) for view in views(224, 96)], images.arrays()

    def run(turn: int) -> int:
        np.random.seed(turn)
        done: list[list[torch.Tensor]] = []
        for array in arrays:
            ready = prepare(array)
            done.append([make(image=ready)["image"] for make in chains])
        return collate(done)

    return run
