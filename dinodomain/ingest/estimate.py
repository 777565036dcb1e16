"""What an ingest would take, from headers alone: bytes, requests, hours. Says what each number is founded on, and None where on nothing.

Hours are a range, since no header says how fast its pixels decode: the two rates are those of the slowest and the fastest common kind of
source, from file to finished store per core (``benchmarks/ingest.py``, MB of pixels a CPU second). They leave out waiting for a network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinodomain.ingest.sizes import hours_text, size_text
from dinodomain.store.cells import CellGrid
from dinodomain.store.read import Store
from dinodomain.types import SourceRef

SLOW_BYTES_PER_S = 8e6
"""Uncompressed bytes a worker takes in per second where JPEG 2000 must be decoded."""

FAST_BYTES_PER_S = 60e6
"""The same for deflated GeoTIFF."""

_REQUEST_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a dry run reckons for the sources that would be added.

    Attributes:
        sources: Number of sources.
        units: Number of units: patients, groups, or ground cells of the sources' centres; sources on their own count one each.
        bytes_in: Bytes to be read, of the sources that state them.
        bytes_in_unknown: Number of sources that do not.
        bytes_out: Bytes of their pixels, uncompressed.
        bytes_out_unknown: Number of sources that do not state it.
        stored: Expected size on disk, or None.
        stored_from: What that is founded on, or why there is none.
        requests: Requests to servers; None where no source states any.
        workers: Number of workers.
        seconds: Shortest and longest time, or None.
        seconds_from: What that is founded on, or why there is none.
        budget: What a budget is spent on, in words; empty without one.
    """

    sources: int
    units: int
    bytes_in: int
    bytes_in_unknown: int
    bytes_out: int
    bytes_out_unknown: int
    stored: int | None
    stored_from: str
    requests: int | None
    workers: int
    seconds: tuple[float, float] | None
    seconds_from: str
    budget: str = ""

    def lines(self) -> list[str]:
        """Some lines for a person."""
        stored = self.stored_from if self.stored is None else f"about {size_text(self.stored)} ({self.stored_from})"
        time = self.seconds_from
        if self.seconds is not None:
            time = f"{hours_text(self.seconds[0])} to {hours_text(self.seconds[1])} with {self.workers} workers ({self.seconds_from})"
        return [
            f"would be read: {self._size(self.bytes_in, self.bytes_in_unknown)} of {self.sources} sources, {self.units} units",
            f"pixels uncompressed: {self._size(self.bytes_out, self.bytes_out_unknown)}",
            f"on disk: {stored}",
            *([] if self.requests is None else [f"requests: {self.requests}"]),
            f"time: {time}",
            *([f"budget: {self.budget}"] if self.budget else []),
        ]

    def _size(self, known: int, unknown: int) -> str:
        if unknown == self.sources and unknown:
            return "an amount no header states"
        return size_text(known) + (f" (and {unknown} sources that do not state it)" if unknown else "")


def estimate(refs: Sequence[SourceRef], *, workers: int | None, cell_m: float, groups: Mapping[str, str], old: Store | None,
             budget: str = "") -> Estimate:  # fmt: skip
    """Adds up what headers state.

    Args:
        refs: Sources that would be added.
        workers: ``ingest.workers``.
        cell_m: Side of a ground cell, metres.
        groups: Unit by source id, where a CSV says it.
        old: The store that would be added to; what its pixels shrank to is expected of the new ones.
        budget: What the budget is spent on, in words.
    """
    read, out, requests = (_sum(refs, name) for name in ("bytes_in", "bytes_out", "requests"))
    num_workers = max(1, min(len(refs), len(os.sched_getaffinity(0)) if workers is None else workers))
    whole = len(refs) > 0 and out[1] == 0
    stored, stored_from = _stored(out[0], old) if whole else (None, "unknown: some headers do not state how many pixels there are")
    asked = requests[0] if requests[1] < len(refs) else None
    seconds = None
    if whole:
        waiting = (asked or 0) * _REQUEST_SECONDS
        seconds = tuple((out[0] / rate + waiting) / num_workers for rate in (FAST_BYTES_PER_S, SLOW_BYTES_PER_S))
    basis = (
        f"{size_text(SLOW_BYTES_PER_S)}/s of pixels a worker for JPEG 2000, {size_text(FAST_BYTES_PER_S)}/s for deflated GeoTIFF, measured"
        " by benchmarks/ingest.py" + (f", {_REQUEST_SECONDS * 1000:g} ms a request; a slow network takes longer" if asked else "")
    )
    return Estimate(
        sources=len(refs),
        units=_units(refs, groups, cell_m),
        bytes_in=read[0],
        bytes_in_unknown=read[1],
        bytes_out=out[0],
        bytes_out_unknown=out[1],
        stored=stored,
        stored_from=stored_from,
        requests=asked,
        workers=num_workers,
        seconds=None if seconds is None else (seconds[0], seconds[1]),
        seconds_from=basis if seconds is not None else "unknown: some headers do not state how many pixels there are",
        budget=budget,
    )


def _sum(refs: Sequence[SourceRef], name: str) -> tuple[int, int]:
    """The sum of a fact, and the number of sources that do not state it."""
    values = [ref.facts.get(name) for ref in refs]
    known = [int(value) for value in values if isinstance(value, (int, float))]
    return sum(known), len(values) - len(known)


def _units(refs: Sequence[SourceRef], groups: Mapping[str, str], cell_m: float) -> int:
    owners = {groups.get(ref.source_id) or ref.unit for ref in refs} - {None, ""}
    alone = [ref for ref in refs if not (groups.get(ref.source_id) or ref.unit)]
    placed = [ref for ref in alone if isinstance(ref.facts.get("lon"), (int, float)) and isinstance(ref.facts.get("lat"), (int, float))]
    lon, lat = ([float(ref.facts[name]) for ref in placed] for name in ("lon", "lat"))  # type: ignore[arg-type]
    return len(owners) + len(set(CellGrid(cell_m=cell_m).of_places(lon, lat))) + len(alone) - len(placed)


def _stored(bytes_out: int, old: Store | None) -> tuple[int | None, str]:
    if old is None:
        return None, f"at most about {size_text(bytes_out)}; how much less hangs on the pixels, which are not read"
    raw = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in
              zip(old.index["shape"].to_pylist(), old.index["dtype"].to_pylist()))  # fmt: skip
    disk = sum(path.stat().st_size for path in Path(old.path).rglob("*") if path.is_file())
    return round(bytes_out * disk / raw), f"as the store's pixels shrank so far, to {disk / raw:.0%}"
