"""What a domain plug-in is, and how it is found.

A domain knows its files, channels, units and which augmentations keep the meaning of an image. It is stateless and
picklable, and it imports nothing of dinodomain but this file, ``types`` and ``errors``. No torch is imported here: ingest
workers load domains too.
"""

from __future__ import annotations

import difflib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from dinodomain.errors import BadSource, MissingExtra, UserError
from dinodomain.expression import Filter
from dinodomain.policy import (
    BiasField,
    Blur,
    CoarserPixels,
    DropChannels,
    Gain,
    Gamma,
    Haze,
    Jitter,
    Noise,
    Rician,
    Rotation,
    Shadow,
    Solarise,
    Speckle,
    SubsetChannels,
    Thickness,
    ValueNoise,
    ViewPolicy,
    Window,
)  # fmt: skip
from dinodomain.types import Layout, Record, Select, SourceRef, TileInfo

if TYPE_CHECKING:
    from torch import Tensor

ENTRY_POINTS = "dinodomain.domains"

_one_at_a_time = threading.RLock()


@contextmanager
def quiet(category: type[Warning] = Warning, *, module: str = "") -> Iterator[None]:
    """Ignores warnings of a kind for a moment. What readers use in place of ``warnings.catch_warnings``, which is not safe in threads.

    Warning filters belong to the whole process, and two blocks that overlap in two threads would restore them in the wrong order.
    So these blocks take turns: open a file inside, decode its pixels outside.

    Args:
        category: Kind of warning.
        module: Regular expression for the module that warns.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=category, module=module)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayWindow:
    """A display window of a channel: what a reader sets at the console, as an input of the network.

    Attributes:
        centre: Value in the middle of the window, in the channel's unit.
        width: Width in the channel's unit.
        mean: Expected mean in the unit range.
        std: Expected standard deviation in the unit range.
    """

    centre: float
    width: float
    mean: float = 0.5
    std: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One channel as its instrument measures it.

    Attributes:
        unit: Physical unit (``HU``, ``reflectance``, ``dB``, ``1`` where arbitrary).
        low: Physical value that becomes 0 in the unit range.
        high: Physical value that becomes 1 in the unit range.
        mean: Expected mean in the unit range.
        std: Expected standard deviation in the unit range.
        wavelength_nm: Centre wavelength, or None.
        windows: Display windows by name, for ``views.windows``.
    """

    unit: str
    low: float
    high: float
    mean: float = 0.5
    std: float = 0.25
    wavelength_nm: float | None = None
    windows: Mapping[str, DisplayWindow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """A probe worth running on this domain when the labels are there.

    Attributes:
        name: Short name.
        task: ``classify``, ``regress`` or ``segment``.
        target: Column or mask that holds the label.
        metric: Headline metric.
        unit: What folds are grouped by.
        source: Public benchmark or paper.
    """

    name: str
    task: Literal["classify", "regress", "segment"]
    target: str
    metric: str
    unit: str
    source: str = ""


@runtime_checkable
class Domain(Protocol):
    """A plug-in: stateless, picklable, found through the entry-point group ``dinodomain.domains``.

    Attributes:
        name: Equals the entry-point name.
        ndim: Number of spatial axes, 2 or 3.
        layout: How its arrays are read by default.
        personal: True where ids and file names identify a person; the store then keeps keyed hashes only.
        extra: The extra of this distribution that installs the packages it needs.
        channels: Known channels by name.
        default_select: Header filter (``Filter``) used unless ``ingest.select`` is given; empty takes everything.
    """

    # Read-only, so that frozen dataclasses fit.
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def ndim(self) -> int: ...  # noqa: D102
    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def personal(self) -> bool: ...  # noqa: D102
    @property
    def extra(self) -> str: ...  # noqa: D102
    @property
    def channels(self) -> Mapping[str, Channel]: ...  # noqa: D102
    @property
    def default_select(self) -> str: ...  # noqa: D102

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """Finds sources by reading headers only, sorted by ``source_id``.

        Yields a BadSource for what it must refuse and a LeftOut for what ``select`` leaves out by its header, and goes on.
        """
        ...

    def read(self, ref: SourceRef) -> Record:
        """Opens one source in an ingest worker.

        Raises:
            BadSource: It cannot be read as asked.
        """
        ...

    def to_float(self, pixels: Tensor, info: TileInfo) -> Tensor:
        """Stored values [B, C, ...] to float32 in the unit range of ``info.low``..``info.high``, on the pixels' device."""
        ...

    def view_policy(self) -> ViewPolicy:
        """The augmentations that keep the meaning of this domain's images."""
        ...

    def probes(self) -> Sequence[ProbeSpec]:
        """Probes worth running when labels are there; may be empty."""
        ...


def linear_to_unit(pixels: Tensor, info: TileInfo) -> Tensor:
    """The ``to_float`` of every domain whose values are linear in the stored number.

    Widens first: torch computes on few uint16 operations, so stored values are only cast.

    Args:
        pixels: [B, C, ...] stored values.
        info: Scale, offset and range per sample and channel.

    Returns:
        [B, C, ...] float32, clipped to 0..1.
    """
    shape = tuple(info.scale.shape) + (1,) * (pixels.ndim - 2)
    span = (info.high - info.low).clamp_min(1e-12)
    gain, shift = info.scale / span, (info.offset - info.low) / span
    # One expression keeps a single temporary alive; float() copies, so the in-place steps never touch the input.
    return pixels.float().mul(gain.reshape(shape)).add_(shift.reshape(shape)).clamp_(0.0, 1.0)


def installed_domains() -> tuple[str, ...]:
    """Names of all installed domains, sorted; loads none of them."""
    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINTS)}))


def find_domain(name: str) -> Domain:
    """Loads one domain by its entry-point name, and only that one.

    Raises:
        UserError: No installed domain has this name.
        MissingExtra: Its package needs something that is not installed.
    """
    points: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise UserError("domain", f"unknown domain {name!r}", allowed=", ".join(sorted(points)) or "none installed", remedy=hint)
    loaded = points[name].load()
    domain = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(domain, Domain):
        raise UserError(
            "domain",
            f"entry point {name!r} gives {type(domain).__name__}, which lacks members of a Domain",
            remedy="see dinodomain.domain.Domain; check with dinodomain.testing.DomainTests",
        )
    if domain.name != name:
        raise UserError("domain", f"entry point {name!r} gives a domain named {domain.name!r}", remedy="make the two names equal")
    return domain


__all__ = [
    "BiasField", "Blur", "Channel", "CoarserPixels", "DisplayWindow", "Domain", "DropChannels", "Filter", "Gain", "Gamma", "Haze",
    "Jitter", "MissingExtra", "Noise", "ProbeSpec", "Rician", "Rotation", "Shadow", "Solarise", "Speckle", "SubsetChannels",
    "Thickness", "ValueNoise", "ViewPolicy", "Window", "find_domain", "installed_domains", "linear_to_unit",
]  # fmt: skip
