"""Reader processes over one ring against a default one-worker torch DataLoader, and what they cost in memory.

Speed: samples per CPU-second of this process and its readers together, start-up left out; both read the same tiles of the same store in
random order, taking turns within a round. The DataLoader is the default one: ``__getitem__`` reads a tile into a fresh array,
``default_collate``, one worker. Memory: what a reader process holds for itself, without the ring and without the page cache of mapped
shards, which the system takes back when it needs it; and by how much that and the parent grow over 10,000 batches.

    python benchmarks/ring.py [--quick] --json FILE

Rows: {"measure", "input", "ours", "peer", "peer_value", "unit", "ratio", "target", "rounds"}; for memory the ratio is ours over the limit.
Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from readers.content import scenes
from readers.measure import Row, row, show
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from dinodomain.lineage import write_json
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.store import Store, StorePlan, array_record, build_store

SIDE, BATCH, WARM = 2048, 16, 8
LIMIT_MB, GROWTH_MB = 60.0, 4.0
TARGETS = {"fast": 1.7, "none": 3.0}


class Tiles(Dataset[Tensor]):
    """The tiles of a loader, one by one, as most people write it."""

    def __init__(self, store: Store, loader: Loader) -> None:
        bucket = loader.buckets[0]
        self._store, self._tiles = store, loader.tiles
        self._shape, self._dtype = (len(bucket.channels), *bucket.extent), bucket.dtype

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Tensor:
        out = np.empty(self._shape, dtype=self._dtype)
        self._store.read_box(int(self._tiles.rows[index]), self._tiles.starts[index].tolist(), out)
        return torch.from_numpy(out)


def cpu_seconds(processes: list[int]) -> float:
    """Of all threads, user and system, as the scheduler counts them."""
    return sum(int(task.read_text().split()[0]) for pid in processes for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def own_mb(pid: int) -> float:
    """Private memory of a process without its ring and without mapped files, which are page cache."""
    total = 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        name = mapping.split("\n", 1)[0].split(maxsplit=5)[5:]
        kinds = ("Private_Dirty",) if name and name[0].startswith("/") else ("Private_Clean", "Private_Dirty")
        if not (name and "dinodomain-ring" in name[0]):
            total += sum(int(found) for kind in kinds for found in re.findall(rf"{kind}: +(\d+) kB", mapping))
    return total / 1024


def readers_of(pid: int) -> list[int]:
    """Reader processes that a process started and that live."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [child for child in children if b"dinodomain.loader.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def made(folder: Path, codec: Any, count: int) -> Store:
    """A store of scenes of twelve bands."""
    sources = {f"s{i}": array_record(pixels) for i, pixels in enumerate(scenes(count, SIDE))}
    return build_store(folder, sources, domain="bench", plan=StorePlan(codec=codec))


def speed(store: Store, codec: str, rounds: int, batches: int) -> Row:
    """Ring against DataLoader on one store."""
    loader = Loader(store, LoaderPlan(batch=BATCH, workers=1), seed=0)
    tiles = Tiles(store, loader)
    # One endless epoch: the pause between two would count against it.
    sampler = RandomSampler(tiles, replacement=True, num_samples=10**9)
    peer = DataLoader(tiles, batch_size=BATCH, sampler=sampler, num_workers=1)
    ours, theirs = iter(loader), iter(peer)
    next(ours), next(theirs)
    worker = [process.pid for process in theirs._workers]  # type: ignore[attr-defined] # no public way
    sides = {"ours": (ours, readers_of(os.getpid())), "theirs": (theirs, worker)}
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            source, processes = sides[name]
            found[name].append(_rate(source, [os.getpid(), *processes], batches))
    ours.close()
    against = "DataLoader(num_workers=1), __getitem__ + default_collate"
    text = f"12x256x256 uint16 tiles, batches of {BATCH}, {codec}"
    return row("ring", text, found["ours"], against, found["theirs"], "samples/CPU-s", TARGETS[codec])


def _rate(source: Iterator[Any], processes: list[int], batches: int) -> float:
    """Samples per CPU-second. Both sides read ahead, about as far before as after."""
    for _ in range(WARM):
        next(source)
    begun = cpu_seconds(processes)
    for _ in range(batches):
        next(source)
    return batches * BATCH / (cpu_seconds(processes) - begun)


def memory(store: Store, batches: int) -> list[Row]:
    """A reader's own memory, and growth of both sides while small batches pass."""
    source = iter(Loader(store, LoaderPlan(batch=2, workers=2), seed=0))
    next(source)
    pids = [os.getpid(), *readers_of(os.getpid())]
    seen = []
    for number in range(batches):
        next(source)
        if number + 1 in (batches // 10, batches):
            gc.collect()
            seen.append([own_mb(pid) for pid in pids])
    source.close()
    first, last = seen
    text = f"{batches} batches of 2 tiles of 12x256x256 uint16, 2 processes"
    return [
        limit("memory of a reader process beyond the ring", text, max(last[1:]), LIMIT_MB),
        limit("growth of the parent after the first tenth", text, max(0.0, last[0] - first[0]), GROWTH_MB),
        limit("growth of a reader process after the first tenth", text, max(0.0, *(b - a for a, b in zip(first[1:], last[1:]))), GROWTH_MB),
    ]


def limit(measure: str, given: str, ours: float, most: float) -> Row:
    """A row that must not pass a limit."""
    return row(measure, given, [ours], "limit", [most], "MB", 1.0)


def measure(*, quick: bool) -> list[Row]:
    """All rows."""
    rounds, batches, count = (3, 20, 1) if quick else (7, 60, 4)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for codec in ("fast", "none"):
            store = made(Path(folder) / codec, codec, count)
            rows.append(speed(store, codec, rounds, batches))
            if codec == "fast":
                rows += memory(store, 500 if quick else 10000)
    return rows


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tiles and rounds: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(quick=options.quick)
    show(rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
