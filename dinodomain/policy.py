"""Which changes of an image keep its meaning: view policies as data, with one small class per operation.

An operation holds how often it acts and the ranges of its parameters; what it does to pixels is in ``views.operations``, where each has
its physical meaning and source. Ranges marked ``drawn`` are drawn per sample, uniformly or log-uniformly; the neutral value is what a
parameter takes where the operation does not act. Nothing here imports torch: ingest workers load policies too.

Probabilities are one number for all views, or three for (first global, other globals, local).
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal

from dinodomain.errors import Problems, UserError

MAX_NODES = 32
"""Most independent values along an axis of a smooth field; more would be texture, and in 3-D more numbers than there are of noise."""

Range = tuple[float, float]
Chance = float | tuple[float, float, float]


def drawn(low: float, high: float, *, neutral: float, log: bool = False, least: float = -math.inf, most: float = math.inf) -> Any:
    """A dataclass field for a range from which a parameter is drawn.

    Args:
        low: Default lower end.
        high: Default upper end.
        neutral: Value where the operation does not act.
        log: Whether the draw is log-uniform.
        least: Smallest value that has a meaning.
        most: Largest value that has a meaning.
    """
    return field(default=(low, high), metadata={"neutral": neutral, "log": log, "least": least, "most": most})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One drawn parameter of an operation.

    Attributes:
        name: Field name.
        low: Lower end.
        high: Upper end.
        neutral: Value where the operation does not act.
        log: Whether the draw is log-uniform.
    """

    name: str
    low: float
    high: float
    neutral: float
    log: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    """Gaussian blur, folded into the resampling.

    The rates are those of the papers (BYOL, Grill et al., 2020, table 6; DINO, Caron et al., 2021): always in the first global view, in
    a tenth of the second ones, in half of the local ones. The published code of DINOv2 blurs with one minus these rates.

    Attributes:
        probability: How often.
        sigma: Pixels, for a run whose global crops have 224 pixels (2-D) or 96 voxels (3-D) a side; where they are smaller, all crops
            of the run get less in proportion.
    """

    probability: Chance = (1.0, 0.1, 0.5)
    sigma: Range = drawn(0.1, 2.0, neutral=0.0, least=0.0, most=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thickness:
    """A thicker slice: the profile of a coarser through-plane acquisition, folded into the resampling.

    Attributes:
        probability: How often.
        axis: The axis it acts on, by name.
        mm: Full width at half maximum of the simulated slice profile; no effect below the scan's own spacing, or where that is unknown.
    """

    probability: Chance = 0.3
    axis: str = "IS"
    mm: Range = drawn(1.0, 6.0, neutral=0.0, least=0.0, most=50.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarserPixels:
    """A coarser sensor: the point spread of a larger ground sample distance in both in-plane axes, folded into the resampling.

    Attributes:
        probability: How often.
        factor: Simulated pixel size as a multiple of the tile's own.
    """

    probability: Chance = 0.2
    factor: Range = drawn(1.0, 3.0, neutral=1.0, log=True, least=1.0, most=32.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A small rotation in the plane of the last two axes; a second resampling step, with its cost.

    Attributes:
        probability: How often.
        degrees: Angle, counter-clockwise on the array.
    """

    probability: Chance = 0.5
    degrees: Range = drawn(-10.0, 10.0, neutral=0.0, least=-180.0, most=180.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasField:
    """A smooth gain over the field of view: the coils of an MR scanner. All channels of a crop have the same one.

    Attributes:
        probability: How often.
        strength: Standard deviation of the field's logarithm.
        nodes: Independent values of the field along each axis of the crop; more are less smooth.
    """

    probability: Chance = 0.3
    strength: Range = drawn(0.05, 0.3, neutral=0.0, least=0.0, most=2.0)
    nodes: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """Part of the ground in the shadow of a cloud or a slope; acts on channels of reflectance, which are those with a wavelength.

    A channel without one (heights, radar, temperature, digital numbers) is left alone: nothing says that the sun lights it.

    Attributes:
        probability: How often.
        depth: Share of the direct light that is lost.
        share: Share of the ground that lies in shadow, the mean over many crops.
        skylight: Share of the light at 490 nm that comes from the sky and stays; falls with the fourth power of the wavelength.
        nodes: Independent values along each axis of the crop of the field whose highest parts are the shadow; more make smaller patches.
        edge: Width of the soft edge, in standard deviations of that field.
    """

    probability: Chance = 0.1
    depth: Range = drawn(0.2, 0.7, neutral=0.0, least=0.0, most=1.0)
    share: Range = drawn(0.1, 0.4, neutral=0.0, least=0.0, most=1.0)
    skylight: float = 0.25
    nodes: int = 5
    edge: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Speckle:
    """Multiplicative noise of coherent imaging: gamma-distributed power with mean one, independent in each channel and pixel of the crop.

    It comes on top of the speckle that is there: an image of M looks has 1 / (1/M + 1/L + 1/(ML)) afterwards.

    Attributes:
        probability: How often.
        looks: Equivalent number of looks, real-valued; fewer is noisier, one is the most there is.
        scale: What stored values are: decibels, linear power or amplitude. The noise always acts on linear power.
    """

    probability: Chance = 0.5
    looks: Range = drawn(4.0, 32.0, neutral=math.inf, log=True, least=1.0)
    scale: Literal["db", "power", "amplitude"] = "db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rician:
    """Noise of a magnitude image: the length of a complex signal with Gaussian noise in both parts.

    Attributes:
        probability: How often.
        std: Standard deviation of each part, as a share of the range that the source states for the channel.
    """

    probability: Chance = 0.2
    std: Range = drawn(0.0, 0.05, neutral=0.0, least=0.0, most=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueNoise:
    """Gaussian noise of the measured value, before the range is clipped: display windows of one channel show the same grain.

    Attributes:
        probability: How often.
        std: Standard deviation in the channel's unit.
    """

    probability: Chance = 0.3
    std: Range = drawn(0.0, 40.0, neutral=0.0, least=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Calibration of each channel apart: physical value times gain, plus offset. Channels made from one stored channel share theirs.

    In decibels a gain of the instrument is the offset here, and the factor has no such meaning.

    Attributes:
        probability: How often, for all channels of a view together.
        gain: Factor, drawn for each channel.
        offset: Shift in the channel's unit, drawn for each channel.
    """

    probability: Chance = 0.8
    gain: Range = drawn(0.9, 1.1, neutral=1.0, log=True, least=1e-6)
    offset: Range = drawn(0.0, 0.0, neutral=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Haze:
    """Light scattered by the air into the sensor: an offset of reflectance that grows to short wavelengths, and dims the ground.

    What the air sends up does not reach the ground, and is lost once more on the way back: contrast falls where the offset rises. Acts on
    channels of reflectance, which are those with a wavelength.

    Attributes:
        probability: How often.
        amount: Offset of reflectance at 490 nm; below zero for an atmosphere that was corrected too much.
        exponent: The offset falls with this power of the wavelength: 4 for clean air, below 1 for thick haze.
    """

    probability: Chance = 0.3
    amount: Range = drawn(0.0, 0.08, neutral=0.0, least=-1.0, most=1.0)
    exponent: Range = drawn(0.5, 4.0, neutral=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Another display window: centre and width move together for all pixels, before clipping.

    Attributes:
        probability: How often.
        centre: Shift as a share of the width.
        width: Factor of the width.
    """

    probability: Chance = 0.8
    centre: Range = drawn(-0.05, 0.05, neutral=0.0)
    width: Range = drawn(0.9, 1.1, neutral=1.0, log=True, least=1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Brightness and contrast in the unit range.

    Attributes:
        probability: How often.
        brightness: Shift.
        contrast: Factor about the crop's mean.
        per_channel: Whether each channel has numbers of its own.
    """

    probability: Chance = 0.8
    brightness: Range = drawn(-0.2, 0.2, neutral=0.0)
    contrast: Range = drawn(0.8, 1.2, neutral=1.0, least=0.01)
    per_channel: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """A non-linear transfer curve of the unit range.

    Attributes:
        probability: How often.
        exponent: Power.
    """

    probability: Chance = 0.8
    exponent: Range = drawn(0.8, 1.25, neutral=1.0, log=True, least=1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Gaussian noise of a detector in the unit range: a constant part, and one that grows with the signal.

    Attributes:
        probability: How often.
        std: Standard deviation of the constant part (readout).
        shot: Standard deviation of the growing part at unit 1 (photon counts: variance proportional to the signal).
    """

    probability: Chance = 0.2
    std: Range = drawn(0.0, 0.05, neutral=0.0, least=0.0, most=1.0)
    shot: Range = drawn(0.0, 0.0, neutral=0.0, least=0.0, most=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solarise:
    """Values above the threshold are turned over; no physical meaning.

    Attributes:
        probability: How often.
        threshold: Unit value.
    """

    probability: Chance = (0.0, 0.2, 0.0)
    threshold: Range = drawn(0.5, 0.5, neutral=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropChannels:
    """Single channels are lost; at least one stays. A lost channel is filled with the mean that normalises it: the network sees 0.

    Attributes:
        probability: How often it may happen to a view.
        share: Chance of each channel then.
    """

    probability: Chance = 1.0
    share: Range = drawn(0.1, 0.1, neutral=0.0, least=0.0, most=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetChannels:
    """A sensor with fewer bands: only a random share of the channels stays, at least one.

    The others are filled with the mean that normalises them, so the network sees 0; ``ViewGroup.kept`` says which they are.

    Attributes:
        probability: How often.
        keep: Share of the channels that stays, rounded up to whole channels.
    """

    probability: Chance = 0.2
    keep: Range = drawn(0.3, 1.0, neutral=1.0, least=0.0, most=1.0)


Operation = (
    Blur | Thickness | CoarserPixels | Rotation | BiasField | Shadow | Speckle | Rician | ValueNoise | Gain | Haze | Window | Jitter | Gamma
    | Noise | Solarise | DropChannels | SubsetChannels
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy:
    """Which augmentations keep the meaning of an image of this domain. An operation that is None never acts.

    The order is physical, not free: bias field, shadow, speckle, Rician and value noise act on physical values; gain and offset, haze,
    window, brightness and contrast are affine and change what the numbers mean; the unit range is clipped once; then gamma, noise,
    solarisation and the loss of channels.

    Attributes:
        axes: Anatomical or ground name of each spatial axis in array order, for example ``("IS", "AP", "LR")`` or ``("NS", "EW")``.
        flip: Axis name to flip probability; an axis that is not named is never flipped.
        quarter_turns: Whether the last two axes may be exchanged (with both flips: the eight-fold symmetry of the square).
        global_scale: Area (2-D) or volume (3-D) fraction of a global crop.
        local_scale: The same for local crops.
        aspect: Range of the ratio of in-plane extents.
        min_valid: Share of known pixels that a crop should have; places are drawn again a few times, then the best is taken.
        rotation: Small rotation.
        blur: Gaussian blur.
        thickness: Simulated slice thickness.
        coarser_pixels: Simulated coarser ground sample distance.
        bias_field: Smooth gain of an MR coil.
        shadow: Shadow on the ground.
        speckle: Multiplicative radar noise.
        rician: Noise of a magnitude image.
        value_noise: Noise of the measured value.
        gain: Gain and offset of each channel.
        haze: Atmospheric offset.
        window: Moved display window.
        jitter: Brightness and contrast.
        gamma: Transfer curve.
        noise: Detector noise.
        solarise: Solarisation.
        drop_channels: Loss of single channels.
        subset_channels: A random part of the channels.
        wavelengths_nm: Channel name to centre wavelength, for haze and shadow; a channel without one is left alone by them.
        default_mode: Normalisation used unless ``views.normalise`` says otherwise.
    """

    axes: tuple[str, ...]
    flip: Mapping[str, float] = field(default_factory=dict)
    quarter_turns: bool = False
    global_scale: Range = (0.32, 1.0)
    local_scale: Range = (0.05, 0.32)
    aspect: Range = (0.75, 4 / 3)
    min_valid: float = 0.5
    rotation: Rotation | None = None
    blur: Blur | None = Blur()
    thickness: Thickness | None = None
    coarser_pixels: CoarserPixels | None = None
    bias_field: BiasField | None = None
    shadow: Shadow | None = None
    speckle: Speckle | None = None
    rician: Rician | None = None
    value_noise: ValueNoise | None = None
    gain: Gain | None = None
    haze: Haze | None = None
    window: Window | None = None
    jitter: Jitter | None = Jitter()
    gamma: Gamma | None = Gamma()
    noise: Noise | None = Noise()
    solarise: Solarise | None = None
    drop_channels: DropChannels | None = None
    subset_channels: SubsetChannels | None = None
    wavelengths_nm: Mapping[str, float] = field(default_factory=dict)
    default_mode: Literal["domain", "store", "source"] = "domain"

    def __post_init__(self) -> None:
        problems = [*_geometry_problems(self)]
        for name, operation in operations(self).items():
            problems.extend(_operation_problems(name, operation))
        if problems:
            raise Problems(problems)


def operations(policy: ViewPolicy) -> dict[str, Operation]:
    """The operations that a policy uses, by field name, in the order of the class."""
    found: dict[str, Any] = {item.name: getattr(policy, item.name) for item in fields(policy)}
    return {name: value for name, value in found.items() if isinstance(value, Operation)}


def parameters(operation: Operation) -> Iterator[Parameter]:
    """What is drawn for an operation."""
    for item in fields(operation):
        if "neutral" in item.metadata:
            low, high = getattr(operation, item.name)
            yield Parameter(name=item.name, low=low, high=high, neutral=item.metadata["neutral"], log=item.metadata["log"])


def chances(operation: Operation) -> tuple[float, float, float]:
    """Probability for the first global view, other global views and local views."""
    chance = operation.probability
    return chance if isinstance(chance, tuple) else (chance, chance, chance)


def without_augmentation(policy: ViewPolicy) -> ViewPolicy:
    """Crops only: no flip, turn, or change of pixels."""
    off: dict[str, Any] = dict.fromkeys(operations(policy))
    return replace(policy, flip={}, quarter_turns=False, **off)


def changed(policy: ViewPolicy, changes: Mapping[str, Any], place: str = "views.policy") -> ViewPolicy:
    """A policy with some of its values replaced, as YAML and the command line state them.

    ``flip`` may be a list of axis names (each with probability one half); an operation may be ``null`` (off) or a mapping of the keys to
    change, starting from the policy's own, or from the class defaults where the policy has it off.

    Args:
        policy: The domain's.
        changes: Field name to plain value.
        place: Key under which the user typed them.

    Raises:
        Problems: Unknown keys or values that mean nothing; all are listed.
    """
    if not changes:  # every step of a run asks, and reading type hints takes milliseconds
        return policy
    problems: list[UserError] = []
    values: dict[str, Any] = {}
    kinds = typing.get_type_hints(ViewPolicy)
    for name, value in changes.items():
        if name in ("axes", "wavelengths_nm") or name not in kinds:
            allowed = [key for key in kinds if key not in ("axes", "wavelengths_nm")]
            problems.append(_unknown(f"{place}.{name}", name, allowed))
        else:
            values[name] = _value(kinds[name], getattr(policy, name), value, f"{place}.{name}", problems)
    try:
        result = replace(policy, **values)
    except Problems as error:
        problems += [UserError(f"{place}.{p.place}", p.problem, allowed=p.allowed, remedy=p.remedy) for p in error.problems]
    if problems:
        raise Problems(problems)
    return result


def _unknown(place: str, name: object, known: list[str]) -> UserError:
    near = difflib.get_close_matches(str(name), known, n=1)  # YAML reads a bare ``on`` as true
    if near:
        return UserError(place, "unknown key", remedy=f"did you mean {near[0]!r}?")
    return UserError(place, "unknown key", allowed=", ".join(sorted(known)))


def _value(kind: Any, own: Any, value: Any, place: str, problems: list[UserError]) -> Any:
    """One field of a policy or operation from a plain value; what does not fit is noted and left out, so that the rest is checked, too."""
    classes = [item for item in typing.get_args(kind) if is_dataclass(item)]
    if classes:
        return _operation(classes[0], own, value, place, problems)
    if kind == Mapping[str, float]:
        return _flips(own, value, place, problems)
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        return value if value in words else _refuse(place, own, value, ", ".join(words), problems)
    if kind is bool or kind is int or kind is str:
        names = {bool: "true or false", int: "a whole number", str: "text"}
        return value if type(value) is kind else _refuse(place, own, value, names[kind], problems)
    return _numbers(kind, own, value, place, problems)


def _flips(own: Any, value: Any, place: str, problems: list[UserError]) -> Any:
    if isinstance(value, (list, tuple)) and all(isinstance(axis, str) for axis in value):
        return dict.fromkeys(value, 0.5)
    if isinstance(value, Mapping) and all(isinstance(axis, str) and _is_number(chance) for axis, chance in value.items()):
        return {axis: float(chance) for axis, chance in value.items()}
    return _refuse(place, own, value, "a list of axis names ([] for none), or {axis: probability}", problems)


def _operation(kind: Any, own: Any, value: Any, place: str, problems: list[UserError]) -> Any:
    if value is None or isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        return _refuse(place, own, value, "null (off), or a mapping of keys to change", problems)
    start, hints, changes = own if own is not None else kind(), typing.get_type_hints(kind), {}
    for name, item in value.items():
        if name in hints:
            changes[name] = _value(hints[name], getattr(start, name), item, f"{place}.{name}", problems)
        else:
            problems.append(_unknown(f"{place}.{name}", name, list(hints)))
    return replace(start, **changes)


def _numbers(kind: Any, own: Any, value: Any, place: str, problems: list[UserError]) -> Any:
    """A number, or a tuple of as many as the kind names; ``Chance`` allows either."""
    options = typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)
    counts = [len(typing.get_args(option)) for option in options if option is not float]
    if float in options and _is_number(value):
        return float(value)
    if isinstance(value, (list, tuple)) and len(value) in counts and all(_is_number(item) for item in value):
        return tuple(float(item) for item in value)
    allowed = [*(["a number"] if float in options else []), *(f"a list of {count} numbers" for count in counts)]
    return _refuse(place, own, value, " or ".join(allowed), problems)


def _refuse(place: str, own: Any, value: Any, allowed: str, problems: list[UserError]) -> Any:
    problems.append(UserError(place, f"{value!r} is not valid", allowed=allowed))
    return own


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _geometry_problems(policy: ViewPolicy) -> Iterator[UserError]:
    axes = ", ".join(policy.axes)
    unknown = sorted(set(policy.flip) - set(policy.axes))
    if unknown:
        yield UserError("flip", f"names unknown axes {unknown}", allowed=axes)
    for axis, chance in policy.flip.items():
        if not 0 <= chance <= 1:
            yield UserError(f"flip.{axis}", f"is {chance}", allowed="a probability, 0 to 1")
    for name in ("global_scale", "local_scale"):
        low, high = getattr(policy, name)
        if not 0 < low <= high <= 1:
            yield UserError(name, f"is {(low, high)}", allowed="two fractions with 0 < smallest <= largest <= 1")
    if not 0 < policy.aspect[0] <= policy.aspect[1] < math.inf:
        yield UserError("aspect", f"is {policy.aspect}", allowed="two ratios with 0 < smallest <= largest")
    if not 0 <= policy.min_valid <= 1:
        yield UserError("min_valid", f"is {policy.min_valid}", allowed="a share, 0 to 1")
    if policy.thickness is not None and policy.thickness.axis not in policy.axes:
        yield UserError("thickness.axis", f"is {policy.thickness.axis!r}", allowed=axes)


def _operation_problems(name: str, operation: Operation) -> Iterator[UserError]:
    if not all(0 <= chance <= 1 for chance in chances(operation)):
        yield UserError(f"{name}.probability", f"is {operation.probability}", allowed="0 to 1, once or three times")
    for item in fields(operation):
        if "neutral" in item.metadata:
            low, high = getattr(operation, item.name)
            least, most = item.metadata["least"], item.metadata["most"]
            if not (math.isfinite(low) and math.isfinite(high) and least <= low <= high <= most):
                floor = "" if least == -math.inf else f", none below {least:g}"
                ceiling = "" if most == math.inf else f", none above {most:g}"
                yield UserError(f"{name}.{item.name}", f"is {(low, high)}", allowed=f"two numbers, smallest first{floor}{ceiling}")
    if isinstance(operation, (BiasField, Shadow)) and not 2 <= operation.nodes <= MAX_NODES:
        yield UserError(f"{name}.nodes", f"is {operation.nodes}", allowed=f"2 to {MAX_NODES}")
    if isinstance(operation, Shadow) and not 0 <= operation.skylight <= 1:
        yield UserError(f"{name}.skylight", f"is {operation.skylight}", allowed="a share, 0 to 1")
    if isinstance(operation, Shadow) and not operation.edge > 0:
        yield UserError(f"{name}.edge", f"is {operation.edge}", allowed="a number above 0")
