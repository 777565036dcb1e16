"""Look-up tables of DICOM images (modality LUT, VOI LUT): PS3.3 C.11.1.1 and C.11.2.1.1.

Any depth of 1 to 16 bits is read, entries of 8 bits packed two to a word or one in each, as files hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dinodomain.errors import BadSource


@dataclass(frozen=True, slots=True)
class LookUpTable:
    """A table that is applied by calling it.

    Attributes:
        entries: uint8 or uint16.
        first: Input value that the first entry stands for; inputs below take it, those beyond the last entry the last.
        bits: Bits of an entry.
    """

    entries: np.ndarray
    first: int
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Maps integers of any shape."""
        mapped: np.ndarray = self.entries[(values.astype(np.int64) - self.first).clip(0, len(self.entries) - 1)]
        return mapped


def lut_table(item: Any, uri: str, *, name: str, signed: bool) -> LookUpTable:
    """Reads a table.

    Args:
        item: Item of a LUT sequence.
        uri: The file, for the message.
        name: What the table is called there.
        signed: Whether inputs may be negative: a first input above 32767 is then a negative one that was written unsigned.

    Raises:
        BadSource: Entries and descriptor disagree.
    """
    try:
        entries, first, bits = _parsed(item)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise BadSource(uri, f"a {name} that cannot be read ({type(error).__name__})", "repair the header, or exclude it") from error
    return LookUpTable(entries, first - 65536 if signed and first > 32767 else first, bits)


def _parsed(item: Any) -> tuple[np.ndarray, int, int]:
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count % 65536 or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        packed = len(data) in (count, count + 1)
        order = ">" if getattr(item, "original_encoding", (None, True))[1] is False else "<"
        table = np.frombuffer(data[:count] if packed else data, np.uint8 if packed else np.dtype(f"{order}u2"))
    else:
        table = np.asarray(data)
    if not 1 <= bits <= 16 or len(table) < count or (table[:count] < 0).any() or (table[:count].astype(np.int64) >> bits).any():
        raise ValueError("entries and descriptor disagree")
    return table[:count].astype(np.uint8 if bits <= 8 else np.uint16), first, bits
