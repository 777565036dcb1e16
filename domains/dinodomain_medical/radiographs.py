"""The domain ``xray``: single DICOM frames (CR, DX) and greyscale PNG, JPEG, TIFF; each image is one tile.

Raw and processed pictures are two quantities: the default filter takes those for presentation, and a store holds both only by key.
How a frame becomes pixels is told in ``projection``. Does not read mammography (its own policy and probes would be needed),
fluoroscopy, or multi-frame objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource
from dinodomain.types import Layout, Record, Select, SourceRef, TileInfo
from dinodomain_medical import images
from dinodomain_medical.dicom_header import Header
from dinodomain_medical.dicom_pixels import check_single_grey
from dinodomain_medical.discovery import at_hand, discover
from dinodomain_medical.modalities import Modality
from dinodomain_medical.projection import NAN, picture_record, quantity_of, read_projection
from dinodomain_medical.selection import HeaderFilter, check_modality
from dinodomain_medical.series_source import digest_of_images, facts_of, instance_of, refused, unit_of
from dinodomain_medical.sources import Gathered, Handlers, Item, digest_of, keys_of, label_refusal, looks_like_label

if TYPE_CHECKING:
    from torch import Tensor

_SHAPES = tuple(
    name
    for kind in ("Shutter", "Collimator")
    for name in (
        f"{kind}Shape", f"{kind}LeftVerticalEdge", f"{kind}RightVerticalEdge", f"{kind}UpperHorizontalEdge", f"{kind}LowerHorizontalEdge",
        f"CenterOfCircular{kind}", f"RadiusOfCircular{kind}", f"VerticesOfThePolygonal{kind}",
    )
)  # fmt: skip
_MEANING = (
    "SOPClassUID", "PresentationIntentType", "PresentationLUTShape", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacingCalibrationType",
    "EstimatedRadiographicMagnificationFactor", "ViewPosition", "ImageLaterality", "Laterality", "PatientOrientation", *_SHAPES,
)  # fmt: skip
_FACTS = ("ViewPosition", "ImageLaterality", "Laterality", "PresentationIntentType")


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
    default_select: str = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.channels, self.default_select = self.modality.name, self.modality.channels, self.modality.select

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Finds images by headers: one per file, DICOM recognised by content.

        Raises:
            UserError: The source does not exist, or ``select.where`` names what is no DICOM field.
        """
        header_filter = HeaderFilter(select.where)

        def on_file(root: Path, path: Path, relative: str) -> Item | None:
            return _picture(root, path, relative, select) if images.is_image(path) else None

        def on_dicom(gathered: Gathered) -> Iterable[tuple[str, Item]]:
            return [(gathered.place, self._dicom(gathered, select, header_filter))]

        handlers = Handlers(
            domain=self.name,
            formats="DICOM CR or DX, PNG, JPEG or TIFF",
            modalities=self.modality.dicom,
            file=on_file,
            dicom=on_dicom,
            by_series=False,
            names=tuple(sorted({*header_filter.names, *_MEANING})),
        )
        return discover(source, select, handlers)

    def read(self, ref: SourceRef) -> Record:
        """Opens one image: stored integers kept, C-order (1, y, x), spacing (y, x) in mm or NaN.

        Raises:
            BadSource: It is damaged, coloured, or no radiograph.
        """
        with at_hand(ref) as local:
            path = Path(local.uris[0])
            return _from_picture(path) if images.is_image(path) else read_projection(path, voi=ref.select.voi)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """Stored values [B, C, ...] to float32 in the unit range, on the pixels' device."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """Anatomical axes, no flips."""
        return self.modality.policy

    def probes(self) -> Sequence[ProbeSpec]:
        """Public tasks with labels."""
        return self.modality.probes

    def _dicom(self, gathered: Gathered, select: Select, header_filter: HeaderFilter) -> Item:
        header, path = gathered.headers[0], gathered.headers[0].path
        taken, left = header_filter.sort_out([header], str(path))
        try:
            if not taken:
                return left[0]
            check_modality(header, str(path), self.name, self.modality.dicom)
            check_single_grey(header)
        except BadSource as refusal:
            return refused(refusal, header)
        facts = {name: value for name in _FACTS if (value := header.values.get(name)) is not None}
        intent, sop_class = (str(header.values.get(name) or "") for name in ("PresentationIntentType", "SOPClassUID"))
        return SourceRef(
            source_id=gathered.place,
            uris=(str(path),),
            keys=keys_of(gathered.root, gathered.place) | header.keys,
            unit=unit_of(header.keys),
            digest=_digest(header),
            select=select,
            instance=instance_of([header]),
            quantity=quantity_of(intent, sop_class, header.modality),
            facts={**facts_of([header]), **facts},
        )


def _digest(header: Header) -> str:
    """Besides what every DICOM image has: all that decides the order of grey, validity, spacing and view of a radiograph."""
    values = [(name, header.values.get(name)) for name in _MEANING]
    return hashlib.sha256(repr((digest_of_images([header], "xray"), values)).encode()).hexdigest()


def _picture(root: Path, path: Path, relative: str, select: Select) -> Item:
    if looks_like_label(relative, select):
        return label_refusal(path)
    rows, columns, item_bytes = images.check_header(path)
    return SourceRef(
        source_id=relative,
        uris=(str(path),),
        keys=keys_of(root, relative),
        unit=None,
        digest=digest_of(root, [path]),
        select=select,
        facts={"bytes_in": path.stat().st_size, "bytes_out": rows * columns * item_bytes, "shape": (columns, rows)},
    )


def _from_picture(path: Path) -> Record:
    grey = images.read_grey(path)
    return picture_record(grey.array, spacing=(NAN, NAN), stages=grey.stages, valid=grey.valid)
