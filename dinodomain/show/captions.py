"""Numbers of views in few words, in the units that a radiologist or an analyst of maps thinks in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinodomain.domain import Channel
from dinodomain.policy import ViewPolicy

UNITS = {"HU": "HU", "dB": "dB", "K": "K"}
_BODY, _GROUND = {"IS", "AP", "LR"}, {"NS", "EW"}


def length_unit(axes: Sequence[str]) -> str:
    """Unit of spacings: mm along axes of a body, m on the ground."""
    if set(axes) & _BODY:
        return "mm"
    return "m" if set(axes) & _GROUND else "units"


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, all of those before the point, and no exponent where it can be spared."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What one unit of the network's unit range is in a channel's own unit.

    Attributes:
        span: Physical width of the unit range; NaN where channels differ.
        unit: ``HU``, ``dB``, ``reflectance`` ... empty where arbitrary.
    """

    span: float
    unit: str

    def shift(self, share: float) -> str:
        """A shift given as a share of the range, with its sign."""
        if not self.unit or not math.isfinite(self.span):
            return f"{100 * share:+.2g} % of range"
        return f"{'+' if share >= 0 else '-'}{number(abs(share) * self.span, 2)}{self._word()}"

    def amount(self, share: float) -> str:
        """A width given as a share of the range."""
        if not self.unit or not math.isfinite(self.span):
            return f"{100 * share:.2g} % of range"
        return f"{number(share * self.span, 2)}{self._word()}"

    def value(self, unit_value: float, low: float) -> str:
        """A place in the range."""
        if not self.unit or not math.isfinite(self.span):
            return f"{100 * unit_value:.3g} % of range"
        return f"{number(low + unit_value * self.span)}{self._word()}"

    def _word(self) -> str:
        return "" if self.unit == "reflectance" else f" {self.unit}"


def scale_of(channel: Channel | None, low: float, high: float) -> Scale:
    """The scale of one network channel."""
    unit = "" if channel is None or channel.unit in ("", "1", "DN") else channel.unit
    return Scale(span=high - low, unit=unit)


Values = Mapping[str, Sequence[float]]
"""Parameter to its values: one, or one for each channel shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the words need to know about a crop.

    Attributes:
        scale: Of the first channel shown.
        policy: In force.
        spacing: Of the tile, array order.
        blur: What a policy's blur is multiplied with.
        length: Unit of lengths.
        light: Whether any channel shown has a wavelength, without which haze and shadow leave it alone.
    """

    scale: Scale
    policy: ViewPolicy
    spacing: Sequence[float]
    blur: float
    length: str
    light: bool = True


def has_light(policy: ViewPolicy, channels: Sequence[str]) -> bool:
    """Whether any of these stored channels has a wavelength in the policy."""
    return any(math.isfinite(policy.wavelengths_nm.get(name, math.nan)) for name in channels)


def operation_words(name: str, values: Values, setting: Setting) -> str:
    """One operation that acts, with its numbers; empty where they change nothing."""
    if name in _OF_LIGHT and not setting.light:
        return f"{name}: no wavelength, no effect"
    if name in _WORDS:
        return _WORDS[name](values, setting)
    return " ".join([name.replace("_", " "), *(f"{key} {_span(value)}" for key, value in values.items())])


_OF_LIGHT = ("haze", "shadow")


