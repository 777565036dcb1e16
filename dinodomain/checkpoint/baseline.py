"""The honest baseline of a warm start: the backbone as it was before its first step, which the run keeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dinodomain.checkpoint.state import FOLDER

START: Final = "backbones/start.safetensors"
"""Where a run folder keeps the backbone that it began with, adapted to the run's channels, axes and patches."""


def baseline_of(checkpoint: str | Path) -> Path | None:
    """The warm-start backbone of the run that a checkpoint belongs to; None where it began with fresh weights or the run is not there.

    Args:
        checkpoint: A run folder, one of its checkpoints, or one of its ``backbones/*.safetensors``; relative or not.
    """
    if not os.path.exists(checkpoint):  # the name of something on a hub belongs to no folder here
        return None
    path, run = Path(os.path.abspath(checkpoint)), run_of(checkpoint)
    if run is None or not (run / START).is_file() or (run / START).samefile(path):
        return None
    return run / START


def run_of(checkpoint: str | Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None where there is none.

    Args:
        checkpoint: As for ``baseline_of``.
    """
    path = Path(os.path.abspath(checkpoint))
    # As it was called first: a run's checkpoints may lie on another disk, behind a link.
    return _run_of(path) or _run_of(path.resolve())


def _run_of(path: Path) -> Path | None:
    """The innermost run folder that holds this; a run may lie within another."""
    return next((folder for folder in (path, *path.parents[:2]) if _is_run(folder)), None)


def _is_run(folder: Path) -> bool:
    return (folder / FOLDER).is_dir() or (folder / START).parent.is_dir()
