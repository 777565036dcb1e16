"""Runs the checks and makes the report. Opens no encoder and no store: ``verb.py`` does. N rows."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import dinodomain
from dinodomain.audit.checks import CHECKS
from dinodomain.audit.evidence import Asked, Check, Draft, Evidence, Need, Private, Result
from dinodomain.audit.finding import QUESTIONS, Finding, Question, Report, SelfTest
from dinodomain.audit.observe import Observer
from dinodomain.audit.policy import Policy
from dinodomain.audit.protocol.attribute import MISSING, identifying
from dinodomain.audit.protocol.data import AuditSet, take
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.protocol.verdict import holm
from dinodomain.audit.trail import Trail
from dinodomain.audit.unfinished import Unfinished
from dinodomain.errors import Problems, UserError
from dinodomain.lineage import canonical, to_json
from dinodomain.probes.folds import index_units
from dinodomain.probes.ridge import unit_blocks

Progress = Callable[[str, float | None], None]
"""Told the name of a check as it starts, and again with its seconds once it is through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit gave.

    Attributes:
        report: For everybody who may see the report.
        private: Tables that stay with whoever holds the images.
    """

    report: Report
    private: tuple[Private, ...] = ()


def run_checks(
    data: AuditSet,
    *,
    asked: Asked | None = None,
    effort: Effort | None = None,
    max_rows: int = 20_000,
    policy: Policy | None = None,
    subject: Mapping[str, Any] | None = None,
    notice: str = "",
    names: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    trail: Trail | None = None,
    progress: Progress | None = None,
    kept: Path | None = None,
) -> Audited:
    """Audits arrays.

    Args:
        data: Features and metadata.
        asked: Which columns mean what.
        effort: Folds, permutations, draws, seed; permutations are raised where the corrections need more.
        max_rows: Most rows for probes.
        policy: Thresholds and expectations; None means the defaults.
        subject: Digests of what was audited.
        notice: Printed in every section.
        names: Checks to run; empty runs all.
        record: Lineage record of the encoder.
        observer: Shows images to the encoder again; None where there are features only.
        trail: What ingest and training recorded; None where there are features only.
        progress: Told the name of each check as it starts, and its seconds when it ends.
        kept: Folder for what finished checks gave: an audit that was stopped goes on with the first that is missing. Whoever names it
            removes it once the report is written. None keeps nothing.

    Returns:
        The report, which ``report.write_report`` writes, and tables that stay beside it.

    Raises:
        UserError: A named column or check does not exist.
    """
    asked, effort, policy = asked or Asked(), effort or Effort(), policy or Policy()
    _known_columns(data, asked)
    checks = chosen(names)
    plain = Evidence(
        data=data, probed=thin(data, max_rows, effort.seed), asked=asked, policy=policy, effort=effort, record=record, observer=observer,
        trail=trail,
    )  # fmt: skip
    evidence = _with_family(plain, checks)
    settings = {**policy.model_dump(mode="json"), "digest": policy.digest}
    plan = {**to_json(asked), "max_rows": max_rows, "checks": list(names), **to_json(evidence.effort)}
    body = {"subject": to_json(dict(subject or {})), "data": _describe(data, evidence.probed, asked), "policy": settings, "plan": plan}
    unfinished = None if kept is None else Unfinished(kept, [body, to_json(evidence.family), *_looks(observer, data)])
    findings, private = _collect(checks, evidence, progress or (lambda *_: None), unfinished)
    report = Report(
        audit_id="",
        created=_now(),
        tool={"name": "dinodomain", "version": dinodomain.__version__},
        notice=notice,
        findings=tuple(findings),
        unanswered=_unanswered(findings, checks),
        **body,
    )
    report = report.model_copy(update={"audit_id": report.identity()})
    return Audited(report=report, private=tuple(private))


def _looks(observer: Observer | None, data: AuditSet) -> Iterator[Any]:
    """How many images are shown again, and of how many there are altered copies: what decides results beside data, plan and effort."""
    yield None if observer is None else [observer.most, observer.most_tokens, observer.batch, observer.size]
    yield None if data.copies is None else len(data.copies.rows)


def chosen(names: Sequence[str]) -> tuple[Check, ...]:
    """The named checks, or all.

    Raises:
        UserError: There is none of a name.
    """
    known = {check.about.name: check for check in CHECKS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError("audit.checks", f"no check {', '.join(map(repr, unknown))}", allowed=", ".join(known))
    return tuple(check for name, check in known.items() if not names or name in names)


def _with_family(evidence: Evidence, checks: Sequence[Check]) -> Evidence:
    """Counts the tests of each question, and draws so many permutations that the smallest p value survives their correction."""
    family: Counter[Question] = Counter()
    for check in checks:
        if _lacking(check, evidence) is None:
            family[check.about.question] += check.count(evidence)
    counted = replace(evidence, family=dict(family))
    effort, least = evidence.effort, max(counted.least_permutations(question) for question in QUESTIONS)
    joint = max(effort.joint_permutations, counted.least_permutations("Q3"))
    return replace(counted, effort=replace(effort, permutations=max(effort.permutations, least), joint_permutations=joint))


def _collect(
    checks: Sequence[Check], evidence: Evidence, tell: Progress, unfinished: Unfinished | None
) -> tuple[list[Finding], list[Private]]:
    """Runs the checks, corrects the tests of each question together and joins each check's controls to its findings."""
    pending: list[tuple[Finding | Draft, Check, SelfTest]] = []
    private: list[Private] = []
    for check in checks:
        tell(check.about.name, None)
        began, test = time.perf_counter(), check.self_test()
        results = [_broken(check, test)] if test.failed else _results(check, evidence, unfinished)
        tell(check.about.name, time.perf_counter() - began)
        private += [item for item in results if isinstance(item, Private)]
        pending += [(item, check, test) for item in results if not isinstance(item, Private)]
    adjusted = _corrected([(check.about.question, item.p) for item, check, _ in pending if isinstance(item, Draft)])
    findings = []
    for item, _, test in pending:
        finding = item if isinstance(item, Finding) else item.judge(*next(adjusted))
        findings.append(_tested(finding, test))
    return findings, private


