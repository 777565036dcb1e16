"""Checks what a catalogue says of the offset of Sentinel-2 numbers against the pixels.

From processing baseline 04.00 on digital numbers are shifted by +1000, and some hosts take that out again; a wrong statement moves
every reflectance by 0.1. What pixels can tell: shifted numbers hold next to nothing below 1000 (a reflectance below 0), so if more than
1 % of the valid pixels of most bands that were looked at lie below 800, the shift is not in them. What they cannot tell: numbers that all
lie above 1000 may be shifted, or of a scene that is bright everywhere (desert, snow, cloud); that gives a warning, never a refusal.
The look is decimated (an overview) or, where there is none, at five small windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinodomain.errors import BadSource, require
from dinodomain_remote_sensing.header import EXTRA, WANTED_BY, opened
from dinodomain_remote_sensing.sensor import Candidate
from dinodomain_remote_sensing.stated import Stated, StatedBand

SHIFT, TOLERANCE = 1000.0, 200.0
SHARE = 1.0
"""Percentile that stands for the darkest pixels, so that single bad ones decide nothing."""

DARKEST = {"L1C": ("B12", "B11", "B8A", "B04"), "": ("B02", "B04", "B12", "B03", "B8A", "B11", "B08")}
"""Bands that are dark somewhere in most scenes; at the top of the atmosphere blue is bright everywhere."""

NUM_BANDS, ENOUGH, SIDE = 3, 500, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The darkest numbers of some bands.

    Attributes:
        darkest: 1st percentile of the valid numbers by band code; empty where there were too few.
    """

    darkest: Mapping[str, float]

    @property
    def unshifted(self) -> bool:
        """Whether most bands hold numbers that shifted ones do not."""
        low = sum(value < SHIFT - TOLERANCE for value in self.darkest.values())
        return bool(self.darkest) and 2 * low > len(self.darkest)

    @property
    def bright(self) -> bool:
        """Whether every band looks as shifted numbers do."""
        return bool(self.darkest) and all(value >= SHIFT for value in self.darkest.values())

    def text(self) -> str:
        """For a message."""
        return ", ".join(f"{code} {value:.0f}" for code, value in self.darkest.items()) or "too few valid pixels"


def settled(candidate: Candidate) -> Candidate:
    """A candidate whose item no longer contradicts itself.

    Raises:
        BadSource: It does, and the pixels do not tell which statement holds.
    """
    stated = candidate.stated
    if stated is None or not stated.conflict:
        return candidate
    look, words = look_at(candidate), " but ".join(stated.conflict)
    if not look.unshifted:
        reason = f"its item says {words}; the pixels do not tell (darkest numbers: {look.text()})"
        raise BadSource(_uri(candidate), reason, "correct the item, or ingest the files with the scale and offset written into them")
    warning = f"its item says {words}; the pixels (darkest numbers: {look.text()}) show that no offset is left"
    return replace(candidate, stated=_plain(stated, warning))


def _plain(stated: Stated, warning: str) -> Stated:
    bands = {path: tuple(_without_offset(band) for band in own) for path, own in stated.bands.items()}
    tags = {**stated.tags, "BOA_ADD_OFFSET": "0"}
    return replace(stated, bands=bands, tags=tags, expects="plain", conflict=(), warnings=(*stated.warnings, warning))


def _without_offset(band: StatedBand) -> StatedBand:
    return band if band.offset is None else replace(band, offset=0.0)


def checked(candidate: Candidate) -> tuple[str, ...]:
    """Warnings about a scene whose item states something about its offset.

    Raises:
        BadSource: The pixels contradict it.
    """
    stated = candidate.stated
    if stated is None or not stated.expects:
        return ()
    look = look_at(candidate)
    if stated.expects == "shifted" and look.unshifted:
        reason = f"its item says that numbers are shifted by 1000, the pixels are not (darkest numbers: {look.text()})"
        raise BadSource(_uri(candidate), reason, "the host took the offset out already: correct the item (offset 0)")
    if stated.expects == "plain" and look.bright:
        words = f"nothing is darker than 0.1 (darkest numbers: {look.text()}), as if an offset of 1000 were still in"
        return (*stated.warnings, f"{words}; a scene of desert, snow or cloud looks the same")
    return stated.warnings


def _uri(candidate: Candidate) -> str:
    return candidate.rasters[0] if len(candidate.rasters) == 1 else candidate.folder


def look_at(candidate: Candidate) -> Look:
    """The darkest numbers of up to three bands of integers.

    Raises:
        BadSource: A file cannot be read.
    """
    stated = candidate.stated
    assert stated is not None
    by_code = {band.code: (path, index) for path, bands in stated.bands.items() for index, band in enumerate(bands, start=1)}
    level = "L1C" if "1C" in stated.tags.get("PROCESSING_LEVEL", "") else ""
    darkest = {}
    for code in [code for code in DARKEST[level] if code in by_code][:NUM_BANDS]:
        values = _valid(*by_code[code])
        if len(values) >= ENOUGH:
            darkest[code] = float(np.percentile(values, SHARE))
    return Look(darkest=darkest)


def _valid(path: str, index: int) -> np.ndarray:
    """Valid numbers of one band; none where they are floating point."""
    rasterio = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY)
    with opened(path) as dataset:
        if not dataset.dtypes[index - 1].startswith(("uint", "int")):
            return np.empty(0)
        try:
            parts = [block.ravel() for block in _blocks(dataset, index)]
        except rasterio.errors.RasterioError:
            return np.empty(0)  # reading all of it will tell
        values, nodata = np.concatenate(parts), dataset.nodatavals[index - 1]
    known = values != 0 if nodata is None else (values != 0) & (values != nodata)
    return np.asarray(values[known])


def _blocks(dataset: Any, index: int) -> list[np.ndarray]:
    rasterio = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY)
    height, width = dataset.height, dataset.width
    if dataset.overviews(index) or max(height, width) <= SIDE:
        factor = max(1, -(-max(height, width) // SIDE))
        return [dataset.read(index, out_shape=(max(1, height // factor), max(1, width // factor)))]
    side = SIDE // 2
    places = [(y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)] + [(0.5, 0.5)]
    corners = [(int(y * height) - side // 2, int(x * width) - side // 2) for y, x in places]
    windows = [rasterio.windows.Window(max(0, x), max(0, y), min(side, width), min(side, height)) for y, x in corners]
    return [dataset.read(index, window=window) for window in windows]
