"""The domains ``ct`` and ``mri``: 3-D volumes from NIfTI, NRRD, MHA and DICOM series.

Does not read single slices: 2-D PNG, TIFF or JPEG exports of CT or MR have lost scale and geometry. A volume is one channel; channels
of one frame of reference are stacked where that was asked for, and nothing is ever registered. DICOM is recognised by content, whatever
the file is called, and gathered by series, wherever its files lie. What the header filter leaves out, and all but one reconstruction of
an acquisition where that is asked for, become rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource
from dinodomain.types import Layout, Record, Select, SourceRef, TileInfo
from dinodomain_medical import dicom_series, volume_files
from dinodomain_medical.dicom_header import Header
from dinodomain_medical.discovery import at_hand, discover
from dinodomain_medical.geometry import to_canonical
from dinodomain_medical.modalities import Modality
from dinodomain_medical.mr_names import dicom_channel
from dinodomain_medical.opened import VolumeFile, volume_record
from dinodomain_medical.selection import HeaderFilter, Reconstruction, check_modality, kept, left_out_row, reconstruction_of
from dinodomain_medical.series_source import frames_to_read, refused, series_ref
from dinodomain_medical.sources import (
    Gathered,
    Handlers,
    Item,
)
from dinodomain_medical.stack_grid import stack_records
from dinodomain_medical.stacking import Members, check_stack, stacked
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
    default_select: str = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.channels, self.default_select = self.modality.name, self.modality.channels, self.modality.select

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Finds volumes by headers: one per NIfTI, NRRD or MHA file, one per DICOM series and folder.

        Names that look like label maps (``sources.DEFAULT_EXCLUDE``) are yielded as refusals, unless an include glob names them.

        Raises:
            UserError: The source does not exist, or ``select.where`` names what is no DICOM field.
        """
        if select.stack:
            check_stack(select, self.channels)
        header_filter = HeaderFilter(select.where)
        made: dict[str, Reconstruction] = {}

        def on_file(root: Path, path: Path, relative: str) -> Item | None:
            return volume_files.find(root, path, relative, select, self.modality)

        def on_series(gathered: Gathered) -> Iterable[tuple[str, Item]]:
            return self._gathered(gathered, select, header_filter, made)

        handlers = Handlers(
            domain=self.name,
            formats="NIfTI, NRRD, MHA or DICOM",
            modalities=self.modality.dicom,
            file=on_file,
            dicom=on_series,
            by_series=True,
            names=header_filter.names,
        )
        items: Iterable[Item] = discover(source, select, handlers)
        if select.one_per_acquisition:
            items = _one_per_acquisition(items, select, made)
        if select.frames == "split":
            items = volume_files.frames_apart(items, self.modality)
        return iter(stacked(items, select) if select.stack else items)

    def read(self, ref: SourceRef) -> Record:
        """Opens one volume: stored integers kept, closest-canonical axes, C-order (1, z, y, x).

        Raises:
            BadSource: It is damaged, irregular, or no image of this domain.
        """
        if isinstance(ref.handle, Members):
            records = [self.read(member) for member in ref.handle.refs]
            return stack_records(records, ref.select.stack, ref.select.grid, ref.source_id)
        with at_hand(ref) as local:
            if isinstance(ref.handle, VolumeFile):
                return volume_files.open_file(local, self.modality)
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

    def _gathered(
        self, gathered: Gathered, select: Select, header_filter: HeaderFilter, made: dict[str, Reconstruction]
    ) -> Iterator[tuple[str, Item]]:
        """The volumes among the images of one series, and rows for what is left out or refused."""
        place = gathered.place or f"./{gathered.root.name}"
        uid = gathered.headers[0].keys.get("SeriesInstanceUID") or "no-uid"
        taken, left = header_filter.sort_out(gathered.headers, gathered.uri if gathered.alone else f"{gathered.uri}#{uid}")
        for row in left:
            yield f"{place}#{uid}", row
        parts = dicom_series.group(taken)
        refused_frames: set[dicom_series.SplitKey] = set()
        for series in parts:
            alone = gathered.alone and len(parts) == 1
            source_id = place + ("" if alone else _suffix(series.uid, series.label))
            if series.frames > 1 and select.frames == "refuse":
                if series.volume_key not in refused_frames:
                    refused_frames.add(series.volume_key)
                    yield source_id, self._four_dimensional(gathered, series)
                continue
            yield source_id, self._series(gathered, source_id, series, select, made)

    def _four_dimensional(self, gathered: Gathered, series: dicom_series.Series) -> Item:
        uri = gathered.uri + _suffix(series.uid, series.volume_label)
        try:
            self._check(series, uri, Select())
        except BadSource as refusal:
            return refused(refusal, series.headers[0])
        reason = f"a 4-D series: {series.frames} volumes of one place ({series.frame_names})"
        return refused(BadSource(uri, reason, "set ingest.frames=split to take each as a source, or leave it out"), series.headers[0])

    def _check(self, series: dicom_series.Series, uri: str, select: Select) -> None:
        check_modality(series.headers[0], uri, self.name, self.modality.dicom)
        dicom_series.check(series, uri=uri, hounsfield=self.modality.hounsfield, irregular=select.irregular)

    def _series(
        self, gathered: Gathered, source_id: str, series: dicom_series.Series, select: Select, made: dict[str, Reconstruction]
    ) -> Item:
        uri = gathered.uri + "".join(source_id.partition("#")[1:])
        try:
            self._check(series, uri, select)
        except BadSource as refusal:
            return refused(refusal, series.headers[0])
        if select.one_per_acquisition:
            reconstruction = reconstruction_of(series)
            if reconstruction is not None:
                made[source_id] = reconstruction
        channel = self._dicom_channel(series.headers[0])
        ref = series_ref(gathered, source_id, series, select, channel=channel, hounsfield=self.modality.hounsfield)
        known = {"channel": channel, "frame_of_reference": series.headers[0].frame_of_reference}
        return replace(ref, facts={**ref.facts, **known})

    def _from_series(self, ref: SourceRef) -> Record:
        uri = str(Path(ref.uris[0]).parent)
        headers = dicom_series.headers_of(ref.uris, frames_to_read(ref))
        volume = dicom_series.read_series(headers, uri, hounsfield=self.modality.hounsfield, irregular=ref.select.irregular)
        oriented = to_canonical(volume.array.T, volume.affine, uri)
        valid = None if volume.valid is None else to_canonical(volume.valid.T, volume.affine, uri).array
        measured = oriented.array if valid is None else oriented.array[valid == 0]
        if measured.size == 0:
            raise BadSource(uri, "every voxel holds the padding value", "exclude it")
        check_not_mask(measured, uri)
        if self.modality.hounsfield:
            check_hounsfield(measured, volume.scale, volume.offset, uri)
        channel = self._dicom_channel(volume.header)
        b_value = {"b_value": float(volume.header.parts["b"])} if channel.startswith("DWI-") else {}
        return volume_record(
            oriented,
            channel=channel,
            scale=volume.scale,
            offset=volume.offset,
            fields={**volume.header.fields, **volume.fields, **b_value},
            stages=volume.stages,
            nodata=volume.nodata,
            valid=valid,
            acquired=volume.header.acquired,
            warnings=volume.warnings,
        )

    def _dicom_channel(self, header: Header) -> str:
        if self.modality.hounsfield:
            return "ct"
        parts, b_value = header.parts, header.parts.get("b")
        return dicom_channel(
            header.description,
            kind=parts.get("kind", ""),
            component=parts.get("component", ""),
            contrast_agent=bool(header.fields.get("contrast")),
            b_value=float(b_value) if b_value else None,
            term=header.acquisition_contrast,
        )


def _suffix(uid: str, label: str) -> str:
    return f"#{uid or 'no-uid'}" + (f";{label}" if label else "")


def _one_per_acquisition(items: Iterable[Item], select: Select, made: Mapping[str, Reconstruction]) -> Iterator[Item]:
    """Needs all items first: the commonest kernel is that of the whole source."""
    assert select.one_per_acquisition != ""
    found = list(items)
    volumes = {item.source_id: made[item.source_id] for item in found if isinstance(item, SourceRef) and item.source_id in made}
    lost = kept(volumes, select.one_per_acquisition)
    for item in found:
        if isinstance(item, SourceRef) and item.source_id in lost:
            yield left_out_row(item, select.one_per_acquisition, volumes[lost[item.source_id]])
        else:
            yield item
