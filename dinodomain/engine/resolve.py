"""Settles every open choice of a plan once, with reasons, and refuses combinations that cannot work, naming the key to change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dinodomain.engine.cores import choose_workers
from dinodomain.engine.distribute import choose_distribute
from dinodomain.engine.facts import Facts
from dinodomain.engine.lengths import length_problems, length_remarks
from dinodomain.engine.machine import readable_size
from dinodomain.engine.memory import CERTAIN, USABLE, Memory, does_not_fit, estimate, patches, smallest_accumulation
from dinodomain.engine.plan import PretrainPlan
from dinodomain.engine.precision import choose_precision, choose_threads
from dinodomain.engine.recipe import Choice, auto_recipe, replace_key
from dinodomain.errors import Problems, UserError
from dinodomain.lineage import to_json
from dinodomain.parallel import choose_device
from dinodomain.policy import ViewPolicy
from dinodomain.views import ViewsPlan, effective_policy

ENLARGE = 2.0
"""Largest factor by which a global crop of a whole tile may be enlarged: beyond it a patch holds hardly any detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A plan without open choices.

    Attributes:
        plan: Fully known.
        reasons: One line per choice, in order, and remarks on what is unusual.
    """

    plan: PretrainPlan
    reasons: tuple[str, ...]


def resolve(plan: PretrainPlan, facts: Facts) -> Resolved:
    """Settles device, precision, threads, readers, views and the automatic recipe.

    Args:
        plan: As composed; may hold ``auto`` and None.
        facts: Of the data and the processes.

    Raises:
        Problems: Impossible combinations, all at once.
    """
    if facts.num_tiles == 0:
        raise UserError(
            "store", "has no tile to train on: all are held out or below loader.min_valid", remedy="lower loader.min_valid, or ingest more"
        )
    choices = _machine(plan, facts)
    device = torch.device(str(choices[0].value)).type
    if plan.recipe == "auto":
        choices += auto_recipe(_replace(plan, choices), facts, device)
    settled = _replace(plan, choices)
    choices += (shared := _shared(settled, facts))
    settled = _replace(settled, shared)
    policy, problems = _policy(settled.views, facts)
    views = _views(settled, facts, policy)
    settled = _replace(settled, views)
    views += (positions := _positions(settled, facts))
    settled = _replace(settled, positions)
    check(settled, facts, problems)
    told = _policy_reasons(settled, facts)
    settled = replace_key(settled, "views.policy", recorded(policy))
    return Resolved(plan=settled, reasons=(*map(str, choices + views), *told, *_remarks(settled, facts)))


def check(plan: PretrainPlan, facts: Facts, found: Sequence[UserError] = ()) -> None:
    """Refuses what cannot work.

    Args:
        plan: Settled.
        facts: Of the data and the processes.
        found: Problems that are known already.

    Raises:
        Problems: One entry per key.
    """
    problems = [
        *found, *_view_problems(plan, facts), *_date_problems(plan), *_batch_problems(plan, facts), *_position_problems(plan, facts),
        *_gram_problems(plan, facts), *_watch_problems(plan),
    ]  # fmt: skip
    if not problems:
        problems = _memory_problems(plan, facts)
    if problems:
        raise Problems(problems)


def _policy(views: ViewsPlan, facts: Facts) -> tuple[ViewPolicy, list[UserError]]:
    """The domain's policy with the plan's changes; the domain's own, and why, where these do not fit it."""
    try:
        return effective_policy(facts.policy, views), []
    except Problems as error:
        return facts.policy, list(error.problems)


def recorded(policy: ViewPolicy) -> dict[str, Any]:
    """A policy as ``views.policy`` holds it: every number that a user may change, so that it says the same whatever the domain becomes."""
    return {name: value for name, value in to_json(policy).items() if name not in ("axes", "wavelengths_nm")}


def _policy_reasons(plan: PretrainPlan, facts: Facts) -> list[str]:
    own, reasons = recorded(facts.policy), []
    changed = {name: value for name, value in plan.views.policy.items() if to_json(value) != own[name]}
    if changed:
        reasons.append(f"views.policy = that of domain {plan.domain!r} with another {', '.join(changed)}: asked for")
    if not plan.views.augment:
        reasons.append("views.augment = False: crops only, no operation acts")
    return reasons


