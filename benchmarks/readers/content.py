"""Real pixels for the readers: Sentinel-2 scenes and CT and MR volumes, mirrored and tiled up to the sizes that archives hold.

Scenes repeat no part within a chunk; volumes mirror slices across the few chunks in which a short series ends.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ingest import mosaic  # the benchmark beside this package

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
ORIGIN, STEP = (500000.0, 4700000.0), 40000.0
"""Upper left corner of the first scene and the distance to the next one, metres in UTM zone 31."""


def data_folder() -> Path:
    """``DINODOMAIN_TEST_DATA``, by default ``../shared/data`` beside the repository.

    Raises:
        SystemExit: It is not there; these benchmarks measure nothing on made-up pixels.
    """
    folder = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        raise SystemExit(f"no real data at {folder}: set DINODOMAIN_TEST_DATA")
    return folder


@functools.cache
def _base() -> np.ndarray:
    """[12, 512, 2048] uint16."""
    import rasterio

    data = data_folder()
    with rasterio.open(next((data / "sat_multispectral/dev/sen1floods11_spain").rglob("*S2*.tif"))) as dataset:
        chip = dataset.read([i for i in range(1, 14) if i != 11]).astype(np.uint16)  # the store's twelve bands: without B10
    assert chip.shape == (12, 512, 512), f"the scene of Sen1Floods11 is {chip.shape}"
    return np.concatenate([mosaic(data)[:, :, :1536], chip], axis=2)


def scenes(count: int, side: int) -> Iterator[np.ndarray]:
    """[12, side, side] uint16 each; ``side`` divides by 256.

    The base, 512 x 2048, holds 42 patches of two places and a scene of 512 x 512; strips of it are shifted and mirrored, in each scene
    otherwise.
    """
    base, rng = _base(), np.random.default_rng(0)
    for _ in range(count):
        strips = []
        for _ in range(-(-side // 512)):
            strip = np.roll(base, int(rng.integers(2048)), axis=2)
            strips.append(strip[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])])
        yield np.ascontiguousarray(np.concatenate(strips, axis=1)[:, :side, :side])


VOLUMES = (
    "medical_ingest/dev/ct_nifti/lung1_half.nii.gz",
    "medical_ingest/dev/ct_nifti/ts_pulmonary_crop.nii.gz",
    "mri_t1_flair_wmh/dev/Subj1/Subj1_T1w.nii.gz",
    "medical_ingest/dev/ct_nifti/ts_example_ct.nii.gz",
    "medical_ingest/dev/mr_spine/t1w.nii.gz",
    "ixi_t1_2mm/dev/IXI013-HH-1212/IXI013-HH-1212_T1w.nii.gz",
)
"""Three CT series and three MR series (of which two were published with 8 bits)."""


def volumes(count: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """[Z, Y, X] int16 each: the real series in turn, continued by reflection, every further time mirrored along other axes."""
    import nibabel

    data = data_folder()
    for i in range(count):
        image = nibabel.load(data / VOLUMES[i % len(VOLUMES)])
        array = np.asanyarray(image.dataobj.get_unscaled()).T.astype(np.int16)
        turn = i // len(VOLUMES)
        array = array[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1, :]
        for axis, size in enumerate(shape):
            array = np.pad(array, [(0, max(size - n, 0) if k == axis else 0) for k, n in enumerate(array.shape)], mode="symmetric")
        yield np.ascontiguousarray(array[tuple(slice(0, size) for size in shape)])
