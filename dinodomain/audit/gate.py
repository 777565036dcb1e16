"""The gate: does a report meet a policy? Exit codes: 0 yes, 1 a required finding fails, 4 it cannot be decided.

Undecided is never a pass: a required check that was not assessed, a failed self-test, a stale report or one of another checkpoint.
A waiver keeps a finding from deciding until it expires; it never covers a check that failed its own controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from dinodomain.audit.checks import CHECKS
from dinodomain.audit.finding import Finding, GateOutcome, Question, Report
from dinodomain.audit.forms import did_you_mean
from dinodomain.audit.plan import decision_words
from dinodomain.audit.policy import Policy, changed, earlier
from dinodomain.errors import Problems, UserError

PASSED, FAILED, UNDECIDED = 0, 1, 4
NEEDED: Mapping[str, tuple[Question, ...]] = {
    "internal_use": ("Q1", "Q4"),
    "publish_embeddings": ("Q1", "Q3", "Q4"),
    "release_weights": ("Q1", "Q2", "Q3", "Q4"),
    "deploy": ("Q1", "Q2", "Q3", "Q4"),
}
"""Decision to the questions whose core checks it needs where a policy names no ``required``: whoever uses a model in house must know what
shaped it and what it may be used for; published embeddings carry what they leak; released weights and a deployment need all four answers.
"""
_HEADS = {PASSED: "gate: passed", FAILED: "gate: failed", UNDECIDED: "gate: could not be decided"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The gate's outcome.

    Attributes:
        code: 0 passed, 1 failed, 4 undecided.
        failed: What fails it, a line each.
        undecided: What keeps it from being decided, a line each.
        waived: What a waiver in force kept from deciding, a line each.
        conditions: What the outcome hangs on, a line each.
        flagged: Findings that were flagged although nobody asked for them.
    """

    code: int
    failed: tuple[str, ...]
    undecided: tuple[str, ...]
    waived: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    flagged: tuple[str, ...] = ()

    def text(self) -> str:
        """The outcome in words."""
        lines = {"fails": self.failed, "undecided": self.undecided, "waived": self.waived, "condition": self.conditions}
        return "\n".join([_HEADS[self.code], *(f"  {name}: {line}" for name, found in lines.items() for line in found)])

    def outcome(self, decision: str, *, asked: bool) -> GateOutcome:
        """As the report keeps it."""
        what = f"what is asked for {decision_words(decision)}"
        words = {
            PASSED: f"The audit meets {what}" + (", on conditions." if self.conditions else "."),
            FAILED: f"The audit does not meet {what}: {_counted(self.failed, 'finding')} against it.",
            UNDECIDED: f"Whether the audit meets {what} could not be decided: {_counted(self.undecided, 'point')} open.",
        }[self.code]
        if self.flagged:
            words += f" Beside what is asked, {len(self.flagged)} {'finding was' if len(self.flagged) == 1 else 'findings were'} flagged."
        return GateOutcome(
            asked=asked, code=self.code, words=words, failed=self.failed, undecided=self.undecided, waived=self.waived,
            conditions=self.conditions,
        )  # fmt: skip


def _counted(lines: Sequence[str], noun: str) -> str:
    return f"1 {noun} stands" if len(lines) == 1 else f"{len(lines)} {noun}s stand"


@dataclass(slots=True, kw_only=True)
class _Lines:
    """What is gathered on the way to an outcome."""

    failed: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    waived: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    flagged: list[str] = field(default_factory=list)


def decide(
    report: Report, policy: Policy, *, subject: Mapping[str, str] | None = None, against: Report | None = None, now: datetime | None = None
) -> GateResult:  # fmt: skip
    """Compares a report with a policy.

    Args:
        report: The audit.
        policy: What is asked.
        subject: Digests by name (weights, store) that the report must be about; None skips this.
        against: An earlier report; findings flagged now and not then count against ``max_new_flags``.
        now: The time against which ages, waivers and expiry count.
    """
    now = now or datetime.now(UTC)
    lines = _Lines(undecided=_stale(report, policy, subject or {}, now))
    before = earlier(report.policy)
    _policies(lines, report, policy, before, compared=against is not None)
    for wanted in wanted_of(report, policy):
        found = [finding for finding in report.findings if wanted in (finding.id, finding.check)]
        if not found:
            _put(lines, lines.undecided, wanted, f"{wanted}: not in the report", policy, now.date())
        for finding in found:
            _weigh(lines, finding, policy, now.date())
    for name, wanted in companions(report):
        found = [finding for finding in report.findings if finding.id in (wanted, wanted.partition("/")[0])]
        if not found:
            _put(lines, lines.undecided, wanted, f"{wanted}: not in the report, but {name} is expected to be encoded", policy, now.date())
        for finding in found:
            _weigh(lines, finding, policy, now.date())
    lines.undecided += [f"{finding.id}: self-test failed" for finding in report.findings if finding.self_test.failed]
    _withdrawn(lines, report, policy)
    _regressions(lines, report, policy, before, against)
    _beside(lines, report, policy)
    if policy.max_age_days is not None:
        lines.conditions.append(f"counts for {policy.max_age_days} days from {report.created[:10]}")
    code = FAILED if lines.failed else (UNDECIDED if lines.undecided else PASSED)
    kept = {name: tuple(dict.fromkeys(getattr(lines, name))) for name in ("failed", "undecided", "waived", "conditions", "flagged")}
    return GateResult(code=code, **kept)


