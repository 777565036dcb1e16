"""Metadata of a Sentinel-2 product: its XML (``MTD_MSIL*.xml``, ``S2?_OPER_MTD_SAFL*.xml``) and its granule's (``MTD_TL.xml``).

Element names are ESA's (Sentinel-2 Products Specification Document, 14.9 and 15.0); older names of the same facts are read too. A product
of several granules has one product file and one granule file each.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dinodomain.errors import BadSource
from dinodomain_remote_sensing import vfs

PRODUCT_FILE = re.compile(r"^(?:MTD_MSIL[12][AC]|S2[A-D]_\w{4}_MTD_(?:SAF|DMP)L[12][AC]_\w+)\.xml$", re.IGNORECASE)
GRANULE_FILE = re.compile(r"^(?:MTD_TL|S2[A-D]_\w{4}_MTD_L[12][AC]_TL_\w+)\.xml$", re.IGNORECASE)

_QUANTIFICATION = ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "L1C_L2A_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
_ABSOLUTE_ORBIT = re.compile(r"_(\d{6})_N\d{2}\.\d{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the XML of one scene states; None and empty where it does not.

    Attributes:
        path: The product's XML.
        level: ``1C`` or ``2A``.
        baseline: Processing baseline as text, for example ``04.00``.
        quantification: DN per unit of reflectance.
        offsets: DN offset by ESA's band number (``band_id``).
        nodata: DN that means "no data".
        saturated: DN that means "saturated".
        platform: ``Sentinel-2A`` ...
        orbit: Absolute orbit number.
        relative_orbit: Relative orbit number.
        direction: ``ASCENDING`` or ``DESCENDING``.
        cloud: Cloud cover in percent, of the granule where its own file states it.
        sensing: Sensing time of the granule, else start of the product, ISO without suffix.
        sun_zenith: Mean over the granule, degrees.
        sun_azimuth: Mean over the granule, degrees clockwise from north.
        tile: MGRS tile, for example ``T32VPH``.
    """

    path: str
    level: str | None
    baseline: str | None
    quantification: float | None
    offsets: Mapping[int, float]
    nodata: float | None = None
    saturated: float | None = None
    platform: str | None = None
    orbit: int | None = None
    relative_orbit: int | None = None
    direction: str | None = None
    cloud: float | None = None
    sensing: str | None = None
    sun_zenith: float | None = None
    sun_azimuth: float | None = None
    tile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    """Texts of an XML by element name, first occurrence, with the path of the file."""

    path: str
    root: ElementTree.Element
    texts: dict[str, str] = field(default_factory=dict)

    def number(self, *names: str) -> float | None:
        """The first of these elements that is there.

        Raises:
            BadSource: It is no number.
        """
        for name in names:
            if name in self.texts:
                return _required(self.path, name, self.texts[name])
        return None


def read_product(texts: Sequence[str]) -> Product | None:
    """Reads the XML that belongs to one scene.

    Args:
        texts: Metadata files; others than product and granule XML are passed over.

    Returns:
        What it states, or None where there is no product XML.

    Raises:
        BadSource: It is damaged, there are several products, or a number is none.
    """
    products = [path for path in texts if PRODUCT_FILE.match(vfs.name_of(path))]
    granules = [path for path in texts if GRANULE_FILE.match(vfs.name_of(path))]
    if len(products) > 1 or len(granules) > 1:
        several = products if len(products) > 1 else granules
        raise BadSource(
            several[1], f"several metadata files of one scene: {', '.join(map(vfs.name_of, several))}", "leave one out with ingest.exclude"
        )
    if not products:
        return None
    product = _parse(products[0])
    granule = _parse(granules[0]) if granules else None
    return _product(product, granule)


