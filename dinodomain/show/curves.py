"""The curves of a run, panel by panel: losses, entropies, ranks, gradients, times. Takes metrics rows, writes PNG files.

A panel is drawn by one function (``draw_panel``), for the live figures here and for the doctor's page (``doctor.py``). matplotlib is used
through its object interface on the Agg canvas, so that no display and no global state is touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinodomain import lineage
from dinodomain.errors import require

Row = Mapping[str, Any]

SMOOTH = 20
"""Rows of a running mean; as many as the monitor looks at together."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
"""Okabe and Ito's, which the colour-blind tell apart."""

NAMES: Mapping[str, str] = {
    "teacher_entropy": "entropy of a target",
    "kl_to_uniform": "KL of the mean target",
    "feature_std": "std, training crops",
    "watch_feature_std": "std, held tiles",
    "watch_effective_rank": "effective rank, share",
    "watch_rankme": "RankMe",
    "watch_knn": "nearest neighbour, labels",
    "watch_knn_own": "own crop is nearest",
    "watch_dense_match": "dense matching",
    "watch_dense_drift": "patch similarity drift",
    "watch_cls_patch": "class to patch cosine",
    "watch_outliers": "patches with outlying norms",
    "seconds": "step",
    "data_wait": "of it waiting for data",
    "memory": "peak",
}
"""What a column is called in a legend; others by their own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small picture.

    Attributes:
        title: Above it.
        unit: Of its vertical axis.
        columns: Names of columns, or the beginning of such names with a star behind.
        log: Logarithmic vertical axis.
        scale: What values are multiplied with.
        ceiling: Column whose last value is drawn as a line, and what that is called.
        share: The axis goes from 0 to 1.
        smooth: Single rows are noisy: draw them faintly behind their running mean.
    """

    title: str
    unit: str
    columns: tuple[str, ...]
    log: bool = False
    scale: float = 1.0
    ceiling: tuple[str, str] | None = None
    share: bool = False
    smooth: bool = True


PANELS: Mapping[str, Panel] = {
    "loss": Panel(title="loss", unit="nats", columns=("loss", "loss_*")),
    "entropy": Panel(
        title="teacher's targets", unit="nats", columns=("teacher_entropy", "kl_to_uniform"), ceiling=("max_entropy", "log K: collapse")
    ),
    "feature_std": Panel(title="spread of features", unit="1: all directions",
        columns=("feature_std", "watch_feature_std", "watch_effective_rank")),
    "rank": Panel(title="rank of features, held tiles", unit="directions", columns=("watch_rankme",)),
    "held": Panel(title="quality on held tiles", unit="share", columns=("watch_knn", "watch_knn_own", "watch_dense_match"), share=True),
    "locality": Panel(
        title="locality of patches, held tiles", unit="cosine, share", columns=("watch_dense_drift", "watch_cls_patch", "watch_outliers")
    ),
    "gradients": Panel(title="gradient norms before clipping", unit="norm, log", columns=("grad_norm_*",), log=True),
    "lr": Panel(title="learning rate", unit="", columns=("lr",), smooth=False),
    "time": Panel(title="time of a step", unit="s, log", columns=("seconds", "data_wait"), log=True),
    "memory": Panel(title="memory", unit="GiB", columns=("memory",), scale=2.0**-30, smooth=False),
}  # fmt: skip
"""By file stem."""

LIVE = ("loss", "entropy", "feature_std", "held", "lr", "gradients")
"""Panels that a run draws as it goes."""


