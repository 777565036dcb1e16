"""Imaging spectrometers: many narrow bands, each known by its centre wavelength. EnMAP, PRISMA, AVIRIS, airborne cubes as GeoTIFF or ENVI.

A channel is named by its wavelength in whole nanometres (``nm0651``); where two bands of a file round to one name, as where two detectors
overlap, both get tenths (``nm0911_7``, ``nm0911_9``). Bands that the header calls bad, that lie outside 350 to 2600 nm, or that hold no
data anywhere are left out, and the stages say so.

Values are surface or top-of-atmosphere reflectance where the product's XML, the file's scale and offset, ENVI's ``reflectance scale
factor`` or the band unit says how; else digital numbers, whose channels end in ``_DN``. Radiance is refused: it depends on the sun.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from dinodomain.domain import Channel
from dinodomain.errors import BadSource
from dinodomain.types import CLOUD, SHADOW_SNOW
from dinodomain_remote_sensing.dates import acquired_from
from dinodomain_remote_sensing.enmap import Enmap, read_enmap
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.quality import Flags, classes
from dinodomain_remote_sensing.sensor import Band, Calibration, Meaning, Scene, Sensor, Value
from dinodomain_remote_sensing.sensors.policies import mixed, sees_haze
from dinodomain_remote_sensing.wavelengths import HIGH_NM, LOW_NM, good_bands, nanometres, wavelengths_nm

_NAME = re.compile(r"^nm(?P<whole>\d{4})(?:_(?P<tenth>\d))?(?P<dn>_DN)?$")
_QUALITY_FILE = re.compile(r"-QL_\w+$", re.IGNORECASE)
_RADIANCE = re.compile(r"radiance|w\s*/?\s*(?:\(?\s*m|cm)|watt", re.IGNORECASE)
_FULL_DN = 10000.0
REMEDY_SCALE = (
    "state it in the file: gdal_edit.py -scale 0.0001 FILE for DN, band unit 'reflectance' (-units) for reflectance, "
    "or 'reflectance scale factor = 10000' in the ENVI header"
)


class WavelengthChannels(Mapping[str, Channel]):
    """Every channel name from 350 to 2600 nm, by tenths, with and without ``_DN``; channels are made when asked for."""

    def __getitem__(self, name: str) -> Channel:
        nm = wavelength_of(name)
        if nm is None:
            raise KeyError(name)
        return _channel(nm, name.endswith("_DN"))

    def __iter__(self) -> Iterator[str]:
        for suffix in ("", "_DN"):
            for whole in range(int(LOW_NM), int(HIGH_NM) + 1):
                yield f"nm{whole:04d}{suffix}"
                yield from (f"nm{whole:04d}_{tenth}{suffix}" for tenth in range(10) if whole + tenth / 10 <= HIGH_NM)

    def __len__(self) -> int:
        whole = int(HIGH_NM) - int(LOW_NM)
        return 2 * (11 * whole + 2)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and wavelength_of(name) is not None


class ReflectanceWavelengths(Mapping[str, float]):
    """Centre wavelength in nm of every channel of reflectance on which haze and shadow act; digital numbers are none."""

    def __getitem__(self, name: str) -> float:
        nm = None if name.endswith("_DN") else wavelength_of(name)
        if nm is None or not sees_haze(nm):
            raise KeyError(name)
        return nm

    def __iter__(self) -> Iterator[str]:
        return (name for name in WavelengthChannels() if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def wavelength_of(name: str) -> float | None:
    """Wavelength in nm that a channel name states, or None if it is no such name."""
    match = _NAME.match(name)
    if match is None:
        return None
    nm = float(f"{match['whole']}.{match['tenth'] or 0}")
    return nm if LOW_NM <= nm <= HIGH_NM else None


@cache
def _channel(nm: float, number: bool) -> Channel:
    if number:
        return Channel(unit="DN", low=0.0, high=_FULL_DN, mean=0.2, std=0.15, wavelength_nm=nm)
    high = 0.4 if nm < 720 else 0.6
    return Channel(unit="reflectance", low=0.0, high=high, mean=0.35, std=0.22, wavelength_nm=nm)


def code(name: str) -> str | None:
    """``nm0651``, ``nm0651_DN``, ``651 nm``, ``0.651 um`` as ``nm0651``; None for anything else."""
    if wavelength_of(name) is not None:
        return name.removesuffix("_DN")
    nm = nanometres(name)
    return _named(nm) if nm is not None and LOW_NM <= nm <= HIGH_NM else None


def _named(nm: float, *, tenths: bool = False) -> str:
    return f"nm{int(round(nm, 1)):04d}_{round(nm * 10) % 10}" if tenths else f"nm{round(nm):04d}"


def _stated(header: Header, enmap: Enmap | None) -> list[float | None]:
    if enmap is not None and len(enmap.wavelengths_nm) == header.count:
        return list(enmap.wavelengths_nm)
    return wavelengths_nm(header)


def codes(header: Header, texts: Sequence[str]) -> list[str | None]:
    """Channel name per band; None for bands that are left out.

    Raises:
        BadSource: Nothing states the wavelengths, or two bands have one.
    """
    stated = _stated(header, read_enmap(texts))
    usable = [nm if nm is not None and good and LOW_NM <= nm <= HIGH_NM else None for nm, good in zip(stated, good_bands(header))]
    if not any(nm is not None for nm in stated):
        raise BadSource(
            header.path,
            f"{header.count} bands without wavelengths",
            "keep its ENVI header or metadata XML, or write them as band descriptions ('423.8 nm')",
        )
    if not any(nm is not None for nm in usable):
        raise BadSource(header.path, f"no good band between {LOW_NM:g} and {HIGH_NM:g} nm", "leave it out with ingest.exclude")
    times = Counter(_named(nm) for nm in usable if nm is not None)
    names = [None if nm is None else _named(nm, tenths=times[_named(nm)] > 1) for nm in usable]
    twice = [name for name, count in Counter(name for name in names if name).items() if count > 1]
    if twice:
        raise BadSource(header.path, f"two bands at {wavelength_of(twice[0]):g} nm", "leave one out (gdal_translate -b)")
    return names


def calibrate(scene: Scene) -> Meaning:
    """Reflectance or digital numbers, with the exact wavelength of every band.

    Raises:
        BadSource: Radiance, floating point that does not say what it is, or statements of scale that disagree.
    """
    header, enmap = scene.bands[0].header, read_enmap(scene.candidate.texts)
    if enmap is not None and enmap.level is not None and enmap.level.startswith("L1"):
        raise BadSource(scene.uri, f"EnMAP {enmap.level}: radiance, not reflectance", "ingest the L2A product")
    bands = tuple(_calibration(band, enmap) for band in scene.bands)
    stated, flags = _stated(header, enmap), _flags(scene)
    fields: dict[str, Value] = {
        "level": enmap.level if enmap else _level(scene),
        "platform": "EnMAP" if enmap or scene.names[0].upper().startswith("ENMAP") else header.tags.get("ENVI_SENSOR_TYPE"),
        "cloud_cover_percent": enmap.cloud if enmap else None,
        "sun_elevation_deg": enmap.sun_elevation if enmap else None,
        "sun_azimuth_deg": enmap.sun_azimuth if enmap else None,
        "masks": ",".join(flag.name for flag in flags) or None,
        **{f"wavelength_nm.{calibration.channel}": stated[band.place] for band, calibration in zip(scene.bands, bands)},
    }
    numbers = bands[0].channel.endswith("_DN")
    level = fields["level"]
    return Meaning(
        bands=bands,
        fields={k: v for k, v in fields.items() if v is not None},
        acquired=(enmap.acquired if enmap else None) or _time(header) or acquired_from(scene.names),
        stages=_left_out(header, stated),
        quantity="digital numbers" if numbers else f"{level} reflectance" if level else "reflectance of unstated level",
        flags=flags,
    )


def _calibration(band: Band, enmap: Enmap | None) -> Calibration:
    own = band.header.nodata[band.place]
    stated = (own, None if enmap is None else enmap.background)
    nodata = tuple(dict.fromkeys(value for value in stated if value is not None and value == value))
    linear = _linear(band, enmap)
    if linear is None:
        return Calibration(channel=f"{band.code}_DN", nodata=nodata)
    return Calibration(channel=band.code, scale=linear[0], offset=linear[1], nodata=nodata)


def _linear(band: Band, enmap: Enmap | None) -> tuple[float, float] | None:
    header, place = band.header, band.place
    _refuse_radiance(header, place)
    own = header.scales[place], header.offsets[place]
    factor = _factor(header)
    said = {
        "file": None if own == (1.0, 0.0) else own,
        "header's reflectance scale factor": None if factor is None else (1.0 / factor, 0.0),
        "metadata": (enmap.gains[place], enmap.offsets[place]) if enmap is not None and len(enmap.gains) == header.count else None,
    }
    found = {place_: pair for place_, pair in said.items() if pair is not None}
    if found:
        (first, pair), *others = found.items()
        for name, other in others:
            if any(abs(a - b) > 1e-9 for a, b in zip(pair, other)):
                problem = f"scale and offset {pair[0]:g}, {pair[1]:g} in the {first}, {other[0]:g}, {other[1]:g} from its {name}"
                raise BadSource(header.path, problem, "correct one of the two")
        return pair
    if header.units[place].lower() == "reflectance":
        return 1.0, 0.0
    if header.dtypes[place].startswith("float"):
        raise BadSource(header.path, "floating-point values that do not say whether they are reflectance or DN", REMEDY_SCALE)
    return None


def _factor(header: Header) -> float | None:
    text = header.tags.get("ENVI_REFLECTANCE_SCALE_FACTOR") or header.tags.get("REFLECTANCE_SCALE_FACTOR")
    if text is None:
        return None
    try:
        factor = float(text.strip("{} "))
    except ValueError:
        factor = 0.0
    if not factor > 0:
        raise BadSource(header.path, f"its reflectance scale factor is {text!r}", "correct the header")
    return factor


def _refuse_radiance(header: Header, place: int) -> None:
    texts = (header.units[place], *(header.tags.get(key, "") for key in ("ENVI_DATA_UNITS", "DATA_UNITS", "UNITS", "ENVI_Z_PLOT_TITLES")))
    hit = next((text for text in texts if _RADIANCE.search(text)), None)
    if hit is not None:
        raise BadSource(header.path, f"radiance ({hit.strip('{} ')}), not reflectance", "correct it for sun and atmosphere first")


def _left_out(header: Header, stated: Sequence[float | None]) -> tuple[str, ...]:
    good = good_bands(header)
    bad = sum(not one for one in good)
    outside = sum(one and (nm is None or not LOW_NM <= nm <= HIGH_NM) for nm, one in zip(stated, good))
    stages = [f"bad bands left out (bbl): {bad}"] if bad else []
    return tuple(stages + ([f"bands outside {LOW_NM:g} to {HIGH_NM:g} nm left out: {outside}"] if outside else []))


_MASKS = {
    "CLOUD": classes({1: CLOUD}),
    "CIRRUS": classes({1: CLOUD, 2: CLOUD, 3: CLOUD}),
    "CLOUDSHADOW": classes({1: SHADOW_SNOW}),
    "SNOW": classes({1: SHADOW_SNOW}),
}
"""EnMAP's quality layers: 0 is clear; cirrus has three degrees."""


