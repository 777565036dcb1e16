"""From a STAC item to a candidate: which assets are bands, what the item says of their numbers, its properties as tags and fields.

Bands are told by ``eo:bands`` or ``bands`` (name, common name), the asset's key, or the file's name, in this order of trust: a code that
the sensor knows, then a common name that only one band has. Reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from dinodomain.errors import BadSource
from dinodomain.types import Select
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.files import is_text, matches
from dinodomain_remote_sensing.remote import Stat, is_remote, name_of, parent_of
from dinodomain_remote_sensing.sensor import Candidate, Sensor
from dinodomain_remote_sensing.stac import Item, resolved
from dinodomain_remote_sensing.stated import SAME, Stated, StatedBand

RASTER_TYPES = ("tif", "geotiff", "jp2", "png", "jpeg")
OTHER_ROLES = frozenset({"thumbnail", "overview", "visual", "metadata", "date", "browse", "graphic"})

COMMON: Mapping[str, Mapping[str, str]] = {
    "sentinel2": {
        "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07",
        "rededge071": "B05", "rededge075": "B06", "rededge078": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "cirrus": "B10",
        "swir16": "B11", "swir22": "B12",
    },
    "landsat-oli": {
        "coastal": "B1", "blue": "B2", "green": "B3", "red": "B4", "nir08": "B5", "swir16": "B6", "swir22": "B7", "pan": "B8",
        "cirrus": "B9", "lwir11": "B10", "lwir12": "B11",
    },
    "landsat-tm": {"blue": "B1", "green": "B2", "red": "B3", "nir08": "B4", "swir16": "B5", "lwir": "B6", "swir22": "B7"},
}  # fmt: skip
"""Band codes by the common names of the EO extension, which the catalogues of Earth Search, USGS and Planetary Computer use as keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asset:
    key: str
    href: str
    body: Mapping[str, Any]
    bands: tuple[StatedBand, ...]


def candidate_of(item: Item, select: Select, sensor: Sensor) -> Candidate | None:
    """A candidate of one item; None where a glob leaves all of it out.

    Raises:
        BadSource: It is no item, or has no asset that is a band of this sensor.
    """
    body = item.body
    name = str(body.get("id", ""))
    if body.get("type") != "Feature" or not name or not isinstance(body.get("assets"), dict):
        raise BadSource(item.address, "is no STAC item (id and assets)", "check the catalogue")
    properties, collection = dict(body.get("properties") or {}), str(body.get("collection") or "")
    source_id = f"{collection}/{name}" if collection else name
    found = [asset for asset in _assets(item, sensor, properties) if _taken(f"{source_id}/{name_of(asset.href)}", select)]
    if not found and (select.include or select.exclude):
        return None
    rasters = _one_per_band(found, select, sensor)
    if not rasters:
        keys = ", ".join(list(body["assets"])[:8])
        raise BadSource(
            item.address or source_id, f"item {name} has no band of {sensor.title} (assets: {keys})", "check collection and domain"
        )
    stated = _stated(item, properties, rasters, sensor)
    plain = stated.expects == "plain" or bool(stated.conflict)
    return Candidate(
        source_id=source_id,
        rasters=tuple(sorted(asset.href for asset in rasters)),
        # The XML of the product speaks of numbers as ESA wrote them, which a host that took the offset out has changed.
        texts=() if plain and sensor.name == "sentinel2" else _texts(item),
        folder=parent_of(rasters[0].href),
        stats={asset.href: stat for asset in rasters if (stat := _stat(asset.body)) is not None},
        quality=_quality(item, sensor),
        stated=stated,
    )


def _taken(path: str, select: Select) -> bool:
    wanted = not select.include or any(matches(path, glob) for glob in select.include)
    return wanted and not any(matches(path, glob) for glob in select.exclude)


def _assets(item: Item, sensor: Sensor, properties: Mapping[str, Any]) -> Iterator[_Asset]:
    for key, body in item.body["assets"].items():
        if not isinstance(body, dict) or not body.get("href") or OTHER_ROLES & set(body.get("roles") or ()):
            continue
        href = resolved(item.address, str(body["href"]))
        kind = str(body.get("type") or "").lower()
        if not (name_of(href).lower().endswith(sensor.suffixes) and (not kind or any(word in kind for word in RASTER_TYPES))):
            continue
        bands = _bands(key, href, body, sensor, properties)
        if any(band.code for band in bands):
            yield _Asset(key=key, href=href, body=body, bands=bands)


