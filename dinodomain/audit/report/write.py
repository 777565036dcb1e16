"""Writes the report bundle: ``audit.json`` (validated), then HTML and Markdown drawn from that file alone, then the sums of all.

Measures nothing and reads nothing but the report.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from dinodomain.audit.evidence import Private
from dinodomain.audit.finding import QUESTIONS, Report, check_report, read_report
from dinodomain.audit.protocol.verdict import VERDICTS
from dinodomain.lineage import digest_file, write_bytes, write_json
from dinodomain.show.audit import draw_plot, leak_forest

MEANING: Mapping[str, tuple[str, str]] = {
    "FLAG": ("✖", "found, and above the line that was set beforehand"),
    "ERROR": ("‼", "the check failed its own controls; its numbers mean nothing"),
    "NOT_ASSESSABLE": ("?", "could not be answered with these data; not a pass"),
    "WARN": ("▲", "found, but not clearly above the line, or expected by the policy"),
    "CLEAR_WITHIN_LIMITS": ("✓", "not found, by a check shown to find what was planted; within the limits on the card"),
    "NOT_APPLICABLE": ("○", "does not apply here, with the reason"),
}
CANNOT = (
    "It does not show that nothing leaks or that nobody is treated worse: it answers single questions, for these data and attackers.",
    "Readable from the features is neither used by a task nor the cause of harm; not readable by these probes is not absent.",
    "A clear result does not carry over to other data, other layers, other attackers or a fine-tuned model.",
    "Labels of people are taken as recorded; the audit does not ask whether they are right.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the report lies.

    Attributes:
        json: The record.
        html: One page, self-contained.
        markdown: The same in short.
        sums: sha256 of the others.
    """

    json: Path
    html: Path
    markdown: Path
    sums: Path


def write_report(report: Report, folder: Path, private: Sequence[Private] = ()) -> Paths:
    """Writes the bundle into ``folder``; ``audit.json`` is checked against the published schema before anything is drawn.

    Args:
        report: The record.
        folder: Made if absent.
        private: Tables for ``private/``, which only its owner may read; what an earlier audit left there goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = report.as_json()
    check_report(body, "audit.json")
    _write_private(folder / "private", private)
    write_json(folder / "audit.json", body)
    return draw_report(folder / "audit.json")


def _write_private(folder: Path, tables: Sequence[Private]) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    if not tables:
        return
    folder.mkdir(mode=0o700)
    for table in tables:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(table.columns)
        writer.writerows(zip(*table.columns.values(), strict=True))
        write_bytes(folder / f"{table.name}.csv", text.getvalue().encode())


def draw_report(source: Path) -> Paths:
    """Draws HTML, Markdown and sums beside an ``audit.json``."""
    read_report(source)
    body = json.loads(source.read_text("utf-8"))
    paths = Paths(
        json=source, html=source.with_name("audit.html"), markdown=source.with_name("audit.md"), sums=source.with_name("SHA256SUMS")
    )
    context = _context(body, digest_file(source))
    environment = _environment()
    write_bytes(paths.html, environment.get_template("audit.html.j2").render(context).encode())
    write_bytes(paths.markdown, environment.get_template("audit.md.j2").render(context).encode())
    lines = [f"{digest_file(path)}  {path.name}" for path in (paths.html, paths.json, paths.markdown)]
    write_bytes(paths.sums, ("\n".join(lines) + "\n").encode())
    return paths


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("dinodomain.audit.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": _number,
        "cell": _cell,
        "cell_text": _cell_text,
        "words": lambda verdict: verdict.replace("_", " "),
        "plot": draw_plot,
    }
    return made


def _number(value: float | None, digits: int = 2) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _cell_text(value: object) -> str:
    """A cell of a table for people."""
    if value is None:
        return "not measured"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(value: object) -> str:
    """Text for a Markdown table: no new column, line or tag comes out of a name."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _context(body: dict[str, Any], json_digest: str) -> dict[str, Any]:
    by_question = {question: [item for item in body["findings"] if item["question"] == question] for question in QUESTIONS}
    counts = {question: Counter(item["verdict"] for item in found) for question, found in by_question.items()}
    return {
        "report": body, "questions": QUESTIONS, "by_question": by_question, "counts": counts, "verdicts": VERDICTS, "meaning": MEANING,
        "cannot": CANNOT, "json_digest": json_digest, "headline": _headline(body), "forest": _forest(body),
    }  # fmt: skip


def _headline(body: dict[str, Any]) -> str:
    """The report in one sentence; what was not assessed stands beside what was found."""
    counts = Counter(item["verdict"] for item in body["findings"])
    words = [f"{counts[verdict]} {verdict.replace('_', ' ')}" for verdict in VERDICTS if counts[verdict]]
    silent = list(body["unanswered"])
    tail = f" {', '.join(silent)} {'is' if len(silent) == 1 else 'are'} not or only partly answered." if silent else ""
    return f"{len(body['findings'])} findings: {', '.join(words)}.{tail}"


def _forest(body: dict[str, Any]) -> str:
    """The figure of all findings on the leak scale; empty where there is none."""
    drawn = [item for item in body["findings"] if item["estimate"] and item["null"] and item["estimate"]["value"] is not None]
    if not drawn:
        return ""
    label = "; ".join(
        f"{item['id']}: {item['estimate']['value']:.2f} from {item['estimate']['low']:.2f} to {item['estimate']['high']:.2f}"
        for item in drawn
    )
    return leak_forest(drawn, body["policy"]["thresholds"], f"Scores with intervals. {label}")
