"""From a candidate to a record: place, grid and meaning are settled from headers; pixels stay unread until ``Record.read``.

Every refusal that headers allow is made here, so that discovery lists it before anything is converted.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dinodomain.errors import BadSource, LeftOut, require
from dinodomain.types import Layout, Record, Select
from dinodomain_remote_sensing import remote, vfs
from dinodomain_remote_sensing.geometry import Grid, Relation, ground_spacing, nearest, nine, relate
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.naming import named_scene
from dinodomain_remote_sensing.pixels import Layer, Mask, SceneReader, Windowed
from dinodomain_remote_sensing.place import Cut, cut
from dinodomain_remote_sensing.quality import Flags
from dinodomain_remote_sensing.sensor import Band, Calibration, Candidate, Meaning, Scene, Sensor, Value
from dinodomain_remote_sensing.stated import Stated
from dinodomain_remote_sensing.warp import Warp, system, system_name, target_grid, warp_of

WHOLE_SIDE = 256
"""A raster whose sides are both at most this long is one tile: read ``whole``."""

STORED = {
    "uint8": "uint8",
    "uint16": "uint16",
    "int16": "int16",
    "int32": "int32",
    "float16": "float32",
    "float32": "float32",
    "float64": "float32",
}
"""dtype of a file to stored dtype."""

_SOFT_EDGE = 16
"""An alpha band with more levels than this in the middle of a picture is remarked upon."""

NEAR_INTEGER = 0.01
"""A ground sample distance asked for in metres means the whole ratio to the finest grid if it is this near to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A scene as its headers tell it.

    Attributes:
        layers: One per channel, in stored order.
        meaning: Fields, date and stages.
        grid: The common grid; for a picture without georeference rows and columns only count.
        crs: WKT, or None for a picture.
        spacing: (y, x) ground metres; NaN for a picture.
        gsd: Native ground sample distance per channel, metres.
        dtype: Stored dtype.
        alpha: Header and band number of an alpha band, or None.
        orientation: EXIF orientation of a picture.
        names_from: Where the band names come from.
        left_out: Described bands of a stack that are no channels.
        masks: Quality rasters on the common grid.
        cut: The part that ``ingest.aoi`` takes, or None for the whole.
        native: Name of the system and ground sample distance in metres before ``ingest.crs`` warped it, or None.
    """

    layers: tuple[Layer, ...]
    meaning: Meaning
    grid: Grid
    crs: str | None
    spacing: tuple[float, float]
    gsd: Mapping[str, float]
    dtype: str
    alpha: tuple[Header, int] | None
    orientation: int
    names_from: str
    left_out: tuple[str, ...]
    masks: tuple[Mask, ...] = ()
    cut: Cut | None = None
    native: tuple[str, float] | None = None

    @property
    def part(self) -> Grid:
        """The grid of what is taken."""
        return self.grid if self.cut is None else self.cut.grid


def describe(candidate: Candidate, select: Select, sensor: Sensor) -> Described:
    """Settles everything about a scene that its headers tell.

    Raises:
        BadSource: It cannot be read as asked.
    """
    if candidate.label:
        raise BadSource(
            candidate.rasters[0],
            "looks like a label raster; labels never enter a store",
            f"include it explicitly: ingest.include=[{candidate.source_id}]",
        )
    scene, names_from = named_scene(candidate, select, sensor)
    crs = _common_crs(scene, sensor)
    meaning = _with_statements(sensor.calibrate(scene), candidate.stated)
    chosen = _chosen(scene, meaning, select, sensor)
    grids = {band.header.path: _grid(band.header) for band, _ in chosen}
    spacing = {path: ground_spacing(path, crs, grid) for path, grid in grids.items()} if crs else {}
    native, place = _target(scene, chosen, select, sensor, grids, spacing), crs
    relations: dict[str, Relation | Warp] = {path: relate(path, grid, native) for path, grid in grids.items()}
    target = native
    if select.crs and (crs is None or not _same_crs(crs, system(scene.uri, select.crs, crs, native))):
        crs, target, relations = _warps(scene, select, crs, native, grids, spacing)
    layers = tuple(Layer(band=band, calibration=calibration, relation=relations[band.header.path]) for band, calibration in chosen)
    header = chosen[0][0].header
    part = _cut(scene, crs, target, layers, select)
    return Described(
        layers=layers,
        meaning=meaning,
        grid=target,
        crs=crs,
        spacing=ground_spacing(scene.uri, crs, target if part is None else part.grid) if crs else (float("nan"),) * 2,
        gsd={calibration.channel: round(max(spacing[band.header.path]), 6) for band, calibration in chosen} if crs else {},
        dtype=_dtype(chosen),
        alpha=_alpha(chosen),
        orientation=_orientation(header) if crs is None else 1,
        names_from=names_from,
        left_out=_left_out(scene),
        masks=tuple(_mask(flags, place, native, crs, target) for flags in meaning.flags),
        cut=part,
        native=None if place == crs or place is None else (system_name(place), max(ground_spacing(scene.uri, place, native))),
    )


def _warps(
    scene: Scene,
    select: Select,
    crs: str | None,
    native: Grid,
    grids: Mapping[str, Grid],
    spacing: Mapping[str, tuple[float, float]],
) -> tuple[str, Grid, dict[str, Relation | Warp]]:
    """The system and grid that ``ingest.crs`` asks for, and how each band comes there.

    Raises:
        BadSource: The scene has no place, or none in that system.
    """
    if crs is None:
        raise BadSource(scene.uri, "a picture without georeference cannot be warped", "leave out ingest.crs, or the picture")
    wanted = system(scene.uri, select.crs, crs, native)
    metres = _metres(select.grid) or float(f"{min(ground_spacing(scene.uri, crs, native)):.3g}")
    target = target_grid(scene.uri, crs, native, wanted, metres)
    return wanted, target, {path: warp_of(grid, crs, target, wanted, metres / min(spacing[path])) for path, grid in grids.items()}


def _metres(grid: str) -> float | None:
    try:
        return float(grid)
    except ValueError:
        return None


def _with_statements(meaning: Meaning, stated: Stated | None) -> Meaning:
    """What a catalogue knows besides; the sensor's own fields and the product's own date go first."""
    if stated is None:
        return meaning
    fields = {**stated.fields, **meaning.fields}
    return replace(meaning, fields=fields, acquired=meaning.acquired or stated.acquired, warnings=(*meaning.warnings, *stated.warnings))


def _cut(scene: Scene, crs: str | None, grid: Grid, layers: Sequence[Layer], select: Select) -> Cut | None:
    """The part in the area of interest; None where there is no such area, or the whole scene lies inside.

    Raises:
        LeftOut: The scene does not meet the area.
    """
    if not select.aoi:
        return None
    if crs is None:
        raise LeftOut(scene.uri, f"ingest.aoi={select.aoi} (a picture without a place)")
    snap = math.lcm(*(factor for layer in layers if layer.relation.method == "replicate" for factor in layer.relation.factor))
    part = cut(scene.uri, crs, grid, select.aoi, snap)
    if part is None:
        raise LeftOut(scene.uri, f"ingest.aoi={select.aoi} (lies elsewhere)")
    whole = part.polygon is None and (part.grid.height, part.grid.width) == (grid.height, grid.width)
    return None if whole else part


def record(candidate: Candidate, select: Select, sensor: Sensor) -> Record:
    """Opens a scene.

    Raises:
        BadSource: It cannot be read as asked.
    """
    found = describe(candidate, select, sensor)
    reader = _reader(found)
    empty = reader.empty_layers() if sensor.drops_empty else frozenset()
    if empty:
        found = _without(found, empty, select, candidate)
        reader = _reader(found)
    window = Windowed(reader, found.cut)
    calibrations = tuple(layer.calibration for layer in found.layers)
    return Record(
        channels=tuple(calibration.channel for calibration in calibrations),
        shape=(len(found.layers), *window.shape),
        dtype=found.dtype,
        spacing=found.spacing,
        affine=nine(found.part.transform) if found.crs else None,
        crs=found.crs,
        scale=tuple(calibration.scale for calibration in calibrations),
        offset=tuple(calibration.offset for calibration in calibrations),
        nodata=tuple(_declared(calibration, found) for calibration in calibrations),
        layout=_layout(found, window.shape),
        read=window.read,
        read_valid=window.read_valid if window.may_miss else None,
        acquired=found.meaning.acquired,
        fields=fields_of(found),
        stages=_stages(found),
        warnings=(*found.meaning.warnings, *_alpha_warning(found, reader)),
    )


def _reader(found: Described) -> SceneReader:
    return SceneReader(
        found.layers,
        shape=(found.grid.height, found.grid.width),
        dtype=found.dtype,
        alpha=found.alpha,
        orientation=found.orientation,
        masks=found.masks,
    )


def _without(found: Described, empty: frozenset[int], select: Select, candidate: Candidate) -> Described:
    """The scene without the channels that hold no data anywhere.

    Raises:
        BadSource: The user asked for one of them by name, or none is left.
    """
    names = [found.layers[index].calibration.channel for index in sorted(empty)]
    if select.bands or len(empty) == len(found.layers):
        raise BadSource(
            candidate.rasters[0], f"no data anywhere in {', '.join(names[:8])}", "take others with ingest.bands, or leave it out"
        )
    kept = tuple(layer for index, layer in enumerate(found.layers) if index not in empty)
    stage = f"bands without any data left out: {', '.join(names)}"
    return replace(found, layers=kept, meaning=replace(found.meaning, stages=(*found.meaning.stages, stage)))


def _mask(flags: Flags, crs: str | None, native: Grid, target_crs: str | None, target: Grid) -> Mask:
    """A quality raster seen from the scene's grid.

    Raises:
        BadSource: It lies in another CRS, or elsewhere.
    """
    header = flags.header
    if (crs is None) != (header.crs is None) or (crs is not None and crs != header.crs and not _same_crs(crs, header.crs)):
        raise BadSource(header.path, f"{flags.name} is in another CRS than its scene", "warp it to that of the bands, or leave it out")
    relation: Relation | Warp = nearest(header.path, _grid(header), native)
    if crs is not None and target_crs is not None and crs != target_crs:
        relation = replace(warp_of(_grid(header), crs, target, target_crs, 1.0), method="nearest")
    return Mask(flags=flags, relation=relation)


def _alpha_warning(found: Described, reader: SceneReader) -> tuple[str, ...]:
    """An alpha band of many levels is either a soft edge or near infrared that was written as alpha."""
    levels = reader.alpha_levels() if found.alpha is not None else 0
    if levels <= _SOFT_EDGE:
        return ()
    return (f"its alpha band has {levels} levels: if that is near infrared, say so with ingest.bands=[red,green,blue,nir]",)


def _common_crs(scene: Scene, sensor: Sensor) -> str | None:
    """The one CRS of all bands; None for a picture, where the sensor reads pictures.

    Raises:
        BadSource: There is none, or more than one.
    """
    headers = {band.header.path: band.header for band in scene.bands}
    for header in headers.values():
        if header.crs is None and not (sensor.pictures and len(headers) == 1 and _is_picture(header)):
            raise _no_crs(header)
        if header.crs is not None and header.transform is None:
            raise BadSource(header.path, "a CRS but no geotransform", "assign one: gdal_edit.py -a_ullr ULX ULY LRX LRY FILE")
    first, *others = (header.crs for header in headers.values())
    if first is not None and any(other != first and not _same_crs(first, other) for other in others):
        raise BadSource(
            scene.uri,
            "its bands are not all of one CRS",
            "another CRS is its own source: separate the files, or warp them to one (gdalwarp -t_srs)",
        )
    return first


def _is_picture(header: Header) -> bool:
    """No georeference at all; of PNG and JPEG with a world file but no CRS the pixels are still a picture."""
    return not header.gcps and (header.transform is None or header.driver in ("PNG", "JPEG"))


def _no_crs(header: Header) -> BadSource:
    if header.gcps:
        return BadSource(
            header.path,
            "GeoTIFF without CRS grid: placed by ground control points only (raw radar or scan geometry)",
            "geocode it first (gdalwarp, or the sensor's toolbox)",
        )
    return BadSource(header.path, "GeoTIFF without CRS", "assign the real one: gdal_edit.py -a_srs EPSG:CODE FILE")


def _same_crs(first: str, other: str | None) -> bool:
    rasterio = require("rasterio", extra="remote-sensing", wanted_by="a remote-sensing domain")
    return other is not None and rasterio.crs.CRS.from_wkt(first) == rasterio.crs.CRS.from_wkt(other)


def _grid(header: Header) -> Grid:
    return Grid(transform=header.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), height=header.height, width=header.width)


def _chosen(scene: Scene, meaning: Meaning, select: Select, sensor: Sensor) -> tuple[tuple[Band, Calibration], ...]:
    """Bands in the order of ``ingest.bands``, else in the sensor's own order."""
    pairs = list(zip(scene.bands, meaning.bands))
    if not select.bands:
        order = {} if sensor.rank else {name: place for place, name in enumerate(sensor.channels)}
        rank = sensor.rank or order.__getitem__
        return tuple(sorted(pairs, key=lambda pair: rank(pair[1].channel)))
    chosen = []
    for name in select.bands:
        hit = next((pair for pair in pairs if _is_named(pair, name, sensor)), None)
        if hit is None:
            raise BadSource(
                scene.uri, f"has no band {name}", f"choose from ingest.bands=[{','.join(calibration.channel for _, calibration in pairs)}]"
            )
        chosen.append(hit)
    return tuple(chosen)


