"""Frozen records that cross from one room to another. No behaviour, no torch at run time.

Shape legend: B samples, T dates, C channels, D spatial axes (2 or 3), Z Y X extents, N = views x B crops of one size,
V views of one size, R register tokens, P patch tokens, E embedding width. Spatial axes are in array order: (z,) y, x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Window = tuple[slice, ...]
"""One slice per spatial axis, in array order, with explicit start and stop."""

Layout = Literal["window", "whole"]
"""How an array is read: ``window`` by tiles on its chunk grid, ``whole`` as one tile per source."""

NODATA, CLOUD, SHADOW_SNOW, OUTSIDE_BODY, USER_MASK, SATURATED = 1, 2, 4, 8, 16, 32
"""Bits of a ``valid`` field; 0 means a valid pixel. A saturated pixel was seen, but its value is only a lower bound."""


FactValue = str | int | float | bool | None | tuple[str, ...] | tuple[float, ...]
"""A value that a header states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Which files below a source are taken, and how they are brought to the shape of a record. A domain ignores what it has no use for.

    Attributes:
        include: Globs below the source, matched against relative POSIX paths; empty means everything the domain reads.
        exclude: Globs that are left out, applied after ``include``.
        where: Header filter (``domain.Filter``); empty takes everything.
        one_per_acquisition: Where one acquisition was reconstructed several times, keep one: the commonest body ``kernel`` or the
            smallest slice ``thickness``; empty keeps all.
        bands: Channel names to keep, in this order; empty means all that a source has.
        grid: ``finest``, a band name, or a ground sample distance in metres (rasters) or a voxel size in mm (stacked volumes).
        crs: Coordinate reference system that rasters are warped to, as ``EPSG:CODE`` or ``utm``; empty warps nothing.
        sar: What Sentinel-1 values are where the files do not say: ``db``, ``power`` or ``amplitude``, with an optional
            calibration before it (``sigma0_db``, ``gamma0_power``); empty means that the files must say.
        irregular: What becomes of a series with a tilted gantry, missing slices or uneven spacing: ``refuse`` or ``resample``.
        frames: What becomes of a 4-D file or a series of several volumes: ``refuse``, or ``split`` into one source per frame.
        stack: Channels of one frame of reference to be stacked into one record, in this order; empty stacks nothing.
        voi: Whether a radiograph's VOI LUT or window is applied.
        aoi: Area of interest: ``WEST,SOUTH,EAST,NORTH`` in degrees, or a GeoJSON file; empty takes all places.
        dates: ``FIRST/LAST`` acquisition dates, both included, either may be ``..``; empty takes all.
        max_cloud: Largest cloud cover in percent that a scene's metadata may state; None takes all.
        scratch: Folder for what must be unpacked or fetched before it can be read; removed by the caller. Empty: no place for it.
        workers: Processes that discovery may use besides this one; None or 0: none. It changes no result, and so no equality.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    where: str = ""
    one_per_acquisition: Literal["", "kernel", "thickness"] = ""
    bands: tuple[str, ...] = ()
    grid: str = "finest"
    crs: str = ""
    sar: str = ""
    irregular: Literal["refuse", "resample"] = "refuse"
    frames: Literal["refuse", "split"] = "refuse"
    stack: tuple[str, ...] = ()
    voi: bool = False
    aoi: str = ""
    dates: str = ""
    max_cloud: float | None = None
    scratch: str = ""
    workers: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """One source found by reading headers only. Picklable; holds clear names, so it never enters a store.

    Attributes:
        source_id: Natural id, unique below the source: the relative path, with ``#series`` added where a folder holds several.
        uris: The files that make the source, sorted.
        keys: What a CSV may join on: ``path`` (relative), ``name``, ``stem``, ``folder`` and DICOM fields such as ``PatientID``.
        unit: Who or what the source belongs to (a patient, with the issuer of the id before it), or None if the headers do not say.
        digest: sha256 over what would change if the source's pixels or meaning did; equal for an unchanged source.
        select: The selection under which it was found.
        instance: sha256 over the permanent identities of its images (sorted SOPInstanceUIDs), or empty: a re-export under other names
            and headers has the same one.
        quantity: What its numbers are, where sources of different quantity must not share a store (``L2A reflectance``,
            ``sigma0 dB``, ``FOR PRESENTATION``); empty where nothing can be confused.
        facts: What its header states, for counts, estimates and the budget; clear text, so it never enters a store. Names are the
            header's own (DICOM keywords; for rasters those of the index fields), and ``bytes_in`` (to be read), ``bytes_out``
            (of pixels, uncompressed), ``requests`` (to a server), ``acquired`` (ISO date), ``lon``, ``lat`` (centre, degrees).
        handle: What else the domain needs to open it (addresses with signatures, a catalogue's statements); picklable, and looked into
            by the domain alone.
    """

    source_id: str
    uris: tuple[str, ...]
    keys: Mapping[str, str]
    unit: str | None
    digest: str
    select: Select = field(default_factory=Select)
    instance: str = ""
    quantity: str = ""
    facts: Mapping[str, FactValue] = field(default_factory=dict)
    handle: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A source opened inside an ingest worker; ``read`` is lazy and never crosses a process.

    Attributes:
        channels: Channel names, one per band.
        shape: ``(C, Y, X)`` or ``(C, Z, Y, X)``.
        dtype: Stored numpy dtype name.
        spacing: Pixel size per spatial axis in array order: mm for medical sources, ground metres for rasters, NaN where unknown.
        affine: 4x4 (volumes: array index (x, y, z) to RAS+ mm) or 3x3 (rasters: (column, row) to CRS), row-major; None where unknown.
        crs: WKT of the coordinate reference system; None for non-georeferenced sources.
        scale: Per channel: physical value = stored * scale + offset.
        offset: Per channel, see ``scale``.
        nodata: Per channel stored value that means "no data"; None where there is none.
        layout: How the source is read back.
        read: ``read(window)`` gives ``(C, *window)`` in the stored dtype.
        read_valid: ``read_valid(window)`` gives a uint8 bit field over the window; None where everything is valid.
        acquired: ISO date or date-time of acquisition, or None; in a personal domain the true date, which ingest shifts before it is kept.
        fields: Acquisition fields allowed into a store (manufacturer, field strength, level, native GSD per band ...).
        original_affine: The affine before canonical re-orientation, row-major, or None if unchanged.
        stages: What was done to the pixels on the way (re-oriented, resampled, shrunk), in order.
        warnings: What a person should look at although the source was taken; no names of people.
    """

    channels: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    spacing: tuple[float, ...]
    affine: tuple[float, ...] | None
    crs: str | None
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    nodata: tuple[float | None, ...]
    layout: Layout
    read: Callable[[Window], np.ndarray]
    read_valid: Callable[[Window], np.ndarray] | None = None
    acquired: str | None = None
    fields: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    original_affine: tuple[float, ...] | None = None
    stages: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TileInfo:
    """What a domain needs to give pixels of a batch their meaning. All tensors live on the pixels' device.

    Attributes:
        scale: [B, C] float32; physical = stored * scale + offset.
        offset: [B, C] float32.
        nodata: [B, C] float32 stored value; NaN where the channel has none.
        low: [B, C] float32 physical value that becomes 0 in the unit range.
        high: [B, C] float32 physical value that becomes 1 in the unit range.
        spacing: [B, D] float32, mm or m; NaN where unknown.
        valid_box: [B, D, 2] int64 start and stop of real pixels inside the tile.
    """

    scale: Tensor
    offset: Tensor
    nodata: Tensor
    low: Tensor
    high: Tensor
    spacing: Tensor
    valid_box: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Source tiles of one bucket, as stored: B samples of T dates of one place each (T is 1 unless ``loader.pairs=dates``).

    ``info``, ``rows`` and ``origins`` have one entry per image, [B * T], sample by sample; for T = 1 that is one per sample.

    Attributes:
        pixels: [B, T, C, (Z,) Y, X] in the stored dtype.
        valid: [B, T, (Z,) Y, X] uint8 bit field (0 valid), or None where the store has none.
        info: Per-image meaning of the pixels. ``low``/``high`` are the source's own percentiles here.
        channels: Channel names, the same for the whole batch.
        tile_ids: [B] int64, 64 bits of hash(content hash, tile index).
        epochs: [B] int64, how many times the tile stream had wrapped when the tile was drawn.
        draws: [B] int64, repeats of the tile within its epoch.
        rows: [B * T] int64, row of the store index.
        origins: [B * T, D] int64, first pixel of the tile in the source array.
        slots: [B] int64, position in the global batch.
    """

    pixels: Tensor
    valid: Tensor | None
    info: TileInfo
    channels: tuple[str, ...]
    tile_ids: Tensor
    epochs: Tensor
    draws: Tensor
    rows: Tensor
    origins: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """The numbers that take physical values to the network's range; frozen into plan, checkpoint and export.

    unit = clip((physical - low) / (high - low), 0, 1); network = (unit - mean) / std.

    Attributes:
        mode: ``domain`` declared range, ``store`` measured range, ``source`` each source's own percentiles.
        channels: Names of the network's channels; the tuples below follow their order.
        low: Physical value of unit 0 (unused in mode ``source``).
        high: Physical value of unit 1 (unused in mode ``source``).
        mean: Mean in the unit range.
        std: Standard deviation in the unit range.
        sources: The stored channel behind each channel of the network, where they differ (display windows of one channel); empty where
            they are the same.
        units: Physical unit of each channel of the network; empty where nobody recorded them.
    """

    mode: Literal["domain", "store", "source"]
    channels: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sources: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewGroup:
    """All crops of one size. Row v * B + b is view v of sample b, cut from its date v mod T (``views.dates``).

    Attributes:
        name: ``global`` or ``local``.
        pixels: [N, C, *size] float32 in the network's range.
        valid: [N, P] float32 in 0..1, share of real pixels under each patch token, row-major over the token grid.
        to_tile: [N, D, D + 1] float32; maps a pixel index of the crop (array order) to pixel coordinates of its tile (centres at integers).
        spacing: [N, D] float32 pixel size of the crop, mm or m; NaN where unknown.
        kept: [N, C] bool, False where the channel was lost and holds its mean.
        num_views: V.
    """

    name: str
    pixels: Tensor
    valid: Tensor
    to_tile: Tensor
    spacing: Tensor
    kept: Tensor
    num_views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """The crops of one batch, largest size first."""

    groups: tuple[ViewGroup, ...]
    channels: tuple[str, ...]
    tile_ids: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """What a network may be told about images beside their pixels. What is None was not told.

    Attributes:
        spacing: [N, D] float32 pixel size along each axis in array order, mm or m; NaN where unknown.
        kept: [N, C] bool, False where a channel was lost and holds its mean.
        channels: Names of the channels of the pixels, in their order; empty: all of the network's, in its order.
    """

    spacing: Tensor | None = None
    kept: Tensor | None = None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Tokens of one crop size after the final norm (or raw, where a layer was asked for).

    Attributes:
        cls: [N, E].
        registers: [N, R, E].
        patches: [N, P, E], row-major over ``grid``; fewer where tokens were dropped.
        grid: Number of patch tokens per spatial axis before any were dropped.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor
    grid: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTable:
    """Pooled features on the host, one row per tile, so that probes and audits need no encoder.

    Attributes:
        features: [n, E] float32.
        content_hash: n hex digests of the source pixels.
        tile_ids: [n] int64.
        rows: [n] int64, row of the store index; -1 where the features did not come from a store.
        units: n unit ids; empty string where unknown.
        columns: Metadata by name, n values each.
    """

    features: np.ndarray
    content_hash: np.ndarray
    tile_ids: np.ndarray
    rows: np.ndarray
    units: np.ndarray
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Targets joined to rows of a store index.

    Attributes:
        rows: [m] int64 rows of the index, sorted, each at most once.
        values: m values of the target column, as read.
        columns: Other columns of the CSV, m values each.
    """

    rows: np.ndarray
    values: np.ndarray
    columns: Mapping[str, Sequence[str]]
