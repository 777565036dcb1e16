"""Sentinel-1 C-band radar: geocoded calibrated backscatter in decibels.

Power and amplitude become decibels when read; what is stored is always dB. Whether that is sigma nought, gamma nought, beta nought or
terrain-flattened (RTC) is the quantity, and one store holds one, as it does backscatter whose calibration nothing states. Both are read
from units, descriptions, tags, endings of file names (``_VV_gamma0_db``) and the product names of ASF HyP3, or told by ``ingest.sar``;
they are never guessed. Raw GRD and SLC products (radar geometry, uncalibrated) are refused.

Bands are resampled as linear power. No data: NaN, the declared value, power and amplitude of 0 or less, and, in files of decibels that
declare none, pixels that are exactly 0 in every polarisation (the border that processors fill). Layover and shadow maps of HyP3 mark
radar shadow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dinodomain.domain import Channel, ProbeSpec
from dinodomain.errors import BadSource, UserError
from dinodomain.types import SHADOW_SNOW
from dinodomain_remote_sensing import vfs
from dinodomain_remote_sensing.dates import acquired_from
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.quality import Flags, bit_rules
from dinodomain_remote_sensing.sensor import Band, Calibration, Candidate, Decode, Meaning, Scene, Sensor, Value
from dinodomain_remote_sensing.sensors.policies import RADAR

DECODES: dict[str, Decode] = {"db": "none", "power": "power", "amplitude": "amplitude"}
CALIBRATIONS = ("sigma0", "gamma0", "beta0", "rtc")
NAMES = {"sigma0": "sigma0", "gamma0": "gamma0", "beta0": "beta0", "sigmanought": "sigma0", "gammanought": "gamma0", "betanought": "beta0"}
REMEDY_RAW = "calibrate, terrain-correct and geocode it first (SNAP, pyroSAR, or ordered as RTC), written as floating point"
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
    r"^(?P<prefix>|.*[_\-.])(?P<band>VV|VH|HH|HV)(?P<kind>(?:[_\-](?:db|power|amplitude|sigma0|gamma0|beta0|rtc))*)$", re.IGNORECASE
)
_FOREIGN = re.compile(r"^(?:L[COTEM]0[4-9]_|L[COTEM]\d{13}|S2[A-D]_)", re.IGNORECASE)
_RAW = re.compile(r"^s1[a-d]-(?:iw|ew|s\d)\d?-(?:grd|slc)", re.IGNORECASE)
_UNITS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:^|[^a-z])(?:db|decibels?)(?:$|[^a-z])"), "db"),
    (re.compile(r"(?:^|[^a-z])(?:intensity|power|linear power)(?:$|[^a-z])"), "power"),
    (re.compile(r"(?:^|[^a-z])amplitude(?:$|[^a-z])"), "amplitude"),
)
_HYP3 = re.compile(r"_RTC\d+_G_(?P<calibration>[gs])(?P<kind>[pad])[uw][nf][ec][dm]_", re.IGNORECASE)
"""ASF HyP3, product guide "RTC naming convention": gamma or sigma nought; power, amplitude or decibels."""

_PRODUCT = re.compile(
    r"^S1(?P<letter>[A-D])_(?P<mode>IW|EW|S\d|WV)_[A-Z]{3}\w_\w{4}_\d{8}T\d{6}_\d{8}T\d{6}_(?P<orbit>\d{6})_", re.IGNORECASE
)
_PYROSAR = re.compile(r"^S1[A-D]__(?P<mode>IW|EW|S\d)___(?P<pass>[AD])_\d{8}T\d{6}", re.IGNORECASE)
_FIRST_RELATIVE = {"A": 73, "B": 27}
"""Relative orbit = (absolute orbit - this) mod 175 + 1 (ESA, Sentinel-1 product definition)."""

_QUALITY_FILE = re.compile(r"_(?:ls_map|inc_map|dem|rgb|area)$", re.IGNORECASE)
_LAYOVER_SHADOW = bit_rules([(8, 8, SHADOW_SNOW)])
"""GAMMA: bit 3 is true shadow. Layover has a value, though of several places."""

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
    return "_".join(sorted(parts, key=CALIBRATIONS.index)) or None, kind


def refuse_raw(candidate: Candidate, headers: Sequence[Header]) -> None:
    """Refuses GRD and SLC products as ESA ships them.

    Raises:
        BadSource: They are.
    """
    for header in headers:
        inside = "/measurement/" in vfs.shown(header.path) and ".SAFE/" in vfs.shown(header.path)
        if inside or _RAW.match(header.stem) or any(dtype.startswith("complex") for dtype in header.dtypes):
            what = (
                "complex values" if any(dtype.startswith("complex") for dtype in header.dtypes) else f"{header.dtypes[0]} digital numbers"
            )
            raise BadSource(header.path, f"{what}: raw GRD or SLC, not calibrated backscatter", REMEDY_RAW)
        if header.gcps:
            raise BadSource(header.path, "radar geometry, placed by ground control points only: raw GRD or SLC", REMEDY_RAW)


def calibrate(scene: Scene) -> Meaning:
    """Decibels, calibration and date of a scene.

    Raises:
        BadSource: Raw or integer data, or values whose quantity nothing states.
    """
    kinds = [_kind(scene, band) for band in scene.bands]
    for index, what in ((0, "calibrations"), (1, "quantities")):
        several = sorted({str(kind[index]) for kind in kinds})
        if len(several) > 1:
            raise BadSource(scene.uri, f"bands of different {what}: {', '.join(several)}", "bring them to one, or separate the files")
    bands = tuple(_calibration(band, kind) for band, (_, kind) in zip(scene.bands, kinds))
    calibration, kind = kinds[0]
    flags = tuple(
        Flags(name="LS_MAP", header=header, index=1, table=_LAYOVER_SHADOW)
        for header in scene.quality
        if header.stem.lower().endswith("ls_map")
    )
    fields: dict[str, Value] = {
        "sar_calibration": calibration,
        "sar_stated_as": kind,
        "platform": _platform(scene),
        **_orbit(scene),
        "masks": "LS_MAP" if flags else None,
    }
    stages = () if kind == "db" else (f"{kind} to decibels",)
    return Meaning(
        bands=bands,
        fields={k: v for k, v in fields.items() if v is not None},
        acquired=acquired_from(scene.names),
        stages=stages,
        quantity=f"{calibration.replace('_rtc', ' RTC') if calibration else 'backscatter of unstated calibration'} dB",
        flags=flags,
    )


def _calibration(band: Band, kind: str) -> Calibration:
    header, place = band.header, band.place
    own, pair = header.nodata[place], (header.scales[place], header.offsets[place])
    if kind != "db" and pair != (1.0, 0.0):
        raise BadSource(
            header.path, f"{kind} with a scale of its own cannot become decibels", "apply it first: gdal_translate -unscale -ot Float32"
        )
    nodata = () if own is None or own != own else (own,)
    # Where nothing is declared, processors fill the border with zeros, in all polarisations alike.
    border = kind == "db" and own is None and pair == (1.0, 0.0) and not header.mask
    return Calibration(
        channel=band.code,
        scale=pair[0],
        offset=pair[1],
        nodata=(0.0,) if border else nodata,
        decode=DECODES[kind],
        shared_nodata=border,
    )


def _orbit(scene: Scene) -> dict[str, Value]:
    """Orbit and look, from the product's name or tags."""
    tags = {key.upper(): value for band in scene.bands for key, value in band.header.tags.items()}
    product = next((match for match in map(_PRODUCT.match, scene.names) if match), None)
    pyrosar = next((match for match in map(_PYROSAR.match, scene.names) if match), None)
    passes = _first(tags, "ORBIT_DIRECTION", "ORBIT_PASS", "PASS", "ORBITPROPERTIES_PASS", "SAT:ORBIT_STATE").upper()
    direction = {"A": "ASCENDING", "D": "DESCENDING"}.get(passes[:1] or (pyrosar["pass"].upper() if pyrosar else ""))
    absolute = _first(tags, "ORBIT_NUMBER", "ABSOLUTE_ORBIT", "ABSOLUTE_ORBIT_NUMBER") or (product["orbit"] if product else "")
    relative = _first(tags, "RELATIVE_ORBIT", "RELATIVE_ORBIT_NUMBER", "RELATIVEORBITNUMBER_START", "TRACK_NUMBER")
    first = _FIRST_RELATIVE.get(product["letter"].upper()) if product else None
    derived = (int(absolute) - first) % 175 + 1 if first is not None and absolute.isdigit() else None
    look = _first(tags, "LOOK_DIRECTION", "LOOK_SIDE", "ANTENNA_POINTING").upper()
    mode = product["mode"] if product else pyrosar["mode"] if pyrosar else None
    return {
        "orbit": int(absolute) if absolute.isdigit() else None,
        "relative_orbit": int(relative) if relative.isdigit() else derived,
        "orbit_direction": direction,
        "look_direction": look or None,
        "mode": mode.upper() if mode else None,
    }


