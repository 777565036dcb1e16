"""Optimiser, parameter groups, gradient clipping and schedules."""

from dinodomain.optim.groups import parameter_groups
from dinodomain.optim.optimizers import clip_gradients, make_optimizer
from dinodomain.optim.plan import OptimPlan
from dinodomain.optim.schedules import Schedules, Values, cosine, linear, scaled_lr

__all__ = ["OptimPlan", "Schedules", "Values", "clip_gradients", "cosine", "linear", "make_optimizer", "parameter_groups", "scaled_lr"]
