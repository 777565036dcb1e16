"""96^3 sub-volumes of CT and MR series as float32: the compressed store on disk against MONAI and TorchIO on nii.gz of the same voxels.

MONAI runs without worker processes, so that CPU time is all that counts (its ThreadDataLoader and SmartCacheDataset change waiting, not
work), with the fewest transforms that give a tensor: load, channel first, float32, crop. Both sides end with a batch of 8 in float32.
Caches are filled before anything is timed; what they keep in memory or on disk has rows of its own.
"""

from __future__ import annotations

import copy
import itertools
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinodomain.store import Store, StorePlan, array_record, build_store
from readers.content import volumes
from readers.measure import Reader, Row, rates, row

SIDE, BATCH, REGION, DRAWS = 96, 8, 128, 4
UNIT = "samples/CPU-s"


def write(folder: Path, arrays: Iterator[np.ndarray]) -> list[Path]:
    """nii.gz (gzip level 6, as dcm2niix writes it) with axes x, y, z, which is how scanners' files come."""
    import nibabel
    from nibabel.openers import ImageOpener

    folder.mkdir()
    paths = []
    for i, array in enumerate(arrays):
        paths.append(folder / f"volume{i:02d}.nii.gz")
        with ImageOpener(str(paths[-1]), "wb", compresslevel=6) as handle:
            nibabel.Nifti1Image(array.T, np.diag([1.0, 1.0, 1.0, 1.0])).to_stream(handle)
    return paths


def stored(paths: Sequence[Path], folder: Path, chunk: int | None = None) -> Store:
    """A store of the voxels in those files."""
    import nibabel

    def voxels(path: Path) -> np.ndarray:
        return np.ascontiguousarray(np.asanyarray(nibabel.load(path).dataobj.get_unscaled()).T)[None]

    records = {path.name: array_record(voxels(path), spacing=(1.0, 1.0, 1.0)) for path in paths}
    return build_store(folder, records, domain="ct", plan=StorePlan(chunk=chunk))