def _results(check: Check, evidence: Evidence, unfinished: Unfinished | None) -> Sequence[Result]:
    lacking = _lacking(check, evidence)
    if lacking is not None:
        return [check.about.unknown(lacking.code, lacking.reason, lacking.remedy)]
    known = None if unfinished is None else unfinished.results(check.about.name, evidence)
    if known is not None:
        return known
    results = check.run(evidence)
    if unfinished is not None:
        unfinished.keep(check.about.name, results, evidence)
    return results


def _lacking(check: Check, evidence: Evidence) -> Need | None:
    return next((need for need in check.needs if not need.there(evidence)), None)


def _corrected(tests: Sequence[tuple[Question, tuple[float, ...]]]) -> Iterator[tuple[tuple[float, ...], int]]:
    """Corrected p values of each draft, and the size of its question's family, in order."""
    by_question = {question: [p for other, values in tests if other == question for p in values] for question, _ in tests}
    corrected = {question: iter(holm(values)) for question, values in by_question.items()}
    for question, values in tests:
        yield tuple(itertools.islice(corrected[question], len(values))), len(by_question[question])


def _broken(check: Check, test: SelfTest) -> Finding:
    return check.about.finding(
        verdict="ERROR", answer="The check failed its own controls.", reason_code="self_test", reason=test.detail, self_test=test
    )  # fmt: skip


def _tested(finding: Finding, test: SelfTest) -> Finding:
    """A finding with the controls of its check beside its own; one that failed them says nothing else any more."""
    joined = test.joined(finding.self_test)
    if not joined.failed or finding.verdict == "ERROR":
        return finding.model_copy(update={"self_test": joined})
    told = {"verdict": "ERROR", "answer": "The check failed its own controls.", "reason_code": "self_test", "reason": joined.detail}
    return finding.model_copy(update={**told, "self_test": joined, "action": "", "encoded": None, "used": None, "localised": None})


def _known_columns(data: AuditSet, asked: Asked) -> None:
    allowed = ", ".join(sorted(data.columns)) or "none: give a CSV with labels="
    wanted = [(f"audit.{key}", name) for key in ("attributes", "domains", "strata") for name in getattr(asked, key)]
    wanted += [(f"audit.{key}", name) for key in ("task", "study") if (name := getattr(asked, key)) is not None]
    problems = [UserError(place, f"no column {name!r}", allowed=allowed) for place, name in wanted if name not in data.columns]
    problems += [
        UserError(place, f"{name!r} holds {distinct} values for {data.num_units} units, so that they name somebody",
                  allowed="columns of a few groups, or of numbers", remedy="leave it out; what tells units apart is group=COLUMN")
        for place, name in wanted
        if place not in ("audit.study", "audit.strata") and name in data.columns
        and (distinct := identifying(data.columns[name], data.label_units))
    ]  # fmt: skip
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


def _describe(data: AuditSet, probed: AuditSet, asked: Asked) -> dict[str, Any]:
    named = [*asked.attributes, *asked.domains, *asked.strata, asked.task, asked.study, data.split]
    used = list(dict.fromkeys(name for name in named if name is not None))
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


def _unanswered(findings: Sequence[Finding], checks: Sequence[Check]) -> dict[str, str]:
    """Why a question has no answer at all: said as loudly as a finding would be."""
    said = {finding.question for finding in findings if finding.verdict not in ("NOT_ASSESSABLE", "NOT_APPLICABLE", "ERROR")}
    asked = {check.about.question for check in checks}
    unasked = "no check of it was run" if len(checks) < len(CHECKS) else "this audit has no check for it"
    undecided = "none of its checks could be decided with these data"
    return {question: undecided if question in asked else unasked for question in QUESTIONS if question not in said}


def _now() -> str:
    """UTC now, or SOURCE_DATE_EPOCH where a reproducible file is wanted."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return moment.isoformat(timespec="seconds")
