"""A real Sentinel-2 scene for the satellite demo, from the files of an installed package: no network.

``spyndex`` (MIT) carries a 300 x 300 pixel sample of the four 10 m bands. It comes without place, date and coordinate reference
system, so the GeoTIFF written here has a made-up place and says so, in its tags and in a README beside it. Only the package's file of
numbers is read: xarray is not needed.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dinodomain.errors import MissingExtra, UserError, require
from dinodomain.lineage import write_bytes

BANDS = ("B02", "B03", "B04", "B08")
PIXEL_M = 10.0
CRS = "EPSG:6933"
ORIGIN_M = (0.0, 3679200.0)
"""Upper left corner, a multiple of 300 m: blocks of 30 pixels are the ground cells that ``ingest.cell=300`` counts units by. The place is
0 E, 30 N, where a pixel of this equal-area map is 10 m by 10 m on the ground."""

SCENE = "sentinel2_10m_made_up_place.tif"
NOTICE = (
    "Sentinel-2 sample scene (bands B02, B03, B04, B08, digital numbers, reflectance = DN / 10000) from the package spyndex (MIT). "
    "Contains modified Copernicus Sentinel data. PLACE AND COORDINATE REFERENCE SYSTEM ARE MADE UP: the sample states none."
)


def write_tiles_source(folder: Path | str) -> Path:
    """Writes the sample scene as a GeoTIFF.

    Args:
        folder: Made if absent; receives the scene and ``README.txt``.

    Returns:
        The GeoTIFF: uint16 [4, 300, 300].

    Raises:
        MissingExtra: spyndex or rasterio is not installed.
        UserError: The installed spyndex carries another sample.
    """
    pixels = _sample()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_bytes(target / "README.txt", (NOTICE + "\n").encode())
    _write(target / SCENE, pixels)
    return target / SCENE


def _sample() -> np.ndarray:
    """[4, 300, 300] uint16. The package's own loader leaves its file open and wants xarray, so the file is read here."""
    spec = find_spec("spyndex")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("the satellite demo", "spyndex", "demo")
    path = Path(spec.submodule_search_locations[0]) / "data" / "S2_10m.json"
    if not path.is_file():
        raise UserError(str(path), "the installed spyndex has no Sentinel-2 sample", remedy='pip install "spyndex>=0.5"')
    pixels = np.asarray(json.loads(path.read_text()))
    if pixels.ndim != 3 or len(pixels) != len(BANDS) or pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
        raise UserError(str(path), f"not four bands of digital numbers but {pixels.shape}", remedy='pip install "spyndex>=0.5"')
    return pixels.astype(np.uint16)


def _write(path: Path, pixels: np.ndarray) -> None:
    rasterio = require("rasterio", extra="demo", wanted_by="the satellite demo")
    transform = rasterio.Affine(PIXEL_M, 0.0, ORIGIN_M[0], 0.0, -PIXEL_M, ORIGIN_M[1])
    profile = {"driver": "GTiff", "dtype": "uint16", "count": len(BANDS), "height": pixels.shape[1], "width": pixels.shape[2], "nodata": 0}
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile, crs=CRS, transform=transform, compress="deflate", predictor=2) as scene:
            scene.write(pixels)
            scene.descriptions = BANDS
            scene.update_tags(NOTICE=NOTICE, PLACE="made up")
        write_bytes(path, bytes(memory.getbuffer()))
