"""Dates of people: moved by one constant per patient before a record is kept, so that intervals survive and days do not.

The shift hangs on the secret and the patient alone (``lineage.date_shift``): every study of a patient moves alike, in every store of one
secret. The time of day is dropped. A year or a month alone is no day that could be moved, and is dropped too; the true year, where a
domain keeps it as a field, is no day either and stays.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta

from dinodomain.types import Record

NO_DATE = "its acquisition date is no day of the calendar, and is not kept"

_DAY = re.compile(r"(\d{4}-\d\d-\d\d|\d{8})(?:[T ].*)?", re.DOTALL)
_PART = re.compile(r"\d{4}(-\d\d)?")


def shifted(record: Record, days: int) -> Record:
    """The record with its date moved by ``days``; 0 leaves it as it is (a domain whose ids are public).

    What is no day of the calendar is dropped with a warning: no picture is lost for it.
    """
    if days == 0 or record.acquired is None:
        return record
    text = record.acquired.strip()
    if not text or _PART.fullmatch(text):
        return replace(record, acquired=None)
    found = _DAY.fullmatch(text)
    try:
        moved = date.fromisoformat(found[1] if found else "") + timedelta(days=days)
    except (ValueError, OverflowError):
        return replace(record, acquired=None, warnings=(*record.warnings, NO_DATE))
    return replace(record, acquired=moved.isoformat())
