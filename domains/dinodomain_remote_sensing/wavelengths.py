"""Centre wavelengths of the bands of a file, in nanometres, as its headers state them; and which of its bands they call bad.

Read from (the first that is there): the product's XML (EnMAP), band tags ``wavelength`` with ``wavelength_units``, the ENVI header,
GDAL's IMAGERY domain, band descriptions (``423.8 nm``, ``band 1 (0.4238 Micrometers)``). GDAL rounds the IMAGERY domain to whole
nanometres, so it comes late. A number without a unit is nanometres from 350 to 2600 and micrometres from 0.35 to 2.6; nothing else is
taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dinodomain_remote_sensing.header import Header

LOW_NM, HIGH_NM = 350.0, 2600.0
"""Reflected sunlight, which hyperspectral imagers cover."""

_PER_UNIT = {
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "micron": 1e3,
}
_DESCRIBED = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s*(nm|nanomet(?:er|re)s?|um|µm|μm|micromet(?:er|re)s?|microns?)(?![A-Za-z])", re.IGNORECASE
)
_LIST = re.compile(r"[{}\[\]\s]+")


def wavelengths_nm(header: Header) -> list[float | None]:
    """Centre wavelength per band, None where nothing states it."""
    listed = _numbers(_tag(header, "WAVELENGTH", "WAVELENGTHS"))
    unit = _tag(header, "WAVELENGTH_UNITS", "WAVELENGTH_UNIT")
    return [_of_band(header, place, listed if len(listed) == header.count else [], unit) for place in range(header.count)]


def good_bands(header: Header) -> list[bool]:
    """Which bands the header calls good (ENVI's ``bbl``, band tag ``bbl`` or ``BadBand``); all where it says nothing."""
    listed = _numbers(_tag(header, "BBL"))
    common = [value != 0 for value in listed] if len(listed) == header.count else [True] * header.count
    return [_good(tags, default) for tags, default in zip(header.band_tags or ({},) * header.count, common)]


def nanometres(text: str, unit: str = "") -> float | None:
    """``423.8``, ``423.8 nm`` or ``0.4238`` in nanometres; None where that is not certain."""
    match = _DESCRIBED.search(text)
    if match is not None:
        return _scaled(float(match[1]), match[2])
    numbers = _numbers(text)
    return _scaled(numbers[0], unit) if len(numbers) == 1 else None


def _of_band(header: Header, place: int, listed: Sequence[float], unit: str) -> float | None:
    tags: Mapping[str, str] = header.band_tags[place] if header.band_tags else {}
    own = tags.get("WAVELENGTH")
    if own is not None:
        return nanometres(own, tags.get("WAVELENGTH_UNITS", unit))
    if listed:
        return _scaled(listed[place], unit)
    if "CENTRAL_WAVELENGTH_UM" in tags:
        return nanometres(tags["CENTRAL_WAVELENGTH_UM"], "um")
    match = _DESCRIBED.search(header.descriptions[place])
    return None if match is None else _scaled(float(match[1]), match[2])


def _good(tags: Mapping[str, str], default: bool) -> bool:
    if "BADBAND" in tags:
        return tags["BADBAND"].strip().lower() not in ("1", "true", "yes")
    return _numbers(tags["BBL"]) != [0.0] if "BBL" in tags else default


def _tag(header: Header, *names: str) -> str:
    return next((header.tags[key] for name in names for key in (name, f"ENVI_{name}") if key in header.tags), "")


def _numbers(text: str) -> list[float]:
    parts = [part for part in re.split(r"[,;\s]+", _LIST.sub(" ", text).strip()) if part]
    try:
        return [float(part) for part in parts]
    except ValueError:
        return []


def _scaled(value: float, unit: str) -> float | None:
    per = _PER_UNIT.get(unit.strip().lower().removesuffix("s"))
    if per is None:
        per = 1.0 if LOW_NM <= value <= HIGH_NM else 1e3 if LOW_NM <= value * 1e3 <= HIGH_NM else None
    return None if per is None or value <= 0 else round(value * per, 4)
