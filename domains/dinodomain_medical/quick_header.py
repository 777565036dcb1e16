"""A DICOM header without pydicom's objects: where each top-level element lies, and its value when it is asked for.

Reads little-endian files (explicit or implicit VR) in one go, ten times as fast as a full parse; sequences are stepped over.
Whatever it is not sure of (big endian, deflated, multi-frame functional groups, other character sets, anything odd) gives None, and
the caller reads that file with pydicom. A test compares both on every file that pydicom ships.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, BinaryIO, final

from dinodomain.errors import require

_HEAD_BYTES = 32768
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI",
     b"UL", b"US"}
)  # fmt: skip
_NUMBERS = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d", b"UV": "Q", b"SV": "q"}
_ONE_TEXT = frozenset({b"LT", b"ST", b"UT", b"UR"})
_WORDS = _SHORT - _ONE_TEXT - frozenset(_NUMBERS) - {b"AT"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_META_END, _PIXELS_FROM = 0x00030000, 0x7FE00008
_GROUPS = frozenset({0x52009229, 0x52009230})
_SYNTAX, _CHARSET, _SIGN = 0x00020010, 0x00080005, 0x00280103
_IMPLICIT = "1.2.840.10008.1.2"
_NOT_HERE = frozenset({"1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.113619.5.2"})
_CHARSETS = {"": "latin-1", "ISO_IR 6": "latin-1", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}


_UNPACK = struct.Struct("<HH2sHI").unpack_from
_Place = tuple[bytes, int, int]


class _Odd(ValueError):
    """Something that this reader leaves to pydicom."""


@final
class QuickHeader:
    """Elements of one file by keyword, as pydicom's ``Dataset.get`` gives them, but decimal and integer strings stay text.

    Attributes:
        syntax: Transfer syntax UID.
        pixels_at: Byte offset of the pixel element's tag, or of the file's end where there is none.
    """

    def __init__(self, data: bytes, places: dict[int, _Place], syntax: str, pixels_at: int) -> None:
        self._data, self._places, self.syntax, self.pixels_at = data, places, syntax, pixels_at
        charset = self._raw(_CHARSET).decode("latin-1").strip("\0 ")
        if charset not in _CHARSETS:
            raise _Odd
        self._charset = _CHARSETS[charset]

    def get(self, keyword: str) -> Any:
        """Value by keyword: text, number, a list of them, or None where the file has no such element."""
        tag, kind, signed_too = _tag_of(keyword)
        place = self._places.get(tag)
        if place is None:
            return None
        vr = place[0] or kind
        if signed_too and not place[0]:
            vr = b"SS" if self._raw(_SIGN)[:1] == b"\1" else b"US"
        return self._value(vr, self._data[place[1] : place[2]])

    def raw(self, keywords: Sequence[str]) -> tuple[object, ...]:
        """The bytes of some elements and how they are to be read: equal ones have equal values."""
        return (self.syntax == _IMPLICIT, self._charset, *(self._raw(_tag_of(keyword)[0]) for keyword in keywords))

    def __contains__(self, tag: tuple[int, int]) -> bool:
        """Whether the file has the element (group, element)."""
        return (tag[0] << 16 | tag[1]) in self._places

    def __getitem__(self, tag: tuple[int, int]) -> QuickElement:
        """A private element by (group, element)."""
        place = self._places[tag[0] << 16 | tag[1]]
        raw = self._data[place[1] : place[2]]
        return QuickElement(self._value(place[0], raw) if place[0] not in (b"", b"UN", b"OB", b"OW") else raw)

    def _raw(self, tag: int) -> bytes:
        place = self._places.get(tag)
        return b"" if place is None else self._data[place[1] : place[2]]

    def _value(self, vr: bytes, raw: bytes) -> Any:
        if vr in _WORDS:  # nearly all that is asked for
            return self._words(raw)
        code = _NUMBERS.get(vr)
        if code is not None:
            size = struct.calcsize(code)
            if len(raw) % size:
                raise _Odd
            numbers = struct.unpack(f"<{len(raw) // size}{code}", raw)
            return numbers[0] if len(numbers) == 1 else list(numbers) or None
        if vr not in _SHORT and vr not in (b"UC", b"UR", b"UT"):
            raise _Odd
        return self._decoded(raw).strip("\0 ") if vr in _ONE_TEXT else self._words(raw)

    def _words(self, raw: bytes) -> Any:
        text = self._decoded(raw)
        return [part.strip("\0 ") for part in text.split("\\")] if "\\" in text else text.strip("\0 ")

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode(self._charset)
        except UnicodeDecodeError:
            raise _Odd from None


class QuickElement:
    """What ``dataset[tag].value`` needs."""

    def __init__(self, value: Any) -> None:
        self.value = value


def read_quickly(handle: BinaryIO) -> QuickHeader | None:
    """The header of an open file, or None where pydicom must read it."""
    try:
        data = handle.read(_HEAD_BYTES)
        if data[128:132] != b"DICM":
            return None
        try:
            return _parse(data, whole=len(data) < _HEAD_BYTES)
        except IndexError:
            data += handle.read(31 * _HEAD_BYTES)
            return _parse(data, whole=len(data) < 32 * _HEAD_BYTES)
    except (_Odd, struct.error, IndexError):
        return None


def _parse(data: bytes, *, whole: bool) -> QuickHeader:
    """Raises IndexError where the header goes on beyond ``data``."""
    meta: dict[int, _Place] = {}
    at = _elements(data, 132, meta, explicit=True, until=_META_END)
    start, stop = meta[_SYNTAX][1:] if _SYNTAX in meta else (0, 0)
    syntax = data[start:stop].decode("latin-1").strip("\0 ")
    if not syntax or syntax in _NOT_HERE:
        raise _Odd
    places: dict[int, _Place] = {}
    at = _elements(data, at, places, explicit=syntax != _IMPLICIT, until=_PIXELS_FROM, whole=whole)
    return QuickHeader(data, places, syntax, at)


def _elements(data: bytes, at: int, places: dict[int, _Place], *, explicit: bool, until: int, whole: bool = False) -> int:
    """Notes the elements from ``at`` on up to the first tag that is not below ``until``; gives its offset."""
    end, last = len(data), 0
    while True:
        if at + 12 > end:
            if whole and at == end:
                return at
            raise IndexError
        group, element, vr, short, length = _UNPACK(data, at)
        tag = group << 16 | element
        if tag >= until:
            return at
        if tag <= last or tag in _GROUPS:
            raise _Odd
        last = tag
        if not explicit:
            vr, length, start = b"", vr[0] | vr[1] << 8 | short << 16, at + 8
        elif vr in _SHORT:
            length, start = short, at + 8
        elif vr in _LONG:
            start = at + 12
        else:
            raise _Odd
        if length == _UNDEFINED:
            if explicit and vr != b"SQ":
                raise _Odd
            at = _after_sequence(data, start, explicit=explicit)
            continue
        at = start + length
        if at > end:
            raise IndexError
        if vr != b"SQ":
            places[tag] = (vr, start, at)


def _after_sequence(data: bytes, at: int, *, explicit: bool) -> int:
    """Where a sequence of undefined length ends."""
    while True:
        if at + 8 > len(data):
            raise IndexError
        group, element, length = struct.unpack_from("<HHI", data, at)
        tag, at = group << 16 | element, at + 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _Odd
        if length != _UNDEFINED:
            at += length
            continue
        # The item's end is a tag of group FFFE, which no element in it can have.
        at = _elements(data, at, {}, explicit=explicit, until=_ITEM)
        if data[at : at + 4] != b"\xfe\xff\x0d\xe0":
            raise _Odd
        at += 8


@lru_cache(maxsize=1024)
def _tag_of(keyword: str) -> tuple[int, bytes, bool]:
    """Tag, the dictionary's VR, and whether it is unsigned or signed by PixelRepresentation."""
    datadict = require("pydicom.datadict", extra="medical", wanted_by="DICOM files")
    tag = datadict.tag_for_keyword(keyword)
    assert tag is not None, f"unknown keyword {keyword}"
    kinds = datadict.dictionary_VR(tag).split(" or ")
    return int(tag), kinds[0].encode(), kinds[:2] == ["US", "SS"]
