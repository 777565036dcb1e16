"""A report in a terminal: what was found in full, the rest by reason or by name; all of it is in the report."""

from __future__ import annotations

from collections.abc import Iterator

from dinodomain.audit.finding import Finding, Report
from dinodomain.audit.protocol.verdict import VERDICTS

IN_FULL = ("FLAG", "ERROR", "WARN")
_WIDTH = max(len(verdict) for verdict in VERDICTS)


def told(report: Report) -> Iterator[str]:
    """Lines: findings to act on first, then what could not be assessed by its reason, then the names of what is clear or does not apply."""
    if report.notice:
        yield report.notice
    for verdict in IN_FULL:
        yield from (_line(verdict, f"{one.id}: {one.answer}{_because(one)}") for one in report.findings if one.verdict == verdict)
    for reason, names in _by_reason(report).items():
        yield _line("NOT_ASSESSABLE", f"{', '.join(names)}: {reason}")
    for verdict in ("CLEAR_WITHIN_LIMITS", "NOT_APPLICABLE"):
        if names := [one.id for one in report.findings if one.verdict == verdict]:
            yield _line(verdict, ", ".join(names))


def _line(verdict: str, rest: str) -> str:
    return f"{verdict.ljust(_WIDTH)}  {rest}"


def _because(finding: Finding) -> str:
    return f" ({finding.reason})" if finding.reason else ""


def _by_reason(report: Report) -> dict[str, list[str]]:
    """Findings and whole questions that were not assessed, by why."""
    found: dict[str, list[str]] = {}
    for question, reason in sorted(report.unanswered.items()):
        found.setdefault(reason, []).append(question)
    for one in report.findings:
        if one.verdict == "NOT_ASSESSABLE":
            found.setdefault(one.reason, []).append(one.id)
    return found