def _first(tags: dict[str, str], *names: str) -> str:
    return next((tags[name].strip() for name in names if tags.get(name, "").strip()), "")


def _kind(scene: Scene, band: Band) -> tuple[str | None, str]:
    """(calibration or None, ``db`` | ``power`` | ``amplitude``) of one band.

    Raises:
        BadSource: Digital numbers, or nothing says what they are, or statements disagree.
    """
    header = band.header
    calibrations, kinds = _said(scene, band)
    told = parse_sar(scene.select.sar) if scene.select.sar else None
    scaled_db = kinds == {"db"} and (header.scales[band.place], header.offsets[band.place]) != (1.0, 0.0)
    if not header.dtypes[band.place].startswith("float") and not scaled_db:
        problem = f"{header.dtypes[band.place]} digital numbers: raw GRD or SLC, not calibrated backscatter"
        raise BadSource(header.path, problem, REMEDY_RAW)
    for said, what in ((kinds, "kind"), (calibrations, "calibration")):
        if len(said) > 1:
            raise BadSource(
                header.path, f"says both {' and '.join(sorted(said))}", f"correct the {what} in its tags or name (gdal_edit.py)"
            )
    kind, calibration = next(iter(kinds), None), next(iter(calibrations), None)
    if told is not None:
        for own, word in ((kind, told[1]), (calibration, told[0])):
            if own is not None and word is not None and own != word:
                raise BadSource(header.path, f"its tags say {own}, ingest.sar says {word}", "correct the one that is wrong")
    if kind is None and told is None:
        raise BadSource(header.path, "nothing says whether its values are dB, power or amplitude", REMEDY)
    return calibration or (told[0] if told else None), kind or (told[1] if told else "")


