"""What one ingest has to do, settled from headers before a pixel is read: identity, then budget, then share, then quantity.

A dry run stops here; a run stages what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dinodomain.ingest.budget import choose, left_out
from dinodomain.ingest.identity import Known, Sorted, sort_out
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.quantities import refuse_mixed
from dinodomain.ingest.shard import Share
from dinodomain.ingest.sizes import parse_size, size_text
from dinodomain.ingest.sources import Found, Names, Skipped, refused
from dinodomain.ingest.stage import Task
from dinodomain.store.read import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done, in this job's share.

    Attributes:
        new: Sources to be staged.
        present: Number of sources that the store has.
        renamed: Number of those that it has under another id.
        skipped: What discovery skipped, changed sources, copies, and what the budget leaves out.
        known: What the store has.
        budget: What a budget is spent on, in words; empty without one.
    """

    new: tuple[Task, ...]
    present: int
    renamed: int
    skipped: tuple[Skipped, ...]
    known: Known
    budget: str = ""


def plan_work(plan: IngestPlan, names: Names, found: Found, old: Store | None) -> Work:
    """Settles the work.

    Args:
        plan: The plan.
        names: How clear names become stored ones.
        found: What was discovered.
        old: The store that is added to, or None.

    Raises:
        UserError: Numbers of different kinds would share a store, or a budget meets sources that do not state their size.
    """
    known = Known(old)
    every, budget = _within_budget(plan, sort_out(plan.source, found, names, known), found)
    refuse_mixed([task.ref for task in every.new], None if old is None else old.manifest, mix=plan.mix)
    share = Share.of(plan.shard)
    present, renamed = (sum(share.holds(names.stored(name)) for name in group) for group in (every.present, every.renamed))
    return Work(
        new=tuple(task for task in every.new if share.holds(task.source_id)),
        present=present,
        renamed=renamed,
        skipped=in_share(plan, names, (*found.skipped, *every.skipped)),
        known=known,
        budget=budget,
    )


def in_share(plan: IngestPlan, names: Names, skipped: Sequence[Skipped]) -> tuple[Skipped, ...]:
    """Skipped sources that this job counts."""
    share = Share.of(plan.shard)
    return tuple(item for item in skipped if share.holds(names.stored(item.uri)))


def _within_budget(plan: IngestPlan, every: Sorted, found: Found) -> tuple[Sorted, str]:
    """New sources that the budget reaches, and what it is spent on in words. All jobs of an array choose alike."""
    if plan.budget is None:
        return every, ""
    wanted = every.present | {task.ref.source_id for task in every.new}
    refs = [ref for ref in found.refs if ref.source_id in wanted]
    budget = parse_size(plan.budget, "ingest.budget")
    choice = choose(refs, budget=budget, seed=plan.seed, cell_m=plan.cell, present=every.present)
    new = tuple(task for task in every.new if task.ref.source_id in choice.chosen)
    rest = [task.ref for task in every.new if task.ref.source_id not in choice.chosen]
    told = (
        f"{size_text(choice.spent)} of {plan.budget} for {len(choice.chosen)} sources, {len(rest)} left out; "
        f"{choice.covered} of {choice.strata} kinds of place, season and sensor covered (ingest.seed={plan.seed})"
    )
    outside = tuple(refused(plan.source, left_out(ref, str(plan.budget))) for ref in rest)
    return replace(every, new=new, skipped=(*every.skipped, *outside)), told


def bytes_of(tasks: Sequence[Task]) -> dict[str, int]:
    """Bytes to be read by stored id; empty unless all sources state them."""
    stated = {task.source_id: task.ref.facts.get("bytes_in") for task in tasks}
    sizes = {name: int(size) for name, size in stated.items() if isinstance(size, (int, float))}
    return sizes if len(sizes) == len(stated) else {}
