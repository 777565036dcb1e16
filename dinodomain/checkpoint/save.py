"""Writes a checkpoint whole or not at all: temporary folder, fsync of every file, rename, pointer last, then old ones go.

One process writes one run; the engine calls this on rank 0 only. Nothing here reads a checkpoint back.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dinodomain import lineage
from dinodomain.checkpoint.state import FOLDER, FORMAT, POINTER, STATE, TrainState, checkpoint_folders, folder_name, step_of
from dinodomain.errors import UserError


def save_checkpoint(run: Path, state: TrainState, *, keep: int = 3, beside: Mapping[str, Path] | None = None) -> Path:
    """Saves under ``run/checkpoints``, replacing a checkpoint of the same step, and removes the oldest beyond ``keep``.

    Args:
        run: Run folder; made if absent.
        state: What to save.
        keep: Number of newest checkpoints that stay, this one included.
        beside: Files to keep with it, by name: linked where the disk can, so that they take no space while they are the same.

    Returns:
        The finished folder.

    Raises:
        UserError: The disk refuses (full, read-only); what was saved before is untouched.
    """
    root = run / FOLDER
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        target = _write_folder(root, state, beside or {})
        lineage.write_bytes(root / POINTER, f"{target.name}\n".encode())
    except OSError as error:
        raise refused(root, f"step {state.step}", error, needed=state.nbytes) from error
    prune(run, keep=keep, newest=state.step)
    return target


def refused(folder: Path, what: str, error: OSError, *, needed: int) -> UserError:
    """What to tell when the disk refuses to take a file.

    Args:
        folder: Where it was to go.
        what: What was to be saved.
        error: What the system said.
        needed: Bytes that it takes.
    """
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    said = error.strerror or str(error)
    remedy = "make the folder writable again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said += f" ({needed / 2**20:.1f} MiB are needed, {shutil.disk_usage(there).free / 2**20:.1f} MiB are free)"
        remedy = "free that much, or lower checkpoint.keep (one checkpoint more than that lies there while the next is written)"
    remedy += ", then run again if the run has ended: resume=auto goes on from the last whole checkpoint"
    return UserError(str(folder), f"cannot save {what}: {said}", remedy=remedy)


def io_error(error: SafetensorError) -> OSError:
    """What safetensors says of a disk that refuses, as the error of the system that it was."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def prune(run: Path, *, keep: int, newest: int) -> None:
    """Removes all but the ``keep`` newest checkpoints up to step ``newest``; later ones belong to an abandoned future and go too."""
    root = run / FOLDER
    _remove_leftovers(root)
    folders = checkpoint_folders(run)
    past = [folder for folder in folders if (step_of(folder) or 0) <= newest]
    for folder in folders:
        if folder not in past[:keep]:
            os.rename(folder, root / f".{folder.name}.old")  # else a kill would leave a name that looks whole but is not
    _remove_leftovers(root)


def _write_folder(root: Path, state: TrainState, beside: Mapping[str, Path]) -> Path:
    target = root / folder_name(state.step)
    temporary = root / f".{target.name}.tmp"
    temporary.mkdir()
    try:
        files = {f"{part}.safetensors": _write_tensors(temporary / f"{part}.safetensors", held) for part, held in state.tensors.items()}
        files |= {name: _link(path, temporary / name) for name, path in beside.items()}
        lineage.write_json(temporary / STATE, _body(state, files, sorted(beside)))
        if target.exists():
            # Set aside, not deleted: a kill between the two renames must leave no name that looks whole but is not.
            os.rename(target, root / f".{target.name}.old")
        os.rename(temporary, target)
    finally:
        _remove_leftovers(root)
    lineage.sync_folder(root)
    return target


def _body(state: TrainState, files: Mapping[str, Mapping[str, object]], beside: Sequence[str]) -> dict[str, object]:
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
            "extra": state.extra,
            "files": files,
            "beside": beside,
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
    try:
        safetensors.torch.save_file(held, path)
    except SafetensorError as error:
        raise io_error(error) from error
    return _facts(path)


def _link(source: Path, path: Path) -> dict[str, object]:
    """The same file under a second name; a copy where the disk has no such thing."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
    return _facts(path)


def _facts(path: Path) -> dict[str, object]:
    """Size and digest of a file that is durable now."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
    return {"bytes": path.stat().st_size, "sha256": lineage.digest_file(path)}


def _remove_leftovers(root: Path) -> None:
    """Removes what a killed save left behind."""
    for leftover in [*root.glob(".step-*.tmp"), *root.glob(".step-*.old")]:
        shutil.rmtree(leftover)
    for pointer in root.glob(f".{POINTER}.*.tmp"):
        pointer.unlink()
