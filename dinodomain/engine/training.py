"""What a run keeps in memory, and how it becomes a checkpoint and comes back. No files and no store here.

The step number, the weights, the moments, the centres and the loader's few integers are all the state there is: schedules,
views and masks are functions of (seed, step), stochastic depth of those and the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dinodomain import lineage
from dinodomain.checkpoint import TrainState, optimizer_tensors, part_of, restore_module, restore_optimizer
from dinodomain.domain import ViewPolicy
from dinodomain.engine.anchor import Anchor
from dinodomain.engine.distribute import whole_state
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.start import Started
from dinodomain.errors import UserError
from dinodomain.model import Pair, normalisation_of
from dinodomain.objective import Objective
from dinodomain.optim import Schedules
from dinodomain.types import Normalisation
from dinodomain.views import ViewsPlan
from dinodomain.views.normalise import ToFloat, input_channels


@dataclass(slots=True, kw_only=True)
class Training:
    """The objects of a run; the step changes them in place.

    Attributes:
        plan: Resolved.
        pair: Student and teacher, on the device; under FSDP2 each rank holds some rows of them.
        student: What the loss calls: the student, or the wrapper of it that talks to the other ranks.
        objective: Losses; its buffers hold the centres.
        optimizer: AdamW over the student.
        schedules: Functions of the step.
        policy: The domain's augmentations with the plan's changes.
        to_float: The domain's; stored values to the unit range.
        normalisation: Frozen numbers of the network's range.
        step: Finished steps, which is the index of the next one.
        bad_in_row: Steps with NaN or Inf since the last good one.
        bad_total: Such steps in the whole run.
        started: The weights that the run began with; None where it began with fresh ones.
        anchor: The anchoring teacher; None without Gram.
    """

    plan: PretrainPlan
    pair: Pair
    student: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    policy: ViewPolicy
    to_float: ToFloat
    normalisation: Normalisation
    step: int = 0
    bad_in_row: int = 0
    bad_total: int = 0
    started: Started | None = None
    anchor: Anchor | None = None

    @property
    def views(self) -> ViewsPlan:
        """What is drawn with ``policy``: the plan's crops; its changes to the policy are in there already."""
        return replace(self.plan.views, policy={}, augment=True)

    def snapshot(self, loader: Mapping[str, Any], record: Mapping[str, Any]) -> TrainState:
        """The state after ``step`` steps, whole on rank 0. Every rank calls this: what is sharded is gathered, one tensor at a time.

        Args:
            loader: The loader's ``state_dict``.
            record: Lineage of the weights.
        """
        return TrainState(
            step=self.step,
            tensors={part: whole_state(tensors) for part, tensors in self._tensors().items()},
            plan=lineage.to_json(self.plan),
            loader=loader,
            backbone=self.pair.teacher.backbone.spec,
            counters={"bad_in_row": self.bad_in_row, "bad_total": self.bad_total},
            lineage=record,
        )

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """All state by part and name, as this rank holds it."""
        return {
            "student": self.pair.student.state_dict(),
            "teacher": self.pair.teacher.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.pair.student),
        }

    def keep_normalisation(self, normalisation: Normalisation) -> None:
        """Goes on with the network's range of earlier steps, whatever the store's own statistics would say now.

        Raises:
            UserError: It is made from other stored channels; their order is free.
        """
        wanted, own = (input_channels(one) for one in (normalisation, self.normalisation))
        if set(wanted) != set(own):
            problem = f"has the channels {', '.join(own)}, the run was trained on {', '.join(wanted)}"
            raise UserError("store", problem, remedy="start a new run")
        self.normalisation = normalisation
        for branch in (self.pair.student, self.pair.teacher):
            branch.backbone.normalisation = normalisation

    def restore(self, state: TrainState, place: str) -> None:
        """Takes a state back, checking every name and shape; the network's range stays that of the weights.

        Args:
            state: From a checkpoint of the same plan.
            place: Its folder, for messages.
        """
        restore_module(self.pair.student, state.tensors["student"], f"{place}/student.safetensors")
        restore_module(self.pair.teacher, state.tensors["teacher"], f"{place}/teacher.safetensors")
        restore_module(self.objective, state.tensors["objective"], f"{place}/objective.safetensors")
        restore_optimizer(self.optimizer, self.pair.student, state.tensors["optimizer"], f"{place}/optimizer.safetensors")
        self.keep_normalisation(normalisation_of(state.backbone))
        remembered = part_of(state, "anchor")
        if self.anchor is not None and remembered is not None:
            self.anchor.load_state_dict(remembered)
        self.step = state.step
        self.bad_in_row, self.bad_total = int(state.counters["bad_in_row"]), int(state.counters["bad_total"])
