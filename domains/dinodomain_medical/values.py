"""Stored numbers: which types a store holds, how slices of different scale come to one, what is no image.

Physical value = stored * scale + offset. Nothing here rounds: a step is exact, or becomes float32 and says so, or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dinodomain.errors import BadSource

_SIXTEEN_BITS = (np.dtype(np.int16), np.dtype(np.uint16))
_EXACT_IN_FLOAT32 = 2**24
_AIRLESS_HU = -200
_BLOCK = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Values in a type that a store holds, and what was done to get there."""

    array: np.ndarray
    stages: tuple[str, ...] = ()


def storable(array: np.ndarray, uri: str) -> Stored:
    """Brings an array to a type that a store holds: uint8, uint16, int16 or float32.

    Args:
        array: Any shape, as read from the file.
        uri: The file, for the message.

    Returns:
        The array in native byte order. Wider integers are narrowed to 16 bits where every value fits, else become float32 where
        that is exact; floats become float32.

    Raises:
        BadSource: Colour or complex values, integers too large, NaN or infinite values, floats beyond float32.
    """
    dtype = array.dtype
    if dtype.fields is not None or dtype.kind not in "biuf":
        raise BadSource(uri, f"values of type {dtype} (colour or complex)", "convert it to one real number per voxel")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "f":
        return _floats(array, uri)
    if dtype.kind == "b":
        return Stored(array=array.astype(np.uint8))
    if dtype.itemsize > 2 or dtype == np.int8:
        return _to_sixteen_bits(array, uri)
    return Stored(array=array)


def _floats(array: np.ndarray, uri: str) -> Stored:
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise BadSource(
            uri,
            f"{bad} of {array.size} values are NaN or infinite",
            "replace them in the file (for example numpy.nan_to_num) or exclude it",
        )
    if array.dtype == np.float32:
        return Stored(array=array)
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    over = int(np.count_nonzero(~np.isfinite(narrow)))
    if over:
        raise BadSource(
            uri,
            f"{over} of {array.size} {array.dtype.name} values overflow float32",
            "rescale the file; values beyond 3.4e38 are damage as a rule",
        )
    return Stored(array=narrow, stages=(f"{array.dtype.name} -> float32",))


def _to_sixteen_bits(array: np.ndarray, uri: str) -> Stored:
    low, high = int(array.min()), int(array.max())
    for dtype in _SIXTEEN_BITS:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return Stored(array=array.astype(dtype), stages=(f"{array.dtype.name} -> {dtype.name} (values {low}..{high} fit)",))
    if max(-low, high) > _EXACT_IN_FLOAT32:
        raise BadSource(uri, f"values {low}..{high} fit neither 16 bits nor float32 exactly", "rescale the file to 16 bits")
    return Stored(array=array.astype(np.float32), stages=(f"{array.dtype.name} -> float32, exact (values {low}..{high})",))


def check_not_mask(array: np.ndarray, uri: str) -> None:
    """Refuses a volume of one or two different values: it is empty or a mask, whatever its name says.

    Raises:
        BadSource: With the values found.
    """
    low, high = array.min(), array.max()
    if low == high:
        raise BadSource(uri, f"every voxel is {low}", "exclude it")
    # A third value turns up at the beginning of any image; only a mask is looked through to its end.
    flat = array.reshape(-1)
    parts = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    if not any(((part != low) & (part != high)).any() for part in parts):
        raise BadSource(uri, f"only the values {low} and {high}: a mask, not an image; labels never enter a store", "exclude it")


def check_hounsfield(array: np.ndarray, scale: float, offset: float, uri: str) -> None:
    """Refuses a CT whose values cannot be Hounsfield units: nothing below water and no offset declared, or a flat image.

    Raises:
        BadSource: With the range found.
    """
    low, high = sorted((float(array.min()) * scale + offset, float(array.max()) * scale + offset))
    if low >= 0 and offset == 0:
        remedy = "state the rescale in the file (scl_slope and scl_inter, or RescaleIntercept), or read it with domain=mri if it is no CT"
        if high <= 255:
            remedy += "; exclude it if it is a label map or a windowed picture"
        raise BadSource(uri, f"values {low:g}..{high:g} cannot be Hounsfield units (air is -1000)", remedy)


def doubts_hounsfield(array: np.ndarray, scale: float, offset: float) -> tuple[str, ...]:
    """A warning where a file that states no modality holds neither air nor lung nor fat: an MR with negative values looks like this."""
    low, high = sorted((float(array.min()) * scale + offset, float(array.max()) * scale + offset))
    if low <= _AIRLESS_HU:
        return ()
    return (f"values {low:g}..{high:g}, nothing below {_AIRLESS_HU} HU: look whether it is CT",)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneScale:
    """One integer scale for slices that came with their own.

    Attributes:
        scale: physical = stored * scale + offset.
        offset: See ``scale``.
        gain: Per slice, whole factor from its stored values to the common ones.
        shift: Per slice, whole shift added after the gain.
        dtype: Smallest 16-bit type that holds all slices.
    """

    scale: Fraction
    offset: Fraction
    gain: tuple[int, ...]
    shift: tuple[int, ...]
    dtype: np.dtype


def one_scale(slopes: Sequence[Fraction], offsets: Sequence[Fraction], ranges: Sequence[tuple[int, int]]) -> OneScale | None:
    """Finds one integer scale that holds every slice exactly.

    The common scale is the greatest common divisor of all slopes and of all differences between offsets, in exact fractions.

    Args:
        slopes: Per slice.
        offsets: Per slice.
        ranges: Per slice, lowest and highest stored value.

    Returns:
        The scale, or None where the whole numbers would not fit 16 bits.
    """
    base = offsets[0]
    scale = Fraction(0)
    for number in (*slopes, *(offset - base for offset in offsets)):
        scale = _gcd(scale, abs(number))
    if scale == 0:
        return None
    gain = tuple(int(slope / scale) for slope in slopes)
    shift = tuple(int((offset - base) / scale) for offset in offsets)
    ends = [edge * g + s for g, s, edges in zip(gain, shift, ranges) for edge in edges]
    fits = [dtype for dtype in _SIXTEEN_BITS if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max]
    return OneScale(scale=scale, offset=base, gain=gain, shift=shift, dtype=fits[0]) if fits else None


def _gcd(first: Fraction, second: Fraction) -> Fraction:
    below = math.lcm(first.denominator, second.denominator)
    return Fraction(math.gcd(int(first * below), int(second * below)), below)
