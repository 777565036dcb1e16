"""The acquisition fields that may enter a store: an allow-list, cleaned to short words and numbers.

Names, dates (but the year) and free text never leave this file.
"""

from __future__ import annotations

import re
from typing import Any

from dinodomain_medical.dicom_values import items, number, text

FieldValue = str | int | float | bool | None

OLDEST_YEARS = 90
"""Ages above are given as this one: so old a person could be recognised (HIPAA safe harbour, 45 CFR 164.514)."""

# Defined terms of Body Part Examined (PS3.16 annex L) that are used; a free text under this field is no such term.
_BODY_PARTS_TEXT = (
    "ABDOMEN ABDOMENPELVIS ANKLE ARM BRAIN BREAST CERVIX CHEST CHESTABDOMEN CHESTABDPELVIS CHESTABDOMENPELVIS CSPINE CTSPINE ELBOW "
    "EXTREMITY EYE FEMUR FOOT HAND HEAD HEADNECK HEART HIP JAW KIDNEY KNEE LEG LIVER LSPINE LSSPINE LUNG MAXILLA NECK NECKCHEST ORBIT "
    "PANCREAS PELVIS PROSTATE RIB SHOULDER SKULL SPINE SSPINE TMJ TSPINE UTERUS WHOLEBODY WRIST"
)
_BODY_PARTS = frozenset(_BODY_PARTS_TEXT.split())


READS = (
    "PatientSex", "ContrastBolusAgent", "BodyPartExamined", "PatientAge", "PatientBirthDate", "StudyDate", "Manufacturer",
    "ManufacturerModelName", "MagneticFieldStrength", "KVP", "ConvolutionKernel", "SliceThickness", "AcquisitionDate",
    "BurnedInAnnotation", "RecognizableVisualFeatures",
)  # fmt: skip
"""All elements that ``acquisition_fields`` looks at."""


def acquisition_fields(dataset: Any) -> dict[str, FieldValue]:
    """The allow-list that may enter a store; what is absent or empty is left out.

    ``age_years`` (whole, at most 90), ``sex`` (M, F, O), ``manufacturer``, ``model``, ``field_strength_t``, ``kvp``, ``kernel``,
    ``slice_thickness_mm``, ``contrast`` (whether an agent is named, never which), ``body_part`` (a defined term), ``year`` of the study,
    and what the header claims of identifying pixels: ``burned_in_annotation`` and ``recognizable_visual_features`` (YES, NO).
    """
    sex = text(dataset, "PatientSex").upper()
    agent = text(dataset, "ContrastBolusAgent").upper()
    part = text(dataset, "BodyPartExamined").upper().replace(" ", "").replace("_", "")
    fields: dict[str, FieldValue] = {
        "age_years": _age(dataset),
        "sex": sex if sex in ("M", "F", "O") else None,
        "manufacturer": _device(text(dataset, "Manufacturer")),
        "model": _device(text(dataset, "ManufacturerModelName")),
        "field_strength_t": number(dataset, "MagneticFieldStrength"),
        "kvp": number(dataset, "KVP"),
        "kernel": _device(" ".join(items(dataset, "ConvolutionKernel"))),
        "slice_thickness_mm": number(dataset, "SliceThickness"),
        "contrast": (agent not in ("NONE", "NO")) if agent else None,
        "body_part": part if part in _BODY_PARTS else None,
        "year": _year(text(dataset, "StudyDate")) or _year(text(dataset, "AcquisitionDate")),
        "burned_in_annotation": _claim(dataset, "BurnedInAnnotation"),
        "recognizable_visual_features": _claim(dataset, "RecognizableVisualFeatures"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _claim(dataset: Any, name: str) -> str | None:
    found = text(dataset, name).upper()
    return found if found in ("YES", "NO") else None


def iso_date(dataset: Any) -> str | None:
    """Date of acquisition, else of the study, as YYYY-MM-DD; in personal domains ingest shifts it before anything is kept."""
    for name in ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "ContentDate", "StudyDate"):
        match = re.match(r"((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", text(dataset, name).replace(".", ""))
        if match:
            return f"{match[1]}-{match[2]}-{match[3]}"
    return None


def _age(dataset: Any) -> int | None:
    """PatientAge (``045Y``, ``018M``, ``003W``, ``010D``), else study minus birth date; whole years."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", text(dataset, "PatientAge").upper())
    if match:
        per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}[match[2]]
        return min(int(int(match[1]) / per_year), OLDEST_YEARS)
    born, seen = text(dataset, "PatientBirthDate"), text(dataset, "StudyDate")
    if _year(born) is None or _year(seen) is None or len(born) != 8 or len(seen) != 8:
        return None
    years = int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])
    return min(years, OLDEST_YEARS) if years >= 0 else None


def _year(date: str) -> int | None:
    return int(date[:4]) if re.match(r"(19|20)\d\d", date) else None


def _device(name: str) -> str | None:
    """A maker's or model's name as one short word group; anything long or with odd characters is cut, since it is no such name."""
    return re.sub(r"[^A-Za-z0-9 ._+/()-]+", " ", name).strip()[:40].strip() or None
