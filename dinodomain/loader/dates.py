"""The same ground at other dates: which tiles have enough of them, and which ones a draw takes.

A partner of a box is another source on the same grid (``places.py``) that holds every real pixel of the box, has an estimated valid share
of at least ``loader.min_valid`` there (``ChunkGrid.measure``) and touches no held-out chunk. The dates of a sample, the box's own among
them, lie ``loader.min_days`` apart, each from each. T dates per sample, P entries of ``Partners``, n boxes; units: pixels, days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dinodomain.errors import UserError
from dinodomain.loader.columns import slabs
from dinodomain.loader.grid import ChunkGrid
from dinodomain.loader.permute import mix
from dinodomain.loader.places import PLACE, Partners, Sources, find_partners, overlaps_any
from dinodomain.loader.plan import LoaderPlan
from dinodomain.store import Store

_FIRST_LOOK = 16
"""Partners that are tried first: almost always enough, and a place may have hundreds."""
_SLAB = 2**20


@dataclass(frozen=True, slots=True)
class Anchors:
    """n boxes, each the first of its sample.

    Attributes:
        rows: [n] int64 rows of the index.
        starts: [n, 2] int64 first pixels.
        extents: [n, 2] int64.
        held: [n] bool, the box itself touches a held-out chunk: only then its partners may.
    """

    rows: np.ndarray
    starts: np.ndarray
    extents: np.ndarray
    held: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: np.ndarray) -> Anchors:
        """Some of them."""
        return Anchors(self.rows[which], self.starts[which], self.extents[which], self.held[which])


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """Finds the other dates of boxes.

    Attributes:
        grid: Chunk grids of the store.
        partners: Sources that overlap each source on its grid.
        days: [S] int64 date of each source.
        num: Dates per sample, T.
        min_days: Days between two of them at least; 0 allows several sources of one day.
        min_valid: Least valid share of a partner's box.
    """

    grid: ChunkGrid
    partners: Partners
    days: np.ndarray
    num: int
    min_days: int
    min_valid: float

    @staticmethod
    def of(store: Store, grid: ChunkGrid, plan: LoaderPlan) -> Dates:
        """Reads the index of a store of scenes or images."""
        sources = Sources.of(store)
        return Dates(
            grid=grid, partners=find_partners(sources), days=sources.days, num=plan.dates, min_days=plan.min_days, min_valid=plan.min_valid
        )

    @property
    def described(self) -> Sequence[np.ndarray]:
        """What decides the dates of a draw, besides the plan: integer arrays for a digest."""
        return self.partners.place, self.partners.ends, self.partners.rows, self.partners.days, self.partners.shifts

    def of_rows(self, rows: np.ndarray) -> Dates:
        """With partners among ``rows`` only."""
        return replace(self, partners=self.partners.of_rows(rows))

    def enough(self, rows: np.ndarray, starts: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """[n] bool: the box has T dates."""
        return self._num_dates(rows, starts, extents) >= self.num

    def choose(self, boxes: Anchors, keys: np.ndarray) -> np.ndarray:
        """Picks partners in a keyed order.

        Each box goes through its partners in an order of its own and takes every one whose date is far enough from those taken. Where that
        ends with too few (a date in the middle may be in the way of two others), it takes the earliest that fit, going forward
        and then back from its own date: that finds T dates wherever there are.

        Args:
            boxes: The boxes.
            keys: [n] uint64; equal keys and boxes, equal choice.

        Returns:
            [n, T - 1] int64 entries of ``partners``; a row that holds -1 has too few.
        """
        chosen = np.full((len(boxes), self.num - 1), -1, dtype=np.int64)
        begin, stop = self._entries(boxes.rows)
        for limit in (_FIRST_LOOK, None):
            missing = np.flatnonzero((chosen < 0).any(axis=1) & (stop > begin))
            if limit is None:
                missing = missing[(stop - begin)[missing] > _FIRST_LOOK]
            for part in _even(missing, int((stop - begin)[missing].max(initial=1))):
                chosen[part] = self._in_order(boxes.take(part), keys[part], limit)
        short = np.flatnonzero((chosen < 0).any(axis=1))
        if len(short) and self.num > 2:  # two dates: every partner was tried
            chosen[short] = self._packed(boxes.take(short))
        return chosen

    def placed(self, boxes: Anchors, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, T] and starts [n, T, 2] of boxes and their chosen entries, the boxes first."""
        rows, shifts = self.partners.rows[chosen], self.partners.shifts[chosen]
        own = boxes.starts[:, None]
        return np.concatenate([boxes.rows[:, None], rows], axis=1), np.concatenate([own, own + shifts], axis=1)

    def too_few(self, store: Store, rows: np.ndarray, starts: np.ndarray, extents: np.ndarray) -> UserError:
        """Says why no tile has T dates."""
        counts = np.bincount(self._num_dates(rows, starts, extents)).tolist()
        tiles = ", ".join(
            f"{count}{' tiles' * (dates == 1)} with {dates} date{'s' * (dates > 1)}" for dates, count in enumerate(counts) if count
        )
        sources = np.unique(rows)
        reasons = "; ".join(f"{count} {why}" for why, count in self._reasons(store, sources) if count)
        problem = f"no tile has {self.num} dates at least {self.min_days} days apart ({tiles}; of {len(sources)} sources {reasons})"
        remedy = (
            "ingest further dates on one grid (domain, ingest.bands, ingest.grid and ingest.crs alike), lower loader.dates, "
            "loader.min_days or loader.min_valid, or set loader.pairs=none"
        )
        return UserError("loader.pairs", problem, remedy=remedy)

    def _reasons(self, store: Store, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        """Number of sources by what they lack, each counted once."""
        sources, place = Sources.of(store), self.partners.place
        alone = np.diff(self.partners.ends)[place] < 2
        steps = (
            ("without an acquisition date", ~sources.dated),
            ("without a CRS or affine", ~sources.placed),
            ("that no other overlaps in their CRS", ~overlaps_any(sources)),
            (
                "overlapped, but on no equal grid (pixel size, a fraction of a pixel, channels, dtype, stated unit) or by none with a date",
                alone,
            ),
            (
                "with partners that are too near in date, or there do not hold a whole tile, are not valid or are held out",
                np.ones_like(alone),
            ),
        )
        left = np.isin(np.arange(len(place)), rows)
        for why, found in steps:
            yield why, int((left & found).sum())
            left &= ~found

    def _num_dates(self, rows: np.ndarray, starts: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """[n] int64 dates of each box, its own included, T at most."""
        held = self.grid.measure(rows, starts, extents).held if self.grid.held.any() else np.zeros(len(rows), dtype=bool)
        counts: np.ndarray = 1 + (self._packed(Anchors(rows, starts, extents, held)) >= 0).sum(axis=1)
        return counts

    def _entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and stop [n] entry of each source; equal where it has none."""
        place = self.partners.place[rows]
        return self.partners.ends[place], self.partners.ends[place + 1]

    def _fits(self, entries: np.ndarray, boxes: Anchors) -> np.ndarray:
        """[n] bool: the entry holds the box, is valid enough there and touches nothing held out; dates are not looked at."""
        partner, begin = self.partners.rows[entries], boxes.starts + self.partners.shifts[entries]
        size, whole = self.grid.size[boxes.rows], self.grid.size[partner]
        low = np.maximum(boxes.starts, 0) - boxes.starts
        high = np.minimum(boxes.starts + boxes.extents, size) - boxes.starts
        fits = (partner != boxes.rows) & (begin + low >= 0).all(axis=1) & (begin + high <= whole).all(axis=1)
        left = np.flatnonzero(fits)
        measured = self.grid.measure(partner[left], begin[left], boxes.extents[left])
        fits[left] = (measured.share >= self.min_valid - 1e-6) & (boxes.held[left] | ~measured.held)
        found: np.ndarray = fits
        return found

    def _in_order(self, boxes: Anchors, keys: np.ndarray, limit: int | None) -> np.ndarray:
        """Chosen entries when at most ``limit`` partners are tried, in keyed order; see ``choose``."""
        begin, stop = self._entries(boxes.rows)
        entries = begin[:, None] + np.arange(int((stop - begin).max()))
        inside = entries < stop[:, None]
        entries = np.where(inside, entries, begin[:, None])
        own, rows = self.days[boxes.rows, None], self.partners.rows[entries]
        inside &= (rows != boxes.rows[:, None]) & (np.abs(self.partners.days[entries] - own) >= self.min_days)
        rank = np.where(inside, mix(keys[:, None] ^ mix(rows.view(np.uint64))), np.uint64(2**64 - 1))
        order = np.argsort(rank, axis=1, kind="stable")[:, :limit]
        entries, inside = np.take_along_axis(entries, order, axis=1), np.take_along_axis(inside, order, axis=1)
        box, column = np.nonzero(inside)
        inside[box, column] = self._fits(entries[box, column], boxes.take(box))
        return self._taken(entries, inside, own)

    def _taken(self, entries: np.ndarray, fits: np.ndarray, own: np.ndarray) -> np.ndarray:
        """From the left, every entry that fits and is far enough from ``own`` [n, 1] and those taken before; T - 1 at most."""
        chosen = np.full((len(entries), self.num - 1), -1, dtype=np.int64)
        days, count = np.repeat(own, self.num, axis=1), np.zeros(len(entries), dtype=np.int64)
        for column in range(entries.shape[1]):
            day = self.partners.days[entries[:, column]]
            take = fits[:, column] & (count < self.num - 1) & (np.abs(day[:, None] - days) >= self.min_days).all(axis=1)
            box = np.flatnonzero(take)
            chosen[box, count[box]] = entries[box, column]
            count[box] += 1
            days[box, count[box]] = day[box]
        return chosen

    def _packed(self, boxes: Anchors) -> np.ndarray:
        """[n, T - 1] entries: forward from each box's date whatever fits first, then back; as many dates as there can be, up to T."""
        chosen, count = np.full((len(boxes), self.num - 1), -1, dtype=np.int64), np.zeros(len(boxes), dtype=np.int64)
        begin, stop = self._entries(boxes.rows)
        keys, place = self.partners.keys, self.partners.place[boxes.rows] * PLACE
        own = np.where(stop > begin, self.days[boxes.rows], 0)
        for sign in (1, -1):
            # Forward takes the box's own day along where min_days is 0; back begins a day earlier, so that no entry is met twice.
            gap, side = (self.min_days, "left") if sign > 0 else (max(self.min_days, 1), "right")
            at = np.searchsorted(keys, place + own + sign * gap, side) - (sign < 0)  # type: ignore[call-overload] # a literal
            going = np.flatnonzero(count < self.num - 1)
            while len(going := going[(at[going] >= begin[going]) & (at[going] < stop[going])]):
                hit = going[self._fits(at[going], boxes.take(going))]
                chosen[hit, count[hit]] = at[hit]
                count[hit] += 1
                after = np.searchsorted(keys, place[hit] + self.partners.days[at[hit]] + sign * self.min_days, side) - (sign < 0)  # type: ignore[call-overload]
                at[going] += sign
                at[hit] = np.maximum(at[hit], after) if sign > 0 else np.minimum(at[hit], after)
                going = going[count[going] < self.num - 1]
        return chosen


def _even(which: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Parts of ``which`` that make tables of a bounded size when each takes ``width`` places."""
    for part in slabs(np.full(len(which), width), _SLAB):
        yield which[part]