def _bands(key: str, href: str, body: Mapping[str, Any], sensor: Sensor, properties: Mapping[str, Any]) -> tuple[StatedBand, ...]:
    """STAC 1.1 has one list, ``bands``; before there were two of equal length. Statements of the asset hold for all its bands."""
    eo, raster = list(body.get("bands") or body.get("eo:bands") or ()), list(body.get("bands") or body.get("raster:bands") or ())
    if eo and raster and len(eo) != len(raster):
        raise BadSource(href, f"asset {key} names {len(eo)} bands and describes {len(raster)}", "correct the item")
    num = max(len(eo), len(raster), 1)
    eo, raster = eo or [{}] * num, raster or [{}] * num
    return tuple(_band(key, href, {**body, **names}, {**body, **numbers}, num, sensor, properties) for names, numbers in zip(eo, raster))


def _band(
    key: str, href: str, names: Mapping[str, Any], numbers: Mapping[str, Any], num: int, sensor: Sensor, properties: Mapping[str, Any]
) -> StatedBand:
    return StatedBand(
        code=_code(key, href, names, num, sensor, properties),
        scale=_number(numbers.get("raster:scale", numbers.get("scale"))),
        offset=_number(numbers.get("raster:offset", numbers.get("offset"))),
        nodata=_nodata(numbers.get("nodata")),
        unit=str(numbers.get("unit") or ""),
    )


def _code(key: str, href: str, names: Mapping[str, Any], num: int, sensor: Sensor, properties: Mapping[str, Any]) -> str:
    file = sensor.band_file.match(vfs.stem_of(href)) if sensor.band_file else None
    alone = (key, file["band"] if file else "") if num == 1 else ()
    for text in (str(names.get("name") or ""), *alone):
        code = sensor.code(text) if text else None
        if code is not None:
            return code
    common = COMMON.get(_table(sensor, properties), {})
    for text in (str(names.get("common_name") or names.get("eo:common_name") or ""), str(names.get("name") or ""), *alone):
        found = common.get(text.lower()) or sensor.code(text)
        if found:
            return found
    return ""


def _table(sensor: Sensor, properties: Mapping[str, Any]) -> str:
    if sensor.name != "landsat":
        return sensor.name
    return "landsat-oli" if str(properties.get("platform", "")).lower().endswith(("8", "9")) else "landsat-tm"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _nodata(value: Any) -> float | None:
    if isinstance(value, str):
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(value.lower())
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _one_per_band(assets: Sequence[_Asset], select: Select, sensor: Sensor) -> list[_Asset]:
    """Each band once: hosts offer the same one as COG and JPEG 2000, and at several resolutions. GeoTIFF first, then the finest."""
    wanted = {sensor.code(name) for name in (*select.bands, select.grid) if sensor.code(name)} if select.bands else set()
    best: dict[tuple[str, ...], _Asset] = {}
    for asset in sorted(assets, key=lambda asset: (_is_jp2(asset), _gsd(asset), asset.key)):
        codes = tuple(band.code for band in asset.bands)
        if not wanted or wanted & set(codes):
            best.setdefault(codes, asset)
    stacks = [asset for codes, asset in best.items() if len(codes) > 1]
    singles = [asset for codes, asset in best.items() if len(codes) == 1]
    return singles or stacks[:1]


def _is_jp2(asset: _Asset) -> bool:
    return name_of(asset.href).lower().endswith(".jp2")


def _gsd(asset: _Asset) -> float:
    numbers = (asset.body.get("gsd"), *(band.get("spatial_resolution") for band in asset.body.get("raster:bands") or ()))
    known = [float(value) for value in numbers if isinstance(value, (int, float))]
    return min(known, default=math.inf)


