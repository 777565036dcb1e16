"""Backbones that a run keeps beside its checkpoints: at log-spaced steps, and the one that watched best. Names, steps and choice.

``RUN/backbones/step-000123.safetensors``, ``best.safetensors`` with ``best.json``, and ``start.safetensors`` where a run began with given
weights. All are exported files: ``load_backbone`` reads them, ``origin`` tells their lineage with the samples that were drawn until then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from dinodomain import lineage
from dinodomain.checkpoint.backbone import digest_of, write_backbone
from dinodomain.checkpoint.save import refused
from dinodomain.checkpoint.state import folder_name, step_of

BACKBONES: Final = "backbones"
"""Folder below a run."""

LABELLED, LABEL_FREE = "watch_knn", "watch_rankme"
"""What the best backbone is best by: accuracy of nearest neighbours where labels are watched, else the rank of its features (Garrido
2023), which falls when a run collapses; the share of tiles that find their own second crop rises even then (experiments.md)."""

_BEST: Final = "best"
_SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class Best:
    """The best look so far.

    Attributes:
        step: Finished steps.
        value: Of ``measure``.
        measure: What was compared.
    """

    step: int
    value: float
    measure: str = LABEL_FREE


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A backbone to be written.

    Attributes:
        weights: ``state_dict()`` on the host; nobody else changes it.
        spec: Of the backbone.
        history: Lineage record.
    """

    weights: Mapping[str, Tensor]
    spec: Mapping[str, Any]
    history: Mapping[str, Any]


def spaced_steps(steps: int, count: int) -> tuple[int, ...]:
    """Steps after which a backbone is kept: each about half of the next, the last is the end of the run.

    Args:
        steps: Of the whole run.
        count: How many; fewer where the run is too short for so many halvings.

    Returns:
        Ascending numbers of finished steps, the same for every part of a run that was interrupted.
    """
    return tuple(sorted({max(1, round(steps / 2**halvings)) for halvings in range(count)}))


def better(before: Best | None, watched: Mapping[str, float], step: int) -> Best | None:
    """This look if it is the best so far, of equal ones the later; None if it is not, or did not measure it.

    A run that watches by another measure than before, because labels came or went, begins anew.
    """
    measure = LABELLED if LABELLED in watched else LABEL_FREE
    value = watched.get(measure, math.nan)
    if math.isnan(value) or (before is not None and before.measure == measure and value < before.value):
        return None
    return Best(step, value, measure)


def spaced_path(run: Path, step: int) -> Path:
    """Where the backbone after ``step`` steps lies."""
    return run / BACKBONES / f"{folder_name(step)}{_SUFFIX}"


def best_path(run: Path) -> Path:
    """Where the best backbone lies."""
    return run / BACKBONES / f"{_BEST}{_SUFFIX}"


def list_backbones(run: Path) -> dict[str, Path]:
    """Files by name (``step-000123``, ``best``, ``start``), steps in order and first."""
    paths = {path.stem: path for path in (run / BACKBONES).glob(f"[!.]*{_SUFFIX}")}
    return dict(sorted(paths.items(), key=lambda item: (step_of(Path(item[0])) is None, step_of(Path(item[0])) or 0, item[0])))


def write_kept(path: Path, kept: Kept, best: Best | None = None) -> None:
    """Writes a backbone, and beside the best one why it is.

    Raises:
        UserError: The disk refuses; a file of that name that was there is untouched.
    """
    try:
        digest = write_backbone(path, kept.weights, kept.spec, kept.history)
        if best is not None:
            lineage.write_json(
                path.with_suffix(".json"), {"step": best.step, "measure": best.measure, "value": best.value, "weights": digest}
            )
    except OSError as error:
        needed = sum(tensor.nbytes for tensor in kept.weights.values())
        raise refused(path.parent, path.name, error, needed=needed) from error


def read_best(run: Path) -> dict[str, Any] | None:
    """Step, measure and value of the best backbone; None where there is none.

    A process that was killed between the two files leaves a note that is of other weights: it is not believed.
    """
    path = best_path(run)
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return None
    note: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return note if note.get("weights") == digest_of(path) else None


def put_back_best(run: Path, checkpoint: Path) -> None:
    """Makes the best backbone that of a checkpoint again: a better one that a run found after it belongs to steps that are lost.

    Args:
        run: Run folder.
        checkpoint: The checkpoint that the run goes on from.
    """
    path, kept = best_path(run), checkpoint / best_path(run).name
    note = path.with_suffix(".json")
    if not kept.is_file():
        note.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    lineage.write_bytes(path, kept.read_bytes())
    lineage.write_bytes(note, (checkpoint / note.name).read_bytes())


def best_files(run: Path) -> dict[str, Path]:
    """The best backbone and its note, to be kept with a checkpoint; empty where there is none."""
    path = best_path(run)
    return {one.name: one for one in (path, path.with_suffix(".json"))} if path.is_file() else {}


def remove_leftovers(run: Path) -> None:
    """Removes what a killed process began to write into the run folder and among its backbones; saves look after their own."""
    for folder in (run, run / BACKBONES):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