def _span(values: Sequence[float], form: Callable[[float], str] = number) -> str:
    """One number, or the smallest and largest of several."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low}..{high}"


def _blur(values: Values, setting: Setting) -> str:
    return f"blur {number(setting.blur * values['sigma'][0], 2)} px"


def _thickness(values: Values, setting: Setting) -> str:
    assert setting.policy.thickness is not None
    own = setting.spacing[setting.policy.axes.index(setting.policy.thickness.axis)]
    thick = values["mm"][0]
    if not math.isfinite(own):
        return "slices: spacing unknown, no effect"
    return f"slices {number(thick, 2)} mm" if thick > own else f"slices {number(thick, 2)} mm (the scan has {number(own)} mm: no effect)"


def _coarser(values: Values, setting: Setting) -> str:
    own, factor = setting.spacing[-1], values["factor"][0]
    return f"sensor x{number(factor, 2)}" + (f" = {number(own * factor, 2)} {setting.length}" if math.isfinite(own) else "")


def _gain(values: Values, setting: Setting) -> str:
    words = [f"gain x{_span(values['gain'])}"] if _differs(values["gain"], 1.0) else []
    if _differs(values["offset"], 0.0):
        unit = f" {setting.scale.unit}" if setting.scale.unit not in ("", "reflectance") else ""
        words.append(f"offset {_span(values['offset'], lambda value: f'{value:+.2g}')}{unit}")
    return " ".join(words)


def _window(values: Values, setting: Setting) -> str:
    words = [f"window centre {setting.scale.shift(values['centre'][0])}"] if _differs(values["centre"], 0.0) else []
    return ", ".join([*words, *([f"window width x{number(values['width'][0])}"] if _differs(values["width"], 1.0) else [])])


def _jitter(values: Values, setting: Setting) -> str:
    words = [f"bright {_span(values['brightness'], setting.scale.shift)}"] if _differs(values["brightness"], 0.0) else []
    return ", ".join([*words, *([f"contrast x{_span(values['contrast'])}"] if _differs(values["contrast"], 1.0) else [])])


def _differs(values: Sequence[float], neutral: float) -> bool:
    return any(value != neutral for value in values)


def _noise(values: Values, setting: Setting) -> str:
    words = [f"noise {setting.scale.amount(values['std'][0])}"] if values["std"][0] or not values["shot"][0] else []
    return ", ".join([*words, *([f"shot {setting.scale.amount(values['shot'][0])}"] if values["shot"][0] else [])])


_WORDS: dict[str, Callable[[Values, Setting], str]] = {
    "blur": _blur,
    "thickness": _thickness,
    "coarser_pixels": _coarser,
    "rotation": lambda values, setting: f"turn {values['degrees'][0]:+.1f}°",
    "bias_field": lambda values, setting: f"coil field ±{100 * values['strength'][0]:.0f} %",
    "shadow": lambda values, setting: f"shadow -{100 * values['depth'][0]:.0f} % of sun on {100 * values['share'][0]:.0f} %",
    "speckle": lambda values, setting: f"speckle {number(values['looks'][0], 2)} looks",
    "rician": lambda values, setting: f"Rician noise {setting.scale.amount(values['std'][0])}",
    "value_noise": lambda values, setting: f"noise {number(values['std'][0])}{' ' * bool(setting.scale.unit)}{setting.scale.unit}",
    "gain": _gain,
    "haze": lambda values, setting: f"haze {values['amount'][0]:+.3f} at 490 nm, λ^-{number(values['exponent'][0], 2)}",
    "window": _window,
    "jitter": _jitter,
    "gamma": lambda values, setting: f"gamma {number(values['exponent'][0], 2)}",
    "noise": _noise,
    "solarise": lambda values, setting: f"solarised above {setting.scale.amount(values['threshold'][0])}",
    "drop_channels": lambda values, setting: "",
    "subset_channels": lambda values, setting: "",
}


def lost_words(channels: Sequence[str], kept: Sequence[bool]) -> str:
    """Channels that a crop lost."""
    lost = [name for name, stays in zip(channels, kept) if not stays]
    if not lost:
        return ""
    return f"without {', '.join(lost)}" if len(lost) <= 3 else f"without {len(lost)} of {len(channels)} channels"


def chosen_bands(channels: Sequence[str], wavelengths: Mapping[str, float]) -> tuple[str, ...]:
    """One or three channels to show: red, green and blue by wavelength or by name, else VV, else the first.

    Args:
        channels: Of the network.
        wavelengths: Channel to centre wavelength in nm.
    """
    light = [name for name in channels if math.isfinite(wavelengths.get(name, math.nan))]
    if light:
        near = [min(light, key=lambda name: abs(wavelengths[name] - goal)) for goal in (665.0, 560.0, 490.0)]
        if len(set(near)) == 3 and all(abs(wavelengths[name] - goal) <= 60 for name, goal in zip(near, (665.0, 560.0, 490.0))):
            return tuple(near)
    lower = {name.lower(): name for name in channels}
    for wanted in (("red", "green", "blue"), ("r", "g", "b")):
        if all(name in lower for name in wanted):
            return tuple(lower[name] for name in wanted)
    return (lower.get("vv", channels[0]),)


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON hold them alike."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
