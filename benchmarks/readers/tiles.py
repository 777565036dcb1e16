"""Aligned tiles of real scenes and volumes: the direct reader against np.memmap of the raw array, memcpy, zarr-python and tensorstore.

The last two read the very same store. Page cache warm; each reader draws the same random tiles and writes into one buffer that stays
(zarr-python and tensorstore make an array of their own for each tile: they have no other way in the versions of the table).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.store import Store, StorePlan, array_record, build_store
from dinodomain.store.format import Codec
from readers.content import scenes, volumes
from readers.measure import Reader, Row, rates, row

Place = tuple[int, tuple[int, ...]]
Read = Callable[[Place], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of tile.

    Attributes:
        name: As the table shows it.
        side: Of the tile, pixels.
        targets: Least ratio by peer, for the default codec.
    """

    name: str
    side: int
    targets: Mapping[str, float]


SCENES = (
    Case(name="tile 256", side=256, targets={"np.memmap": 0.45, "zarr-python": 4.0}),
    Case(name="tile 512", side=512, targets={"np.memmap": 0.30, "memcpy": 0.10}),
)
VOLUMES = (Case(name="tile 96", side=96, targets={"zarr-python": 4.0}),)


def readers(store: Store, raw: Sequence[Path], arrays: Sequence[np.ndarray], side: int) -> dict[str, Read]:
    """Each gives one tile."""
    extent = (side,) * (arrays[0].ndim - 1)
    slot = np.empty((arrays[0].shape[0], *extent), dtype=arrays[0].dtype)
    block = slot.copy()
    mapped = [np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape) for path, array in zip(raw, arrays)]
    folders = [store.path / name for name in store.column("array")]

    def box(place: Place, axes: int) -> tuple[slice, ...]:
        lead = (slice(None),) * (axes - len(extent))
        return (*lead, *(slice(a, a + n) for a, n in zip(place[1], extent)))

    def ours(place: Place) -> np.ndarray:
        store.read_box(*place, slot)
        return slot

    def memmap(place: Place) -> np.ndarray:
        slot[...] = mapped[place[0]][box(place, slot.ndim)]
        return slot

    def memcpy(place: Place) -> np.ndarray:
        slot[...] = block
        return slot

    found: dict[str, Read] = {"ours": ours, "np.memmap": memmap, "memcpy": memcpy, "zarr-python": _by_zarr(folders, slot.shape, box)}
    if importlib.util.find_spec("tensorstore"):
        found["tensorstore"] = _by_tensorstore(folders, slot.shape, box)
    return found


def _by_zarr(folders: Sequence[Path], shape: tuple[int, ...], box: Callable[[Place, int], tuple[slice, ...]]) -> Read:
    import zarr

    opened = [zarr.open_array(str(folder), mode="r") for folder in folders]

    def read(place: Place) -> np.ndarray:
        array = opened[place[0]]
        return np.asarray(array[box(place, array.ndim)]).reshape(shape)

    return read


def _by_tensorstore(folders: Sequence[Path], shape: tuple[int, ...], box: Callable[[Place, int], tuple[slice, ...]]) -> Read:
    import tensorstore

    # Metadata is never asked for twice, and the pool keeps the indexes of shards; it is far smaller than the pixels.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**20}, "data_copy_concurrency": {"limit": 1}})
    opened: list[Any] = []
    for folder in folders:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}, "recheck_cached_data": False}
        opened.append(tensorstore.open(spec, context=context, read=True).result())

    def read(place: Place) -> np.ndarray:
        array = opened[place[0]]
        found: np.ndarray = array[box(place, array.ndim)].read().result()
        return found.reshape(shape)

    return read


def measure(quick: bool, work: Path) -> Iterator[Row]:
    """Rows of scenes, then of volumes."""
    count, side = (1, 1024) if quick else (3, 2048)
    yield from _measure(f"{count} scenes 12x{side}x{side} uint16", list(scenes(count, side)), SCENES, quick, work / "scenes")
    shape = (96, 192, 192) if quick else (160, 256, 256)
    blocks = [array[None] for array in volumes(2 if quick else 6, shape)]
    yield from _measure(f"{len(blocks)} volumes {'x'.join(map(str, shape))} int16", blocks, VOLUMES, quick, work / "volumes")


def _measure(name: str, arrays: Sequence[np.ndarray], cases: Sequence[Case], quick: bool, work: Path) -> Iterator[Row]:
    work.mkdir()
    raw = [work / f"{i}.bin" for i in range(len(arrays))]
    for path, array in zip(raw, arrays):
        array.tofile(path)
    codecs: tuple[Codec, ...] = ("fast",) if quick else ("fast", "small", "none")
    for codec in codecs:
        records = {str(i): array_record(array) for i, array in enumerate(arrays)}
        store = build_store(work / codec, records, domain="bench", plan=StorePlan(codec=codec))
        for case in cases:
            functions = readers(store, raw, arrays, case.side)
            turns, rounds = _turns(functions, store, arrays, case.side, 16 if quick else 40 if case.side > 256 else 120), 2 if quick else 7
            found = rates(turns, rounds)
            for peer in functions:
                if peer != "ours":
                    target = case.targets.get(peer) if codec == "fast" else None
                    yield row(
                        f"aligned tiles, codec {codec}", f"{name}, {case.name}", found["ours"], peer, found[peer], "tiles/CPU-s", target
                    )


def _turns(functions: Mapping[str, Read], store: Store, arrays: Sequence[np.ndarray], side: int, count: int) -> dict[str, Reader]:
    """Readers of the same random places, each checked against the array first."""
    rng, chunk = np.random.default_rng(0), store.chunk_shape(0)[0]
    places = []
    for _ in range(count):
        source = int(rng.integers(len(arrays)))
        places.append((source, tuple(int(rng.integers((n - side) // chunk + 1)) * chunk for n in arrays[source].shape[1:])))
    for name, read in functions.items():
        if name != "memcpy":
            source, start = places[0]
            np.testing.assert_array_equal(read(places[0]), arrays[source][(slice(None), *(slice(a, a + side) for a in start))])

    def turn(read: Read) -> Reader:
        def run(number: int) -> int:
            for place in places:
                read(place)
            return len(places)

        return run

    return {name: turn(read) for name, read in functions.items()}


if __name__ == "__main__":
    sys.exit("run benchmarks/data_path.py --only tiles")
