"""What a report holds beside its findings: the decision, who supplied what, the command behind each finding, what training cost.

Measures nothing and writes nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dinodomain.audit.declared import RISKS, Declaration
from dinodomain.audit.finding import Report, Risk
from dinodomain.audit.plan import AuditPlan
from dinodomain.audit.policy import Policy

_TOP = ("checkpoint", "store", "labels", "metadata", "features", "join", "target", "group", "seed", "gate", "secret")
"""Keys typed without ``audit.`` in front."""

_NOT_REPEATED = (
    "out",
    "overwrite",
    "report",
    "verify",
    "against",
    "formats",
    "sign",
    "key",
    "notice",
    "checks",
    "supplied_by",
    "independent",
)
_LETTER_FOR_LETTER = (
    "checkpoint", "store", "labels", "metadata", "features", "gate", "secret", "previous", "finetuned", "generic", "declaration"
)  # fmt: skip
_PLAIN = re.compile(r"[\w.][\w./:-]*")


def complete(report: Report, plan: AuditPlan, policy: Policy, declared: Declaration | None) -> Report:
    """The report with everything but the gate's outcome and its place in the chain."""
    inputs = inputs_of(plan)
    repeated = inputs | drawn(report)
    findings = tuple(
        finding.model_copy(update={"command": command(finding.check, repeated, f"{plan.out}-again")}) for finding in report.findings
    )
    given = {} if declared is None else dict(declared.risks)
    return report.model_copy(
        update={
            "findings": findings, "plan": report.plan | {"inputs": inputs}, "decision": plan.decision,
            "supplied_by": plan.supplied_by or policy.supplied_by,
            "independent": policy.independent if plan.independent is None else plan.independent,
            "training": cost_of(plan.checkpoint, declared), "register_": {name: given.get(name, Risk()) for name in RISKS},  # type: ignore[call-overload]
        }
    )  # fmt: skip


def inputs_of(plan: AuditPlan) -> dict[str, Any]:
    """Plan fields that differ from their defaults and that a repetition needs."""
    found = {}
    for item in fields(plan):
        value = getattr(plan, item.name)
        if item.name not in _NOT_REPEATED and value != item.default:
            found[item.name] = list(value) if isinstance(value, tuple) else value
    return found


def drawn(report: Report) -> dict[str, int]:
    """Permutations that the whole audit drew: a check alone has fewer tests to correct, and would draw fewer."""
    return {name: report.plan[name] for name in ("permutations", "joint_permutations") if name in report.plan}


def command(name: str, inputs: Mapping[str, Any], out: str) -> str:
    """The line that computes the findings of one check again.

    Args:
        name: Of the check.
        inputs: From ``inputs_of`` and ``drawn``.
        out: Folder of the repetition.
    """
    words = [_word(key, value) for key, value in {**inputs, "checks": [name], "out": out}.items()]
    return " ".join(["dinodomain audit", *words])


def _word(key: str, value: Any) -> str:
    typed = key if key in _TOP or key == "out" else f"audit.{key}"
    text = str(value) if key in (*_LETTER_FOR_LETTER, "out") else _in_grammar(value)
    return shlex.quote(f"{typed}={text}")


def _in_grammar(value: Any) -> str:
    """A value as the command line's grammar takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(_in_grammar, value))}]"
    if isinstance(value, bool) or not isinstance(value, str):
        return str(value).lower()
    return value if _PLAIN.fullmatch(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def cost_of(checkpoint: str | None, declared: Declaration | None) -> dict[str, str]:
    """Hours and energy of the training: from the run's own record and the declaration, or ``not measured``."""
    energy = None if declared is None else declared.energy_kwh
    return {
        "hours of training": _hours(checkpoint),
        "energy": "not measured" if energy is None else f"{energy:g} kWh, as declared",
    }


def _hours(checkpoint: str | None) -> str:
    rows = _metrics(checkpoint)
    seconds = [float(row["seconds"]) for row in rows if isinstance(row.get("seconds"), (int, float))]
    if not seconds:
        return "not measured"
    return f"{sum(seconds) / 3600:.3g} h over {len(seconds)} recorded steps, each on all devices of the run"


def _metrics(checkpoint: str | None) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` of the run that a checkpoint belongs to."""
    if checkpoint is None:
        return []
    path = Path(checkpoint).absolute()
    file = next((folder / "metrics.jsonl" for folder in (path, *path.parents[:2]) if (folder / "metrics.jsonl").is_file()), None)
    if file is None:
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
