"""A run on one page: everything the doctor looks at as small multiples over the same steps, with the steps where findings began."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinodomain import lineage
from dinodomain.errors import require
from dinodomain.show.curves import PANELS, columns_of, draw_panel, png

PAGE = ("loss", "entropy", "gradients", "feature_std", "rank", "held", "locality", "time", "memory")
"""Panels in reading order; those without data are left out."""

_MARK = "#B00020"
_WIDTH = 170
"""Letters of a line below the panels."""


def draw_doctor(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str, marks: Sequence[tuple[int, str]] = ()) -> Path | None:
    """Draws the page.

    Args:
        rows: Rows of metrics.jsonl, oldest first.
        path: PNG file; its folder is made if absent.
        title: The verdict.
        marks: Step and name of each finding; numbered in the panels and named below them.

    Returns:
        The file; None where there is nothing to draw.
    """
    panels = [(PANELS[stem], names) for stem in PAGE if rows and (names := columns_of(PANELS[stem], rows))]
    if not panels:
        return None
    figures = require("matplotlib.figure", extra="dev", wanted_by="figures")
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    notes = [line for number, (step, text) in enumerate(marks, 1) for line in _note(number, step, text)]
    below, above, width = 0.8 + 0.2 * len(notes), 0.85, 4.6 * columns
    height = above + 2.55 * lines + below
    figure = figures.Figure(figsize=(width, height), dpi=110)
    grid = figure.subplots(lines, columns, squeeze=False)
    # Margins in inches: a layout engine that measures every text takes three times as long.
    figure.subplots_adjust(left=0.62 / width, right=1 - 0.15 / width, top=1 - above / height, bottom=below / height, wspace=0.2, hspace=0.3)
    last = max(row["step"] for row in rows)
    for axes, (panel, names) in zip(grid.flat, panels):
        draw_panel(axes, panel, names, rows)
        first, span = rows[0]["step"], max(last - rows[0]["step"], 1)
        axes.set_xlim(first - 0.02 * span, last + 0.02 * span)
        _mark(axes, marks, last)
    for axes in list(grid.flat)[: max(0, len(panels) - columns)]:
        axes.set_xlabel("")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.text(0.012, 1 - 0.3 / height, title, fontsize=13, weight="bold", va="center")
    for place, line in enumerate(notes):
        figure.text(0.012, (below - 0.68 - 0.2 * place) / height, line, fontsize=9, color=_MARK, va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    lineage.write_bytes(path, png(figure))
    return path


def _mark(axes: Any, marks: Sequence[tuple[int, str]], last: int) -> None:
    """Dashed lines with the findings' numbers; those of one step stand together."""
    steps: dict[int, list[str]] = {}
    for number, (step, _) in enumerate(marks, 1):
        steps.setdefault(min(step, last), []).append(str(number))
    for step, numbers in steps.items():
        axes.axvline(step, color=_MARK, linewidth=1.0, linestyle="--")
        where = {"xytext": (0, 1), "textcoords": "offset points", "xycoords": ("data", "axes fraction")}
        axes.annotate(",".join(numbers), (step, 1.0), fontsize=8, color=_MARK, va="bottom", ha="center", weight="bold", **where)


def _note(number: int, step: int, text: str) -> list[str]:
    return textwrap.wrap(f"{number}  step {step}: {text}", _WIDTH, subsequent_indent="    ")
