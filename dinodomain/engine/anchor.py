"""The anchoring teacher of Gram: whose patch similarities the student is held to, from when on, and at which size it sees the crops.

Three sources: the weights the run began with, or those of a path, from the first step on; or ``drift``, which keeps a copy of the teacher
from its best dense matching so far, and anchors to it once matching has fallen. All decisions follow from numbers that every rank has, so
all ranks decide alike; each holds the whole anchor. Its state goes into the checkpoint: no file of the run need be there at a resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinodomain import parallel
from dinodomain.checkpoint import load_backbone
from dinodomain.engine.log import logger
from dinodomain.engine.plan import PretrainPlan
from dinodomain.errors import UserError
from dinodomain.model import Backbone
from dinodomain.model.positions import axis_matrix
from dinodomain.model.ranges import gaps
from dinodomain.types import Acquisition, ViewGroup
from dinodomain.views import ViewsPlan

START, DRIFT = "start", "drift"
LOOKS = 3
"""Looks in a row that must be low before ``drift`` anchors: one may be chance."""
ENLARGED = 2
"""Side of the anchor's crops over that of the student's where ``gram.size`` is not given (DINOv3: 512 over 256)."""


@dataclass(slots=True, kw_only=True)
class Held:
    """What there is to know about an anchor beside its weights.

    Attributes:
        source: Whose weights: a path, ``start``, or ``teacher of step N``; empty before there are any.
        since: Step from which on these weights anchor; -1 while they wait.
        refreshes: How often they were replaced by the teacher's.
        best: Best dense matching so far, 0..1.
        best_step: When that was.
        low: Looks in a row at which it had fallen.
    """

    source: str = ""
    since: int = -1
    refreshes: int = 0
    best: float = 0.0
    best_step: int = -1
    low: int = 0


class Anchor:
    """Anchors the student, or waits to.

    Args:
        plan: Resolved, ``gram.weight`` above 0.
        teacher: The run's, whose weights are copied when they are to anchor; kept by reference.
        device: Of this process.
    """

    def __init__(self, plan: PretrainPlan, teacher: Backbone, device: torch.device) -> None:
        self.plan, self.device, self.held = plan.gram, device, Held()
        self.backbone: Backbone | None = None
        self._teacher = teacher
        self._global_size, self._start = plan.views.global_size, plan.start.weights

    @property
    def active(self) -> bool:
        """Whether it anchors by now."""
        return self.held.since >= 0

    @property
    def size(self) -> int:
        """Side of the crops that it sees, pixels."""
        return self.plan.size or ENLARGED * self._global_size

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of its patches, pixels."""
        assert self.backbone is not None, "there is nothing to anchor to"
        return self.backbone.patch

    def consider(self, step: int, dense_match: float | None) -> None:
        """Judges a look at the teacher; with ``drift`` keeps a copy at the best and begins to anchor after the third low one in a row.

        Collective where the teacher is sharded.

        Args:
            step: Finished steps at the look.
            dense_match: ``watch_dense_match``, the same on every rank; None or NaN where it could not be measured, which decides nothing.
        """
        held = self.held
        if self.plan.teacher != DRIFT or self.active or dense_match is None or math.isnan(dense_match):
            return
        if dense_match > held.best:
            self._take(_copy(self._teacher), f"teacher of step {step}", -1)
            held.best, held.best_step = dense_match, step
        held.low = held.low + 1 if dense_match <= (1.0 - self.plan.drop) * held.best else 0
        if held.low == LOOKS and self.backbone is not None:
            logger.info("dense matching fell from %.3f (step %d) to %.3f: Gram anchoring begins", held.best, held.best_step, dense_match)
            self._take(self.backbone, held.source, step)

    def advance(self, step: int) -> None:
        """Brings the anchor to where it must be before step ``step``; collective where the teacher is sharded.

        Raises:
            UserError: Nothing usable at the path of the plan, or it sees other channels or axes, or patches that do not divide its crops.
        """
        plan, held = self.plan, self.held
        if self.backbone is None and plan.teacher != DRIFT:
            self._first(step)
        due = plan.refresh > 0 and held.refreshes < plan.refreshes and step - held.since >= plan.refresh
        if self.active and due:
            self._take(_copy(self._teacher), f"teacher of step {step}", step)
            held.refreshes += 1

    def begin(self, step: int) -> None:
        """Anchors to the teacher as it is, without waiting for ``drift``; collective where the teacher is sharded.

        Args:
            step: Finished steps.
        """
        self._take(_copy(self._teacher), f"teacher of step {step}", step)

    def views(self, plan: ViewsPlan) -> ViewsPlan:
        """How the anchor's crops are drawn: the same boxes, flips and operations as the student's global crops, at its own size."""
        return replace(plan, global_size=self.size, num_local=0)

    @torch.no_grad()
    def tokens(self, group: ViewGroup, grid: tuple[int, ...]) -> Tensor:
        """Its patch tokens of crops that were rendered as ``views`` says.

        Args:
            group: The global crops, [N, C, *size].
            grid: The student's patches per axis.

        Returns:
            [N, P, F] on that grid.
        """
        assert self.backbone is not None, "there is nothing to anchor to"
        seen = self.backbone(group.pixels, about=Acquisition(spacing=group.spacing, kept=group.kept))
        return resample_tokens(seen.patches, seen.grid, grid)

    def state_dict(self) -> dict[str, Any]:
        """Weights, once there are any, and plain values for a checkpoint; not collective."""
        if self.backbone is None:
            return asdict(self.held)
        return {**self.backbone.state_dict(), **asdict(self.held), "spec": self.backbone.spec}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a state back; whatever lies at its source by now plays no part."""
        self.held = Held(**{field.name: state[field.name] for field in fields(Held)})
        self.backbone = None
        if "spec" in state:
            tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            self.backbone = Backbone.from_spec(state["spec"], tensors).to(self.device).requires_grad_(False)

    def _first(self, step: int) -> None:
        # Published weights may need adapting to this run's channels and axes; the teacher that begins with them has that done.
        if self.plan.teacher in (START, self._start):
            self._take(_copy(self._teacher), START, step)
        else:
            named = load_backbone(Path(self.plan.teacher))
            _check(named, self._teacher, self.plan.teacher)
            self._take(named, self.plan.teacher, step)

    def _take(self, backbone: Backbone, source: str, step: int) -> None:
        sides = backbone.patch
        if any(self.size % side for side in sides):
            raise UserError("gram.size", f"is {self.size}", allowed=f"a multiple of the anchor's patch {sides}")
        self.backbone = backbone.to(self.device).requires_grad_(False).eval()
        self.held.source, self.held.since = source, step
        if self.active:
            logger.info("Gram: from step %d on anchored to %s", step, source)


def resample_tokens(tokens: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Tokens on another grid, antialiased: bicubic in 2-D (DINOv3, section 4.2), linear in 3-D.

    Args:
        tokens: [N, P_old, F], row-major over ``old``.
        old: Their grid.
        new: Wanted grid.

    Returns:
        [N, P_new, F] float32 or wider; ``tokens`` itself where the grids are equal.
    """
    if old == new:
        return tokens
    mode = "bicubic" if len(old) == 2 else "bilinear"
    with torch.autocast(tokens.device.type, enabled=False):
        field: Tensor = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).reshape(len(tokens), *old, -1)
        for axis, (before, after) in enumerate(zip(old, new), start=1):
            if before != after:
                weights = axis_matrix(before, after, mode, tokens.device).to(field.dtype)
                field = torch.tensordot(weights, field, dims=([1], [axis])).movedim(0, axis)
        return field.flatten(1, len(old))


