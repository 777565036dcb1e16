"""What a run drew, for its lineage: samples of each unit, store by store where several are mixed, across changes of what is drawn.

Counts follow from the order alone. Only where a run went on with another store, tile list or weights (``resume=force``) is there more to
keep: what was drawn until then, in ``changes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinodomain.loader import Loader
from dinodomain.store import Store

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What the steps of a run drew.

    Attributes:
        store: That is drawn from now.
        loader: Its loader.
        changes: What was drawn until each change: ``until`` (steps), ``store`` (digest), ``index_digest``, ``units_drawn``.
        histories: Lineage records of the stores that were drawn from before, by digest.
    """

    store: Store
    loader: Loader
    changes: tuple[Mapping[str, Json], ...] = ()
    histories: tuple[Mapping[str, Json], ...] = ()

    def counts(self, step: int) -> dict[str, Json]:
        """Numbers after ``step`` steps."""
        since = int(self.changes[-1]["until"]) if self.changes else 0
        units: Counter[str] = Counter(self.loader.drawn_units(step, since=since))
        for change in self.changes:
            units.update(change["units_drawn"])
        counts = {
            "steps": step,
            "samples": sum(units.values()),
            "tiles": self.loader.num_tiles,
            "units": len(units),
            "units_drawn": dict(sorted(units.items())),
        }
        if len(self.store.shares) > 1:
            counts["stores"] = [self._of_store(number, step, since) for number in range(len(self.store.shares))]
        if self.changes:
            counts["changes"] = [dict(change) for change in self.changes]
        return counts

    def _of_store(self, number: int, step: int, since: int) -> dict[str, Json]:
        """One store of a mix, since the last change."""
        units = self.loader.drawn_units(step, since=since, store=number)
        named: Mapping[str, Json] = self.store.lineage["plan"]["stores"][number]
        return {**named, "samples": sum(units.values()), "units": len(units), "units_drawn": dict(units)}

    def history(self) -> tuple[Mapping[str, Json], ...]:
        """Lineage of the store, and of those before it."""
        return (self.store.lineage, *self.histories)


def continued(store: Store, loader: Loader, step: int, record: Mapping[str, Json], state: Mapping[str, Json]) -> Drawn:
    """What a run has drawn that goes on from a checkpoint.

    Args:
        store: That is drawn from now.
        loader: Its loader.
        step: Finished steps.
        record: Lineage record of the checkpoint.
        state: Loader state of the checkpoint.
    """
    counts = record.get("counts", {})
    changes, histories = tuple(counts.get("changes", ())), tuple(record.get("history", ()))[1:]
    if state["index_digest"] == loader.index_digest:
        return Drawn(store=store, loader=loader, changes=changes, histories=histories)
    earlier = Counter(counts.get("units_drawn", {}))
    for change in changes:
        earlier.subtract(change["units_drawn"])
    change = {
        "until": step,
        "store": record.get("parents", {}).get("store"),
        "index_digest": state["index_digest"],
        "units_drawn": {name: count for name, count in earlier.items() if count},
    }
    known = [*record.get("history", ())]
    kept = tuple(one for place, one in enumerate(known) if one != store.lineage and one not in known[:place])
    return Drawn(store=store, loader=loader, changes=(*changes, change), histories=kept)


def what_changed(store: Store, loader: Loader, record: Mapping[str, Json]) -> str:
    """How what is drawn differs from what a checkpoint's record names, in words."""
    counts, history = record.get("counts", {}), record.get("history", ())
    found = _stores_changed(history[0] if history else {}, str(record.get("parents", {}).get("store")), store)
    tiles = counts.get("tiles")
    if tiles != loader.num_tiles:
        found.append(f"it had {tiles} eligible tiles, now {loader.num_tiles}")
    return "; ".join(found) or "other tiles are eligible, or they are read, weighted or dealt out differently"


def _stores_changed(before: Mapping[str, Json], digest: str, store: Store) -> list[str]:
    if digest == store.digest:
        return []
    old, new = (_members(record) for record in (before, store.lineage))
    if not old or not new or len(old) != len(new):
        return [f"the store was {digest[:12]}, now {store.digest[:12]}"]
    found = []
    for number, (one, other) in enumerate(zip(old, new)):
        if one["store"] != other["store"]:
            found.append(f"stores[{number}] was {one['store'][:12]}, now {other['store'][:12]}")
        if one["share"] != other["share"]:
            found.append(f"stores[{number}].share was {one['share']:g}, now {other['share']:g}")
    return found


def _members(record: Mapping[str, Json]) -> Sequence[Mapping[str, Json]]:
    """The stores of a mix by its lineage record; none for a store."""
    stores: Sequence[Mapping[str, Json]] = record.get("plan", {}).get("stores", ()) if record.get("kind") == "mix" else ()
    return stores
