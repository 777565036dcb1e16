"""What the headers of a scene state, under the names of its index fields: for counts, estimates, and the header filter.

Place is the centre of the scene in WGS 84 degrees; sizes are bytes.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from dinodomain.domain import Filter
from dinodomain.errors import LeftOut, UserError, require
from dinodomain.types import FactValue
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.geometry import lonlat
from dinodomain_remote_sensing.header import EXTRA, WANTED_BY
from dinodomain_remote_sensing.remote import is_remote
from dinodomain_remote_sensing.scene import Described
from dinodomain_remote_sensing.sensor import Candidate, Sensor

OPENING, CHUNK_BYTES, CHUNK_ROWS = 4, 65536, 256
"""What GDAL asks for when a file is listed and opened; its smallest range; and the rows of a chunk of a scene."""

STANDARD: Mapping[str, str] = {
    "acquired": "ISO date or date-time",
    "lon": "centre, degrees east",
    "lat": "centre, degrees north",
    "crs": "EPSG:CODE, or the name of the system",
    "bands": "channel names",
    "num_bands": "their number",
    "gsd": "finest ground sample distance, metres",
    "height": "rows",
    "width": "columns",
    "dtype": "stored type",
    "sensor": "domain name",
    "quantity": "what the numbers are",
    "path": "relative path of the source",
    "bytes_in": "bytes of the files",
    "bytes_out": "bytes of pixels, uncompressed",
    "requests": "requests to a server, about",
}
"""Names that every raster has for a header filter; a sensor adds its own (``Sensor.facts``)."""


def facts_of(candidate: Candidate, found: Described, sensor: Sensor) -> dict[str, FactValue]:
    """Clear facts of one scene; what its headers do not state is left out."""
    channels = tuple(layer.calibration.channel for layer in found.layers)
    lon, lat = _centre(candidate, found)
    used = {layer.band.header.path for layer in found.layers} | {mask.flags.header.path for mask in found.masks}
    known: dict[str, FactValue] = {
        **found.meaning.fields,
        "acquired": found.meaning.acquired,
        "lon": lon,
        "lat": lat,
        "crs": crs_name(found.crs),
        "bands": channels,
        "num_bands": len(channels),
        "gsd": min(found.gsd.values(), default=None),
        "height": found.part.height,
        "width": found.part.width,
        "dtype": found.dtype,
        "sensor": sensor.name,
        "quantity": found.meaning.quantity or None,
        "path": candidate.source_id,
        "bytes_in": round(sum(_size(candidate, uri) for uri in used) * _share(found)),
        "bytes_out": len(channels) * found.part.height * found.part.width * np.dtype(found.dtype).itemsize,
    }
    if any(is_remote(uri) for uri in used):
        known["requests"] = round(_requests(candidate, found) * _share(found))
    return {name: value for name, value in known.items() if value is not None}


def _requests(candidate: Candidate, found: Described) -> int:
    """Requests that reading a scene on a server takes: some to open each file, then one per row of chunks and band, or fewer if small."""
    headers = [layer.band.header for layer in found.layers] + [mask.flags.header for mask in found.masks]
    rows, bands = {header.path: header.height for header in headers}, Counter(header.path for header in headers)
    return sum(
        OPENING + min(-(-_size(candidate, path) // CHUNK_BYTES), -(-rows[path] // CHUNK_ROWS) * number)
        for path, number in bands.items()
        if is_remote(path)
    )


def _share(found: Described) -> float:
    """Share of the scene that is read."""
    return found.part.height * found.part.width / (found.grid.height * found.grid.width)


def crs_name(wkt: str | None) -> str | None:
    """``EPSG:32632`` where the system is a registered one, else its name."""
    if wkt is None:
        return None
    crs = require("rasterio.crs", extra=EXTRA, wanted_by=WANTED_BY).CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else wkt.split('"')[1] if '"' in wkt else wkt


def _centre(candidate: Candidate, found: Described) -> tuple[float | None, float | None]:
    if found.crs is None:
        return None, None
    middle = np.array([[found.part.width / 2, found.part.height / 2]])
    lon, lat = lonlat(candidate.rasters[0], found.crs, found.part.transform, middle)
    return round(float(lon[0]), 6), round(float(lat[0]), 6)


def _size(candidate: Candidate, uri: str) -> int:
    return candidate.stats[uri].size if uri in candidate.stats else vfs.size(uri)


def check_filter(where: str, sensor: Sensor) -> None:
    """Refuses a header filter that names what this sensor does not know.

    Raises:
        UserError: With the nearest known name.
    """
    known = {*STANDARD, *sensor.facts}
    for name in sorted(Filter(where).names - known):
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise UserError("ingest.select", f"{sensor.title} has no field {name!r}", allowed=", ".join(sorted(known)), remedy=hint)


def refuse_unselected(where: str, facts: Mapping[str, FactValue], uri: str) -> None:
    """Leaves a scene out by the user's choice.

    Raises:
        LeftOut: The filter does not take it.
    """
    if where and not Filter(where)(facts):
        raise LeftOut(uri, f"ingest.select={where}")
