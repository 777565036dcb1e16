"""The audit verb: loads checkpoint, store and labels (or a file of features), runs the checks, writes the report, asks the gate."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinodomain.audit.chain import chain_of, history_of, lengthen
from dinodomain.audit.complete import complete, drawn
from dinodomain.audit.declared import Declaration, read_declaration
from dinodomain.audit.declared import write_blank as write_declaration
from dinodomain.audit.finding import Finding, Report, read_report
from dinodomain.audit.gate import GateResult, check_names, decide
from dinodomain.audit.load import Subject, from_features, from_store
from dinodomain.audit.plan import AuditPlan
from dinodomain.audit.policy import Policy, earlier, read_policy
from dinodomain.audit.policy import write_blank as write_policy
from dinodomain.audit.protocol.data import AuditSet
from dinodomain.audit.report import Paths, check_formats, write_report
from dinodomain.audit.run import Audited, run_checks
from dinodomain.audit.sign import sign, signing_key
from dinodomain.audit.told import told
from dinodomain.audit.unfinished import user_key
from dinodomain.audit.verify import Verified, untouched, verify
from dinodomain.domain import Domain
from dinodomain.errors import UserError
from dinodomain.lineage import Json

_log = logging.getLogger(__name__)
PATHS = ("checkpoint", "features", "store", "labels", "metadata")
"""Inputs of an audit that may lie elsewhere when it is verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit gave.

    Attributes:
        report: The record; None where empty forms were written.
        paths: Where it was written; None where a report was only judged.
        gate: The gate's outcome; None without a policy.
        verified: What ``audit verify=`` found; None otherwise.
        forms: Empty forms that were written (``gate=new``, ``audit.declaration=new``).
    """

    report: Report | None
    paths: Paths | None = None
    gate: GateResult | None = None
    verified: Verified | None = None
    forms: tuple[Path, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the report; none where empty forms were written."""
        return () if self.report is None else self.report.findings

    @property
    def exit_code(self) -> int:
        """0, or what the gate says: 1 failed, 4 undecided; 1 where a report does not hold."""
        if self.verified is not None:
            return 1 if self.verified.failed else 0
        return 0 if self.gate is None else self.gate.code

    def text(self) -> str:
        """What was found, what could not be assessed, the gate, and where the report lies."""
        if self.verified is not None:
            return self.verified.text()
        if self.report is None:
            return "\n".join(f"fill in {path}, and give it in place of new" for path in self.forms)
        lines = list(told(self.report))
        if self.gate is not None:
            lines.append(self.gate.text())
        if self.paths is not None:
            lines += [f"all answers, tables and figures: {self.paths.html}", f"the same for programs: {self.paths.json}"]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Json]:
        """Plain values for ``--json``."""
        if self.report is None:
            return {"forms": [str(path) for path in self.forms]}
        counts = Counter(item.verdict for item in self.report.findings)
        found: dict[str, Any] = {
            "audit_id": self.report.audit_id,
            "verdicts": {item.id: item.verdict for item in self.report.findings},
            "counts": dict(counts),
            "unanswered": self.report.unanswered,
            "gate": None if self.gate is None else {"code": self.gate.code, "failed": self.gate.failed, "undecided": self.gate.undecided},
        }
        if self.verified is not None:
            found["verified"] = {"passed": self.verified.passed, "failed": self.verified.failed, "open": self.verified.open}
        if self.paths is not None:
            found |= {"json": str(self.paths.json), "html": str(self.paths.html), "card": str(self.paths.card)}
        return found


def audit(plan: AuditPlan, *, domain: Domain | None = None) -> AuditResult:
    """Audits a checkpoint on a store, or a file of features; or judges an existing report.

    Args:
        plan: What, on what, how hard.
        domain: The domain object; None finds the one that made the store.

    Raises:
        UserError: An input cannot be used.
    """
    if plan.forms:
        return AuditResult(report=None, forms=tuple(_written(plan)))
    if plan.verify is not None:
        checked = verify(plan.verify, checks=plan.checks, key=plan.key, rerun=lambda report, name: _again(report, name, plan, domain))
        return AuditResult(report=checked.report, verified=checked)
    policy = _policy(plan)
    against = None if plan.against is None else _trusted(plan.against, "against")
    if plan.report is not None:
        report = _trusted(plan.report, "report")
        _same_decision(plan, report)
        return AuditResult(report=report, gate=decide(report, policy, subject=_expected_subject(plan), against=against))
    assert plan.out is not None, "checked by the plan"
    if not plan.overwrite:
        _free(Path(plan.out))
    declared, kept = _declared(plan), _kept(plan)
    key = None if plan.sign is None else signing_key(plan.sign)  # before hours of work
    audited, data = _audited(plan, policy, declared, domain, kept)
    report = complete(audited.report, plan, policy, declared)
    gate = decide(report, policy, against=against)
    report = report.model_copy(update={"gate": gate.outcome(plan.decision, asked=plan.gate is not None)})
    lines = lengthen(chain_of(plan.checkpoint, plan.out), report, Path(plan.out))  # first: an audit whose report fails counts, too
    report = report.model_copy(update={"history": history_of(lines)})
    paths = write_report(report, Path(plan.out), audited.private, chain=lines, formats=plan.formats, data=data)
    if key is not None:
        sign(paths.sums, key)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    _raised(report, plan)
    return AuditResult(report=report, paths=paths, gate=gate if plan.gate else None)


