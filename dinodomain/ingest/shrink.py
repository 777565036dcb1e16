"""Shrinks an image that is read whole to the longest side a store takes, with antialiasing.

Pixels x validity and validity are resampled with the same filter and divided, so that pixels without data never bleed into
their neighbours. Each channel apart; 2-D only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_FILTER = Image.Resampling.BILINEAR  # Pillow widens the triangle to the scale: antialiased, and never overshoots as cubic does
_ENOUGH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """An image and what happened to it.

    Attributes:
        pixels: (C, Y, X) in the stored dtype.
        bits: (Y, X) uint8, 0 where valid.
        factor: Old side / new side for rows and columns; (1, 1) if unchanged.
        stage: What was done, in words, or None.
    """

    pixels: np.ndarray
    bits: np.ndarray
    factor: tuple[float, float]
    stage: str | None


def shrink(pixels: np.ndarray, bits: np.ndarray, max_side: int) -> Shrunk:
    """Shrinks (C, Y, X) pixels and their (Y, X) bit field so that no side exceeds ``max_side``; smaller images pass unchanged."""
    rows, columns = bits.shape
    scale = max_side / max(rows, columns)
    if scale >= 1:
        return Shrunk(pixels=pixels, bits=bits, factor=(1.0, 1.0), stage=None)
    size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    weight = (bits == 0).astype(np.float32)
    share = _resize(weight, size)
    small = np.stack([_channel(channel, weight, share, size) for channel in pixels])
    stage = f"shrunk {rows}x{columns} to {size[0]}x{size[1]} (bilinear, antialiased)"
    return Shrunk(pixels=small, bits=_bits(bits, share, size), factor=(rows / size[0], columns / size[1]), stage=stage)


def _channel(channel: np.ndarray, weight: np.ndarray, share: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    mean = _resize(channel.astype(np.float32) * weight, size) / np.maximum(share, 1e-6)
    if channel.dtype.kind == "f":
        return np.where(share > 0, mean, 0).astype(channel.dtype)
    bounds = np.iinfo(channel.dtype.name)
    return np.clip(np.rint(np.where(share > 0, mean, 0)), bounds.min, bounds.max).astype(channel.dtype)


def _bits(bits: np.ndarray, share: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A pixel is invalid if at least half of what it was made from is; it then carries each bit that covers half of that part."""
    out = np.zeros(size, np.uint8)
    invalid = share < _ENOUGH
    for bit in (1 << number for number in range(8) if np.any(bits & (1 << number))):
        cover = _resize(((bits & bit) != 0).astype(np.float32), size)
        out |= np.where(invalid & (cover >= _ENOUGH * (1 - share)), bit, 0).astype(np.uint8)
    return np.where(invalid & (out == 0), _first_bit(bits), out).astype(np.uint8)


def _first_bit(bits: np.ndarray) -> int:
    """The commonest reason, for a pixel whose parts are invalid for different reasons that each cover less than half."""
    counts = [int(np.count_nonzero(bits & (1 << number))) for number in range(8)]
    return 1 << int(np.argmax(counts))


def _resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(plane, mode="F").resize((size[1], size[0]), _FILTER))
