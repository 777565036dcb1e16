"""What a checkpoint holds and how its folder is laid out, format 1.

``RUN/checkpoints/step-000123/`` holds one safetensors file per part and ``state.json``; 123 is the number of finished steps, so
it is also the index of the next one. ``RUN/checkpoints/latest`` names the newest whole folder and is moved last. This file
neither reads nor writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dinodomain.errors import UserError

FORMAT = 1
FOLDER, POINTER, STATE = "checkpoints", "latest", "state.json"
PARTS = ("student", "teacher", "objective", "optimizer")

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """When a run saves, and how much of it is kept.

    Attributes:
        every: Steps between two checkpoints; the last step and an interrupted one are always saved.
        keep: How many of the newest checkpoints stay on disk.
    """

    every: int = 200
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError("checkpoint.every", f"is {self.every}", allowed="1 or more steps")
        if self.keep < 1:
            raise UserError("checkpoint.keep", f"is {self.keep}", allowed="1 or more; 2 or more survive a damaged disk block")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: Number of finished steps.
        tensors: Part name (``student``, ``teacher``, ``objective``, ``optimizer``) to tensors by name.
        plan: The resolved plan, as plain values.
        loader: What ``Loader.state_dict`` gave.
        backbone: The spec from which the backbone is built again.
        counters: Small numbers that are state (skipped steps in a row and in all).
        lineage: The record of what shaped these weights.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    plan: Mapping[str, Json] = field(default_factory=dict)
    loader: Mapping[str, Json] = field(default_factory=dict)
    backbone: Mapping[str, Json] = field(default_factory=dict)
    counters: Mapping[str, Json] = field(default_factory=dict)
    lineage: Mapping[str, Json] = field(default_factory=dict)


class BrokenCheckpoint(UserError):
    """A checkpoint folder is incomplete or damaged; an older one may still be whole."""


def folder_name(step: int) -> str:
    """``step-000123``: sorts by name and by number up to a million steps."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int | None:
    """The number in ``step-000123``; None for any other name, temporary ones included."""
    prefix, _, number = folder.name.partition("-")
    return int(number) if prefix == "step" and number.isdecimal() else None


def checkpoint_folders(run: Path) -> list[Path]:
    """All finished checkpoint folders of a run, newest first; whether they are whole is not checked."""
    root = run / FOLDER
    found = [(step, folder) for folder in root.iterdir() if (step := step_of(folder)) is not None] if root.is_dir() else []
    return [folder for _, folder in sorted(found, reverse=True)]


def latest(run: Path) -> Path | None:
    """The folder the pointer names, else the newest one, else None."""
    folders = checkpoint_folders(run)
    pointer = run / FOLDER / POINTER
    named = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""
    by_name = {folder.name: folder for folder in folders}
    return by_name.get(named, folders[0] if folders else None)
