"""Writes a checkpoint whole or not at all: temporary folder, fsync of every file, rename, pointer last, then old ones go.

One process writes one run; the engine calls this on rank 0 only. Nothing here reads a checkpoint back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from dinodomain import lineage
from dinodomain.checkpoint.state import FOLDER, FORMAT, POINTER, STATE, TrainState, checkpoint_folders, folder_name, step_of
from dinodomain.errors import UserError


def save_checkpoint(run: Path, state: TrainState, *, keep: int = 3) -> Path:
    """Saves under ``run/checkpoints``, replacing a checkpoint of the same step, and removes the oldest beyond ``keep``.

    Args:
        run: Run folder; made if absent.
        state: What to save.
        keep: Number of newest checkpoints that stay, this one included.

    Returns:
        The finished folder.

    Raises:
        UserError: The disk refuses (full, read-only); what was saved before is untouched.
    """
    root = run / FOLDER
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        target = _write_folder(root, state)
        lineage.write_bytes(root / POINTER, f"{target.name}\n".encode())
    except OSError as error:
        raise UserError(
            str(root),
            f"cannot save step {state.step}: {error.strerror or error}",
            remedy="free some space or lower checkpoint.keep, then run again: resume=auto goes on from the last whole checkpoint",
        ) from error
    prune(run, keep=keep, newest=state.step)
    return target


def prune(run: Path, *, keep: int, newest: int) -> None:
    """Removes all but the ``keep`` newest checkpoints up to step ``newest``; later ones belong to an abandoned future and go too."""
    folders = checkpoint_folders(run)
    past = [folder for folder in folders if (step_of(folder) or 0) <= newest]
    for folder in folders:
        if folder not in past[:keep]:
            shutil.rmtree(folder)


def _write_folder(root: Path, state: TrainState) -> Path:
    target = root / folder_name(state.step)
    temporary = root / f".{target.name}.tmp"
    temporary.mkdir()
    try:
        files = {f"{part}.safetensors": _write_tensors(temporary / f"{part}.safetensors", held) for part, held in state.tensors.items()}
        lineage.write_json(temporary / STATE, _body(state, files))
        if target.exists():
            # Set aside, not deleted: a kill between the two renames must leave no name that looks whole but is not.
            os.rename(target, root / f".{target.name}.old")
        os.rename(temporary, target)
    finally:
        _remove_leftovers(root)
    lineage.sync_folder(root)
    return target


def _body(state: TrainState, files: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    body: dict[str, object] = lineage.to_json(
        {
            "format": FORMAT,
            "step": state.step,
            "plan": state.plan,
            "plan_digest": lineage.digest(state.plan),
            "loader": state.loader,
            "backbone": state.backbone,
            "counters": state.counters,
            "lineage": state.lineage,
            "files": files,
        }
    )
    return {**body, "digest": lineage.digest(body)}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Writes one safetensors file; returns its size and digest."""
    # clone() only where two names share memory, which safetensors refuses: a checkpoint never relies on aliasing.
    seen: set[int] = set()
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        address = host.untyped_storage().data_ptr()
        held[name] = host.clone() if address in seen or host.untyped_storage().nbytes() != host.nbytes else host
        seen.add(address)
    safetensors.torch.save_file(held, path)
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
    return {"bytes": path.stat().st_size, "sha256": lineage.digest_file(path)}


def _remove_leftovers(root: Path) -> None:
    """Removes what a killed save left behind."""
    for leftover in [*root.glob(".step-*.tmp"), *root.glob(".step-*.old")]:
        shutil.rmtree(leftover)
