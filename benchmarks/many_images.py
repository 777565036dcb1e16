"""How an ingest and a store fare with very many small images: 100,000 of 28 to 64 pixels, one to three channels, in one store.

Pixels are made in memory, so that what is timed is the ingest itself. Opening, memory, tiles and the first batch are measured in a
fresh process each, page cache warm; memory is what the resident set grows by. Prints a table; ``--json FILE`` writes rows.

    python benchmarks/many_images.py [--num 100000] [--workers N] [--json FILE]

Rows: {"measure", "input", "ours", "peer", "peer_value", "unit", "ratio", "target", "rounds"}.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.errors import BadSource
from dinodomain.ingest import IngestPlan, ingest
from dinodomain.lineage import write_json
from dinodomain.store import open_store
from dinodomain.store.build import array_record
from dinodomain.testing import SyntheticImages
from dinodomain.types import Record, Select, SourceRef

SIDES = (28, 32, 40, 50, 64)
OPEN_TARGET_S = 1.0

_PROBE = """
import json, resource, sys, time
from dinodomain.store import open_store
{imports}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
path = sys.argv[1]
before, began = resident(), time.perf_counter()
{work}
print(json.dumps([time.perf_counter() - began, resident() - before]))
"""


class Small(SyntheticImages):
    """Noise of several sizes; every fourth image has three channels."""

    def discover(self, source: str, select: Select) -> Iterator[SourceRef | BadSource]:
        """``generate:COUNT``, eight images a unit."""
        for index in range(int(source.removeprefix("generate:"))):
            unit, name = f"unit{index // 8:06d}", f"image{index:07d}.png"
            keys = {"path": f"{unit}/{name}", "name": name, "stem": name[:-4], "folder": unit}
            size = 3 * SIDES[index % len(SIDES)] ** 2
            facts = {"bytes_in": size, "bytes_out": size}
            yield SourceRef(
                source_id=keys["path"], uris=(str(index),), keys=keys, unit=unit, digest=f"{index:064x}", select=select, facts=facts
            )

    def read(self, ref: SourceRef) -> Record:
        """Noise that the id decides."""
        index = int(ref.uris[0])
        side = SIDES[index % len(SIDES)]
        pixels = np.random.Generator(np.random.PCG64(index)).integers(0, 256, (3 if index % 4 == 0 else 1, side, side), np.uint8)
        return array_record(pixels, layout="whole", spacing=(1.0, 1.0))


def ingested(folder: Path, num: int, workers: int) -> Iterator[dict[str, Any]]:
    """One ingest of ``num`` images: staging and finalising apart."""
    moments: list[float] = []
    plan = IngestPlan(domain="synthetic", source=f"generate:{num}", store=str(folder / "store"), workers=workers)
    began = time.perf_counter()
    ingest(plan, domain=Small(), progress=lambda done, total: moments.append(time.perf_counter()))
    ended = time.perf_counter()
    what = f"{num} images, {workers} workers"
    yield row("ingest", what, ended - began, "s")
    yield row("before staging (discovery, look for staged ones)", what, moments[0] - began, "s")
    yield row("staging", what, moments[-1] - moments[0], "s")
    yield row("staging", what, num / (moments[-1] - moments[0]), "images/s")
    yield row("finalising", what, ended - moments[-1], "s")
    yield row("peak memory of the parent", what, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "MB")
    began = time.perf_counter()
    ingest(plan, domain=Small(), progress=lambda done, total: None)
    yield row("the same again (nothing new)", what, time.perf_counter() - began, "s")


def opened(store: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """What a reader of the store pays."""
    what = f"{len(open_store(store))} images"
    times = [probe(store, "", "store = open_store(path)") for _ in range(rounds)]
    yield row("open", what, sorted(times)[rounds // 2][0], "s", target=OPEN_TARGET_S)
    yield row("memory of the opened store", what, max(memory for _, memory in times), "MB")
    size = sum((store / name).stat().st_size for name in ("index.parquet", "chunks.parquet", "manifest.json")) / 1e6
    yield row("index, chunk table and manifest on disk", what, size, "MB")
    loader = "from dinodomain.loader import LoaderPlan, Loader, find_tiles"
    found = "store = open_store(path); began = time.perf_counter(); tiles = find_tiles(store, LoaderPlan())"
    times = [probe(store, loader, found) for _ in range(rounds)]
    yield row("find_tiles", what, sorted(times)[rounds // 2][0], "s")
    first = "store = open_store(path); began = time.perf_counter(); batch = next(iter(Loader(store, LoaderPlan(batch=64), seed=0)))"
    times = [probe(store, loader, first) for _ in range(rounds)]
    yield row("first batch of 64 (tiles, order, decode)", what, sorted(times)[rounds // 2][0], "s")


def probe(store: Path, imports: str, work: str) -> tuple[float, float]:
    """Seconds and megabytes of some lines in a fresh process."""
    code = _PROBE.format(imports=imports, work=work)
    done = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=True)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def row(measure: str, what: str, value: float, unit: str, *, target: float | None = None) -> dict[str, Any]:
    ratio = None if target is None else value / target
    return {
        "measure": measure,
        "input": what,
        "ours": value,
        "peer": "",
        "peer_value": None,
        "unit": unit,
        "ratio": ratio,
        "target": target,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for found in (ingested(Path(folder), given.num, given.workers), opened(Path(folder) / "store", given.rounds)):
            for line in found:
                rows.append({**line, "rounds": given.rounds})
                goal = "" if line["target"] is None else f"   (target: below {line['target']:g})"
                print(f"{line['measure']:<52} {line['ours']:>12.4g} {line['unit']}{goal}", flush=True)
    if given.json:
        write_json(given.json, rows)


if __name__ == "__main__":
    main()
