"""Reads the YAML files that people fill in for an audit (policy, declaration), strictly, with all problems at once."""

from __future__ import annotations

import difflib
import os
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dinodomain.errors import Problems, UserError, require
from dinodomain.lineage import write_bytes

Form = TypeVar("Form", bound=BaseModel)


_ALLOWED = {
    "tuple_type": "a list: [...]", "list_type": "a list: [...]", "dict_type": "a mapping: {...}", "model_type": "a mapping: {...}",
    "string_too_short": "text that is not empty", "bool_parsing": "true or false", "date_from_datetime_parsing": "a date like 2027-06-30",
}  # fmt: skip
"""What pydantic found wrong, to what the user may write."""


def read_form(path: str | os.PathLike[str], key: str, model: type[Form]) -> Form:
    """Reads a file of this form.

    Args:
        path: The file.
        key: The user's key for it, for messages.
        model: What it must hold.

    Raises:
        UserError: Not there, not YAML, or with keys or values that are not allowed (all of them at once).
    """
    yaml = require("yaml", extra="audit", wanted_by=key)
    place = f"{key} {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as handle:
            body = yaml.safe_load(handle)
    except OSError as error:
        raise UserError(place, error.strerror or "cannot be read", remedy="give the path of a file in YAML") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a plain ValueError
        raise UserError(place, f"cannot be read as YAML: {str(error).splitlines()[0]}", allowed=f"a mapping of {key} keys") from None
    body = _dates_as_text(body)
    if not isinstance(body, dict):
        raise UserError(place, "holds no mapping", allowed=", ".join(model.model_fields))
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise Problems([_problem(item, place, model) for item in error.errors()]) from None


def _dates_as_text(value: Any) -> Any:
    """YAML makes dates of what looks like one; the forms hold them as ISO 8601 text."""
    if isinstance(value, dict):
        return {str(key): _dates_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dates_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def did_you_mean(word: str, known: list[str]) -> str | None:
    """A remedy that names the nearest known word, or None."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _problem(item: Any, place: str, model: type[BaseModel]) -> UserError:
    where = ".".join(str(part) for part in item["loc"] if "[" not in str(part))
    if item["type"] == "extra_forbidden":
        fields = list(_fields(model, item["loc"][:-1]))
        return UserError(f"{place}: {where}", "unknown key", allowed=", ".join(fields), remedy=did_you_mean(str(item["loc"][-1]), fields))
    if item["type"] == "value_error":  # of our own: words for people already
        return UserError(f"{place}{f': {where}' if where else ''}", str(item["ctx"]["error"]))
    if item["type"] == "missing":
        return UserError(f"{place}: {where}", "missing", remedy="give it")
    allowed = _ALLOWED.get(item["type"], item["msg"].removeprefix("Input should be "))
    return UserError(f"{place}: {where}", f"{item['input']!r}", allowed=allowed)


def _fields(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Keys allowed at a place of the form."""
    found: Any = model
    for part in path:
        inner = _models_in(found.model_fields[part].annotation) if part in getattr(found, "model_fields", {}) else []
        found = inner[0] if inner else found
    return list(found.model_fields)


def _models_in(kind: Any) -> list[type[BaseModel]]:
    """The form's own models inside a type such as ``tuple[Waiver, ...]``."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [found for inner in getattr(kind, "__args__", ()) for found in _models_in(inner)]


def leave(path: Path, text: str) -> Path:
    """Writes an empty form; one that is already there stays as it is."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    return path


def blank(model: type[BaseModel], heads: str) -> str:
    """An empty form as YAML: each key with its default, behind one #, under what it means, behind two."""
    lines = [heads]
    for name, item in model.model_fields.items():
        default = item.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            lines.append(f"# {name}:")
            for key, value in default.model_dump(mode="json").items():
                said = type(default).model_fields[key].description
                lines += [*([f"##   {said}"] if said else []), f"#   {key}: {_shown(value)}"]
        else:
            lines += [f"## {item.description}", f"# {name}: {_shown(default)}"]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain) if plain != "" else "''"
