"""A DICOM series as a SourceRef: identity, digest, unit, quantity, facts. From headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from dinodomain.errors import BadSource, LeftOut
from dinodomain.types import FactValue, Select, SourceRef
from dinodomain_medical.dicom_header import KEY_FIELDS, Header
from dinodomain_medical.series_split import Series
from dinodomain_medical.sources import Gathered, folder_keys


def series_ref(gathered: Gathered, source_id: str, series: Series, select: Select, *, channel: str, hounsfield: bool) -> SourceRef:
    """The source of one volume.

    Args:
        gathered: Where it was found.
        source_id: Its id.
        series: Its headers.
        select: The selection under which it was found.
        channel: The channel its headers name, which is part of its meaning.
        hounsfield: Whether its values are Hounsfield units.
    """
    first = series.headers[0]
    uris = tuple(dict.fromkeys(str(header.path) for header in series.headers))
    return SourceRef(
        source_id=source_id,
        uris=uris,
        keys=folder_keys(gathered.root, gathered.place) | _keys(first, alone=len(uris) == 1),
        unit=unit_of(first.keys),
        digest=digest_of_images(series.headers, channel),
        select=select,
        instance=instance_of(series.headers),
        quantity=("HU_MOD" if first.rescale_type == "HU_MOD" else "HU") if hounsfield else "",
        facts=facts_of(series.headers),
        handle=_frames(series.headers, uris),
    )


def _keys(header: Header, *, alone: bool) -> dict[str, str]:
    """A volume of many files has no SOPInstanceUID of its own."""
    names = (*KEY_FIELDS, "SOPInstanceUID") if alone else KEY_FIELDS
    return {name: header.keys[name] for name in names if name in header.keys}


def unit_of(keys: Mapping[str, str]) -> str | None:
    """The patient: the id, with its issuer before it where one is stated, since two hospitals give out the same ids."""
    patient, issuer = keys.get("PatientID"), keys.get("IssuerOfPatientID")
    return f"{issuer}\\{patient}" if patient and issuer else patient


def refused(refusal: BadSource, header: Header) -> BadSource:
    """The refusal, with what a CSV may call the source."""
    if refusal.keys or isinstance(refusal, LeftOut):
        return refusal
    return BadSource(refusal.uri, refusal.reason, refusal.remedy or "", keys=_keys(header, alone=False))


def digest_of_images(headers: Sequence[Header], channel: str) -> str:
    """Over identities, prints of pixels, and all headers that decide geometry, scale and meaning; no path, no patient."""
    rows = sorted(
        repr(
            (
                header.uid, header.pixel_print, header.modality, header.image_type, header.rows, header.columns, header.samples,
                header.photometric, header.cell, header.position, header.orientation, header.spacing, str(header.slope),
                str(header.offset), header.padding, header.rescale_type, sorted(header.parts.items()),
            )
        )
        for header in headers
    )  # fmt: skip
    return hashlib.sha256("\n".join((channel, *rows)).encode()).hexdigest()


def instance_of(headers: Sequence[Header]) -> str:
    """The permanent identity of a source: over the sorted SOPInstanceUIDs of its images, empty where one has none."""
    uids = {header.uid for header in headers}
    if any(not header.keys.get("SOPInstanceUID") for header in headers):
        return ""
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()


def facts_of(headers: Sequence[Header]) -> dict[str, FactValue]:
    """What the headers state, with the number of images and the bytes in and out."""
    first = headers[0]
    sizes = {header.path: header.file_bytes for header in headers}
    shares = {path: sum(header.path == path for header in headers) / _frames_in(headers, path) for path in sizes} if len(sizes) == 1 else {}
    voxels = first.rows * first.columns * len(headers)
    return {
        **first.facts,
        "NumberOfImages": len(headers),
        "bytes_in": round(sum(size * shares.get(path, 1.0) for path, size in sizes.items())),
        "bytes_out": voxels * max(first.bits // 8, 1),
        "acquired": first.acquired,
    }


def _frames_in(headers: Sequence[Header], path: Path) -> int:
    return next(header.frames for header in headers if header.path == path)


def _frames(headers: Sequence[Header], uris: Sequence[str]) -> tuple[tuple[int, ...] | None, ...] | None:
    """Per file the frames (from 0) that belong to the volume, None for all; None where all files are taken whole."""
    chosen: dict[str, list[int]] = {uri: [] for uri in uris}
    total = {str(header.path): header.frames for header in headers}
    for header in headers:
        if header.frame is not None:
            chosen[str(header.path)].append(header.frame)
    parts = tuple(tuple(sorted(chosen[uri])) if chosen[uri] and len(chosen[uri]) < total[uri] else None for uri in uris)
    return parts if any(part is not None for part in parts) else None


def frames_to_read(ref: SourceRef) -> Sequence[Sequence[int] | None]:
    """What ``_frames`` noted, per file of the source."""
    return ref.handle if isinstance(ref.handle, tuple) and len(ref.handle) == len(ref.uris) else [None] * len(ref.uris)
