"""Text in images, read by rapidocr (weights inside its wheel, nothing is fetched), with its own recall measured by planting text.

A reader that finds nothing has only shown something where it would have found text: ``plant`` writes made-up ids into these very images in
five sizes, five contrasts and four rotations, and the share that is read back is the recall. Pictures are [H, W, 3] uint8.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dinodomain.audit.observe.observer import Shown
from dinodomain.domain import Domain
from dinodomain.errors import require

SIZES = (8, 12, 16, 24, 32)
"""Heights of planted text, pixels."""

CONTRASTS = (10, 20, 40, 80, 160)
"""How much planted text differs from what it covers, of 255."""

ROTATIONS = (0, 90, 180, 270)
LEAST_SIDE = 48
"""Shorter side below which four characters of 8 pixels leave no room; such pictures are not read."""

ALIKE = 0.6
"""Least similarity (Ratcliff and Obershelp 1988) of what was read to what was planted for it to count as read."""

_SIDES = (256, 512)  # shorter side that pictures are enlarged to; 736, the default, takes twice the time for as much text
_SMALL = 96  # below it the smaller of these: four times its own side, and enlarging more finds nothing more
_KEPT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """Text found in a picture.

    Attributes:
        box: Four corners (x, y) in pixels of the picture.
        text: As read.
        score: Of the reader, 0 to 1.
    """

    box: tuple[tuple[float, float], ...]
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """Made-up text in a picture.

    Attributes:
        text: What was written.
        size: Its height, pixels.
        contrast: Of 255.
        rotation: Degrees.
        box: x, y, width and height of what it covers.
    """

    text: str
    size: int
    contrast: int
    rotation: int
    box: tuple[int, int, int, int]


Reader = Callable[[np.ndarray], tuple[Word, ...]]


@functools.cache
def make_reader() -> Reader:
    """A reader of pictures that remembers what it read, by content.

    Raises:
        MissingExtra: rapidocr or onnxruntime is not installed.
    """
    require("onnxruntime", extra="audit", wanted_by="check text")
    package = require("rapidocr", extra="audit", wanted_by="check text")
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    engines = {side: package.RapidOCR(params=_settings(side)) for side in _SIDES}
    known: dict[bytes, tuple[Word, ...]] = {}

    def read(picture: np.ndarray) -> tuple[Word, ...]:
        key = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()
        if key not in known:
            if len(known) >= _KEPT:
                known.clear()
            known[key] = _words(engines[_SIDES[min(picture.shape[:2]) >= _SMALL]](picture))
        return known[key]

    return read


def _settings(side: int) -> dict[str, Any]:
    return {
        "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Global.log_level": "critical",
        "Det.limit_side_len": side,
        "Det.limit_type": "min",
    }


def _words(found: Any) -> tuple[Word, ...]:
    if found.boxes is None:
        return ()
    return tuple(
        Word(box=tuple((float(x), float(y)) for x, y in box), text=str(text), score=float(score))
        for box, text, score in zip(found.boxes, found.txts, found.scores)
    )


def pictures(shown: Shown, domain: Domain) -> np.ndarray:
    """[B, H, W, 3] uint8 of tiles as stored, in the domain's range; of several dates the first."""
    return as_pictures(domain.to_float(shown.batch.pixels[:, 0], shown.batch.info))


