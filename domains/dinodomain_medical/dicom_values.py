"""Typed access to what a DICOM header states: texts, numbers, exact decimals, and the values that a header filter sees.

Works on anything with pydicom's ``get`` and ``in`` by keyword (a Dataset, or the views of ``multiframe`` and ``quick_header``).
Absent and empty values are None, ``""`` or ``()``; nothing here raises for an odd value but ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from dinodomain.errors import require
from dinodomain.types import FactValue

_WHOLE = frozenset({"IS", "US", "SS", "UL", "SL", "UV", "SV"})
_REAL = frozenset({"DS", "FL", "FD"})
_WORDS = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})


def first(dataset: Any, name: str) -> Any:
    """The value, or the first of several; None where absent or empty."""
    value = dataset.get(name)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return None if value in ("", b"") else value
    return value[0] if len(value) else None


def items(dataset: Any, name: str) -> tuple[str, ...]:
    """All values as text without outer blanks."""
    value = dataset.get(name)
    if value is None:
        return ()
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(str(part).strip() for part in value) if several else (str(value).strip(),)


def text(dataset: Any, name: str) -> str:
    """The value as text without outer blanks."""
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def text_at(dataset: Any, group: int, element: int) -> str:
    """Text of a private element; unknown ones come as bytes."""
    if (group, element) not in dataset:
        return ""
    value = dataset[group, element].value
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value).strip()


def number(dataset: Any, name: str) -> float | None:
    """The first value as a finite number."""
    value = first(dataset, name)
    if value is None:
        return None
    real = float(value)
    return real if math.isfinite(real) else None


def floats(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite numbers, or None."""
    value = dataset.get(name)
    if value is None or isinstance(value, (str, float)) or len(value) != count:
        return None
    numbers = tuple(float(part) for part in value)
    return numbers if all(map(math.isfinite, numbers)) else None


def exact(dataset: Any, name: str, default: int) -> Fraction:
    """A decimal string as the fraction it writes: 0.1 is 1/10, not its nearest binary number."""
    value = first(dataset, name)
    return Fraction(default) if value is None else _fraction(str(value).strip())


@lru_cache(maxsize=1024)
def _fraction(written: str) -> Fraction:
    return Fraction(written)


@lru_cache(maxsize=1024)
def kind_of(keyword: str) -> tuple[str, bool] | None:
    """How a filter sees a field: ``whole``, ``real`` or ``words``, and whether it is a list even if it holds one value.

    Returns:
        None where the dictionary does not know the keyword, or it holds what no filter can compare (sequences, bytes).
    """
    datadict = require("pydicom.datadict", extra="medical", wanted_by="DICOM files")
    tag = datadict.tag_for_keyword(keyword)
    if tag is None:
        return None
    kinds = datadict.dictionary_VR(tag).split(" or ")
    # ImageType (2-n) is a list whatever it holds; ConvolutionKernel (1-n) is a word as long as it holds one.
    always = not datadict.dictionary_VM(tag).startswith("1")
    for name, members in (("whole", _WHOLE), ("real", _REAL), ("words", _WORDS)):
        if set(kinds) & members:
            return name, always
    return None


def value_of(dataset: Any, keyword: str) -> FactValue:
    """The value as a header filter sees it: int, float, text, a tuple of them, or None where it is absent, empty or no number."""
    kind = kind_of(keyword)
    assert kind is not None, f"{keyword} was checked"
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    converted = [part for part in (_converted(part, kind[0]) for part in parts) if part is not None]
    if not converted:
        return None
    if not kind[1] and len(converted) == 1:
        return converted[0]
    return tuple(converted)  # type: ignore[return-value]  # all of one kind


def _converted(part: Any, kind: str) -> str | int | float | None:
    if kind == "words":
        return str(part).strip()
    try:
        return int(part) if kind == "whole" else float(part)
    except (TypeError, ValueError):
        return None
