"""The training's side of the trail: which stores, how many samples of which unit, what it began with. From lineage records alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dinodomain.ingest.sources import LEFT_OUT, REFUSED

if TYPE_CHECKING:
    from dinodomain.audit.trail.kept import Kept

Json = Any
TRAINED = ("run", "checkpoint")
"""Kinds of record that count what was drawn; what was made from them names them in its history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDrawn:
    """One store that a training drew from; what a record does not say is None.

    Attributes:
        digest: Of its tables.
        share: Of all samples that was asked for.
        until: Steps after which the run went on with other data; None for what it drew last.
        sources: Kept in the store.
        units: Of these.
        held_out: Units that nothing trains on.
        skipped: ``refused`` and ``left out`` to how many sources.
        reasons: Reason to how many sources were skipped for it.
        samples: Drawn from it.
        drawn_units: Units that these were of.
    """

    digest: str
    share: float = 1.0
    until: int | None = None
    sources: int | None = None
    units: int | None = None
    held_out: int | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    samples: int | None = None
    drawn_units: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """From sources to samples.

    Attributes:
        stores: All that the training drew from, the latest first.
        drawn: Samples by unit, over the whole run and all its changes.
        steps: Of the run until this checkpoint.
        tiles: That were eligible when the run last began.
        bases: The weights it began with (``weights``, ``sha256``, ``licence``), then those that they began with; empty for fresh ones.
        policy: Settings of its views, as recorded; empty where unknown.
        kept: What the audited store holds; None where none was opened.
        trained: Whether the audited store, by its digest, is one that the training drew from.
    """

    stores: tuple[StoreDrawn, ...] = ()
    drawn: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    tiles: int | None = None
    bases: tuple[Mapping[str, Json], ...] = ()
    policy: Mapping[str, Json] = field(default_factory=dict)
    kept: Kept | None = None
    trained: bool = False

    @property
    def samples(self) -> int:
        """All samples drawn."""
        return sum(self.drawn.values())

    @property
    def withdrawn(self) -> int | None:
        """Units that were drawn and have since been withdrawn from the audited store; None where that is not known."""
        return None if self.kept is None else len(self.kept.withdrawn_units & self.drawn.keys())


def concentration(drawn: Mapping[str, int]) -> tuple[float, float]:
    """Effective number of units, exp of the entropy of their draws, and the share of draws of the 1 % (at least 1) most drawn."""
    counts = np.sort(np.array([count for count in drawn.values() if count > 0], float))[::-1]
    if not len(counts):
        return 0.0, 0.0
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum())), float(share[: max(1, math.ceil(0.01 * len(share)))].sum())


def training_record(record: Mapping[str, Json]) -> Mapping[str, Json]:
    """The record of the training behind an artefact: an export or a fine-tuned network names it in its history; empty where none does."""
    if record.get("kind") in TRAINED:
        return record
    found = (training_record(one) for one in record.get("history", ()))
    return next((one for one in found if one), {})


def base_weights(record: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    """Every warm start behind an artefact, the nearest first: ``weights``, ``sha256``, ``licence``, and their own ``lineage`` if any."""
    start = record.get("plan", {}).get("start") or {}
    if start.get("weights"):
        yield start
        yield from base_weights(start.get("lineage") or {})
    for parent in record.get("history", ()):
        yield from base_weights(parent)


def training_trail(origin: Mapping[str, Json]) -> Trail:
    """What the record of a checkpoint, or of what was made from one, tells; nothing of the stores' contents."""
    record = training_record(origin)
    counts, plan = record.get("counts", {}), record.get("plan", {})
    return Trail(
        stores=(*_last(record), *_earlier(counts)),
        drawn=dict(counts.get("units_drawn", {})),
        steps=int(counts.get("steps", 0)),
        tiles=counts.get("tiles"),
        bases=tuple(base_weights(origin)),
        policy=plan.get("views", {}),
    )


def _last(record: Mapping[str, Json]) -> list[StoreDrawn]:
    """What was drawn from since the last change: a store, or those of a mix in their order."""
    counts, history = record.get("counts", {}), record.get("history", ())
    first: Mapping[str, Json] = next(iter(history), {})
    if first.get("kind") == "mix":
        drawn = counts.get("stores", [{}] * len(first["plan"]["stores"]))
        members = zip(first["plan"]["stores"], first["history"], drawn)
        return [_store(named["store"], own, share=named["share"], drawn=one) for named, own, one in members]
    digest = record.get("parents", {}).get("store")
    if digest is None:
        return []
    since = Counter(counts.get("units_drawn", {}))
    for change in counts.get("changes", ()):
        since.subtract(change["units_drawn"])
    units = {name for name, count in since.items() if count}
    return [_store(digest, first, drawn={"samples": sum(since.values()), "units": len(units)} if counts else {})]


def _store(digest: str, record: Mapping[str, Json], *, drawn: Mapping[str, Json], share: float = 1.0) -> StoreDrawn:
    counts = record.get("counts", {})
    return StoreDrawn(
        digest=digest, share=share, sources=counts.get("sources"), units=counts.get("units"), held_out=counts.get("held_out_units"),
        skipped={REFUSED: counts.get("refused", 0), LEFT_OUT: counts.get("left_out", 0)} if counts else {},
        reasons=counts.get("skipped_by_reason", {}), samples=drawn.get("samples"), drawn_units=drawn.get("units"),
    )  # fmt: skip


def _earlier(counts: Mapping[str, Json]) -> list[StoreDrawn]:
    """What was drawn from before each change; those stores' own counts lie in records that no digest binds to them."""
    changes = [*reversed(counts.get("changes", ()))]
    return [
        StoreDrawn(
            digest=str(change.get("store")), until=int(change["until"]), samples=sum(change["units_drawn"].values()),
            drawn_units=len(change["units_drawn"]),
        )
        for change in changes
    ]  # fmt: skip
