"""The store's side of the trail: what lies in the audited store, what was kept out of it and why. S sources, N cells of chunk grids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinodomain.audit.trail.heads import Head

Json = Any
Rehash = Callable[[np.ndarray], np.ndarray]
"""([n] rows of the index) to [n] bool: the pixels read now have the recorded content hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A source that did not enter the store.

    Attributes:
        reason: As ingest told it.
        kind: ``refused`` or ``left out``.
        groups: Columns of the CSV that speak of it; empty where none does.
    """

    reason: str
    kind: str
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an audited store holds.

    Attributes:
        digest: Of its tables.
        domain: That made it.
        ndim: Spatial axes.
        personal: Whether it is about people: dates are shifted, names are pseudonyms.
        index: Columns of the index by name, [S]: ``content_hash``, ``licence``, ``source_digest``, ``acquired``, ``lat``, ``shape``,
            ``affine``, ``crs`` ...
        groups: Columns that may tell groups apart, [S]: acquisition fields of the index and the columns of the CSV.
        unit_rows: [M] row of the index and ...
        unit_names: [M] ... unit, each pair once.
        held_units: Units that the store holds out.
        held_sources: [S] nothing of the source may be drawn, for it touches held-out units.
        eligible_sources: [S] the training could draw from it.
        eligible_units: Units of which the training could draw.
        skipped: Sources that were refused or left out.
        groups_of_skipped: Whether the CSV could be joined to the skipped sources.
        withdrawn_units: Stored ids of units that are gone.
        withdrawn_sources: How many sources are gone.
        rehash: Reads pixels again.
        volumes: Reads volumes as stacks of small slices, see ``trail.parts``; None where there are none.
        heads: ([n] rows of the index) to row and what it shows of a head, see ``trail.heads``; None where there are no volumes.
    """

    digest: str
    domain: str
    ndim: int
    personal: bool
    index: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    unit_rows: np.ndarray
    unit_names: np.ndarray
    held_units: frozenset[str]
    held_sources: np.ndarray
    eligible_sources: np.ndarray
    eligible_units: frozenset[str]
    skipped: tuple[Left, ...] = ()
    groups_of_skipped: bool = False
    withdrawn_units: frozenset[str] = frozenset()
    withdrawn_sources: int = 0
    rehash: Rehash | None = None
    volumes: Callable[[], Mapping[int, np.ndarray]] | None = None
    heads: Callable[[np.ndarray], Mapping[int, Head]] | None = None

    def __len__(self) -> int:
        return len(self.held_sources)

    @property
    def num_units(self) -> int:
        """Distinct units."""
        return len(np.unique(self.unit_names))

    def units_of(self, sources: np.ndarray) -> np.ndarray:
        """Distinct units of a mask [S] of sources."""
        found: np.ndarray = np.unique(self.unit_names[sources[self.unit_rows]])
        return found


def fields_of(texts: Iterable[str | None]) -> dict[str, np.ndarray]:
    """Acquisition fields of an index (JSON text for each source) by name, each [S] text, "" where a source has none."""
    read = [json.loads(text) if text else {} for text in texts]
    names = sorted({name for one in read for name in one})
    return {name: np.array(["" if one.get(name) is None else str(one[name]) for one in read], dtype=object) for name in names}
