"""What a channel is to a network that takes any set of channels: a wavelength, a name, or both. No torch here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dinodomain.domain import Channel
from dinodomain.errors import Problems, UserError
from dinodomain.types import Normalisation

MICROWAVE_NM: Final = 1e6
"""From 1 mm on, channels of one wavelength differ by polarisation, which only their names (VV, VH, HH, HV) tell."""


@dataclass(frozen=True, slots=True)
class Band:
    """A channel.

    Attributes:
        name: As in ``Acquisition.channels``.
        wavelength_nm: Centre wavelength; None where there is none (``ct``, ``t1``, a display window).
    """

    name: str
    wavelength_nm: float | None = None

    def __post_init__(self) -> None:
        wave = self.wavelength_nm
        if wave is not None and not (math.isfinite(wave) and wave > 0):
            raise UserError("bands", f"{self.name!r} has the wavelength {wave}", allowed="above 0 nm, or None")

    @property
    def by_name(self) -> bool:
        """Whether its name has an embedding of its own: without a wavelength, and for microwaves."""
        return self.wavelength_nm is None or self.wavelength_nm >= MICROWAVE_NM


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a network has weights for.

    Attributes:
        names: Channels that have an embedding of their own.
        wavelengths: Whether it has one for wavelengths.
    """

    names: tuple[str, ...]
    wavelengths: bool

    @classmethod
    def of(cls, bands: Sequence[Band]) -> Vocabulary:
        """What these channels need."""
        return cls(tuple(band.name for band in bands if band.by_name), any(band.wavelength_nm is not None for band in bands))


def bands_of(normalisation: Normalisation, channels: Mapping[str, Channel]) -> tuple[Band, ...]:
    """The channels of a network with the wavelengths that a domain declares.

    A display window has none: two windows of one channel would share it, and only their names tell them apart.

    Args:
        normalisation: Names the network's channels and what they are made from.
        channels: The domain's.
    """
    sources = normalisation.sources or normalisation.channels
    declared = {source: channels[source].wavelength_nm for source in sources if source in channels}
    return tuple(Band(name, declared.get(name) if name == source else None) for name, source in zip(normalisation.channels, sources))


def as_bands(given: Mapping[str, float | None] | Sequence[Band]) -> tuple[Band, ...]:
    """``{"B1": 443.0, "ct": None}`` or bands, as bands; each name once.

    Raises:
        UserError: None at all, or one twice.
    """
    bands = tuple(Band(*item) for item in given.items()) if isinstance(given, Mapping) else tuple(given)
    names = [band.name for band in bands]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not bands or twice:
        raise UserError("bands", f"name {', '.join(twice)} twice" if twice else "are empty", allowed="one or more, each once")
    return bands


def check_known(bands: Sequence[Band], vocabulary: Vocabulary) -> None:
    """Refuses channels of which a trained network can know nothing.

    Args:
        bands: To be given to it.
        vocabulary: What it has weights for.

    Raises:
        Problems: One entry per channel.
    """
    names = vocabulary.names
    known = ", ".join(names) or "none by name: give a wavelength in nm"
    problems = []
    for band in bands:
        if band.by_name and band.name not in names:
            near = difflib.get_close_matches(band.name, names, n=1)
            found = "has no wavelength and" if band.wavelength_nm is None else f"of {band.wavelength_nm:g} nm is told by polarisation and"
            remedy = f"did you mean {near[0]!r}?" if near else "train with this channel"
            problems.append(UserError("channels", f"{band.name!r} {found} was not trained", allowed=known, remedy=remedy))
        elif band.wavelength_nm is not None and not vocabulary.wavelengths:
            found = f"{band.name!r} has a wavelength, the network was trained on named channels only"
            problems.append(UserError("channels", found, allowed=known))
    if problems:
        raise Problems(problems)


def order_in(known: Sequence[str], asked: Sequence[str], count: int) -> tuple[int, ...]:
    """Places of channels in a network's list.

    Args:
        known: The network's channels.
        asked: Channels of an image, in its order; empty: the network's.
        count: Channels that the image has.

    Raises:
        UserError: An unknown or doubled name, or another number of channels.
    """
    if not asked:
        if count != len(known):
            told, remedy = f"{len(known)}: {', '.join(known)}", "name them: about=Acquisition(channels=(...))"
            raise UserError("image", f"has {count} channels", allowed=told, remedy=remedy)
        return tuple(range(count))
    strange = [name for name in asked if name not in known]
    if strange:
        near = difflib.get_close_matches(strange[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise UserError("about.channels", f"{', '.join(strange)} not known to the network", allowed=", ".join(known), remedy=hint)
    if len(set(asked)) < len(asked):
        raise UserError("about.channels", f"{', '.join(asked)} names one twice", allowed="each channel once")
    if len(asked) != count:
        raise UserError("about.channels", f"names {len(asked)} channels of an image that has {count}", allowed=f"{count} names")
    return tuple(known.index(name) for name in asked)
