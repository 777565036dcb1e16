"""The trail as figures and tables: what came in, what left at each stage and why, what was drawn; also by group. Judges nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from dinodomain.audit.figures import Cell, Flow, Stage, Table
from dinodomain.audit.protocol.attribute import printed
from dinodomain.audit.trail.groups import as_groups
from dinodomain.audit.trail.kept import Kept
from dinodomain.audit.trail.record import StoreDrawn, Trail
from dinodomain.ingest.sources import LEFT_OUT, REFUSED


def flows(trail: Trail) -> tuple[Flow, ...]:
    """Two flows, in units and in sources; none where no store was opened."""
    kept = trail.kept
    if kept is None:
        return ()
    images, units = _image_stages(kept), _unit_stages(kept, trail)
    return (
        Flow(title="From sources to the training, in units", unit="units", stages=units),
        Flow(title="From sources to the training, in sources", unit="sources", stages=images),
    )


def _image_stages(kept: Kept) -> tuple[Stage, ...]:
    reasons = {kind: Counter(item.reason for item in kept.skipped if item.kind == kind) for kind in (REFUSED, LEFT_OUT)}
    refused, left = (sum(counts.values()) for counts in reasons.values())
    total, held = len(kept), int(kept.held_sources.sum())
    free = ~kept.held_sources
    return (
        Stage(name="found", count=total + len(kept.skipped) + kept.withdrawn_sources),
        Stage(name="readable", count=total + left + kept.withdrawn_sources, left=_most(reasons[REFUSED], refused)),
        Stage(name="wanted", count=total + kept.withdrawn_sources, left=_most(reasons[LEFT_OUT], left)),
        Stage(name="kept", count=total, left={"withdrawn": kept.withdrawn_sources} if kept.withdrawn_sources else {}),
        Stage(name="not held out", count=total - held, left={"held out for the audit": held} if held else {}),
        Stage(
            name="eligible", count=int(kept.eligible_sources[free].sum()),
            left={"too few valid pixels": int((~kept.eligible_sources[free]).sum())} if (~kept.eligible_sources[free]).any() else {},
        ),
    )  # fmt: skip


def _most(reasons: Mapping[str, int], total: int) -> dict[str, int | str]:
    """The commonest five reasons, and how many more."""
    common = Counter(reasons).most_common(5)
    rest = total - sum(count for _, count in common)
    return {**{reason[:120]: count for reason, count in common}, **({"other reasons": rest} if rest else {})}


def _unit_stages(kept: Kept, trail: Trail) -> tuple[Stage, ...]:
    total, held = kept.num_units, len(kept.held_units & set(kept.unit_names.tolist()))
    eligible, drawn = len(kept.eligible_units), len(kept.eligible_units & trail.drawn.keys())
    stages = [
        Stage(name="kept", count=total),
        Stage(name="not held out", count=total - held, left={"held out for the audit": held} if held else {}),
        Stage(name="eligible", count=eligible, left=_some("beside held-out ground, or too few valid pixels", total - held - eligible)),
    ]
    if trail.trained:
        stages.append(Stage(name="drawn", count=drawn, left=_some("not drawn until this checkpoint", eligible - drawn)))
    return tuple(stages)


def _some(reason: str, count: int) -> dict[str, int | str]:
    return {reason: count} if count > 0 else {}


def store_tables(trail: Trail) -> tuple[Table, ...]:
    """What each store gave; a mix has several, a run that went on with other data has earlier ones."""
    if not trail.stores:
        return ()
    columns = ("store", "share", "drawn", "sources", "refused", "left out", "units", "held-out units", "samples", "units drawn")
    return (
        Table(
            title="Stores that the training drew from", columns=columns, rows=tuple(_store_row(one, trail.steps) for one in trail.stores)
        ),
    )


def _store_row(one: StoreDrawn, steps: int) -> tuple[Cell, ...]:
    until = f"until step {steps if one.until is None else one.until}"
    skipped = (one.skipped.get(REFUSED), one.skipped.get(LEFT_OUT))
    return (one.digest[:12], round(one.share, 3), until, one.sources, *skipped, one.units, one.held_out, one.samples, one.drawn_units)


def split_tables(trail: Trail, names: Iterable[str]) -> tuple[Table, ...]:
    """Units at each stage by each of some columns that the store or the CSV has."""
    kept = trail.kept
    return () if kept is None else tuple(_split(kept, trail, name) for name in dict.fromkeys(names) if name in kept.groups)


def _split(kept: Kept, trail: Trail, name: str) -> Table:
    groups = as_groups(kept.groups[name])
    drawn = set(trail.drawn)
    rows: list[tuple[Cell, ...]] = []
    for label in [*np.unique(groups[groups != ""]).tolist(), *([""] if (groups == "").any() else [])]:
        units = set(kept.units_of(groups == label).tolist())
        stages = (units, units - kept.held_units, units & kept.eligible_units, *([units & drawn] if trail.trained else []))
        skipped = sum(str(item.groups.get(name, "")) == label for item in kept.skipped) if kept.groups_of_skipped and label else None
        rows.append((label or "not recorded", None if skipped is None else printed(skipped), *(printed(len(one)) for one in stages)))
    columns = (name, "sources skipped", "units kept", "not held out", "eligible", *(["drawn"] if trail.trained else []))
    note = "A unit with several values counts in each."
    return Table(title=f"From kept to drawn by {name}", columns=columns, rows=tuple(rows), note=note)