def _is_named(pair: tuple[Band, Calibration], name: str, sensor: Sensor) -> bool:
    band, calibration = pair
    if name in sensor.channels and name != band.code:
        return name.removesuffix("_DN") == calibration.channel.removesuffix("_DN")
    return sensor.code(name) == band.code


def _target(
    scene: Scene,
    chosen: Sequence[tuple[Band, Calibration]],
    select: Select,
    sensor: Sensor,
    grids: Mapping[str, Grid],
    spacing: Mapping[str, tuple[float, float]],
) -> Grid:
    """The grid that all bands are brought to: the finest of the chosen bands, a named band's, or one of so many metres."""
    finest = min(grids, key=lambda path: (spacing.get(path, (0.0,))[0], path))
    if select.grid == "finest":
        return grids[finest]
    named = next((pair for pair in zip(scene.bands, scene.bands) if sensor.code(select.grid) == pair[0].code), None)
    if named is not None:
        return _grid(named[0].header)
    try:
        metres = float(select.grid)
    except ValueError:
        raise BadSource(scene.uri, f"has no band {select.grid} to take the grid from", "choose another ingest.grid") from None
    if not spacing:
        raise BadSource(scene.uri, "a picture without georeference has no metres", "use ingest.grid=finest")
    rows, columns = (_ratio(metres / side) for side in spacing[finest])
    return grids[finest] if (rows, columns) == (1.0, 1.0) else grids[finest].scaled(rows, columns)


