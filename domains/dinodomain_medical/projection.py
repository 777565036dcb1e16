"""One CR or DX frame as a Record: order of grey, values of interest, what is no image in it, spacing, view and side.

The modality LUT is always applied, a VOI LUT or window only by key. Low-is-white pictures are turned once, so that dense tissue is bright
everywhere. Overlay planes are never drawn. Padding and shutters become "no data", what the collimator kept from the beam "outside the
body"; their pixels stay as they are. Spacing is taken as it is stated, and the index says in which plane it was measured: a magnification
factor is an estimate for one depth in the patient, so it is kept beside, not applied.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import BadSource
from dinodomain.types import NODATA, OUTSIDE_BODY, Record
from dinodomain_medical.dicom_header import FieldValue
from dinodomain_medical.dicom_pixels import Frame, decode, invert, shows_low_as_white
from dinodomain_medical.opened import Cut, CutValid
from dinodomain_medical.shutters import aperture
from dinodomain_medical.values import storable
from dinodomain_medical.voi import apply_voi

NAN = float("nan")

FOR_PROCESSING, FOR_PRESENTATION = "FOR PROCESSING", "FOR PRESENTATION"
_INTENT_OF_CLASS = {"1.2.840.10008.5.1.4.1.1.1.1": FOR_PRESENTATION, "1.2.840.10008.5.1.4.1.1.1.1.1": FOR_PROCESSING}
_COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"

_VIEWS = frozenset({"AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"})
_SIDES = frozenset({"L", "R", "B", "U"})
_CALIBRATIONS = frozenset({"GEOMETRY", "FIDUCIAL"})
_DIRECTION = re.compile(r"[ALRPHF]{1,3}")

# CID 4010 "DX View", SNOMED CT codes and the SNOMED-RT ones that older files write.
_VIEW_CODES = {
    "AP": ("399348003", "R-10206"),
    "PA": ("272479007", "R-10214", "R-40888"),
    "LL": ("399173006", "R-10236"),
    "RL": ("399198007", "R-10232"),
    "LATERAL": ("399067008", "R-102CD"),
    "FRONTAL": ("399033003", "R-10202"),
    "AP OBLIQUE": ("399312000", "R-10208"),
    "PA OBLIQUE": ("399059000", "R-10216"),
    "LAO": ("399135007", "R-10220"),
    "RAO": ("399356000", "R-40985"),
    "LPO": ("399006002", "R-10212"),
    "RPO": ("399038007", "R-10210"),
    "OBLIQUE": ("399182000", "R-102C1"),
    "AXIAL": ("399061009", "R-10241"),
}
# CID 4009 "DX Anatomy Imaged", to the defined terms of Body Part Examined.
_REGION_CODES = {
    "CHEST": ("816094009", "51185008", "T-D3000"),
    "ABDOMEN": ("818981001", "113345001", "T-D4000"),
    "PELVIS": ("816092008", "12921003", "T-D6000"),
    "HAND": ("85562004", "T-D8700"),
    "FOOT": ("56459004", "T-D9700"),
    "KNEE": ("72696002", "T-D9200"),
    "SKULL": ("89546000", "T-11100"),
    "SHOULDER": ("16982005", "T-D2220"),
    "HIP": ("24136001", "T-15710"),
    "ANKLE": ("70258002", "T-15750"),
    "ELBOW": ("16953009", "T-15430"),
    "WRIST": ("74670003", "T-15460"),
    "CSPINE": ("122494005", "T-11501"),
    "TSPINE": ("122495006", "T-11502"),
    "LSPINE": ("122496007", "T-11503"),
    "SPINE": ("421060004", "T-D04FF"),
    "FEMUR": ("71341001", "T-12710"),
    "HUMERUS": ("85050009", "T-12410"),
    "FOREARM": ("14975008", "T-D8500"),
    "LEG": ("30021000", "T-D9400"),
    "RIB": ("113197003", "T-11300"),
    "CLAVICLE": ("51299004", "T-12310"),
    "FINGER": ("7569003", "T-D8800"),
    "THUMB": ("76505004", "T-D8810"),
    "TOE": ("29707007", "T-D9800"),
    "HEAD": ("69536005", "T-D1100"),
    "NECK": ("45048000", "T-D1600"),
}
_VIEW_OF = {code: view for view, codes in _VIEW_CODES.items() for code in codes}
_REGION_OF = {code: region for region, codes in _REGION_CODES.items() for code in codes}


def intent_of(stated: str, sop_class: str) -> str:
    """Presentation intent: the attribute, or else the storage class, which for DX says the same; empty where neither does."""
    term = stated.strip().upper()
    return term if term in (FOR_PROCESSING, FOR_PRESENTATION) else _INTENT_OF_CLASS.get(sop_class, "")


def quantity_of(stated: str, sop_class: str, modality: str) -> str:
    """What keeps raw and processed pictures apart in a store.

    A CR image states no intent as a rule: its class knows only pictures that were processed for display, so it counts as such (the
    field ``intent`` stays absent). A DX image without intent breaks the standard, and is like nothing else.
    """
    known = intent_of(stated, sop_class)
    if known:
        return known
    return FOR_PRESENTATION if modality == "CR" or sop_class == _COMPUTED_RADIOGRAPHY else "presentation intent not stated"


def read_projection(path: Path, *, voi: bool) -> Record:
    """Opens one file: C-order (1, y, x), spacing (y, x) in mm or NaN.

    Args:
        path: The file.
        voi: Whether the VOI LUT or window is applied.

    Raises:
        BadSource: It is damaged, coloured, or nothing of it is an image.
    """
    uri = str(path)
    frame = decode(path)
    warnings: list[str] = []
    grey = _grey(frame, uri, voi=voi, warnings=warnings)
    spacing = _spacing(frame.dataset)
    valid, hidden_stages = _valid(frame, spacing, warnings)
    if valid is not None and valid.all():
        raise BadSource(uri, "padding, shutter and collimator leave nothing of the image", "repair the header, or exclude it")
    stored = storable(grey.array, uri)
    warnings.extend(_doubts(frame, spacing))
    return picture_record(
        stored.array,
        spacing=spacing.mm,
        stages=(*grey.stages, *stored.stages, *hidden_stages),
        scale=grey.scale,
        offset=grey.offset,
        fields=frame.header.fields | spacing.fields | _view_fields(frame),
        valid=valid,
        acquired=frame.header.acquired,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grey:
    array: np.ndarray
    scale: float
    offset: float
    stages: tuple[str, ...]


def _grey(frame: Frame, uri: str, *, voi: bool, warnings: list[str]) -> _Grey:
    """Modality LUT, then VOI, then the order of grey: the order of PS3.3 C.7.6.3.1.2 and PS3.4 N.2."""
    stages = list(frame.stages)
    low_as_white = shows_low_as_white(frame)
    shown = None
    if voi:
        shown = apply_voi(frame.stored * float(frame.slope) + float(frame.offset), frame.dataset, uri)
        if shown is None:
            warnings.append("no VOI LUT or window in its header; values are kept as they were measured")
    if shown is None:
        array, scale, offset = invert(frame) if low_as_white else frame.stored, float(frame.slope), float(frame.offset)
    else:
        stages.append(shown.stage)
        array, scale, offset = (shown.high - shown.array).astype(shown.array.dtype) if low_as_white else shown.array, 1.0, 0.0
    if low_as_white:
        stages.append("MONOCHROME1 inverted")
    return _Grey(array=array, scale=scale, offset=offset, stages=tuple(stages))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spacing:
    """Distance between rows and between columns, mm, what is said of it, and rows to columns for shapes drawn in pixels."""

    mm: tuple[float, float]
    fields: dict[str, FieldValue]

    @property
    def row_to_column(self) -> float:
        return 1.0 if math.isnan(self.mm[0]) else self.mm[0] / self.mm[1]


def _spacing(dataset: Any) -> _Spacing:
    """The spacing nearest to the patient, and the plane it was measured in (PS3.3 10.7.1.3).

    ``spacing_plane``: ``patient`` where PixelSpacing is calibrated, or differs from ImagerPixelSpacing; ``detector``; ``film``
    (NominalScannedPixelSpacing); or ``not stated``.
    """
    found = {name: _pair(dataset, name) for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")}
    calibration = str(dataset.get("PixelSpacingCalibrationType") or "").strip().upper()
    in_patient, at_detector = found["PixelSpacing"], found["ImagerPixelSpacing"]
    fields: dict[str, FieldValue] = {}
    name = next((name for name, value in found.items() if value is not None), None)
    if name is not None:
        fields["spacing_type"] = name
        fields["spacing_plane"] = {"ImagerPixelSpacing": "detector", "NominalScannedPixelSpacing": "film"}.get(name, "not stated")
    if in_patient is not None and calibration in _CALIBRATIONS:
        fields |= {"spacing_calibration": calibration, "spacing_plane": "patient"}
    elif in_patient is not None and at_detector is not None:
        same = np.allclose(in_patient, at_detector, rtol=1e-3, atol=0)
        fields["spacing_plane"] = "detector" if same else "patient"
    if in_patient is not None and at_detector is not None:
        fields |= {"detector_row_mm": at_detector[0], "detector_column_mm": at_detector[1]}
    factor = dataset.get("EstimatedRadiographicMagnificationFactor")
    if factor is not None and factor != "" and 1 <= float(factor) <= 10:
        fields["magnification"] = float(factor)
    mm = None if name is None else found[name]
    return _Spacing(mm=(NAN, NAN) if mm is None else mm, fields=fields)


def _pair(dataset: Any, name: str) -> tuple[float, float] | None:
    value = dataset.get(name)
    if value is None or isinstance(value, (str, float, int)) or len(value) != 2:
        return None
    first, second = float(value[0]), float(value[1])
    return (first, second) if 0 < first < 1e3 and 0 < second < 1e3 else None


def _valid(frame: Frame, spacing: _Spacing, warnings: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Bit field of padding and shutter (no data) and collimator (outside the body), or None where all is image."""
    shape = (frame.stored.shape[0], frame.stored.shape[1])
    shutter = aperture(frame.dataset, "Shutter", shape, spacing.row_to_column)
    collimator = aperture(frame.dataset, "Collimator", shape, spacing.row_to_column)
    warnings.extend((*shutter.warnings, *collimator.warnings))
    valid, stages = np.zeros(shape, dtype=np.uint8), []
    for name, mask, bit in (
        ("padding", _padding(frame), NODATA),
        (f"{' and '.join(shutter.shapes)} shutter", shutter.hidden, NODATA),
        (f"{' and '.join(collimator.shapes)} collimator", collimator.hidden, OUTSIDE_BODY),
    ):
        if mask is not None and mask.any():
            valid[mask] |= np.uint8(bit)
            stages.append(f"{name} -> validity ({mask.mean():.1%} of the pixels)")
    return valid if valid.any() else None, stages


