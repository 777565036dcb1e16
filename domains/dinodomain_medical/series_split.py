"""The images of one DICOM series told apart: which of them make one volume.

First by what always makes another picture: modality, orientation, matrix, pixel spacing, echo, b-value, temporal position,
magnitude/phase/real/imaginary, kind of map (ADC, MIP, MPR, Dixon part ...), localizer. Then, where images of one part still overlap
or form no regular volume, by what often but not always does: acquisition number, stack, tube voltage, the rest of ImageType, flip
angle, inversion time, cardiac phase, gradient direction; and last by the order in time of equally many images at every position.
What still overlaps after that is a duplicate, which only pixels can settle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.errors import BadSource
from dinodomain_medical.dicom_header import Header
from dinodomain_medical.series_geometry import arrange

SplitKey = tuple[tuple[str, str], ...]

FRAME_NAMES = frozenset({"time", "phase", "direction", "moment"})
"""Parts that are frames of one 4-D series; all others are volumes in their own right."""

_FIRST = ("echo", "b", "time", "component", "kind")
_FINER = ("acquisition", "stack", "kvp", "image", "flip", "inversion", "phase", "direction")
_ORDERED = ("trigger", "clock")
_SAME_DIRECTION, _SAME_SPACING = 1e-3, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Headers that belong to one volume.

    Attributes:
        uid: SeriesInstanceUID; empty where a file states none.
        label: What tells it from the other parts of its series (``b=1000``), empty if it is whole.
        key: All that it was split by, with the UID.
        headers: Sorted by path and frame.
        frames: How many parts of the series are frames of the same volume as this one, itself included.
    """

    uid: str
    label: str
    key: SplitKey
    headers: tuple[Header, ...]
    frames: int = 1

    @property
    def frame_names(self) -> str:
        """What tells frames of one 4-D series apart, for messages."""
        return ", ".join(sorted({name for name, value in self.key if name in FRAME_NAMES and value}))

    @property
    def volume_key(self) -> SplitKey:
        """The key without what tells frames of one 4-D series apart."""
        return tuple(part for part in self.key if part[0] not in FRAME_NAMES)

    @property
    def volume_label(self) -> str:
        """The label without what tells frames of one 4-D series apart."""
        return ";".join(part for part in self.label.split(";") if part.partition("=")[0] not in FRAME_NAMES)


def group(headers: Sequence[Header]) -> list[Series]:
    """Splits headers into volumes, sorted by UID and label."""
    by_uid: dict[str, list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda header: (header.path, header.frame or 0)):
        by_uid[header.keys.get("SeriesInstanceUID", "")].append(header)
    return [series for uid in sorted(by_uid) for series in _split(uid, by_uid[uid])]


def _split(uid: str, headers: list[Header]) -> list[Series]:
    near = _Near()
    parts: dict[SplitKey, list[Header]] = defaultdict(list)
    for header in headers:
        parts[_first_key(header, near)].append(header)
    finer = {_in_order(key + more): members for key, some in parts.items() for more, members in _finer(some, (*_FINER, *_ORDERED)).items()}
    varying = {name for key in finer for name, value in key if value != _value(next(iter(finer)), name)}
    varying |= {name for key in finer for name, value in _rest(finer, key) if value}
    volumes = [tuple(part for part in key if part[0] not in FRAME_NAMES) for key in finer]
    series = [
        Series(
            uid=uid,
            label=";".join(f"{name}={value}" for name, value in key if name in varying),
            key=(("uid", uid), *key),
            headers=tuple(members),
            frames=volumes.count(volume),
        )
        for (key, members), volume in zip(finer.items(), volumes)
    ]
    return sorted(series, key=lambda one: one.label)


def _value(key: SplitKey, name: str) -> str:
    return dict(key).get(name, "")


def _rest(keys: Iterable[SplitKey], key: SplitKey) -> Iterable[tuple[str, str]]:
    """Parts of ``key`` that its first sibling lacks."""
    known = dict(next(iter(keys)))
    return [part for part in key if part[0] not in known]


def _in_order(key: SplitKey) -> SplitKey:
    return tuple(sorted(key, key=lambda part: (_NAMES.index(part[0]), part[1])))


