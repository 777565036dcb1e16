"""Random 224 x 224 crops of Sentinel-2 scenes (12 bands, uint16): the store against torchgeo and rasterio on GeoTIFFs of the same pixels.

Each kind of file is measured by itself: the store, torchgeo and rasterio take turns within a round. GDAL as torchgeo's own command line
sets it (``GDAL_DISABLE_READDIR_ON_OPEN=EMPTY_DIR`` and so on), file handles kept open (torchgeo's ``cache=True``, 128 handles), no
reprojection. The block cache is a ninth of the corpus (64 MB), as where the corpus is far larger than memory; rows of GDAL's default,
5 % of memory, follow: it holds this whole small corpus decoded.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinodomain.ingest import IngestPlan, ingest
from dinodomain.loader import Loader, LoaderPlan
from dinodomain.store import Store, StorePlan, open_store
from readers.content import BANDS, ORIGIN, STEP, scenes
from readers.measure import Reader, Row, rates, row

SIDE, BATCH = 224, 16
GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": "200000000", "GDAL_SWATH_SIZE": "200000000"}
"""What torchgeo's command line sets, as far as it concerns local files."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the sources are written.

    Attributes:
        name: As the table shows it.
        options: Keys of rasterio's profile.
        split: One file per band.
        targets: Least ratio of the store to torchgeo for values as stored, to torchgeo for float32, and to rasterio.
    """

    name: str
    options: Mapping[str, Any]
    split: bool = False
    targets: tuple[float | None, float | None, float | None] = (None, None, None)


_DEFLATE = {"compress": "deflate", "predictor": 2}
_COG = {"driver": "COG", "compress": "deflate", "predictor": "standard", "blocksize": 512, "overviews": "none"}
KINDS = (
    Kind(
        name="GeoTIFF 256 deflate",
        options={"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "pixel", **_DEFLATE},
        targets=(10.0, 6.0, 7.0),
    ),
    Kind(name="COG 512 deflate", options=_COG, targets=(15.0, 10.0, None)),
    Kind(name="one COG 512 deflate per band", options=_COG, split=True, targets=(25.0, 17.0, 14.0)),
    Kind(
        name="GeoTIFF 256 not compressed",
        options={"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band"},
    ),
)


def write(kind: Kind, folder: Path, arrays: Iterator[np.ndarray]) -> Path:
    """Scenes as files of one kind, side by side on the ground."""
    import rasterio
    from rasterio.transform import from_origin

    folder.mkdir()
    for i, pixels in enumerate(arrays):
        place = {"crs": "EPSG:32631", "transform": from_origin(ORIGIN[0] + i * STEP, ORIGIN[1], 10, 10)}
        profile = {**kind.options, "height": pixels.shape[1], "width": pixels.shape[2], "dtype": "uint16", **place}
        parts = (
            {f"T31TDG_2020011{i}T105331_{name}": band[None] for name, band in zip(BANDS, pixels)} if kind.split else {f"scene{i}": pixels}
        )
        for name, part in parts.items():
            with rasterio.open(folder / f"{name}.tif", "w", count=len(part), **profile) as dataset:
                dataset.write(part)
                for number, band in enumerate(BANDS if len(part) > 1 else (), start=1):
                    dataset.set_band_description(number, band)
    return folder


def ingested(source: Path, store: Path, chunk: int) -> Store:
    """A store made from the files by the verb of the package."""
    plan = IngestPlan(
        domain="sentinel2", source=str(source), store=str(store), workers=0, select="all", storage=StorePlan(chunk=chunk), audit_holdout=0
    )
    summary = ingest(plan, progress=lambda done, total: None)
    assert not summary.skipped, summary.text()
    return open_store(store)


class Crops:
    """Random crops of a store into one batch.

    Args:
        store: The store.
        seed: Of the places.
        cast: Whether batches are handed over as float32, made on the host.
    """

    def __init__(self, store: Store, seed: int, *, cast: bool) -> None:
        self._store, self._rng, self._cast = store, np.random.default_rng(seed), cast
        self._sizes = [tuple(shape[1:]) for shape in store.column("shape")]
        self._slots = np.empty((BATCH, 12, SIDE, SIDE), dtype=np.uint16)

    def batch(self) -> torch.Tensor:
        """[16, 12, 224, 224]."""
        for slot in self._slots:
            source = int(self._rng.integers(len(self._sizes)))
            start = [int(self._rng.integers(size - SIDE + 1)) for size in self._sizes[source]]
            self._store.read_box(source, start, slot)
        found = torch.from_numpy(self._slots)
        return found.to(torch.float32) if self._cast else found


def loader_reader(store: Store, batches: int, *, aligned: bool, cast: bool) -> Reader:
    """Batches of the package's loader, as training gets them: tiles of 256, in the calling thread."""
    plan = LoaderPlan(batch=BATCH, tile=256, aligned=aligned, workers=0, threads=0, min_valid=0.0)
    stream = iter(Loader(store, plan, seed=0))

    def read(turn: int) -> int:
        for _ in range(batches):
            pixels = next(stream).pixels
            if cast:
                pixels.to(torch.float32)
        return batches * BATCH

    return read


