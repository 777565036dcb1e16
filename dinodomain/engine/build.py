"""From a plan to the objects of a run: the one file of this room that opens a store and makes a loader.

Weights come from torch's default generator seeded with ``seed``, on the host, so that they are the same on every device.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import dinodomain
from dinodomain import parallel
from dinodomain.domain import Domain, find_domain
from dinodomain.engine.drawn import Drawn
from dinodomain.engine.facts import Facts
from dinodomain.engine.lengths import asked_lengths, measure_lengths
from dinodomain.engine.machine import usable_cores
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.precision import apply_switches
from dinodomain.engine.resolve import resolve
from dinodomain.engine.training import Training
from dinodomain.errors import UserError
from dinodomain.lineage import Lineage, to_json
from dinodomain.loader import Loader, Tiles, find_tiles
from dinodomain.model import Backbone, Head, Pair
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
    """

    training: Training
    drawn: Drawn
    reasons: tuple[str, ...]

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
        return Lineage(
            kind=kind, parents={"store": self.store.digest}, plan=plan, counts=self.drawn.counts(step), versions=versions(),
            history=self.drawn.history(),
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
    tiles = find_tiles(store, plan.loader)
    facts = facts_of(store, tiles, plan, domain)
    resolved = resolve(plan, facts)
    plan = resolved.plan
    apply_switches(device=plan.engine.device, threads=plan.engine.threads or 1, deterministic=plan.engine.deterministic)
    device = parallel.local_device(plan.engine.device)
    normalisation = resolve_normalisation(
        plan.views.normalise, domain.view_policy(), domain.channels, facts.channels, store.stats, plan.views.windows
    )
    loader = Loader(store, plan.loader, seed=plan.seed, rank=parallel.rank(), world=parallel.world(), device=device, tiles=tiles)
    training = make_training(plan, domain, normalisation, ndim=store.ndim, device=device)
    told = (windows_told(normalisation),) if plan.views.windows else ()
    return Setup(training=training, drawn=Drawn(store=store, loader=loader), reasons=(*resolved.reasons, *told, _memory(loader)))


def _memory(loader: Loader) -> str:
    slots, size = loader.ring
    return f"batches are read into a ring of {slots * size} bytes per process ({slots} parts of {size / 2**20:.3g} MiB)"


def make_training(plan: PretrainPlan, domain: Domain, normalisation: Normalisation, *, ndim: int, device: torch.device) -> Training:
    """Networks, losses, optimiser and schedules of a resolved plan; needs no store."""
    torch.manual_seed(plan.seed)
    backbone = Backbone.create(plan.model, ndim=ndim, image_size=plan.views.global_size, normalisation=normalisation, domain=domain.name)
    objective = plan.objective
    head = Head(
        plan.model.dim,
        prototypes=objective.prototypes,
        hidden=objective.head_hidden,
        bottleneck=objective.bottleneck,
        layers=objective.head_layers,
    )
    pair = Pair(backbone, head, masks=objective.ibot_weight > 0).to(device)
    parallel.broadcast_module(pair)
    return Training(
        plan=plan,
        pair=pair,
        objective=Objective(objective).to(device),
        optimizer=make_optimizer(parameter_groups(pair.student, plan.optim), plan.optim),
        schedules=Schedules(plan.optim, total_steps=plan.engine.steps, batch=plan.loader.batch),
        policy=effective_policy(domain.view_policy(), plan.views),
        to_float=domain.to_float,
        normalisation=normalisation,
    )


def facts_of(store: Store, tiles: Tiles, plan: PretrainPlan, domain: Domain) -> Facts:
    """What ``resolve`` needs to know about a store's tiles and the machine."""
    extents: Counter[tuple[int, ...]] = Counter()
    for bucket, members in zip(tiles.buckets, tiles.members):
        extents[bucket.extent] += len(members)
    lengths = measure_lengths(store, tiles, plan.loader.weights) if asked_lengths(plan.views) else {}
    return Facts(
        ndim=store.ndim, channels=channels_of(tiles, plan), extents=extents, policy=domain.view_policy(), world=parallel.world(),
        cores=max(1, usable_cores() // parallel.local_world()), lengths=lengths,
    )  # fmt: skip


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
