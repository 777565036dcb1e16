"""What was found: numbers of the pretrained network beside its baselines, figures, and plain words; text, Markdown, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import t as student

from dinodomain.lineage import Json, to_json, write_bytes, write_json
from dinodomain.probes.report import LABELS
from dinodomain.show.captions import number

REFERENCE = "pretrained"
UNTRAINED = "random_init"
FORMAT = 1

Better = Literal["higher", "lower", "neither"]
Span = tuple[float, float, float]
"""Value, and lower and upper end of its 95 % interval (NaN where there is none)."""


class NotPossible(Exception):
    """The data do not allow a property; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One measure of every kind of features.

    Attributes:
        name: Short.
        meaning: One sentence, with its range.
        better: Which way is better, where one is.
        values: By kind of features (``pretrained``, ``random_init``, ``pixels``, ``warm_start``).
        gain: Pretrained minus untrained, paired by tile; None where one of them is missing.
        chance: What knowing nothing gives, or None.
        chance_name: What that is.
        count: Units behind it; 1 where one value stands for all.
    """

    name: str
    meaning: str
    better: Better
    values: Mapping[str, Span]
    gain: Span | None
    chance: float | None
    chance_name: str
    count: int

    @property
    def verdict(self) -> str:
        """What pretraining did to it, in words; empty where nothing can be said."""
        if self.better == "neither" or self.gain is None or not math.isfinite(self.gain[0]):
            return ""
        value, low, high = self.gain
        change = f"{'+' if value >= 0 else ''}{number(value, 2)}"
        if not math.isfinite(low):
            return f"{change} over untrained"
        told = f"{change} ({number(low, 2)} to {number(high, 2)}) over untrained"
        if low <= 0 <= high:
            return f"{told}: no clear difference"
        return f"{told}: {'better' if (value > 0) == (self.better == 'higher') else 'worse'}"


def measured(
    name: str, meaning: str, values: Mapping[str, float | np.ndarray], *, better: Better = "higher",
    chance: float | np.ndarray | None = None, chance_name: str = "chance", units: Sequence[str] | np.ndarray | None = None,
) -> Number:  # fmt: skip
    """A number from one value for each tile, or one for all, per kind of features. Tiles without one (NaN) for some kind count for none.

    Every unit counts alike, and intervals are Student's over units, because a bootstrap of few is far too narrow; they say how much the
    data at hand scatter, and nothing of another run.

    Args:
        name: Short.
        meaning: One sentence, with its range.
        values: Kind of features to [n], the same tiles for all, or to one value.
        better: Which way is better.
        chance: What knowing nothing gives.
        chance_name: What that is.
        units: [n] unit of each tile; None where values are of single units, or one for all.
    """
    each = {kind: np.atleast_1d(np.asarray(value, np.float64)) for kind, value in values.items()}
    told = np.asarray(np.isfinite(np.stack(list(each.values()))).all(axis=0))
    each = {kind: _of_units(np.where(told, value, np.nan), units) for kind, value in each.items()}
    gain = each[REFERENCE] - each[UNTRAINED] if {REFERENCE, UNTRAINED} <= set(each) else None
    known = None if chance is None else np.atleast_1d(np.asarray(chance, np.float64))
    if known is not None and len(known) == len(told):
        known = _of_units(np.where(told, known, np.nan), units)
    return Number(
        name=name, meaning=meaning, better=better, values={kind: _span(value) for kind, value in each.items()},
        gain=None if gain is None else _span(gain), chance=None if known is None else _span(known)[0], chance_name=chance_name,
        count=int(np.isfinite(each[REFERENCE]).sum()),
    )  # fmt: skip


def _of_units(values: np.ndarray, units: Sequence[str] | np.ndarray | None) -> np.ndarray:
    """Means of units: neighbouring tiles of one patient or place are no independent witnesses."""
    if units is None:
        return values
    assert len(units) == len(values)
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    known = np.isfinite(values)
    count = np.bincount(unit, known)
    return np.where(count > 0, np.bincount(unit, np.where(known, values, 0.0)) / np.maximum(count, 1), np.nan)


def _span(values: np.ndarray) -> Span:
    kept = values[np.isfinite(values)]
    if not len(kept):
        return math.nan, math.nan, math.nan
    if len(kept) < 3:
        return float(kept.mean()), math.nan, math.nan
    mean = float(kept.mean())
    reach = float(student.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / math.sqrt(len(kept)))
    return mean, mean - reach, mean + reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """One property.

    Attributes:
        name: Of ``plan.NAMES``.
        title: For people.
        words: What the figure shows and how to read it, in plain words.
        figures: File names in the report's folder.
        numbers: The measures, the most telling first.
        why_not: Why the data do not allow it; empty where they do.
    """

    name: str
    title: str
    words: str = ""
    figures: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertiesReport:
    """Everything that was found.

    Attributes:
        properties: In the order of ``plan.NAMES``.
        settings: Of the plan, and what was settled.
        lineage: Record of checkpoint and store.
        out: Folder of the files.
        shown: One line on how pictures are to be read.
        notice: Stands above everything.
    """

    properties: tuple[Property, ...]
    settings: Mapping[str, Json]
    lineage: Mapping[str, Json]
    out: str
    shown: str = ""
    notice: str = ""
    format: int = field(default=FORMAT)

    def find(self, name: str) -> Property:
        """One property by name."""
        return next(item for item in self.properties if item.name == name)

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        return body

    def text(self) -> str:
        """A table for the terminal."""
        kinds = self._kinds()
        rows = [("property", "number", *(LABELS[kind] for kind in kinds), "by chance", "pretraining")]
        for item in self.properties:
            if item.why_not:
                rows.append((item.name, f"not possible: {item.why_not}", *[""] * (len(rows[0]) - 2)))
            rows += [(item.name, told.name, *_cells(told, kinds), told.verdict) for told in item.numbers]
        aligned = [row for row in rows if not row[1].startswith("not possible")]
        widths = [max(len(row[column]) for row in aligned) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*([self.notice] if self.notice else []), *lines, str(Path(self.out) / "properties.md")])

    def markdown(self) -> str:
        """Every figure with what it shows and its numbers."""
        lines = ["# Properties of the features", ""]
        lines += [f"**{self.notice}**", ""] if self.notice else []
        lines += [_INTRODUCTION, "", f"Pictures: {self.shown}.", ""]
        for place, item in enumerate(self.properties, start=1):
            lines += [f"## {place}. {item.title}", ""]
            lines += [f"Not possible: {item.why_not}.", ""] if item.why_not else [item.words, ""]
            lines += [line for figure in item.figures for line in (f"![{item.title}]({figure})", "")]
            lines += [*self._table(item.numbers), ""] if item.numbers else []
        lines += ["## Settings", "", *(f"- {name}: {value}" for name, value in self.settings.items())]
        return "\n".join(lines) + "\n"

    def save(self) -> None:
        """Writes properties.json and properties.md."""
        out = Path(self.out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "properties.json", self.as_json())
        write_bytes(out / "properties.md", self.markdown().encode())

    def _kinds(self) -> tuple[str, ...]:
        used = {kind for item in self.properties for told in item.numbers for kind in told.values}
        return tuple(kind for kind in LABELS if kind in used)

    def _table(self, numbers: Sequence[Number]) -> list[str]:
        kinds = self._kinds()
        lines = [
            f"| number | {' | '.join(LABELS[kind] for kind in kinds)} | by chance | what pretraining did |",
            "|---" * (len(kinds) + 3) + "|",
        ]
        for told in numbers:
            want = {"higher": " Higher is better.", "lower": " Lower is better.", "neither": ""}[told.better]
            name = f"**{told.name}**: {told.meaning}{want}"
            lines.append(f"| {name} | {' | '.join(_cells(told, kinds))} | {told.verdict} |")
        return lines


_INTRODUCTION = (
    "What DINO-family features are known for, on this store: each figure and each number of the pretrained network beside the same network "
    "with untrained (random) weights, and beside raw pixels where that makes sense. What the untrained network shows as well was not "
    "learned. Ranges in brackets are 95 % intervals over the units looked at (patients, places; Student's t); they do not cover another "
    "training run. Figures "
    "show a few tiles; the numbers count."
)


def _cells(told: Number, kinds: Sequence[str]) -> list[str]:
    cells = [_cell(told.values.get(kind)) for kind in kinds]
    known = told.chance is not None and math.isfinite(told.chance)
    named = "" if told.chance_name == "chance" else f" ({told.chance_name})"
    return [*cells, f"{number(told.chance or 0.0, 2)}{named}" if known else ""]


def _cell(span: Span | None) -> str:
    if span is None or not math.isfinite(span[0]):
        return ""
    value, low, high = span
    return number(value, 2) if not math.isfinite(low) else f"{number(value, 2)} ({number(low, 2)}-{number(high, 2)})"
