"""Pictures and maps of tiles as panels, the right way up: one plane of an image, three of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinodomain.properties.scene import Picture, Scene
from dinodomain.show.panels import Panel, blend, enlarged
from dinodomain.show.sides import Plane, planes_of, side_names
from dinodomain.show.sight import aspect_of

MOST_ROWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One plane of one tile.

    Attributes:
        number: Of the tile among those that are looked at.
        tile: The tile.
        plane: As it is shown.
        at: Share 0..1 of the way through the tile at which a volume is cut.
    """

    number: int
    tile: Picture
    plane: Plane
    at: float = 0.5

    @property
    def label(self) -> str:
        """Caption of a row."""
        date = self.tile.label if self.tile.frame.kind == "ground" else ""  # dates of people are shifted, and would mislead
        return "\n".join(part for part in (f"tile {self.number + 1}", self.plane.name, date) if part)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """[K, *L] on pixels or on the token grid to [rows, columns, K] as shown."""
        if self.plane.through is None:
            return self.plane.cut(values)
        axis = 1 + self.plane.through
        place = min(int(self.at * values.shape[axis]), values.shape[axis] - 1)
        return self.plane.cut(values.take([place], axis=axis))

    def map(self, values: np.ndarray) -> np.ndarray:
        """[P] or [P, K] of patches to [rows, columns] or [rows, columns, K]."""
        shaped = values.reshape(*self.tile.grid, -1)
        found = self.cut(np.moveaxis(shaped, -1, 0))
        return found if values.ndim == 2 else found[..., 0]


def views_of(tiles: Sequence[Picture], most: int = MOST_ROWS) -> list[View]:
    """The planes that are shown: the plane of each image, or axial, coronal and sagittal of each volume, ``most`` rows in all."""
    found = [
        View(number=number, tile=tile, plane=plane, at=middle_of(tile, plane.through))
        for number, tile in enumerate(tiles)
        for plane in planes_of(tile.frame)
    ]
    return found[:most]


def middle_of(tile: Picture, through: int | None) -> float:
    """Share of the way through a tile at which what holds data has its middle: padding is not worth a picture."""
    if through is None or not tile.known.any():
        return 0.5
    real = np.flatnonzero(tile.known.any(axis=tuple(axis for axis in range(tile.known.ndim) if axis != through)))
    return float((real[0] + real[-1] + 1) / (2 * tile.known.shape[through]))


def photo(scene: Scene, view: View) -> np.ndarray:
    """[rows, columns, 3] in 0..1; what is unknown is dark blue, which no picture holds."""
    pixels, known = scene.unit(view.tile)
    low, high = scene.sight.display
    if scene.own_light and known.any():
        low, high = np.percentile(pixels[:, known], [1, 99]).tolist()
        high = max(high, low + 1e-3)
    shown = np.clip((view.cut(pixels) - low) / (high - low), 0, 1)
    colours = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown
    return np.where(view.cut(known[None]), colours, np.array([0.05, 0.07, 0.25]))


def image_panel(scene: Scene, view: View, *, caption: str = "", outline: np.ndarray | None = None) -> Panel:
    """The image, its sides named; ``outline`` [P] of patches."""
    return Panel(
        picture=photo(scene, view), aspect=aspect_of(view.plane, view.tile.spacing), caption=caption,
        sides=side_names(view.tile.frame, view.plane), outline=None if outline is None else view.map(outline),
    )  # fmt: skip


def map_panel(scene: Scene, view: View, colours: np.ndarray, *, share: float = 0.75, caption: str = "") -> Panel:
    """Colours [P, 3] of patches over the image in grey; patches without data stay as the image shows them."""
    picture = photo(scene, view)
    real = enlarged(view.map(view.tile.valid.astype(float)), (picture.shape[0], picture.shape[1]))[..., None] > 0
    mixed = np.where(real, blend(picture, view.map(colours), share), picture)
    return Panel(picture=mixed, aspect=aspect_of(view.plane, view.tile.spacing), caption=caption)


def mask_panel(scene: Scene, view: View, mask: np.ndarray, *, caption: str = "", colour: str = "#ffd23f") -> Panel:
    """The image, dimmed outside a mask [P] of patches, which is outlined."""
    picture = photo(scene, view)
    inside = view.map(mask.astype(float))
    weight = enlarged(0.35 + 0.65 * inside, (picture.shape[0], picture.shape[1]))[..., None]
    return Panel(
        picture=picture * weight,
        aspect=aspect_of(view.plane, view.tile.spacing),
        caption=caption,
        outline=inside >= 0.5,
        outline_colour=colour,
    )
