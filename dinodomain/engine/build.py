"""From a plan to the objects of a run: the one file of this room that opens a store and makes a loader.

Weights come from torch's default generator seeded with ``seed``, on the host, so that they are the same on every device.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dinodomain
from dinodomain import parallel
from dinodomain.domain import Domain, find_domain
from dinodomain.engine.anchor import Anchor
from dinodomain.engine.distribute import distribute
from dinodomain.engine.drawn import Drawn
from dinodomain.engine.facts import Facts
from dinodomain.engine.folder import threads_before
from dinodomain.engine.held import hold
from dinodomain.engine.lengths import asked_lengths, measure_lengths
from dinodomain.engine.machine import usable_cores
from dinodomain.engine.memory import memory_by_kind
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.precision import apply_switches
from dinodomain.engine.resolve import resolve
from dinodomain.engine.start import Start, apply_start, read_start
from dinodomain.engine.training import Training
from dinodomain.engine.watch import Watcher
from dinodomain.errors import UserError
from dinodomain.lineage import Lineage, to_json
from dinodomain.loader import Loader, Tiles, find_tiles
from dinodomain.loader.tiles import Bucket
from dinodomain.model import Backbone, Head, Pair, bands_of
from dinodomain.objective import Objective
from dinodomain.optim import Schedules, make_optimizer, parameter_groups
from dinodomain.store import Store, open_store
from dinodomain.types import Normalisation
from dinodomain.views import effective_policy, resolve_normalisation
from dinodomain.views.normalise import windows_told


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The objects of a run before its first step.

    Attributes:
        training: Fresh.
        drawn: Store and loader, and what was drawn from others before.
        reasons: What was settled and why, one line each.
        watcher: Measures the teacher on tiles that are not drawn; None where watching is off.
    """

    training: Training
    drawn: Drawn
    reasons: tuple[str, ...]
    watcher: Watcher | None = None

    @property
    def store(self) -> Store:
        """Opened; several mixed are one."""
        return self.drawn.store

    @property
    def loader(self) -> Loader:
        """At step 0, until a state is loaded."""
        return self.drawn.loader

    def record(self, kind: str, step: int) -> dict[str, Any]:
        """Lineage of a run or a checkpoint after ``step`` steps: the store, the plan and how often each unit was drawn.

        The plan's view policy is whole here, with what no user may change (axes, wavelengths).
        """
        plan = {key: value for key, value in to_json(self.training.plan).items() if key not in ("store", "out")}
        plan["views"] = {**plan["views"], "policy": to_json(self.training.policy)}
        parents, history = {"store": self.store.digest}, self.drawn.history()
        if self.training.started is not None:
            began = self.training.started.start.record
            plan["start"] = {**plan["start"], **began}
            parents["weights"] = began["sha256"]
        return Lineage(
            kind=kind, parents=parents, plan=plan, counts=self.drawn.counts(step), versions=versions(), history=history
        ).as_json()  # fmt: skip


def build(plan: PretrainPlan, domain: Domain | None = None) -> Setup:
    """Opens the store, resolves the plan and makes everything a run needs.

    Args:
        plan: As composed.
        domain: The domain object; None finds it by name.

    Raises:
        UserError: The store is of another domain, or the plan cannot work.
    """
    domain = domain if domain is not None else find_domain(plan.domain)
    store = open_store(plan.store, mixed=True)
    check_domain(store, domain)
    held = hold(find_tiles(store, plan.loader), plan.watch.tiles, seed=plan.seed, loader=plan.loader)
    start = read_start(plan)
    # First the weights' say, then the facts: positions in mm or m that they bring need the size of every pixel.
    plan = start.settle(plan) if start is not None else plan
    facts = facts_of(store, held.left, plan, domain)
    resolved = resolve(plan, facts)
    plan = resolved.plan
    apply_switches(device=plan.engine.device, threads=plan.engine.threads or 1, deterministic=plan.engine.deterministic)
    device = parallel.local_device(plan.engine.device)
    normalisation = resolve_normalisation(
        plan.views.normalise, domain.view_policy(), domain.channels, facts.channels, store.stats, plan.views.windows
    )
    loader = Loader(store, plan.loader, seed=plan.seed, rank=parallel.rank(), world=parallel.world(), device=device, tiles=held.left)
    training = make_training(plan, domain, normalisation, ndim=store.ndim, device=device, start=start)
    begun = tuple(map(str, start.choices)) if start is not None else ()
    told = (windows_told(normalisation),) if plan.views.windows else ()
    watcher = Watcher(store, held, plan, Path(plan.out)) if held.tiles is not None else None
    reasons = (*begun, *resolved.reasons, *told, held.reason, _memory(loader))
    return Setup(training=training, drawn=Drawn(store=store, loader=loader), reasons=reasons, watcher=watcher)


def _memory(loader: Loader) -> str:
    slots, size = loader.ring
    return f"batches are read into a ring of {slots * size} bytes per process ({slots} parts of {size / 2**20:.3g} MiB)"


