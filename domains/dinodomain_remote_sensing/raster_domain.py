"""The one Domain implementation of this package: a sensor plus the shared raster reader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy, linear_to_unit
from dinodomain.errors import BadSource
from dinodomain.types import FactValue, Layout, Record, Select, SourceRef, TileInfo, Window
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.choice import check_choice, refuse_early, refuse_unchosen
from dinodomain_remote_sensing.facts import check_filter, facts_of, refuse_unselected
from dinodomain_remote_sensing.find import sources
from dinodomain_remote_sensing.header import EXTRA, digest
from dinodomain_remote_sensing.naming import check_select
from dinodomain_remote_sensing.offset_check import checked, settled
from dinodomain_remote_sensing.place import area
from dinodomain_remote_sensing.remote import hushed, name_of, quietly, shown
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
            source: What ``find.sources`` takes.
            select: Globs, bands, grid, header filter (names: ``facts.STANDARD`` and ``Sensor.facts``).

        Raises:
            UserError: The source does not exist, or ``select`` names a band, grid, quantity or field that this sensor cannot have.
        """
        check_select(select, self.sensor)
        check_filter(select.where, self.sensor)
        check_choice(select, self.sensor)
        if select.aoi:
            area(select.aoi)
        if select.sar:
            parse_sar(select.sar)
        return self._found(sources(source, select, self.sensor), select)

    def _found(self, found: Iterable[Candidate | BadSource], select: Select) -> Iterator[SourceRef | BadSource]:
        for candidate in found:
            try:
                if isinstance(candidate, BadSource):
                    raise candidate
                refuse_early(candidate.stated, select, _uri(candidate))
                candidate = settled(candidate)
                described = describe(candidate, select, self.sensor)
                facts = facts_of(candidate, described, self.sensor)
                refuse_unselected(select.where, facts, _uri(candidate))
                refuse_unchosen(select, facts, _uri(candidate))
                yield _reference(candidate, select, facts, described.meaning.quantity)
            except BadSource as refusal:
                yield _plain(hushed(refusal))

    def read(self, ref: SourceRef) -> Record:
        """Opens one source.

        Raises:
            BadSource: It cannot be read as asked.
        """
        try:
            with quietly():
                candidate = _candidate(ref, self.sensor)
                warnings = checked(candidate)
                found = record(candidate, ref.select, self.sensor)
                return _quiet(replace(found, warnings=tuple(dict.fromkeys((*found.warnings, *warnings)))))
        except BadSource as refusal:
            raise _plain(refusal) from None

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """[B, C, ...] stored values to float32 in the unit range; every sensor here is linear in its stored number."""
        return linear_to_unit(pixels, info)

    def view_policy(self) -> ViewPolicy:
        """The sensor's augmentations."""
        return self.sensor.policy

    def probes(self) -> Sequence[ProbeSpec]:
        """Probes worth running."""
        return self.sensor.probes


def _uri(candidate: Candidate) -> str:
    if candidate.stated is not None:
        return candidate.source_id  # items of a catalogue may share a folder
    return candidate.rasters[0] if len(candidate.rasters) == 1 else candidate.folder


def _plain(refusal: BadSource) -> BadSource:
    """The refusal with archives shown as folders."""
    uri = vfs.shown(refusal.uri)
    if uri == refusal.uri:
        return refusal
    plain = type(refusal).__new__(type(refusal))
    BadSource.__init__(plain, uri, refusal.reason, refusal.remedy or "", keys=refusal.keys)
    return plain


def _reference(candidate: Candidate, select: Select, facts: Mapping[str, FactValue], quantity: str) -> SourceRef:
    path, _, prefix = candidate.source_id.partition("#")
    is_file = len(candidate.rasters) == 1 and name_of(candidate.rasters[0]) == path.rpartition("/")[2]
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
    files = {_below(candidate.folder, uri): uri for uri in candidate.uris}
    return SourceRef(
        source_id=candidate.source_id,
        uris=tuple(vfs.shown(shown(uri)) for uri in candidate.uris),
        keys=keys,
        unit=None,
        digest=_digest(candidate, files),
        select=select,
        quantity=quantity,
        facts=facts,
        handle=candidate,
    )


def _digest(candidate: Candidate, files: Mapping[str, str]) -> str:
    """Of the files, and of what a catalogue says of them; signatures, which change by the hour, left out."""
    own = digest(files, candidate.stats)
    if candidate.stated is None:
        return own
    said = replace(candidate.stated, bands={name_of(path): bands for path, bands in candidate.stated.bands.items()})
    return hashlib.sha256(f"{own}{said!r}".encode()).hexdigest()


def _below(folder: str, uri: str) -> str:
    path = vfs.shown(shown(uri))
    return path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else name_of(uri)


def _candidate(ref: SourceRef, sensor: Sensor) -> Candidate:
    """The candidate that a reference was made from."""
    if not isinstance(ref.handle, Candidate):
        raise BadSource(ref.uris[0], f"its reference was not made by domain {sensor.name!r}", "list the source again with discover")
    return ref.handle


def _quiet(record: Record) -> Record:
    """The record with readers whose refusals tell no signature or key."""
    valid = record.read_valid
    return replace(record, read=_quietly(record.read), read_valid=None if valid is None else _quietly(valid))


def _quietly(read: Callable[[Window], np.ndarray]) -> Callable[[Window], np.ndarray]:
    def told(window: Window) -> np.ndarray:
        try:
            with quietly():
                return read(window)
        except BadSource as refusal:
            raise _plain(refusal) from None

    return told
