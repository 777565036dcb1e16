"""The curves of a run: losses, teacher entropy, feature std, learning rate. Takes metrics rows, writes PNG files.

matplotlib is used through its object interface on the Agg canvas, so that no display and no global state is touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinodomain import lineage
from dinodomain.errors import require

Row = Mapping[str, Any]

PANELS: Mapping[str, tuple[str, str]] = {
    "loss": ("loss", "nats"),
    "entropy": ("teacher entropy and KL to uniform", "nats"),
    "feature_std": ("feature std", "of L2-normalised features"),
    "lr": ("learning rate", ""),
    "gradients": ("gradient norms before clipping", ""),
}
"""File stem to title and axis label."""

_FIXED = {"entropy": ("teacher_entropy", "kl_to_uniform"), "feature_std": ("feature_std",), "lr": ("lr",)}


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
    for stem in PANELS:
        names = [name for name in _names(stem, rows[-1]) if any(_finite(row.get(name)) for row in rows)]
        if names:
            lineage.write_bytes(folder / f"{stem}.png", _panel(stem, names, rows))
            files.append(folder / f"{stem}.png")
    return files


def _names(stem: str, row: Row) -> tuple[str, ...]:
    """Columns of a panel; loss parts and sub-modules are whatever the run has."""
    if stem == "loss":
        return ("loss", *sorted(name for name in row if name.startswith("loss_")))
    if stem == "gradients":
        return tuple(sorted(name for name in row if name.startswith("grad_norm")))
    return _FIXED[stem]


def _panel(stem: str, names: Sequence[str], rows: Sequence[Row]) -> bytes:
    figures = require("matplotlib.figure", extra="dev", wanted_by="figures")
    title, unit = PANELS[stem]
    figure = figures.Figure(figsize=(7, 3.6), dpi=110)
    axes = figure.add_axes((0.1, 0.14, 0.87, 0.77))
    for name in names:
        points = [(row["step"], row[name]) for row in _thinned(rows) if _finite(row.get(name))]
        axes.plot(*zip(*points), label=name, linewidth=1.2)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    for row in rows:
        if row.get("skipped"):
            axes.axvline(row["step"], color="red", alpha=0.4, linewidth=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _thinned(rows: Sequence[Row], most: int = 2000) -> Sequence[Row]:
    """At most ``most`` rows, evenly taken; a screen shows no more."""
    return rows[:: max(1, math.ceil(len(rows) / most))]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
