"""What a sensor is to the shared raster reader: names of bands, calibration, policy. Data and pure functions, no file access.

The reader (``scene.py``) knows rasters; a sensor knows what their numbers mean. Adding a sensor is writing one ``Sensor``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dinodomain.domain import Channel, ProbeSpec, ViewPolicy
from dinodomain.types import Select
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.quality import Flags
from dinodomain_remote_sensing.remote import Stat
from dinodomain_remote_sensing.stated import Stated

Value = str | int | float | bool | None
Decode = Literal["none", "power", "amplitude"]
"""``power`` and ``amplitude`` become decibels: 10 log10(power) = 20 log10(amplitude)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One band of one file, named but not yet calibrated.

    Attributes:
        code: The sensor's own band code, for example ``B8A``, ``VV``, ``red``.
        header: The file.
        index: 1-based band number in it.
    """

    code: str
    header: Header
    index: int

    @property
    def place(self) -> int:
        """0-based position in per-band tuples of the header."""
        return self.index - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Files that may make one source, grouped by name alone.

    Attributes:
        source_id: Relative path of the file or scene folder, ``#prefix`` added where a folder holds several scenes.
        rasters: Band files, or the one stack.
        texts: Metadata files that belong to them (``*_MTL.txt``, ``MTD_MSIL*.xml``).
        folder: Folder of the scene.
        label: Whether the name looks like a label raster.
        stats: What a listing said of remote files, by address.
        sidecars: Masks, world files and headers beside the rasters, which GDAL reads with them.
        quality: Quality rasters and outlines that come with the scene (``SCL``, ``QA_PIXEL``, ``MSK_CLOUDS`` ...).
        stated: What a catalogue says of it, where it comes from one.
    """

    source_id: str
    rasters: tuple[str, ...]
    texts: tuple[str, ...] = ()
    folder: str = ""
    label: bool = False
    stats: Mapping[str, Stat] = field(default_factory=dict)
    sidecars: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    stated: Stated | None = None

    @property
    def uris(self) -> tuple[str, ...]:
        """All files that make the source, sorted."""
        return tuple(sorted({*self.rasters, *self.texts, *self.quality, *self.sidecars}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A candidate with its headers read and its bands named.

    Attributes:
        candidate: The files.
        bands: Named bands, in file order.
        select: What the user asked for.
        names: Names to look for products and dates in: file stems, then folder, then source id.
        quality: Headers of quality rasters that come as files of their own.
    """

    candidate: Candidate
    bands: tuple[Band, ...]
    select: Select
    names: tuple[str, ...]
    quality: tuple[Header, ...] = ()

    @property
    def uri(self) -> str:
        """What an error names: the file of a stack, the folder of band files."""
        return self.candidate.rasters[0] if len(self.candidate.rasters) == 1 else self.candidate.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The meaning of one band's stored numbers.

    Attributes:
        channel: Channel name, a key of the sensor's ``channels``.
        scale: physical = stored * scale + offset.
        offset: See ``scale``.
        nodata: Stored values that mean "no data"; the first one is the channel's declared nodata.
        decode: What is done to values before they are stored.
        shared_nodata: Whether a pixel is invalid only where all channels have no data. Products that clip at 0 hold zeros in single
            bands over dark water; there 0 means "no data" only where every band is 0.
        saturated: Stored values that mean "brighter than the detector counts".
    """

    channel: str
    scale: float = 1.0
    offset: float = 0.0
    nodata: tuple[float, ...] = ()
    decode: Decode = "none"
    shared_nodata: bool = False
    saturated: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a sensor makes of a scene.

    Attributes:
        bands: One calibration per band of the scene.
        fields: Acquisition fields for the index.
        acquired: ISO date or date-time, or None.
        stages: What the reader does to values because of the calibration.
        quantity: What the numbers are, where others must not share a store with them (``L2A reflectance``).
        flags: Quality rasters, for validity.
        warnings: What a person should look at although the scene is read.
    """

    bands: tuple[Calibration, ...]
    fields: Mapping[str, Value] = field(default_factory=dict)
    acquired: str | None = None
    stages: tuple[str, ...] = ()
    quantity: str = ""
    flags: tuple[Flags, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """A sensor family.

    Attributes:
        name: Domain name.
        title: As a user knows it, for messages.
        channels: Channels by name, in canonical order.
        policy: Augmentations that keep an image's meaning.
        probes: Probes worth running.
        suffixes: File suffixes that are looked at, lower case.
        band_file: Matches the stem of a one-band file; groups ``prefix`` and ``band``.
        code: Band code of a description or of a name the user gave, or None.
        by_count: Band codes of an unnamed stack by its number of bands, where the sensor leaves no doubt.
        foreign: Matches names of products of other sensors.
        calibrate: Gives numbers their meaning; raises BadSource.
        pictures: Whether files without georeference are read (as whole images).
        facts: Names of its own fields in the index, which a header filter may use.
        max_bands: More bands than this are another instrument's.
        quality_file: Matches the stem of a quality raster that ``calibrate`` makes validity of.
        wavelengths: Names bands from their wavelengths instead of ``code``: from a header and metadata files, a code per band of the
            file, None for a band that is left out.
        rank: Place of a channel in canonical order; None takes the order of ``channels``.
        drops_empty: Whether a band that holds no data anywhere is no channel of its scene (bands of absorbed light).
        refuse: Raises BadSource for products that are no source for this sensor, before bands are named.
    """

    name: str
    title: str
    channels: Mapping[str, Channel]
    policy: ViewPolicy
    probes: Sequence[ProbeSpec]
    suffixes: tuple[str, ...]
    band_file: re.Pattern[str] | None
    code: Callable[[str], str | None]
    by_count: Mapping[int, tuple[str, ...]]
    foreign: re.Pattern[str] | None
    calibrate: Callable[[Scene], Meaning]
    pictures: bool = False
    facts: tuple[str, ...] = ()
    max_bands: int = 20
    quality_file: re.Pattern[str] | None = None
    wavelengths: Callable[[Header, Sequence[str]], list[str | None]] | None = None
    rank: Callable[[str], float] | None = None
    drops_empty: bool = False
    refuse: Callable[[Candidate, Sequence[Header]], None] | None = None
