"""Keeps the books of a run: metrics.jsonl, trackers, figures, the monitor's warnings, progress. Lives on rank 0 only.

Nothing here is state: a resumed run rebuilds it from the rows on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dinodomain.engine.folder import FIGURES, METRICS
from dinodomain.engine.log import MetricsFile, Row, Tracker, format_row, logger, scalars, steps, truncate_rows
from dinodomain.engine.monitor import Monitor
from dinodomain.engine.plan import EnginePlan
from dinodomain.show.curves import draw_curves

SHOWN = ("loss", "lr", "teacher_entropy", "feature_std", "samples_per_s", "data_wait")
"""Columns of a plain log line."""


class Recorder:
    """Writes what each step measured.

    Args:
        out: Run folder.
        plan: How often lines and figures come.
        first_step: Step the run begins or goes on with; rows at or beyond it are dropped.
        trackers: Where scalars go besides the metrics file.
    """

    def __init__(self, out: Path, plan: EnginePlan, *, first_step: int, trackers: Sequence[Tracker] = ()) -> None:
        kept = truncate_rows(out / METRICS, first_step)
        self._out, self._plan, self._trackers = out, plan, tuple(trackers)
        self._metrics = MetricsFile(out / METRICS)
        self._rows = Thinned(kept)
        self._monitor = Monitor(kept)
        self._progress = Progress(plan.steps, first_step)

    def write(self, row: Row) -> None:
        """Takes the row of one step."""
        self._metrics.write(row)
        self._rows.add(row)
        for tracker in self._trackers:
            tracker.log(int(row["step"]), scalars(row))
        if row["skipped"]:
            logger.warning("step %d gave NaN or Inf and was skipped; weights, teacher and centres are unchanged", row["step"])
        for text in self._monitor.observe(row):
            logger.warning("%s", text)
        done = int(row["step"]) + 1
        self._progress.advance(row)
        if done % self._plan.log_every == 0 or done == self._plan.steps:
            steps.info("%s%s", format_row(row, SHOWN), self._progress.remaining())
        if done % self._plan.figures_every == 0:
            self.draw()

    def sync(self) -> None:
        """Makes the rows durable before a checkpoint that counts on them."""
        self._metrics.sync()

    def draw(self) -> None:
        """Draws the figures anew."""
        draw_curves(self._rows.held, self._out / FIGURES)

    def close(self) -> None:
        """Draws the last figures and closes everything."""
        self.draw()
        self._metrics.close()
        self._progress.close()
        for tracker in self._trackers:
            tracker.close()


class Thinned:
    """Rows for figures, at most twice ``most``: every second one goes when there are too many, so a long run costs no more memory."""

    def __init__(self, rows: Iterable[Row], most: int = 2000) -> None:
        self.held: list[Row] = []
        self._most, self._stride, self._seen = most, 1, 0
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Takes a row, or passes it over."""
        if self._seen % self._stride == 0:
            self.held.append(row)
        self._seen += 1
        if len(self.held) >= 2 * self._most:
            self.held = self.held[::2]
            self._stride *= 2


class Progress:
    """A bar with ETA on a terminal; elsewhere only the plain lines of the log."""

    def __init__(self, total: int, first: int) -> None:
        self._bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True, disable=not on_terminal())
        self._left, self._pace = total - first, 0.0

    def advance(self, row: Mapping[str, Any]) -> None:
        """One step is done."""
        self._left -= 1
        seconds = float(row["seconds"])
        self._pace = seconds if self._pace == 0.0 else 0.9 * self._pace + 0.1 * seconds
        self._bar.set_postfix(loss=row["loss"], wait=f"{row['data_wait']:.3f}s", refresh=False)
        self._bar.update()

    def remaining(self) -> str:
        """``, 12 min left`` at the present pace; empty at the end."""
        seconds = self._left * self._pace
        if self._left <= 0:
            return ""
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def on_terminal() -> bool:
    """Whether progress goes to a person's terminal."""
    return sys.stderr.isatty()