def _machine(plan: PretrainPlan, facts: Facts) -> list[Choice]:
    device, why_device = choose_device(plan.engine.device)
    precision, why_precision = choose_precision(plan.engine.precision, device)
    threads, why_threads = choose_threads(plan.engine.threads, facts.threads_before)
    kind = torch.device(device).type
    workers, why_workers = choose_workers(plan.loader, device=kind, cores=facts.cores, arithmetic=threads)
    return [
        Choice(key="engine.device", value=device, reason=why_device),
        Choice(key="engine.precision", value=precision, reason=why_precision),
        Choice(key="engine.threads", value=threads, reason=why_threads),
        Choice(key="loader.workers", value=workers, reason=why_workers),
    ]


def _shared(plan: PretrainPlan, facts: Facts) -> list[Choice]:
    """How processes share the model, and who anchors."""
    channels = facts.network_channels(plan.views.windows)
    value, reason = choose_distribute(plan, ndim=facts.ndim, channels=channels, world=facts.world)
    choices = [Choice(key="engine.distribute", value=value, reason=reason)] if plan.engine.distribute == "auto" else []
    if plan.gram.weight > 0 and plan.gram.teacher == "start" and plan.start.weights is not None:
        choices.append(Choice(key="gram.teacher", value=plan.start.weights, reason="the weights that the run starts from (start.weights)"))
    return choices


def _views(plan: PretrainPlan, facts: Facts, policy: ViewPolicy) -> list[Choice]:
    views, choices = plan.views, []
    if views.normalise == "auto":
        choices.append(Choice(key="views.normalise", value=policy.default_mode, reason=f"the default of domain {plan.domain!r}"))
    if views.filter == "auto":
        kind = "cubic" if facts.ndim == 2 else "linear"
        choices.append(Choice(key="views.filter", value=kind, reason=f"{facts.ndim}-D tiles"))
    for which, own in (("global", policy.global_scale), ("local", policy.local_scale)):
        whose = "asked for in views.policy" if f"{which}_scale" in views.policy else f"the policy of domain {plan.domain!r}"
        if getattr(views, f"{which}_scale") is None and _scale_acts(views, which, facts.ndim):
            choices.append(Choice(key=f"views.{which}_scale", value=own, reason=whose))
    return choices


def _scale_acts(views: ViewsPlan, which: str, ndim: int) -> bool:
    """Whether fractions decide any length of these crops: in a volume those in plane and across it may be stated apart."""
    stated = [getattr(views, f"{which}_{kind}") is not None for kind in ("extent", "depth")[: ndim - 1]]
    return not all(stated)


def _view_problems(plan: PretrainPlan, facts: Facts) -> list[UserError]:
    views, problems = plan.views, _patch_problems(plan, facts)
    limit = int(ENLARGE * facts.smallest_side)
    if views.global_size > limit:
        found = f"is {views.global_size}, the smallest tiles have {facts.smallest_side} pixels a side"
        problems.append(UserError(
            "views.global_size", found, allowed=f"up to {limit}",
            remedy="take smaller crops (a group such as views=volume_48 or views=image_32; recipe=auto of pretrain chooses them), or "
            "larger tiles of volumes and scenes (loader.tile)",
        ))  # fmt: skip
    if views.num_global == 1 and views.num_local == 0:
        problems.append(UserError("views.num_local", "is 0 with one global crop", allowed="two views of a sample or more"))
    problems += _range_problems(views, facts)
    if views.renderer == "resize" and (facts.ndim == 3 or torch.device(plan.engine.device).type != "cpu"):
        found = f"'resize' cannot do {facts.ndim}-D on {plan.engine.device}"
        problems.append(UserError("views.renderer", found, allowed="matmul, fastest"))
    return problems


def _patch_problems(plan: PretrainPlan, facts: Facts) -> list[UserError]:
    """Patches that do not fit tiles or crops; crops have one side in pixels along all axes, patches may have one for each."""
    views, patch = plan.views, plan.model.patch
    own = (patch,) if isinstance(patch, int) else patch
    if len(own) not in (1, facts.ndim):
        return [UserError("model.patch", f"{patch} has {len(own)} sides", allowed=f"one number, or {facts.ndim} for {facts.ndim}-D tiles")]
    step, name = math.lcm(*own), str(own[0]) if len(set(own)) == 1 else f"{'x'.join(map(str, own))} along every axis"
    sizes = {"global_size": views.global_size, **({"local_size": views.local_size} if views.num_local else {})}
    return [
        UserError(
            f"views.{key}",
            f"is {size}",
            allowed=f"a multiple of model.patch={name}, for example {max(step, round(size / step) * step)}",
        )
        for key, size in sizes.items()
        if any(size % side for side in own)
    ]


