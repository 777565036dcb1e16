"""What the figures of views share: values in the network's unit range, planes the right way up, unknown pixels hatched, a scale bar.

Every picture of a figure is shown in one range of the unit range, the same for all channels, so that a crop that looks darker is darker
for the network. Shapes: B samples of T dates, K network channels, D spatial axes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinodomain.errors import require
from dinodomain.lineage import write_bytes
from dinodomain.show.captions import Scale, length_unit, number
from dinodomain.show.sides import Frame, Plane, planes_of, side_names
from dinodomain.types import Batch, Normalisation, ViewGroup
from dinodomain.views.normalise import ToFloat, apply_range, known_pixels, source_channels, stored_channels

DPI = 100
_STRIPES = (0.35, 0.55)
_PERCENTILES = (0.5, 99.5)
_TOKEN_KNOWN = 1.0 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How tiles and crops of a batch are shown.

    Attributes:
        to_float: The domain's.
        normalisation: The run's.
        bands: One or three places among the network's channels.
        frames: Of every image, [B * T].
        scale: Of the first band.
        low: Physical value of unit 0 of the first band.
        display: Unit values shown black and white.
    """

    to_float: ToFloat
    normalisation: Normalisation
    bands: tuple[int, ...]
    frames: tuple[Frame, ...]
    scale: Scale
    low: float
    display: tuple[float, float] = (0.0, 1.0)

    @property
    def sources(self) -> tuple[str, ...]:
        """Stored channels behind the bands."""
        names = stored_channels(self.normalisation)
        return tuple(names[band] for band in self.bands)

    def planes(self, image: int) -> tuple[Plane, ...]:
        """The planes in which an image and its crops are shown."""
        return planes_of(self.frames[image])

    def range_words(self) -> str:
        """What black and white mean."""
        names = " ".join(self.normalisation.channels[band] for band in self.bands)
        black, white = (self.scale.value(value, self.low) for value in self.display)
        colours = "red, green, blue: " if len(self.bands) == 3 else ""
        return f"{colours}{names}, from {black} (black) to {white} (white) in every picture"


Image = tuple[np.ndarray, np.ndarray]
"""Pixels [bands, *L] in the unit range, and which of them are known [*L]."""


def unit_tiles(sight: Sight, batch: Batch) -> list[Image]:
    """Every image of a batch, [B * T], in the network's unit range, without its padding: L is that of its valid box."""
    pixels = batch.pixels.flatten(0, 1)
    known = known_pixels(pixels, None if batch.valid is None else batch.valid.flatten(0, 1))
    certain = torch.ones(pixels.shape[:1] + pixels.shape[2:], dtype=torch.bool) if known is None else known[:, 0].cpu()
    sources = list(source_channels(sight.normalisation, batch.channels))
    stored = torch.nan_to_num(pixels.float())[:, sources]
    unit = sight.to_float(stored, apply_range(batch.info, sight.normalisation, batch.channels))[:, list(sight.bands)].cpu().numpy()
    boxes = [tuple(slice(start, stop) for start, stop in box) for box in batch.info.valid_box.tolist()]
    return [(image[(slice(None), *box)], known[box]) for image, known, box in zip(unit, certain.numpy(), boxes)]


def unit_crop(sight: Sight, group: ViewGroup, row: int) -> Image:
    """One crop in the unit range. What is unknown is exactly 0 in all channels of the network's range."""
    pixels = group.pixels[row].cpu().numpy()
    known = np.ones(pixels.shape[1:], bool)
    if float(group.valid[row].min()) < _TOKEN_KNOWN:
        known = ~(pixels == 0).all(axis=0)
    shape = (-1, *(1,) * (pixels.ndim - 1))
    mean, std = (np.asarray(column)[list(sight.bands)].reshape(shape) for column in (sight.normalisation.mean, sight.normalisation.std))
    return pixels[list(sight.bands)] * std + mean, known


def display_range(images: Sequence[Image]) -> tuple[float, float]:
    """Unit 0 and the 99.5 percentile of all known pixels of all images and bands; the whole range where nothing differs.

    Black is the lower end of the network's range, so that half the light looks half as bright, unless that would leave more than half of
    the greys to values that no tile has; then it is the 0.5 percentile.
    """
    values = [pixels[:, known].ravel() for pixels, known in images if known.any()]
    low, high = np.percentile(np.concatenate(values), _PERCENTILES).tolist() if values else (0.0, 1.0)
    low, high = (round(max(low, 0.0), 3) if low > high / 2 else 0.0), round(min(high, 1.0), 3)
    return (low, high) if high - low >= 0.01 else (0.0, 1.0)


