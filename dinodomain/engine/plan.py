"""The plan of a pretraining run, composed of the rooms' plans. What is left to choose ('auto', None) is settled by ``resolve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dinodomain.checkpoint import CheckpointPlan
from dinodomain.errors import Problems, UserError
from dinodomain.loader import LoaderPlan
from dinodomain.model import ModelPlan, StartPlan
from dinodomain.objective import GramPlan, ObjectivePlan
from dinodomain.optim import OptimPlan
from dinodomain.views import ViewsPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """How long and on what a run trains.

    Attributes:
        steps: Optimiser steps of the whole run; schedules span them.
        accumulate: Micro-batches that make one step, on each process: the result of one large batch in less memory (but for KoLeo, which
            compares within a micro-batch, and stochastic depth, which draws for each anew); must divide the samples of a process.
        distribute: How several processes share a model: ``ddp``, each has all of it; ``fsdp2``, each has a part of weights, gradients and
            moments; ``auto`` takes ddp where the model fits.
        checkpointing: Keep only the input of each block for the backward pass and compute the rest again: less memory, a third more time.
        compile: Compile each block (minutes before the first step; about a tenth faster on a CPU).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``fp32``, ``bf16`` (autocast; weights stay float32) or ``auto``.
        threads: CPU threads for arithmetic; None leaves torch's choice, which is frozen into the plan.
        deterministic: Bit-equal arithmetic on CUDA too, at some cost in speed.
        log_every: Steps between two plain lines in the log.
        figures_every: Steps between two refreshes of the figures.
        max_bad_steps: Steps in a row with NaN or Inf after which the run stops with a diagnosis.
        trackers: Where scalars go besides metrics.jsonl: ``tensorboard`` (into the run folder), ``wandb``, ``mlflow``; empty for none.
    """

    steps: int = 1000
    accumulate: int = 1
    distribute: Literal["auto", "ddp", "fsdp2"] = "auto"
    checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int | None = None
    deterministic: bool = False
    log_every: int = 20
    figures_every: int = 200
    max_bad_steps: int = 10
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        problems = [
            UserError(f"engine.{name}", f"is {getattr(self, name)}", allowed="1 or more")
            for name in ("steps", "accumulate", "log_every", "figures_every", "max_bad_steps")
            if getattr(self, name) < 1
        ]
        if self.threads is not None and self.threads < 1:
            problems.append(UserError("engine.threads", f"is {self.threads}", allowed="1 or more, or empty"))
        if problems:
            raise Problems(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPlan:
    """What is measured of the teacher now and then on tiles that are not trained on.

    Attributes:
        tiles: Number of tiles, of as many units as there are; 0 turns watching off.
        every: Steps between two looks.
        labels: CSV with labels of sources, for the kNN accuracy (watch_knn); None measures only what needs no labels (watch_knn_own and
            others).
        join: Column of the CSV that names the source.
        target: Column that holds the label.
    """

    tiles: int = 128
    every: int = 200
    labels: str | None = None
    join: str = "id"
    target: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.tiles < 0:
            problems.append(UserError("watch.tiles", f"is {self.tiles}", allowed="0 (off) or more"))
        if self.every < 1:
            problems.append(UserError("watch.every", f"is {self.every}", allowed="1 or more steps"))
        if (self.labels is None) != (self.target is None):
            missing = "target" if self.target is None else "labels"
            problems.append(UserError(f"watch.{missing}", "is missing", remedy="give watch.labels and watch.target together"))
        if problems:
            raise Problems(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmPlan:
    """What ``launcher=submitit`` asks the cluster for.

    Attributes:
        partition: Queue; None takes the cluster's default.
        nodes: Machines.
        gpus: Accelerators, and processes, on each machine; 0 trains one process per machine on its CPU.
        cpus: Processor cores for each process.
        memory_gb: Memory of each machine.
        minutes: Wall time of one job; a job that is ended by it goes on in the next (``requeue``).
        requeue: How often a job that ran out of time or was pre-empted is queued again.
        cluster: ``slurm``; ``local`` runs the same processes on this machine, ``debug`` in this process.
        extra: Further options of the cluster, by submitit's names (``slurm_account``, ``slurm_constraint`` ...).
    """

    partition: str | None = None
    nodes: int = 1
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 64
    minutes: int = 24 * 60
    requeue: int = 10
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus": 0, "cpus": 1, "memory_gb": 1, "minutes": 1, "requeue": 0}
        problems = [
            UserError(f"slurm.{name}", f"is {getattr(self, name)}", allowed=f"{low} or more")
            for name, low in least.items()
            if getattr(self, name) < low
        ]
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
        launcher: ``local`` trains in this process (and those that ``torchrun`` started beside it); ``submitit`` hands the run to a cluster.
        slurm: What ``launcher=submitit`` asks for.
        dry_run: Do three real steps, tell memory, speed, time and disk to the end, and leave nothing behind.
        start: Weights to begin with instead of fresh ones.
        loader: Tiles and batches.
        views: Crops.
        model: The transformer.
        objective: Losses and head.
        gram: Gram anchoring.
        optim: Optimiser and schedules.
        watch: Measurements on tiles that are not trained on.
        checkpoint: Saving.
        engine: Length, device, logging.
        given: Dotted keys that a command line, a YAML file, a recipe or keywords stated, whatever their values; filled by ``config.build``.
            No key itself: neither recorded nor compared.
    """

    domain: str
    store: str
    out: str
    resume: Literal["auto", "never", "force"] = "auto"
    seed: int = 0
    recipe: str | None = None
    launcher: Literal["local", "submitit"] = "local"
    slurm: SlurmPlan = field(default_factory=SlurmPlan)
    dry_run: bool = False
    start: StartPlan = field(default_factory=StartPlan)
    loader: LoaderPlan = field(default_factory=LoaderPlan)
    views: ViewsPlan = field(default_factory=ViewsPlan)
    model: ModelPlan = field(default_factory=ModelPlan)
    objective: ObjectivePlan = field(default_factory=ObjectivePlan)
    gram: GramPlan = field(default_factory=GramPlan)
    optim: OptimPlan = field(default_factory=OptimPlan)
    watch: WatchPlan = field(default_factory=WatchPlan)
    checkpoint: CheckpointPlan = field(default_factory=CheckpointPlan)
    engine: EnginePlan = field(default_factory=EnginePlan)
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False, metadata={"recorded": False})

    def __post_init__(self) -> None:
        problems = [UserError(name, "is empty", allowed="a path") for name in ("store", "out") if not getattr(self, name).strip()]
        if not 0 <= self.seed < 2**31:
            problems.append(UserError("seed", f"is {self.seed}", allowed="0 to 2147483647"))
        if problems:
            raise Problems(problems)

    def is_given(self, key: str) -> bool:
        """Whether somebody chose a key of a section: it was stated, or it differs from its default (as in a plan that is built in Python).

        Args:
            key: Dotted, for example ``optim.lr``.
        """
        section, name = key.split(".")
        held = getattr(self, section)
        return key in self.given or bool(getattr(held, name) != getattr(type(held)(), name))

    def given_in(self, section: str) -> frozenset[str]:
        """Names of the stated keys of a section."""
        return frozenset(key.partition(".")[2] for key in self.given if key.startswith(f"{section}."))
