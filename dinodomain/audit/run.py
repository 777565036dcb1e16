"""Runs the checks on arrays and makes the report. No encoder, no store: ``verb.py`` loads those. N rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

import dinodomain
from dinodomain.audit.checks.attribute import attributes as read_attributes
from dinodomain.audit.checks.duplicates import duplicates
from dinodomain.audit.checks.membership import membership
from dinodomain.audit.checks.overlap import overlap
from dinodomain.audit.checks.subgroups import subgroups
from dinodomain.audit.finding import QUESTIONS, Finding, Report
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import MISSING
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.protocol.leak import Effort
from dinodomain.errors import Problems, UserError
from dinodomain.lineage import canonical, digest, to_json
from dinodomain.probes.folds import index_units
from dinodomain.probes.ridge import unit_blocks

Progress = Callable[[str], None]


def run_checks(
    data: AuditSet,
    *,
    attributes: Sequence[str] = (),
    task: str | None = None,
    effort: Effort | None = None,
    max_rows: int = 20_000,
    policy: Policy | None = None,
    subject: Mapping[str, Any] | None = None,
    notice: str = "",
    progress: Progress | None = None,
) -> Report:
    """Audits arrays.

    Args:
        data: Features and metadata.
        attributes: Columns to read from the features.
        task: Column of a task with two classes, whose scores are compared between groups; None for none.
        effort: Folds, permutations, draws, seed.
        max_rows: Most rows for probes.
        policy: Thresholds and expectations; None means the defaults.
        subject: Digests of what was audited.
        notice: Printed in every section.
        progress: Told the name of each check as it starts.

    Returns:
        The report, which ``report.write_report`` writes.

    Raises:
        UserError: A named column does not exist.
    """
    effort, policy, tell = effort or Effort(), policy or Policy(), progress or (lambda _: None)
    _known_columns(data, attributes, task)
    lines, probed = policy.thresholds, thin(data, max_rows, effort.seed)
    steps: list[tuple[str, Callable[[], Sequence[Finding]]]] = [
        ("overlap between splits", lambda: [overlap(data)]),
        ("near-duplicates", lambda: [duplicates(data, thresholds=lines, seed=effort.seed)]),
        ("errors by group", lambda: subgroups(probed, task, attributes, effort=effort, thresholds=lines) if task else ()),
        ("attributes", lambda: read_attributes(probed, attributes, effort=effort, thresholds=lines, expected=policy.expected)),
        ("membership", lambda: [membership(probed, effort=effort, thresholds=lines)]),
    ]
    findings: list[Finding] = []
    for name, step in steps:
        tell(name)
        findings += step()
    settings = {**policy.model_dump(mode="json"), "digest": policy.digest}
    plan = {"attributes": list(attributes), "task": task, "max_rows": max_rows, **to_json(effort)}
    body = {"subject": to_json(dict(subject or {})), "data": _describe(data, probed, attributes), "policy": settings, "plan": plan}
    return Report(
        audit_id=digest([body, [finding.model_dump(mode="json") for finding in findings]]),
        created=_now(),
        tool={"name": "dinodomain", "version": dinodomain.__version__},
        notice=notice,
        findings=tuple(findings),
        unanswered=_unanswered(findings, attributes),
        **body,
    )


def _known_columns(data: AuditSet, attributes: Sequence[str], task: str | None) -> None:
    allowed = ", ".join(sorted(data.columns)) or "none: give a CSV with labels="
    wanted = [("audit.attributes", name) for name in attributes] + ([("audit.task", task)] if task else [])
    problems = [UserError(place, f"no column {name!r}", allowed=allowed) for place, name in wanted if name not in data.columns]
    if problems:
        raise Problems(problems)


def thin(data: AuditSet, max_rows: int, seed: int) -> AuditSet:
    """Keeps every unit and at most ``max_rows`` rows: each unit loses rows down to a common cap, drawn at random.

    Probes see these rows; counting checks see all. A store with more units than ``max_rows`` keeps one row of each.
    """
    if len(data.units) <= max_rows:
        return data
    keys = np.where(data.units != "", data.units, np.char.add("\0row ", np.arange(len(data.units)).astype(str)))
    generator = np.random.default_rng([seed, 0x7417])
    blocks = unit_blocks(index_units(keys))
    cap = _cap(np.array([block.shape[1] for block in blocks]), np.array([len(block) for block in blocks]), max_rows)
    kept = np.sort(np.concatenate([generator.permuted(block, axis=1)[:, :cap].reshape(-1) for block in blocks]))
    return take(data, kept)


def _cap(sizes: np.ndarray, numbers: np.ndarray, max_rows: int) -> int:
    """The largest number of rows per unit that keeps the total within ``max_rows``, at least 1."""
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        fits = int((np.minimum(sizes, middle) * numbers).sum()) <= max_rows
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def take(data: AuditSet, rows: np.ndarray) -> AuditSet:
    """The given rows; altered copies, which refer to rows, are left behind."""
    return replace(
        data,
        features={name: values[rows] for name, values in data.features.items()},
        units=data.units[rows],
        content_hash=None if data.content_hash is None else data.content_hash[rows],
        sources=data.sources[rows],
        columns={name: np.asarray(values)[rows] for name, values in data.columns.items()},
        holdout=None if data.holdout is None else data.holdout[rows],
        copies=None,
    )


def _describe(data: AuditSet, probed: AuditSet, attributes: Sequence[str]) -> dict[str, Any]:
    used = [*attributes, *([data.split] if data.split else [])]
    return {
        "digest": _fingerprint(data),
        "n_images": len(np.unique(data.sources)),
        "n_rows": len(data.units),
        "n_rows_probed": len(probed.units),
        "n_units": data.num_units,
        "n_without_unit": int((data.units == "").sum()),
        "n_reserved": None if data.holdout is None else len(np.unique(data.units[data.holdout])),
        "width": int(data.audited.shape[1]),
        "features": sorted(data.features),
        "split": data.split,
        "columns": [{"name": name, "missing": _missing(data.columns[name])} for name in used],
    }


def _fingerprint(data: AuditSet) -> str:
    """sha256 of all audited arrays and columns: two audits compare only where it is equal."""
    total = hashlib.sha256()
    for name in sorted(data.features):
        total.update(name.encode() + np.ascontiguousarray(data.features[name], np.float32).tobytes())
    words = {name: [str(value) for value in values] for name, values in data.columns.items()}
    total.update(canonical([words, data.units.astype(str), data.sources]).encode())
    return total.hexdigest()


def _missing(column: np.ndarray) -> float:
    return float(np.mean([str(value).strip().lower() in MISSING for value in column]))


def _unanswered(findings: Sequence[Finding], attributes: Sequence[str]) -> dict[str, str]:
    """Why a question has no finding: said as loudly as a finding would be."""
    reasons = {
        "Q1": "no check of this audit answers it",
        "Q2": "no task was named (audit.task=COLUMN), so no errors were looked at: nothing here says where models fail",
        "Q3": "no check of this audit answers it",
        "Q4": "this audit looked at the features only: nothing here says what they make easier, or whether a use is acceptable",
    }
    answered = {finding.question for finding in findings}
    out: dict[str, str] = {question: reasons[question] for question in QUESTIONS if question not in answered}
    if not attributes:
        out["Q3"] = "no attribute was named (audit.attributes=[...]), so none was looked for; only membership was asked"
    return out


def _now() -> str:
    """UTC now, or SOURCE_DATE_EPOCH where a reproducible file is wanted."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return moment.isoformat(timespec="seconds")
