"""What is read from a DICOM header: geometry, value scale, identity, what tells images of one series apart.

Headers are read without pixels, but for a print of three short pieces of the pixel element (``print_pixels``). What may enter a
store is ``Header.fields`` alone; the rest (keys, facts, values) is clear text that stays in memory.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dinodomain.domain import quiet
from dinodomain.errors import BadSource, require
from dinodomain.types import FactValue
from dinodomain_medical import multiframe
from dinodomain_medical.dicom_fields import READS, FieldValue, acquisition_fields, iso_date
from dinodomain_medical.dicom_values import exact, first, floats, items, number, text, text_at, value_of
from dinodomain_medical.quick_header import QuickHeader, read_quickly

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_FIELDS = (
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AccessionNumber",
    "StationName",
    "InstitutionName",
)
"""Fields a hospital spreadsheet may join on, and the place of examination, which is kept as a keyed hash only."""

FACT_FIELDS = (
    "Modality", "BodyPartExamined", "ProtocolName", "SeriesDescription", "ConvolutionKernel", "SliceThickness", "Manufacturer",
    "ManufacturerModelName", "ImageType", "MagneticFieldStrength", "KVP", "PresentationIntentType",
)  # fmt: skip
"""Keywords that ``SourceRef.facts`` holds for DICOM sources."""

_COMPONENTS = ("M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY")

# Words of ImageType (values 3 and up) that name another picture than its neighbours in the same series: projections, maps, Dixon parts.
_MAPS_TEXT = (
    "ADC EADC FA TRACEW TENSOR COLFA EXP MIP MINIP AVGIP MPR CPR CURVED_MPR PROJECTION_IMAGE SUBTRACTION REFORMATTED AVERAGE STDDEV "
    "CBF CBV MTT TTP TMAX RCBF RCBV T1_MAP T2_MAP T2_STAR_MAP R2_MAP R2_STAR_MAP B0_MAP B1_MAP W F IP OP WATER FAT IN_PHASE OUT_PHASE "
    "FAT_FRACTION WATER_FRACTION SCREEN_SAVE MOSAIC"
)
_MAPS = frozenset(_MAPS_TEXT.split())

_LOSSY_SYNTAXES = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81"})

_MAGIC_AT, _MAGIC = 128, b"DICM"
_BARE_STARTS = (b"\x08\x00", b"\x02\x00")  # group 0008 or 0002, little endian: a file without the 128-byte preamble
_PIECE = 4096
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Header of one image: a file, or one frame of a multi-frame file.

    Attributes:
        path: The file.
        keys: Values of ``KEY_FIELDS`` and SOPInstanceUID that are filled.
        modality: Modality (0008,0060).
        image_type: ImageType, upper case.
        rows: Height in pixels; 0 where the object holds no image.
        columns: Width.
        frames: Number of frames of the file.
        samples: Numbers per pixel.
        photometric: PhotometricInterpretation.
        position: ImagePositionPatient, LPS mm, of the centre of the first pixel.
        orientation: ImageOrientationPatient: direction of rising columns, then of rising rows.
        spacing: PixelSpacing (between rows, between columns), mm.
        slope: RescaleSlope, exact.
        offset: RescaleIntercept, exact.
        padding: PixelPaddingValue and its range limit, both ends included, or None.
        tilt: GantryDetectorTilt in degrees, or None.
        acquisition: AcquisitionNumber, or an empty string.
        parts: What splits a series besides geometry, by name: echo, b-value, temporal position, complex component, kind of map.
        description: SeriesDescription, or else ProtocolName, for the channel vocabulary only; never stored.
        fields: Allow-listed acquisition fields.
        frame: Number of the frame in its file from 0, or None where the file is one image.
        finer: What splits a series only where its images overlap or form no regular volume, by name.
        order: Numbers that put several images of one position in order of time, by name (ms or s).
        values: Values of the keywords that were asked for, as a header filter sees them.
        facts: Values of ``FACT_FIELDS`` that are filled.
        acquired: ISO date of acquisition, the true one.
        seconds: Time of acquisition in seconds of the day, or None.
        frame_of_reference: FrameOfReferenceUID, or an empty string.
        acquisition_contrast: AcquisitionContrast of enhanced MR, a defined term; empty where it is not stated.
        thickness: SliceThickness in mm, or None.
        rescale_type: RescaleType (``HU``, ``US`` for unspecified ...), upper case.
        bits: BitsAllocated.
        cell: How a number lies in its bits: BitsAllocated, BitsStored, HighBit, PixelRepresentation.
        pixel_print: Print of the pixel element, see ``print_pixels``; equal in all frames of a file.
        file_bytes: Size of the file.
    """

    path: Path
    keys: dict[str, str]
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    slope: Fraction
    offset: Fraction
    padding: tuple[int, int] | None
    tilt: float | None
    acquisition: str
    parts: dict[str, str]
    description: str
    fields: dict[str, FieldValue]
    frame: int | None = None
    finer: dict[str, str] = field(default_factory=dict)
    order: dict[str, float] = field(default_factory=dict)
    values: dict[str, FactValue] = field(default_factory=dict)
    facts: dict[str, FactValue] = field(default_factory=dict)
    acquired: str | None = None
    seconds: float | None = None
    frame_of_reference: str = ""
    acquisition_contrast: str = ""
    thickness: float | None = None
    rescale_type: str = ""
    bits: int = 0
    cell: str = ""
    pixel_print: str = ""
    file_bytes: int = 0

    @property
    def uid(self) -> str:
        """Permanent identity of the image: SOPInstanceUID, with the frame number (from 1) where the file has several."""
        uid = self.keys.get("SOPInstanceUID", "")
        return uid if self.frame is None else f"{uid}#{self.frame + 1}"

    def __reduce__(self) -> tuple[object, ...]:
        """Each header of an archive is pickled once and read once: without names of fields, paths and fractions as plain values."""
        path, slope, offset, *rest = _PARTS(self)
        return _unpacked, (str(path), slope.numerator, slope.denominator, offset.numerator, offset.denominator, *rest)