def _ratio(ratio: float) -> float:
    whole = float(max(1, round(ratio))) if ratio >= 1 - NEAR_INTEGER else 1.0 / round(1.0 / ratio)
    return whole if abs(ratio / whole - 1.0) <= NEAR_INTEGER else ratio


def _dtype(chosen: Sequence[tuple[Band, Calibration]]) -> str:
    stored = []
    for band, _ in chosen:
        own = band.header.dtypes[band.place]
        if own not in STORED:
            raise BadSource(band.header.path, f"values of type {own}", f"convert it (gdal_translate -ot) to one of {', '.join(STORED)}")
        stored.append(np.dtype(STORED[own]))
    common = np.result_type(*stored).name
    if common not in STORED.values():
        raise BadSource(
            chosen[0][0].header.path,
            f"bands of types {', '.join(sorted({d.name for d in stored}))} have no common stored type",
            "convert them to one",
        )
    return common


def _alpha(chosen: Sequence[tuple[Band, Calibration]]) -> tuple[Header, int] | None:
    """The alpha band of a stack, unless a description makes it a channel."""
    header = chosen[0][0].header
    if "alpha" not in header.colours or any(band.header.path != header.path for band, _ in chosen):
        return None
    index = header.colours.index("alpha") + 1
    return None if index in {band.index for band, _ in chosen} else (header, index)


