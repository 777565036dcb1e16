"""Reads what a raster says about itself: shape, type, place, names of its bands. No pixel is read here.

A header is plain data, so that everything decided from headers can be tested without files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dinodomain.domain import quiet
from dinodomain.errors import BadSource, require
from dinodomain_remote_sensing import remote, vfs

EXTRA = "remote-sensing"
WANTED_BY = "a remote-sensing domain"
Got = TypeVar("Got")
SIX = tuple[float, float, float, float, float, float]
"""``(a, b, c, d, e, f)``: x = a * column + b * row + c, y = d * column + e * row + f; pixel (0, 0) begins at its outer corner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One raster file as it describes itself.

    Attributes:
        path: The file.
        driver: GDAL driver name.
        count: Number of bands, alpha included.
        height: Rows.
        width: Columns.
        dtypes: numpy dtype name per band.
        nodata: Declared nodata value per band, or None.
        crs: WKT of the coordinate reference system, or None.
        transform: Pixel (column, row) to CRS, or None where the file has none.
        gcps: Whether ground control points are the only georeference.
        descriptions: Band descriptions; empty string where there is none.
        units: Unit per band; empty string where there is none.
        scales: GDAL scale per band (1 where unset).
        offsets: GDAL offset per band (0 where unset).
        colours: Colour interpretation per band, for example ``red``, ``alpha``, ``palette``.
        tags: Dataset tags, keys in upper case, band tags behind them, those of the ENVI header with ``ENVI_`` before them.
        band_tags: Per band, its own tags and those of GDAL's IMAGERY domain, keys in upper case.
        nbits: Bits in use per band where the file says so, else None.
        mask: Whether the file carries a per-dataset mask (internal or ``.msk``).
        sidecars: Whether files that belong to it lie beside it on a server.
        code: Band code that a catalogue states for its one band, or empty.
    """

    path: str
    driver: str
    count: int
    height: int
    width: int
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    crs: str | None
    transform: SIX | None
    gcps: bool
    descriptions: tuple[str, ...]
    units: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    colours: tuple[str, ...]
    tags: Mapping[str, str]
    nbits: int | None
    mask: bool
    band_tags: tuple[Mapping[str, str], ...] = ()
    sidecars: bool = False
    code: str = ""

    @property
    def name(self) -> str:
        """File name without folder."""
        return vfs.name_of(self.path)

    @property
    def stem(self) -> str:
        """File name without folder and suffix."""
        return vfs.stem_of(self.path)


@contextmanager
def opened(path: str, *, sidecars: bool = False) -> Iterator[Any]:
    """A rasterio dataset, open for the length of a ``with`` block, with the settings that its address needs.

    Raises:
        BadSource: GDAL cannot open the file.
    """
    with remote.environment(path, sidecars=sidecars):
        dataset = open_dataset(path, sidecars=sidecars)
        try:
            yield dataset
        finally:
            dataset.close()


def open_dataset(path: str, *, sidecars: bool = False) -> Any:
    """Opens a raster; windows read in their own size never come from an overview. The caller closes it.

    Args:
        path: Path or address.
        sidecars: Whether files that belong to it lie beside it on the server.

    Raises:
        BadSource: GDAL cannot open the file.
    """
    rasterio = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY)

    def attempt() -> Any:
        # A picture without a place is ordinary for `aerial`; the others refuse it by name.
        with quiet(rasterio.errors.NotGeoreferencedWarning), remote.environment(path, sidecars=sidecars):
            return rasterio.open(remote.gdal_name(path))

    return patiently(attempt, path, "not a readable raster", "check that the file is whole; copy it again")


def patiently(attempt: Callable[[], Got], path: str, problem: str, remedy: str, *, between: Callable[[], None] = lambda: None) -> Got:
    """Lets GDAL try: once for a local file, several times for a remote one unless its server says why not.

    Args:
        attempt: What GDAL is to do.
        path: Path or address, named in errors.
        problem: What it means if it fails.
        remedy: What to do then.
        between: Called before each further try.

    Raises:
        BadSource: It failed for good.
    """
    errors = require("rasterio.errors", extra=EXTRA, wanted_by=WANTED_BY)
    for turn in range(remote.TRIES):
        try:
            return attempt()
        except errors.RasterioError as error:
            words = first_line(error)
            refusal = remote.cause(path) if turn == 0 and remote.is_remote(path) else None
            # A format that GDAL does not know stays unknown, unless the first body was cut short.
            last = not remote.is_remote(path) or turn == remote.TRIES - 1 or (turn > 0 and "not recognized" in words)
            if refusal is not None or last:
                raise refusal or BadSource(path, f"{problem} ({words})", remedy) from None
        between()
        remote.pause(turn)
    raise AssertionError("unreachable")


def first_line(error: Exception) -> str:
    """The first line of an error of a third party, for a message of our own."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def read_header(path: str, *, sidecars: bool = False) -> Header:
    """Reads the header of one raster.

    Args:
        path: Path or address.
        sidecars: Whether files that belong to it lie beside it on the server.

    Raises:
        BadSource: The file cannot be opened.
    """
    with opened(path, sidecars=sidecars) as dataset:
        transform = tuple(float(value) for value in dataset.transform)[:6]
        return Header(
            path=path,
            driver=dataset.driver,
            count=dataset.count,
            height=dataset.height,
            width=dataset.width,
            dtypes=tuple(dataset.dtypes),
            nodata=tuple(dataset.nodatavals),
            crs=dataset.crs.to_wkt() if dataset.crs else None,
            transform=None if dataset.transform.is_identity else transform,  # type: ignore[arg-type]
            gcps=bool(dataset.gcps[0]) and dataset.transform.is_identity,
            descriptions=tuple(text or "" for text in dataset.descriptions),
            units=tuple(text or "" for text in dataset.units),
            scales=tuple(dataset.scales),
            offsets=tuple(dataset.offsets),
            colours=tuple(colour.name for colour in dataset.colorinterp),
            tags=_tags(dataset),
            nbits=_nbits(dataset),
            mask=_has_mask(dataset),
            sidecars=sidecars,
            band_tags=tuple(_band_tags(dataset, index) for index in dataset.indexes),
        )