class OurBatches:
    """Batches of 8 in float32 from a store; integers are decoded into a buffer that stays, then cast into a fresh batch.

    Args:
        store: The store.
        align: Grid that boxes begin on, voxels; 1 for anywhere.
    """

    def __init__(self, store: Store, align: int) -> None:
        self._store, self._align, self._rng = store, align, np.random.default_rng(0)
        self._shapes = [tuple(shape[1:]) for shape in store.column("shape")]
        self._box = np.empty((1, SIDE, SIDE, SIDE), dtype=np.int16)
        self._region = np.empty((1, REGION, REGION, REGION), dtype=np.int16)

    def batch(self) -> torch.Tensor:
        """[8, 1, 96, 96, 96]."""
        found = torch.empty((BATCH, 1, SIDE, SIDE, SIDE))
        for slot in found.numpy():
            self._store.read_box(*self._place(SIDE), self._box)
            slot[...] = self._box
        return found

    def batch_of_draws(self) -> torch.Tensor:
        """The same from 128^3 regions, each read once and cut four times."""
        found = torch.empty((BATCH, 1, SIDE, SIDE, SIDE))
        for i, slot in enumerate(found.numpy()):
            if i % DRAWS == 0:
                self._store.read_box(*self._place(REGION), self._region)
            z, y, x = self._rng.integers(REGION - SIDE + 1, size=3)
            slot[...] = self._region[:, z : z + SIDE, y : y + SIDE, x : x + SIDE]
        return found

    def _place(self, side: int) -> tuple[int, list[int]]:
        source = int(self._rng.integers(len(self._shapes)))
        return source, [int(self._rng.integers((n - side) // self._align + 1)) * self._align for n in self._shapes[source]]


def our_readers(store: Store, batches: int) -> dict[str, Reader]:
    """Unaligned, aligned, several draws."""

    def reader(make: Any) -> Reader:
        def read(turn: int) -> int:
            for _ in range(batches):
                make()
            return batches * BATCH

        return read

    chunk = store.chunk_shape(0)[0]
    aligned = OurBatches(store, chunk)
    return {
        "unaligned": reader(OurBatches(store, 1).batch),
        "aligned": reader(aligned.batch),
        "several draws": reader(aligned.batch_of_draws),
    }


def monai_datasets(paths: Sequence[Path], folder: Path) -> dict[str, tuple[Any, int]]:
    """MONAI's datasets and how many crops an item of each gives; those with a cache share it."""
    from monai import data as D
    from monai import transforms as T

    items = [{"image": str(path)} for path in paths]

    def chain(samples: int, meta: bool = True) -> Any:
        if samples == 1:
            crop = T.RandSpatialCropd("image", (SIDE,) * 3, random_size=False)
        else:
            crop = T.RandSpatialCropSamplesd("image", (SIDE,) * 3, samples, random_size=False)
        return T.Compose(
            [T.LoadImaged("image", reader="NibabelReader", ensure_channel_first=True), T.EnsureTyped("image", track_meta=meta), crop]
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI about itself
        cached = D.CacheDataset(items, chain(1), progress=False, num_workers=1)
        bare = D.CacheDataset(items, chain(1, meta=False), progress=False, num_workers=1)
        persistent = D.PersistentDataset(items, chain(1), folder)
    return {
        "Dataset": (D.Dataset(items, chain(1)), 1),
        "PersistentDataset": (persistent, 1),
        "PersistentDataset, 4 samples": (variant(persistent, transform=chain(4)), 4),
        "CacheDataset": (cached, 1),
        "CacheDataset, 4 samples": (variant(cached, transform=chain(4)), 4),
        "CacheDataset, track_meta=False": (bare, 1),
        "CacheDataset, copy_cache=False": (variant(cached, copy_cache=False), 1),
        "CacheDataset, copy_cache=False, 4 samples": (variant(cached, copy_cache=False, transform=chain(4)), 4),
        "CacheDataset, copy_cache=False, track_meta=False": (variant(bare, copy_cache=False), 1),
        "CacheDataset, copy_cache=False, track_meta=False, 4 samples": (variant(bare, copy_cache=False, transform=chain(4, meta=False)), 4),
    }


def variant(dataset: Any, **changes: Any) -> Any:
    """A dataset with other settings over the same cache."""
    found = copy.copy(dataset)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def monai_reader(dataset: Any, samples: int, batches: int) -> Reader:
    """Batches of 8 from MONAI's DataLoader, volumes in random order."""
    from monai.data import DataLoader
    from torch.utils.data import RandomSampler

    few = BATCH // samples
    order = RandomSampler(dataset, replacement=True, num_samples=batches * few)
    loader = DataLoader(dataset, batch_size=few, sampler=order, num_workers=0)

    def read(turn: int) -> int:
        return sum(len(batch["image"]) for batch in loader)

    return read


def torchio_reader(paths: Sequence[Path]) -> Reader:
    """One pass of TorchIO's Queue over subjects that are loaded from nii.gz, 4 samples of each, all of them in the queue."""
    import torchio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [torchio.ScalarImage(path) for path in paths]  # type: ignore[no-untyped-call]
        subjects = torchio.SubjectsDataset([torchio.Subject(image=image) for image in images])
        sampler = torchio.UniformSampler(SIDE)
        queue = torchio.Queue(subjects, max_length=DRAWS * len(paths), samples_per_volume=DRAWS, sampler=sampler, num_workers=0)
    loader = torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0)

    def read(turn: int) -> int:
        return sum(len(batch["image"][torchio.DATA].float()) for batch in loader)

    return read


_WIDE = "aligned, store.chunk=48"
TARGETS: Mapping[tuple[str, str], float] = {
    ("unaligned", "PersistentDataset"): 4.5,
    ("unaligned", "CacheDataset"): 3.5,
    ("unaligned", "Dataset"): 45.0,
    ("aligned", "CacheDataset, copy_cache=False"): 0.6,
    ("several draws", "CacheDataset, copy_cache=False"): 0.7,
    ("several draws", "CacheDataset, copy_cache=False, 4 samples"): 0.85,
    ("aligned", "CacheDataset, copy_cache=False, track_meta=False"): 0.6,
    ("several draws", "CacheDataset, copy_cache=False, track_meta=False"): 0.7,
    ("several draws", "CacheDataset, copy_cache=False, track_meta=False, 4 samples"): 0.85,
}
_SLOW = ("Dataset",)


def check(stores: Sequence[Store], datasets: Mapping[str, tuple[Any, int]], arrays: Sequence[np.ndarray]) -> None:
    """Every reader's crop is a crop of the array that the file was written from."""
    found = np.empty((1, SIDE, SIDE, SIDE), dtype=np.int16)
    for store, start in itertools.product(stores, ((0, 0, 0), (17, 30, 41))):
        store.read_box(0, start, found)
        np.testing.assert_array_equal(found[0], arrays[0][tuple(slice(a, a + SIDE) for a in start)])
    for name, (dataset, _) in datasets.items():
        item = dataset[0]
        crop = np.asarray((item[0] if isinstance(item, list) else item)["image"])[0].T
        assert crop.dtype == np.float32, f"{name} gives {crop.dtype}"
        assert _lies_in(crop, arrays[0]), f"{name} gives other voxels"


def _lies_in(crop: np.ndarray, array: np.ndarray) -> bool:
    """Whether a crop occurs in an array: candidates by one line of voxels, then the whole."""
    line, target = crop[0, 0, :8], crop.astype(array.dtype)
    starts = np.ones(tuple(n - SIDE + 1 for n in array.shape), dtype=bool)
    for i, value in enumerate(line):
        starts &= array[: starts.shape[0], : starts.shape[1], i : i + starts.shape[2]] == value
    for far in (SIDE - 1, SIDE // 2):
        starts &= array[far : far + starts.shape[0], far : far + starts.shape[1], far : far + starts.shape[2]] == target[far, far, far]
    return any(np.array_equal(array[tuple(slice(a, a + SIDE) for a in start)], target) for start in np.argwhere(starts))


def measure(quick: bool, work: Path) -> Iterator[Row]:
    """All rows."""
    count, shape, rounds = (2, (128, 128, 144), 1) if quick else (12, (160, 256, 256), 5)
    paths = write(work / "nii", volumes(count, shape))
    store, wide = stored(paths, work / "volumes"), stored(paths, work / "volumes48", 48)
    datasets = monai_datasets(paths, work / "persistent")
    check((store, wide), datasets, [next(volumes(1, shape))])
    ours = our_readers(store, 2 if quick else 12)
    ours[_WIDE] = our_readers(wide, 2 if quick else 12)["aligned"]
    peers = {name: monai_reader(dataset, samples, 1 if quick or name in _SLOW else 6) for name, (dataset, samples) in datasets.items()}
    peers["TorchIO Queue, 4 samples"] = torchio_reader(paths)
    for read in (*ours.values(), *peers.values()):
        read(-1)
    found = rates({**ours, **peers}, rounds)
    given = f"{count} volumes {'x'.join(map(str, shape))} int16"
    for name in ours:
        for peer in peers:
            shown = peer if "TorchIO" in peer else f"MONAI {peer}"
            target = TARGETS.get((name.partition(",")[0], peer))
            yield row(f"96^3 float32, {name}", given, found[name], shown, found[peer], UNIT, target)
    yield from memory(store, work, given, count, shape)


def memory(store: Store, work: Path, given: str, count: int, shape: tuple[int, ...]) -> Iterator[Row]:
    """What each keeps: the decoded float32 volumes of a cache, pickles on disk, the files themselves."""

    def size(folder: Path) -> float:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6

    disk = size(store.path / "volumes")
    cache = count * np.prod(shape) * 4 / 1e6
    yield row("memory that must be resident", given, [0.0], "MONAI CacheDataset", [cache], "MB")
    yield row("bytes on disk", given, [disk], "MONAI PersistentDataset", [size(work / "persistent")], "MB")
    yield row("bytes on disk", given, [disk], "nii.gz", [size(work / "nii")], "MB")


if __name__ == "__main__":
    sys.exit("run benchmarks/data_path.py --only volumes")
