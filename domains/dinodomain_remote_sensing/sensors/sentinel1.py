"""Sentinel-1 C-band radar: geocoded calibrated backscatter in decibels.

Power and amplitude become decibels when read, so that a store holds one quantity. What the numbers are is read from units,
descriptions or tags, or told by ``ingest.sar``; it is never guessed. Raw GRD and SLC products (radar geometry, uncalibrated) are refused.
"""

from __future__ import annotations

import re

from dinodomain.domain import Channel, ProbeSpec
from dinodomain.errors import BadSource, UserError
from dinodomain_remote_sensing.dates import acquired_from
from dinodomain_remote_sensing.sensor import Band, Calibration, Decode, Meaning, Scene, Sensor, Value
from dinodomain_remote_sensing.sensors.policies import RADAR

DECODES: dict[str, Decode] = {"db": "none", "power": "power", "amplitude": "amplitude"}
CALIBRATIONS = ("sigma0", "gamma0", "beta0", "rtc")
REMEDY = "say what the values are: ingest.sar=db (or power, amplitude; sigma0_db, gamma0_power ... where known)"

# C band, 5.405 GHz. Cross-polarised returns are about 7 dB weaker.
# Means and deviations: rounded from the GRD statistics of SSL4EO-S12 (Wang et al. 2023); HH and HV by analogy.
CHANNELS: dict[str, Channel] = {
    "VV": Channel(unit="dB", low=-30.0, high=5.0, mean=0.5, std=0.14, wavelength_nm=5.5466e7),
    "VH": Channel(unit="dB", low=-35.0, high=0.0, mean=0.45, std=0.15, wavelength_nm=5.5466e7),
    "HH": Channel(unit="dB", low=-30.0, high=5.0, mean=0.5, std=0.14, wavelength_nm=5.5466e7),
    "HV": Channel(unit="dB", low=-35.0, high=0.0, mean=0.45, std=0.15, wavelength_nm=5.5466e7),
}

_CODE = re.compile(r"(?:^|[^A-Za-z])(VV|VH|HH|HV)(?:$|[^A-Za-z])", re.IGNORECASE)
_BAND_FILE = re.compile(
    r"^(?P<prefix>|.*[_\-.])(?P<band>VV|VH|HH|HV)(?P<kind>(?:[_\-](?:db|power|amplitude|sigma0|gamma0|rtc))*)$", re.IGNORECASE
)
_FOREIGN = re.compile(r"^(?:L[COTEM]0[4-9]_|L[COTEM]\d{13}|S2[A-D]_)", re.IGNORECASE)
_RAW = re.compile(r"^s1[a-d]-(?:iw|ew|s\d)\d?-(?:grd|slc)", re.IGNORECASE)
_UNITS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:^|[^a-z])(?:db|decibels?)(?:$|[^a-z])"), "db"),
    (re.compile(r"(?:^|[^a-z])(?:intensity|power|linear power)(?:$|[^a-z])"), "power"),
    (re.compile(r"(?:^|[^a-z])amplitude(?:$|[^a-z])"), "amplitude"),
)
_TAGS = ("UNITS", "UNIT", "QUANTITY", "SCALE_TYPE", "BACKSCATTER", "CALIBRATION", "RADIOMETRY")


def code(name: str) -> str | None:
    """``Sigma0_VV_db``, ``vv`` as ``VV``; None for anything else."""
    match = _CODE.search(name.strip())
    return match[1].upper() if match else None


def parse_sar(text: str) -> tuple[str | None, str]:
    """``sigma0_db`` as (``sigma0``, ``db``), ``db`` as (None, ``db``).

    Raises:
        UserError: It is neither.
    """
    calibration, _, kind = text.lower().rpartition("_")
    parts = [part for part in calibration.split("_") if part]
    if kind not in DECODES or any(part not in CALIBRATIONS for part in parts):
        allowed = f"{', '.join(DECODES)}, with {', '.join(CALIBRATIONS)} before it if known (sigma0_db)"
        raise UserError("ingest.sar", f"{text!r}", allowed=allowed)
    return "_".join(parts) or None, kind


