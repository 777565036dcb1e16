"""Checks a report that somebody hands over: sums, schema, chain, signature, and, on request, one finding computed anew.

It shows that the bundle is whole and hangs together; that the audit was honest it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinodomain.audit.chain import NAME, head_of, read_chain
from dinodomain.audit.checks import CHECKS
from dinodomain.audit.finding import Finding, Report, read_report
from dinodomain.audit.sign import SIGNATURE, check_signature
from dinodomain.errors import UserError
from dinodomain.lineage import digest_file

TOLERANCE = 1e-3
"""Numbers of a report are printed to three digits; a repetition on other hardware may differ below that."""

Rerun = Callable[[Report, str], Sequence[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was checked.

    Attributes:
        report: The report.
        passed: What holds, a line each.
        failed: What does not.
        open: What could not be checked.
    """

    report: Report
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    open: tuple[str, ...]

    def text(self) -> str:
        """A line per point."""
        lines = {"holds": self.passed, "FAILS": self.failed, "not checked": self.open}
        return "\n".join(f"{name}: {line}" for name, found in lines.items() for line in found)


def verify(folder: str, *, checks: Sequence[str] = (), key: str | None = None, rerun: Rerun | None = None) -> Verified:
    """Checks the bundle in a folder.

    Args:
        folder: With ``audit.json`` and ``SHA256SUMS``.
        checks: Checks whose findings are computed anew.
        key: Public key that the signature must be of.
        rerun: Computes the findings of a check anew.

    Raises:
        UserError: There is no bundle, or its report cannot be read.
    """
    place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    report = read_report(place / "audit.json")
    passed: list[str] = ["audit.json follows its schema"]
    failed: list[str] = []
    left: list[str] = []
    for kind, line in (*_sums(place), _same(report), *_chain(place, report), *_signed(place, key)):
        {"ok": passed, "bad": failed}.get(kind, left).append(line)
    for name in checks:
        for kind, line in _again(report, name, rerun):
            (passed if kind == "ok" else failed).append(line)
    return Verified(report=report, passed=tuple(passed), failed=tuple(failed), open=tuple(left))


def untouched(path: Path) -> bool | None:
    """Whether a report is the one whose sum was written beside it; None where there is no sum of it."""
    path = path / "audit.json" if path.is_dir() else path
    listed = _listed(path.parent / "SHA256SUMS")
    return listed[path.name] == digest_file(path) if path.name in listed and path.is_file() else None


def _listed(sums: Path) -> dict[str, str]:
    """File name to sum; empty where there is no list."""
    lines = sums.read_text("utf-8").splitlines() if sums.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines if line)}


def _sums(place: Path) -> Iterator[tuple[str, str]]:
    sums = place / "SHA256SUMS"
    if not sums.is_file():
        yield "bad", "SHA256SUMS is missing"
        return
    listed = _listed(sums)
    wrong = [name for name, digest in listed.items() if not (place / name).is_file() or digest_file(place / name) != digest]
    missing = sorted({"audit.json", "audit.html", "card.md"} - set(listed))
    yield ("bad", f"altered or missing: {', '.join(wrong)}") if wrong else ("ok", f"the sums of {len(listed)} files")
    if missing:
        yield "bad", f"SHA256SUMS does not list {', '.join(missing)}"


def _same(report: Report) -> tuple[str, str]:
    if report.identity() == report.audit_id:
        return "ok", "the findings are those that the audit was named by"
    return "bad", "subject, data, policy, plan or findings are not those that the audit was named by"


def _chain(place: Path, report: Report) -> Iterator[tuple[str, str]]:
    if report.history is None:
        yield "open", "the report says nothing of a chain of audits"
        return
    try:
        lines = read_chain(place / NAME)
    except UserError as error:
        yield "bad", str(error)
        return
    here = [line for line in lines if line["audit_id"] == report.audit_id]
    if not here or head_of(here[-1]) != report.history.head:
        yield "bad", f"{NAME} does not hold this audit"
    else:
        yield "ok", f"the chain of {len(lines)} audits; {report.history.words()}"


def _signed(place: Path, key: str | None) -> Iterator[tuple[str, str]]:
    if not (place / SIGNATURE).is_file():
        yield ("bad" if key else "open"), "the report is not signed"
        return
    whose = "the given key" if key else "the key beside it, which anybody could have put there"
    if check_signature(place / "SHA256SUMS", key):
        yield "ok", f"the signature of {whose}"
    else:
        yield "bad", f"the signature is not that of {whose}"


def _again(report: Report, name: str, rerun: Rerun | None) -> Iterator[tuple[str, str]]:
    wanted = {finding.id: finding for finding in report.findings if name == finding.check}
    if not wanted:
        yield "bad", f"{name}: not in the report"
        return
    assert rerun is not None, "given wherever checks can be named"
    found = {finding.id: finding for finding in rerun(report, name)}
    corrected = next((check.corrected for check in CHECKS if check.about.name == name), True)
    for identifier, before in wanted.items():
        after = found.get(identifier)
        differ = ["not found again"] if after is None else differences(before, after, corrected=corrected)
        same = f"the numbers of {identifier} computed anew" if corrected else f"{identifier} computed anew"
        yield ("bad", f"{identifier}: {'; '.join(differ)}") if differ else ("ok", same)


def differences(before: Finding, after: Finding, *, corrected: bool) -> list[str]:
    """Where a repetition differs beyond rounding.

    Args:
        before: In the report.
        after: Computed anew.
        corrected: Whether p values are corrected over all tests of a question: fewer are made here, so that these, and what is said of
            them, may differ.
    """
    told = () if corrected else ("verdict", "reason_code", "counts", "answer")
    parted = [
        f"{name} {getattr(after, name)!r} instead of {getattr(before, name)!r}"
        for name in told
        if getattr(after, name) != getattr(before, name)
    ]
    numbers = {"units": (before.n_units, after.n_units), "images": (before.n_images, after.n_images)}
    for name in ("value", "low", "high"):
        numbers[name] = tuple(None if one.estimate is None else getattr(one.estimate, name) for one in (before, after))  # type: ignore[assignment]
    numbers["p"] = tuple(None if one.null is None else one.null.p for one in (before, after))  # type: ignore[assignment]
    return [*parted, *(f"{name} {one} instead of {other}" for name, (other, one) in numbers.items() if not _close(one, other))]


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE
