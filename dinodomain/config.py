"""Plain mapping -> frozen plan dataclasses: one strict ``build()``, and where the YAML lies.

Knows no Hydra: ``cli`` composes YAML and hands over plain values; Python users hand over dicts. All problems of a plan are
reported at once, misspelt keys with "did you mean".
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types as python_types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

import dinodomain
from dinodomain.errors import Problems, UserError

Plan = TypeVar("Plan")

GIVEN = "given"
"""Field of a plan that holds the dotted keys that were stated."""


def config_dir() -> Path:
    """Folder of the YAML configs: beside the package in a wheel, one level up in a checkout.

    Raises:
        UserError: The installation lost its configs.
    """
    package = Path(dinodomain.__file__).parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "pretrain.yaml").is_file():
            return folder
    raise UserError("configs", f"no YAML configs beside {package}", remedy="reinstall dinodomain")


@dataclass(frozen=True, slots=True)
class KeyMap:
    """How a verb's flat plan looks to the user: some keys at top level, the rest under the verb's name.

    Attributes:
        prefix: Section for keys that are not at top level; empty where the plan's own nesting is the user's.
        top: Plan fields that are top-level keys.
        sections: Nested plan field -> the user's name of that section.
    """

    prefix: str = ""
    top: tuple[str, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)

    def to_user(self, key: str) -> str:
        """Plan key path -> the key a user types."""
        head, dot, rest = key.partition(".")
        if head in self.sections:
            return f"{self.sections[head]}{dot}{rest}"
        return key if not self.prefix or head in self.top else f"{self.prefix}.{key}"

    def to_plan(self, key: str) -> str:
        """The key a user types -> plan key path. A key that fits nothing comes back as it was and is reported by ``build``."""
        head, dot, rest = key.partition(".")
        for plan_name, user_name in self.sections.items():
            if dot and head == user_name:
                return f"{plan_name}.{rest}"
        return rest if dot and self.prefix and head == self.prefix else key


def build(plan_class: type[Plan], data: Mapping[str, Any], keys: KeyMap | None = None) -> Plan:
    """Converts a plain mapping into a plan, strictly.

    Args:
        plan_class: The dataclass to make.
        data: Plain values, nested as the dataclass is.
        keys: How plan keys are spelt to the user, for messages.

    Returns:
        The plan. One with a field ``given`` holds there which keys the mapping stated, so that no choice is taken for a default that
        happens to have its value.

    Raises:
        Problems: One or more keys are unknown, missing or of the wrong kind; all of them are listed.
    """
    keys = keys or KeyMap()
    problems: list[UserError] = []
    plan = _build(plan_class, data, "", problems, keys)
    if problems:
        raise Problems(problems)
    if any(item.name == GIVEN for item in dataclasses.fields(plan)):
        plan = dataclasses.replace(plan, **{GIVEN: frozenset(_leaves_of(plan_class, data))})
    return typing.cast(Plan, plan)


def _leaves_of(plan_class: type[Any], data: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted keys that a mapping states, whatever their values; a mapping that is a value is one key."""
    hints = typing.get_type_hints(plan_class)
    for name, value in data.items():
        if not dataclasses.is_dataclass(hints[name]):
            yield f"{path}{name}"
        elif isinstance(value, Mapping):
            yield from _leaves_of(typing.cast(type[Any], hints[name]), value, f"{path}{name}.")


def stated_fields(plan_class: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """Fields of a plan that are keys a user may set."""
    return tuple(item for item in dataclasses.fields(plan_class) if item.init and item.metadata.get("recorded", True))


def _build(plan_class: type[Any], data: Mapping[str, Any], path: str, problems: list[UserError], keys: KeyMap) -> Any:
    hints = typing.get_type_hints(plan_class, include_extras=False)
    fields = {item.name: item for item in stated_fields(plan_class)}
    before = len(problems)
    problems.extend(_unknown(key, fields, path, keys, plan_class) for key in data if key not in fields)
    values: dict[str, Any] = {}
    for name, item in fields.items():
        place = f"{path}{name}"
        if name in data:
            values[name] = _convert(hints[name], data[name], place, problems, keys)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            problems.append(UserError(keys.to_user(place), "is required", remedy=f"add {keys.to_user(place)}=..."))
    if len(problems) > before:
        return None
    try:
        return plan_class(**values)
    except Problems as error:
        problems.extend(_respelt(problem, fields, path, keys) for problem in error.problems)
    except UserError as error:
        problems.append(_respelt(error, fields, path, keys))
    return None


def _respelt(error: UserError, fields: Mapping[str, Any], path: str, keys: KeyMap) -> UserError:
    """A plan that names one of its own fields as the place gets the key that the user types."""
    if error.place.partition(".")[0] not in fields:
        return error
    return UserError(keys.to_user(f"{path}{error.place}"), error.problem, allowed=error.allowed, remedy=error.remedy)


def _unknown(key: str, fields: Mapping[str, Any], path: str, keys: KeyMap, plan_class: type[Any]) -> UserError:
    known = {keys.to_user(f"{path}{name}") for name in fields}
    typed = keys.to_user(f"{path}{key}")
    # The leaf decides how near a key is; a shared section name would make everything look alike.
    leaves = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, leaves, n=1, cutoff=0.6) or difflib.get_close_matches(
        key, _all_leaves(plan_class), n=1, cutoff=0.8
    )
    if near:
        return UserError(typed, "unknown key", remedy=f"did you mean {leaves.get(near[0], near[0])!r}?")
    return UserError(typed, "unknown key", allowed=", ".join(sorted(known)))


