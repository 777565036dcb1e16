"""What a network is given of a tile: pixels in its range, which of them are real, and what is known beside them.

A network with a kernel for each channel takes tiles that have exactly its channels. One that tells channels apart by wavelength takes
any subset of its own, and other channels after ``fit_channels`` gave them numbers. Shapes: B tiles, C channels, D axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinodomain.domain import Domain
from dinodomain.errors import UserError
from dinodomain.model import Backbone, bands_of
from dinodomain.model.backbone import pick_channels
from dinodomain.store import Store
from dinodomain.types import Acquisition, Batch, Normalisation
from dinodomain.views import resolve_normalisation, to_network
from dinodomain.views.normalise import input_channels, stored_channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Tiles as a network takes them: ``backbone.encode(pixels, about=about)``.

    Attributes:
        pixels: [B, C, *size] float32 in the network's range.
        valid: [B, *size] bool.
        about: Pixel size after resizing and, where not all of the network's, the channels.
    """

    pixels: Tensor
    valid: Tensor
    about: Acquisition

    def take(self, rows: Sequence[int]) -> Input:
        """Some of the tiles, in the order given."""
        at = list(rows)
        spacing, kept = (None if value is None else value[at] for value in (self.about.spacing, self.about.kept))
        about = Acquisition(spacing=spacing, kept=kept, channels=self.about.channels)
        return Input(pixels=self.pixels[at], valid=self.valid[at], about=about)


def network_input(backbone: Backbone, batch: Batch, domain: Domain, sides: tuple[int, ...] | None) -> Input:
    """Whole tiles for inference.

    Args:
        backbone: As ``fit_channels`` gave it for the store of the tiles.
        batch: Tiles as stored, one date.
        domain: Of the tiles.
        sides: Output sides in pixels; None keeps the tile's own.
    """
    numbers = narrowed(backbone, batch.channels)
    pixels, valid = to_network(batch, to_float=domain.to_float, normalisation=numbers, size=sides)
    about = Acquisition(spacing=spacing_after(batch, tuple(pixels.shape[2:])), channels=told_channels(backbone, numbers))
    return Input(pixels=pixels, valid=valid, about=about)


def spacing_after(batch: Batch, sides: tuple[int, ...]) -> Tensor:
    """[B, D] pixel size of whole tiles that were resized to ``sides``, mm or m; NaN where unknown."""
    spacing = batch.info.spacing
    extent = batch.pixels.shape[3:]
    return spacing * torch.tensor([old / new for old, new in zip(extent, sides, strict=True)], device=spacing.device)


def narrowed(backbone: Backbone, names: Sequence[str]) -> Normalisation:
    """The numbers of those channels of a network that can be made from these stored ones; all of them where the network needs all."""
    numbers = backbone.normalisation
    if not backbone.any_channels or set(names) == set(input_channels(numbers)):
        return numbers
    places = [place for place, source in enumerate(stored_channels(numbers)) if source in names]
    if not places:
        raise UserError("channels of the store", f"{', '.join(names)} not known to the network", allowed=", ".join(input_channels(numbers)))
    return pick_channels(numbers, places)


def told_channels(backbone: Backbone, numbers: Normalisation) -> tuple[str, ...]:
    """``Acquisition.channels`` of images in this range: nothing where they have all of the network's in its order."""
    return () if numbers.channels == backbone.channels else numbers.channels


def fit_channels(backbone: Backbone, store: Store, domain: Domain) -> Backbone:
    """The backbone as it takes the sources of a store.

    Args:
        backbone: Any.
        store: Whose channels count.
        domain: Of the store; declares wavelengths and ranges of channels that the backbone was not trained on.

    Returns:
        The backbone itself where it knows all channels; a twin with the same weights where they are another sensor's.

    Raises:
        UserError: Channels that it cannot take.
    """
    if not backbone.any_channels:
        check_channels(backbone, store)
        return backbone
    found = list(dict.fromkeys(name for names in store.column("channels") for name in names))
    known = input_channels(backbone.normalisation)
    same_sensor = store.domain == backbone.domain
    if same_sensor and set(found) <= set(known):
        return backbone
    mode = backbone.normalisation.mode
    new = [name for name in found if not (same_sensor and name in known)]
    numbers = resolve_normalisation(mode, domain.view_policy(), domain.channels, new, store.stats)
    bands = bands_of(numbers, domain.channels)
    if len(new) == len(found):
        return backbone.with_bands(bands, numbers)
    places = [place for place, source in enumerate(stored_channels(backbone.normalisation)) if source in found]
    kept = [backbone.bands[place] for place in places]
    return backbone.with_bands([*kept, *bands], _joined(pick_channels(backbone.normalisation, places), numbers))


def check_channels(backbone: Backbone, store: Store) -> None:
    """Refuses a store whose channels are not those that the backbone's are made from; the backbone's order wins.

    Raises:
        UserError: Any source has others.
    """
    wanted = input_channels(backbone.normalisation)
    found = {tuple(names) for names in store.column("channels")}
    if {frozenset(names) for names in found} != {frozenset(wanted)}:
        lists = "; ".join(", ".join(names) for names in sorted(found))
        remedy = "ingest with ingest.bands; model.channels=wavelength trains a network that takes any subset"
        raise UserError("store", f"has the channels {lists}", allowed=", ".join(wanted), remedy=remedy)


def _joined(first: Normalisation, second: Normalisation) -> Normalisation:
    """Channels of both, in one mode; units are known only where both know them."""
    columns = {name: getattr(first, name) + getattr(second, name) for name in ("channels", "low", "high", "mean", "std")}
    sources = stored_channels(first) + stored_channels(second) if first.sources else ()
    units = first.units + second.units if first.units and second.units else ()
    return Normalisation(mode=first.mode, sources=sources, units=units, **columns)
