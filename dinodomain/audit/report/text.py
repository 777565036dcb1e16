"""Words of the report that do not come from findings, and how values become text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MEANING: Final[Mapping[str, tuple[str, str]]] = {
    "FLAG": ("✖", "found, and above the line that was set beforehand"),
    "ERROR": ("‼", "the check failed its own controls; its numbers mean nothing"),
    "NOT_ASSESSABLE": ("?", "could not be answered with these data; not a pass"),
    "WARN": ("▲", "found, but not clearly above the line, or expected by the policy"),
    "CLEAR_WITHIN_LIMITS": ("✓", "not found, by a check shown to find what was planted; within the limits on the card"),
    "NOT_APPLICABLE": ("○", "does not apply here, with the reason"),
}
CANNOT: Final = (
    "It does not show that nothing leaks or that nobody is treated worse: it answers single questions, for these data and attackers.",
    "Readable from the features is neither used by a task nor the cause of harm; not readable by these probes is not absent.",
    "A clear result does not carry over to other data, other layers, other attackers or a fine-tuned model.",
    "A map of where an image matters does not show what a model uses; only replacing the region does.",
    "Labels of people are taken as recorded, with the origin that is printed; the audit does not ask whether they are right.",
    "A public proxy puts no upper bound on what the encoder could be used for.",
    "It gives no single score and no grade: what was found and what could not be assessed do not add up.",
)
GLOSSARY: Final[Mapping[str, str]] = {
    "Unit": "who or what an image belongs to (a patient, a ground cell); folds, chance and intervals all move whole units",
    "Score": "area under the ROC curve for classes, (1 + rank correlation) / 2 for numbers: .5 is chance, 1 perfect",
    "Interval": "95 %: what the estimate would range over if other units had been audited; how it was made stands beside it",
    "Chance": "what the same procedure gives when the values are dealt anew to whole units",
    "Corrected p": "p value after Holm's correction over all tests of the same question",
    "Least detectable": "the smallest leak, planted into these very features, that was found in 80 % of trials; below it leaks are missed",
    "Pixel statistics": "the same measurement on tone and texture of the plain pixels: what the data show without any encoder",
    "Untrained encoder": "the same measurement on a network with fresh weights: what the architecture shows without training",
    "Encoded, localised, used": "can be read from the features; where it sits; whether a decision was shown to rest on it: three facts",
    "Waiver": "somebody answers by name for going on in spite of a finding, until a date",
}
FRAMEWORKS: Final = ("EU AI Act", "NIST AI RMF", "FUTURE-AI")


def number(value: float | None, digits: int = 2) -> str:
    """A number, or that there is none."""
    return "not measured" if value is None else f"{value:.{digits}f}"


def cell_text(value: object) -> str:
    """A cell of a table for people."""
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def cell(value: object) -> str:
    """Text for a Markdown table: no new column, line or tag comes out of a name."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def words(verdict: str) -> str:
    """A verdict as people read it."""
    return verdict.replace("_", " ")


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text and text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def anchor(identifier: str) -> str:
    """The id of a finding as a fragment of an address: letters and digits stay, everything else is spelt out."""
    return "f-" + re.sub(r"[^\w-]", lambda found: f"_{ord(found.group()):x}", identifier)
