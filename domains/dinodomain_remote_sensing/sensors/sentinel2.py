"""Sentinel-2 MSI: reflectance from digital numbers, Level-1C and Level-2A, files, stacks and SAFE products (folder or archive).

reflectance = (DN + add offset) / quantification value. The quantification value is 10000. From processing baseline 04.00 on
(25 January 2022) products carry an add offset of -1000 (ESA, Sentinel-2 Products Specification Document, 14.9: ``RADIO_ADD_OFFSET``,
``BOA_ADD_OFFSET``). Some hosts take it out again. It is read from the product's XML, from tags, or from the scale and offset of the
file; it is never guessed from pixels.

The two levels are different quantities (top of atmosphere, surface), and so is a reflectance whose level nothing states: one store
holds one of the three unless the user mixes them. Validity: DN 0 and the declared nodata, DN 65535 (saturated), and the product's own
classification: ``SCL`` of Level-2A, ``MSK_CLASSI_B00`` of Level-1C (baseline 04.00 on) or ``MSK_CLOUDS_B00.gml`` before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dinodomain.domain import Channel, ProbeSpec
from dinodomain.errors import BadSource
from dinodomain_remote_sensing.dates import acquired_from
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.outlines import is_epsg, read_outlines
from dinodomain_remote_sensing.quality import MSK_CLASSI, MSK_CLOUDS, SCL, Flags
from dinodomain_remote_sensing.safe import Product, read_product
from dinodomain_remote_sensing.sensor import Calibration, Meaning, Scene, Sensor, Value
from dinodomain_remote_sensing.sensors.policies import multispectral

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""In the order of ``band_id`` in ESA's metadata."""

SATURATED_DN = 65535.0
"""In every product (SPECIAL_VALUES)."""

QUANTIFICATION = 10000.0
OFFSET_BASELINE = 4.0
ADD_OFFSET = -1000.0
REMEDY_OFFSET = (
    "keep the product's MTD_MSIL*.xml beside the bands, or state it in the files: "
    "gdal_edit.py -scale 0.0001 -offset -0.1 FILE (-offset 0 if the host took it out)"
)


def _reflectance(high: float, mean: float, std: float, wavelength_nm: float) -> Channel:
    return Channel(
        unit="reflectance", low=0.0, high=high, mean=round(mean / high, 3), std=round(std / high, 3), wavelength_nm=wavelength_nm
    )


# Centre wavelengths: ESA, Sentinel-2A spectral response 3.0.
# Means and deviations: rounded from the Level-1C statistics of SSL4EO-S12 (Wang et al. 2023).
CHANNELS: dict[str, Channel] = {
    "B01": _reflectance(0.4, 0.16, 0.08, 442.7),
    "B02": _reflectance(0.4, 0.14, 0.09, 492.7),
    "B03": _reflectance(0.4, 0.13, 0.09, 559.8),
    "B04": _reflectance(0.4, 0.14, 0.11, 664.6),
    "B05": _reflectance(0.5, 0.16, 0.11, 704.1),
    "B06": _reflectance(0.6, 0.21, 0.12, 740.5),
    "B07": _reflectance(0.6, 0.24, 0.13, 782.8),
    "B08": _reflectance(0.6, 0.23, 0.12, 832.8),
    "B8A": _reflectance(0.6, 0.26, 0.13, 864.7),
    "B09": _reflectance(0.3, 0.08, 0.06, 945.1),
    "B10": _reflectance(0.02, 0.002, 0.005, 1373.5),
    "B11": _reflectance(0.6, 0.22, 0.13, 1613.7),
    "B12": _reflectance(0.5, 0.15, 0.11, 2202.4),
}

