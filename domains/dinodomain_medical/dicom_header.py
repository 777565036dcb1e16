"""What is read from a DICOM header: geometry, value scale, what tells series apart, and an allow-list of acquisition fields.

Names, dates (but the year) and free text never leave this file. Headers are read without pixels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinodomain.errors import BadSource, require

if TYPE_CHECKING:
    from collections.abc import Iterator

FieldValue = str | int | float | bool | None

OLDEST_YEARS = 90
"""Ages above are given as this one: so old a person could be recognised (HIPAA safe harbour, 45 CFR 164.514)."""

KEY_FIELDS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber")
"""Fields a hospital spreadsheet may join on."""

_COMPONENTS = ("M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY")

_MAGIC_AT, _MAGIC = 128, b"DICM"
_BARE_STARTS = (b"\x08\x00", b"\x02\x00")  # group 0008 or 0002, little endian: a file without the 128-byte preamble


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One file's header.

    Attributes:
        path: The file.
        keys: Values of ``KEY_FIELDS`` and SOPInstanceUID that are filled.
        modality: Modality (0008,0060).
        image_type: ImageType, upper case.
        rows: Height in pixels; 0 where the object holds no image.
        columns: Width.
        frames: Number of frames.
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
        parts: What splits a series besides geometry, by name: echo, b-value, temporal position, complex component.
        description: SeriesDescription, or else ProtocolName, for the channel vocabulary only; never stored.
        fields: Allow-listed acquisition fields.
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


def is_dicom(path: Path) -> bool:
    """Whether a file begins like DICOM, whatever its name."""
    with path.open("rb") as handle:
        head = handle.read(_MAGIC_AT + len(_MAGIC))
    if head[_MAGIC_AT:] == _MAGIC:
        return True
    return head[:2] in _BARE_STARTS and len(head) > 8 and (head[4:6].isalpha() or head[3] == 0)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Values that break a VR's rules (empty UIDs, long strings) are common in archives and harmless here; pydicom would warn of each."""
    pydicom = require("pydicom", extra="medical", wanted_by="DICOM files")
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\..*")
        yield


def load(path: Path, **options: Any) -> Any:
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
    ) as error:
        raise BadSource(str(path), f"not a readable DICOM file ({type(error).__name__})", "copy the file again, or exclude it") from error


def read_header(path: Path) -> Header:
    """Reads one header.

    Raises:
        BadSource: The file is no DICOM or its header is damaged.
    """
    with quiet_pydicom():
        dataset = load(path, stop_before_pixels=True)
        try:
            header = header_of(dataset, path)
        except (ValueError, TypeError, ArithmeticError, IndexError, AttributeError) as error:
            raise BadSource(str(path), f"a damaged DICOM header ({type(error).__name__})", "copy the file again, or exclude it") from error
    if not header.modality and not header.keys:
        raise BadSource(
            str(path), "a DICOM file without modality, patient or UIDs: truncated or damaged", "copy the file again, or exclude it"
        )
    return header


def header_of(dataset: Any, path: Path) -> Header:
    """Header of a dataset that was read already."""
    keys = {name: _text(dataset, name) for name in (*KEY_FIELDS, "SOPInstanceUID")}
    slope = _exact(dataset, "RescaleSlope", 1)
    return Header(
        path=path,
        keys={name: value for name, value in keys.items() if value},
        modality=_text(dataset, "Modality").upper(),
        image_type=tuple(part.strip().upper() for part in _items(dataset, "ImageType")),
        rows=int(_first(dataset, "Rows") or 0),
        columns=int(_first(dataset, "Columns") or 0),
        frames=int(_first(dataset, "NumberOfFrames") or 1),
        samples=int(_first(dataset, "SamplesPerPixel") or 1),
        photometric=_text(dataset, "PhotometricInterpretation").upper(),
        position=_triple(_floats(dataset, "ImagePositionPatient", 3)),
        orientation=_floats(dataset, "ImageOrientationPatient", 6),
        spacing=_pair(_floats(dataset, "PixelSpacing", 2)),
        slope=slope if slope != 0 else Fraction(1),
        offset=_exact(dataset, "RescaleIntercept", 0),
        padding=_padding(dataset),
        tilt=_number(dataset, "GantryDetectorTilt"),
        acquisition=_text(dataset, "AcquisitionNumber"),
        parts=_parts(dataset),
        description=_text(dataset, "SeriesDescription") or _text(dataset, "ProtocolName"),
        fields=acquisition_fields(dataset),
    )