def crops_reader(store: Store, batches: int, *, cast: bool) -> Reader:
    """Batches of unaligned crops."""
    crops = Crops(store, 0, cast=cast)

    def read(turn: int) -> int:
        for _ in range(batches):
            crops.batch()
        return batches * BATCH

    return read


def dataset_class(kind: Kind) -> type:
    """A torchgeo dataset of these files; its documentation asks for a subclass where bands lie in files of their own."""
    from torchgeo.datasets import RasterDataset

    class Scenes(RasterDataset):  # type: ignore[misc]
        filename_glob = "*_B02*" if kind.split else "scene*"
        filename_regex = r"^T31TDG_(?P<date>\d{8})T\d{6}_(?P<band>B[018][\dA])" if kind.split else r".*"
        separate_files = kind.split
        all_bands = BANDS

    return Scenes


def torchgeo_dataset(kind: Kind, folder: Path) -> Any:
    """A dataset with no file open. All datasets share 128 handles: those of earlier ones are closed, so that these stay open."""
    from torchgeo.datasets import RasterDataset

    RasterDataset._cached_load_warp_file.cache_clear()
    return dataset_class(kind)(str(folder))


def torchgeo_reader(dataset: Any, batches: int, sampler: str) -> Reader:
    """Batches of a DataLoader without workers: float32, as its datasets make them."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import stack_samples
    from torchgeo.samplers import RandomBatchGeoSampler, RandomGeoSampler

    count = batches * BATCH
    if sampler == "RandomGeoSampler":
        options = {"sampler": RandomGeoSampler(dataset, size=SIDE, length=count), "batch_size": BATCH}
    else:
        options = {"batch_sampler": RandomBatchGeoSampler(dataset, size=SIDE, batch_size=BATCH, length=count)}
    loader = DataLoader(dataset, collate_fn=stack_samples, num_workers=0, **options)

    def read(turn: int) -> int:
        return sum(len(batch["image"]) for batch in loader)

    return read


def opened(kind: Kind, folder: Path) -> list[list[Any]]:
    """Open files of each scene."""
    import rasterio

    if not kind.split:
        return [[rasterio.open(path)] for path in sorted(folder.glob("*.tif"))]
    firsts = sorted(folder.glob(f"*_{BANDS[0]}.tif"))
    return [[rasterio.open(path.with_name(path.name.replace(BANDS[0], band))) for band in BANDS] for path in firsts]


def window(datasets: list[Any], start: tuple[int, ...], out: np.ndarray) -> None:
    """One crop by windowed reads, straight into ``out``."""
    where = tuple((a, a + SIDE) for a in start)
    if len(datasets) == 1:
        datasets[0].read(window=where, out=out)
        return
    for dataset, band in zip(datasets, out):
        dataset.read(1, window=where, out=band)


def rasterio_reader(kind: Kind, folder: Path, batches: int) -> Reader:
    """Windowed reads of files that stay open, into one batch of stored values."""
    files, rng = opened(kind, folder), np.random.default_rng(0)
    slots = np.empty((BATCH, 12, SIDE, SIDE), dtype=np.uint16)

    def read(turn: int) -> int:
        for _ in range(batches):
            for slot in slots:
                datasets = files[rng.integers(len(files))]
                window(datasets, tuple(int(rng.integers(datasets[0].height - SIDE + 1)) for _ in range(2)), slot)
        return batches * BATCH

    return read


def check(kind: Kind, folder: Path, stores: Mapping[str, Store], pixels: np.ndarray) -> None:
    """The same crop of the first scene from every reader, against the array that the files were written from."""
    import pandas as pd

    top, left = 201, 157
    expected = pixels[:, top : top + SIDE, left : left + SIDE]
    found = np.empty_like(expected)
    for store in stores.values():
        store.read_box(first_row(store), (top, left), found)
        np.testing.assert_array_equal(found, expected)
    found[...] = 0
    window(opened(kind, folder)[0], (top, left), found)
    np.testing.assert_array_equal(found, expected)
    west, north = ORIGIN[0] + 10 * left, ORIGIN[1] - 10 * top
    time = slice(pd.Timestamp.min, pd.Timestamp.max)
    query = (slice(west, west + 10 * SIDE), slice(north - 10 * SIDE, north), time)
    np.testing.assert_array_equal(torchgeo_dataset(kind, folder)[query]["image"].numpy(), expected)


def first_row(store: Store) -> int:
    """Row of the westernmost scene, which was written first."""
    return int(np.argmin([affine[2] for affine in store.column("affine")]))


def measure(quick: bool, work: Path) -> Iterator[Row]:
    """All rows; the files of a kind are removed when it has been measured."""
    import rasterio

    count, side, rounds = (2, 512, 1) if quick else (6, 2048, 5)
    stores = make_stores(work, count, side)
    first = next(scenes(1, side))
    small, default = max(count * first.nbytes // 9, 2**24), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 20
    for kind in KINDS[:: 2 if quick else 1]:
        given = f"{count} scenes 12x{side}x{side}, batches of {BATCH}; {kind.name}"
        with rasterio.Env(**GDAL, GDAL_CACHEMAX=small):
            folder = write(kind, work / "files", scenes(count, side))
            check(kind, folder, stores, first)
            yield from small_cache(kind, folder, stores, f"{given}, cache {small >> 20} MB", rounds, quick)
        with rasterio.Env(**GDAL, GDAL_CACHEMAX=default):
            if not quick and kind.targets[0]:
                yield from default_cache(kind, folder, stores, f"{given}, all of it decoded in GDAL's default cache", rounds)
        shutil.rmtree(folder)


def make_stores(work: Path, count: int, side: int) -> dict[str, Store]:
    """The default store and one of half its chunk, ingested from deflated GeoTIFFs."""
    folder = write(KINDS[0], work / "sources", scenes(count, side))
    stores = {f"chunk {chunk}": ingested(folder, work / f"store{chunk}", chunk) for chunk in (256, 128)}
    shutil.rmtree(folder)
    return stores


def our_readers(stores: Mapping[str, Store], batches: int) -> dict[str, Reader]:
    """Crops anywhere of both stores, and batches of the loader."""
    found: dict[str, Reader] = {}
    for cast, values in ((False, "uint16"), (True, "float32")):
        for name, store in stores.items():
            found[f"crops 224, {name}, {values}"] = crops_reader(store, batches, cast=cast)
        found[f"Loader, aligned tiles 256, {values}"] = loader_reader(stores["chunk 256"], batches, aligned=True, cast=cast)
    found[_MOVED] = loader_reader(stores["chunk 128"], batches, aligned=False, cast=False)
    return found


def small_cache(kind: Kind, folder: Path, stores: Mapping[str, Store], given: str, rounds: int, quick: bool) -> Iterator[Row]:
    """Rows with a cache that the corpus does not fit into: the ones with targets."""
    few, many = (1, 1) if quick else (4, 8)
    ours, dataset = our_readers(stores, many), torchgeo_dataset(kind, folder)
    peers = {
        _RANDOM: torchgeo_reader(dataset, few, "RandomGeoSampler"),
        _BATCHED: torchgeo_reader(dataset, few, "RandomBatchGeoSampler"),
        _WINDOWS: rasterio_reader(kind, folder, few),
    }
    for read in (*ours.values(), *peers.values()):
        read(-1)
    found = rates({**ours, **peers}, rounds)
    for name in ours:
        stored = name.endswith("uint16")
        least = dict(zip((_RANDOM, _WINDOWS), kind.targets[::2] if stored else kind.targets[1:2])) if name != _MOVED else {}
        shown = [_RANDOM, *([_BATCHED] if "Loader, aligned" in name else []), *([_WINDOWS] if stored else [])]
        for peer in shown:
            yield row(f"random crops, {name}", given, found[name], peer, found[peer], _UNIT, least.get(peer))


def default_cache(kind: Kind, folder: Path, stores: Mapping[str, Store], given: str, rounds: int) -> Iterator[Row]:
    """Rows with a cache that holds the whole corpus once, so one peer at a time: where GDAL is at its best."""
    ours = {name: read for name, read in our_readers(stores, 8).items() if name in _BEST}
    for peer in (_RANDOM, _WINDOWS):
        dataset = torchgeo_dataset(kind, folder)
        read = torchgeo_reader(dataset, 4, "RandomGeoSampler") if peer == _RANDOM else rasterio_reader(kind, folder, 4)
        for turn in range(_FILL):
            read(-1 - turn)
        found = rates({**ours, peer: read}, rounds)
        for name in ours:
            yield row(f"random crops, {name}", given, found[name], peer, found[peer], _UNIT)


_MOVED = "Loader, unaligned tiles 256 (1.3 times the pixels), chunk 128, uint16"
_BEST = ("crops 224, chunk 128, uint16", "Loader, aligned tiles 256, uint16")
_FILL = 8
"""Passes of 64 crops after which practically every block of the corpus is decoded: each of 384 is met 4 times on average."""
_UNIT = "samples/CPU-s"
_RANDOM, _BATCHED, _WINDOWS = "torchgeo RandomGeoSampler", "torchgeo RandomBatchGeoSampler", "rasterio windows, uint16"


if __name__ == "__main__":
    sys.exit("run benchmarks/data_path.py --only rasters")