def _all_leaves(plan_class: type[Any]) -> list[str]:
    return [key for key, _, _ in plan_keys(plan_class)]


def _convert(kind: Any, value: Any, place: str, problems: list[UserError], keys: KeyMap) -> Any:
    """Converts one value; on failure notes the problem and returns None."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, python_types.UnionType):
        return _convert_union(args, value, place, problems, keys)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            return _build(kind, value, f"{place}.", problems, keys)
        return _wrong(place, value, "a section of keys", problems, keys)
    if origin is Literal:
        return value if value in args else _wrong(place, value, ", ".join(str(arg) or "'' (empty)" for arg in args), problems, keys)
    if origin is tuple:
        return _convert_tuple(args, value, place, problems, keys)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _wrong(place, value, "a mapping {name: value}", problems, keys)
        return {str(name): _convert(args[1], item, f"{place}.{name}", problems, keys) for name, item in value.items()}
    return _convert_scalar(kind, value, place, problems, keys)


def _convert_union(args: tuple[Any, ...], value: Any, place: str, problems: list[UserError], keys: KeyMap) -> Any:
    if value is None and type(None) in args:
        return None
    rest = [item for item in args if item is not type(None)]
    trials: list[list[UserError]] = []
    for item in rest:
        found: list[UserError] = []
        result = _convert(item, value, place, found, keys)
        if not found:
            return result
        trials.append(found)
    problems.extend(trials[0])
    return None


def _convert_tuple(args: tuple[Any, ...], value: Any, place: str, problems: list[UserError], keys: KeyMap) -> Any:
    if not isinstance(value, (list, tuple)):
        # One name where a list is expected is what people type; a list of one is what they mean.
        if isinstance(value, (str, int, float)) and len(args) == 2 and args[1] is Ellipsis:
            value = [value]
        else:
            return _wrong(place, value, "a list such as [1,2]", problems, keys)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{place}[{i}]", problems, keys) for i, item in enumerate(value))
    if len(value) != len(args):
        return _wrong(place, value, f"a list of {len(args)} values", problems, keys)
    return tuple(_convert(kind, item, f"{place}[{i}]", problems, keys) for i, (kind, item) in enumerate(zip(args, value)))


def _convert_scalar(kind: Any, value: Any, place: str, problems: list[UserError], keys: KeyMap) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    # Words such as ``ingest.grid=1`` and ``ingest.dates=2020`` reach us as the numbers that they look like.
    if kind is str and isinstance(value, (Path, int, float)) and not isinstance(value, bool):
        return str(value)
    # bool is an int to Python, never to a user.
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        return _wrong(place, value, names.get(kind, getattr(kind, "__name__", str(kind))), problems, keys)
    return value


def _wrong(place: str, value: Any, allowed: str, problems: list[UserError], keys: KeyMap) -> None:
    problems.append(UserError(keys.to_user(place), f"{value!r} is not valid", allowed=allowed))


@dataclass(frozen=True, slots=True)
class PlanKey:
    """One key of a plan as ``--help`` shows it."""

    kind: str
    default: str
    meaning: str


def plan_keys(plan_class: type[Any], path: str = "") -> Iterator[tuple[str, PlanKey, type[Any]]]:
    """Walks all leaf keys of a plan with kind, default and meaning, in order of definition.

    Args:
        plan_class: The plan dataclass.
        path: Key path of this section, ending in a dot, or empty.

    Yields:
        Key path, its description, and the section's class.
    """
    hints, meanings = typing.get_type_hints(plan_class), attribute_docs(plan_class)
    for item in stated_fields(plan_class):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from plan_keys(kind, f"{path}{item.name}.")
            continue
        yield f"{path}{item.name}", PlanKey(_kind_name(kind), _default_text(item), meanings.get(item.name, "")), plan_class


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(str(arg) or "''" for arg in typing.get_args(kind))
    if isinstance(kind, type) and not typing.get_args(kind):
        return kind.__name__
    return str(kind).replace("typing.", "").replace("collections.abc.", "").replace(" | None", "").replace("Literal", "")


def _default_text(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        default = item.default
    elif item.default_factory is not dataclasses.MISSING:
        default = item.default_factory()
    else:
        return "required"
    return "none" if default is None else str(list(default) if isinstance(default, tuple) else default)


def attribute_docs(plan_class: type[Any]) -> dict[str, str]:
    """The ``Attributes:`` section of a class docstring as field -> meaning."""
    docs: dict[str, str] = {}
    current: str | None = None
    inside = False
    for line in inspect.cleandoc(plan_class.__doc__ or "").splitlines():
        if not line.startswith(" ") and line.strip():
            inside, current = line.strip() == "Attributes:", None
        elif inside and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            current, _, text = line.strip().partition(":")
            docs[current] = text.strip()
        elif inside and current and line.strip():
            docs[current] += " " + line.strip()
    return docs


def groups_of(verb: str) -> tuple[str, ...]:
    """Config groups that a verb offers (``recipe``, ``model`` ...), as its YAML lists them."""
    body = yaml.safe_load((config_dir() / f"{verb}.yaml").read_text(encoding="utf-8")) or {}
    return tuple(name for entry in body.get("defaults", ()) if isinstance(entry, dict) for name in entry)


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe's values without Hydra, for the Python API.

    Raises:
        UserError: There is no recipe of this name.
    """
    folder = config_dir() / "recipe"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise UserError("recipe", f"{name!r} is not known", allowed=", ".join(known), remedy=hint)
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings joined key by key; ``over`` wins."""
    joined = dict(base)
    for key, value in over.items():
        below = joined.get(key)
        joined[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return joined
