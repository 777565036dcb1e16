"""Quality rasters of providers as bits of a ``valid`` field: one lookup table per raster, values in, bits out.

What a provider calls cloud, shadow or snow is taken as stated; nothing is computed from reflectance here. Values a table does not name
give no bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from dinodomain.types import CLOUD, NODATA, SATURATED, SHADOW_SNOW
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.outlines import Outlines


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """One band of a quality raster.

    Attributes:
        name: Product name, for example ``SCL``.
        header: The file.
        index: 1-based band number in it.
        table: Bits of a ``valid`` field by stored value; 256 entries or 65536.
        outlines: Polygons that are drawn, as 1, on the grid of ``header`` instead of reading its pixels; None for a raster.
    """

    name: str
    header: Header
    index: int
    table: bytes
    outlines: Outlines | None = None

    def bits(self, values: np.ndarray) -> np.ndarray:
        """uint8 bits of stored values [y, x]."""
        table = np.frombuffer(self.table, np.uint8)
        wide = values.astype(np.int64)
        known = (wide >= 0) & (wide < len(table))
        return np.where(known, table[np.where(known, wide, 0)], np.uint8(0))


def classes(bit_of: Mapping[int, int]) -> bytes:
    """A table of class numbers below 256."""
    return bytes(bit_of.get(value, 0) for value in range(256))


def bit_rules(rules: Iterable[tuple[int, int, int]]) -> bytes:
    """A table of 16-bit fields.

    Args:
        rules: (mask, wanted value under the mask, bit of the ``valid`` field); every rule that holds sets its bit.
    """
    value = np.arange(65536)
    bits = np.zeros(65536, np.uint8)
    for mask, wanted, bit in rules:
        bits[(value & mask) == wanted] |= bit
    return bits.tobytes()


# Sen2Cor, Level-2A Algorithm Theoretical Basis Document: scene classification. 2 (dark or topographic shadow), 4 vegetation, 5 bare
# soil, 6 water and 7 (unclassified) are surface that was seen.
SCL = classes({0: NODATA, 1: SATURATED, 3: SHADOW_SNOW, 8: CLOUD, 9: CLOUD, 10: CLOUD, 11: SHADOW_SNOW})
"""Sentinel-2 scene classification. Class 1 is "saturated or defective"."""

MSK_CLASSI = (classes({1: CLOUD}), classes({1: CLOUD}), classes({1: SHADOW_SNOW}))
"""Sentinel-2 Level-1C ``MSK_CLASSI_B00``, from processing baseline 04.00 on: opaque clouds, cirrus, snow and ice."""

MSK_CLOUDS = classes({1: CLOUD})
"""Sentinel-2 Level-1C ``MSK_CLOUDS_B00`` before processing baseline 04.00: opaque and cirrus outlines, drawn as 1."""

QA_PIXEL = bit_rules(
    [(1, 1, NODATA), (1 << 1, 1 << 1, CLOUD), (1 << 2, 1 << 2, CLOUD), (1 << 3, 1 << 3, CLOUD), (1 << 4, 1 << 4, SHADOW_SNOW),
     (1 << 5, 1 << 5, SHADOW_SNOW)]
)  # fmt: skip
"""Landsat Collection 2 (USGS, LSDS-1619 section 3.2): fill, dilated cloud, cirrus (never set by TM and ETM+), cloud, cloud shadow, snow."""


def bqa(*, oli: bool) -> bytes:
    """Landsat Collection 1 (USGS, LSDS-1656): confidences count where they are high.

    Args:
        oli: Whether it is Landsat 8, where bit 1 is terrain occlusion and bits 11-12 cirrus; else bit 1 is a dropped pixel.
    """
    high = [(3 << 7, 3 << 7, SHADOW_SNOW), (3 << 9, 3 << 9, SHADOW_SNOW)]
    own = [(3 << 11, 3 << 11, CLOUD)] if oli else [(1 << 1, 1 << 1, NODATA)]
    full = [(3 << 2, level << 2, SATURATED) for level in (1, 2, 3)]
    return bit_rules([(1, 1, NODATA), (1 << 4, 1 << 4, CLOUD), *high, *own, *full])


def radsat(bits: Iterable[int], *, oli: bool) -> bytes:
    """Landsat Collection 2 ``QA_RADSAT``: saturated if one of the bands taken is; a dropped pixel of TM and ETM+ is missing.

    Args:
        bits: Bits of the bands that are taken.
        oli: Whether it is Landsat 8 or 9, where bit 9 is unused.
    """
    return bit_rules([(1 << bit, 1 << bit, SATURATED) for bit in bits] + ([] if oli else [(1 << 9, 1 << 9, NODATA)]))