def paint(axes: Any, image: Image, plane: Plane, sight: Sight, *, spacing: Sequence[float]) -> None:
    """Shows one plane of an image; ``axes`` is matplotlib's.

    Args:
        axes: Where.
        image: Pixels and which are known.
        plane: As in ``Sight.planes``.
        sight: Of the figure.
        spacing: [D] of the image, so that lengths look right.
    """
    low, high = sight.display
    pixels = np.clip((plane.cut(image[0]) - low) / (high - low), 0, 1)
    known = plane.cut(image[1][None])[..., 0]
    colours = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    shown = np.where(known[..., None], colours, _hatching(known.shape)[..., None])
    axes.imshow(shown, interpolation="nearest", aspect=aspect_of(plane, spacing))


def aspect_of(plane: Plane, spacing: Sequence[float]) -> float:
    """Height of a pixel over its width; 1 where unknown."""
    ratio = float(spacing[plane.down] / spacing[plane.across]) if spacing[plane.across] else math.nan
    return ratio if math.isfinite(ratio) and ratio > 0 else 1.0


def _hatching(shape: tuple[int, ...]) -> np.ndarray:
    """Diagonal stripes, which no instrument measures."""
    rows, columns = np.indices(shape)
    width = max(1, max(shape) // 32)
    return np.where((rows + columns) // width % 2, *_STRIPES)


def name_sides(axes: Any, frame: Frame, plane: Plane, steps: np.ndarray | None = None) -> None:
    """Writes what lies on each side; see ``side_names``."""
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for text, (x, y, across, up) in zip(side_names(frame, plane, steps), places):
        options = {"ha": across, "va": up, "color": "yellow", "fontsize": 6, "fontweight": "bold"}
        axes.text(x, y, text, transform=axes.transAxes, **options)


def crop_steps(group: ViewGroup, row: int, spacing: Sequence[float]) -> np.ndarray:
    """[D, D] the way that one pixel along each axis of a crop is in its tile, as columns, in lengths."""
    own = np.nan_to_num(np.asarray(spacing, float), nan=1.0)
    steps: np.ndarray = group.to_tile[row, :, :-1].cpu().numpy() * own[:, None]
    return steps


def draw_scale(axes: Any, plane: Plane, extent: Sequence[int], spacing: Sequence[float], unit: str) -> None:
    """A bar of a round length at the lower left; none where the spacing is unknown."""
    step, width = float(spacing[plane.across]), extent[plane.across]
    if not (math.isfinite(step) and step > 0):
        return
    length = _round_length(0.35 * step * width)
    left, base = 0.04 * width, extent[plane.down] * 0.95 - 0.5
    axes.plot([left, left + length / step], [base, base], "-", color="black", linewidth=3, solid_capstyle="butt")
    axes.plot([left, left + length / step], [base, base], "-", color="white", linewidth=1.4, solid_capstyle="butt")
    words = f"{number(length / 1000)} km" if unit == "m" and length >= 1000 else f"{number(length)} {unit}"
    box = {"facecolor": "black", "alpha": 0.5, "pad": 0.6, "linewidth": 0}
    axes.text(left, base - 0.03 * extent[plane.down], words, color="white", fontsize=5.5, va="bottom", bbox=box)


def _round_length(limit: float) -> float:
    """The largest 1, 2 or 5 times a power of ten up to a limit."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= limit * (1 + 1e-9))


def unit_of(sight: Sight) -> str:
    """Unit of lengths."""
    return length_unit(sight.frames[0].axes)


def new_figure(width: float, height: float, wanted_by: str) -> Any:
    """A figure of so many inches whose bytes depend on what is drawn only."""
    figure_module = require("matplotlib.figure", extra="dev", wanted_by=wanted_by)
    agg = require("matplotlib.backends.backend_agg", extra="dev", wanted_by=wanted_by)
    figure = figure_module.Figure(figsize=(width, height), dpi=DPI)
    agg.FigureCanvasAgg(figure)
    return figure


def place_axes(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes without frame, in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_axis_off()
    return axes


def write_words(figure: Any, left: float, top: float, words: str, *, size: float, color: str = "black", weight: str = "normal") -> None:
    """Text, in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, words, fontsize=size, color=color, va="top", fontweight=weight, linespacing=1.15)


def save(figure: Any, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path
