"""What a probe found: scores of the pretrained features beside an untrained encoder and plain pixels, always together.

Plain values only; drawn as text, JSON or (through ``show``) a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dinodomain.lineage import Json, to_json, write_bytes, write_json
from dinodomain.probes.scores import Interval
from dinodomain.show.probes import draw_scores

LABELS = {"pretrained": "pretrained", "random_init": "untrained encoder", "pixels": "pixels", "warm_start": "warm start"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One kind of features under one kind of probe.

    Attributes:
        features: ``pretrained``, ``random_init``, ``pixels`` or ``warm_start``.
        probe: ``knn`` or ``linear``.
        metrics: Interval per metric, headline first.
        per_fold: Headline metric on each fold's held-out rows, mean over seeds; None where a fold lacks a class.
    """

    features: str
    probe: str
    metrics: Mapping[str, Interval]
    per_fold: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Pretrained minus baseline on the headline metric, in the same bootstrap draws.

    Attributes:
        probe: ``knn`` or ``linear``.
        baseline: ``random_init``, ``pixels`` or ``warm_start``.
        interval: The difference; an interval above 0 says that pretraining helped.
    """

    probe: str
    baseline: str
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Everything a reader needs to judge the scores.

    Attributes:
        target: Column that was predicted.
        task: ``classify`` or ``regress``.
        headline: Metric of the differences and per-fold scores.
        classes: Rows per class, empty for regression.
        num_images: Rows used.
        num_units: Units they belong to.
        num_folds: Folds, by unit.
        labels_per_class: Labels per class the probe was fitted on, or None for all of the training folds.
        seeds: Seeds of folds and draws; predictions of all are scored and averaged.
        left_out: Reason to number of rows that were not used.
        scores: One per features and probe.
        differences: One per probe and baseline.
        notes: What limits the numbers.
        notice: Stands above everything, for example that the data are made up.
    """

    target: str
    task: str
    headline: str
    classes: Mapping[str, int]
    num_images: int
    num_units: int
    num_folds: int
    labels_per_class: int | None
    seeds: tuple[int, ...]
    left_out: Mapping[str, int]
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    notice: str = ""

    def as_json(self) -> dict[str, Json]:
        """Plain values."""
        body: dict[str, Json] = to_json(self)
        return body

    def score(self, features: str, probe: str) -> Score:
        """The entry of these features under this probe."""
        return next(item for item in self.scores if (item.features, item.probe) == (features, probe))

    def text(self) -> str:
        """A table for the terminal."""
        metrics = tuple(self.scores[0].metrics)
        rows = [("probe", "features", *metrics)]
        rows += [
            (item.probe, LABELS.get(item.features, item.features), *(str(item.metrics[name]) for name in metrics)) for item in self.scores
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*([self.notice] if self.notice else []), self._head(), *lines, *self._tail()])

    def _head(self) -> str:
        labels = "all labels" if self.labels_per_class is None else f"{self.labels_per_class} labels per class"
        size = f"{self.num_images} images of {self.num_units} units"
        return f"{self.target}: {size}, {self.num_folds} folds by unit, {labels}, {len(self.seeds)} seed(s)"

    def _tail(self) -> list[str]:
        lines = [f"{item.probe}: pretrained - {LABELS[item.baseline]} = {item.interval} {self.headline}" for item in self.differences]
        lines += [f"left out: {count} rows, {reason}" for reason, count in self.left_out.items()]
        return lines + [f"note: {note}" for note in self.notes]

    def save(self, folder: Path) -> None:
        """Writes ``probe.json``, ``probe.txt`` and ``probe.png``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "probe.json", self.as_json())
        write_bytes(folder / "probe.txt", (self.text() + "\n").encode())
        draw_scores(self.as_json(), LABELS, folder / "probe.png")
