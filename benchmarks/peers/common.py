"""What every pipeline of the multi-crop benchmark has to make, and how it is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Pipeline = Callable[[int], int]
"""Makes all views of all images and returns how many images that were; the argument is the round, so that nobody can cache."""

GAMMA = (0.8, 1.25)
NOISE = 0.025
"""Mean standard deviation of the noise, in the unit range: ours draws 0 to twice this, peers that cannot draw it take the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Decoded images in memory, as a store or a loader's decoder gives them.

    Attributes:
        pixels: [B, C, *L] in the stored dtype.
        low: Stored value that becomes 0.
        high: Stored value that becomes 1.
        kind: Where they come from, for the table.
    """

    pixels: Tensor
    low: float
    high: float
    kind: str

    @property
    def channels(self) -> int:
        """C."""
        return int(self.pixels.shape[1])

    def unit(self, image: Tensor) -> Tensor:
        """A stored image, or all of them, in the unit range, float32."""
        return image.float().sub_(self.low).div_(self.high - self.low)

    def arrays(self) -> list[np.ndarray]:
        """Each image with channels last, C-contiguous, as cv2 and PIL decode it."""
        return [image.movedim(0, -1).contiguous().numpy() for image in self.pixels]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One crop of an image.

    Attributes:
        size: Side of the output, pixels.
        scale: Range of the share of the image's area or volume.
        blur: How often it is blurred.
        solarise: How often it is solarised.
    """

    size: int
    scale: tuple[float, float]
    blur: float
    solarise: float


def views(large: int, small: int) -> list[View]:
    """Two global and eight local views with the rates of the DINOv2 paper: the first is always blurred, the second rarely."""
    first = View(size=large, scale=(0.32, 1.0), blur=1.0, solarise=0.0)
    second = View(size=large, scale=(0.32, 1.0), blur=0.1, solarise=0.2)
    return [first, second, *[View(size=small, scale=(0.05, 0.32), blur=0.5, solarise=0.0)] * 8]


def collate(done: Sequence[Sequence[Tensor]]) -> int:
    """Batches of views made image by image, as a data loader puts them together; returns how many images."""
    for view in zip(*done):
        torch.stack(view)
    return len(done)


def log_uniform(low: float, high: float) -> float:
    """A drawn factor, as likely to halve as to double."""
    return float(np.exp(np.random.uniform(np.log(low), np.log(high))))
