"""Made-up sources that compress like images and hold every stored dtype."""

from __future__ import annotations

import numpy as np
import pytest


def smooth(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Ramps plus noise."""
    rng = np.random.default_rng(seed)
    ramps = sum(np.linspace(0, 1 + axis, size).reshape((-1,) + (1,) * (len(shape) - 1 - axis)) for axis, size in enumerate(shape))
    noisy = ramps * 20 + rng.normal(0, 3, shape) + 40
    return (noisy - 60 if dtype == "int16" else noisy).astype(dtype)


@pytest.fixture
def make_pixels():
    return smooth
