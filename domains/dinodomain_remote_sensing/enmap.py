"""Metadata of an EnMAP product (``*-METADATA.XML``): wavelengths, gains, level, time and sun (DLR, EnMAP product specification)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

from dinodomain.errors import BadSource
from dinodomain_remote_sensing import vfs

_NAME = re.compile(r"-METADATA\.XML$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enmap:
    """What the XML states.

    Attributes:
        path: The XML.
        level: ``L1B``, ``L1C`` or ``L2A``.
        wavelengths_nm: Centre per band.
        gains: Physical value per DN, per band.
        offsets: Physical value of DN 0, per band.
        background: DN that means "no data".
        acquired: Start of the acquisition, ISO without suffix.
        cloud: Cloud cover in percent.
        sun_elevation: At the centre, degrees.
        sun_azimuth: At the centre, degrees.
    """

    path: str
    level: str | None
    wavelengths_nm: tuple[float, ...]
    gains: tuple[float, ...]
    offsets: tuple[float, ...]
    background: float | None
    acquired: str | None
    cloud: float | None
    sun_elevation: float | None
    sun_azimuth: float | None


def read_enmap(texts: Sequence[str]) -> Enmap | None:
    """Reads the XML among the metadata files of a scene; None where there is none.

    Raises:
        BadSource: It is damaged.
    """
    path = next((path for path in texts if _NAME.search(vfs.name_of(path))), None)
    if path is None:
        return None
    data = vfs.read_bytes(path)
    try:
        if b"<!ENTITY" in data or b"<!DOCTYPE" in data[:2048]:
            raise ValueError("entities of its own")
        return _parsed(path, ElementTree.fromstring(data))
    except (ElementTree.ParseError, ValueError) as error:
        raise BadSource(path, f"not readable EnMAP metadata ({error})", "copy the product again") from None


def _parsed(path: str, root: ElementTree.Element) -> Enmap:
    bands = [element for element in root.iter("bandID") if element.find("wavelengthCenterOfBand") is not None]
    bands.sort(key=lambda element: int(element.get("number", "0")))
    level, start = root.findtext(".//base/level") or root.findtext(".//level"), root.findtext(".//startTime")
    return Enmap(
        path=path,
        level=level.strip().upper() if level else None,
        wavelengths_nm=tuple(float(band.findtext("wavelengthCenterOfBand", "")) for band in bands),
        gains=tuple(float(band.findtext("GainOfBand", "1")) for band in bands),
        offsets=tuple(float(band.findtext("OffsetOfBand", "0")) for band in bands),
        background=_number(root, ".//backgroundValue"),
        acquired=start.strip().rstrip("Z").split(".")[0] if start else None,
        cloud=_number(root, ".//cloudCover"),
        sun_elevation=_number(root, ".//sunElevationAngle/center"),
        sun_azimuth=_number(root, ".//sunAzimuthAngle/center"),
    )


def _number(root: ElementTree.Element, path: str) -> float | None:
    text = root.findtext(path)
    return float(text) if text else None