def calibrate(scene: Scene) -> Meaning:
    """Decibels, calibration and date of a scene.

    Raises:
        BadSource: Raw or integer data, or values whose quantity nothing states.
    """
    kinds = [_kind(scene, band) for band in scene.bands]
    if len({kind for _, kind in kinds}) > 1:
        raise BadSource(scene.uri, f"bands of different quantities: {', '.join(sorted({kind for _, kind in kinds}))}", "bring them to one")
    bands = []
    for band, (_, kind) in zip(scene.bands, kinds):
        own = band.header.nodata[band.place]
        nodata = () if own is None or own != own else (own,)
        scale, offset = band.header.scales[band.place], band.header.offsets[band.place]
        if kind != "db" and (scale, offset) != (1.0, 0.0):
            raise BadSource(
                band.header.path,
                f"{kind} with a scale of its own cannot become decibels",
                "apply it first: gdal_translate -unscale -ot Float32",
            )
        bands.append(Calibration(channel=band.code, scale=scale, offset=offset, nodata=nodata, decode=DECODES[kind]))
    calibration, kind = kinds[0]
    fields: dict[str, Value] = {"sar_calibration": calibration, "sar_stated_as": kind, "platform": _platform(scene)}
    stages = () if kind == "db" else (f"{kind} to decibels",)
    return Meaning(
        bands=tuple(bands), fields={k: v for k, v in fields.items() if v is not None}, acquired=acquired_from(scene.names), stages=stages
    )


def _kind(scene: Scene, band: Band) -> tuple[str | None, str]:
    header = band.header
    kind_of_number = header.dtypes[band.place]
    if kind_of_number.startswith("complex") or _RAW.match(header.stem) or not kind_of_number.startswith("float"):
        raise BadSource(
            header.path,
            f"{kind_of_number} digital numbers: raw GRD or SLC, not calibrated backscatter",
            "calibrate, terrain-correct and geocode it first (SNAP, pyroSAR, RTC), written as floating point",
        )
    texts = [header.units[band.place], header.descriptions[band.place], *(header.tags.get(key, "") for key in _TAGS)]
    joined = " | ".join(texts).lower().replace("_", " ")
    found = [kind for pattern, kind in _UNITS if pattern.search(joined)]
    calibration = next((word for word in CALIBRATIONS if word in joined.replace(" ", "")), None)
    if len(found) > 1:
        raise BadSource(header.path, f"says both {found[0]} and {found[1]}", "correct its tags (gdal_edit.py)")
    told = parse_sar(scene.select.sar) if scene.select.sar else None
    if found:
        if told is not None and told[1] != found[0]:
            raise BadSource(header.path, f"its tags say {found[0]}, ingest.sar says {told[1]}", "correct the one that is wrong")
        return calibration, found[0]
    if told is None:
        raise BadSource(header.path, "nothing says whether its values are dB, power or amplitude", REMEDY)
    return told[0] or calibration, told[1]


def _platform(scene: Scene) -> str | None:
    match = next((match for match in (re.match(r"S1([A-D])_", name, re.IGNORECASE) for name in scene.names) if match), None)
    return f"Sentinel-1{match[1].upper()}" if match else None


SENTINEL1 = Sensor(
    name="sentinel1",
    title="Sentinel-1",
    channels=CHANNELS,
    policy=RADAR,
    probes=(
        ProbeSpec(
            name="water", task="segment", target="water", metric="iou", unit="ground cell", source="Bonafilia et al. 2020, Sen1Floods11"
        ),
    ),
    suffixes=(".tif", ".tiff"),
    band_file=_BAND_FILE,
    code=code,
    by_count={},
    foreign=_FOREIGN,
    calibrate=calibrate,
)
