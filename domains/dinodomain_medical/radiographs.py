"""The domain ``xray``: single DICOM frames (CR, DX) and greyscale PNG, JPEG, TIFF; each image is one tile.

The modality LUT is always applied, a VOI window never. MONOCHROME1 is turned once, so that dense tissue is bright everywhere, and
the stages say so. Does not read mammography, fluoroscopy, multi-frame objects, overlays or burned-in shutters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource
from dinodomain.types import Layout, Record, Select, SourceRef, TileInfo
from dinodomain_medical import images
from dinodomain_medical.dicom_header import FieldValue
from dinodomain_medical.dicom_pixels import Frame, check_single_grey, decode, invert, shows_low_as_white
from dinodomain_medical.discovery import at_hand, discover
from dinodomain_medical.modalities import Modality
from dinodomain_medical.opened import Cut, CutValid
from dinodomain_medical.series_source import digest_of_images, instance_of, unit_of
from dinodomain_medical.sources import Gathered, Handlers, Item, digest_of, keys_of, label_refusal, looks_like_label
from dinodomain_medical.values import storable

if TYPE_CHECKING:
    from torch import Tensor

_NAN = float("nan")
_VIEWS = frozenset({"AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO"})
_SIDES = frozenset({"L", "R", "B", "U"})
_INTENTS = frozenset({"FOR PROCESSING", "FOR PRESENTATION"})
_SIDE_LETTERS = re.compile("[RLAPHF]{1,3}")
_CALIBRATIONS = frozenset({"GEOMETRY", "FIDUCIAL"})


@final
@dataclass(slots=True, kw_only=True)
class RadiographDomain:
    """A domain of single projection images; see ``dinodomain.domain.Domain`` for the members.

    Attributes:
        modality: What it reads and declares.
    """

    modality: Modality
    name: str = field(init=False)
    channels: Mapping[str, Channel] = field(init=False)
    ndim: int = field(init=False, default=2)
    layout: Layout = field(init=False, default="whole")
    personal: bool = field(init=False, default=True)
    extra: str = field(init=False, default="medical")
    default_select: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.name, self.channels = self.modality.name, self.modality.channels

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Finds images by headers: one per file, DICOM recognised by content.

        Raises:
            UserError: The source does not exist.
        """

        def on_file(root: Path, path: Path, relative: str) -> Item | None:
            return self._picture(root, path, relative, select) if images.is_image(path) else None

        def on_dicom(gathered: Gathered) -> Iterable[tuple[str, Item]]:
            return [(gathered.place, self._dicom(gathered, select))]

        handlers = Handlers(
            domain=self.name,
            formats="DICOM CR or DX, PNG, JPEG or TIFF",
            modalities=self.modality.dicom,
            file=on_file,
            dicom=on_dicom,
            by_series=False,
        )
        return discover(source, select, handlers)

    def read(self, ref: SourceRef) -> Record:
        """Opens one image: stored integers kept, C-order (1, y, x), spacing (y, x) in mm or NaN.

        Raises:
            BadSource: It is damaged, coloured, or no radiograph.
        """
        with at_hand(ref) as local:
            path = Path(local.uris[0])
            return _from_picture(path) if images.is_image(path) else _from_dicom(path)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """Stored values [B, C, ...] to float32 in the unit range, on the pixels' device."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """Anatomical axes, no flips."""
        return self.modality.policy

    def probes(self) -> Sequence[ProbeSpec]:
        """Public tasks with labels."""
        return self.modality.probes

    def _picture(self, root: Path, path: Path, relative: str, select: Select) -> Item:
        if looks_like_label(relative, select):
            return label_refusal(path)
        images.check_header(path)
        return SourceRef(
            source_id=relative,
            uris=(str(path),),
            keys=keys_of(root, relative),
            unit=None,
            digest=digest_of(root, [path]),
            select=select,
        )

    def _dicom(self, gathered: Gathered, select: Select) -> Item:
        header, path, relative = gathered.headers[0], gathered.headers[0].path, gathered.place
        if header.modality not in self.modality.dicom:
            wanted = ", ".join(self.modality.dicom)
            raise BadSource(
                str(path),
                f"modality {header.modality or 'not stated'} is not read by domain {self.name!r} ({wanted})",
                "exclude it, or ingest it with its own domain",
            )
        check_single_grey(header)
        return SourceRef(
            source_id=relative,
            uris=(str(path),),
            keys=keys_of(gathered.root, relative) | header.keys,
            unit=unit_of(header.keys),
            digest=digest_of_images([header], "xray"),
            select=select,
            instance=instance_of([header]),
        )


def _from_picture(path: Path) -> Record:
    grey = images.read_grey(path)
    return _record(grey.array, spacing=(_NAN, _NAN), stages=grey.stages, valid=grey.valid)


def _from_dicom(path: Path) -> Record:
    frame = decode(path)
    stages = list(frame.stages)
    array = frame.stored
    if shows_low_as_white(frame):
        array = invert(frame)
        stages.append("MONOCHROME1 inverted")
    stored = storable(array, str(path))
    spacing, spacing_fields = _spacing(frame.dataset)
    fields = frame.header.fields | spacing_fields | _view_fields(frame)
    return _record(
        stored.array, spacing=spacing, stages=(*stages, *stored.stages), scale=float(frame.slope), offset=float(frame.offset), fields=fields
    )


def _spacing(dataset: Any) -> tuple[tuple[float, float], dict[str, FieldValue]]:
    """PixelSpacing (in the patient, if calibrated) before ImagerPixelSpacing (at the detector), and which of them it was."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = dataset.get(name)
        if value is not None and len(value) == 2 and min(map(float, value)) > 0:
            fields: dict[str, FieldValue] = {"spacing_type": name}
            calibration = str(dataset.get("PixelSpacingCalibrationType") or "").upper()
            if name == "PixelSpacing" and calibration in _CALIBRATIONS:
                fields["spacing_calibration"] = calibration
            return (float(value[0]), float(value[1])), fields
    return (_NAN, _NAN), {}


def _view_fields(frame: Frame) -> dict[str, FieldValue]:
    """View, side and intent where they hold one of the defined terms; nothing else of these fields is kept."""
    dataset = frame.dataset
    found = {
        "view": (str(dataset.get("ViewPosition") or "").upper(), _VIEWS),
        "laterality": (str(dataset.get("ImageLaterality") or dataset.get("Laterality") or "").upper(), _SIDES),
        "intent": (str(dataset.get("PresentationIntentType") or "").upper(), _INTENTS),
    }
    kept: dict[str, FieldValue] = {name: value for name, (value, terms) in found.items() if value in terms}
    sides = dataset.get("PatientOrientation")  # where columns and rows run to
    if sides is not None and not isinstance(sides, str) and all(_SIDE_LETTERS.fullmatch(str(side)) for side in sides) and len(sides) == 2:
        kept["patient_orientation"] = "\\".join(map(str, sides))
    return kept


def _record(
    array: np.ndarray,
    *,
    spacing: tuple[float, float],
    stages: tuple[str, ...],
    scale: float = 1.0,
    offset: float = 0.0,
    fields: Mapping[str, FieldValue] | None = None,
    valid: np.ndarray | None = None,
) -> Record:
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
        fields=fields or {},
        stages=stages,
    )