def _orientation(header: Header) -> int:
    """EXIF orientation 1..8; only the header of the file is parsed."""
    image = require("PIL.Image", extra="remote-sensing", wanted_by="domain 'aerial'")
    local = not remote.is_remote(header.path) and vfs.split(header.path) is None
    try:
        with image.open(header.path if local else io.BytesIO(vfs.read_bytes(header.path))) as picture:
            value = picture.getexif().get(0x0112, 1)
    except (OSError, SyntaxError):  # a raster that Pillow does not know (16-bit RGB TIFF layouts, JPEG 2000 variants) has no EXIF for us
        return 1
    return value if value in range(1, 9) else 1


def _left_out(scene: Scene) -> tuple[str, ...]:
    header, named = scene.bands[0].header, {band.index for band in scene.bands}
    if len(scene.candidate.rasters) > 1:
        return ()
    return tuple(text for index, text in enumerate(header.descriptions, start=1) if text and index not in named)


def _layout(found: Described, shape: tuple[int, int]) -> Layout:
    return "whole" if found.crs is None or max(shape) <= WHOLE_SIDE else "window"


def _declared(calibration: Calibration, found: Described) -> float | None:
    """The channel's nodata value where that value alone tells a missing pixel; elsewhere only the valid field does.

    Missing values of floating point are stored as 0, which is also a value; a shared 0 is one wherever another band has data.
    """
    shared = calibration.shared_nodata and len(found.layers) > 1
    return None if shared or found.dtype.startswith("float") or not calibration.nodata else calibration.nodata[0]