_NAMES = ("path", "slope", "offset", *(item.name for item in fields(Header) if item.name not in ("path", "slope", "offset")))
_PARTS = attrgetter(*_NAMES)
_SETTERS = tuple(getattr(Header, name).__set__ for name in _NAMES)


def _unpacked(path: str, *values: Any) -> Header:
    header = object.__new__(Header)
    known = (Path(path), _fraction(values[0], values[1]), _fraction(values[2], values[3]), *values[4:])
    for put, value in zip(_SETTERS, known, strict=True):
        put(header, value)
    return header


@lru_cache(maxsize=1024)
def _fraction(numerator: int, denominator: int) -> Fraction:
    return Fraction(numerator, denominator)


def _begins_like_dicom(handle: BinaryIO) -> bool:
    head = handle.read(_MAGIC_AT + len(_MAGIC))
    if head[_MAGIC_AT:] == _MAGIC:
        return True
    return head[:2] in _BARE_STARTS and len(head) > 8 and (head[4:6].isalpha() or head[3] == 0)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Values that break a VR's rules (empty UIDs, long strings) are common in archives and harmless here; pydicom would warn of each."""
    pydicom = require("pydicom", extra="medical", wanted_by="DICOM files")
    with quiet(UserWarning, module=r"pydicom\..*"), pydicom.config.disable_value_validation():
        yield


def load(path: Path | BinaryIO, **options: Any) -> Any:
    """``pydicom.dcmread`` with its errors turned into a BadSource."""
    pydicom = require("pydicom", extra="medical", wanted_by="DICOM files")
    try:
        return pydicom.dcmread(path, force=True, **options)
    except (
        pydicom.errors.InvalidDicomError,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        KeyError,
        AttributeError,
        TypeError,
        struct.error,
    ) as error:
        name = str(path) if isinstance(path, Path) else str(getattr(path, "name", path))
        raise BadSource(name, f"not a readable DICOM file ({type(error).__name__})", "copy the file again, or exclude it") from error


def read_header(path: Path, names: Sequence[str] = ()) -> Header:
    """Reads the header of a file as one image, whatever its number of frames.

    Args:
        path: The file.
        names: Keywords whose values are wanted in ``Header.values``; all in the dictionary.

    Raises:
        BadSource: The file is no DICOM or its header is damaged.
    """
    return _read(path, names, frames=False)[0]