def _copy(teacher: Backbone) -> Backbone:
    """A backbone of its own with all rows of a teacher's weights, which may be sharded."""
    tensors = {name: parallel.whole(value.detach()).clone() for name, value in teacher.state_dict().items()}
    return Backbone.from_spec(teacher.spec, tensors)


def _check(backbone: Backbone, teacher: Backbone, place: str) -> None:
    if backbone.channels != teacher.channels or backbone.ndim != teacher.ndim:
        found = f"{place} sees {backbone.ndim}-D images of {', '.join(backbone.channels)}"
        raise UserError("gram.teacher", found, allowed=f"{teacher.ndim}-D images of {', '.join(teacher.channels)}")
    # It is shown the student's crops, in the student's numbers.
    apart = gaps(backbone.normalisation, teacher.normalisation)
    told = f"{place} saw other numbers for the same pixels than this run gives: theirs = {', '.join(map(str, apart))}"
    if any(gap.wide for gap in apart):
        raise UserError(
            "gram.teacher", told, allowed="a shift of at most 1 deviation and a factor of 0.5 to 2",
            remedy="set views.normalise as it was, or begin with these weights (start.weights) and anchor to them (gram.teacher=start)",
        )  # fmt: skip
    if apart:
        logger.warning("gram.teacher: %s", told)
