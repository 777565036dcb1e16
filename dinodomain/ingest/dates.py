"""Dates of people: moved by one constant per patient before a record is kept, so that intervals survive and days do not.

The shift hangs on the secret and the patient alone (``lineage.date_shift``): every study of a patient moves alike, in every store of one
secret. The time of day is dropped. A year or a month alone is no day that could be moved, and is dropped too; the true year, where a
domain keeps it as a field, is no day either and stays.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta

from dinodomain.errors import BadSource
from dinodomain.types import Record

_DAY = re.compile(r"(\d{4}-\d\d-\d\d|\d{8})(?:[T ].*)?", re.DOTALL)
_PART = re.compile(r"\d{4}(-\d\d)?")


def shifted(record: Record, days: int, uri: str) -> Record:
    """The record with its date moved by ``days``; 0 leaves it as it is (a domain whose ids are public).

    Raises:
        BadSource: Its date is not one.
    """
    if days == 0 or record.acquired is None:
        return record
    return replace(record, acquired=_moved(record.acquired.strip(), days, uri))


def _moved(acquired: str, days: int, uri: str) -> str | None:
    if not acquired or _PART.fullmatch(acquired):
        return None
    found = _DAY.fullmatch(acquired)
    try:
        day = date.fromisoformat(found[1] if found else "")
    except ValueError:
        raise BadSource(uri, "its acquisition date is no ISO date", "repair the header, or exclude it") from None
    try:
        return (day + timedelta(days=days)).isoformat()
    except OverflowError:  # year 1 or 9999: a filler, not a date
        return None