_NAMES = ("modality", "orientation", "matrix", "spacing", "localizer", *_FIRST, *_FINER, "moment")


class _Near:
    """Orientations and spacings met so far; small jitter between slices falls to the first that is near."""

    def __init__(self) -> None:
        self._directions: list[tuple[float, ...]] = []
        self._spacings: list[tuple[float, ...]] = []

    def direction(self, values: tuple[float, ...] | None) -> str:
        return "" if values is None else str(self._number(values, self._directions, _SAME_DIRECTION))

    def spacing(self, values: tuple[float, float] | None) -> str:
        if values is None:
            return ""
        number = self._number(values, self._spacings, _SAME_SPACING * max(values))
        return "x".join(f"{value:.4g}" for value in self._spacings[number - 1])

    @staticmethod
    def _number(values: tuple[float, ...], known: list[tuple[float, ...]], tolerance: float) -> int:
        for number, one in enumerate(known):
            if max(abs(a - b) for a, b in zip(values, one)) <= tolerance:
                return number + 1
        known.append(values)
        return len(known)


def _first_key(header: Header, near: _Near) -> SplitKey:
    return (
        ("modality", header.modality),
        ("orientation", near.direction(header.orientation)),
        ("matrix", f"{header.columns}x{header.rows}"),
        ("spacing", near.spacing(header.spacing)),
        ("localizer", str("LOCALIZER" in header.image_type)),
        *((name, header.parts.get(name, "")) for name in _FIRST),
    )


def _finer(headers: list[Header], names: Sequence[str]) -> dict[SplitKey, list[Header]]:
    """Splits what is not one regular volume by the first name that helps, and its parts by the names after that."""
    surplus, regular = _state(headers)
    if (regular and not surplus) or not names:
        return {(): headers}
    name, later = names[0], names[1:]
    parts = _ranked(headers, name) if name in _ORDERED else _valued(headers, name)
    if not _helps(name, parts, surplus):
        return _finer(headers, later)
    label = "moment" if name in _ORDERED else name
    return {((label, value), *more): members for value, some in parts.items() for more, members in _finer(some, later).items()}


def _helps(name: str, parts: dict[str, list[Header]], surplus: int) -> bool:
    """Some scanners number each slice as its own acquisition, so a value that names single images splits nothing."""
    if len(parts) < 2 or min(map(len, parts.values())) < 2:
        return False
    states = [_state(members) for members in parts.values()]
    if surplus:
        return sum(left for left, _ in states) < surplus
    return name == "acquisition" or all(regular for _, regular in states)


def _state(headers: Sequence[Header]) -> tuple[int, bool]:
    """How many images lie where another one does, and whether the positions make a regular volume."""
    try:
        planes = arrange(headers, "").planes
    except BadSource:
        uids = {header.position: set[str]() for header in headers}
        for header in headers:
            uids[header.position].add(header.uid)
        return sum(len(some) - 1 for some in uids.values()), False
    return sum(len({header.uid for header in plane}) - 1 for plane in planes), True


def _valued(headers: Sequence[Header], name: str) -> dict[str, list[Header]]:
    parts: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        parts[header.finer.get(name, "")].append(header)
    return parts


def _ranked(headers: Sequence[Header], name: str) -> dict[str, list[Header]]:
    """The k-th image in time at every position makes part k; nothing where positions hold different numbers of images."""
    places: dict[tuple[float, ...] | None, dict[str, list[Header]]] = defaultdict(lambda: defaultdict(list))
    for header in headers:
        place = None if header.position is None else tuple(np.round(header.position, 2))
        places[place][header.uid].append(header)
    count = {len(uids) for uids in places.values()}
    parts: dict[str, list[Header]] = defaultdict(list)
    if len(count) != 1 or count == {1}:
        return {}
    width = len(str(count.pop()))
    for uids in places.values():
        times = [copies[0].order.get(name) for copies in uids.values()]
        if None in times or len(set(times)) < len(times):
            return {}
        for rank, copies in enumerate(sorted(uids.values(), key=lambda copies: copies[0].order[name])):
            parts[str(rank + 1).zfill(width)].extend(copies)
    return parts
