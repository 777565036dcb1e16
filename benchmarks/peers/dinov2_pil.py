"""Meta's DINOv2 transform on PIL images, from its own package.

Its release on PyPI pins torch 2.0; the transform needs none of that, so it is installed without its requirements:
``pip install --no-deps dinov2``.
"""

from __future__ import annotations

import torch
from dinov2.data.augmentations import DataAugmentationDINO
from PIL import Image

from peers.common import Images, Pipeline, collate


def as_it_comes(images: Images) -> Pipeline:
    """Two global and eight local crops, antialiased bicubic, torchvision on PIL images."""
    transform = DataAugmentationDINO((0.32, 1.0), (0.05, 0.32), 8)
    pictures = [Image.fromarray(array) for array in images.arrays()]

    def run(turn: int) -> int:
        torch.manual_seed(turn)
        made = [transform(picture) for picture in pictures]
        return collate([[*one["global_crops"], *one["local_crops"]] for one in made])

    return run
