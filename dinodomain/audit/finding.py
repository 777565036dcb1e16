"""The audit's record: findings and the report that holds them, as pydantic models; their JSON Schema is published beside them.

``audit.json`` is this record and the truth; HTML and Markdown are drawn from it. Holds no statistics and no wording of checks.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from dinodomain.audit.figures import Plot, Table
from dinodomain.audit.protocol.verdict import Verdict
from dinodomain.errors import UserError
from dinodomain.lineage import digest, to_json, write_json
from dinodomain.probes.scores import Interval

SCHEMA = "dinodomain.audit/1.0"
Question = Literal["Q1", "Q2", "Q3", "Q4"]
QUESTIONS: dict[Question, str] = {
    "Q1": "What data shaped the model?",
    "Q2": "What domains does it fail in?",
    "Q3": "Do its features leak what they should not?",
    "Q4": "What downstream systems does it enable?",
}
Outcome = Literal["pass", "fail", "not_run"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Estimate(_Frozen):
    """A number with its interval and what it rests on."""

    metric: str = Field(description="What is measured, e.g. auroc, share.")
    value: float | None
    low: float | None = Field(description="Lower end of the 95 % interval.")
    high: float | None = Field(description="Upper end of the 95 % interval.")
    method: str = Field(description="How the interval was made.")


class Null(_Frozen):
    """What chance gives."""

    kind: str
    count: int = Field(description="Permutations.")
    mean: float | None
    sd: float | None
    low: float | None = Field(description="2.5th percentile.")
    high: float | None = Field(description="97.5th percentile.")
    p: float
    p_adjusted: float = Field(description="After Holm's correction over the family.")
    family: int = Field(description="Tests corrected together.")


class Baseline(_Frozen):
    """The same measurement on features that owe nothing to the training."""

    name: Literal["pixels", "untrained"]
    value: float
    low: float
    high: float
    excess: float = Field(description="Audited minus baseline.")
    excess_low: float
    excess_high: float


class SelfTest(_Frozen):
    """Did the check find what was planted, and stay silent where nothing was?"""

    positive: Outcome
    negative: Outcome
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether either control failed."""
        return "fail" in (self.positive, self.negative)

    def joined(self, other: SelfTest) -> SelfTest:
        """Both together: a control failed where it failed in either, and ran where it ran in either."""
        worst = {"positive": (self.positive, other.positive), "negative": (self.negative, other.negative)}
        order: tuple[Outcome, ...] = ("fail", "pass", "not_run")
        found = {name: min(pair, key=order.index) for name, pair in worst.items()}
        return SelfTest(**found, detail="; ".join(text for text in (self.detail, other.detail) if text))


Localised = Literal["local", "imported", "global", "none", "unknown"]
Use = Literal["shown", "not_shown", "not_tested"]


class Finding(_Frozen):
    """One question asked of the data, and the answer the evidence allows."""

    id: str = Field(description="Check, and what it was run on: attribute/sex.")
    check: str
    code: str = Field(default="", description="Short name of the check in tables: ATTR.")
    core: bool = Field(default=False, description="Whether an audit without this check is incomplete.")
    question: Question
    title: str = Field(description="The question in words.")
    answer: str = Field(description="One sentence.")
    verdict: Verdict
    reason_code: str = ""
    reason: str = Field(default="", description="Why it could not be assessed, or why the verdict is milder than the numbers.")
    remedy: str = Field(default="", description="What would make it assessable.")
    estimate: Estimate | None = None
    null: Null | None = None
    baselines: tuple[Baseline, ...] = ()
    mdl: float | None = Field(default=None, description="Minimum detectable leak, on the scale of the estimate.")
    n_units: int = 0
    n_minor: int | None = Field(default=None, description="Units in the smallest class.")
    n_images: int = 0
    encoded: bool | None = Field(default=None, description="Can be read from the features; neither used nor harmful for that.")
    localised: Localised | None = Field(default=None, description="In tokens of a place, brought there by attention, or everywhere.")
    used: Use | None = Field(default=None, description="Whether a decision made from the features was shown to rest on it.")
    special_category: bool = Field(default=False, description="About an attribute that the policy lists as a special category of data.")
    self_test: SelfTest = SelfTest(positive="not_run", negative="not_run")
    counts: dict[str, int | str] = Field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    evidence: dict[str, Any] = Field(default_factory=dict)
    limits: tuple[str, ...] = ()
    action: str = ""
    owner: str = Field(default="", description="Who has to act; empty until somebody signs.")
    repeat: str = Field(default="", description="What a repeat after the action would show.")
    command: str = Field(default="", description="What computes this finding again.")
    maps_to: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="Law or guidance to the clauses it bears on.")


class GateOutcome(_Frozen):
    """What the gate said when the report was made."""

    asked: bool = Field(description="Whether a policy was given; else the package's defaults for the decision were applied.")
    code: int = Field(description="0 passed, 1 failed, 4 undecided.")
    words: str = Field(description="The outcome in one sentence.")
    failed: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    waived: tuple[str, ...] = Field(default=(), description="What a waiver in force kept from deciding.")
    conditions: tuple[str, ...] = Field(default=(), description="What the outcome hangs on.")


class History(_Frozen):
    """Where this audit stands among the audits of the same checkpoint, from the chain of audits."""

    number: int = Field(description="n of: audit n of this checkpoint.")
    policy_fixed: Literal["before", "after"] = Field(description="Whether the policy is the one of the first audit of this checkpoint.")
    thresholds_changed: int = Field(description="How often thresholds differ from those of the audit before.")
    head: str = Field(description="sha256 of this audit's line in the chain, which holds that of the line before.")

    def words(self, of: str = "this checkpoint", *, policy: bool = True) -> str:
        """One line for page 1.

        Args:
            of: What was audited.
            policy: Whether one was given.
        """
        times = "once" if self.thresholds_changed == 1 else f"{self.thresholds_changed} times"
        fixed = f"policy fixed {self.policy_fixed} first results" if policy else "without a policy"
        return f"audit {self.number} of {of}; {fixed}; thresholds changed {times}"