def _padding(frame: Frame) -> np.ndarray | None:
    """Where the values before any LUT are PixelPaddingValue, or between it and its limit."""
    if frame.header.padding is None:
        return None
    raw = frame.stored if frame.raw is None else frame.raw
    signed = bool(frame.dataset.get("PixelRepresentation"))
    # Some writers give a negative padding as unsigned; it wraps at the allocated width.
    low, high = sorted(value - 65536 if signed and value > 32767 else value for value in frame.header.padding)
    return np.asarray((raw >= low) & (raw <= high))


def _doubts(frame: Frame, spacing: _Spacing) -> list[str]:
    doubts = []
    dataset = frame.dataset
    shape, photometric = str(dataset.get("PresentationLUTShape") or "").strip().upper(), frame.header.photometric
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        doubts.append(f"{photometric} with PresentationLUTShape {shape}: the two contradict; it was turned so that low is dark")
    stated = str(dataset.get("PresentationIntentType") or "").strip().upper()
    by_class = _INTENT_OF_CLASS.get(str(dataset.get("SOPClassUID") or ""), stated)
    if stated in (FOR_PROCESSING, FOR_PRESENTATION) and by_class != stated:
        doubts.append(f"its header says {stated}, its storage class {by_class}; the header is taken")
    aspect = dataset.get("PixelAspectRatio")
    if math.isnan(spacing.mm[0]) and aspect is not None and len(aspect) == 2 and int(aspect[0]) != int(aspect[1]):
        doubts.append(f"pixels are not square (PixelAspectRatio {int(aspect[0])}:{int(aspect[1])}) and no spacing is stated")
    return doubts


