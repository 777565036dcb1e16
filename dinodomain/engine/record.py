"""Keeps the books of a run: metrics.jsonl, trackers, figures, the monitor's warnings, progress. Lives on rank 0 only.

Nothing here is state: a resumed run rebuilds it from the rows on disk.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dinodomain.engine.folder import FIGURES, METRICS
from dinodomain.engine.log import MetricsFile, Row, format_row, logger, scalars, steps, truncate_rows
from dinodomain.engine.monitor import Monitor
from dinodomain.engine.plan import EnginePlan
from dinodomain.engine.trackers import Tracker
from dinodomain.show.curves import draw_curves

SHOWN = ("loss", "lr", "teacher_entropy", "feature_std", "samples_per_s", "watch_knn", "watch_knn_own", "watch_rankme", "watch_dense_match")
"""Columns of a plain log line; a look at the teacher stands in the rows that have one."""

REST = 50
"""Times as long as a set of figures took to draw, no other is begun."""

WATCHED: Mapping[str, str] = {
    "watch_knn": "knn", "watch_knn_own": "own crop", "watch_rankme": "rank", "watch_dense_match": "dense",
}  # fmt: skip
"""Columns of a look at the teacher, and what the bar calls them; it shows the newest."""


class Recorder:
    """Writes what each step measured.

    Args:
        out: Run folder.
        plan: How often lines and figures come.
        first_step: Step the run begins or goes on with; rows at or beyond it are dropped.
        trackers: Where scalars and figures go besides the run folder.
        whole: The whole plan as plain values, by which warnings name causes better; may be empty.
    """

    def __init__(
        self, out: Path, plan: EnginePlan, *, first_step: int, trackers: Sequence[Tracker] = (), whole: Mapping[str, Any] | None = None
    ) -> None:
        kept = truncate_rows(out / METRICS, first_step)
        self._out, self._plan, self._trackers = out, plan, tuple(trackers)
        self._metrics = MetricsFile(out / METRICS)
        self._rows = Thinned(kept)
        self._monitor = Monitor(kept, whole or {})
        self._progress = Progress(plan.steps, first_step)
        self._artist = Artist(out / FIGURES)

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
            self._artist.start(self._rows.held, done)
        self._hand_out(self._artist.finished())

    def sync(self) -> None:
        """Makes the rows durable before a checkpoint that counts on them."""
        self._metrics.sync()

    def close(self) -> None:
        """Draws the last figures and closes everything."""
        self._hand_out(self._artist.last(self._rows.held))
        self._metrics.close()
        self._progress.close()
        for tracker in self._trackers:
            tracker.close()

    def _hand_out(self, drawn: tuple[int, Sequence[Path]] | None) -> None:
        """Trackers get figures in this thread: not all of them may be called from another."""
        for tracker in self._trackers if drawn is not None and drawn[1] else ():
            tracker.figures(*drawn)  # type: ignore[misc]  # not None where the loop runs


class Artist:
    """Draws figures beside training, one set at a time; a set that is due while another is drawn, or soon after, is left to the next.

    Drawing shares processors and the interpreter with training, so that it may take a fiftieth of the time at most.

    What goes wrong is told once: figures are drawn from metrics.jsonl, which holds everything, and are not worth a run.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="figures")
        self._busy: Future[tuple[int, Sequence[Path]]] | None = None
        self._told, self._rest = False, 0.0

    def start(self, rows: Sequence[Row], done: int) -> None:
        """Begins to draw, unless a set is still being drawn.

        Args:
            rows: As they are now; copied.
            done: Finished steps.
        """
        if self._busy is None and time.perf_counter() >= self._rest:
            self._busy = self._pool.submit(self._draw, list(rows), done)

    def finished(self) -> tuple[int, Sequence[Path]] | None:
        """Steps and files of a set that is done since the last call; None otherwise."""
        if self._busy is None or not self._busy.done():
            return None
        busy, self._busy = self._busy, None
        return busy.result()

    def last(self, rows: Sequence[Row]) -> tuple[int, Sequence[Path]]:
        """Waits for what is being drawn, then draws the last set here."""
        self._pool.shutdown(wait=True)
        return self._draw(rows, int(rows[-1]["step"]) + 1 if rows else 0)

    def _draw(self, rows: Sequence[Row], done: int) -> tuple[int, Sequence[Path]]:
        started = time.perf_counter()
        try:
            return done, draw_curves(rows, self._folder)
        except Exception as error:
            if not self._told:
                logger.warning("figures were not drawn: %s", error)
            self._told = True
            return done, ()
        finally:
            ended = time.perf_counter()
            self._rest = ended + REST * (ended - started)


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
    """A bar with ETA, loss, speed, data-wait and the newest look at the teacher; elsewhere the plain lines of the log say the same."""

    def __init__(self, total: int, first: int) -> None:
        self._bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True, disable=not on_terminal())
        self._left, self._pace, self._waiting, self._rate = total - first, 0.0, 0.0, 0.0
        self._watched: dict[str, str] = {}

    def advance(self, row: Row) -> None:
        """One step is done."""
        first = self._pace == 0.0
        self._left -= 1
        seconds = float(row["seconds"])
        share = 1.0 if first else 0.1  # of the newest step
        self._pace += share * (seconds - self._pace)
        self._waiting += share * (float(row["data_wait"]) - self._waiting)
        self._rate += share * (float(row.get("samples_per_s") or 0.0) - self._rate)
        self._watched |= {title: f"{row[name]:.3g}" for name, title in WATCHED.items() if isinstance(row.get(name), (int, float))}
        loss = row["loss"]
        shown = {"loss": "nan" if loss is None else f"{loss:.4g}", "samples/s": f"{self._rate:.4g}", "wait": f"{self.waiting:.0%}"}
        self._bar.set_postfix({**shown, **self._watched}, refresh=False)
        self._bar.update()

    @property
    def waiting(self) -> float:
        """Share of the time in which training waits for data, lately."""
        return min(1.0, self._waiting / self._pace) if self._pace > 0 else 0.0

    def remaining(self) -> str:
        """``, data-wait 3 %, 12 min left`` at the present pace; without the end at the end."""
        seconds = self._left * self._pace
        waiting = f", data-wait {100 * self.waiting:.0f} %"
        return waiting if self._left <= 0 else f"{waiting}, {readable_time(seconds)} left"

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def readable_time(seconds: float) -> str:
    """A length of time for people: seconds, minutes, hours or days."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86400:.1f} days"


def on_terminal() -> bool:
    """Whether progress goes to a person's terminal."""
    return sys.stderr.isatty()
