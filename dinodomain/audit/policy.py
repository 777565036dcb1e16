"""The policy of an audit: thresholds, expectations, what a gate asks for. A YAML file, read strictly; its digest is printed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from dinodomain.audit.forms import blank, did_you_mean, leave, read_form
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.lineage import digest

Origin = Literal["recorded", "self_reported", "report_text", "inferred"]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
RiskId = Literal["R1", "R2", "R3", "R4"]
_AFTERWARDS = {"waivers", "supplied_by", "independent"}
"""Keys that change no verdict: a waiver is granted once the findings are known, and who supplied data decides nothing."""
_GATE = {"name", "set_by", "required", "fail_on", "max_age_days", "max_new_flags", "max_withdrawn"}
"""Keys that only the gate reads: a report can be judged by others that ask for no less."""
_HEADS = """## The policy of an audit, fixed before its results are seen. Take one # away to set a key; behind it stands its default.
## expected: {sex: radiographs show the shadow of the breast}
## waivers:
##   - {finding: attribute/sex, reason: dose depends on it, owner: who answers for it, expires: 2027-06-30}"""


DECLARED: Mapping[str, str] = {
    "title": "name of the data set", "identifier": "unique id", "issuer": "who issued it", "description": "what it holds",
    "source": "who collected it, where that is another", "geography": "where it comes from", "issued": "when it was issued",
    "collected": "from when to when it was collected", "method": "how it was collected", "confidentiality": "how confidential it is",
    "consent": "where consent, or the waiver of it, is documented", "privacy_measures": "what was done to protect people",
    "processing_geography": "where it may be processed", "storage_geography": "where it may be stored", "licence": "of the data",
    "intended_use": "what it may be used for", "weights_licence": "licence of the weights to be released",
}  # fmt: skip
"""Keys of the policy's ``declared``, after the Data & Trust Alliance's provenance standards 1.0."""


class Waiver(BaseModel):
    """Somebody answers for going on in spite of a finding, until a date."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: str = Field(min_length=1, description="Finding id (attribute/sex) or check (attribute).")
    reason: str = Field(min_length=1, description="Why the use may go on in spite of it.")
    owner: str = Field(min_length=1, description="Who answers for it.")
    expires: date = Field(description="Last day on which it counts; afterwards it decides nothing.")

    def in_force(self, today: date) -> bool:
        """Whether it still counts."""
        return today <= self.expires


class Policy(BaseModel):
    """What is asked of an audit, decided before its results are seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="default", description="Printed in the report.")
    set_by: str = Field(default="the package's defaults", description="Who answers for the thresholds.")
    thresholds: Thresholds = Thresholds()
    required: tuple[str, ...] | None = Field(
        default=None,
        description="Finding ids (attribute/sex) or checks (overlap) that must be assessed and not flagged; none takes what the decision "
        "needs.",
    )
    expected: dict[str, Reason] = Field(default_factory=dict, description="Attribute to the reason why a good encoder must show it.")
    special_category: tuple[str, ...] = Field(
        default=(), description="Attributes that are special categories of data (GDPR Art. 9): a warning about one is a flag."
    )
    persons: bool | None = Field(
        default=None, description="Whether units are people, who could be recognised; none: not where images have a place."
    )
    protected_places: bool = Field(default=False, description="Whether it harms when a place becomes known: reading it is a flag.")
    origin_column: str = Field(default="dataset", description="Column that names the data set an image comes from.")
    origins: dict[str, Origin | dict[str, dict[str, Origin]]] = Field(
        default_factory=dict, description="Column to where its values come from; where that differs, to {other column: {value: origin}}."
    )
    out_of_scope: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Column to the values that the encoder is not meant for; what it makes of them is measured."
    )
    fail_on: tuple[Verdict, ...] = Field(default=("FLAG",), description="Verdicts of required findings that fail the gate.")
    max_age_days: int | None = Field(default=None, ge=1, description="A report older than this is stale; none means never.")

    max_new_flags: int | None = Field(
        default=None, ge=0, description="Most findings flagged here but not in the report against=; none means 0 where there is one."
    )
    targets: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Column to value to its share in the population that the model is for; shares of a column sum to 1.",
    )
    declared: dict[str, str] = Field(
        default_factory=dict,
        description="What is declared about the data (title, consent, licence, ...); printed beside the evidence, never in its place.",
    )
    max_withdrawn: int | None = Field(default=None, ge=0, description="Most units withdrawn since training; none does not ask.")
    waivers: tuple[Waiver, ...] = Field(default=(), description="Findings that do not decide the gate, each with reason, owner and expiry.")
    risks: dict[str, RiskId] = Field(
        default_factory=dict,
        description="Column to the risk that reading it bears on: R1 surveillance, R2 biometric inference, R3 military, R4 inspection.",
    )
    supplied_by: str = Field(default="", description="Who supplied audit set and metadata; audit.supplied_by wins.")
    independent: bool | None = Field(
        default=None, description="Whether the auditor had no part in building the model; audit.independent wins."
    )

    @field_validator("declared")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := [name for name in value if name not in DECLARED]:
            near = did_you_mean(unknown[0], list(DECLARED))
            raise ValueError(f"no field {unknown[0]!r}; allowed: {', '.join(DECLARED)}{f'; {near}' if near else ''}")
        return value

    @field_validator("targets")
    @classmethod
    def _shares(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, shares in value.items():
            if min(shares.values(), default=0) < 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-3):
                raise ValueError(f"the shares of {name} sum to {sum(shares.values()):g}; allowed: shares of 0 and more that sum to 1")
        return value

    @property
    def digest(self) -> str:
        """sha256 of all settings that decide verdicts or the gate; waivers, which come afterwards, are not among them."""
        return digest(self.model_dump(mode="json", exclude=_AFTERWARDS))


def earlier(recorded: Mapping[str, Any]) -> Policy:
    """The policy that a report recorded."""
    return Policy.model_validate({key: value for key, value in recorded.items() if key != "digest"})


def changed(policy: Policy, before: Policy) -> tuple[list[str], list[str]]:
    """Keys in which two policies differ: those on which verdicts rest, and those that only the gate reads."""
    ours, theirs = policy.model_dump(mode="json"), before.model_dump(mode="json")
    differ = [key for key in ours if key not in _AFTERWARDS and ours[key] != theirs[key]]
    return [key for key in differ if key not in _GATE], [key for key in differ if key in _GATE]


def write_blank(path: Path) -> Path:
    """Writes an empty policy, every key with its default and meaning; one that is already there stays as it is."""
    return leave(path, blank(Policy, _HEADS))


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads a policy file.

    Raises:
        UserError: Not there, not YAML, or with keys or values that are not allowed (all of them at once).
    """
    return read_form(path, "gate", Policy)
