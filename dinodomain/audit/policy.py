"""The policy of an audit: thresholds, expectations, what a gate asks for. A YAML file, read strictly; its digest is printed."""

from __future__ import annotations

import os
from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dinodomain.audit.forms import read_form
from dinodomain.audit.protocol.verdict import Thresholds, Verdict
from dinodomain.lineage import digest

Origin = Literal["recorded", "self_reported", "report_text", "inferred"]
RiskId = Literal["R1", "R2", "R3", "R4"]
_AFTERWARDS = {"waivers", "supplied_by", "independent"}
"""Keys that change no verdict: a waiver is granted once the findings are known, and who supplied data decides nothing."""


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
        "needs (gate.NEEDED).",
    )
    expected: dict[str, str] = Field(default_factory=dict, description="Attribute to the reason why a good encoder must show it.")
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
    max_age_days: int | None = Field(default=None, ge=0, description="A report older than this is stale; none means never.")

    max_new_flags: int | None = Field(
        default=None, ge=0, description="Most findings flagged here but not in the report against=; none means 0 where there is one."
    )
    targets: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Column to value to its share in the population that the model is for; shares of a column sum to 1.",
    )
    declared: dict[str, str] = Field(
        default_factory=dict,
        description="What is declared about the data (provenance.DECLARED); printed beside the evidence, never in its place.",
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

    @property
    def digest(self) -> str:
        """sha256 of all settings that decide verdicts or the gate; waivers, which come afterwards, are not among them."""
        return digest(self.model_dump(mode="json", exclude=_AFTERWARDS))


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads a policy file.

    Raises:
        UserError: Not there, not YAML, or with keys or values that are not allowed (all of them at once).
    """
    return read_form(path, "gate", Policy)
