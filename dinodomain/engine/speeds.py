"""How many samples a second a store gives on this machine, by who reads: for choosing loader keys by measurement.

Nothing is computed from the samples, so a rate is the most that training could use. Each setting draws other tiles than the ones before
it, but a store that fits into memory comes from there after a while: what a cold disk gives shows in the first epoch of a larger one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from dinodomain.engine.machine import available_memory, readable_size, usable_cores
from dinodomain.lineage import Json
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.store import Store
from dinodomain.store.place import is_remote, shown

ROUNDS = 3
"""Times that every setting is measured, all settings in turn; the median counts, because machines are rarely idle."""

NEAR = 0.9
"""Share of the best rate that a cheaper setting must reach to be recommended."""

_SPARE = 4
"""Cores from which processes are recommended rather than threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One setting.

    Attributes:
        workers: Reader processes; 0 for threads of this process.
        threads: Decode threads of each; 0 for the calling thread.
        samples_per_s: Samples a second.
        bytes_per_s: Decoded pixels, bytes a second.
    """

    workers: int
    threads: int
    samples_per_s: float
    bytes_per_s: float

    @property
    def who(self) -> str:
        """Who reads, in words."""
        if not self.threads:
            return "the calling thread"
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        if not self.workers:
            return f"{threads} of this process"
        return f"{self.workers} process" + "es" * (self.workers > 1) + f" of {threads}"

    @property
    def keys(self) -> str:
        """The loader keys that ask for it."""
        return f"loader.workers={self.workers} loader.threads={self.threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What was measured.

    Attributes:
        store: The store.
        batch: Samples of a batch.
        speeds: One per setting, cheapest first.
        best: The recommended one.
        notes: What to know about the numbers.
    """

    store: str
    batch: int
    speeds: tuple[Speed, ...]
    best: Speed
    notes: tuple[str, ...]

    def text(self) -> str:
        """What the command prints: a table, the recommended keys and notes."""
        head = ("who reads", "samples/s", "MB/s", f"ms per {self.batch}")
        rows = [
            (one.who, _number(one.samples_per_s), _number(one.bytes_per_s / 1e6), _number(1000 * self.batch / one.samples_per_s))
            for one in self.speeds
        ]
        width = max(len(row[0]) for row in [head, *rows])
        table = [f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in [head, *rows]]
        return "\n".join([f"store: {self.store}", *table, f"recommended: {self.best.keys}", *self.notes])

    def as_json(self) -> Mapping[str, Json]:
        """Plain values for ``--json``."""
        rows = [
            {"workers": one.workers, "threads": one.threads, "samples_per_s": one.samples_per_s, "bytes_per_s": one.bytes_per_s}
            for one in self.speeds
        ]
        keys = {"loader.workers": self.best.workers, "loader.threads": self.best.threads}
        return {"store": self.store, "batch": self.batch, "speeds": rows, "recommended": keys, "notes": list(self.notes)}


def measure_speeds(store: Store, plan: LoaderPlan, *, seconds: float) -> Speeds:
    """Reads batches as training would, with more and more readers.

    Args:
        store: Opened.
        plan: Batch, tile and the like. Its workers are the most that are tried; None fills the processors that this process may use.
        seconds: How long each setting reads, over all rounds.

    Raises:
        UserError: No tile is eligible, or a file is damaged.
    """
    cores, threads = usable_cores(), max(1, plan.threads)
    tried = settings(max(1, cores // threads) if plan.workers is None else plan.workers, threads)
    found: dict[tuple[int, int], list[tuple[float, float]]] = {one: [] for one in tried}
    for seed in range(ROUNDS):
        for place, (workers, threads) in enumerate(tried):
            loader = Loader(store, replace(plan, workers=workers, threads=threads), seed=seed * len(tried) + place)
            found[workers, threads].append(_rate(loader, plan.prefetch, seconds / ROUNDS))
    speeds = tuple(_speed(workers, threads, rates) for (workers, threads), rates in found.items())
    best = recommend(speeds, cores)
    return Speeds(store=shown(store.location), batch=plan.batch, speeds=speeds, best=best, notes=_notes(store, plan, best))


def settings(most: int, threads: int) -> list[tuple[int, int]]:
    """(processes, threads of each) to try, cheapest first: this process, then one process, two, four ... and ``most``."""
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [(0, 0), (0, threads), *((workers, threads) for workers in [*doubled, most] if workers)]


def recommend(speeds: Sequence[Speed], cores: int) -> Speed:
    """The cheapest setting that is nearly as fast as the fastest.

    With cores to spare one of processes: they leave the interpreter of this process to training, which is not running here.
    """
    fair = [one for one in speeds if one.workers and cores >= _SPARE] or list(speeds)
    most = max(one.samples_per_s for one in fair)
    return next(one for one in fair if one.samples_per_s >= NEAR * most)


def _speed(workers: int, threads: int, rates: Sequence[tuple[float, float]]) -> Speed:
    samples, size = (median(values) for values in zip(*rates))
    return Speed(workers=workers, threads=threads, samples_per_s=samples, bytes_per_s=size)


def _rate(loader: Loader, ahead: int, seconds: float) -> tuple[float, float]:
    """Samples and bytes a second, from when what was read ahead before the first batch is used up."""
    with closing(iter(loader)) as batches:  # which ends threads and processes
        end = time.perf_counter() + seconds
        for _ in range(ahead + 1):
            next(batches)
            if time.perf_counter() >= end:
                break
        begun, samples, size = time.perf_counter(), 0, 0
        while samples == 0 or time.perf_counter() < begun + seconds:
            pixels = next(batches).pixels
            samples, size = samples + pixels.shape[0], size + pixels.nbytes
        passed = time.perf_counter() - begun
    return samples / passed, size / passed


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(store: Store, plan: LoaderPlan, best: Speed) -> tuple[str, ...]:
    notes = [
        f"a step of {plan.batch} samples that takes less than {_number(1000 * plan.batch / best.samples_per_s)} ms would wait for data"
    ]
    if plan.draws == 1:
        notes.append("loader.draws=2 gives two samples of each read, where readers alone cannot keep up")
    held, free = _pixel_bytes(store), available_memory()
    if free is not None and held < free and not _asks_servers(store):
        notes.append(f"the store ({readable_size(held)} of pixels) fits into free memory: after its first epoch no disk is read")
    return tuple(notes)


def _asks_servers(store: Store) -> bool:
    """Whether any of its sources lies on a server; those of one store lie together."""
    _, first = np.unique(store.member, return_index=True)
    return any(is_remote(store.address(row, (0,) * store.ndim)[0]) for row in first.tolist())


def _pixel_bytes(store: Store) -> int:
    """Uncompressed."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in zip(store.column("shape"), store.column("dtype")))