def _texts(item: Item) -> tuple[str, ...]:
    """The product's own metadata, where an asset names it: one file of each kind."""
    found = [resolved(item.address, str(body["href"])) for body in item.body["assets"].values() if body.get("href")]
    by_name = {name_of(href).rpartition(".")[0]: href for href in sorted(found, reverse=True) if is_text(name_of(href))}
    return tuple(sorted(by_name.values()))


def _quality(item: Item, sensor: Sensor) -> tuple[str, ...]:
    if sensor.quality_file is None:
        return ()
    hrefs = (resolved(item.address, str(body["href"])) for body in item.body["assets"].values() if body.get("href"))
    found = sorted(
        (href for href in hrefs if name_of(href).lower().endswith(sensor.suffixes)), key=lambda href: (href.endswith(".jp2"), href)
    )
    by_stem = {vfs.stem_of(href).upper(): href for href in reversed(found) if sensor.quality_file.search(vfs.stem_of(href))}
    return tuple(sorted(by_stem.values()))


def _stat(body: Mapping[str, Any]) -> Stat | None:
    """Size and checksum of the file extension: a file that states both needs no request to be recognised."""
    size, checksum = body.get("file:size"), body.get("file:checksum")
    href = str(body.get("href", ""))
    return Stat(size=size, etag=str(checksum)) if isinstance(size, int) and checksum and is_remote(href) else None


def _stated(item: Item, properties: Mapping[str, Any], rasters: Sequence[_Asset], sensor: Sensor) -> Stated:
    acquired = _time(properties.get("datetime") or properties.get("start_datetime"))
    bands = {asset.href: asset.bands for asset in rasters}
    tags = {key.upper(): str(value) for key, value in properties.items() if isinstance(value, (str, int, float)) and key.find(":") > 0}
    collection = str(item.body.get("collection") or "")
    made = Stated(
        item=str(item.body["id"]),
        bands=bands,
        tags={**tags, **_TAGS.get(sensor.name, _no_tags)(properties, collection, acquired)},
        fields=_fields(item, properties, collection),
        acquired=acquired,
        bbox=_bbox(item.body.get("bbox")),
    )
    return _with_offset(made, properties) if sensor.name == "sentinel2" else made


def _with_offset(stated: Stated, properties: Mapping[str, Any]) -> Stated:
    """Gathers what an item says of the offset of Sentinel-2 numbers.

    Three places may speak: ``raster:bands`` of the assets, ``earthsearch:boa_offset_applied``, and the processing baseline, from 04.00 on
    of which ESA's numbers are shifted. If they agree it is settled (and checked against the pixels when they are read).
    """
    bands = [band for own in stated.bands.values() for band in own if band.code]
    offsets = {band.offset for band in bands if band.offset is not None}
    scale = next((band.scale for band in bands if band.scale), 1e-4)
    applied, baseline = properties.get("earthsearch:boa_offset_applied"), _number_text(stated.tags.get("PROCESSING_BASELINE"))
    claims: list[tuple[str, float]] = [(f"raster:bands offset {offset:g}", offset) for offset in sorted(offsets)]
    if applied is True:
        claims.append(("earthsearch:boa_offset_applied true", 0.0))
    elif baseline is not None:
        claims.append((f"processing baseline {baseline:05.2f}", -1000.0 * scale if baseline >= 4.0 else 0.0))
    if not claims:
        return stated
    values = {round(offset / scale) for _, offset in claims}
    if len(values) > 1:
        return replace(stated, conflict=tuple(dict.fromkeys(text for text, _ in claims)))
    shift = claims[0][1] / scale
    expects: Literal["shifted", "plain"] = "plain" if abs(shift) < SAME else "shifted"
    tags = {**stated.tags, "BOA_ADD_OFFSET": f"{shift:g}"} | ({} if abs(scale - 1e-4) < SAME else {"QUANTIFICATION_VALUE": repr(1 / scale)})
    full = {path: tuple(_completed(band, shift * scale) for band in own) for path, own in stated.bands.items()}
    return replace(stated, bands=full, tags=tags, expects=expects)


def _completed(band: StatedBand, offset: float) -> StatedBand:
    """A scale without an offset leaves the offset to the other statements."""
    return band if band.scale is None or band.offset is not None else replace(band, offset=offset)


