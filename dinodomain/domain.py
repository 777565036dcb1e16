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
class Channel:
    """One channel as its instrument measures it.

    Attributes:
        unit: Physical unit (``HU``, ``reflectance``, ``dB``, ``1`` where arbitrary).
        low: Physical value that becomes 0 in the unit range.
        high: Physical value that becomes 1 in the unit range.
        mean: Expected mean in the unit range.
        std: Expected standard deviation in the unit range.
        wavelength_nm: Centre wavelength, or None.
    """

    unit: str
    low: float
    high: float
    mean: float = 0.5
    std: float = 0.25
    wavelength_nm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy:
    """Which augmentations keep the meaning of an image of this domain: data, not code.

    Intensity ranges are stated in the unit range (0 at the channel's low, 1 at its high). Probabilities are per sample.

    Attributes:
        axes: Anatomical or ground name of each spatial axis in array order, for example ``("IS", "AP", "LR")`` or ``("NS", "EW")``.
        flips: Axis name to flip probability; an axis that is not named is never flipped.
        quarter_turns: Whether the last two axes may be exchanged (with both flips: the eight-fold symmetry of the square).
        global_scale: Area (2-D) or volume (3-D) fraction of a global crop.
        local_scale: The same for local crops.
        aspect: Range of the ratio of in-plane extents.
        brightness: Largest absolute shift.
        contrast: Contrast factor drawn from [1 - contrast, 1 + contrast], about the crop's mean.
        gamma: Exponent range, drawn log-uniformly.
        intensity_probability: Probability of brightness, contrast and gamma together.
        per_channel: Whether brightness and contrast are drawn for each channel apart.
        blur_sigma: Gaussian sigma range in output pixels of a 224-pixel (2-D) or 96-voxel (3-D) global crop; smaller crops get less.
        blur_probability: Probability of blur for (first global, second global, local) views.
        noise_std: Range of the standard deviation of added Gaussian noise.
        noise_probability: Probability of noise.
        channel_drop: Probability that a channel is set to its mean (at least one stays).
        solarise_probability: Probability of solarisation in the second global view.
        default_mode: Normalisation used unless ``views.normalise`` says otherwise.
    """

    axes: tuple[str, ...]
    flips: Mapping[str, float] = field(default_factory=dict)
    quarter_turns: bool = False
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: tuple[float, float] = (0.8, 1.25)
    intensity_probability: float = 0.8
    per_channel: bool = False
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: tuple[float, float, float] = (1.0, 0.1, 0.5)
    noise_std: tuple[float, float] = (0.0, 0.05)
    noise_probability: float = 0.2
    channel_drop: float = 0.0
    solarise_probability: float = 0.0
    default_mode: Literal["domain", "store", "source"] = "domain"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.flips) - set(self.axes))
        if unknown:
            raise UserError("view policy", f"flips name unknown axes {unknown}", allowed=", ".join(self.axes))


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


__all__ = ["Channel", "Domain", "Filter", "MissingExtra", "ProbeSpec", "ViewPolicy", "find_domain", "installed_domains", "linear_to_unit"]
