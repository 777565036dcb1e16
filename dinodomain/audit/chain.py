"""The chain of audits, ``audits.jsonl``: a line per audit, each with the sha256 of the line before, so that none is altered unseen.

It says how often a checkpoint was audited, and whether thresholds moved once results were known.

The chain of a run lies in its folder and travels with it; that of anything else lies beside the report's folder. What is deleted whole
leaves no trace here: a chain is evidence among people who keep it, not against whoever holds the only copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dinodomain.audit.finding import History, Report
from dinodomain.checkpoint.baseline import run_of
from dinodomain.errors import UserError
from dinodomain.lineage import canonical, digest, write_bytes

NAME: Final = "audits.jsonl"
_START: Final = "0" * 64
Line = Mapping[str, Any]


def chain_of(checkpoint: str | None, out: str | Path) -> Path:
    """Where the chain of a subject lies: in the run that a checkpoint belongs to, else beside the report's folder.

    Args:
        checkpoint: As the user named it; None where features were audited.
        out: Folder of the report.
    """
    if checkpoint is not None and Path(checkpoint).exists():
        run = run_of(checkpoint)
        if run is not None and os.access(run, os.W_OK):
            return run / NAME
    return Path(os.path.abspath(out)).parent / NAME


def read_chain(path: Path) -> tuple[Line, ...]:
    """All lines, oldest first; none where there is no file.

    Raises:
        UserError: A line was altered, dropped or is not JSON.
    """
    if not path.is_file():
        return ()
    try:
        lines = tuple(json.loads(text) for text in path.read_text("utf-8").splitlines() if text.strip())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(str(path), f"is not a chain of audits: {error}", remedy="restore it from a copy") from None
    before = _START
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or line.get("before") != before:
            raise UserError(str(path), f"line {number} does not follow the line before it", remedy="restore the chain from a copy")
        before = head_of(line)
    return lines


def head_of(line: Line) -> str:
    """sha256 of a line."""
    return hashlib.sha256(canonical(line).encode()).hexdigest()


def next_line(lines: Sequence[Line], report: Report, folder: Path, chain: Path) -> Line:
    """The line of a new audit.

    Args:
        lines: The chain so far.
        report: The audit.
        folder: Where its report will lie.
        chain: The file of the chain, from which the folder is told.
    """
    return {
        "before": head_of(lines[-1]) if lines else _START,
        "audit_id": report.audit_id,
        "created": report.created,
        "subject": subject_of(report),
        "policy": report.policy["digest"],
        "thresholds": digest(report.policy["thresholds"]),
        "decision": report.decision,
        "report": os.path.relpath(os.path.abspath(folder), chain.parent),
    }


def subject_of(report: Report) -> str:
    """Digest of the weights, or of the features where nothing else is known."""
    return str(report.subject.get("weights") or report.subject.get("features") or report.data["digest"])


def history_of(lines: Sequence[Line]) -> History:
    """What a chain says about its last line: only the audits of the same subject count."""
    same = [line for line in lines if line["subject"] == lines[-1]["subject"]]
    changes = sum(one["thresholds"] != other["thresholds"] for one, other in itertools.pairwise(same))
    fixed = same[0]["policy"] == same[-1]["policy"] and not changes
    return History(
        number=len(same), policy_fixed="before" if fixed else "after", thresholds_changed=changes, head=head_of(lines[-1])
    )  # fmt: skip


def lengthen(path: Path, report: Report, folder: Path) -> tuple[Line, ...]:
    """Adds the line of a new audit; one at a time, whoever else audits.

    Args:
        path: The file of the chain.
        report: The audit.
        folder: Where its report will lie.

    Returns:
        All lines.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = read_chain(path)
        lines = (*before, next_line(before, report, folder, path))
        write_chain(path, lines)
    finally:
        os.close(held)
    return lines


def write_chain(path: Path, lines: Sequence[Line]) -> None:
    """Writes all lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(f"{canonical(line)}\n" for line in lines).encode())