def _free(out: Path) -> None:
    """Refuses the folder of a finished report.

    Raises:
        UserError: It holds one.
    """
    if (out / "SHA256SUMS").is_file() and (out / "audit.json").is_file():
        raise UserError("out", f"{out} holds a finished report", remedy="choose another folder, or set audit.overwrite=true")


def _policy(plan: AuditPlan) -> Policy:
    if plan.gate is None:
        return Policy()
    policy = read_policy(plan.gate)
    check_names(policy, f"gate {plan.gate}")
    return policy


def _written(plan: AuditPlan) -> Iterator[Path]:
    assert plan.out is not None, "checked by the plan"
    if plan.gate == "new":
        yield write_policy(Path(plan.out) / "policy.yaml")
    if plan.declaration == "new":
        yield write_declaration(Path(plan.out))


def _trusted(given: str, key: str) -> Report:
    """A report whose sum is the one beside it.

    Raises:
        UserError: It was altered, or cannot be read.
    """
    same = untouched(Path(given))
    if same is None:
        _log.warning("%s: no sum of %s lies beside it (SHA256SUMS), so that it cannot be told whether it was altered", key, given)
    elif not same:
        raise UserError(key, f"{given} was altered: its sum is not that in SHA256SUMS", remedy="take the report as the audit wrote it")
    return read_report(Path(given))


def _same_decision(plan: AuditPlan, report: Report) -> None:
    if plan.decision not in (AuditPlan.__dataclass_fields__["decision"].default, report.decision):
        raise UserError("audit.decision", f"is {plan.decision}, the report was made for {report.decision}", remedy="audit again for it")


def _declared(plan: AuditPlan) -> Declaration | None:
    return None if plan.declaration is None else read_declaration(plan.declaration)


def _audited(
    plan: AuditPlan, policy: Policy, declared: Declaration | None, domain: Domain | None, kept: Path | None = None
) -> tuple[Audited, AuditSet]:
    """What the checks found, and the rows they looked at."""
    subject = from_store(plan, domain) if plan.features is None else from_features(plan)
    check_formats(plan.formats, subject.data)
    audited = run_checks(
        subject.data,
        asked=replace(plan.asked, declaration=None if declared is None else declared.model_dump(mode="json")),
        effort=plan.effort,
        max_rows=plan.max_rows,
        policy=policy,
        subject=subject.identity,
        notice=plan.notice,
        names=plan.checks,
        record=subject.record,
        observer=subject.observer,
        trail=subject.trail,
        progress=_told,
        kept=kept,
    )
    return audited, subject.data


def _told(name: str, seconds: float | None) -> None:
    if seconds is None:
        _log.info("audit: %s", name)
    else:
        _log.info("audit: %s took %.1f s", name, seconds)


def _kept(plan: AuditPlan) -> Path | None:
    """Where finished checks are kept until the report is written; None, and said so, where this user's results cannot be sealed."""
    assert plan.out is not None, "checked by the plan"
    try:
        user_key()
    except UserError as error:
        _log.warning("%s; an audit that is stopped will begin anew", error)
        return None
    return Path(plan.out) / "private" / "unfinished"


def _raised(report: Report, plan: AuditPlan) -> None:
    """Says so where more permutations were drawn than asked for."""
    if (drawn := report.plan["permutations"]) > plan.permutations:
        _log.info("audit: %d permutations instead of %d, so that the smallest p value survives the correction", drawn, plan.permutations)


def _again(report: Report, name: str, given: AuditPlan, domain: Domain | None) -> Sequence[Finding]:
    """Findings of one check, computed from the inputs that a report names, under its policy and with as many permutations as it drew.

    Where they lie elsewhere by now, the paths given with ``verify`` count.
    """
    inputs = {key: tuple(value) if isinstance(value, list) else value for key, value in report.plan["inputs"].items()}
    moved = {key: value for key in PATHS if (value := getattr(given, key)) is not None}
    if given.csv is not None:  # the CSV has two names
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", "metadata")}
    plan = AuditPlan(**inputs | moved | drawn(report) | {"checks": (name,), "out": "unused"})
    policy = earlier(report.policy)
    declared = report.plan.get("declaration")
    return _audited(plan, policy, None if declared is None else Declaration.model_validate(declared), domain)[0].report.findings


def _expected_subject(plan: AuditPlan) -> dict[str, str]:
    """Digests that an existing report must be about, where the plan names a checkpoint or a store."""
    return Subject.digests(plan.checkpoint, plan.store)
