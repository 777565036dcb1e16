"""Saves and loads everything a run needs to go on exactly, and the backbone alone for those who only use it."""

from dinodomain.checkpoint.backbone import EXPORTED, load_backbone, origin, save_backbone, weights_digest
from dinodomain.checkpoint.background import Background, HostCopy
from dinodomain.checkpoint.kept import (
    BACKBONES,
    Best,
    Kept,
    best_files,
    best_path,
    better,
    list_backbones,
    put_back_best,
    read_best,
    remove_leftovers,
    spaced_path,
    spaced_steps,
    write_kept,
)
from dinodomain.checkpoint.load import Loaded, check_same, load_checkpoint, restore_module
from dinodomain.checkpoint.migrate import migrate
from dinodomain.checkpoint.optimizer import optimizer_tensors, restore_optimizer
from dinodomain.checkpoint.save import prune, save_checkpoint
from dinodomain.checkpoint.state import (
    FORMAT,
    BrokenCheckpoint,
    CheckpointPlan,
    Stateful,
    TrainState,
    checkpoint_folders,
    latest,
    part_of,
    with_part,
)

__all__ = [
    "BACKBONES",
    "EXPORTED",
    "FORMAT",
    "Background",
    "Best",
    "BrokenCheckpoint",
    "CheckpointPlan",
    "HostCopy",
    "Kept",
    "Loaded",
    "Stateful",
    "TrainState",
    "best_files",
    "best_path",
    "better",
    "check_same",
    "checkpoint_folders",
    "latest",
    "list_backbones",
    "load_backbone",
    "load_checkpoint",
    "migrate",
    "optimizer_tensors",
    "origin",
    "part_of",
    "prune",
    "put_back_best",
    "read_best",
    "remove_leftovers",
    "restore_module",
    "restore_optimizer",
    "save_backbone",
    "save_checkpoint",
    "spaced_path",
    "spaced_steps",
    "weights_digest",
    "with_part",
    "write_kept",
]