def _positions(plan: PretrainPlan, facts: Facts) -> list[Choice]:
    """The length of rotary positions in mm or m, where nobody gave one and all pixels have a known size."""
    tiles, views = facts.lengths.get("extent"), plan.views
    if plan.model.rope_unit != "physical" or plan.model.rope_length is not None or tiles is None or _position_problems(plan, facts):
        return []
    if views.global_extent is not None:
        crop = sum(views.global_extent) / 2
    elif views.global_scale is not None:
        crop = tiles.median * (sum(views.global_scale) / 2) ** (1 / facts.ndim)
    else:
        return []
    reason = f"half of the median global crop, {crop:.3g} in the unit of the tiles' spacing"
    return [Choice(key="model.rope_length", value=float(f"{crop / 2:.3g}"), reason=reason)]


def _position_problems(plan: PretrainPlan, facts: Facts) -> list[UserError]:
    """Rotary positions in mm or m of tiles whose pixels have no known size."""
    if plan.model.rope_unit != "physical":
        return []
    unknown = [lengths for lengths in facts.lengths.values() if lengths.unknown]
    if not unknown:
        return []
    found = f"is physical and needs the spacing of every source; {unknown[0].unknown} of {unknown[0].sources} have none"
    remedy = "use model.rope_unit=crop, leave these sources out, or ingest files that state their spacing"
    return [UserError("model.rope_unit", f"{found}, the first is {unknown[0].first!r}", remedy=remedy)]


def _range_problems(views: ViewsPlan, facts: Facts) -> list[UserError]:
    """Which part of the tile and of the values is seen."""
    problems = length_problems(views, facts.lengths)
    for which in ("global", "local"):
        if getattr(views, f"{which}_scale") is not None and not _scale_acts(views, which, facts.ndim):
            lengths = f"views.{which}_extent" + (f" and views.{which}_depth" if facts.ndim == 3 else "")
            problems.append(UserError(f"views.{which}_scale", f"is set beside {lengths}, which take its place", remedy="keep one"))
    if views.windows and views.normalise != "domain":
        problems.append(UserError("views.windows", f"is set with views.normalise={views.normalise}: a window is a range in physical units",
                                  remedy="set views.normalise=domain"))  # fmt: skip
    return problems


def _date_problems(plan: PretrainPlan) -> list[UserError]:
    loader, most = plan.loader, max(plan.views.num_global, plan.views.num_local)
    if loader.pairs == "none" or loader.dates <= most:
        return []
    found = (
        f"is {loader.dates}, of which the crops show {most}: one date each, {plan.views.num_global} global and {plan.views.num_local} local"
    )
    return [
        UserError("loader.dates", found, allowed=f"at most {most}", remedy="raise views.num_global or views.num_local to see more dates")
    ]