def _said(scene: Scene, band: Band) -> tuple[set[str], set[str]]:
    """Calibrations and kinds that units, description, tags and names state."""
    header = band.header
    named = _BAND_FILE.match(header.stem)
    ending = named["kind"] if named else ""
    texts = [header.units[band.place], header.descriptions[band.place], *(header.tags.get(key, "") for key in _TAGS), ending]
    joined = " | ".join(texts).lower().replace("_", " ").replace("-", " ")
    kinds = {kind for pattern, kind in _UNITS if pattern.search(joined)}
    tight = joined.replace(" ", "")
    bases = {base for word, base in NAMES.items() if word in tight}
    rtc = "rtc" in tight or "terrainflatten" in tight
    hyp3 = next((match for match in map(_HYP3.search, scene.names) if match), None)
    if hyp3 is not None:
        kinds.add({"p": "power", "a": "amplitude", "d": "db"}[hyp3["kind"].lower()])
        bases.add({"g": "gamma0", "s": "sigma0"}[hyp3["calibration"].lower()])
        rtc = True
    calibrations = {f"{base}_rtc" if rtc else base for base in bases} or ({"rtc"} if rtc else set())
    return calibrations, kinds


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
    refuse=refuse_raw,
    quality_file=_QUALITY_FILE,
    facts=(
        "sar_calibration",
        "sar_stated_as",
        "platform",
        "orbit",
        "relative_orbit",
        "orbit_direction",
        "look_direction",
        "mode",
        "masks",
    ),
)