_CODE = re.compile(r"^(?:B|band[ _-]?)0?(8A|1[0-2]|[1-9])(?![0-9A-Za-z])", re.IGNORECASE)
_BAND_FILE = re.compile(r"^(?P<prefix>|.*[_\-.])(?P<band>B(?:0[1-9]|1[0-2]|8A))(?:_\d+m)?$", re.IGNORECASE)
_FOREIGN = re.compile(r"^(?:L[COTEM]0[4-9]_|L[COTEM]\d{13}|S1[A-D]_)", re.IGNORECASE)
_LEVEL = re.compile(r"MSIL(1C|2A)", re.IGNORECASE)
_SCL = re.compile(r"(?:^|_)SCL(?:_\d+m)?$", re.IGNORECASE)
_CLASSI = re.compile(r"(?:^|_)MSK_CLASSI_B00$", re.IGNORECASE)
_QUALITY_FILE = re.compile(r"(?:^|_)(?:SCL(?:_\d+m)?|MSK_CLASSI_B00|MSK_CLOUDS_B00)$", re.IGNORECASE)
_NAMED_BASELINE = re.compile(r"_N(\d{2})(\d{2})(?:_|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """What metadata says: DN to reflectance, and where it stands.

    Attributes:
        quantification: DN per unit of reflectance.
        add_offset: DN offset per band code; a band that is not named has 0.
        source: ``xml``, ``tags``, ``baseline``, ``file scale``.
    """

    quantification: float = QUANTIFICATION
    add_offset: Mapping[str, float] = field(default_factory=dict)
    source: str


def code(name: str) -> str | None:
    """``B8A``, ``b2``, ``Band 2``, ``B02 (490 nm)`` as ``B02``; None for anything else."""
    match = _CODE.match(name.strip())
    if match is None:
        return None
    digits = match[1].upper()
    return "B8A" if digits == "8A" else f"B{int(digits):02d}"


def calibrate(scene: Scene) -> Meaning:
    """Reflectance, nodata 0, level, baseline and date of a scene.

    Raises:
        BadSource: Values of floating point that do not say what they are, or statements about the offset that are missing or disagree.
    """
    _refuse_eight_bits(scene)
    product, tags = read_product(scene.candidate.texts), _tags(scene)
    statements = [_statement(band.header, product, tags) for band in scene.bands]
    _refuse_unsaid(scene, statements)
    bands = []
    for band, statement in zip(scene.bands, statements):
        scale, offset = _linear(band.header, band.place, band.code, statement)
        nodata = _nodata(band.header, band.place)
        shared = nodata == (0.0,) and not band.header.mask
        full = _saturated(band.header, band.place, product)
        bands.append(Calibration(channel=band.code, scale=scale, offset=offset, nodata=nodata, shared_nodata=shared, saturated=full))
    level, flags = _level(scene, product, tags), _flags(scene)
    fields = _fields(scene, product, tags) | {"level": f"L{level}" if level else None, "offset_from": statements[0].source}
    if flags:
        fields["masks"] = ",".join(dict.fromkeys(flag.name for flag in flags))
    start = (product.sensing if product else tags.get("PRODUCT_START_TIME", "").rstrip("Z").split(".")[0]) or None
    return Meaning(
        bands=tuple(bands),
        fields={k: v for k, v in fields.items() if v is not None},
        acquired=start or acquired_from(scene.names),
        quantity=f"L{level} reflectance" if level else "reflectance of unstated level",
        flags=flags,
    )


def _refuse_eight_bits(scene: Scene) -> None:
    """Sentinel-2 counts to 10,000 and more; eight bits are a picture made of it, or another sensor."""
    for band in scene.bands:
        if band.header.dtypes[band.place] in ("uint8", "int8") and band.header.scales[band.place] == 1.0:
            raise BadSource(
                band.header.path,
                "8-bit numbers without a scale are no Sentinel-2 reflectance: a picture, or another sensor",
                "take the bands themselves; domain=landsat or domain=aerial if it is one of theirs",
            )


def _fields(scene: Scene, product: Product | None, tags: Mapping[str, str]) -> dict[str, Value]:
    if product is not None:
        return {
            "processing_baseline": product.baseline,
            "platform": product.platform or _platform(scene),
            "orbit": product.orbit,
            "relative_orbit": product.relative_orbit,
            "orbit_direction": product.direction,
            "cloud_cover_percent": product.cloud,
            "sun_zenith_deg": product.sun_zenith,
            "sun_azimuth_deg": product.sun_azimuth,
            "sensing_time": product.sensing,
            "tile": product.tile or _tile(scene),
        }
    relative = tags.get("SENSING_ORBIT_NUMBER", "") or _named(scene, re.compile(r"_R(\d{3})_")) or ""
    return {
        "processing_baseline": tags.get("PROCESSING_BASELINE"),
        "platform": tags.get("SPACECRAFT_NAME") or _platform(scene),
        "relative_orbit": int(relative) if relative.isdigit() else None,
        "orbit_direction": tags.get("SENSING_ORBIT_DIRECTION"),
        "cloud_cover_percent": _number(tags.get("CLOUD_COVERAGE_ASSESSMENT")),
        "tile": _tile(scene),
    }


def _tags(scene: Scene) -> dict[str, str]:
    return {key: value for band in scene.bands for key, value in band.header.tags.items() if key in _TAGS}


_TAGS = frozenset(
    {
        "PROCESSING_BASELINE",
        "BOA_ADD_OFFSET",
        "RADIO_ADD_OFFSET",
        "QUANTIFICATION_VALUE",
        "BOA_QUANTIFICATION_VALUE",
        "SPACECRAFT_NAME",
        "PRODUCT_START_TIME",
        "SENSING_ORBIT_NUMBER",
        "SENSING_ORBIT_DIRECTION",
        "CLOUD_COVERAGE_ASSESSMENT",
        "PROCESSING_LEVEL",
    }
)


def _statement(header: Header, product: Product | None, tags: Mapping[str, str]) -> _Statement:
    if product is not None:
        return _product_statement(product)
    quantification = _number(tags.get("BOA_QUANTIFICATION_VALUE") or tags.get("QUANTIFICATION_VALUE")) or QUANTIFICATION
    single = tags.get("BOA_ADD_OFFSET") or tags.get("RADIO_ADD_OFFSET")
    if single is not None:
        return _Statement(
            quantification=quantification, add_offset=dict.fromkeys(BANDS, _required(header.path, "ADD_OFFSET", single)), source="tags"
        )
    baseline = _baseline(header.path, tags.get("PROCESSING_BASELINE"))
    if baseline is not None:
        offset = ADD_OFFSET if baseline >= OFFSET_BASELINE else 0.0
        return _Statement(quantification=quantification, add_offset=dict.fromkeys(BANDS, offset), source="baseline tag")
    return _Statement(quantification=quantification, source="not stated")


def _product_statement(product: Product) -> _Statement:
    """Offsets of the XML; from baseline 04.00 on a product without them is damaged.

    Raises:
        BadSource: The XML names no offsets although its baseline has them, or no quantification value.
    """
    baseline = _baseline(product.path, product.baseline)
    if not product.offsets and baseline is not None and baseline >= OFFSET_BASELINE:
        raise BadSource(
            product.path, f"processing baseline {product.baseline}, but no *_ADD_OFFSET: incomplete metadata", "copy the product again"
        )
    if product.quantification is not None and product.quantification <= 0:
        raise BadSource(product.path, f"its quantification value is {product.quantification:g}", "copy the product again")
    named = {BANDS[number]: offset for number, offset in product.offsets.items() if number < len(BANDS)}
    every = named if named else dict.fromkeys(BANDS, 0.0)
    return _Statement(quantification=product.quantification or QUANTIFICATION, add_offset=every, source="xml")


def _baseline(path: str, text: str | None) -> float | None:
    """``04.00``, ``N0400`` and ``0400`` as 4.0."""
    if text is None:
        return None
    digits = text.strip().upper().removeprefix("N")
    return _required(path, "PROCESSING_BASELINE", digits if "." in digits else f"{digits[:2]}.{digits[2:] or 0}")


def _refuse_unsaid(scene: Scene, statements: list[_Statement]) -> None:
    """A product named by ESA as baseline 04.00 or later has the offset, unless a host took it out: the name alone cannot tell."""
    silent = any(statement.source == "not stated" for statement in statements)
    named = next((match for match in map(_NAMED_BASELINE.search, scene.names) if match), None)
    scaled = all(_file_scale(band.header, band.place) is not None for band in scene.bands)
    if silent and named is not None and int(named[1]) >= OFFSET_BASELINE and not scaled:
        raise BadSource(
            scene.uri,
            f"its name says processing baseline {named[1]}.{named[2]}, which shifts DN by 1000, and nothing says whether that was undone",
            REMEDY_OFFSET,
        )


def _file_scale(header: Header, place: int) -> tuple[float, float] | None:
    pair = header.scales[place], header.offsets[place]
    return None if pair == (1.0, 0.0) else pair


def _linear(header: Header, place: int, band: str, statement: _Statement) -> tuple[float, float]:
    """Scale and offset of one band; the file's own GDAL scale wins where nothing contradicts it."""
    if statement.source != "not stated" and band not in statement.add_offset:
        raise BadSource(header.path, f"the offset list of its {statement.source} leaves out band {band}", "copy the product again")
    stated = 1.0 / statement.quantification, statement.add_offset.get(band, 0.0) / statement.quantification
    own = _file_scale(header, place)
    if own is not None:
        if statement.source != "not stated" and any(abs(a - b) > 1e-9 for a, b in zip(own, stated)):
            raise BadSource(
                header.path,
                f"scale and offset {own[0]:g}, {own[1]:g} in the file, {stated[0]:g}, {stated[1]:g} from its {statement.source}",
                "correct one of the two (gdal_edit.py)",
            )
        return own
    if header.dtypes[place].startswith("float"):
        if header.units[place].lower() in ("reflectance", "1"):
            return 1.0, 0.0
        raise BadSource(
            header.path,
            "floating-point values that do not say whether they are reflectance or DN",
            "state it in the file: gdal_edit.py -scale 0.0001 FILE for DN, band unit 'reflectance' (-units) for reflectance",
        )
    return stated


def _nodata(header: Header, place: int) -> tuple[float, ...]:
    """DN 0 is nodata in every product (specification, SPECIAL_VALUES); a declared value counts besides."""
    own = header.nodata[place]
    if header.dtypes[place].startswith("float"):
        return () if own is None else (own,)
    return (0.0,) if own is None or own == 0 or own != own else (0.0, own)


def _saturated(header: Header, place: int, product: Product | None) -> tuple[float, ...]:
    if header.dtypes[place] != "uint16":
        return ()
    stated = None if product is None else product.saturated
    return (SATURATED_DN,) if stated is None else (stated,)


def _flags(scene: Scene) -> tuple[Flags, ...]:
    """The scene classification (the finest there is), else the masks of Level-1C."""
    stack = scene.bands[0].header
    headers = sorted((header for header in scene.quality if _SCL.search(header.stem)), key=lambda header: -header.width)
    if headers:
        return (Flags(name="SCL", header=headers[0], index=1, table=SCL),)
    if "SCL" in (text.strip().upper() for text in stack.descriptions):
        index = [text.strip().upper() for text in stack.descriptions].index("SCL") + 1
        return (Flags(name="SCL", header=stack, index=index, table=SCL),)
    found = [header for header in scene.quality if _CLASSI.search(header.stem)]
    if not found:
        return _drawn(scene)
    return tuple(
        Flags(name="MSK_CLASSI", header=header, index=index, table=table)
        for header in found[:1]
        for index, table in enumerate(MSK_CLASSI[: header.count], start=1)
    )


def _drawn(scene: Scene) -> tuple[Flags, ...]:
    """Cloud outlines of older products, on the grid of the finest band.

    Raises:
        BadSource: They are damaged, or in another CRS than the scene.
    """
    path = next((path for path in scene.candidate.quality if path.lower().endswith(".gml")), None)
    if path is None:
        return ()
    outlines = read_outlines(path)
    finest = max((band.header for band in scene.bands), key=lambda header: header.width)
    if outlines.outlines and outlines.epsg is not None and finest.crs is not None and not is_epsg(finest.crs, outlines.epsg):
        raise BadSource(path, f"its outlines are in EPSG:{outlines.epsg}, another CRS than the scene's", "copy the product again")
    return (Flags(name="MSK_CLOUDS", header=finest, index=1, table=MSK_CLOUDS, outlines=outlines),) if outlines.outlines else ()


def _level(scene: Scene, product: Product | None, tags: Mapping[str, str]) -> str | None:
    if product is not None and product.level is not None:
        return product.level
    names = (tags.get("PROCESSING_LEVEL", "").replace("Level-", "MSIL"), *scene.names)
    match = next((match for match in map(_LEVEL.search, names) if match), None)
    return match[1].upper() if match else None


def _named(scene: Scene, pattern: re.Pattern[str]) -> str | None:
    return next((match[1] for match in map(pattern.search, scene.names) if match), None)


def _tile(scene: Scene) -> str | None:
    return _named(scene, re.compile(r"(?:^|_)(T\d{2}[C-X][A-Z]{2})(?=_|$)"))


def _platform(scene: Scene) -> str | None:
    match = next((match for match in (re.match(r"S2([A-D])_", name) for name in scene.names) if match), None)
    return f"Sentinel-2{match[1]}" if match else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _required(path: str, key: str, text: str) -> float:
    number = _number(text)
    if number is None:
        raise BadSource(path, f"{key} is {text!r}, not a number", REMEDY_OFFSET)
    return number


SENTINEL2 = Sensor(
    name="sentinel2",
    title="Sentinel-2",
    channels=CHANNELS,
    policy=multispectral(CHANNELS),
    probes=(
        ProbeSpec(
            name="eurosat",
            task="classify",
            target="label",
            metric="balanced_accuracy",
            unit="ground cell",
            source="Helber et al. 2019, EuroSAT",
        ),
        ProbeSpec(
            name="water", task="segment", target="water", metric="iou", unit="ground cell", source="Bonafilia et al. 2020, Sen1Floods11"
        ),
    ),
    suffixes=(".tif", ".tiff", ".jp2"),
    band_file=_BAND_FILE,
    code=code,
    by_count={13: BANDS, 12: tuple(band for band in BANDS if band != "B10")},
    foreign=_FOREIGN,
    calibrate=calibrate,
    quality_file=_QUALITY_FILE,
    facts=(
        "level",
        "processing_baseline",
        "platform",
        "orbit",
        "relative_orbit",
        "orbit_direction",
        "cloud_cover_percent",
        "sun_zenith_deg",
        "sun_azimuth_deg",
        "sensing_time",
        "tile",
        "masks",
        "offset_from",
    ),
)
