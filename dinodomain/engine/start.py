"""Begins a run with weights instead of chance: reads them, settles the plan by them, puts them into student and teacher, keeps the proof.

``RUN/warm_start.json`` says what became of every tensor, ``RUN/backbones/start.safetensors`` is the backbone before its first step: the
honest baseline of every later probe. A run that goes on from a checkpoint reads neither the weights nor their file again.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dinodomain import lineage, parallel
from dinodomain.checkpoint import TrainState, checkpoint_folders, load_checkpoint, restore_module, save_backbone, weights_digest
from dinodomain.checkpoint.baseline import START
from dinodomain.checkpoint.load import find_body, read_part
from dinodomain.checkpoint.state import FOLDER, STATE
from dinodomain.engine.log import logger
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.recipe import Choice
from dinodomain.errors import Problems, UserError
from dinodomain.lineage import to_json
from dinodomain.model import Backbone, Pair, StartPlan
from dinodomain.model.coverage import Coverage
from dinodomain.model.implied import plan_from_weights
from dinodomain.model.warm_start import warm_start
from dinodomain.model.weights import Weights, describe, read_weights
from dinodomain.objective import Objective

REPORT = "warm_start.json"

CONTINUED: Mapping[str, int] = {"global_size": 224, "local_size": 98}
"""Sides of crops in ``recipe=continue``."""

_HEAD_KEYS = ("prototypes", "head_hidden", "head_layers", "bottleneck", "patch_head", "patch_prototypes")
"""Keys of the objective that shape heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run begins with, or began with.

    Attributes:
        record: For the lineage: name, sha256, licence, layout and family of the weights, and their own lineage.
        choices: Keys of the plan that the weights settled.
        weights: Read; None in a run that goes on.
        state: The whole checkpoint, for ``start.heads``; its student and teacher, heads and centres.
    """

    record: Mapping[str, Any]
    choices: tuple[Choice, ...]
    weights: Weights | None = None
    state: TrainState | None = None

    def settle(self, plan: PretrainPlan) -> PretrainPlan:
        """The plan with what the weights settled."""
        for section in dict.fromkeys(choice.key.split(".")[0] for choice in self.choices):
            values = {choice.key.split(".")[1]: choice.value for choice in self.choices if choice.key.startswith(f"{section}.")}
            plan = dataclasses.replace(plan, **{section: dataclasses.replace(getattr(plan, section), **values)})
        return plan


@dataclass(slots=True, kw_only=True)
class Started:
    """A start that was made.

    Attributes:
        start: Of which.
        report: What became of every tensor; None in a run that goes on.
        backbone: A copy on the host, on rank 0, until it is written.
    """

    start: Start
    report: Coverage | None = None
    backbone: Backbone | None = None


def read_start(plan: PretrainPlan) -> Start | None:
    """Reads what ``plan.start`` names, or what the run in ``plan.out`` kept of it; None for a fresh start.

    Raises:
        UserError: Weights that cannot be used, that contradict the plan, or that ``recipe=continue`` lacks.
    """
    if plan.start.weights is None:
        if plan.recipe == "continue":
            raise UserError(
                "start.weights", "missing: recipe=continue goes on from weights", remedy="name a file, a folder, a run or hub:OWNER/NAME"
            )
        return None
    out = Path(plan.out)
    if plan.resume != "never" and (out / REPORT).is_file() and checkpoint_folders(out):
        return _kept(out)
    weights, state = _open(plan.start)
    choices = [
        Choice(key=f"model.{name}", value=found.value, reason=f"{found.reason} (start.weights)")
        for name, found in plan_from_weights(plan.model, weights, given=plan.given_in("model")).items()
    ]
    if state is not None:
        choices += _head_choices(plan, state)
    choices += _crop_choices(plan, choices)
    record = {
        "weights": _name(plan.start.weights), "sha256": weights.digest, "licence": weights.licence, "layout": weights.renamed.layout,
        "family": weights.renamed.family, "heads": plan.start.heads, "lineage": dict(weights.origin),
    }  # fmt: skip
    return Start(record=record, choices=tuple(choices), weights=weights, state=state)


def _crop_choices(plan: PretrainPlan, choices: Sequence[Choice]) -> list[Choice]:
    """Crops of ``recipe=continue`` that are multiples of the weights' patch; its own are those of DINOv2's patches of 14."""
    patch = next((choice.value for choice in choices if choice.key == "model.patch"), plan.model.patch)
    if plan.recipe != "continue" or not isinstance(patch, int):
        return []
    sides = {name: getattr(plan.views, name) for name in ("global_size", "local_size")}
    own = {name: side for name, side in sides.items() if side == CONTINUED[name] and side % patch}
    reason = f"the multiple of the weights' patch of {patch} below {{}} (start.weights)"
    return [Choice(key=f"views.{name}", value=side - side % patch, reason=reason.format(side)) for name, side in own.items()]


def apply_start(start: Start, plan: StartPlan, pair: Pair, objective: Objective) -> Started:
    """Puts the weights into student and teacher, on the host; with ``start.heads`` also heads and centres, each from its own.

    Args:
        start: From ``read_start``.
        plan: For its limits.
        pair: With fresh weights; changed in place.
        objective: Its centres are changed in place.

    Raises:
        UserError: Too little of the backbone was found, or heads have other sizes.
    """
    if start.weights is None:
        return Started(start=start)
    limits: dict[str, Any] = {"inflate": plan.inflate, "min_coverage": plan.min_coverage}
    report = warm_start(pair.teacher.backbone, start.weights, **limits)
    own = start.weights
    if start.state is not None:
        own = _of_part(start.state, "student", plan.weights or "", start.weights.origin)
    # Only what was found: tokens that nobody trained stay alike in both, as in a fresh pair.
    warm_start(pair.student.backbone, own, **limits)
    if start.state is not None:
        _take_heads(start.state, pair, objective, plan.weights or "")
    first = copy.deepcopy(pair.teacher.backbone).eval() if parallel.rank() == 0 else None
    # What was read would stay in memory for the whole run.
    return Started(start=dataclasses.replace(start, weights=None, state=None), report=report, backbone=first)


def write_start(started: Started, out: Path) -> None:
    """Keeps the report and the backbone in the run folder, once, before the first step; the copy in memory goes."""
    if started.report is None or started.backbone is None:
        return
    for line in started.report.text().splitlines():
        logger.info("%s", line)
    record = lineage.Lineage(kind="start", parents={"weights": started.report.digest}, plan=to_json(started.start.record)).as_json()
    save_backbone(out / START, started.backbone, history=record)
    choices = [to_json(choice) for choice in started.start.choices]
    lineage.write_json(out / REPORT, {**started.report.as_json(), "choices": choices, "record": to_json(started.start.record)})
    started.backbone = None


def _open(plan: StartPlan) -> tuple[Weights, TrainState | None]:
    """Weights of a run or checkpoint of ours, or whatever else there is."""
    assert plan.weights is not None
    path = Path(plan.weights)
    if not (path / FOLDER).is_dir() and not (path / STATE).is_file():
        if plan.heads:
            found = f"{plan.weights} is not a run or checkpoint of dinodomain, and start.heads=true wants its heads"
            raise UserError("start.weights", found, remedy="give a run or checkpoint folder, or set start.heads=false for fresh heads")
        return read_weights(plan.weights, plan.layout), None
    if plan.layout not in ("any", "dinodomain"):
        raise UserError("start.layout", f"is {plan.layout!r}, {plan.weights} was written by dinodomain", remedy="leave it at any")
    if plan.heads:
        state = load_checkpoint(path).state
        return _of_part(state, "teacher", plan.weights, state.lineage), state
    folder, body, notes = find_body(path)
    for note in notes:
        logger.warning("%s", note)
    return _own(read_part(folder, body, "teacher"), body["backbone"], body["lineage"], plan.weights), None


def _of_part(state: TrainState, part: str, place: str, origin: Mapping[str, Any]) -> Weights:
    return _own(state.tensors[part], state.backbone, origin, place)


def _own(branch: Mapping[str, Tensor], spec: Mapping[str, Any], origin: Mapping[str, Any], place: str) -> Weights:
    tensors = {name.removeprefix("backbone."): value for name, value in branch.items() if name.startswith("backbone.")}
    return describe(tensors, place=place, digest=weights_digest(tensors), header={"spec": spec, "lineage": origin})


def _head_choices(plan: PretrainPlan, state: TrainState) -> list[Choice]:
    """Sizes of the checkpoint's heads, for keys that nobody gave; what was given otherwise contradicts."""
    had, default = state.plan["objective"], type(plan.objective)()
    choices, problems = [], []
    for name in _HEAD_KEYS:
        value, stated = had.get(name, getattr(default, name)), getattr(plan.objective, name)
        if value == stated:
            continue
        if not plan.is_given(f"objective.{name}"):
            choices.append(Choice(key=f"objective.{name}", value=value, reason="the heads that the run starts with (start.heads)"))
        else:
            found = f"is {stated!r}, the heads in {plan.start.weights} have {value!r}"
            problems.append(UserError(f"objective.{name}", found, remedy=f"set it to {value!r}, leave it out, or set start.heads=false"))
    if problems:
        raise Problems(problems)
    return choices


def _take_heads(state: TrainState, pair: Pair, objective: Objective, place: str) -> None:
    for part, branch in (("student", pair.student), ("teacher", pair.teacher)):
        for name in ("head", "patch_head"):
            module = getattr(branch, name)
            tensors = {key.removeprefix(f"{name}."): value for key, value in state.tensors[part].items() if key.startswith(f"{name}.")}
            if module is not None:
                restore_module(module, tensors, f"{name} of the {part} in {place}")
    own, had = objective.state_dict(), state.tensors["objective"]
    for name, buffer in own.items():
        if name in had and had[name].shape == buffer.shape:
            buffer.copy_(had[name])
        else:
            logger.warning("start.heads: %s holds no %s of this size, it begins anew", place, name)


def _kept(out: Path) -> Start:
    """What the report of a run that has begun says of its start."""
    body = json.loads((out / REPORT).read_text(encoding="utf-8"))
    choices = tuple(Choice(key=one["key"], value=_tupled(one["value"]), reason=one["reason"]) for one in body["choices"])
    return Start(record=body["record"], choices=choices)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _name(place: str) -> str:
    """A repository's name or the last part of a path: where it lay on this machine is nobody's business."""
    return place if place.startswith("hub:") else Path(place).name
