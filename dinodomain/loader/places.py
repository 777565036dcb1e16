"""Which sources show the same ground on the same pixel grid, found from the index alone.

Sources on one grid have equal CRS text, dtype, channels and unit, equal pixel size and orientation, and origins that differ by whole
pixels, all to within ``TOLERANCE`` pixels anywhere in what they share. Nothing is resampled and no two map zones are ever compared. A
*place* is one exact grid and shape: an orbit tile seen a hundred times is one place, and the search for what overlaps runs over places,
sorted along one axis within strips of the other, never over all pairs. Pixel coordinates are (row, column); affines map (column, row) of
corners to the CRS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinodomain.loader.columns import expand, list_codes, matrix, ragged, row_codes, slabs, text_codes
from dinodomain.store import Store

TOLERANCE = 1e-3
"""Pixels by which two grids may differ and still count as one."""
PLACE = 2**32
UNKNOWN = np.iinfo(np.int64).min // 4
"""Day of a source without a date."""
_FAR = 2.0**36
_HUGE = 1e12
"""No map has coordinates as large, nor pixels as small as one divided by it."""
_SLAB = 2**20
_MOST_STRIPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the index says of S sources.

    Attributes:
        days: [S] int64 days since 1970 (the calendar date that is stated), or ``UNKNOWN``.
        crs: [S] int64 code of the CRS, -1 where unknown.
        kind: [S] int64 code of dtype, channels and unit (where sources state one: splits and the count of draws go by units).
        affine: [S, 6] float64, row-major; NaN where unknown or no map's.
        size: [S, 2] int64 spatial shape.
    """

    days: np.ndarray
    crs: np.ndarray
    kind: np.ndarray
    affine: np.ndarray
    size: np.ndarray

    @staticmethod
    def of(store: Store) -> Sources:
        """Reads the columns of a store of scenes or images."""
        index = store.index
        dtypes, _ = text_codes(index["dtype"])
        units, _ = text_codes(index["unit"])
        kind, _ = row_codes(np.stack([dtypes, list_codes(index, "channels"), units], axis=1))
        return Sources(
            days=_days(index["acquired"]),
            crs=text_codes(index["crs"])[0],
            kind=kind,
            affine=_affines(index),
            size=matrix(index, "shape")[:, 1:],
        )

    @property
    def dated(self) -> np.ndarray:
        """[S] bool."""
        known: np.ndarray = self.days != UNKNOWN
        return known

    @property
    def placed(self) -> np.ndarray:
        """[S] bool, CRS and affine are known."""
        known: np.ndarray = (self.crs >= 0) & ~np.isnan(self.affine[:, 0])
        return known


@dataclass(frozen=True, kw_only=True)
class Partners:
    """The sources that overlap each place, by date. P entries.

    Attributes:
        place: [S] int64 place of each source; sources without a date or a position have the last one, which has no entries.
        ends: [places + 1] int64: entries of place p are ``ends[p]`` to ``ends[p + 1] - 1``, by date, then row.
        rows: [P] int64 rows of the index; a source is an entry of its own place, too.
        days: [P] int64 their dates.
        shifts: [P, 2] int64: pixel (r, c) of the place is pixel (r, c) + shift of the source.
    """

    place: np.ndarray
    ends: np.ndarray
    rows: np.ndarray
    days: np.ndarray
    shifts: np.ndarray

    @cached_property
    def keys(self) -> np.ndarray:
        """[P] int64, place * ``PLACE`` + day: one sorted array that answers where dates of a place begin."""
        keys: np.ndarray = np.repeat(np.arange(len(self.ends) - 1), np.diff(self.ends)) * PLACE + self.days
        return keys

    def of_rows(self, rows: np.ndarray) -> Partners:
        """Without the sources that are not among ``rows``."""
        kept = np.isin(self.rows, rows)
        before = np.concatenate([[0], np.cumsum(kept)])
        return replace(self, ends=before[self.ends], rows=self.rows[kept], days=self.days[kept], shifts=self.shifts[kept])


def find_partners(sources: Sources) -> Partners:
    """Finds all sources that share a grid and some ground. Memory grows with the number of overlapping pairs."""
    usable = np.flatnonzero(sources.dated & sources.placed)
    codes, first = _exact(sources, usable)
    place = np.full(len(sources.days), len(first), dtype=np.int64)
    place[usable] = codes
    one, two, shifts = _neighbours(sources, usable[first])
    # Members of each place, then for every pair (place, neighbour) the members of the neighbour.
    members = usable[np.argsort(codes, kind="stable")]
    ends = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(first)))])
    pair, member = expand(np.diff(ends)[two])
    rows = members[ends[two][pair] + member]
    rank = np.empty(len(sources.days), dtype=np.int64)
    rank[np.argsort(sources.days, kind="stable")] = np.arange(len(rank))
    order = np.argsort(one[pair] * len(rank) + rank[rows])  # one key: a sort by place, day and row takes ten times as long
    rows, pair = rows[order], pair[order]
    counts = np.bincount(one[pair], minlength=len(first) + 1)
    return Partners(
        place=place,
        ends=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows=rows,
        days=sources.days[rows],
        shifts=shifts[pair],
    )


