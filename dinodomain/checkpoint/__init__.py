"""Saves and loads everything a run needs to go on exactly, and the backbone alone for those who only use it."""

from dinodomain.checkpoint.backbone import EXPORTED, load_backbone, origin, save_backbone, weights_digest
from dinodomain.checkpoint.load import Loaded, check_same, load_checkpoint, restore_module
from dinodomain.checkpoint.migrate import migrate
from dinodomain.checkpoint.optimizer import optimizer_tensors, restore_optimizer
from dinodomain.checkpoint.save import prune, save_checkpoint
from dinodomain.checkpoint.state import FORMAT, BrokenCheckpoint, CheckpointPlan, TrainState, checkpoint_folders, latest

__all__ = [
    "EXPORTED",
    "FORMAT",
    "BrokenCheckpoint",
    "CheckpointPlan",
    "Loaded",
    "TrainState",
    "check_same",
    "checkpoint_folders",
    "latest",
    "load_backbone",
    "load_checkpoint",
    "migrate",
    "optimizer_tensors",
    "origin",
    "prune",
    "restore_module",
    "restore_optimizer",
    "save_backbone",
    "save_checkpoint",
    "weights_digest",
]
