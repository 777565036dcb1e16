"""Reads the numbers of a run as a doctor would: what is wrong, since which step, why most likely, and which keys to change.

Works on metrics rows alone (dicts as in metrics.jsonl) and, where it is given, the plan; so the live run, ``dinodomain doctor`` and tests
share it. A row may lack any column: versions, recipes and resumed runs differ. What each finding looks for, with the source or measurement
of its threshold, is in ``quality.py`` and ``strain.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinodomain.engine.finding import Finding
from dinodomain.engine.history import WINDOW, History, finite
from dinodomain.engine.quality import GRACE
from dinodomain.engine.symptoms import SYMPTOMS

__all__ = ["GRACE", "WINDOW", "Diagnosis", "Finding", "Monitor", "diagnose", "examine"]

Row = Mapping[str, Any]

EVERY = WINDOW
"""Rows between two examinations of a live run; one takes about 5 ms."""

KEPT = 250
"""Older rows a live run looks back on, evenly thinned."""

_ORDER = ("collapsed", "unstable", "degrading", "stuck", "starved", "leaking", "incomplete")
"""Kinds of findings, the gravest first: the first that is there gives the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the rows of a run say.

    Attributes:
        verdict: One line: ``healthy``, ``collapsed (...)``, ``unstable (...)`` ...; ``too early`` where there are too few rows to tell.
        findings: The gravest first.
    """

    verdict: str
    findings: tuple[Finding, ...]


class Monitor:
    """Watches a run as it goes and names each new problem once, until it has passed and come back."""

    def __init__(self, rows: Iterable[Row] = (), plan: Mapping[str, Any] | None = None) -> None:
        self._plan = plan or {}
        self._recent: deque[Row] = deque(maxlen=2 * WINDOW)
        self._older: list[Row] = []
        self._stride, self._seen = 1, 0
        self._told: set[str] = set()
        for row in rows:
            self._keep(row)
        self._told = {finding.name for finding in self._findings()}

    def observe(self, row: Row) -> list[str]:
        """Takes one row; returns warnings that are new."""
        self._keep(row)
        if not (self._seen % EVERY == 0 or row.get("skipped") or "watch_rankme" in row):
            return []
        found = self._findings()
        new = [finding.text() for finding in found if finding.name not in self._told]
        self._told = {finding.name for finding in found}
        return new

    def _keep(self, row: Row) -> None:
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            # Looks at the teacher are few and all count.
            if self._seen % self._stride == 0 or "watch_rankme" in oldest:
                self._older.append(oldest)
        self._recent.append(row)
        self._seen += 1
        if len(self._older) > 2 * KEPT:
            self._stride *= 2
            self._older = [old for place, old in enumerate(self._older) if place % 2 == 0 or "watch_rankme" in old]

    def _findings(self) -> list[Finding]:
        rows = [*self._older, *self._recent]
        return _look(History(rows), self._plan) if rows else []


def examine(rows: Sequence[Row], plan: Mapping[str, Any] | None = None) -> Diagnosis:
    """The diagnosis of a whole run, as it stands at its end.

    Args:
        rows: Rows of metrics.jsonl, oldest first; where a step is there twice, the later row counts.
        plan: The resolved plan, as plain values; names causes better where it is known.
    """
    rows = list({row["step"]: row for row in rows}.values())
    if not rows:
        return Diagnosis(verdict="nothing to judge (metrics.jsonl has no rows)", findings=(_no_rows(),))
    findings = [*_look(History(rows), plan or {}), *_gaps(rows)]
    if not any(finite(row.get("loss")) for row in rows):
        findings.insert(0, _no_loss(rows))
    findings.sort(key=lambda finding: _ORDER.index(finding.kind))
    grave = [finding for finding in findings if finding.kind != "incomplete"]
    if grave:
        others = f", and {len(grave) - 1} more" if len(grave) > 1 else ""
        return Diagnosis(verdict=f"{grave[0].kind} ({grave[0].title} since step {grave[0].since}{others})", findings=tuple(findings))
    if len(rows) < WINDOW:
        return Diagnosis(verdict=f"too early to tell ({len(rows)} steps, {WINDOW} are needed)", findings=tuple(findings))
    return Diagnosis(verdict="healthy", findings=tuple(findings))


def diagnose(rows: Sequence[Row], plan: Mapping[str, Any] | None = None) -> list[str]:
    """Plain-language findings on a run, one line each; empty when nothing is wrong. See ``examine``."""
    return [finding.text() for finding in examine(rows, plan).findings]


def _look(history: History, plan: Mapping[str, Any]) -> list[Finding]:
    """Findings of all symptoms; a later one that an earlier one explains is left out."""
    found: list[Finding] = []
    for symptom in SYMPTOMS:
        finding = symptom.look(history, plan)
        if finding is not None and not any(earlier.name in symptom.explained_by for earlier in found):
            found.append(finding)
    return found


def _no_rows() -> Finding:
    return Finding(name="empty", kind="incomplete", title="no steps", since=0, numbers="metrics.jsonl has no rows",
                   cause="the run stopped before its first step", advice="see log.txt", keys={})  # fmt: skip


def _no_loss(rows: Sequence[Row]) -> Finding:
    return Finding(
        name="no loss", kind="unstable", title="no finite loss", since=int(rows[0]["step"]),
        numbers=f"none of {len(rows)} steps gave a finite loss", cause="broken pixel values, or a learning rate far too high",
        advice="check the store with dinodomain inspect; if it is sound, start again in another folder with a lower rate",
        keys={"optim.lr": "a tenth"},
    )  # fmt: skip


def _gaps(rows: Sequence[Row]) -> list[Finding]:
    """Steps without a row: a damaged file, or two runs written into one."""
    steps = [int(row["step"]) for row in rows]
    gaps = sorted(set(range(min(steps), max(steps) + 1)) - set(steps))
    if not gaps:
        return []
    return [Finding(name="gaps", kind="incomplete", title="missing steps", since=gaps[0],
                    numbers=f"metrics.jsonl lacks {len(gaps)} steps, the first is {gaps[0]}", cause="lines of the file were lost",
                    advice="training is not affected", keys={})]  # fmt: skip