def overlaps_any(sources: Sources) -> np.ndarray:
    """[S] bool: some other source with a position shows a part of the same ground in the same CRS, on whatever grid."""
    usable = np.flatnonzero(sources.placed)
    codes, first = _exact(sources, usable)
    crowded = np.bincount(codes, minlength=len(first)) > 1
    corners = _on_map(sources, usable[first])
    # In pixels of the finest source, so that strips have a sensible height whatever the map's unit is.
    finest = np.abs(sources.affine[usable[first]][:, [0, 1, 3, 4]]).max(axis=1).min(initial=np.inf)
    for one, two in _overlapping(sources.crs[usable[first]], corners.min(axis=1) / finest, corners.max(axis=1) / finest):
        crowded[one] = crowded[two] = True
    found = np.zeros(len(sources.days), dtype=bool)
    found[usable] = crowded[codes]
    return found


def _exact(sources: Sources, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of equal CRS, dtype, channels, affine and shape."""
    whole = np.stack([sources.crs, sources.kind, *sources.size.T], axis=1)[rows]
    bits = (sources.affine[rows] + 0.0).view(np.int64)  # adding 0 makes -0 the same as 0
    return row_codes(np.concatenate([whole, bits], axis=1))


def _neighbours(sources: Sources, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directed pairs of places (each with itself first) that share grid and ground, with the shift from one to the other.

    Args:
        sources: All sources.
        rows: [places] one source of each place.
    """
    itself = np.arange(len(rows))
    found = [(itself, itself, np.zeros((len(rows), 2), dtype=np.int64))]
    group, first = row_codes(_alike(sources, rows)[:, None])
    corners = _in_frame(sources, rows, rows[first][group])
    for one, two in _overlapping(group, np.floor(corners.min(axis=1)) - 1, np.ceil(corners.max(axis=1)) + 1):
        shift, same = _shift(sources, rows[one], rows[two])
        one, two, shift = one[same], two[same], shift[same]
        found += [(one, two, shift), (two, one, -shift)]
    return tuple(np.concatenate(parts) for parts in zip(*found))  # type: ignore[return-value] # three of them


def _alike(sources: Sources, rows: np.ndarray) -> np.ndarray:
    """[n] codes: equal where CRS, dtype and channels are, and pixel vectors are close enough that ``_shift`` has to decide."""
    group, _ = row_codes(np.stack([sources.crs[rows], sources.kind[rows]], axis=1))
    vectors = sources.affine[rows][:, [0, 1, 3, 4]]
    for column in (np.abs(vectors).max(axis=1), *vectors.T):
        # Split where sorted values leave a gap: values that are close can have none between them.
        largest = np.zeros(len(rows))
        np.maximum.at(largest, group, np.abs(vectors).max(axis=1))
        order = np.lexsort((column, group))
        apart = (np.diff(group[order]) != 0) | (np.diff(column[order]) > 3 * TOLERANCE * largest[group[order]][1:])
        group[order] = np.concatenate([[0], np.cumsum(apart)])[: len(order)]
    return group


def _shift(sources: Sources, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole pixels [n, 2] from grid ``one`` to grid ``two``, and whether they are whole to within ``TOLERANCE`` where both have pixels."""
    a, b = sources.affine[one], sources.affine[two]
    # Columns of ``turn`` are a pixel step of ``one`` along columns and rows, in pixels of ``two``.
    turn = np.stack([_solved(b, a[:, [0, 3]]), _solved(b, a[:, [1, 4]])], axis=2)
    move = _solved(b, a[:, [2, 5]] - b[:, [2, 5]])
    shift = np.rint(np.clip(move, -_FAR, _FAR))
    size = sources.size[:, ::-1]
    low, high = np.maximum(-shift, 0), np.minimum(size[one], size[two] - shift)
    off = np.zeros(len(one))
    for corner in ((low[:, 0], low[:, 1]), (high[:, 0], low[:, 1]), (low[:, 0], high[:, 1]), (high[:, 0], high[:, 1])):
        at = np.stack(corner, axis=1)
        there = turn[:, :, 0] * at[:, :1] + turn[:, :, 1] * at[:, 1:] + move
        for axis in (0, 1):
            off = np.maximum(off, np.abs(there[:, axis] - at[:, axis] - shift[:, axis]))
    return shift[:, ::-1].astype(np.int64), (off <= TOLERANCE) & (high > low).all(axis=1)


def _solved(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(column, row) [..., 2] of map distances [..., 2] under the pixel vectors of affines [..., 6] (Cramer's rule)."""
    a, b, d, e = (affine[..., i] for i in (0, 1, 3, 4))
    x, y = xy[..., 0], xy[..., 1]
    solved: np.ndarray = np.stack([e * x - b * y, a * y - d * x], axis=-1) / (a * e - b * d)[..., None]
    return solved


def _on_map(sources: Sources, rows: np.ndarray) -> np.ndarray:
    """[n, 4, 2] x, y of the corners."""
    width, height = sources.size[rows, 1].astype(np.float64), sources.size[rows, 0].astype(np.float64)
    column, row = np.stack([width * 0, width, width * 0, width], axis=1), np.stack([height * 0, height * 0, height, height], axis=1)
    a, b, c, d, e, f = (sources.affine[rows, i, None] for i in range(6))
    return np.stack([a * column + b * row + c, d * column + e * row + f], axis=2)


def _in_frame(sources: Sources, rows: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """[n, 4, 2] column, row of the corners in the pixel grid of the sources ``frame``."""
    whose = sources.affine[frame][:, None]
    return _solved(whose, _on_map(sources, rows) - whose[..., [2, 5]])


def _overlapping(group: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of boxes of one group that overlap, each once, in slabs.

    Boxes are listed in every horizontal strip they reach and sorted along x within it; whatever begins before a box ends is a candidate.

    Args:
        group: [n] int64.
        low: [n, 2] smallest x, y.
        high: [n, 2] largest x, y.
    """
    if len(group) < 2:
        return
    low, high = (np.clip(np.rint(values), -_FAR, _FAR).astype(np.int64) for values in (low, high))
    heights = high[:, 1] - low[:, 1]
    strip = max(1, int(np.median(heights)), int(heights.max()) // _MOST_STRIPS)
    top, bottom = low[:, 1] // strip, high[:, 1] // strip
    box, step = expand(bottom - top + 1)
    level = top[box] + step
    segment, _ = row_codes(np.stack([group[box], level], axis=1))
    width, least = int(high[:, 0].max() - low[:, 0].min()) + 1, int(low[:, 0].min())
    begin = segment * width + (low[box, 0] - least)
    order = np.argsort(begin, kind="stable")
    box, level, begin = box[order], level[order], begin[order]
    after = np.searchsorted(begin, segment[order] * width + (high[box, 0] - least))
    counts = np.maximum(after - np.arange(len(box)) - 1, 0)
    for part in slabs(counts, _SLAB):
        entry, step = expand(counts[part])
        entry = entry + part.start
        one, two = box[entry], box[entry + 1 + step]
        upper, lower = np.maximum(low[one, 1], low[two, 1]), np.minimum(high[one, 1], high[two, 1])
        # A pair meets in every strip both reach: it counts in the first of them.
        kept = (upper < lower) & (level[entry] == np.maximum(top[one], top[two]))
        yield one[kept], two[kept]


def _days(values: pa.ChunkedArray) -> np.ndarray:
    """Days since 1970 of ISO dates and date-times: the calendar date as stated, whatever time and zone follow it."""
    text = pc.utf8_slice_codeunits(values.combine_chunks().cast(pa.string()), 0, 10)
    iso = pc.if_else(pc.match_substring_regex(text, r"^\d{4}-\d{2}-\d{2}$"), text, pa.scalar(None, pa.string()))
    moments = pc.strptime(iso, format="%Y-%m-%d", unit="s", error_is_null=True)
    seconds = pc.fill_null(moments.cast(pa.int64()), UNKNOWN).to_numpy(zero_copy_only=False)
    days: np.ndarray = np.where(seconds == UNKNOWN, UNKNOWN, seconds // 86400)
    return days


def _affines(table: pa.Table) -> np.ndarray:
    """[S, 6]: the first two rows of 2x3 or 3x3 affines."""
    flat, lengths = ragged(table, "affine")
    found = np.full((len(lengths), 6), np.nan)
    has = (lengths == 6) | (lengths == 9)
    first = np.cumsum(lengths) - lengths
    found[has] = flat.astype(np.float64)[first[has, None] + np.arange(6)]
    found[~(np.abs(found) < _HUGE).all(axis=1)] = np.nan
    found[~(np.abs(found[:, 0] * found[:, 4] - found[:, 1] * found[:, 3]) > 1 / _HUGE**2)] = np.nan
    return found
