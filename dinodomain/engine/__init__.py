"""Trains a backbone: one step, one loop around it, and everything a run writes."""

from dinodomain.engine.build import Setup, build
from dinodomain.engine.dry_run import Forecast, dry_run
from dinodomain.engine.facts import Facts
from dinodomain.engine.loop import TrainingStopped, fit
from dinodomain.engine.monitor import Monitor, diagnose
from dinodomain.engine.plan import EnginePlan, PretrainPlan
from dinodomain.engine.pretrain import pretrain
from dinodomain.engine.resolve import Resolved, resolve
from dinodomain.engine.run import Run, open_run
from dinodomain.engine.slurm import Submitted, submit
from dinodomain.engine.step import StepResult, train_step
from dinodomain.engine.trackers import Tracker
from dinodomain.engine.training import Training
from dinodomain.parallel import choose_device

__all__ = [
    "EnginePlan", "Facts", "Forecast", "Monitor", "PretrainPlan", "Resolved", "Run", "Setup", "StepResult", "Submitted",
    "Tracker", "Training", "TrainingStopped", "build", "choose_device", "diagnose", "dry_run", "fit", "open_run", "pretrain", "resolve",
    "submit", "train_step",
]  # fmt: skip
