"""The audit: what shaped a backbone, where it fails, what its features leak, what it enables, answered with evidence or not at all."""

from dinodomain import callable_room
from dinodomain.audit.attribution import EncoderObjective
from dinodomain.audit.evidence import Asked
from dinodomain.audit.finding import Finding, Report, read_report, write_schema
from dinodomain.audit.gate import GateResult, decide
from dinodomain.audit.plan import AuditPlan
from dinodomain.audit.policy import Policy, read_policy
from dinodomain.audit.protocol.data import AuditSet, Copies
from dinodomain.audit.protocol.leak import Effort
from dinodomain.audit.report import Paths, draw_report, write_report
from dinodomain.audit.run import Audited, run_checks
from dinodomain.audit.trail import UnitTrace, trace_unit
from dinodomain.audit.verb import AuditResult, audit

__all__ = [
    "Asked",
    "AuditPlan",
    "AuditResult",
    "AuditSet",
    "Audited",
    "Copies",
    "Effort",
    "EncoderObjective",
    "Finding",
    "GateResult",
    "Paths",
    "Policy",
    "Report",
    "UnitTrace",
    "audit",
    "decide",
    "draw_report",
    "read_policy",
    "read_report",
    "run_checks",
    "trace_unit",
    "write_report",
    "write_schema",
]

callable_room(__name__)
