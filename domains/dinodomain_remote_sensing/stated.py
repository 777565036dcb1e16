"""What a catalogue states of a scene, and how that joins what its files say of themselves.

A file's own statement stands; a catalogue fills what is empty there. Where both speak and disagree the scene is refused: one of the two
would be misread, and nothing here can tell which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dinodomain.errors import BadSource
from dinodomain_remote_sensing.header import Header

SAME = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedBand:
    """One band of one file.

    Attributes:
        code: The sensor's code of it, or empty.
        scale: physical = stored * scale + offset; None where nothing is stated.
        offset: See ``scale``.
        nodata: Stored value for "no data", or None.
        unit: Physical unit, or empty.
    """

    code: str
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """One item of a catalogue.

    Attributes:
        item: Its id.
        bands: Its bands by address of the file, in file order.
        tags: Its properties under the names that sensors read from the tags of files.
        fields: Fields for the index, where the sensor has none of that name.
        acquired: ISO date-time (UTC, no suffix), or None.
        bbox: West, south, east, north in degrees, or empty.
        expects: What the numbers must look like if its statement about the offset of Sentinel-2 holds: ``shifted`` by 1000, ``plain``,
            or empty where it states nothing.
        conflict: Statements about that offset that disagree; the pixels have to settle it.
        warnings: What a person should know of how its statements were settled.
    """

    item: str
    bands: Mapping[str, tuple[StatedBand, ...]]
    tags: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    acquired: str | None = None
    bbox: tuple[float, ...] = ()
    expects: Literal["", "shifted", "plain"] = ""
    conflict: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def told(header: Header, stated: Stated | None) -> Header:
    """A header with what the catalogue adds to it.

    Raises:
        BadSource: The file says something else.
    """
    if stated is None:
        return header
    bands = stated.bands.get(header.path, ())
    if bands and len(bands) != header.count:
        problem = f"its item describes {len(bands)} bands, the file holds {header.count}"
        raise BadSource(header.path, problem, "correct the item, or ingest the files without it")
    joined = replace(header, tags={**stated.tags, **header.tags})
    if not bands:
        return joined
    linear = [_linear(header, place, band) for place, band in enumerate(bands)]
    return replace(
        joined,
        code=bands[0].code if len(bands) == 1 else "",
        descriptions=tuple(band.code or own for band, own in zip(bands, header.descriptions)),
        scales=tuple(scale for scale, _ in linear),
        offsets=tuple(offset for _, offset in linear),
        nodata=tuple(_nodata(header, place, band) for place, band in enumerate(bands)),
        units=tuple(own or band.unit for band, own in zip(bands, header.units)),
    )


def _linear(header: Header, place: int, band: StatedBand) -> tuple[float, float]:
    own = header.scales[place], header.offsets[place]
    if band.scale is None and band.offset is None:
        return own
    stated = 1.0 if band.scale is None else band.scale, 0.0 if band.offset is None else band.offset
    if own != (1.0, 0.0) and any(abs(a - b) > SAME for a, b in zip(own, stated)):
        problem = f"scale and offset {own[0]:g}, {own[1]:g} in the file, {stated[0]:g}, {stated[1]:g} in its item"
        raise BadSource(header.path, problem, "correct the one that is wrong")
    return stated


def _nodata(header: Header, place: int, band: StatedBand) -> float | None:
    own = header.nodata[place]
    if own is None or band.nodata is None:
        return band.nodata if own is None else own
    if own != band.nodata and not (own != own and band.nodata != band.nodata):
        problem = f"nodata {own:g} in the file, {band.nodata:g} in its item"
        raise BadSource(header.path, problem, "correct the one that is wrong")
    return own
