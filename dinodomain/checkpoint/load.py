"""Reads a checkpoint: format, digests, names and shapes are checked before anything is used; nothing is unpickled.

A damaged newest checkpoint of a run is passed over for the one before it, and the caller is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dinodomain import lineage
from dinodomain.checkpoint.migrate import migrate
from dinodomain.checkpoint.state import FOLDER, STATE, BrokenCheckpoint, TrainState, checkpoint_folders, latest
from dinodomain.errors import UserError
from dinodomain.parallel import fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A checkpoint and where it came from.

    Attributes:
        state: Tensors on the host, state as saved.
        folder: The folder that was read.
        notes: One line per newer checkpoint that was passed over, and why; empty as a rule.
    """

    state: TrainState
    folder: Path
    notes: tuple[str, ...] = ()


def load_checkpoint(path: Path) -> Loaded:
    """Loads one checkpoint folder, or the newest whole one of a run folder.

    Args:
        path: ``RUN`` or ``RUN/checkpoints/step-000123``.

    Raises:
        UserError: Nothing there, all damaged, or written by a newer version.
    """
    folder, body, notes = find_body(path)
    parts = [name.removesuffix(".safetensors") for name in body["files"] if name not in body["beside"]]
    return Loaded(state=_state(body, {part: read_part(folder, body, part) for part in parts}), folder=folder, notes=notes)


def find_body(path: Path) -> tuple[Path, dict[str, Any], tuple[str, ...]]:
    """The checked ``state.json`` of a checkpoint folder, or of the newest whole one of a run, with notes on those passed over."""
    if not (path / FOLDER).is_dir():
        return path, read_body(path), ()
    notes: list[str] = []
    for folder in _candidates(path):
        try:
            return folder, read_body(folder), tuple(notes)
        except BrokenCheckpoint as error:
            notes.append(f"passed over a damaged checkpoint: {error}")
    reason = "; ".join(notes) or "holds no checkpoint"
    raise UserError(str(path), reason, remedy="start again in an empty folder, or give the folder of a whole checkpoint")


def read_body(folder: Path) -> dict[str, Any]:
    """``state.json`` in the present format, after its own digest and those of all files were checked.

    Raises:
        BrokenCheckpoint: Absent, truncated or damaged.
        UserError: Of a newer format.
    """
    path = folder / STATE
    body = _parse(path)
    body = migrate(body, str(path))
    for name, facts in body["files"].items():
        _check_file(folder / name, facts)
    return body


def read_part(folder: Path, body: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """Tensors of one part, on the host."""
    path = folder / f"{part}.safetensors"
    if path.name not in body["files"]:
        raise BrokenCheckpoint(str(path), "is not listed in state.json", allowed=", ".join(sorted(body["files"])))
    return read_tensors(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the host.

    Raises:
        BrokenCheckpoint: It is absent or not a safetensors file.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(str(path), f"cannot be read as safetensors ({error})", remedy="copy or export it again") from error
    return tensors


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Copies tensors into a module's parameters and buffers in place; names and shapes must match exactly.

    Raises:
        UserError: They do not; names the first few that differ.
    """
    own = module.state_dict(keep_vars=True)
    check_same(own, tensors, place)
    for name, tensor in own.items():
        fill(tensor.data, tensors[name])


def check_same(own: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> None:
    """Refuses tensors whose names or shapes differ from a module's own."""
    problems = [f"lacks {name!r}" for name in own if name not in found]
    problems += [f"has unknown {name!r}" for name in found if name not in own]
    problems += [
        f"{name!r} is {tuple(found[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in found and own[name].shape != found[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(place, "; ".join(problems[:4]) + more, remedy="build the model with the plan saved beside these weights")


def _candidates(run: Path) -> list[Path]:
    """The pointed-to checkpoint, then older ones; a folder newer than the pointer was never announced and comes last."""
    folders, first = checkpoint_folders(run), latest(run)
    if first is None:
        return []
    announced = folders.index(first)
    return folders[announced:] + folders[:announced]


def _parse(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise BrokenCheckpoint(str(path), what, allowed="a checkpoint folder, or a run folder that holds checkpoints/") from error
    if not isinstance(body, dict):
        raise BrokenCheckpoint(str(path), "is not a JSON object")
    said = body.pop("digest", None)
    if said != lineage.digest(body):
        raise BrokenCheckpoint(str(path), "does not match its own digest", remedy="use another checkpoint or copy it again")
    return body


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise BrokenCheckpoint(str(path), "is missing")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise BrokenCheckpoint(
            str(path), f"is {size} bytes, {facts['bytes']} were written", remedy="use another checkpoint or copy it again"
        )
    if lineage.digest_file(path) != facts["sha256"]:
        raise BrokenCheckpoint(str(path), "does not match its sha256 digest", remedy="use another checkpoint or copy it again")


def _state(body: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> TrainState:
    kept = ("step", "plan", "loader", "backbone", "counters", "lineage", "extra")
    return TrainState(tensors=tensors, **{name: body[name] for name in kept})