def _view_fields(frame: Frame) -> dict[str, FieldValue]:
    """View, side, region, intent and direction where they hold defined terms or codes; nothing else of these fields is kept."""
    dataset = frame.dataset
    view, side = (str(dataset.get(name) or "").strip().upper() for name in ("ViewPosition", "ImageLaterality"))
    side = side or str(dataset.get("Laterality") or "").strip().upper()
    directions = [str(part).strip().upper() for part in dataset.get("PatientOrientation") or ()]
    found: dict[str, FieldValue] = {
        "view": view if view in _VIEWS else _coded(dataset, "ViewCodeSequence", _VIEW_OF),
        "laterality": side if side in _SIDES else None,
        "intent": intent_of(str(dataset.get("PresentationIntentType") or ""), str(dataset.get("SOPClassUID") or "")) or None,
        "patient_orientation": "\\".join(directions) if len(directions) == 2 and all(map(_DIRECTION.fullmatch, directions)) else None,
    }
    if "body_part" not in frame.header.fields:
        found["body_part"] = _coded(dataset, "AnatomicRegionSequence", _REGION_OF)
    return {name: value for name, value in found.items() if value is not None}


def _coded(dataset: Any, name: str, terms: dict[str, str]) -> str | None:
    items = dataset.get(name) or ()
    return next((terms[code] for item in items if (code := str(item.get("CodeValue") or "").strip()) in terms), None)


def picture_record(
    array: np.ndarray,
    *,
    spacing: tuple[float, float],
    stages: tuple[str, ...],
    scale: float = 1.0,
    offset: float = 0.0,
    fields: dict[str, FieldValue] | None = None,
    valid: np.ndarray | None = None,
    acquired: str | None = None,
    warnings: tuple[str, ...] = (),
) -> Record:
    """A picture (y, x) as a Record of one tile; ``valid`` is a bit field on the same axes."""
    return Record(
        channels=("xray",),
        shape=(1, *array.shape),
        dtype=array.dtype.name,
        spacing=spacing,
        affine=None,
        crs=None,
        scale=(scale,),
        offset=(offset,),
        nodata=(None,),
        layout="whole",
        read=Cut(np.ascontiguousarray(array)[None]),
        read_valid=None if valid is None else CutValid(valid),
        acquired=acquired,
        fields=fields or {},
        stages=stages,
        warnings=warnings,
    )