def blank_as_default(cls: type[BaseModel], value: object, info: ValidationInfo) -> object:
    """A key without a value in a form that people fill in counts as not given."""
    if value is None and info.field_name is not None:
        return cls.model_fields[info.field_name].get_default(call_default_factory=True, validated_data={})
    return value


class Risk(_Frozen):
    """A row of the risk register, filled in by people; blanks stay visible."""

    _blank = field_validator("*", mode="before")(blank_as_default)

    relevant: bool | None = Field(default=None, description="No needs a reason.")
    reason: str = Field(default="", description="Why it is not relevant, or what makes it so.")
    evidence: tuple[str, ...] = Field(default=(), description="Ids of findings it rests on.")
    exposure: str = Field(default="", description="Who can get the weights or features.")
    likelihood: str = ""
    severity: str = ""
    control: str = Field(default="", description="What keeps it from happening.")
    residual: str = Field(default="", description="What remains with the control.")
    owner: str = ""
    review: str = Field(default="", description="Date of the next review.")


class Report(_Frozen):
    """The whole audit."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    audit_id: str = Field(description="Digest of subject, data, policy, plan and findings.")
    created: str = Field(description="UTC, ISO 8601.")
    tool: dict[str, str]
    notice: str = Field(default="", description="Printed in every section, e.g. that the data are made up.")
    subject: dict[str, Any] = Field(description="What was audited: digests of weights, store, features.")
    data: dict[str, Any] = Field(description="Rows, units, columns used and left out.")
    policy: dict[str, Any]
    plan: dict[str, Any]
    findings: tuple[Finding, ...]
    unanswered: dict[str, str] = Field(default_factory=dict, description="Question to why no check answers it in this report.")
    decision: str = Field(default="internal_use", description="What the report is to decide.")
    supplied_by: str = Field(default="", description="Who supplied audit set and metadata.")
    independent: bool | None = Field(default=None, description="Whether the auditor had no part in building the model; null: not stated.")
    gate: GateOutcome | None = None
    history: History | None = None
    training: dict[str, str] = Field(default_factory=dict, description="Device-hours and energy of the training, or: not measured.")
    register_: dict[str, Risk] = Field(default_factory=dict, alias="risk_register", description="R1 to R4, as declared.")
    signoff: tuple[str, ...] = Field(
        default=("Data owner", "Machine learning lead", "Domain expert", "Legal and data protection"), description="Roles that sign."
    )

    @field_validator("created")
    @classmethod
    def _dated(cls, value: str) -> str:
        if datetime.fromisoformat(value).tzinfo is None:
            raise ValueError("names no time zone")
        return value

    def identity(self) -> str:
        """Digest of subject, data, policy, plan and findings, whatever commands and inputs were written beside them."""
        plan = {key: value for key, value in self.plan.items() if key != "inputs"}
        findings = [finding.model_copy(update={"command": ""}).model_dump(mode="python") for finding in self.findings]
        return digest(to_json([self.subject, self.data, self.policy, plan, findings]))

    def as_json(self) -> dict[str, Any]:
        """Plain values; a NaN is null."""
        plain: dict[str, Any] = to_json(self.model_dump(mode="python", by_alias=True))
        return plain


def estimate_of(interval: Interval, metric: str, method: str) -> Estimate:
    """An interval as the record keeps it."""
    return Estimate(metric=metric, value=interval.value, low=interval.low, high=interval.high, method=method)


def null_of(kind: str, scores: np.ndarray, p: float, p_adjusted: float, family: int) -> Null:
    """What permuted values [K] scored, as the record keeps it."""
    low, high = np.percentile(scores, [2.5, 97.5])
    return Null(
        kind=kind, count=len(scores), mean=float(scores.mean()), sd=float(scores.std()), low=float(low), high=float(high), p=p,
        p_adjusted=p_adjusted, family=family,
    )  # fmt: skip


def write_schema(path: Path) -> None:
    """Writes the JSON Schema (2020-12) of ``audit.json`` from the models."""
    body = Report.model_json_schema(by_alias=True, mode="serialization")
    write_json(path, {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **body})


@cache
def published_schema() -> dict[str, Any]:
    """The schema that ships with the package."""
    body: dict[str, Any] = json.loads(files("dinodomain.audit").joinpath("audit.schema.json").read_text("utf-8"))
    return body


def read_report(path: Path) -> Report:
    """Reads and validates an ``audit.json``.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        UserError: Not there, not JSON, or not a report of this schema.
    """
    path = path / "audit.json" if path.is_dir() else path
    try:
        body = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError("report", f"{path} does not exist", remedy="run the audit, or give the path of its audit.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError("report", f"{path} is not JSON: {error}", allowed="an audit.json") from None
    check_report(body, str(path))
    try:
        return Report.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}", f"{first['msg']}", allowed="an audit.json as it was written"
        ) from None


def check_report(body: Any, place: str) -> None:
    """Validates plain values against the published schema.

    Raises:
        UserError: They differ from it; names where.
    """
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(published_schema()).iter_errors(body))
    if problem is not None:
        where = "/".join(str(part) for part in problem.absolute_path) or "the whole document"
        raise UserError(place, f"does not follow {SCHEMA} at {where}: {problem.message[:200]}", remedy="audit again with this version")
