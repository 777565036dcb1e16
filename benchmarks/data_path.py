"""Aligned tile reads: the direct reader against np.memmap of the raw array and zarr-python on the same store.

Samples per CPU-second (all threads of the process), readers interleaved tile by tile within a round, medians over rounds; page cache warm.
Content is synthetic (ramps plus sensor noise), so compression ratios differ from real scenes. Every reader's first tile is compared first.

    python benchmarks/data_path.py [--quick] --json FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dinodomain.lineage import write_json
from dinodomain.store import Store, StorePlan, array_record, build_store

Reader = Callable[[tuple[int, ...]], np.ndarray]
Row = dict[str, Any]

# (name, shape, dtype, tile side, least ratio to memmap, least ratio to zarr-python)
CASES = (
    ("scene 12x2048x2048 uint16, tile 256", (12, 2048, 2048), "uint16", 256, 0.45, 2.5),
    ("scene 12x2048x2048 uint16, tile 512", (12, 2048, 2048), "uint16", 512, 0.30, 1.5),
    ("volume 160x256x256 int16, tile 96", (1, 160, 256, 256), "int16", 96, 0.20, 5.0),
)


def made_up(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Smooth structure plus noise: about 4 of 16 bits are noise, as in a 12-bit sensor."""
    rng = np.random.default_rng(0)
    waves = np.zeros(shape)
    for axis, size in enumerate(shape):
        waves += np.sin(np.linspace(0, 9 + axis, size)).reshape((-1,) + (1,) * (len(shape) - 1 - axis))
    pixels = np.empty(shape, dtype=dtype)
    for i in range(shape[0]):
        pixels[i] = 2000 + 300 * waves[i] + rng.normal(0, 8, shape[1:])
    return pixels


def readers(store: Store, raw: Path, pixels: np.ndarray, extent: tuple[int, ...]) -> Mapping[str, Reader]:
    """Each gives a fresh or reused [C, ...] tile at a start."""
    slot = np.empty((pixels.shape[0], *extent), dtype=pixels.dtype)
    mapped = np.memmap(raw, dtype=pixels.dtype, mode="r", shape=pixels.shape)
    foreign = zarr.open_array(str(store.path / store.row(0)["array"]), mode="r")

    def box(start: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(start, extent))

    def ours(start: tuple[int, ...]) -> np.ndarray:
        store.read_box(0, start, slot)
        return slot

    def memmap(start: tuple[int, ...]) -> np.ndarray:
        slot[...] = mapped[(slice(None), *box(start))]
        return slot

    def by_zarr(start: tuple[int, ...]) -> np.ndarray:
        found: np.ndarray = np.asarray(foreign[(slice(None), *box(start)) if foreign.ndim == slot.ndim else box(start)])
        return found.reshape(slot.shape)

    return {"ours": ours, "np.memmap": memmap, "zarr-python": by_zarr}


def measure(functions: Mapping[str, Reader], starts: list[tuple[int, ...]], rounds: int) -> dict[str, float]:
    """Median tiles per CPU-second of each reader."""
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        spent = dict.fromkeys(functions, 0.0)
        for start in starts:
            for name, read in functions.items():
                begun = time.process_time()
                read(start)
                spent[name] += time.process_time() - begun
        for name, seconds in spent.items():
            rates[name].append(len(starts) / seconds)
    return {name: statistics.median(values) for name, values in rates.items()}


def run_case(name: str, shape: tuple[int, ...], dtype: str, side: int, targets: Mapping[str, float], codec: Any, quick: bool) -> list[Row]:
    """Rows of one input and codec."""
    pixels, extent, rounds = made_up(shape, dtype), (side,) * (len(shape) - 1), 3 if quick else 7
    chunk = 256 if len(shape) == 3 else 32
    grid = [(size - side) // chunk + 1 for size in shape[1:]]
    rng = np.random.default_rng(1)
    starts = [tuple(int(rng.integers(n)) * chunk for n in grid) for _ in range(16 if quick else 64)]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.bin"
        pixels.tofile(raw)
        store = build_store(Path(folder) / "store", {"a": array_record(pixels)}, domain="bench", plan=StorePlan(codec=codec))
        functions = readers(store, raw, pixels, extent)
        for read in functions.values():
            expected = pixels[(slice(None), *(slice(a, a + side) for a in starts[0]))]
            np.testing.assert_array_equal(read(starts[0]), expected)
        found = measure(functions, starts, rounds)
    return [_row(f"{name}, {codec}", found["ours"], peer, found[peer], target, rounds) for peer, target in targets.items()]


def _row(source: str, ours: float, peer: str, theirs: float, target: float, rounds: int) -> Row:
    return {
        "measure": "aligned tile read",
        "input": source,
        "ours": round(ours, 1),
        "peer": peer,
        "peer_value": round(theirs, 1),
        "unit": "tiles/CPU-s",
        "ratio": round(ours / theirs, 3),
        "target": target,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tiles and rounds: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    rows: list[Row] = []
    for name, shape, dtype, side, memmap, by_zarr in CASES[:1] + CASES[2:] if options.quick else CASES:
        for codec in ("fast",) if options.quick else ("fast", "small", "none"):
            # Targets hold for the default codec; the others are shown for comparison.
            targets = {"np.memmap": memmap, "zarr-python": by_zarr} if codec == "fast" else {"np.memmap": 0.0, "zarr-python": 1.0}
            rows += run_case(name, shape, dtype, side, targets, codec, options.quick)
    for row in rows:
        print(json.dumps(row))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
