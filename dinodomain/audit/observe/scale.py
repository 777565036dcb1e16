"""Features by the backbones that a run kept on its way, from few samples seen to all. n rows, E width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinodomain.audit.observe.observer import Observer
from dinodomain.checkpoint import list_backbones, load_backbone
from dinodomain.checkpoint.baseline import run_of
from dinodomain.embed import fit_channels


def kept_backbones(checkpoint: str) -> dict[int, Path]:
    """Step to file of the backbones that the run of a checkpoint kept; empty where no run is there."""
    run = run_of(checkpoint)
    found = {} if run is None else list_backbones(run)
    return {int(name.removeprefix("step-")): path for name, path in found.items() if name.startswith("step-")}


def look_over_time(observer: Observer, numbers: np.ndarray, kept: Mapping[int, Path]) -> dict[int, np.ndarray]:
    """Features by each kept backbone: step to [n, E]; 0 is the untrained encoder.

    Args:
        observer: Shows the tiles.
        numbers: [n] rows of the whole audited set, sorted.
        kept: Step to file.
    """
    frozen, device = observer.frozen, observer.backbone.device
    backbones = {step: fit_channels(load_backbone(path).to(device), frozen.store, frozen.domain) for step, path in kept.items()}
    out: dict[int, np.ndarray] = {}
    for rows, shown in observer.placed(numbers):
        for step, backbone in {0: frozen.untrained, **backbones}.items():
            found = observer.features(shown, backbone=backbone)
            out.setdefault(step, np.zeros((len(numbers), found.shape[1]), np.float32))[rows] = found
    return out