def draw_curves(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes one PNG per panel that has data; replaces older ones whole.

    Args:
        rows: Rows of metrics.jsonl, oldest first.
        folder: Where the files go; made if absent.

    Returns:
        The files, in panel order.
    """
    if not rows:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for stem in LIVE:
        names = columns_of(PANELS[stem], rows)
        if names:
            lineage.write_bytes(folder / f"{stem}.png", _alone(PANELS[stem], names, rows))
            files.append(folder / f"{stem}.png")
    return files


def columns_of(panel: Panel, rows: Sequence[Row]) -> list[str]:
    """Columns of a panel that hold a number; loss parts and sub-modules are whatever the run has."""
    there = sorted(
        {name for row in (*thinned(rows, 50), rows[-1]) for name in row} | {name for row in rows if "watch_rankme" in row for name in row}
    )
    wanted = []
    for column in panel.columns:
        own = [name for name in there if name.startswith(column[:-1])] if column.endswith("*") else [column] if column in there else []
        wanted += [name for name in own if name not in wanted]
    return [name for name in wanted if any(_finite(row.get(name)) for row in rows)]


def draw_panel(axes: Any, panel: Panel, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Draws one panel.

    Args:
        axes: matplotlib axes.
        panel: Which.
        names: From ``columns_of``.
        rows: Oldest first.
    """
    few = len(names) > 1 or panel.ceiling is not None
    for name, colour in zip(names, COLOURS * (1 + len(names) // len(COLOURS))):
        points = _points(panel, name, rows)
        steps, values = [step for step, _ in points], [value for _, value in points]
        if panel.smooth and len(points) > 3 * SMOOTH:
            axes.plot(*zip(*thinned(points)), color=colour, linewidth=0.5, alpha=0.25)
            values = _smoothed(values)
        shown = thinned(list(zip(steps, values)))
        dots = {"marker": "o", "markersize": 3} if len(points) <= 40 else {}
        axes.plot(*zip(*shown), color=colour, linewidth=1.4, label=_label(panel, name), **dots)
    if panel.ceiling is not None and _finite(rows[-1].get(panel.ceiling[0])):
        axes.axhline(rows[-1][panel.ceiling[0]], color="black", linewidth=0.8, linestyle=":", label=panel.ceiling[1])
    if panel.log:
        axes.set_yscale("log")
    elif panel.share:
        axes.set_ylim(-0.02, 1.02)
    axes.set(xlabel="step", ylabel=panel.unit)
    axes.set_title(panel.title, fontsize=10, loc="left", pad=13)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
    for row in rows:
        if row.get("skipped"):
            axes.axvline(row["step"], color="red", alpha=0.3, linewidth=0.8)
    if axes.get_legend_handles_labels()[0] and (few or panel.title != _label(panel, names[0])):
        axes.legend(frameon=False, fontsize=7, loc="best", borderaxespad=0.8)


def png(figure: Any) -> bytes:
    """A figure as bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _alone(panel: Panel, names: Sequence[str], rows: Sequence[Row]) -> bytes:
    figures = require("matplotlib.figure", extra="dev", wanted_by="figures")
    figure = figures.Figure(figsize=(7, 3.6), dpi=110)
    draw_panel(figure.add_axes((0.1, 0.14, 0.87, 0.77)), panel, names, rows)
    return png(figure)


def _points(panel: Panel, name: str, rows: Sequence[Row]) -> list[tuple[int, float]]:
    """Steps and values that can be drawn; zero has no place on a logarithmic axis."""
    return [(row["step"], row[name] * panel.scale) for row in rows if _finite(row.get(name)) and not (panel.log and row[name] <= 0)]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means of the last ``SMOOTH`` values."""
    return [math.fsum(values[max(0, place - SMOOTH + 1) : place + 1]) / min(place + 1, SMOOTH) for place in range(len(values))]


def _label(panel: Panel, name: str) -> str:
    prefixes = [column[:-1] for column in panel.columns if column.endswith("*")]
    short = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
    return NAMES.get(name, short.replace("_", " ") if short != "loss" else "total" if len(panel.columns) > 1 else short)


def thinned(rows: Sequence[Any], most: int = 2000) -> Sequence[Any]:
    """At most ``most`` entries, evenly taken; a screen shows no more."""
    return rows[:: max(1, math.ceil(len(rows) / most))]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