def _beside(lines: _Lines, report: Report, policy: Policy) -> None:
    """What the outcome does not rest on, but whoever reads it must know."""
    usual = needed(report.decision)
    left = [name for name in usual if policy.required is not None and name not in {one.partition("/")[0] for one in policy.required}]
    if left:
        asked_for = ", ".join(policy.required or ()) or "nothing"
        lines.conditions.append(
            f"the policy asks for {asked_for} only; without one, {decision_words(report.decision)} needs {', '.join(left)}, too"
        )
    asked = set(wanted_of(report, policy))
    apart = [one.id for one in report.findings if one.verdict == "FLAG" and not {one.id, one.check} & asked]
    lines.flagged += apart
    if apart:
        lines.conditions.append(f"flagged, but not asked for: {', '.join(apart)}")
    named = {one.id for one in report.findings} | {one.check for one in report.findings} | asked | {one for _, one in companions(report)}
    lines.conditions += [f"the waiver of {one.finding} covers no finding" for one in policy.waivers if one.finding not in named]
    columns = {one.id.partition("/")[2] for one in report.findings}
    lines.conditions += [f"the policy expects {name}, of which no finding speaks" for name in policy.expected if name not in columns]


def needed(decision: str) -> tuple[str, ...]:
    """The core checks of the questions that a decision needs."""
    questions = NEEDED[decision.partition(":")[0]]
    return tuple(check.about.name for check in CHECKS if check.about.core and check.about.question in questions)


def wanted_of(report: Report, policy: Policy) -> tuple[str, ...]:
    """Checks or findings that must be assessed and not flagged: the policy's, or what the report's decision needs."""
    return needed(report.decision) if policy.required is None else policy.required


def companions(report: Report) -> tuple[tuple[str, str], ...]:
    """Attribute and finding that must be assessed, too, where a leak was forgiven because the policy expects it.

    That a good encoder must show an attribute excuses that it does; whether errors differ by it, whether it is more than a proxy and
    whether decisions use it are then all the more to be known.
    """
    forgiven = [finding.id.partition("/")[2] for finding in report.findings if finding.reason_code == "expected"]
    return tuple((name, f"{check}/{name}") for name in dict.fromkeys(forgiven) for check in ("subgroups", "conditional", "use"))


def check_names(policy: Policy, place: str) -> None:
    """Refuses a policy that names checks which do not exist.

    Raises:
        Problems: All of them, each with the nearest name.
    """
    known = [check.about.name for check in CHECKS]
    named = [("required", name) for name in policy.required or ()] + [("waivers", waiver.finding) for waiver in policy.waivers]
    codes = {check.about.code: check.about.name for check in CHECKS}
    problems = []
    for key, name in named:
        check = name.partition("/")[0]
        if check not in known:
            remedy = f"did you mean {codes[check]!r}?" if check in codes else did_you_mean(check, known)
            problems.append(UserError(f"{place}: {key}", f"no check {check!r}", allowed=", ".join(known), remedy=remedy))
    if problems:
        raise Problems(problems)


def _weigh(lines: _Lines, finding: Finding, policy: Policy, today: date) -> None:
    if finding.verdict in policy.fail_on:
        _put(lines, lines.failed, finding.id, f"{finding.id}: {finding.verdict}, {finding.answer}", policy, today)
    elif finding.verdict == "ERROR":
        lines.undecided.append(f"{finding.id}: {_why(finding)}")
    elif finding.verdict == "NOT_ASSESSABLE":
        _put(lines, lines.undecided, finding.id, f"{finding.id}: {_why(finding)}", policy, today)
    elif finding.verdict == "WARN":
        lines.conditions.append(f"{finding.id}: WARN, {finding.answer}")


def _put(lines: _Lines, kind: list[str], name: str, line: str, policy: Policy, today: date) -> None:
    """Counts a line, unless a waiver in force covers it; an expired one changes nothing but is mentioned."""
    covering = [waiver for waiver in policy.waivers if waiver.finding in (name, name.partition("/")[0])]
    current = next((waiver for waiver in covering if waiver.in_force(today)), None)
    if current is not None:
        lines.waived.append(f"{line} (waived by {current.owner} until {current.expires}: {current.reason})")
        lines.conditions.append(f"the waiver of {name} by {current.owner} ends on {current.expires}")
    else:
        kind.append(line + (f" (a waiver expired on {covering[0].expires})" if covering else ""))


