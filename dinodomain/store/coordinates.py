"""Small arrays beside the pixels, for readers that find things by the rules of netCDF (CF): xarray, rioxarray, GDAL.

    spatial_ref   scalar; its attributes hold the coordinate reference system and the affine (CF grid mapping)
    x, y          centres of columns and rows; only where the affine neither rotates nor shears
    band          names of the channels

They repeat what the index and the attributes of the group say, so nothing in this package reads them, and no digest covers them. Each is
one chunk without compression: even 10,980 columns are 88 kB, and every Zarr reader can take it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.lineage import write_bytes
from dinodomain.store.codec import plain_metadata
from dinodomain.types import Record

GRID_MAPPING = "spatial_ref"

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_STRINGS = {"name": "vlen-utf8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """One such array.

    Attributes:
        name: Its name, which is that of its axis where it has one.
        metadata: Its ``zarr.json``.
        chunk: Its only chunk; None where all is fill value.
    """

    name: str
    metadata: bytes
    chunk: bytes | None

    def write(self, folder: Path) -> None:
        """Writes it below the folder of a source or a stack; ``zarr.json`` comes last."""
        place = folder / self.name
        place.mkdir(parents=True, exist_ok=True)
        if self.chunk is not None:
            (place / "c").mkdir(exist_ok=True)
            write_bytes(place / "c" / "0", self.chunk)
        write_bytes(place / "zarr.json", self.metadata)


def scene_coordinates(record: Record) -> Iterator[Coordinate]:
    """What places a raster and names its bands; only the names where nothing places it."""
    yield band_names(record.channels)
    if record.crs is not None or record.affine is not None:
        yield _grid_mapping(record)
    if record.affine is not None and record.affine[1] == record.affine[3] == 0:
        a, _, c, _, e, f = record.affine[:6]
        meaning = _KINDS[_kind(record.crs)]
        yield _centres("x", a, c, record.shape[2], meaning["x"])
        yield _centres("y", e, f, record.shape[1], meaning["y"])


def band_names(channels: Sequence[str]) -> Coordinate:
    """Channel names along the axis ``band``, as the Zarr extensions ``string`` and ``vlen-utf8`` lay them out."""
    texts = [name.encode() for name in channels]
    body = struct.pack("<I", len(texts)) + b"".join(struct.pack("<I", len(text)) + text for text in texts)
    metadata = plain_metadata((len(texts),), "string", ("band",), _STRINGS, {}, fill_value="")
    return Coordinate(name="band", metadata=metadata, chunk=body)


def _grid_mapping(record: Record) -> Coordinate:
    attributes: dict[str, str] = {}
    if record.crs is not None:
        attributes["crs_wkt"] = record.crs
    if record.affine is not None:
        a, b, c, d, e, f = (float(value) for value in record.affine[:6])
        attributes["GeoTransform"] = " ".join(map(repr, (c, a, b, f, d, e)))  # in GDAL's order
    return Coordinate(name=GRID_MAPPING, metadata=plain_metadata((), "uint8", (), _LITTLE, attributes, fill_value=0), chunk=None)


_KINDS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "projected": {
        "x": {"axis": "X", "standard_name": "projection_x_coordinate", "long_name": "x coordinate of projection"},
        "y": {"axis": "Y", "standard_name": "projection_y_coordinate", "long_name": "y coordinate of projection"},
    },
    "geographic": {
        "x": {"axis": "X", "standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
        "y": {"axis": "Y", "standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    },
    "other": {"x": {"axis": "X"}, "y": {"axis": "Y"}},
}


def _kind(crs: str | None) -> str:
    """What the coordinates of a WKT are, by its first keyword (WKT1 and WKT2)."""
    keyword = "" if crs is None else crs.lstrip().partition("[")[0].upper()
    if keyword in ("PROJCS", "PROJCRS", "PROJECTEDCRS"):
        return "projected"
    return "geographic" if keyword in ("GEOGCS", "GEOGCRS", "GEOGRAPHICCRS") else "other"


def _centres(name: str, step: float, origin: float, count: int, attributes: Mapping[str, Any]) -> Coordinate:
    # The same operations in the same order as rioxarray, so that both give the same last bit.
    centres = np.arange(count, dtype="<f8") * step + (step * 0.5 + origin)
    metadata = plain_metadata((count,), "float64", (name,), _LITTLE, attributes, fill_value=0.0)
    return Coordinate(name=name, metadata=metadata, chunk=centres.tobytes())