def fields_of(found: Described) -> dict[str, Value]:
    """Acquisition fields of the index, native resolution and resampling of every band included."""
    fields: dict[str, Value] = {**found.meaning.fields, "bands_from": found.names_from}
    for layer in found.layers:
        channel = layer.calibration.channel
        if channel in found.gsd:
            fields[f"gsd_m.{channel}"] = found.gsd[channel]
            fields[f"resampling.{channel}"] = _method(layer.relation)
    if found.native is not None:
        fields |= {"native_crs": found.native[0], "native_gsd_m": round(found.native[1], 6)}
    if found.left_out:
        fields["left_out"] = ",".join(found.left_out)
    return fields


def _method(relation: Relation | Warp) -> str:
    return relation.method if relation.factor == (1, 1) else f"{relation.method} {relation.factor[0]}x{relation.factor[1]}"


def _stages(found: Described) -> tuple[str, ...]:
    done = list(found.meaning.stages)
    methods = sorted({_method(layer.relation) for layer in found.layers} - {"native"})
    if found.native is not None and found.crs is not None:
        step = abs(found.grid.transform[0])
        done.append(f"warped from {found.native[0]} to {system_name(found.crs)} in pixels of {step:g}: {', '.join(methods)}")
    elif methods:
        done.append(f"bands brought to one grid: {', '.join(methods)}")
    names = ", ".join(dict.fromkeys(mask.flags.name for mask in found.masks))
    done += [f"validity from {names}, nearest neighbour"] if names else []
    done += ["turned upright by its EXIF orientation"] if found.orientation != 1 else []
    done += (
        ["64-bit values narrowed to float32"]
        if any(layer.band.header.dtypes[layer.band.place] == "float64" for layer in found.layers)
        else []
    )
    if found.cut is not None:
        part, whole = found.cut, found.grid
        done.append(f"cut to ingest.aoi: rows {_span(part.rows)}, columns {_span(part.columns)} of {whole.height}x{whole.width}")
    done += ["missing values stored as 0"] if found.dtype == "float32" else []
    return tuple(done)


def _span(part: slice) -> str:
    return f"{part.start}:{part.stop}"
