"""The honest baseline of a warm start: the backbone as it was before its first step, which the run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Final

START: Final = "backbones/start.safetensors"
"""Where a run folder keeps the backbone that it began with, adapted to the run's channels, axes and patches."""


def baseline_of(checkpoint: str | Path) -> Path | None:
    """The warm-start backbone of the run that a checkpoint belongs to; None where it began with fresh weights or the run is not there.

    Args:
        checkpoint: A run folder, one of its checkpoints, or one of its ``backbones/*.safetensors``.
    """
    path = Path(checkpoint)
    found = next((folder / START for folder in (path, *path.parents[:2]) if (folder / START).is_file()), None)
    return None if found == path else found