def make_training(
    plan: PretrainPlan, domain: Domain, normalisation: Normalisation, *, ndim: int, device: torch.device, start: Start | None = None
) -> Training:
    """Networks, losses, optimiser and schedules of a resolved plan; needs no store.

    Args:
        plan: Resolved.
        domain: Augmentations and value range.
        normalisation: The network's range.
        ndim: Spatial axes of the tiles.
        device: Where the networks go.
        start: Weights to begin with; None begins with fresh ones.
    """
    torch.manual_seed(plan.seed)
    backbone = Backbone.create(
        plan.model, ndim=ndim, image_size=plan.views.global_size, normalisation=normalisation, domain=domain.name,
        bands=bands_of(normalisation, domain.channels),
    )  # fmt: skip
    pair = Pair(backbone, *_heads(plan), masks=plan.objective.ibot_weight > 0)
    losses = Objective(plan.objective, gram_weight=plan.gram.weight)
    started = apply_start(start, plan.start, pair, losses) if start is not None else None
    pair = pair.to(device)
    parallel.broadcast_module(pair)
    pair.student.backbone.vit.checkpointing = plan.engine.checkpointing
    if plan.engine.compile:
        for branch in (pair.student, pair.teacher):
            branch.backbone.vit.compile_blocks()
    student = distribute(pair, plan.engine, device)
    anchor = Anchor(plan, pair.teacher.backbone, device) if plan.gram.weight > 0 else None
    return Training(
        plan=plan,
        pair=pair,
        student=student,
        objective=losses.to(device),
        optimizer=make_optimizer(parameter_groups(pair.student, plan.optim), plan.optim),
        schedules=Schedules(plan.optim, total_steps=plan.engine.steps, batch=plan.loader.batch),
        policy=effective_policy(domain.view_policy(), plan.views),
        to_float=domain.to_float,
        normalisation=normalisation,
        started=started,
        anchor=anchor,
    )


def _heads(plan: PretrainPlan) -> tuple[Head, Head | None]:
    """The head of class tokens, and that of masked patches where they have one of their own."""
    objective = plan.objective
    sizes = {"hidden": objective.head_hidden, "bottleneck": objective.bottleneck, "layers": objective.head_layers}
    head = Head(plan.model.dim, prototypes=objective.prototypes, **sizes)
    if objective.patch_head == "shared" or objective.ibot_weight == 0:
        return head, None
    return head, Head(plan.model.dim, prototypes=objective.patch_prototypes or objective.prototypes, **sizes)


def facts_of(store: Store, tiles: Tiles, plan: PretrainPlan, domain: Domain) -> Facts:
    """What ``resolve`` needs to know about a store's tiles and the machine."""
    extents: Counter[tuple[int, ...]] = Counter()
    for bucket, members in zip(tiles.buckets, tiles.members):
        extents[bucket.extent] += len(members)
    lengths = measure_lengths(store, tiles, plan.loader.weights) if asked_lengths(plan.views) or plan.model.rope_unit == "physical" else {}
    return Facts(
        ndim=store.ndim, channels=channels_of(tiles, plan), extents=extents, policy=domain.view_policy(), world=parallel.world(),
        cores=max(1, usable_cores() // parallel.local_world()), lengths=lengths, memory=memory_by_kind(parallel.local_world()),
        tile_bytes=max((_tile_bytes(bucket) for bucket in tiles.buckets), default=0), threads_before=threads_before(Path(plan.out)),
    )  # fmt: skip


def _tile_bytes(bucket: Bucket) -> int:
    return (np.dtype(bucket.dtype).itemsize * len(bucket.channels) + 1) * math.prod(bucket.extent)


def channels_of(tiles: Tiles, plan: PretrainPlan) -> tuple[str, ...]:
    """The one list of channels that all drawn tiles share, in the order of the first bucket; views bring every batch into this order.

    Raises:
        UserError: There are several; one patch embedding cannot take them.
    """
    found = {bucket.channels: bucket.name for bucket in tiles.buckets if plan.loader.weights.get(bucket.name, 1.0) > 0}
    if len({frozenset(channels) for channels in found}) > 1:
        lists = "; ".join(f"{name}: {', '.join(channels)}" for channels, name in found.items())
        raise UserError("store", f"holds sources with different channels ({lists})",
                        remedy="choose one list with ingest.bands, or leave buckets out with loader.weights.NAME=0")  # fmt: skip
    return next(iter(found), tiles.buckets[0].channels)


def check_domain(store: Store, domain: Domain) -> None:
    """Refuses a store that another domain wrote: channels, units and augmentations would not fit."""
    if store.domain != domain.name:
        raise UserError("domain", f"is {domain.name!r}, the store was made by {store.domain!r}", remedy=f"use domain={store.domain}")


def versions() -> Mapping[str, str]:
    """Packages that shape the result."""
    return {"dinodomain": dinodomain.__version__, "numpy": np.__version__, "python": platform.python_version(), "torch": torch.__version__}
