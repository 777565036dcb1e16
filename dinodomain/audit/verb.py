"""The audit verb: loads checkpoint, store and labels (or a file of features), runs the checks, writes the report, asks the gate."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinodomain.audit.finding import Report, read_report
from dinodomain.audit.gate import GateResult, decide
from dinodomain.audit.load import Subject, from_features, from_store
from dinodomain.audit.plan import AuditPlan
from dinodomain.audit.policy import Policy, read_policy
from dinodomain.audit.protocol.verdict import VERDICTS
from dinodomain.audit.report import Paths, write_report
from dinodomain.audit.run import run_checks
from dinodomain.domain import Domain
from dinodomain.lineage import Json

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit gave.

    Attributes:
        report: The record.
        paths: Where it was written; None where a report was only judged.
        gate: The gate's outcome; None without a policy.
    """

    report: Report
    paths: Paths | None
    gate: GateResult | None

    @property
    def exit_code(self) -> int:
        """0, or what the gate says: 1 failed, 4 undecided."""
        return 0 if self.gate is None else self.gate.code

    def text(self) -> str:
        """A line per finding, the unanswered questions, the gate, and where the report lies."""
        width = max(len(verdict) for verdict in VERDICTS)
        lines = [
            f"{item.verdict.ljust(width)}  {item.id}: {item.answer}{f' ({item.reason})' if item.reason else ''}"
            for item in self.report.findings
        ]
        lines += [f"{'NOT_ASSESSABLE'.ljust(width)}  {question}: {reason}" for question, reason in sorted(self.report.unanswered.items())]
        if self.gate is not None:
            lines.append(self.gate.text())
        if self.paths is not None:
            lines += [str(self.paths.html), str(self.paths.json)]
        return "\n".join([*([self.report.notice] if self.report.notice else []), *lines])

    def as_json(self) -> dict[str, Json]:
        """Plain values for ``--json``."""
        counts = Counter(item.verdict for item in self.report.findings)
        found: dict[str, Any] = {
            "audit_id": self.report.audit_id,
            "verdicts": {item.id: item.verdict for item in self.report.findings},
            "counts": dict(counts),
            "unanswered": self.report.unanswered,
            "gate": None if self.gate is None else {"code": self.gate.code, "failed": self.gate.failed, "undecided": self.gate.undecided},
        }
        if self.paths is not None:
            found |= {"json": str(self.paths.json), "html": str(self.paths.html), "markdown": str(self.paths.markdown)}
        return found


def audit(plan: AuditPlan, *, domain: Domain | None = None) -> AuditResult:
    """Audits a checkpoint on a store, or a file of features; or judges an existing report.

    Args:
        plan: What, on what, how hard.
        domain: The domain object; None finds the one that made the store.

    Raises:
        UserError: An input cannot be used.
    """
    policy = Policy() if plan.gate is None else read_policy(plan.gate)
    if plan.report is not None:
        report = read_report(Path(plan.report))
        return AuditResult(report=report, paths=None, gate=decide(report, policy, subject=_expected_subject(plan)))
    assert plan.out is not None, "checked by the plan"
    subject = from_store(plan, domain) if plan.features is None else from_features(plan)
    audited = run_checks(
        subject.data,
        asked=plan.asked,
        effort=plan.effort,
        max_rows=plan.max_rows,
        policy=policy,
        subject=subject.identity,
        notice=plan.notice,
        names=plan.checks,
        record=subject.record,
        observer=subject.observer,
        progress=lambda name: _log.info("audit: %s", name),
    )
    report = audited.report
    gate = None if plan.gate is None else decide(report, policy)
    return AuditResult(report=report, paths=write_report(report, Path(plan.out), audited.private), gate=gate)


def _expected_subject(plan: AuditPlan) -> dict[str, str]:
    """Digests that an existing report must be about, where the plan names a checkpoint or a store."""
    return Subject.digests(plan.checkpoint, plan.store)
