"""The one Domain implementation of this package: a sensor plus the shared raster reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource
from dinodomain.types import Layout, Record, Select, SourceRef, TileInfo
from dinodomain_remote_sensing.files import candidates
from dinodomain_remote_sensing.header import EXTRA, digest
from dinodomain_remote_sensing.naming import check_select
from dinodomain_remote_sensing.scene import describe, record
from dinodomain_remote_sensing.sensor import Candidate, Sensor
from dinodomain_remote_sensing.sensors.sentinel1 import parse_sar

if TYPE_CHECKING:
    from torch import Tensor


@final
class RasterDomain:
    """A remote-sensing domain; stateless and picklable.

    Args:
        sensor: What its numbers mean.

    Attributes:
        name: Entry-point name.
        ndim: 2.
        layout: ``window``; rasters of at most 256 pixels a side and pictures without georeference are ``whole``.
        personal: False; places are not persons.
        extra: The extra that installs rasterio and pyproj.
        channels: Channels by name, in canonical order.
        default_select: Empty; every scene is taken.
    """

    ndim = 2
    layout: Layout = "window"
    personal = False
    extra = EXTRA
    default_select = ""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.name = sensor.name
        self.channels: Mapping[str, Channel] = sensor.channels

    def __repr__(self) -> str:
        return f"RasterDomain({self.name!r})"

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Finds scenes, stacks and pictures by their headers, sorted by source id; what must be refused comes as a BadSource.

        Label rasters (``files.DEFAULT_EXCLUDE``) are refused rows too, so that nobody wonders where they went.

        Args:
            source: A folder or one file.
            select: Globs, bands, grid.

        Raises:
            UserError: The source does not exist, or ``select`` names a band, grid or quantity that this sensor cannot have.
        """
        check_select(select, self.sensor)
        if select.sar:
            parse_sar(select.sar)
        return self._found(candidates(source, select, self.sensor), select)

    def _found(self, found: list[Candidate], select: Select) -> Iterator[SourceRef | BadSource]:
        for candidate in found:
            try:
                describe(candidate, select, self.sensor)
                yield _reference(candidate, select)
            except BadSource as refusal:
                yield refusal

    def read(self, ref: SourceRef) -> Record:
        """Opens one source.

        Raises:
            BadSource: It cannot be read as asked.
        """
        return record(_candidate(ref, self.sensor), ref.select, self.sensor)

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """[B, C, ...] stored values to float32 in the unit range; every sensor here is linear in its stored number."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """The sensor's augmentations."""
        return self.sensor.policy

    def probes(self) -> Sequence[ProbeSpec]:
        """Probes worth running."""
        return self.sensor.probes


def _reference(candidate: Candidate, select: Select) -> SourceRef:
    path, _, prefix = candidate.source_id.partition("#")
    is_file = len(candidate.rasters) == 1 and Path(candidate.rasters[0]).name == path.rpartition("/")[2]
    name = prefix or path.rpartition("/")[2]
    keys = {
        "path": candidate.source_id,
        "name": name,
        "stem": Path(name).stem if is_file else name.removesuffix(".SAFE"),
        "folder": path.rpartition("/")[2]
        if prefix
        else Path(candidate.folder).name
        if is_file
        else path.rpartition("/")[0].rpartition("/")[2],
    }
    files = {
        str(Path(uri).relative_to(candidate.folder)) if Path(uri).is_relative_to(candidate.folder) else Path(uri).name: uri
        for uri in candidate.uris
    }
    return SourceRef(source_id=candidate.source_id, uris=candidate.uris, keys=keys, unit=None, digest=digest(files), select=select)


def _candidate(ref: SourceRef, sensor: Sensor) -> Candidate:
    """The candidate that a reference was made from; rasters and metadata texts are told apart by suffix."""
    rasters = tuple(uri for uri in ref.uris if uri.lower().endswith(sensor.suffixes))
    texts = tuple(uri for uri in ref.uris if uri not in rasters)
    folder = str(Path(rasters[0]).parent)
    return Candidate(source_id=ref.source_id, rasters=rasters, texts=texts, folder=folder)
