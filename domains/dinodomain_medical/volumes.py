"""The domains ``ct`` and ``mri``: 3-D volumes from NIfTI, NRRD, MHA and DICOM series.

Does not read single slices: 2-D PNG, TIFF or JPEG exports of CT or MR have lost scale and geometry. Every volume is one channel;
contrasts are not registered or stacked. DICOM is recognised by content, whatever the file is called, and
gathered by series, wherever its files lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource
from dinodomain.types import Layout, Record, Select, SourceRef, TileInfo
from dinodomain_medical import dicom_series, itk, nifti
from dinodomain_medical.dicom_header import KEY_FIELDS, Header
from dinodomain_medical.discovery import at_hand, discover
from dinodomain_medical.geometry import to_canonical
from dinodomain_medical.modalities import Modality
from dinodomain_medical.mr_names import mr_channel
from dinodomain_medical.opened import volume_record
from dinodomain_medical.sources import (
    Gathered,
    Handlers,
    Item,
    digest_of,
    folder_keys,
    keys_of,
    label_refusal,
    looks_like_label,
    stem_of,
)
from dinodomain_medical.values import check_hounsfield, check_not_mask

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(slots=True, kw_only=True)
class VolumeDomain:
    """A domain of medical volumes; see ``dinodomain.domain.Domain`` for the members.

    Attributes:
        modality: What tells CT from MR.
    """

    modality: Modality
    name: str = field(init=False)
    channels: Mapping[str, Channel] = field(init=False)
    ndim: int = field(init=False, default=3)
    layout: Layout = field(init=False, default="window")
    personal: bool = field(init=False, default=True)
    extra: str = field(init=False, default="medical")
    default_select: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.name, self.channels = self.modality.name, self.modality.channels

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Finds volumes by headers: one per NIfTI, NRRD or MHA file, one per DICOM series and folder.

        Names that look like label maps (``sources.DEFAULT_EXCLUDE``) are yielded as refusals, unless an include glob names them.

        Raises:
            UserError: The source does not exist.
        """

        def on_file(root: Path, path: Path, relative: str) -> Item | None:
            return self._file(root, path, relative, select)

        def on_series(gathered: Gathered) -> Iterable[tuple[str, Item]]:
            return self._gathered(gathered, select)

        handlers = Handlers(
            domain=self.name,
            formats="NIfTI, NRRD, MHA or DICOM",
            modalities=self.modality.dicom,
            file=on_file,
            dicom=on_series,
            by_series=True,
        )
        return discover(source, select, handlers)

    def read(self, ref: SourceRef) -> Record:
        """Opens one volume: stored integers kept, closest-canonical axes, C-order (1, z, y, x).

        Raises:
            BadSource: It is damaged, irregular, or no image of this domain.
        """
        with at_hand(ref) as local:
            path = Path(local.uris[0])
            if nifti.is_nifti(path):
                return self._from_file(nifti.NiftiVolume(path), path)
            if itk.is_itk(path):
                return self._from_file(itk.ItkVolume(path), path)
            return self._from_series(local)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """Stored values [B, C, ...] to float32 in the unit range, on the pixels' device."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """Anatomical axes, no flips."""
        return self.modality.policy

    def probes(self) -> Sequence[ProbeSpec]:
        """Public tasks with labels."""
        return self.modality.probes

    def _file(self, root: Path, path: Path, relative: str, select: Select) -> Item | None:
        """A NIfTI, NRRD or MHA file as a source; None for all others."""
        if not (nifti.is_nifti(path) or itk.is_itk(path)):
            return None
        if looks_like_label(relative, select):
            return label_refusal(path)
        try:
            (nifti if nifti.is_nifti(path) else itk).check_header(path)
        except BadSource as refusal:
            return refusal
        digest = digest_of(root, [path])
        return SourceRef(source_id=relative, uris=(str(path),), keys=keys_of(root, relative), unit=None, digest=digest, select=select)

    def _gathered(self, gathered: Gathered, select: Select) -> Iterator[tuple[str, Item]]:
        """The volumes among the files of one series."""
        parts = dicom_series.group(gathered.headers)
        for series in parts:
            alone = gathered.alone and len(parts) == 1
            source_id = (gathered.place or f"./{gathered.root.name}") + ("" if alone else _suffix(series))
            yield source_id, self._series(gathered, source_id, series, select)

    def _series(self, gathered: Gathered, source_id: str, series: dicom_series.Series, select: Select) -> Item:
        uri = gathered.uri + "".join(source_id.partition("#")[1:])
        try:
            dicom_series.check(series, modalities=self.modality.dicom, domain=self.name, uri=uri)
        except BadSource as refusal:
            return refusal
        paths = [header.path for header in series.headers]
        first = series.headers[0].keys
        keys = folder_keys(gathered.root, gathered.place) | {name: first[name] for name in KEY_FIELDS if name in first}
        return SourceRef(
            source_id=source_id,
            uris=tuple(map(str, paths)),
            keys=keys,
            unit=first.get("PatientID"),
            digest=digest_of(gathered.root, paths),
            select=select,
        )

    def _from_file(self, volume: nifti.NiftiVolume | itk.ItkVolume, path: Path) -> Record:
        check_not_mask(volume.oriented.array, str(path))
        if self.modality.hounsfield:
            check_hounsfield(volume.oriented.array, volume.scale, volume.offset, str(path))
        channel = "ct" if self.modality.hounsfield else mr_channel(stem_of(path.name))
        return volume_record(
            volume.oriented, channel=channel, scale=volume.scale, offset=volume.offset, fields=volume.fields, stages=volume.stages
        )

    def _from_series(self, ref: SourceRef) -> Record:
        paths = [Path(uri) for uri in ref.uris]
        uri = str(paths[0].parent)
        volume = dicom_series.read_series(paths, uri, hounsfield=self.modality.hounsfield)
        oriented = to_canonical(volume.array.T, volume.affine, uri)
        valid = None if volume.valid is None else to_canonical(volume.valid.T, volume.affine, uri).array
        measured = oriented.array if valid is None else oriented.array[valid == 0]
        if measured.size == 0:
            raise BadSource(uri, "every voxel holds the padding value", "exclude it")
        check_not_mask(measured, uri)
        if self.modality.hounsfield:
            check_hounsfield(measured, volume.scale, volume.offset, uri)
        return volume_record(
            oriented,
            channel=self._dicom_channel(volume.header),
            scale=volume.scale,
            offset=volume.offset,
            fields=volume.header.fields,
            stages=volume.stages,
            nodata=volume.nodata,
            valid=valid,
        )

    def _dicom_channel(self, header: Header) -> str:
        if self.modality.hounsfield:
            return "ct"
        words = [header.description, *(part for part in header.image_type if part == "ADC")]
        if header.parts.get("b", "0") not in ("0", ""):
            words.append(f"b{header.parts['b']}")
        return mr_channel(" ".join(words), contrast_agent=bool(header.fields.get("contrast")))


def _suffix(series: dicom_series.Series) -> str:
    return f"#{series.uid or 'no-uid'}" + (f";{series.label}" if series.label else "")
