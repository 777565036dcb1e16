"""Losses and what makes their targets. Knows tensors and ``Views``; no files, no optimiser, no schedules but its own temperature."""

from dinodomain.objective.plan import GramPlan, ObjectivePlan
from dinodomain.objective.total import Lesson, Loss, Objective, teacher_temperature

__all__ = ["GramPlan", "Lesson", "Loss", "Objective", "ObjectivePlan", "teacher_temperature"]
