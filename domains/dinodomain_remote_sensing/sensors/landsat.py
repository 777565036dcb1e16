"""Landsat 4 to 9: TM, ETM+, OLI and TIRS bands, Level 1 and Collection 2 Level 2, from band files with their MTL or from stacks.

A band number means another wavelength on every sensor, so channels carry the sensor: ``TM_B1`` is blue, ``OLI_B1`` coastal aerosol.
``ingest.bands`` takes the short form (``B4``) too. Channels whose calibration nothing states hold digital numbers and end in
``_DN``, so that they never share a batch with reflectance.

Top-of-atmosphere reflectance = (M DN + A) / sin(sun elevation); surface reflectance = M DN + A; surface temperature in kelvin = M DN + A
(USGS, Landsat 8-9 Data Users Handbook, section 5; Collection 2 Level-2 guide, table 6-1). Scale and offset come from the MTL or the
file. Those of Collection 2 Level 2 are constants of the collection, so there the product id alone states them.

Validity: fill 0, ``QA_PIXEL`` and ``QA_RADSAT`` (Collection 2), ``BQA`` (Collection 1). Level 1 and Level 2 reflectance, digital numbers,
and values whose level nothing states are different quantities.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from dinodomain.domain import Channel, ProbeSpec
from dinodomain.errors import BadSource
from dinodomain_remote_sensing.dates import acquired_from
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.mtl import read_mtl_of
from dinodomain_remote_sensing.quality import QA_PIXEL, Flags, bqa, radsat
from dinodomain_remote_sensing.sensor import Band, Calibration, Meaning, Scene, Sensor, Value
from dinodomain_remote_sensing.sensors.policies import mixed, wavelengths

# Centre wavelengths in nm: USGS, "What are the band designations for the Landsat satellites?" (band limits, halved).
_TM = {"B1": 485.0, "B2": 560.0, "B3": 660.0, "B4": 830.0, "B5": 1650.0, "B6": 11450.0, "B7": 2215.0}
_ETM = {
    "B1": 485.0,
    "B2": 560.0,
    "B3": 660.0,
    "B4": 835.0,
    "B5": 1650.0,
    "B6_VCID_1": 11450.0,
    "B6_VCID_2": 11450.0,
    "B7": 2220.0,
    "B8": 710.0,
}
_OLI = {"B1": 443.0, "B2": 482.0, "B3": 561.5, "B4": 654.5, "B5": 865.0, "B6": 1608.5, "B7": 2200.5, "B8": 589.5, "B9": 1373.5}
_TIRS = {"B10": 10895.0, "B11": 12005.0}
FAMILIES: dict[str, Mapping[str, float]] = {"TM": _TM, "ETM": _ETM, "OLI": _OLI, "TIRS": _TIRS}
OF_SATELLITE: dict[int, tuple[str, ...]] = {4: ("TM",), 5: ("TM",), 7: ("ETM",), 8: ("OLI", "TIRS"), 9: ("OLI", "TIRS")}
THERMAL_NM = 8000.0
REMEDY_MTL = (
    "keep its *_MTL.txt (or .json, .xml) in the same folder, or state scale and offset in the files "
    "(gdal_edit.py -scale 0.0000275 -offset -0.2 for Level-2 reflectance)"
)


def _channel(wavelength_nm: float) -> Channel:
    if wavelength_nm > THERMAL_NM:
        return Channel(unit="K", low=240.0, high=330.0, mean=0.55, std=0.15, wavelength_nm=wavelength_nm)
    if 1360 < wavelength_nm < 1390:
        return Channel(unit="reflectance", low=0.0, high=0.02, mean=0.1, std=0.25, wavelength_nm=wavelength_nm)
    high = 0.4 if wavelength_nm < 720 else 0.6
    return Channel(unit="reflectance", low=0.0, high=high, mean=0.35, std=0.22, wavelength_nm=wavelength_nm)


def _number_channel(family: str, wavelength_nm: float) -> Channel:
    full = 255.0 if family in ("TM", "ETM") else 65535.0
    mean, std = (0.25, 0.15) if full == 255.0 else (0.16, 0.08)
    return Channel(unit="DN", low=0.0, high=full, mean=mean, std=std, wavelength_nm=wavelength_nm)


CHANNELS: dict[str, Channel] = {f"{family}_{band}": _channel(nm) for family, bands in FAMILIES.items() for band, nm in bands.items()} | {
    f"{family}_{band}_DN": _number_channel(family, nm) for family, bands in FAMILIES.items() for band, nm in bands.items()
}

_BAND = r"B(?:1[01]|6_VCID_[12]|6[12]|[1-9])"
_CODE = re.compile(
    rf"^(?:(?:TM|ETM|OLI|TIRS|SR|ST)_)?(?:(?P<band>{_BAND})|band[ _-]?(?P<number>1[01]|[1-9]))(?:_DN)?(?![0-9A-Za-z])", re.IGNORECASE
)
_BAND_FILE = re.compile(rf"^(?P<prefix>(?:.*?[_\-.])?)(?:S[RT]_)?(?P<band>{_BAND})$", re.IGNORECASE)
_FOREIGN = re.compile(r"^(?:S[12][A-D]_|T\d{2}[A-Z]{3}_\d{8}T)")
_SATELLITE = re.compile(r"^L[COTEM]0?([4-9])(?=_|\d{6})|(?:^|[^A-Za-z])l(?:and)?sat[_ -]?0?([4-9])(?!\d)|^L([4-9])_", re.IGNORECASE)
_PRODUCT = re.compile(
    r"^L[COTEM]0[4-9]_(?P<level>L[12][A-Z]{2})_(?P<path>\d{3})(?P<row>\d{3})_\d{8}_\d{8}_(?P<collection>0[12])_(?P<category>T1|T2|RT|A1|A2)",
    re.IGNORECASE,
)
"""Product id of Collections 1 and 2."""

SURFACE_REFLECTANCE = (2.75e-5, -0.2)
SURFACE_TEMPERATURE = (0.00341802, 149.0)
_QUALITY_FILE = re.compile(r"(?:^|_)(?:BQA|QA_PIXEL|QA_RADSAT)$", re.IGNORECASE)
_RADSAT_BIT = {"B6_VCID_1": 5, "B6_VCID_2": 8} | {f"B{n}": n - 1 for n in (1, 2, 3, 4, 5, 6, 7, 9)}
"""Band to bit of ``QA_RADSAT`` (USGS, LSDS-1618 and LSDS-1619); panchromatic and TIRS bands have none."""

_LEVEL2 = re.compile(r"_L2S[PR]_|_S[RT]_B", re.IGNORECASE)


def code(name: str) -> str | None:
    """``B4``, ``Band 4``, ``SR_B4``, ``OLI_B4_DN`` as ``B4``; ``B61`` as ``B6_VCID_1``; None for anything else."""
    match = _CODE.match(name.strip())
    if match is None:
        return None
    band = (match["band"] or f"B{match['number']}").upper()
    return f"B6_VCID_{band[2]}" if band in ("B61", "B62") else band


def calibrate(scene: Scene) -> Meaning:
    """Reflectance, temperature or digital numbers of a scene, with its date and fields.

    Raises:
        BadSource: Nothing says which Landsat it is, a band does not exist there, or the level of 16-bit values is unknown.
    """
    facts = _facts(scene)
    satellite = _satellite(scene, facts)
    bands = tuple(_calibration(scene, band, satellite, facts) for band in scene.bands)
    day, time = facts.get("DATE_ACQUIRED"), facts.get("SCENE_CENTER_TIME", "").split(".")[0].rstrip("Z")
    stated, flags = (f"{day}T{time}" if time else day) if day else None, _flags(scene, satellite)
    fields = _fields(scene, facts, satellite)
    if flags:
        fields["masks"] = ",".join(flag.name for flag in flags)
    return Meaning(
        bands=bands,
        fields={k: v for k, v in fields.items() if v is not None},
        acquired=stated or acquired_from(scene.names),
        quantity=_quantity(bands, fields.get("level")),
        flags=flags,
    )


def _fields(scene: Scene, facts: Mapping[str, str], satellite: int | None) -> dict[str, Value]:
    product = _product(scene)
    named = product.groupdict() if product is not None else {}
    elevation = _number(facts.get("SUN_ELEVATION"))
    collection = facts.get("COLLECTION_NUMBER") or named.get("collection")
    return {
        "platform": f"Landsat-{satellite}" if satellite else None,
        "level": facts.get("PROCESSING_LEVEL") or facts.get("DATA_TYPE") or named.get("level"),
        "wrs_path": _integer(facts.get("WRS_PATH") or named.get("path")),
        "wrs_row": _integer(facts.get("WRS_ROW") or named.get("row")),
        "cloud_cover_percent": _cloud(facts),
        "sun_elevation_deg": elevation,
        "sun_zenith_deg": None if elevation is None else round(90.0 - elevation, 8),
        "sun_azimuth_deg": _number(facts.get("SUN_AZIMUTH")),
        "collection": _integer(collection),
        "collection_category": facts.get("COLLECTION_CATEGORY") or named.get("category"),
    }


def _cloud(facts: Mapping[str, str]) -> float | None:
    """Percent; -1 means that none was computed."""
    cloud = _number(facts.get("CLOUD_COVER"))
    return None if cloud is None or cloud < 0 else cloud


def _product(scene: Scene) -> re.Match[str] | None:
    return next((match for match in map(_PRODUCT.match, scene.names) if match), None)


def _quantity(bands: tuple[Calibration, ...], level: Value) -> str:
    """Digital numbers, or reflectance of the level that the product states (temperature in kelvin comes with it)."""
    if all(calibration.channel.endswith("_DN") for calibration in bands):
        return "digital numbers"
    stated = re.match(r"L?([12])", str(level or ""))
    return f"Level-{stated[1]} reflectance" if stated else "reflectance of unstated level"


def _flags(scene: Scene, satellite: int | None) -> tuple[Flags, ...]:
    oli = satellite is None or satellite >= 8
    tables: dict[str, bytes] = {"BQA": bqa(oli=oli), "QA_PIXEL": QA_PIXEL, "QA_RADSAT": _radsat(scene, oli)}
    found: dict[str, Header] = {}
    for header in sorted(scene.quality, key=lambda header: header.path):
        match = _QUALITY_FILE.search(header.stem)
        if match is not None:
            found.setdefault(match[0].strip("_").upper(), header)
    return tuple(Flags(name=name, header=header, index=1, table=tables[name]) for name, header in sorted(found.items()))


def _radsat(scene: Scene, oli: bool) -> bytes:
    """Saturation of the chosen bands only: that of a band which is not taken says nothing of the others."""
    chosen = {code(name) for name in scene.select.bands} or {band.code for band in scene.bands}
    return radsat((bit for band, bit in _RADSAT_BIT.items() if band in chosen), oli=oli)


def _facts(scene: Scene) -> dict[str, str]:
    """The MTL as ``KEY`` and ``GROUP.KEY`` (Level-2 files repeat keys in groups); tags of the file where there is no MTL."""
    return read_mtl_of(scene.candidate.texts, scene.uri) or dict(scene.bands[0].header.tags)


def _satellite(scene: Scene, facts: Mapping[str, str]) -> int | None:
    """The satellite's number, or None where ``ingest.bands`` names channels with their sensor."""
    stated = re.fullmatch(r"LANDSAT_?0?([4-9])", facts.get("SPACECRAFT_ID", "").upper())
    if stated is not None:
        return int(stated[1])
    for name in scene.names:
        match = _SATELLITE.search(name)
        if match is not None:
            return int(match[1] or match[2] or match[3])
    if scene.select.bands and all(name in CHANNELS for name in scene.select.bands):
        return None
    raise BadSource(
        scene.uri,
        "nothing says which Landsat it is, and band numbers differ between TM, ETM+ and OLI",
        "name channels with their sensor: ingest.bands=[OLI_B2,OLI_B3,...], or keep its *_MTL.txt",
    )


