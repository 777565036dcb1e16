"""Names the bands of a candidate: from file names, descriptions, ``ingest.bands``, or the number of bands where that leaves no doubt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dinodomain.errors import BadSource, UserError
from dinodomain.types import Select
from dinodomain_remote_sensing.header import Header, read_header
from dinodomain_remote_sensing.sensor import Band, Candidate, Scene, Sensor
from dinodomain_remote_sensing.stated import told

_GENERIC = re.compile(r"band[ _]?\d+", re.IGNORECASE)
"""Numbers that software gives to unnamed bands: position in the file, not the sensor's band number."""

_INKS = frozenset({"cyan", "magenta", "yellow", "black", "hue", "saturation", "lightness", "cmyk", "ycck"})


def check_select(select: Select, sensor: Sensor) -> None:
    """Refuses band names and grids that no source of this sensor can have.

    Raises:
        UserError: On ``ingest.bands`` or ``ingest.grid``.
    """
    twice = sorted(name for name, count in Counter(sensor.code(name) or name for name in select.bands).items() if count > 1)
    if twice:
        raise UserError("ingest.bands", f"{', '.join(twice)} named more than once", allowed="each band once")
    for name in select.bands:
        if not _known(name, sensor):
            raise UserError("ingest.bands", f"{sensor.title} has no band {name!r}", allowed=_listed(sensor))
    grid = select.grid
    if grid != "finest" and not _known(grid, sensor) and not _positive(grid):
        raise UserError("ingest.grid", f"{grid!r}", allowed="finest, a band name, or metres > 0")


def _listed(sensor: Sensor) -> str:
    """Channel names for a message; of a hyperspectral sensor the pattern."""
    if sensor.wavelengths is not None:
        return "nm0350 to nm2600, named by wavelength in nm"
    return ", ".join(name for name in sensor.channels if not name.endswith("_DN"))


def _known(name: str, sensor: Sensor) -> bool:
    return name in sensor.channels or sensor.code(name) is not None


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def named_scene(candidate: Candidate, select: Select, sensor: Sensor) -> tuple[Scene, str]:
    """Reads headers and names bands.

    Returns:
        The scene, and where its band names come from (``file names``, ``descriptions``, ``ingest.bands``, ``count``).

    Raises:
        BadSource: Bands cannot be told, or are another sensor's.
    """
    names = _names(candidate)
    _refuse_foreign(candidate, names, sensor)
    headers = [told(read_header(path, sidecars=_has_sidecar(path, candidate)), candidate.stated) for path in candidate.rasters]
    if sensor.refuse is not None:
        sensor.refuse(candidate, headers)
    if len(headers) == 1 and (headers[0].count > 1 or _file_code(headers[0], sensor) is None):
        bands, origin = _stack(headers[0], candidate.texts, select, sensor)
    else:
        bands, origin = _band_files(candidate, headers, sensor), "file names" if candidate.stated is None else "catalogue"
    rasters = (path for path in candidate.quality if not path.lower().endswith(".gml"))
    quality = tuple(read_header(path, sidecars=_has_sidecar(path, candidate)) for path in rasters)
    return Scene(candidate=candidate, bands=bands, select=select, names=names, quality=quality), origin


def _has_sidecar(path: str, candidate: Candidate) -> bool:
    stem = path.rpartition(".")[0]
    return any(name.startswith(f"{stem}.") for name in candidate.sidecars)


def _names(candidate: Candidate) -> tuple[str, ...]:
    """Names that may state product and date, nearest first: file, metadata, scene folder, SAFE product, folders below the source."""
    near = [Path(path).stem for path in (*candidate.rasters[:1], *candidate.texts)]
    folder = Path(candidate.folder)
    products = [part for part in folder.parts if part.endswith(".SAFE")]
    below = candidate.source_id.replace("#", "/").split("/")[::-1]
    return tuple(dict.fromkeys(name.removesuffix(".SAFE") for name in (*near, folder.name, *products, *below)))


def _refuse_foreign(candidate: Candidate, names: tuple[str, ...], sensor: Sensor) -> None:
    hit = next((name for name in names if sensor.foreign and sensor.foreign.search(name)), None)
    if hit is not None:
        raise BadSource(
            candidate.rasters[0] if len(candidate.rasters) == 1 else candidate.folder,
            f"{hit!r} is named like a product of another sensor, not {sensor.title}",
            "ingest it with its own domain, or leave it out with ingest.exclude",
        )