def _why(finding: Finding) -> str:
    return f"{'not assessed' if finding.verdict == 'NOT_ASSESSABLE' else finding.verdict}: {finding.reason}"


def _withdrawn(lines: _Lines, report: Report, policy: Policy) -> None:
    """Units withdrawn since training, from the finding that counted them."""
    if policy.max_withdrawn is None:
        return
    counts: list[Any] = [finding.evidence.get("units_withdrawn") for finding in report.findings]
    known = [int(count) for count in counts if isinstance(count, int)]
    if not known:
        lines.undecided.append("how many units were withdrawn since training is not in the report")
    elif max(known) > policy.max_withdrawn:
        lines.failed.append(f"{max(known)} units were withdrawn since training, {policy.max_withdrawn} are allowed")


def _regressions(lines: _Lines, report: Report, policy: Policy, before: Policy, against: Report | None) -> None:
    if against is None:
        if policy.max_new_flags is not None:
            lines.undecided.append("max_new_flags needs an earlier report (against=prev.json)")
        return
    differ = [name for name in ("store", "metadata") if report.subject.get(name) != against.subject.get(name)]
    if differ:
        lines.undecided.append(f"the earlier report is not comparable: it looked at another {' and '.join(differ)}")
        return
    if verdicts := changed(before, earlier(against.policy))[0]:
        lines.undecided.append(f"the earlier report is not comparable: it was made under another policy ({', '.join(verdicts)} differ)")
        return
    if not report.subject.get("store"):
        lines.conditions.append("that both reports looked at the same images cannot be told from features alone")
    known = {finding.id for finding in against.findings if finding.verdict == "FLAG"}
    new = [finding.id for finding in report.findings if finding.verdict == "FLAG" and finding.id not in known]
    allowed = policy.max_new_flags or 0
    if len(new) > allowed:
        lines.failed.append(f"{len(new)} findings flagged that were not before, {allowed} allowed: {', '.join(new)}")
    else:
        lines.conditions.append(f"against the report of {against.created[:10]}: {len(new)} findings flagged that were not before")


def _stale(report: Report, policy: Policy, subject: Mapping[str, str], now: datetime) -> list[str]:
    lines = [
        f"the report is of another {name}: {str(report.subject.get(name))[:12]} instead of {value[:12]}"
        for name, value in subject.items()
        if report.subject.get(name) != value
    ]
    age = (now - datetime.fromisoformat(report.created)).total_seconds() / 86400
    if policy.max_age_days is not None and age > policy.max_age_days:
        lines.append(f"the report is {age:.0f} days old, {policy.max_age_days} are allowed")
    expires = _expiry(report)
    if expires is not None and now.date() > expires:
        lines.append(f"the declaration's expiry, {expires}, has passed")
    return lines


def _policies(lines: _Lines, report: Report, policy: Policy, before: Policy, *, compared: bool) -> None:
    """How the policy differs from the one that the report was made under."""
    verdicts, others = changed(policy, before)
    if verdicts:
        lines.undecided.append(
            f"the report was made under another policy: {', '.join(verdicts)} differ, on which verdicts rest; audit again"
        )
    if loosened := ", ".join(_loosened(report, policy, before, compared=compared)):
        lines.undecided.append(f"the policy asks for less than the one that the report was made under: {loosened}; audit again")
    if others:
        lines.conditions.append(f"the policy's {', '.join(others)} differ from those that the report was made under")


def _loosened(report: Report, policy: Policy, before: Policy, *, compared: bool) -> list[str]:
    """Keys by which a policy asks for less than an earlier one; to ask for more once results are known is nobody's loss.

    A finding stays asked for where its whole check is; beside an earlier report no number of new flags means none.
    """
    now = set(wanted_of(report, policy))
    less = {
        "required": {name for name in wanted_of(report, before) if not {name, name.partition("/")[0]} & now},
        "fail_on": set(before.fail_on) - set(policy.fail_on),
    }  # fmt: skip
    most = {
        name: (getattr(before, name), getattr(policy, name)) for name in ("max_age_days", "max_new_flags", "max_withdrawn")
    }  # fmt: skip
    if compared:
        most["max_new_flags"] = (before.max_new_flags or 0, policy.max_new_flags or 0)
    return [name for name, gone in less.items() if gone] + [
        name for name, (was, now) in most.items() if was is not None and (now is None or now > was)
    ]


def _expiry(report: Report) -> date | None:
    declared = (report.plan.get("declaration") or {}).get("living", {}).get("expires")
    try:
        return None if not declared else date.fromisoformat(str(declared))
    except ValueError:
        return None
