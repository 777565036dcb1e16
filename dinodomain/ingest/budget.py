"""Which sources a budget of bytes is spent on: evenly over places, seasons and sensors, drawn by a seed.

A stratum is a ground cell, a meteorological season and a sensor, as headers state them; what a header lacks is a stratum of its own.
Strata take turns, one source each, until nothing more fits. The order hangs on seed and source ids alone, so the same sources give the
same choice in whatever order, on whatever machine, they are found. Sources that a store holds already count first: a second run with the
same budget adds nothing, a larger budget only adds.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dinodomain.errors import LeftOut, UserError
from dinodomain.store.cells import CellGrid
from dinodomain.types import FactValue, SourceRef

_PLACE = "ingest.budget"
_SENSOR = ("platform", "sensor", "Modality", "ManufacturerModelName")
_SEASONS = ("winter", "spring", "summer", "autumn")

Stratum = tuple[str, str, str]
"""Ground cell, season, sensor; empty where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a budget is spent on.

    Attributes:
        chosen: Source ids that are taken; those that were there already included.
        spent: Bytes of those.
        strata: Number of strata.
        covered: Number of strata with a chosen source.
    """

    chosen: frozenset[str]
    spent: int
    strata: int
    covered: int


def season_of(acquired: str, lat: float | None) -> str:
    """Meteorological season: December to February is winter north of the equator and summer south of it.

    Args:
        acquired: ISO date, at least year and month.
        lat: Degrees; None counts as north, so that the parts of the year stay apart.
    """
    month = acquired[5:7]
    if acquired[4:5] != "-" or not month.isdigit() or not 1 <= int(month) <= 12:
        return ""
    quarter = int(month) % 12 // 3
    return _SEASONS[(quarter + 2) % 4 if lat is not None and lat < 0 else quarter]


def strata_of(refs: Sequence[SourceRef], cell_m: float) -> list[Stratum]:
    """The stratum of each source."""
    places = [_place(ref.facts) for ref in refs]
    known = [place for place in places if place is not None]
    cells = iter(CellGrid(cell_m=cell_m).of_places([lon for lon, _ in known], [lat for _, lat in known]))
    return [
        (
            "" if place is None else next(cells),
            season_of(str(ref.facts.get("acquired") or ""), None if place is None else place[1]),
            "/".join(str(ref.facts[name]) for name in _SENSOR if ref.facts.get(name)),
        )
        for ref, place in zip(refs, places)
    ]


def _place(facts: Mapping[str, FactValue]) -> tuple[float, float] | None:
    lon, lat = facts.get("lon"), facts.get("lat")
    if isinstance(lon, (int, float)) and isinstance(lat, (int, float)) and math.isfinite(lon) and math.isfinite(lat):
        return float(lon), float(lat)
    return None


def choose(refs: Sequence[SourceRef], *, budget: int, seed: int, cell_m: float, present: Collection[str] = ()) -> Choice:
    """Spends a budget.

    As long as the budget holds the smallest source of every stratum, every stratum gets one.

    Args:
        refs: Sources that state ``bytes_in``.
        budget: Bytes.
        seed: Of the draw.
        cell_m: Side of the ground cells, metres.
        present: Ids of sources that the store holds already; they are chosen whatever they take.

    Raises:
        UserError: Sources do not state their size.
    """
    sizes = _sizes(refs)
    stratum_of = {ref.source_id: stratum for ref, stratum in zip(refs, strata_of(refs, cell_m))}
    queues: dict[Stratum, deque[str]] = {}
    for name in sorted(stratum_of, key=lambda name: _draw(seed, name)):
        queues.setdefault(stratum_of[name], deque()).append(name)
    order = sorted(queues, key=lambda stratum: _draw(seed, "\0".join(stratum)))
    purse = _Purse(budget, sizes)
    purse.keep_present(queues, present)
    covered = {stratum_of[name] for name in purse.chosen}
    purse.first_round([queues[stratum] for stratum in order if stratum not in covered])
    purse.further_rounds([queues[stratum] for stratum in order])
    covered = {stratum_of[name] for name in purse.chosen}
    return Choice(chosen=frozenset(purse.chosen), spent=purse.spent, strata=len(queues), covered=len(covered))


class _Purse:
    """What is left of the budget, and what was bought; queues hold source ids."""

    def __init__(self, budget: int, sizes: Mapping[str, int]) -> None:
        self._budget, self._sizes = budget, sizes
        self.chosen: set[str] = set()
        self.spent = 0

    def keep_present(self, queues: Mapping[Stratum, deque[str]], present: Collection[str]) -> None:
        """Takes what the store holds out of the queues."""
        for queue in queues.values():
            waiting = [name for name in queue if name not in present]
            for name in queue:
                if name in present:
                    self._take(name)
            queue.clear()
            queue.extend(waiting)

    def first_round(self, queues: Sequence[deque[str]]) -> None:
        """One source per stratum, with as much held back as the smallest ones of the strata after it need."""
        least = [min((self._sizes[name] for name in queue), default=0) for queue in queues]
        if sum(least) > self._budget - self.spent:  # not every stratum can be served, whoever waits
            least = [0] * len(queues)
        held_back = sum(least)
        for queue, size in zip(queues, least):
            held_back -= size
            fitting = next((name for name in queue if self._sizes[name] <= self._budget - self.spent - held_back), None)
            if fitting is not None:
                self._take(fitting)
                queue.remove(fitting)

    def further_rounds(self, queues: Sequence[deque[str]]) -> None:
        """Strata take turns until nothing fits; what does not fit now never will."""
        waiting = [queue for queue in queues if queue]
        while waiting:
            for queue in waiting:
                while queue:
                    name = queue.popleft()
                    if self._sizes[name] <= self._budget - self.spent:
                        self._take(name)
                        break
            waiting = [queue for queue in waiting if queue]

    def _take(self, name: str) -> None:
        self.chosen.add(name)
        self.spent += self._sizes[name]


def _sizes(refs: Sequence[SourceRef]) -> dict[str, int]:
    stated = {ref.source_id: ref.facts.get("bytes_in") for ref in refs}
    sizes = {name: int(size) for name, size in stated.items() if isinstance(size, (int, float)) and size >= 0}
    if len(sizes) < len(stated):
        without = sorted(stated.keys() - sizes.keys())
        problem = f"{len(without)} of {len(stated)} sources do not state how many bytes they take, {without[0]!r} among them"
        raise UserError(_PLACE, problem, remedy="leave them out with ingest.exclude, or do without ingest.budget")
    return sizes


def _draw(seed: int, name: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest(), name


def left_out(ref: SourceRef, budget: str) -> LeftOut:
    """The row of a source that the budget does not reach."""
    return LeftOut(ref.uris[0], f"ingest.budget={budget}", "raise ingest.budget to take more in", keys=ref.keys)
