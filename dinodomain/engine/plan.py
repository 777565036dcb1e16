"""The plan of a pretraining run, composed of the rooms' plans. What is left to choose ('auto', None) is settled by ``resolve``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dinodomain.checkpoint import CheckpointPlan
from dinodomain.errors import Problems, UserError
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan
from dinodomain.objective import ObjectivePlan
from dinodomain.optim import OptimPlan
from dinodomain.views import ViewsPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """How long and on what a run trains.

    Attributes:
        steps: Optimiser steps of the whole run; schedules span them.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``fp32``, ``bf16`` (autocast; weights stay float32) or ``auto``.
        threads: CPU threads for arithmetic; None leaves torch's choice, which is frozen into the plan.
        deterministic: Bit-equal arithmetic on CUDA too, at some cost in speed.
        log_every: Steps between two plain lines in the log.
        figures_every: Steps between two refreshes of the figures.
        max_bad_steps: Steps in a row with NaN or Inf after which the run stops with a diagnosis.
        tensorboard: Write scalars for TensorBoard into the run folder.
    """

    steps: int = 1000
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = None
    deterministic: bool = False
    log_every: int = 20
    figures_every: int = 200
    max_bad_steps: int = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        problems = [
            UserError(f"engine.{name}", f"is {getattr(self, name)}", allowed="1 or more")
            for name in ("steps", "log_every", "figures_every", "max_bad_steps")
            if getattr(self, name) < 1
        ]
        if self.threads is not None and self.threads < 1:
            problems.append(UserError("engine.threads", f"is {self.threads}", allowed="1 or more, or empty"))
        if problems:
            raise Problems(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainPlan:
    """A pretraining run: which data, where to, and how.

    Attributes:
        domain: Name of an installed domain, for example ``ct`` or ``sentinel2``.
        store: Folder or URL of the store to train on, or a YAML file that lists several with their shares of all samples:
            ``stores: [{path: A, share: 0.7}, {path: B, share: 0.3}]``.
        out: Run folder; new, empty, or holding this very run.
        resume: ``auto`` goes on where the run in ``out`` stopped, if it would draw the same tiles; ``force`` goes on at the same step with
            whatever store, tiles and weights there are now, and records the change; ``never`` refuses a folder that holds a run.
        seed: Decides weights, order of tiles, views, masks and stochastic depth.
        recipe: Name of the recipe this plan was composed from; ``auto`` derives what was left at its default from the data.
        loader: Tiles and batches.
        views: Crops.
        model: The transformer.
        objective: Losses and head.
        optim: Optimiser and schedules.
        checkpoint: Saving.
        engine: Length, device, logging.
    """

    domain: str
    store: str
    out: str
    resume: Literal["auto", "never", "force"] = "auto"
    seed: int = 0
    recipe: str | None = None
    loader: LoaderPlan = field(default_factory=LoaderPlan)
    views: ViewsPlan = field(default_factory=ViewsPlan)
    model: ModelPlan = field(default_factory=ModelPlan)
    objective: ObjectivePlan = field(default_factory=ObjectivePlan)
    optim: OptimPlan = field(default_factory=OptimPlan)
    checkpoint: CheckpointPlan = field(default_factory=CheckpointPlan)
    engine: EnginePlan = field(default_factory=EnginePlan)

    def __post_init__(self) -> None:
        problems = [UserError(name, "is empty", allowed="a path") for name in ("store", "out") if not getattr(self, name).strip()]
        if not 0 <= self.seed < 2**31:
            problems.append(UserError("seed", f"is {self.seed}", allowed="0 to 2147483647"))
        if problems:
            raise Problems(problems)