def read_headers(path: Path, names: Sequence[str] = ()) -> list[Header]:
    """Reads the headers of all images of a file: one, or one per frame of an enhanced object.

    Args:
        path: The file.
        names: Keywords whose values are wanted in ``Header.values``; all in the dictionary.

    Raises:
        BadSource: The file is no DICOM, or its header is damaged.
    """
    return _read(path, names, frames=True)


def headers_if_dicom(path: Path, names: Sequence[str] = (), *, frames: bool) -> list[Header] | None:
    """``read_headers`` (with ``frames``) or ``read_header`` of a file that may be no DICOM, which gives None; opened once.

    Raises:
        BadSource: It begins like DICOM, and its header is damaged.
        OSError: It cannot be opened.
    """
    with path.open("rb") as handle:
        return _read_from(handle, path, names, frames=frames) if _begins_like_dicom(handle) else None


def _read(path: Path, names: Sequence[str], *, frames: bool) -> list[Header]:
    try:
        handle = path.open("rb")
    except OSError as error:
        raise BadSource(str(path), f"cannot be read ({type(error).__name__})", "check the file and its permissions") from error
    with handle:
        return _read_from(handle, path, names, frames=frames)


def _read_from(handle: BinaryIO, path: Path, names: Sequence[str], *, frames: bool) -> list[Header]:
    try:
        handle.seek(0)
        headers = _quick(path, handle, names) or _thorough(path, handle, names, frames=frames)
    except OSError as error:
        raise BadSource(str(path), f"cannot be read ({type(error).__name__})", "check the file and its permissions") from error
    if not headers[0].modality and not headers[0].keys:
        raise BadSource(
            str(path), "a DICOM file without modality, patient or UIDs: truncated or damaged", "copy the file again, or exclude it"
        )
    return headers


def _quick(path: Path, handle: BinaryIO, names: Sequence[str]) -> list[Header] | None:
    header = read_quickly(handle)
    if header is None:
        return None
    size = handle.seek(0, 2)
    try:
        mark = print_pixels(handle, header.pixels_at, size, implicit=header.syntax == "1.2.840.10008.1.2")
        return [header_of(header, path, names=names, syntax=header.syntax, pixel_print=mark, file_bytes=size)]
    except (ValueError, TypeError, ArithmeticError, IndexError, AttributeError):
        return None  # pydicom is more forgiving; what it does not read either is damaged


def _thorough(path: Path, handle: BinaryIO, names: Sequence[str], *, frames: bool) -> list[Header]:
    handle.seek(0)
    with quiet_pydicom():
        dataset = load(handle, stop_before_pixels=True)
        syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") or "")
        at, size = handle.tell(), handle.seek(0, 2)
        mark = print_pixels(handle, at, size, implicit=bool(dataset.original_encoding[0]))
        try:
            known: Any = {"syntax": syntax, "pixel_print": mark, "file_bytes": size}
            if frames and multiframe.has_groups(dataset):
                views = multiframe.views(dataset)
                return [header_of(view, path, names=names, frame=number, **known) for number, view in enumerate(views)]
            return [header_of(dataset, path, names=names, **known)]
        except (ValueError, TypeError, ArithmeticError, IndexError, AttributeError) as error:
            raise BadSource(str(path), f"a damaged DICOM header ({type(error).__name__})", "copy the file again, or exclude it") from error


