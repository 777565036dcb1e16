"""Dates of acquisition from names, where the naming scheme says that it is the acquisition. Never from processing times."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta

FIRST_YEAR = 1972
"""Landsat 1; an eight-digit number of an earlier "year" is no date."""

_LANDSAT_OLD = re.compile(r"^L[COTEM]\d{7}(\d{4})(\d{3})[A-Z]{3}\d{2}")
_STAMP = re.compile(r"(?<!\d)(\d{8})T(\d{6})?")
_DASHED = re.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)")
_COMPACT = re.compile(r"(?<![0-9A-Za-z])(\d{8})(?![0-9A-Za-z])")
_CREATION = re.compile(r"_OPER_(MSI|GIP|AUX)_")
"""ESA's old tile names carry the creation time of the file, months after the acquisition in reprocessed data."""


def acquired_from(names: Iterable[str]) -> str | None:
    """The first date that one of the names states.

    Knows ``20180502T093039`` (Copernicus), ``LT52240631988227CUB02`` (year and day), ``2020-01-13`` and ``_20180131_`` (of two, the first:
    Landsat puts acquisition before processing).

    Returns:
        ISO date or date-time (UTC, no suffix), or None.
    """
    for name in names:
        if _CREATION.search(name):
            continue
        found = _old_landsat(name) or _stamped(name) or _dashed(name) or _compact(name)
        if found is not None:
            return found
    return None


def _old_landsat(name: str) -> str | None:
    match = _LANDSAT_OLD.match(name)
    if match is None or not 1 <= int(match[2]) <= 366:
        return None
    return (date(int(match[1]), 1, 1) + timedelta(days=int(match[2]) - 1)).isoformat()


def _stamped(name: str) -> str | None:
    match = _STAMP.search(name)
    if match is None:
        return None
    day = _day(match[1])
    if day is None or match[2] is None:
        return day
    try:
        return datetime.strptime(match[1] + match[2], "%Y%m%d%H%M%S").isoformat()
    except ValueError:
        return day


def _dashed(name: str) -> str | None:
    match = _DASHED.search(name)
    return _day("".join(match.groups())) if match else None


def _compact(name: str) -> str | None:
    days = (_day(match[1]) for match in _COMPACT.finditer(name))
    return next((day for day in days if day is not None), None)


def _day(digits: str) -> str | None:
    try:
        day = datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None
    return day.isoformat() if day.year >= FIRST_YEAR else None