def _batch_problems(plan: PretrainPlan, facts: Facts) -> list[UserError]:
    batch, world, draws, parts = plan.loader.batch, facts.world, plan.loader.draws, plan.engine.accumulate
    if batch % (world * draws):
        each = "" if draws == 1 else f", with {draws} draws of each tile"
        return [UserError("loader.batch", f"is {batch} on {world} processes{each}", allowed=f"a multiple of {world * draws}")]
    samples, least = batch // world, 2 if plan.objective.koleo_weight > 0 else 1
    koleo = "KoLeo compares samples of one process; objective.koleo_weight=0 turns it off"
    if samples < least:
        return [UserError("loader.batch", f"is {batch} on {world} processes", allowed=f"{2 * world} or more", remedy=koleo)]
    if samples % parts or samples // parts < least:
        fitting = [count for count in range(1, samples // least + 1) if samples % count == 0]
        found = f"is {parts} for the {samples} samples of a process"
        remedy = None if samples % parts else koleo.replace("one process", "one micro-batch")
        return [UserError("engine.accumulate", found, allowed=", ".join(map(str, fitting)), remedy=remedy)]
    return []


def _gram_problems(plan: PretrainPlan, facts: Facts) -> list[UserError]:
    """Gram anchoring that has no anchor, or shows it crops that its patches do not divide."""
    gram, views = plan.gram, plan.views
    if gram.weight == 0:
        return []
    problems = []
    if gram.teacher == "start":
        problems.append(UserError("gram.teacher", "is start, and start.weights is empty",
                                  remedy="set start.weights=RUN, gram.teacher=PATH, or gram.teacher=drift"))  # fmt: skip
    if gram.teacher == "drift" and plan.watch.tiles == 0:
        problems.append(UserError("gram.teacher", "is drift, which dense matching decides, and watch.tiles=0 measures none",
                                  remedy="set watch.tiles to 64 or more, or gram.teacher=PATH"))  # fmt: skip
    if gram.teacher == "drift" and 4 * plan.watch.every > plan.engine.steps:
        found = (
            f"is {plan.watch.every} in {plan.engine.steps} steps: gram.teacher=drift anchors after three looks worse than an earlier one"
        )
        problems.append(UserError("watch.every", found, allowed=f"at most {max(1, plan.engine.steps // 4)}"))
    step = math.lcm(*patches(plan.model, facts.ndim))
    if gram.size is not None and (gram.size % step or gram.size < views.global_size):
        low = -(-views.global_size // step) * step
        problems.append(UserError("gram.size", f"is {gram.size}", allowed=f"a multiple of the patch, {step}, from {low} on"))
    return problems


def _watch_problems(plan: PretrainPlan) -> list[UserError]:
    """Keys that count on a look that never happens."""
    if plan.watch.labels is not None and plan.watch.tiles == 0:
        return [UserError("watch.labels", "is set, and watch.tiles=0 looks at nothing", remedy="set watch.tiles, or leave the labels out")]
    return []


def _memory_problems(plan: PretrainPlan, facts: Facts) -> list[UserError]:
    kind = torch.device(plan.engine.device).type
    there, needed = facts.memory.get(kind), _needed(plan, facts)
    if there is None or CERTAIN.get(kind, 1.0) * needed.total <= there:
        return []
    fitting = smallest_accumulation(plan, int(USABLE * there), **facts.step_sizes(plan))
    return [does_not_fit(plan, f"about {needed}", there, world=facts.world, fitting=fitting)]


def _needed(plan: PretrainPlan, facts: Facts) -> Memory:
    return estimate(plan, **facts.step_sizes(plan))


def _remarks(plan: PretrainPlan, facts: Facts) -> list[str]:
    remarks = []
    if plan.views.global_size > facts.smallest_side:
        remarks.append(f"views.global_size = {plan.views.global_size} enlarges the smallest tiles ({facts.smallest_side} pixels a side)")
    if facts.num_tiles < plan.loader.batch // plan.loader.draws:
        remarks.append(
            f"loader.batch = {plan.loader.batch} is more than the {facts.num_tiles} eligible tiles: a batch holds a tile several times"
        )
    if plan.loader.pairs == "dates" and plan.loader.dates > plan.views.num_global:
        remarks.append(f"loader.dates = {plan.loader.dates}: the {plan.views.num_global} global crops show the first ones, local crops all")
    remarks += length_remarks(plan.views, facts.lengths)
    if plan.objective.centering == "none":
        remarks.append("objective.centering = none: nothing keeps the teacher from giving one answer to all images; expect a collapse")
    if plan.gram.weight > 0 and (plan.gram.size or 2 * plan.views.global_size) > ENLARGE * facts.smallest_side:
        remarks.append(f"gram.size: the anchor's crops enlarge the smallest tiles ({facts.smallest_side} pixels a side) more than twofold")
    there = facts.memory.get(torch.device(plan.engine.device).type)
    needed = _needed(plan, facts)
    tight = there is not None and needed.total > USABLE * there
    told = "" if there is None else f" of {readable_size(there)}" + (": tight, try dry_run=true first" if tight else "")
    remarks.append(f"a step takes about {needed} on each device{told}")
    epochs = plan.engine.steps * plan.loader.batch / plan.loader.draws / facts.num_tiles
    each = "" if plan.loader.draws == 1 else f", each read once and drawn {plan.loader.draws} times an epoch"
    remarks.append(f"{plan.engine.steps} steps of {plan.loader.batch} samples are {epochs:.3g} epochs of {facts.num_tiles} tiles{each}")
    return remarks


def _replace(plan: PretrainPlan, choices: list[Choice]) -> PretrainPlan:
    """Applies choices section by section, so that checks across keys of one section see all of them at once."""
    for section in dict.fromkeys(choice.key.split(".")[0] for choice in choices):
        values = {choice.key.split(".")[1]: choice.value for choice in choices if choice.key.split(".")[0] == section}
        plan = replace_key(plan, section, _updated(getattr(plan, section), values))
    return plan


def _updated(section: object, values: dict[str, object]) -> object:
    return dataclasses.replace(section, **values)  # type: ignore[type-var]  # every section is a plan dataclass