def print_pixels(handle: BinaryIO, at: int, size: int, *, implicit: bool) -> str:
    """A cheap print of the pixel element: its length and 4 KiB at its beginning, middle and end.

    A change of header or of VR leaves it as it is; a changed image of equal length changes it unless it differs elsewhere only, and
    then the hash of all pixels, which ingest compares, tells the two apart. Big-endian and deflated files are printed from where
    the parser stopped.

    Args:
        handle: The open file.
        at: Offset of the element's tag.
        size: Size of the file.
        implicit: Whether the element has no VR.
    """
    handle.seek(at)
    head = handle.read(12)
    start, length = at + 8, int.from_bytes(head[4:8], "little")
    if not implicit and head[4:6] in _LONG_VRS:
        start, length = at + 12, int.from_bytes(head[8:12], "little")
    # Encapsulated pixels have no length; what follows them (digital signatures, padding) is rare.
    stop = size if length >= size - start else start + length
    total = hashlib.sha256(str(max(stop - start, 0)).encode())
    for place in dict.fromkeys((start, max(start, (start + stop - _PIECE) // 2), max(start, stop - _PIECE))):
        handle.seek(place)
        total.update(handle.read(max(min(_PIECE, stop - place), 0)))
    return total.hexdigest()


def header_of(
    dataset: Any,
    path: Path,
    *,
    names: Sequence[str] = (),
    frame: int | None = None,
    syntax: str = "",
    pixel_print: str = "",
    file_bytes: int = 0,
) -> Header:
    """Header of a dataset that was read already; ``names`` as in ``read_header``."""
    keys = {name: text(dataset, name) for name in (*KEY_FIELDS, "SOPInstanceUID")}
    slope = exact(dataset, "RescaleSlope", 1)
    return Header(
        path=path,
        keys={name: value for name, value in keys.items() if value},
        modality=text(dataset, "Modality").upper(),
        image_type=tuple(part.strip().upper() for part in items(dataset, "ImageType")),
        rows=int(first(dataset, "Rows") or 0),
        columns=int(first(dataset, "Columns") or 0),
        frames=int(first(dataset, "NumberOfFrames") or 1),
        samples=int(first(dataset, "SamplesPerPixel") or 1),
        photometric=text(dataset, "PhotometricInterpretation").upper(),
        position=_triple(floats(dataset, "ImagePositionPatient", 3)),
        orientation=floats(dataset, "ImageOrientationPatient", 6),
        spacing=_pair(floats(dataset, "PixelSpacing", 2)),
        slope=slope if slope != 0 else Fraction(1),
        offset=exact(dataset, "RescaleIntercept", 0),
        padding=_padding(dataset),
        tilt=number(dataset, "GantryDetectorTilt"),
        acquisition=text(dataset, "AcquisitionNumber"),
        parts=_parts(dataset),
        description=text(dataset, "SeriesDescription") or text(dataset, "ProtocolName"),
        fields=_same(dataset, READS, acquisition_fields) | {"lossy": _is_lossy(dataset, syntax)},
        frame=frame,
        finer=_finer(dataset),
        order=_order(dataset),
        values=_same(dataset, tuple(names), lambda dataset: {name: value_of(dataset, name) for name in names}),
        facts=_same(dataset, FACT_FIELDS, _facts),
        acquired=iso_date(dataset),
        seconds=_seconds(dataset),
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        acquisition_contrast=text(dataset, "AcquisitionContrast").upper(),
        thickness=number(dataset, "SliceThickness"),
        rescale_type=text(dataset, "RescaleType").upper(),
        bits=int(first(dataset, "BitsAllocated") or 0),
        cell=",".join(text(dataset, name) for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")),
        pixel_print=pixel_print,
        file_bytes=file_bytes,
    )


_Known = dict[str, Any]
_known: dict[tuple[object, ...], _Known] = {}
_MOST_KNOWN = 4096


def _same(dataset: Any, names: tuple[str, ...], make: Callable[[Any], _Known]) -> _Known:
    """What ``make`` gives for these elements; slices of one series share most of them, and so the result, which nobody changes."""
    if not isinstance(dataset, QuickHeader):
        return make(dataset)
    key = (names, *dataset.raw(names))
    found = _known.get(key)
    if found is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        found = _known[key] = make(dataset)
    return found


def _facts(dataset: Any) -> dict[str, FactValue]:
    found = {name: value_of(dataset, name) for name in FACT_FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def _is_lossy(dataset: Any, syntax: str) -> bool:
    """LossyImageCompression says so (it stays 01 after decompression), or the transfer syntax cannot be anything else."""
    return text(dataset, "LossyImageCompression") == "01" or syntax in _LOSSY_SYNTAXES


def _parts(dataset: Any) -> dict[str, str]:
    words = [part.strip().upper().replace(" ", "_") for part in items(dataset, "ImageType")]
    component = [word for word in words if word in _COMPONENTS]
    stated = text(dataset, "ComplexImageComponent").upper()
    echo_time = number(dataset, "EchoTime")
    parts = {
        "echo": ",".join(filter(None, (text(dataset, "EchoNumbers"), "" if echo_time is None else f"{echo_time:.4g}"))),
        "b": _b_value(dataset),
        "time": text(dataset, "TemporalPositionIdentifier"),
        "component": component[0][:1] if component else stated[:1] if stated in _COMPONENTS else "",
        "kind": "+".join(sorted(_MAPS.intersection(words[2:]))),
    }
    return {name: value for name, value in parts.items() if value}


def _finer(dataset: Any) -> dict[str, str]:
    finer = {
        "acquisition": text(dataset, "AcquisitionNumber"),
        "stack": text(dataset, "StackID"),
        "kvp": _short(number(dataset, "KVP")),
        "image": ",".join(items(dataset, "ImageType")).upper(),
        "flip": _short(number(dataset, "FlipAngle")),
        "inversion": _short(number(dataset, "InversionTime")),
        "phase": _short(number(dataset, "NominalPercentageOfCardiacPhase")),
        "direction": _direction(dataset),
    }
    return {name: value for name, value in finer.items() if value}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _direction(dataset: Any) -> str:
    """DiffusionGradientOrientation, or where Siemens (0019,100E) and GE (0019,10BB..BD) keep it."""
    vector = floats(dataset, "DiffusionGradientOrientation", 3)
    if vector is None and text_at(dataset, 0x0019, 0x0010).startswith("SIEMENS MR") and (0x0019, 0x100E) in dataset:
        vector = _doubles(dataset[0x0019, 0x100E].value)
    if vector is None and text_at(dataset, 0x0019, 0x0010).startswith("GEMS_ACQU") and (0x0019, 0x10BB) in dataset:
        parts = [text_at(dataset, 0x0019, element) for element in (0x10BB, 0x10BC, 0x10BD)]
        vector = tuple(map(float, parts)) if all(parts) else None
    return "" if vector is None else ",".join(f"{value + 0.0:.3f}" for value in vector)


def _doubles(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, bytes):
        return struct.unpack("<3d", value) if len(value) == 24 else None
    return tuple(map(float, value)) if isinstance(value, Sequence) and len(value) == 3 else None


def _order(dataset: Any) -> dict[str, float]:
    trigger, seconds = number(dataset, "TriggerTime"), _seconds(dataset)
    return {name: value for name, value in (("trigger", trigger), ("clock", seconds)) if value is not None}


def _seconds(dataset: Any) -> float | None:
    """Seconds of the day of AcquisitionTime or AcquisitionDateTime."""
    clock = text(dataset, "AcquisitionTime").replace(":", "") or text(dataset, "AcquisitionDateTime")[8:]
    match = re.match(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)", clock)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def _b_value(dataset: Any) -> str:
    """DiffusionBValue, or where Siemens (0019,100C) and GE (0043,1039, first number, offset by 1e9) keep it."""
    stated = number(dataset, "DiffusionBValue")
    if stated is not None:
        return f"{stated:g}"
    if text_at(dataset, 0x0019, 0x0010).startswith("SIEMENS MR"):
        return text_at(dataset, 0x0019, 0x100C)
    if text_at(dataset, 0x0043, 0x0010).startswith("GEMS_PARM"):
        found = re.match(r"\[?'?(\d+)", text_at(dataset, 0x0043, 0x1039))
        return str(int(found[1]) % 10**9) if found else ""
    return ""


def _padding(dataset: Any) -> tuple[int, int] | None:
    value = first(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = first(dataset, "PixelPaddingRangeLimit")
    ends = sorted((int(value), int(value if limit is None else limit)))
    return ends[0], ends[1]


def _triple(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])


def _pair(values: tuple[float, ...] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


__all__ = [
    "FACT_FIELDS", "KEY_FIELDS", "FieldValue", "Header", "acquisition_fields", "header_of", "headers_if_dicom", "load",
    "print_pixels", "quiet_pydicom", "read_header", "read_headers",
]  # fmt: skip
