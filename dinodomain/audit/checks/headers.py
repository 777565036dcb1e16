"""What a store's index keeps of headers, against the confidentiality profile of DICOM PS3.15. Part of the text check; reads no pixel.

Private attributes (of an odd group) count as identifying: only their maker knows what they hold. Ingest copies attributes by their names
and so no private ones; a table that was joined at ingest may hold some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinodomain.audit.evidence import About
from dinodomain.audit.figures import Cell, Table
from dinodomain.audit.finding import Finding
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.trail.groups import as_groups
from dinodomain.audit.trail.kept import Kept, fields_of

DATE = re.compile(r"(?<!\d)(\d{1,2}[./\-]\d{1,2}[./\-](\d{4}|\d{2})|(19|20)\d{2}[./\-]?[01]\d[./\-]?[0-3]\d)(?!\d)")
ID = re.compile(r"(?<![\d.,])\d{5,}(?![\d.,])|\b[A-Z]{1,4}[\-: ]?\d{4,}\b|\b\d{3,}-\d{2,}\b")
PS315 = frozenset({
    "AccessionNumber", "AcquisitionDate", "AcquisitionDateTime", "AcquisitionTime", "AdmittingDate", "AdmissionID", "ContentDate",
    "ContentCreatorName", "CountryOfResidence", "DetectorID", "DeviceSerialNumber", "DeviceUID", "EthnicGroup", "FrameOfReferenceUID",
    "GantryID", "ImageComments", "InstitutionAddress", "InstitutionName", "InstitutionalDepartmentName", "IssuerOfPatientID",
    "MilitaryRank", "NameOfPhysiciansReadingStudy", "Occupation", "OperatorsName", "OtherPatientIDs", "OtherPatientNames", "PatientAddress",
    "PatientBirthDate", "PatientBirthName", "PatientComments", "PatientID", "PatientMotherBirthName", "PatientName",
    "PatientTelephoneNumbers", "PerformingPhysicianName", "PerformedStationName", "PhysiciansOfRecord", "PlateID", "ProtocolName",
    "ReferringPhysicianName", "RequestingPhysician", "RequestingService", "SOPInstanceUID", "SeriesDate", "SeriesDescription",
    "SeriesInstanceUID", "SeriesTime", "StationName", "StudyComments", "StudyDate", "StudyDescription", "StudyID", "StudyInstanceUID",
    "StudyTime", "TimezoneOffsetFromUTC",
})  # fmt: skip
"""Attributes that the Basic Application Level Confidentiality Profile removes, empties or replaces (PS3.15 Table E.1-1), by keyword."""

CLAIMS = {
    "burned_in_annotation": "BurnedInAnnotation (0028,0301)", "recognizable_visual_features": "RecognizableVisualFeatures (0028,0302)",
}  # fmt: skip
_PRIVATE = re.compile(r"^\(?[0-9a-f]{3}[13579bdf],? ?[0-9a-f]{4}\)?$", re.IGNORECASE)
_HASHED = re.compile(r"^[0-9a-f]{32}$")


def headers(about: About, kept: Kept) -> Finding:
    """What the index keeps of headers.

    Args:
        about: The text check.
        kept: The store's side of the trail.
    """
    fields = fields_of(kept.index["fields"])
    named = sorted(name for name in fields if name in PS315 or _PRIVATE.match(name))
    clear = [f"{name} (column {name})" for name in ("source_id", "unit") if kept.personal and not _hashed(kept.index[name])]
    shaped = sorted(name for name, values in fields.items() if name not in named and _identifying(values))
    limits = (*about.limits, "Of headers the index is looked at; the files that were ingested hold more, attributes of makers among it.")
    told: dict[str, Any] = {
        "limits": limits, "title": "Does the index keep header values that name somebody?",
        "n_images": len(kept), "n_units": kept.num_units,
        "counts": {"header fields kept": len(fields), "of the confidentiality profile": len(named)},
        "tables": (_claims(fields, len(kept)),), "evidence": {"fields": sorted(fields), "profile": named, "looks_like_ids": shaped},
    }  # fmt: skip
    if named or clear:
        answer = f"Yes: it keeps {', '.join([*named, *clear])}, which the confidentiality profile of DICOM PS3.15 removes or replaces."
        action = "Ingest without these fields (ingest.fields), and treat features and reports made with them as identifying."
        verdict = "FLAG" if kept.personal else "WARN"
        repeat = "The index keeps none of them."
        return about.finding("headers", **told, verdict=verdict, answer=answer, action=action, repeat=repeat)
    if shaped and kept.personal:
        answer = f"Values of {', '.join(shaped)} have the form of dates, ids or DICOM names."
        action = "Look at these columns, and leave them out at ingest (ingest.fields) if they name anybody."
        return about.finding("headers", **told, verdict="WARN", answer=answer, action=action, repeat="No column has such values.")
    if not kept.personal:
        reason = "the domain of this store is not about people"
        return about.finding(
            "headers", **told, verdict="NOT_APPLICABLE", answer="The index keeps no such values.", reason_code="not_personal", reason=reason
        )
    answer = f"No: none of its {len(fields)} header fields is in the confidentiality profile of DICOM PS3.15, and ids are keyed hashes."
    return about.finding("headers", **told, verdict="CLEAR_WITHIN_LIMITS", answer=answer)


def _hashed(values: np.ndarray) -> bool:
    return all(_HASHED.match(str(value).split("#")[0]) for value in values if value)


def _identifying(values: np.ndarray) -> bool:
    """Whether most values look like dates, ids or DICOM person names (with a caret)."""
    text = [str(value) for value in values if str(value)]
    return bool(text) and bool(np.mean(["^" in value or bool(DATE.search(value) or ID.search(value)) for value in text]) > 0.5)


def _claims(fields: Mapping[str, np.ndarray], count: int) -> Table:
    """What headers themselves say of their pixels: a claim, beside what was read."""
    rows: list[tuple[Cell, ...]] = []
    for name, attribute in CLAIMS.items():
        values = as_groups(fields[name]) if name in fields else np.full(count, "")
        for value, number in zip(*np.unique(values, return_counts=True)):
            rows.append((attribute, str(value) or "not stated", printed(int(number))))
    note = "A header's claim; what the pixels show is the finding on pixels."
    return Table(title="What headers claim", columns=("attribute", "value", "sources"), rows=tuple(rows), note=note)
