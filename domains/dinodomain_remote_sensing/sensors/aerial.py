"""Aerial and very-high-resolution RGB or RGB + near infrared: orthophotos with a place on the ground, and plain pictures without one.

Values are fractions of full scale (255, 65535, or what ``NBITS`` says), for cameras are not calibrated. Alpha is validity, never a channel.
"""

from __future__ import annotations

from dinodomain.domain import Channel, ProbeSpec
from dinodomain.errors import BadSource
from dinodomain_remote_sensing.dates import acquired_from
from dinodomain_remote_sensing.header import Header
from dinodomain_remote_sensing.sensor import Band, Calibration, Meaning, Scene, Sensor
from dinodomain_remote_sensing.sensors.policies import PHOTOGRAPH

# Means and deviations are ImageNet's, close to those of aerial RGB collections; near infrared by analogy.
CHANNELS: dict[str, Channel] = {
    "red": Channel(unit="1", low=0.0, high=1.0, mean=0.485, std=0.229, wavelength_nm=650.0),
    "green": Channel(unit="1", low=0.0, high=1.0, mean=0.456, std=0.224, wavelength_nm=550.0),
    "blue": Channel(unit="1", low=0.0, high=1.0, mean=0.406, std=0.225, wavelength_nm=450.0),
    "nir": Channel(unit="1", low=0.0, high=1.0, mean=0.45, std=0.22, wavelength_nm=850.0),
}

_CODES = {"r": "red", "g": "green", "b": "blue", "n": "nir", "i": "nir", "infrared": "nir", "near infrared": "nir", "near-infrared": "nir"}


def code(name: str) -> str | None:
    """``Red``, ``band 1 (red)``, ``N`` as ``red``, ``red``, ``nir``; None for anything else."""
    plain = name.strip().lower()
    if plain in CHANNELS or plain in _CODES:
        return _CODES.get(plain, plain)
    inner = plain.partition("(")[2].rstrip(")").strip()
    return _CODES.get(inner, inner) if inner in CHANNELS or inner in _CODES else None


def calibrate(scene: Scene) -> Meaning:
    """Fractions of full scale.

    Raises:
        BadSource: Values that are no 8 or 16 bit counts, or bands that are not RGB or RGBN.
    """
    codes = {band.code for band in scene.bands}
    if not {"red", "green", "blue"} <= codes:
        raise BadSource(
            scene.uri,
            f"bands {', '.join(sorted(codes))}: not RGB or RGBN",
            "name all bands in file order: ingest.bands=[red,green,blue,nir]",
        )
    return Meaning(bands=tuple(_calibration(band) for band in scene.bands), acquired=acquired_from(scene.names))


def _calibration(band: Band) -> Calibration:
    header = band.header
    own = header.nodata[band.place]
    return Calibration(channel=band.code, scale=1.0 / _full_scale(header, band.place), nodata=() if own is None or own != own else (own,))


def _full_scale(header: Header, place: int) -> float:
    if header.dtypes[place] not in ("uint8", "uint16"):
        raise BadSource(
            header.path,
            f"{header.dtypes[place]} values; aerial takes 8 or 16 bit counts",
            "convert it (gdal_translate -ot UInt16), or use the domain of its sensor",
        )
    bits = header.nbits or (8 if header.dtypes[place] == "uint8" else 16)
    return float(2**bits - 1)


AERIAL = Sensor(
    name="aerial",
    title="aerial RGB(N)",
    channels=CHANNELS,
    policy=PHOTOGRAPH,
    probes=(
        ProbeSpec(
            name="land_use",
            task="classify",
            target="label",
            metric="balanced_accuracy",
            unit="scene",
            source="Yang and Newsam 2010, UC Merced",
        ),
    ),
    suffixes=(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2"),
    band_file=None,
    code=code,
    by_count={3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")},
    foreign=None,
    calibrate=calibrate,
    pictures=True,
)
