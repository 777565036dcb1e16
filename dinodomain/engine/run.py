"""A run on disk, seen from outside: its plan, its numbers, its figures and the backbone it made. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinodomain.checkpoint import BACKBONES, latest, list_backbones, load_backbone, read_best
from dinodomain.checkpoint.state import step_of
from dinodomain.engine.folder import FIGURES, LINEAGE, METRICS, PLAN
from dinodomain.engine.log import read_plan, read_rows
from dinodomain.engine.monitor import diagnose
from dinodomain.errors import UserError
from dinodomain.model import Backbone


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def plan(self) -> Mapping[str, Any]:
        """The resolved plan, as plain values."""
        return read_plan(self.path / PLAN)

    @property
    def lineage(self) -> Mapping[str, Any]:
        """What shaped this run: store, plan, units drawn."""
        record: dict[str, Any] = json.loads((self.path / LINEAGE).read_text(encoding="utf-8"))
        return record

    @property
    def step(self) -> int:
        """Finished steps in the newest checkpoint; 0 where there is none."""
        folder = latest(self.path)
        return (step_of(folder) or 0) if folder is not None else 0

    @property
    def finished(self) -> bool:
        """Whether all planned steps are done."""
        return self.step >= int(self.plan["engine"]["steps"])

    @property
    def figures(self) -> tuple[Path, ...]:
        """The figures drawn so far."""
        return tuple(sorted((self.path / FIGURES).glob("*.png")))

    @property
    def backbones(self) -> Mapping[str, Path]:
        """Backbones that the run kept beside its checkpoints, by name (``step-000123`` ..., ``best``, ``start``); see ``load_backbone``."""
        return list_backbones(self.path)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """``step``, ``measure`` and ``value`` of ``backbones["best"]``; None where none was chosen."""
        return read_best(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """One row per step, oldest first."""
        return read_rows(self.path / METRICS)

    def backbone(self) -> Backbone:
        """The teacher's backbone of the newest whole checkpoint, in evaluation mode."""
        return load_backbone(self.path)

    def diagnosis(self) -> list[str]:
        """Plain-language findings on how the run went; empty when nothing is wrong."""
        return diagnose(self.metrics(), self.plan)

    def text(self) -> str:
        """What the command prints: how far, how it went, where things lie."""
        rows = self.metrics()
        loss = f", loss {rows[-1]['loss']:.4g}" if rows and rows[-1]["loss"] is not None else ""
        lines = [f"{self.step} of {self.plan['engine']['steps']} steps{loss}", *(f"note: {finding}" for finding in self.diagnosis())]
        places = {
            "run": self.path, "checkpoint": latest(self.path), "backbones": self._kept(), "figures": self.path / FIGURES,
            "metrics": self.path / METRICS,
        }  # fmt: skip
        return "\n".join([*lines, *(f"{name}: {place}" for name, place in places.items() if place is not None)])

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        rows = self.metrics()
        return {
            "run": str(self.path), "checkpoint": str(latest(self.path) or ""), "step": self.step, "finished": self.finished,
            "loss": rows[-1]["loss"] if rows else None, "figures": [str(figure) for figure in self.figures], "findings": self.diagnosis(),
            "backbones": {name: str(path) for name, path in self.backbones.items()}, "best": self.best,
        }  # fmt: skip

    def _kept(self) -> str | None:
        """Where backbones lie, how many, and which was best."""
        if not self.backbones:
            return None
        best = self.best
        said = "" if best is None else f"; best after step {best['step'] - 1}: {best['measure']} {best['value']:.4g}"
        return f"{self.path / BACKBONES} ({len(self.backbones)}{said})"


def open_run(path: Path | str) -> Run:
    """Opens a run folder.

    Raises:
        UserError: It holds no run.
    """
    folder = Path(path)
    if not (folder / PLAN).is_file():
        raise UserError("run", f"{folder} holds no {PLAN}", allowed="a folder that dinodomain pretrain wrote")
    return Run(folder)