def _file_code(header: Header, sensor: Sensor) -> str | None:
    if header.code:
        return header.code
    match = sensor.band_file.match(header.stem) if sensor.band_file else None
    return sensor.code(match["band"]) if match else None


def _band_files(candidate: Candidate, headers: list[Header], sensor: Sensor) -> tuple[Band, ...]:
    """One band per file; of a band that lies at several resolutions (Sentinel-2 Level-2A) the finest."""
    best: dict[str, Band] = {}
    for header in headers:
        code = _file_code(header, sensor)
        assert code is not None, header.path
        if header.count != 1:
            raise BadSource(
                header.path, f"named like the single band {code} but holds {header.count}", "rename it, or leave it out with ingest.exclude"
            )
        other = best.get(code)
        if other is not None and other.header.width == header.width:
            raise BadSource(
                candidate.folder, f"band {code} twice: {other.header.name} and {header.name}", "leave one out with ingest.exclude"
            )
        if other is None or header.width > other.header.width:
            best[code] = Band(code=code, header=header, index=1)
    return tuple(best.values())


def _stack(header: Header, texts: Sequence[str], select: Select, sensor: Sensor) -> tuple[tuple[Band, ...], str]:
    # Near infrared is often written as alpha by mistake; only a person can tell, by naming every band.
    named = len(select.bands) == header.count and header.count > 1
    plain = [index for index in range(header.count) if named or header.colours[index] != "alpha" or _described(header, index, sensor)]
    if len(plain) > sensor.max_bands:
        raise BadSource(
            header.path,
            f"{len(plain)} bands: a hyperspectral cube, which {sensor.title} is not",
            "use domain=hyperspectral if it has wavelengths, or take bands out (gdal_translate -b)",
        )
    if "palette" in header.colours:
        raise BadSource(
            header.path,
            "a palette image: its numbers are colour indexes",
            "expand it (gdal_translate -expand rgb), or leave it out if it is a map of classes",
        )
    if sensor.wavelengths is not None:
        codes, origin = sensor.wavelengths(header, texts), "wavelengths"
        return tuple(Band(code=code, header=header, index=index + 1) for index, code in enumerate(codes) if code), origin
    codes, origin = _codes(header, plain, select, sensor)
    twice = [code for code, times in Counter(code for code in codes if code).items() if times > 1]
    if twice:
        raise BadSource(
            header.path, f"band {twice[0]} twice in the descriptions", "correct the descriptions, or name all bands with ingest.bands=[...]"
        )
    return tuple(Band(code=code, header=header, index=index + 1) for index, code in zip(plain, codes) if code), origin


def _described(header: Header, index: int, sensor: Sensor) -> bool:
    return bool(header.descriptions[index]) and sensor.code(header.descriptions[index]) is not None


def _codes(header: Header, plain: list[int], select: Select, sensor: Sensor) -> tuple[list[str | None], str]:
    texts = ["" if _GENERIC.fullmatch(text) else text for text in (header.descriptions[index] for index in plain)]
    described = [sensor.code(text) if text else None for text in texts]
    if any(described):
        return described, "descriptions"
    colours = [header.colours[index] for index in plain]
    if _INKS & {*colours, header.tags.get("SOURCE_COLOR_SPACE", "").lower()}:
        raise BadSource(header.path, "ink or hue, not light: a CMYK or HLS picture", "convert it to RGB")
    if colours and all(sensor.code(colour) for colour in colours):
        return [sensor.code(colour) for colour in colours], "colour interpretation"
    if len(select.bands) == len(plain):
        return [sensor.code(name) for name in select.bands], "ingest.bands"
    if len(plain) in sensor.by_count and not any(texts):
        return list(sensor.by_count[len(plain)]), "count"
    raise _unnamed(header, len(plain), [text for text in texts if text], sensor)


def _unnamed(header: Header, count: int, texts: list[str], sensor: Sensor) -> BadSource:
    if texts:
        reason = f"its bands are described as {', '.join(texts[:4])}{' ...' if len(texts) > 4 else ''}: none is a band of {sensor.title}"
    else:
        certain = " or ".join(str(n) for n in sensor.by_count)
        reason = f"{count} band{'s' * (count != 1)} without names" + (f"; only {certain} are certain for {sensor.title}" if certain else "")
    return BadSource(
        header.path,
        reason,
        f"name all {count} in file order: ingest.bands=[...] of {_listed(sensor)}",
    )
