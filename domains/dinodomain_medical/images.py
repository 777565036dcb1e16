"""Greyscale PNG, JPEG and TIFF images through Pillow, kept in their stored integers; alpha becomes validity, never a channel.

Bands that are equal are one picture stored several times and are reduced to one; anything really coloured is refused. Does not
read the resolution in the file: it states how large to print, not how large the patient is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dinodomain.errors import BadSource
from dinodomain.types import NODATA
from dinodomain_medical.values import storable

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

_GREY_MODES = ("L", "I", "I;16", "I;16B", "I;16L", "F")
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ORIENTATION = 274


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyImage:
    """A decoded picture.

    Attributes:
        array: (y, x) stored values.
        valid: (y, x) uint8 bit field, or None where every pixel counts.
        stages: What was done.
    """

    array: np.ndarray
    valid: np.ndarray | None
    stages: tuple[str, ...]


def is_image(path: Path) -> bool:
    """Whether the name says PNG, JPEG or TIFF."""
    return path.suffix.lower() in SUFFIXES


def check_header(path: Path) -> tuple[int, int, int]:
    """Reads the header only.

    Returns:
        Rows and columns before an EXIF orientation turns them, and bytes per pixel.

    Raises:
        BadSource: No picture, several frames, or more bits per colour than are read.
    """
    with _open(path) as image:
        item_bytes = 2 if image.mode.startswith("I;16") else 4 if image.mode in ("I", "F") else 1
        columns, rows = image.size
    return rows, columns, item_bytes


def read_grey(path: Path) -> GreyImage:
    """Decodes one picture.

    Raises:
        BadSource: Truncated, coloured, several frames, or a type that holds no measured grey.
    """
    uri = str(path)
    with _open(path) as image:
        mode, white_is_zero = image.mode, _is_white_zero(image)
        try:
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            upright: Any = ImageOps.exif_transpose(image) if turned else image
            bands = _bands(upright, uri)
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, BadSource):
                raise
            raise BadSource(
                uri, f"pixels cannot be decoded ({type(error).__name__}): truncated or damaged", "copy the file again, or exclude it"
            ) from error
    colour, alpha = bands
    stages = ["turned upright by its EXIF orientation"] if turned else []
    if colour.ndim == 3:
        colour = _equal_band(colour, mode, uri)
        stages.append(f"{mode}: equal bands -> one")
    stored = storable(colour, uri)
    array = stored.array
    if white_is_zero and array.dtype == np.uint16:  # Pillow turns 8-bit pictures itself, and leaves 16-bit ones as they are
        array = np.uint16(65535) - array
        stages.append("WhiteIsZero inverted")
    valid = None
    if alpha is not None:
        valid = None if alpha.all() else (alpha == 0).astype(np.uint8) * np.uint8(NODATA)
        stages.append("alpha dropped" if valid is None else "alpha -> validity")
    return GreyImage(array=np.ascontiguousarray(array), valid=valid, stages=(*stages, *stored.stages))


def _open(path: Path) -> Image.Image:
    uri = str(path)
    try:
        image = Image.open(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSource(uri, f"not a readable picture ({type(error).__name__})", "check that the file is whole, or exclude it") from error
    try:
        _check_frames_and_bits(image, path)
    except (OSError, SyntaxError, ValueError) as error:
        image.close()
        if isinstance(error, BadSource):
            raise
        raise BadSource(uri, f"not a readable picture ({type(error).__name__})", "check that the file is whole, or exclude it") from error
    return image


def _check_frames_and_bits(image: Image.Image, path: Path) -> None:
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise BadSource(str(path), f"{frames} frames in one file", "split it into single pictures and ingest those")
    bits = _bits(image, path)
    if bits > 8 and image.mode not in _GREY_MODES:
        # Pillow would drop the lower byte of these without a word.
        raise BadSource(str(path), f"{bits} bits per band in a picture of mode {image.mode}", "export it in 16-bit grey without alpha")


def _bits(image: Image.Image, path: Path) -> int:
    """Bits per band as the file states them; Pillow's mode does not tell for colour."""
    if image.format == "PNG":
        with path.open("rb") as handle:
            return handle.read(25)[24]
    tags = getattr(image, "tag_v2", None)
    stated = (tags.get(_BITS_PER_SAMPLE) if tags is not None else None) or (8,)
    return int(max(stated)) if isinstance(stated, tuple) else int(stated)


def _bands(image: Image.Image, uri: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour values (y, x) or (y, x, 3), and alpha (y, x) if there is one."""
    mode = image.mode
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or mode == "PA" else "RGB")
    if image.mode in _GREY_MODES:
        return np.asarray(image), None
    if image.mode in ("LA", "RGBA"):
        array = np.asarray(image)
        return (array[..., 0] if image.mode == "LA" else array[..., :3]), array[..., -1]
    if image.mode == "RGB":
        return np.asarray(image), None
    raise BadSource(uri, f"a picture of mode {mode}", "give 8- or 16-bit greyscale, or RGB(A) with equal bands")


def _equal_band(colour: np.ndarray, mode: str, uri: str) -> np.ndarray:
    apart = int(np.ptp(colour.astype(np.int32), axis=2).max())
    if apart:
        share = float((np.ptp(colour.astype(np.int32), axis=2) > 0).mean())
        raise BadSource(
            uri,
            f"a coloured {mode} picture (bands differ by up to {apart} in {share:.1%} of the pixels)",
            "export the radiograph in grey, or exclude the picture",
        )
    return colour[..., 0]


def _is_white_zero(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", None)
    return bool(tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
