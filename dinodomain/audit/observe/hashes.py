"""Perceptual hashes of images as they are shown, and thumbnails to confirm what hashes suggest. N rows.

dHash compares neighbouring cells of an 8 x 9 thumbnail, pHash the low frequencies of a cosine transform, 64 bits each (imagehash). Both are
coarse: among radiographs thousands of pairs of different people lie within 5 bits, so a pair counts only where the thumbnails agree, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dinodomain.audit.masks.ocr import pictures
from dinodomain.audit.observe.observer import Observer
from dinodomain.domain import Domain
from dinodomain.errors import require

RADIUS = 5
"""Most differing bits of 64 in either hash: the near-duplicates that people listed for UC Merced reach 5."""

AGREE = 0.9
"""Least correlation of two thumbnails."""

SIDE = 64
_BLOCK, _PAIRS = 256, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashes:
    """What was seen.

    Attributes:
        bits: [2, N] uint64, dHash and pHash.
        thumbnails: [N, SIDE * SIDE] uint8.
    """

    bits: np.ndarray
    thumbnails: np.ndarray


def hash_images(observer: Observer, rows: np.ndarray, domain: Domain | None = None) -> Hashes:
    """Hashes some rows of the audited set, in the order given.

    Args:
        observer: Shows them.
        rows: [N], each once.
        domain: Reads the pixels instead of the store's own, for example altered ones.

    Raises:
        MissingExtra: imagehash is not installed.
    """
    bits, thumbnails = np.zeros((2, len(rows)), np.uint64), np.zeros((len(rows), SIDE * SIDE), np.uint8)
    for places, shown in observer.placed(rows):
        for place, picture in zip(places, pictures(shown, domain or observer.frozen.domain)):
            bits[:, place], thumbnails[place] = hash_picture(picture)
    return Hashes(bits=bits, thumbnails=thumbnails)


def hash_picture(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[2] uint64 hashes and [SIDE * SIDE] uint8 thumbnail of a picture [H, W, 3] uint8."""
    package = require("imagehash", extra="audit", wanted_by="check duplicates")
    grey = Image.fromarray(picture).convert("L")
    found = [np.packbits(kind(grey).hash.reshape(-1)).view(">u8")[0] for kind in (package.dhash, package.phash)]
    return np.array(found, np.uint64), np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)


def near_hashes(bits: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """[P, 2] rows, first < second, whose hashes [2, N] differ in at most so many bits, in either kind."""
    return np.concatenate([np.empty((0, 2), np.int64), *_near(bits, radius)])


def alike(one: Hashes, other: Hashes, pairs: np.ndarray) -> np.ndarray:
    """[P] whether row ``pairs[:, 0]`` of one and row ``pairs[:, 1]`` of the other agree in their thumbnails."""
    found = [_correlations(one.thumbnails, other.thumbnails, pairs[start : start + _PAIRS]) for start in range(0, len(pairs), _PAIRS)]
    result: np.ndarray = np.concatenate([np.empty(0), *found]) >= AGREE
    return result


def agree(one: Hashes, other: Hashes, radius: int = RADIUS) -> np.ndarray:
    """[N] whether each row of one is a copy of the same row of the other by hash and thumbnail."""
    rows = np.arange(one.bits.shape[1])
    dots = np.einsum("knb,knb->kn", _signs(one.bits), _signs(other.bits))
    result: np.ndarray = (dots >= 64 - 2 * radius).any(axis=0) & alike(one, other, np.stack([rows, rows], axis=1))
    return result


def coarse(thumbnails: np.ndarray) -> np.ndarray:
    """[N, SIDE * SIDE / 4] float64 thumbnails of half the side."""
    half = SIDE // 2
    result: np.ndarray = thumbnails.reshape(-1, half, 2, half, 2).mean(axis=(2, 4)).reshape(len(thumbnails), -1)
    return result


def _near(bits: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """As products of signs, for those are what processors multiply fastest: a product of 64 - 2 r means r differing bits."""
    signs = _signs(bits)
    for start in range(0, bits.shape[1], _BLOCK):
        near = (np.matmul(signs[:, start : start + _BLOCK], signs[:, start:].transpose(0, 2, 1)) >= 64 - 2 * radius).any(axis=0)
        first, second = np.nonzero(near)
        keep = second > first
        yield np.stack([first[keep], second[keep]], axis=1) + start


def _signs(bits: np.ndarray) -> np.ndarray:
    """[2, N, 64] float32, 1 for a bit of 0 and -1 for a bit of 1."""
    flat = np.unpackbits(np.ascontiguousarray(bits).view(np.uint8).reshape(*bits.shape, 8), axis=2)
    result: np.ndarray = 1 - 2 * flat.astype(np.float32)
    return result


def _correlations(one: np.ndarray, other: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[P] Pearson's r of each pair of thumbnails; 0 where one is flat."""
    result: np.ndarray = np.einsum("ij,ij->i", _scaled(one[pairs[:, 0]]), _scaled(other[pairs[:, 1]]))
    return result


def _scaled(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True, dtype=np.float32)
    result: np.ndarray = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return result