def as_pictures(unit: Tensor) -> np.ndarray:
    """[B, H, W, 3] uint8 of images [B, C, *size] in the unit range, stretched to what each holds.

    Three channels are taken as colours, else the first counts; of a volume the middle slice.
    """
    if unit.ndim == 5:
        unit = unit[:, :, unit.shape[2] // 2]
    colours = unit[:, :3] if unit.shape[1] == 3 else unit[:, :1].expand(-1, 3, -1, -1)
    result: np.ndarray = (_stretched(colours) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return result


def _stretched(images: Tensor) -> Tensor:
    flat = images.float().nan_to_num().flatten(1)
    low, high = flat.min(dim=1).values, flat.max(dim=1).values
    shape = (-1, 1, 1, 1)
    return (images.float().nan_to_num() - low.view(shape)) / (high - low).clamp(min=1e-6).view(shape)


def plant(
    picture: np.ndarray, *, size: int, contrast: int, rotation: int, generator: np.random.Generator
) -> tuple[np.ndarray, Plant] | None:
    """Writes a made-up id where it fits; None where it does not.

    Args:
        picture: [H, W, 3].
        size: Height of the text, pixels.
        contrast: Of 255; brighter than a dark place, darker than a bright one.
        rotation: 0, 90, 180 or 270 degrees.
        generator: Draws text and place.
    """
    height, width = picture.shape[:2]
    for length in (8, 4):
        text = f"ID {generator.integers(10**4, 10**5)}" if length == 8 else str(generator.integers(10**3, 10**4))
        stamp = _stamp(text, size, rotation)
        if stamp.shape[0] + 4 < height and stamp.shape[1] + 4 < width:
            break
    else:
        return None
    top = int(generator.integers(2, height - stamp.shape[0] - 1))
    left = int(generator.integers(2, width - stamp.shape[1] - 1))
    out = picture.astype(np.float64)
    place = out[top : top + stamp.shape[0], left : left + stamp.shape[1]]
    place += (contrast if place.mean() < 128 else -contrast) * stamp[..., None]
    box = (left, top, stamp.shape[1], stamp.shape[0])
    made = Plant(text=text, size=size, contrast=contrast, rotation=rotation, box=box)
    return out.clip(0, 255).astype(np.uint8), made


@functools.lru_cache(maxsize=512)
def _stamp(text: str, size: int, rotation: int) -> np.ndarray:
    """[h, w] 0..1, cut to the text."""
    font = ImageFont.load_default(size * 1.33)  # capitals and digits fill three quarters of the em square
    canvas = Image.new("L", (size * (len(text) + 2) * 2, size * 3), 0)
    ImageDraw.Draw(canvas).text((size, size // 2), text, fill=255, font=font)
    drawn = np.array(canvas.crop(canvas.getbbox()), np.float64) / 255
    return np.rot90(drawn, rotation // 90)


def is_read(planted: Plant, words: Sequence[Word]) -> bool:
    """Whether some word lies over the planted one and resembles it."""
    left, top, width, height = planted.box
    x, y = left + width / 2, top + height / 2
    for word in words:
        corners = np.array(word.box)
        (low_x, low_y), (high_x, high_y) = corners.min(axis=0), corners.max(axis=0)
        over = low_x - 2 <= x <= high_x + 2 and low_y - 2 <= y <= high_y + 2
        if over and difflib.SequenceMatcher(None, planted.text, word.text).ratio() >= ALIKE:
            return True
    return False


def measure(reader: Reader, images: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Plant, bool]]:
    """Plants one text of every size, contrast and rotation, in the images in turn; tells which are read back."""
    generator = np.random.default_rng([seed, 0x0C12])
    cells = list(itertools.product(SIZES, CONTRASTS, ROTATIONS))
    for number, place in enumerate(generator.permutation(len(cells))):
        size, contrast, rotation = cells[place]
        found = plant(images[number % len(images)], size=size, contrast=contrast, rotation=rotation, generator=generator)
        if found is not None:
            picture, planted = found
            yield planted, is_read(planted, reader(picture))


def text_mask(picture: np.ndarray, words: Sequence[Word], margin: int = 2) -> np.ndarray:
    """[H, W] bool under the boxes of all words, widened by a margin in pixels: what to replace to ask whether text is used."""
    image = Image.new("1", (picture.shape[1], picture.shape[0]), 0)
    draw = ImageDraw.Draw(image)
    for word in words:
        draw.polygon([tuple(corner) for corner in word.box], fill=1)
        draw.line([*word.box, word.box[0]], fill=1, width=2 * margin)
    return np.array(image, bool)


def surface(measured: Sequence[tuple[Plant, bool]]) -> Mapping[tuple[int, int], tuple[int, int]]:
    """(size, contrast) to (read, planted), over all rotations."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for planted, hit in measured:
        read, total = found.get((planted.size, planted.contrast), (0, 0))
        found[planted.size, planted.contrast] = (read + hit, total + 1)
    return found