def acquisition_fields(dataset: Any) -> dict[str, FieldValue]:
    """The allow-list that may enter a store; what is absent or empty is left out.

    ``age_years`` (whole, at most 90), ``sex`` (M, F, O), ``manufacturer``, ``model``, ``field_strength_t``, ``kvp``, ``kernel``,
    ``slice_thickness_mm``, ``contrast`` (whether an agent is named, never which), ``year`` of the study.
    """
    sex = _text(dataset, "PatientSex").upper()
    agent = _text(dataset, "ContrastBolusAgent").strip().upper()
    fields: dict[str, FieldValue] = {
        "age_years": _age(dataset),
        "sex": sex if sex in ("M", "F", "O") else None,
        "manufacturer": _device(_text(dataset, "Manufacturer")),
        "model": _device(_text(dataset, "ManufacturerModelName")),
        "field_strength_t": _number(dataset, "MagneticFieldStrength"),
        "kvp": _number(dataset, "KVP"),
        "kernel": _device(" ".join(_items(dataset, "ConvolutionKernel"))),
        "slice_thickness_mm": _number(dataset, "SliceThickness"),
        "contrast": (agent not in ("NONE", "NO")) if agent else None,
        "year": _year(_text(dataset, "StudyDate")) or _year(_text(dataset, "AcquisitionDate")),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _age(dataset: Any) -> int | None:
    """PatientAge (``045Y``, ``018M``, ``003W``, ``010D``), else study minus birth date; whole years."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", _text(dataset, "PatientAge").upper())
    if match:
        per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}[match[2]]
        return min(int(int(match[1]) / per_year), OLDEST_YEARS)
    born, seen = _text(dataset, "PatientBirthDate"), _text(dataset, "StudyDate")
    if _year(born) is None or _year(seen) is None or len(born) != 8 or len(seen) != 8:
        return None
    years = int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])
    return min(years, OLDEST_YEARS) if years >= 0 else None


def _year(date: str) -> int | None:
    return int(date[:4]) if re.match(r"(19|20)\d\d", date) else None


def _device(text: str) -> str | None:
    """A maker's or model's name as one short word group; anything long or with odd characters is cut, since it is no such name."""
    return re.sub(r"[^A-Za-z0-9 ._+/()-]+", " ", text).strip()[:40].strip() or None


def _parts(dataset: Any) -> dict[str, str]:
    component = [part.strip().upper() for part in _items(dataset, "ImageType") if part.strip().upper() in _COMPONENTS]
    parts = {
        "echo": "/".join(filter(None, (_text(dataset, "EchoNumbers"), _text(dataset, "EchoTime")))),
        "b": _b_value(dataset),
        "time": _text(dataset, "TemporalPositionIdentifier"),
        "component": component[0][:1] if component else _text(dataset, "ComplexImageComponent").upper()[:1],
    }
    return {name: value for name, value in parts.items() if value}


def _b_value(dataset: Any) -> str:
    """DiffusionBValue, or where Siemens (0019,100C) and GE (0043,1039, first number, offset by 1e9) keep it."""
    if _text(dataset, "DiffusionBValue"):
        return f"{float(dataset.DiffusionBValue):g}"
    if _text_at(dataset, 0x0019, 0x0010).startswith("SIEMENS MR"):
        return _text_at(dataset, 0x0019, 0x100C)
    if _text_at(dataset, 0x0043, 0x0010).startswith("GEMS_PARM"):
        number = re.match(r"\[?'?(\d+)", _text_at(dataset, 0x0043, 0x1039))
        return str(int(number[1]) % 10**9) if number else ""
    return ""


def _text_at(dataset: Any, group: int, element: int) -> str:
    """Text of a private element; unknown ones come as bytes."""
    if (group, element) not in dataset:
        return ""
    value = dataset[group, element].value
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value).strip()


def _padding(dataset: Any) -> tuple[int, int] | None:
    value = _first(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _first(dataset, "PixelPaddingRangeLimit")
    ends = sorted((int(value), int(value if limit is None else limit)))
    return ends[0], ends[1]


def _first(dataset: Any, name: str) -> Any:
    """The value, or the first of several; None where absent or empty."""
    value = dataset.get(name)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return None if value in ("", b"") else value
    return value[0] if len(value) else None


def _items(dataset: Any, name: str) -> tuple[str, ...]:
    value = dataset.get(name)
    if value is None:
        return ()
    return tuple(str(part) for part in value) if isinstance(value, Sequence) and not isinstance(value, str) else (str(value),)


def _text(dataset: Any, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _number(dataset: Any, name: str) -> float | None:
    value = _first(dataset, name)
    return float(value) if value is not None and np.isfinite(float(value)) else None


def _floats(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(name)
    if value is None or isinstance(value, (str, float)) or len(value) != count:
        return None
    numbers = tuple(float(part) for part in value)
    return numbers if all(np.isfinite(numbers)) else None


def _triple(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])


def _pair(values: tuple[float, ...] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _exact(dataset: Any, name: str, default: int) -> Fraction:
    """A decimal string as the fraction it writes: 0.1 is 1/10, not its nearest binary number."""
    value = _first(dataset, name)
    return Fraction(default) if value is None else Fraction(str(value).strip())
