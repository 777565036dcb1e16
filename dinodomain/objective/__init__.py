"""Losses and what makes their targets. Knows tensors and ``Views``; no files, no optimiser, no schedules but its own temperature."""

from dinodomain.objective.plan import ObjectivePlan
from dinodomain.objective.total import Loss, Objective, teacher_temperature

__all__ = ["Loss", "Objective", "ObjectivePlan", "teacher_temperature"]
