"""The policy of an audit: thresholds, expectations, what a gate asks for. A YAML file, read strictly; its digest is printed."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.errors import Problems, UserError, require
from dinodomain.lineage import digest


class Policy(BaseModel):
    """What is asked of an audit, decided before its results are seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="default", description="Printed in the report.")
    set_by: str = Field(default="the package's defaults", description="Who answers for the thresholds.")
    thresholds: Thresholds = Thresholds()
    required: tuple[str, ...] = Field(
        default=(), description="Finding ids (attribute/sex) or checks (overlap) that must be assessed and not flagged."
    )
    expected: dict[str, str] = Field(default_factory=dict, description="Attribute to the reason why a good encoder must show it.")
    fail_on: tuple[Verdict, ...] = Field(default=("FLAG",), description="Verdicts of required findings that fail the gate.")
    max_age_days: int | None = Field(default=None, ge=0, description="A report older than this is stale; none means never.")

    @property
    def digest(self) -> str:
        """sha256 of all settings."""
        return digest(self.model_dump(mode="json"))


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads a policy file.

    Raises:
        UserError: Not there, not YAML, or with keys or values that are not allowed (all of them at once).
    """
    yaml = require("yaml", extra="audit", wanted_by="gate")
    place = f"gate {os.fspath(path)}"
    try:
        with open(path, encoding="utf-8") as handle:
            body = yaml.safe_load(handle)
    except OSError as error:
        raise UserError(place, error.strerror or "cannot be read", remedy="give the path of a policy in YAML") from None
    except yaml.YAMLError as error:
        raise UserError(place, f"is not YAML: {str(error).splitlines()[0]}", allowed="a mapping of policy keys") from None
    if not isinstance(body, dict):
        raise UserError(place, "holds no mapping", allowed=", ".join(Policy.model_fields))
    return _build(body, place)


def _build(body: dict[str, Any], place: str) -> Policy:
    try:
        return Policy.model_validate(body)
    except ValidationError as error:
        raise Problems([_problem(item, place) for item in error.errors()]) from None


def _problem(item: Any, place: str) -> UserError:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        fields = Thresholds.model_fields if where.startswith("thresholds.") else Policy.model_fields
        return UserError(f"{place}: {where}", "unknown key", allowed=", ".join(fields))
    return UserError(f"{place}: {where}", f"{item['input']!r}: {item['msg']}")