def _calibration(scene: Scene, band: Band, satellite: int | None, facts: Mapping[str, str]) -> Calibration:
    name = _channel_name(scene, band, satellite)
    header, place = band.header, band.place
    own = header.nodata[place]
    nodata = tuple(dict.fromkeys(value for value in (own, 0.0) if value is not None and value == value))
    linear = _linear(band, name, facts) or _of_collection_2(scene, band, name)
    if linear is not None:
        return Calibration(channel=name, scale=linear[0], offset=linear[1], nodata=nodata)
    if header.dtypes[place].startswith("float"):
        raise BadSource(header.path, "floating-point values that do not say whether they are reflectance or DN", REMEDY_MTL)
    if _LEVEL2.search(header.stem) or (name.startswith(("TM", "ETM")) and header.dtypes[place] != "uint8"):
        raise BadSource(header.path, f"{header.dtypes[place]} values of Level 2 or of an unknown level, without MTL", REMEDY_MTL)
    return Calibration(channel=f"{name}_DN", nodata=nodata)


def _channel_name(scene: Scene, band: Band, satellite: int | None) -> str:
    if satellite is None:
        # ingest.bands names the sensor: it must be one sensor's name for this band.
        names = [name.removesuffix("_DN") for name in scene.select.bands if code(name) == band.code]
        families: tuple[str, ...] = tuple({name.partition("_")[0] for name in names or scene.select.bands})
    else:
        families = OF_SATELLITE[satellite]
    for family in families:
        if band.code in FAMILIES[family]:
            return f"{family}_{band.code}"
    raise BadSource(
        band.header.path, f"band {band.code} does not exist on {' and '.join(families)}", "check ingest.bands and the name of the product"
    )


