"""The gate: does a report meet a policy? Exit codes: 0 yes, 1 a required finding fails, 4 it cannot be decided.

Undecided is never a pass: a required check that was not assessed, a failed self-test, a stale report or one of another checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dinodomain.audit.finding import Finding, Report
from dinodomain.audit.policy import Policy

PASSED, FAILED, UNDECIDED = 0, 1, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The gate's outcome.

    Attributes:
        code: 0 passed, 1 failed, 4 undecided.
        failed: What fails it, a line each.
        undecided: What keeps it from being decided, a line each.
    """

    code: int
    failed: tuple[str, ...]
    undecided: tuple[str, ...]

    def text(self) -> str:
        """The outcome in words."""
        head = {PASSED: "gate: passed", FAILED: "gate: failed", UNDECIDED: "gate: could not be decided"}[self.code]
        return "\n".join([head, *(f"  fails: {line}" for line in self.failed), *(f"  undecided: {line}" for line in self.undecided)])


def decide(report: Report, policy: Policy, *, subject: Mapping[str, str] | None = None, now: datetime | None = None) -> GateResult:
    """Compares a report with a policy.

    Args:
        report: The audit.
        policy: What is asked.
        subject: Digests by name (weights, store) that the report must be about; None skips this.
        now: The time against which ``max_age_days`` counts.
    """
    failed, undecided = [], _stale(report, policy, subject or {}, now or datetime.now(UTC))
    for wanted in policy.required:
        found = [finding for finding in report.findings if wanted in (finding.id, finding.check)]
        if not found:
            undecided.append(f"{wanted}: not in the report")
        for finding in found:
            failed += [f"{finding.id}: {finding.verdict}, {finding.answer}"] if finding.verdict in policy.fail_on else []
            undecided += [f"{finding.id}: {_why(finding)}"] if finding.verdict in ("NOT_ASSESSABLE", "ERROR") else []
    undecided += [f"{finding.id}: self-test failed" for finding in report.findings if finding.self_test.failed]
    code = FAILED if failed else (UNDECIDED if undecided else PASSED)
    return GateResult(code=code, failed=tuple(failed), undecided=tuple(dict.fromkeys(undecided)))


def _why(finding: Finding) -> str:
    return f"{finding.verdict} ({finding.reason_code}): {finding.reason}"


def _stale(report: Report, policy: Policy, subject: Mapping[str, str], now: datetime) -> list[str]:
    lines = [
        f"the report is of another {name}: {str(report.subject.get(name))[:12]} instead of {value[:12]}"
        for name, value in subject.items()
        if report.subject.get(name) != value
    ]
    age = (now - datetime.fromisoformat(report.created)).total_seconds() / 86400
    if policy.max_age_days is not None and age > policy.max_age_days:
        lines.append(f"the report is {age:.0f} days old, {policy.max_age_days} are allowed")
    if report.policy.get("digest") != policy.digest:
        lines.append("the report was made under another policy; its verdicts used other thresholds or expectations")
    return lines
