"""What a checkpoint holds and how its folder is laid out, format 2.

``RUN/checkpoints/step-000123/`` holds one safetensors file per part and ``state.json``; 123 is the number of finished steps, so
it is also the index of the next one. ``RUN/checkpoints/latest`` names the newest whole folder and is moved last. This file
neither reads nor writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dinodomain.errors import UserError

FORMAT = 2
"""2 added ``extra`` (plain state of parts beside the networks) and ``beside`` (files that are no part of the state)."""

FOLDER, POINTER, STATE = "checkpoints", "latest", "state.json"

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """When a run saves, and how much of it is kept.

    Attributes:
        every: Steps between two checkpoints; the last step and an interrupted one are always saved.
        keep: How many of the newest checkpoints stay on disk.
        best: Keep the backbone that watched best, too, as ``backbones/best.safetensors``.
        spaced: How many backbones are kept, each after about twice the steps of the one before and the last at the end, as
            ``backbones/step-N.safetensors``: from these the audit tells how results grow with training. 0 keeps none.
        background: Write checkpoints beside training instead of waiting for the disk.
    """

    every: int = 200
    keep: int = 3
    best: bool = True
    spaced: int = 8
    background: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError("checkpoint.every", f"is {self.every}", allowed="1 or more steps")
        if self.spaced < 0:
            raise UserError("checkpoint.spaced", f"is {self.spaced}", allowed="0 or more")
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
        extra: Plain state of further parts by name, see ``with_part``.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    plan: Mapping[str, Json] = field(default_factory=dict)
    loader: Mapping[str, Json] = field(default_factory=dict)
    backbone: Mapping[str, Json] = field(default_factory=dict)
    counters: Mapping[str, Json] = field(default_factory=dict)
    lineage: Mapping[str, Json] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of all tensors, which is that of the checkpoint on disk but for a few kilobytes."""
        return sum(tensor.nbytes for part in self.tensors.values() for tensor in part.values())


class Stateful(Protocol):
    """A part of a run beside the networks that has something to remember."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and plain values by name."""
        ...


def with_part(state: TrainState, name: str, part: Mapping[str, Any]) -> TrainState:
    """The state with what a further part remembers: its tensors as a file of their own, all else in ``state.json``."""
    assert name not in state.extra, f"there is a part {name!r} already"
    tensors = {key: value for key, value in part.items() if isinstance(value, Tensor)}
    plain = {key: value for key, value in part.items() if key not in tensors}
    held = {**state.tensors, name: tensors} if tensors else state.tensors
    return replace(state, tensors=held, extra={**state.extra, name: plain})


def part_of(state: TrainState, name: str) -> dict[str, Any] | None:
    """What a part remembered; None where the checkpoint does not know it (an older one, or one of a run without it)."""
    return {**state.tensors.get(name, {}), **state.extra[name]} if name in state.extra else None


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
