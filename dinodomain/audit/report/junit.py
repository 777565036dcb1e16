"""Findings as JUnit XML, so that a build server shows them: FLAG fails, ERROR is an error, NOT_ASSESSABLE is skipped with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from dinodomain.audit.finding import QUESTIONS

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_KINDS = {"FLAG": "failure", "ERROR": "error", "NOT_ASSESSABLE": "skipped", "NOT_APPLICABLE": "skipped"}


def junit(body: Mapping[str, Any]) -> bytes:
    """A suite per question, a case per finding.

    Args:
        body: ``audit.json`` as plain values.
    """
    root = ElementTree.Element("testsuites", name=f"audit {body['audit_id'][:12]}")
    for question, told in QUESTIONS.items():
        found = [item for item in body["findings"] if item["question"] == question]
        numbers = {kind: str(sum(_KINDS.get(item["verdict"]) == kind for item in found)) for kind in ("failure", "error", "skipped")}
        suite = ElementTree.SubElement(
            root, "testsuite", name=f"{question} {told}", tests=str(len(found)), failures=numbers["failure"], errors=numbers["error"],
            skipped=numbers["skipped"],
        )  # fmt: skip
        for item in found:
            _case(suite, item)
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _case(suite: ElementTree.Element, item: Mapping[str, Any]) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=item["check"], name=_clean(item["id"]))
    told = _clean(f"{item['verdict']}: {item['answer']} {item['reason']}".strip())
    kind = _KINDS.get(item["verdict"])
    if kind is not None:
        ElementTree.SubElement(case, kind, message=told)
    else:
        ElementTree.SubElement(case, "system-out").text = told


def _clean(text: str) -> str:
    """Without characters that XML 1.0 does not allow."""
    return _CONTROL.sub(" ", text)