def _parse(path: str) -> _Parsed:
    data = vfs.read_bytes(path)
    if b"<!DOCTYPE" in data[:2048] or b"<!ENTITY" in data:
        raise BadSource(path, "metadata with entities of its own, which ESA's never has", "copy the product again")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise BadSource(path, f"metadata is not readable XML ({error})", "copy the product again") from None
    texts: dict[str, str] = {}
    for element in root.iter():
        texts.setdefault(_tag(element), (element.text or "").strip())
    return _Parsed(path=path, root=root, texts=texts)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2].upper()


def _product(product: _Parsed, granule: _Parsed | None) -> Product:
    texts, special = product.texts, _special(product)
    own = granule.texts if granule is not None else {}
    level = re.search(r"[12][AC]", texts.get("PROCESSING_LEVEL", "").upper()) or re.search(
        r"L([12][AC])", vfs.name_of(product.path).upper()
    )
    orbit = _ABSOLUTE_ORBIT.search(_datatake(product))
    sun = _mean_sun(granule)
    start = own.get("SENSING_TIME") or texts.get("PRODUCT_START_TIME", "")
    tile = re.search(r"_(T\d{2}[A-Z]{3})_", own.get("TILE_ID", ""))
    relative = texts.get("SENSING_ORBIT_NUMBER", "")
    cloud = granule.number("CLOUDY_PIXEL_PERCENTAGE") if granule is not None else None
    return Product(
        path=product.path,
        level=None if level is None else level[level.lastindex or 0],
        baseline=texts.get("PROCESSING_BASELINE") or None,
        quantification=product.number(*_QUANTIFICATION),
        offsets=_offsets(product),
        nodata=special.get("NODATA"),
        saturated=special.get("SATURATED"),
        platform=texts.get("SPACECRAFT_NAME") or None,
        orbit=int(orbit[1]) if orbit else None,
        relative_orbit=int(relative) if relative.isdigit() else None,
        direction=texts.get("SENSING_ORBIT_DIRECTION") or None,
        cloud=product.number("CLOUD_COVERAGE_ASSESSMENT") if cloud is None else cloud,
        sensing=start.rstrip("Z").split(".")[0] or None,
        sun_zenith=sun[0],
        sun_azimuth=sun[1],
        tile=tile[1] if tile else None,
    )


def _datatake(product: _Parsed) -> str:
    return next((element.get("datatakeIdentifier", "") for element in product.root.iter() if _tag(element) == "DATATAKE"), "")


def _offsets(product: _Parsed) -> dict[int, float]:
    found = (element for element in product.root.iter() if _tag(element) in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"))
    return {
        int(element.get("band_id", "")): _required(product.path, _tag(element), (element.text or "").strip())
        for element in found
        if element.get("band_id", "").isdigit()
    }


def _special(product: _Parsed) -> dict[str, float]:
    values: dict[str, float] = {}
    for element in product.root.iter():
        if _tag(element) == "SPECIAL_VALUES":
            inside = {_tag(child): (child.text or "").strip() for child in element}
            if "SPECIAL_VALUE_TEXT" in inside and "SPECIAL_VALUE_INDEX" in inside:
                values[inside["SPECIAL_VALUE_TEXT"].upper()] = _required(product.path, "SPECIAL_VALUE_INDEX", inside["SPECIAL_VALUE_INDEX"])
    return values


def _mean_sun(granule: _Parsed | None) -> tuple[float | None, float | None]:
    if granule is None:
        return None, None
    mean = next((element for element in granule.root.iter() if _tag(element) == "MEAN_SUN_ANGLE"), None)
    if mean is None:
        return None, None
    inside = {_tag(child): (child.text or "").strip() for child in mean}
    zenith, azimuth = (inside.get(name) for name in ("ZENITH_ANGLE", "AZIMUTH_ANGLE"))
    return (
        None if zenith is None else _required(granule.path, "ZENITH_ANGLE", zenith),
        None if azimuth is None else _required(granule.path, "AZIMUTH_ANGLE", azimuth),
    )


def _required(path: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadSource(path, f"{name} is {text!r}, not a number", "copy the product again") from None