def _linear(band: Band, name: str, facts: Mapping[str, str]) -> tuple[float, float] | None:
    header, place = band.header, band.place
    own = header.scales[place], header.offsets[place]
    if own != (1.0, 0.0):
        return own
    if header.units[place].lower() in ("reflectance", "k", "kelvin"):
        return 1.0, 0.0
    number = band.code[1:]
    if re.search(r"(?:^|_)ST_B", header.stem, re.IGNORECASE):
        return _pair(facts, "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS", "TEMPERATURE", f"ST_B{number}")
    if re.search(r"(?:^|_)SR_B", header.stem, re.IGNORECASE):
        return _pair(facts, "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "REFLECTANCE", number)
    pair = _pair(facts, "LEVEL1_RADIOMETRIC_RESCALING", "REFLECTANCE", number) or _pair(
        facts, "RADIOMETRIC_RESCALING", "REFLECTANCE", number
    )
    elevation = _number(facts.get("SUN_ELEVATION"))
    if pair is None or elevation is None or elevation <= 0 or CHANNELS[name].unit != "reflectance":
        return None
    sine = math.sin(math.radians(elevation))
    return pair[0] / sine, pair[1] / sine


def _of_collection_2(scene: Scene, band: Band, name: str) -> tuple[float, float] | None:
    """The constants of Collection 2 Level 2, where the product id says that this is one and the file what it holds."""
    product = _product(scene)
    if product is None or product["collection"] != "02" or not product["level"].upper().startswith("L2S"):
        return None
    if band.header.dtypes[band.place] != "uint16":
        return None
    if CHANNELS[name].unit == "K":
        return SURFACE_TEMPERATURE if product["level"].upper() == "L2SP" else None
    return SURFACE_REFLECTANCE


def _pair(facts: Mapping[str, str], group: str, quantity: str, band: str) -> tuple[float, float] | None:
    gain, shift = (_number(facts.get(f"{group}.{quantity}_{part}_BAND_{band}")) for part in ("MULT", "ADD"))
    return None if gain is None or shift is None else (gain, shift)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


LANDSAT = Sensor(
    name="landsat",
    title="Landsat",
    channels=CHANNELS,
    policy=mixed(wavelengths(CHANNELS), per_channel=True),
    probes=(
        ProbeSpec(
            name="land_cover", task="segment", target="land_cover", metric="iou", unit="ground cell", source="USGS NLCD, sparse points"
        ),
    ),
    suffixes=(".tif", ".tiff"),
    band_file=_BAND_FILE,
    code=code,
    by_count={11: (*_OLI, *_TIRS)},
    foreign=_FOREIGN,
    calibrate=calibrate,
    quality_file=_QUALITY_FILE,
    facts=(
        "platform",
        "level",
        "wrs_path",
        "wrs_row",
        "cloud_cover_percent",
        "sun_elevation_deg",
        "sun_zenith_deg",
        "sun_azimuth_deg",
        "collection",
        "collection_category",
        "masks",
    ),
)
