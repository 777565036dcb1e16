"""Values of interest: the VOI LUT or window that a radiograph's maker meant it to be shown with (PS3.3 C.11.2). Only by key.

A VOI LUT sequence comes before a window, and of several of either the first is taken, as viewers do at first. A window maps to
0..65535, so that no two values inside it become one; a LUT to its own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.errors import BadSource
from dinodomain_medical.luts import lut_table

TOP = 65535
"""Largest output of a window."""

_OFF = "set ingest.voi=false, or repair the header"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Values as they are meant to be shown.

    Attributes:
        array: (y, x) uint8 or uint16.
        high: Largest value that may occur; the smallest is 0.
        stage: What was applied.
    """

    array: np.ndarray
    high: int
    stage: str


def apply_voi(values: np.ndarray, dataset: Any, uri: str) -> Shown | None:
    """Applies the first VOI LUT, or else the first window, of a header.

    Args:
        values: (y, x) float64 output of the modality LUT.
        dataset: The pydicom dataset.
        uri: The file, for messages.

    Returns:
        None where the header holds neither.

    Raises:
        BadSource: The LUT or window cannot be applied.
    """
    luts = dataset.get("VOILUTSequence")
    if luts:
        return _through_table(values, luts, uri)
    centres, widths = _numbers(dataset.get("WindowCenter")), _numbers(dataset.get("WindowWidth"))
    if not centres or not widths:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    array = window(values, centres[0], widths[0], function, uri)
    number = f" (the first of {len(centres)})" if len(centres) > 1 else ""
    return Shown(array=array, high=TOP, stage=f"VOI window {function} {centres[0]:g}/{widths[0]:g}{number} applied -> 0..{TOP}")


def window(values: np.ndarray, centre: float, width: float, function: str, uri: str) -> np.ndarray:
    """The window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Args:
        values: Any shape.
        centre: WindowCenter.
        width: WindowWidth; at least 1 for LINEAR, above 0 for the others.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.
        uri: For messages.

    Returns:
        uint16 from 0 to ``TOP``, rounded.

    Raises:
        BadSource: An unknown function, or a width out of range.
    """
    least = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}.get(function)
    if least is None:
        raise BadSource(uri, "a VOI LUT function of an unknown name", _OFF)
    if not (math.isfinite(centre) and math.isfinite(width)) or width < least or width <= 0:
        raise BadSource(uri, f"a {function} window of centre {centre:g} and width {width:g}", _OFF)
    wide = values.astype(np.float64, copy=False)
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (wide - centre) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        share = (wide - centre) / width + 0.5
    elif width == 1:
        share = (wide > centre - 0.5).astype(np.float64)
    else:
        share = (wide - (centre - 0.5)) / (width - 1) + 0.5
    shown: np.ndarray = np.rint(share.clip(0, 1) * TOP).astype(np.uint16)
    return shown


def _through_table(values: np.ndarray, luts: Sequence[Any], uri: str) -> Shown:
    table = lut_table(luts[0], uri, name="VOI LUT", signed=bool(values.min() < 0))
    top, number = (1 << table.bits) - 1, f" (the first of {len(luts)})" if len(luts) > 1 else ""
    mapped = table(np.rint(values).astype(np.int64))
    return Shown(array=mapped, high=top, stage=f"VOI LUT of {len(table.entries)} entries{number} applied -> 0..{top}")


def _numbers(value: Any) -> list[float]:
    if value is None or value == "":
        return []
    return [float(value)] if isinstance(value, (str, int, float)) else [float(part) for part in value]