def _number_text(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _time(text: Any) -> str | None:
    """ISO date-time in UTC, to the second."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    moment = moment.astimezone(UTC) if moment.tzinfo else moment
    return moment.replace(tzinfo=None, microsecond=0).isoformat()


def _bbox(value: Any) -> tuple[float, ...]:
    numbers = [float(part) for part in value or ()]
    return (numbers[0], numbers[1], numbers[3], numbers[4]) if len(numbers) == 6 else tuple(numbers) if len(numbers) == 4 else ()


def _fields(item: Item, properties: Mapping[str, Any], collection: str) -> dict[str, str | int | float | bool | None]:
    elevation = _number(properties.get("view:sun_elevation"))
    code = properties.get("proj:code") or (f"EPSG:{properties['proj:epsg']}" if properties.get("proj:epsg") else None)
    known: dict[str, str | int | float | bool | None] = {
        "stac_collection": collection or None,
        "stac_item": str(item.body["id"]),
        "platform": str(properties["platform"]) if properties.get("platform") else None,
        "cloud_cover_percent": _number(properties.get("eo:cloud_cover")),
        "sun_elevation_deg": elevation,
        "sun_zenith_deg": None if elevation is None else round(90.0 - elevation, 8),
        "sun_azimuth_deg": _number(properties.get("view:sun_azimuth")),
        "view_off_nadir_deg": _number(properties.get("view:off_nadir")),
        "orbit_direction": str(properties["sat:orbit_state"]).upper() if properties.get("sat:orbit_state") else None,
        "relative_orbit": _integer(properties.get("sat:relative_orbit")),
        "stated_crs": str(code) if code else None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _sentinel2_tags(properties: Mapping[str, Any], collection: str, acquired: str | None) -> dict[str, str]:
    level = str(properties.get("processing:level") or properties.get("s2:product_type") or collection).upper().replace("-", "")
    known = {
        "PROCESSING_BASELINE": properties.get("s2:processing_baseline"),
        "SPACECRAFT_NAME": _spacecraft(str(properties.get("platform") or "")),
        "PRODUCT_START_TIME": acquired,
        "SENSING_ORBIT_NUMBER": properties.get("sat:relative_orbit"),
        "SENSING_ORBIT_DIRECTION": str(properties.get("sat:orbit_state") or "").upper(),
        "CLOUD_COVERAGE_ASSESSMENT": properties.get("eo:cloud_cover"),
        "PROCESSING_LEVEL": "Level-1C" if "1C" in level else "Level-2A" if "2A" in level else None,
    }
    return {key: str(value) for key, value in known.items() if value not in (None, "")}


def _spacecraft(platform: str) -> str:
    """``sentinel-2a`` as ESA writes it."""
    name, dash, number = platform.rpartition("-")
    return f"{name.title()}{dash}{number.upper()}"


def _landsat_tags(properties: Mapping[str, Any], collection: str, acquired: str | None) -> dict[str, str]:
    day, _, time = (acquired or "").partition("T")
    known = {
        "SPACECRAFT_ID": str(properties.get("platform") or "").upper().replace("-", "_"),
        "DATE_ACQUIRED": day,
        "SCENE_CENTER_TIME": time,
        "SUN_ELEVATION": properties.get("view:sun_elevation"),
        "SUN_AZIMUTH": properties.get("view:sun_azimuth"),
        "CLOUD_COVER": properties.get("eo:cloud_cover"),
        "WRS_PATH": properties.get("landsat:wrs_path"),
        "WRS_ROW": properties.get("landsat:wrs_row"),
        "PROCESSING_LEVEL": properties.get("landsat:correction"),
        "COLLECTION_NUMBER": properties.get("landsat:collection_number"),
        "COLLECTION_CATEGORY": properties.get("landsat:collection_category"),
    }
    return {key: str(value) for key, value in known.items() if value not in (None, "")}


def _no_tags(properties: Mapping[str, Any], collection: str, acquired: str | None) -> dict[str, str]:
    return {}


_TAGS = {"sentinel2": _sentinel2_tags, "landsat": _landsat_tags}