def _flags(scene: Scene) -> tuple[Flags, ...]:
    layers = {header.stem.upper().rpartition("-QL_QUALITY_")[2]: header for header in scene.quality}
    return tuple(
        Flags(name=f"QL_QUALITY_{name}", header=layers[name], index=1, table=_MASKS[name]) for name in sorted(_MASKS.keys() & layers)
    )


def _level(scene: Scene) -> str | None:
    match = next((match for match in (re.search(r"(?:^|[_-])(L[12][A-D]?)(?=[_-]|$)", name) for name in scene.names) if match), None)
    return match[1] if match else None


def _time(header: Header) -> str | None:
    text = (header.tags.get("ENVI_ACQUISITION_TIME") or header.tags.get("ACQUISITION_TIME") or "").strip("{} ")
    match = re.match(r"\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}:\d{2})?", text)
    return match[0] if match else None


def _rank(channel: str) -> float:
    nm = wavelength_of(channel)
    assert nm is not None, channel
    return nm


HYPERSPECTRAL = Sensor(
    name="hyperspectral",
    title="a hyperspectral imager",
    channels=WavelengthChannels(),
    policy=mixed(ReflectanceWavelengths(), per_channel=False),
    probes=(),
    suffixes=(".tif", ".tiff", ".bsq", ".bil", ".bip", ".img", ".dat"),
    band_file=None,
    code=code,
    by_count={},
    foreign=None,
    calibrate=calibrate,
    facts=("level", "platform", "cloud_cover_percent", "sun_elevation_deg", "sun_azimuth_deg", "masks"),
    max_bands=512,
    quality_file=_QUALITY_FILE,
    wavelengths=codes,
    rank=_rank,
    drops_empty=True,
)
