"""The report: ``audit.json`` first, everything else drawn from it."""

from dinodomain.audit.report.write import Paths, check_formats, draw_report, write_report

__all__ = ["Paths", "check_formats", "draw_report", "write_report"]
