"""A view policy as text: a table with units for people, and YAML that can be edited and given back as ``views.policy``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from dinodomain.policy import Operation, ViewPolicy, chances, operations, parameters
from dinodomain.show.captions import Scale, Setting, number, plain

_FIXED = ("axes", "wavelengths_nm")
_WIDTH = 16
_LINE = 140


def policy_values(policy: ViewPolicy) -> dict[str, Any]:
    """The policy as plain values that ``views.policy`` takes: what is off is None, and what cannot be changed is left out."""
    return {item.name: _values(getattr(policy, item.name)) for item in fields(policy) if item.name not in _FIXED}


def _values(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else plain(value)


def policy_yaml(policy: ViewPolicy, *, domain: str, crops: Mapping[str, Any]) -> str:
    """The same as YAML with what each key means; ``config=FILE`` takes it.

    Args:
        policy: In force.
        domain: Its name.
        crops: The other keys of ``views`` that these views were drawn with.
    """
    lines = [
        f"# Views of domain {domain}: edit them and give them back with config=FILE. null turns an operation off.",
        "# probability: one number for all views, or three for [first global, other globals, locals].",
        f"# axes, in array order: {', '.join(policy.axes)}; they belong to the domain and cannot be changed.",
        "views:",
        *(f"  {name}: {_yaml(plain(value))}" for name, value in crops.items()),
        "  policy:",
    ]
    meanings = _meanings(ViewPolicy)
    for name, value in policy_values(policy).items():
        lines.append(f"    # {meanings[name]}")
        if not (isinstance(value, dict) and name != "flip"):
            lines.append(f"    {name}: {_yaml(value)}")
            continue
        lines.append(f"    {name}:")
        own = _meanings(type(getattr(policy, name)))
        lines.extend(f"      {key}: {_yaml(item)}  # {own[key]}" for key, item in value.items())
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML 1.1 reads 1e-06 as text
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def _meanings(kind: type) -> dict[str, str]:
    """Attribute to what its class's docstring says about it."""
    found: dict[str, str] = {}
    current = ""
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        name, colon, text = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            current = name
            found[current] = text
        elif current and line.strip():
            found[current] += f" {line.strip()}"
    return found


def policy_table(policy: ViewPolicy, setting: Setting, scales: Mapping[str, tuple[float, float] | None]) -> list[str]:
    """Lines for a terminal: each key of the policy, how often it acts, and its ranges in physical units where they have any.

    Args:
        policy: In force.
        setting: Units.
        scales: Fractions of ``global`` and ``local`` crops in force; None where lengths take their place.
    """
    size = "volume" if len(policy.axes) == 3 else "area"
    flips = ", ".join(f"{axis} {number(chance)}" for axis, chance in policy.flip.items() if chance) or "none"
    rows = [
        ("axes", "", ", ".join(policy.axes)),
        ("flip", "", flips),
        ("quarter_turns", "", "0.5 each" if policy.quarter_turns else "none"),
        *((f"{name}_scale", "", _fraction(span, size)) for name, span in scales.items()),
        ("aspect", "", f"{_range(policy.aspect)}, ratio of in-plane lengths"),
        ("min_valid", "", f"{number(policy.min_valid)} of a crop is known, if a place can be found"),
        ("default_mode", "", policy.default_mode),
    ]
    rows += [(name, _chance(item), "; ".join(_parts(name, item, setting))) for name, item in operations(policy).items()]
    off = [item.name for item in fields(policy) if getattr(policy, item.name) is None]
    return [
        f"{'views.policy.':<{_WIDTH}}  {'probability':<15}  range (first global / other globals / locals where three are given)",
        *(f"{name:<{_WIDTH}}  {chance:<15}  {words}" for name, chance, words in rows),
        *_wrapped("off", off),
    ]


def _fraction(span: tuple[float, float] | None, size: str) -> str:
    return f"{_range(span)} of the tile's {size}" if span else "lengths are given instead"


def _wrapped(name: str, words: Sequence[str]) -> Iterator[str]:
    if words:
        yield f"{name:<{_WIDTH}}  {'':<15}  {', '.join(words)}"


def _chance(operation: Operation) -> str:
    rates = chances(operation)
    return number(rates[0]) if len(set(rates)) == 1 else " / ".join(map(number, rates))


def _parts(name: str, operation: Operation, setting: Setting) -> Iterator[str]:
    for item in parameters(operation):
        own = f"{item.name} {_range((item.low, item.high))}"
        physical = _physical(name, item.name, (item.low, item.high), setting)
        yield f"{own} ({physical})" if physical else own
    drawn = {item.name for item in parameters(operation)} | {"probability"}
    for fixed in fields(operation):
        if fixed.name not in drawn:
            value = getattr(operation, fixed.name)
            yield f"{fixed.name} {number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value}"


def _range(pair: tuple[float, float]) -> str:
    return number(pair[0]) if pair[0] == pair[1] else f"{number(pair[0])}..{number(pair[1])}"


_OF_RANGE = {("window", "centre"), ("jitter", "brightness"), ("noise", "std"), ("noise", "shot"), ("rician", "std")}


_OF_CHANNEL = {("gain", "offset"), ("value_noise", "std")}


def _physical(name: str, parameter: str, pair: tuple[float, float], setting: Setting) -> str:
    """A range in the channel's unit, in pixels, degrees, mm or m; empty where the number is one already or has no unit."""
    if (name, parameter) in _OF_RANGE:
        return _of_range(setting.scale, pair)
    if (name, parameter) == ("blur", "sigma"):
        return f"{_range((setting.blur * pair[0], setting.blur * pair[1]))} px of these crops"
    if (name, parameter) == ("coarser_pixels", "factor"):
        own = setting.spacing[-1]
        return f"{_range((own * pair[0], own * pair[1]))} {setting.length}" if own == own else ""
    return {"degrees": "degrees", "mm": "mm"}.get(parameter, setting.scale.unit if (name, parameter) in _OF_CHANNEL else "")


def _of_range(scale: Scale, pair: tuple[float, float]) -> str:
    low, high = (scale.shift(value) for value in pair) if pair[0] < 0 else (scale.amount(value) for value in pair)
    return low if low == high else f"{low} to {high}"
