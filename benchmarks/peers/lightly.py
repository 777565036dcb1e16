"""lightly-train's DINOv2 transform, from its own package (AGPL: installed by the extra ``bench`` alone, never copied)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from lightly_train._methods.dinov2.dinov2_transform import DINOv2ViTTransform  # private: it has no public name

from peers.albumentations_cv2 import unit_array
from peers.common import Images, Pipeline, collate

cv2.setNumThreads(1)

COMMON: dict[str, Any] = {
    "color_jitter": {"prob": 0.8, "strength": 1.0, "brightness": 0.2, "contrast": 0.2, "saturation": 0.0, "hue": 0.0},
    "random_gray_scale": None,
    "random_flip": {"horizontal_prob": 0.5, "vertical_prob": 0.5},
}


def as_it_comes(images: Images) -> Pipeline:
    """Its defaults, which have saturation, hue and grey that we lack; local views of 96 instead of 98 pixels."""
    return _run(images, {}, lambda image: image)


def common(images: Images) -> Pipeline:
    """Only what both have."""
    return _run(images, COMMON, lambda image: image)


def bands(images: Images) -> Pipeline:
    """For any number of channels it has crop, flips, blur, solarisation and normalisation; it takes uint8 and float32, not uint16."""
    channels = images.channels
    norm = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    given = {**COMMON, "color_jitter": None, "num_channels": channels, "normalize": norm, "global_view_1": {"solarize": None}}
    return _run(images, given, lambda image: unit_array(images, image))


def _run(images: Images, given: dict[str, Any], prepare: Callable[[np.ndarray], np.ndarray]) -> Pipeline:
    transform = DINOv2ViTTransform(DINOv2ViTTransform.transform_args_cls()(local_view={"view_size": (96, 96)}, **given))
    arrays = images.arrays()

    def run(turn: int) -> int:
        np.random.seed(turn)
        return collate([[view["image"] for view in transform({"image": prepare(array)})] for array in arrays])

    return run