def _tags(dataset: Any) -> dict[str, str]:
    tags = {key.upper(): value for key, value in dataset.tags(1).items()} if dataset.count else {}
    # GDAL shows CMYK pictures as RGB; only the structure domain tells.
    space = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE")
    tags |= {f"ENVI_{key.upper().replace(' ', '_')}": value for key, value in dataset.tags(ns="ENVI").items()}
    return tags | {key.upper(): value for key, value in dataset.tags().items()} | ({"SOURCE_COLOR_SPACE": space} if space else {})


def _band_tags(dataset: Any, index: int) -> dict[str, str]:
    both = {**dataset.tags(index), **dataset.tags(index, ns="IMAGERY")}
    return {key.upper(): value for key, value in both.items()}


def _nbits(dataset: Any) -> int | None:
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") if dataset.count else None
    return int(bits) if bits else None


def _has_mask(dataset: Any) -> bool:
    flags = {flag.name for flag in dataset.mask_flag_enums[0]} if dataset.count else set()
    return "per_dataset" in flags and "alpha" not in flags


def digest(names: Mapping[str, str], stats: Mapping[str, remote.Stat] | None = None) -> str:
    """sha256 over relative names, sizes and both ends of the files; of remote files over sizes and the server's version tags.

    Args:
        names: Relative name to path or address.
        stats: What a listing said of remote files already, by address.

    Returns:
        Hex digest; pixels in the middle of a local file that change without its size and directory changing are not seen.
    """
    running = hashlib.sha256()
    for name, path in sorted(names.items()):
        known = (stats or {}).get(path)
        running.update(name.encode() + b"\0" + (vfs.prints(path) if known is None else known.prints()))
    return running.hexdigest()
