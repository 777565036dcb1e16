"""Ingest against decoding the same sources alone, and the store's size against COG-deflate and nii.gz of the same pixels.

Real images of ``DINODOMAIN_TEST_DATA``: a 512 x 1792 mosaic of 44 different Sentinel-2 patches (12 bands, uint16) in four orientations as
COGs (deflate, predictor 2), CT and MR volumes as nii.gz (gzip level 6)
in their stored type, the mosaic as JPEG 2000 band files, one JPEG 2000 DICOM series, chest X-rays as PNG.
One process, CPU-seconds of that process (all threads, system time included); the two sides take turns within a round; medians over rounds;
page cache warm. Decoding alone hands out every stored value once: rasterio's ``read`` by blocks of 2048 rows, nibabel's unscaled voxels,
pydicom's ``pixel_array``, Pillow's array. Ingest writes a whole store from the same files, with ids, hashes, statistics and fsync.

    python benchmarks/ingest.py [--quick] --json FILE
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain.ingest import IngestPlan, ingest
from dinodomain.lineage import write_json
from dinodomain.store import StorePlan

Row = dict[str, Any]
RATE_TARGET, COG_TARGET, NII_TARGET = 0.85, 1.07, 0.90


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sources of one kind in a folder of their own.

    Attributes:
        name: As the table shows it.
        domain: Domain that ingests them.
        folder: Where they lie.
        decode: Reads every pixel once and returns the number of bytes.
        options: Further keys of the plan.
    """

    name: str
    domain: str
    folder: Path
    decode: Callable[[Path], int]
    options: Mapping[str, Any]


def mosaic(data: Path) -> np.ndarray:
    """[12, 512, 1792] uint16 of patches that are all different: 4 of 256 and 40 of 128 pixels a side."""
    import rasterio

    def patches(folder: str, side: int, count: int) -> list[np.ndarray]:
        found = []
        for path in sorted((data / "sat_multispectral/dev" / folder).rglob("*.tif")):
            with rasterio.open(path) as dataset:
                if dataset.count == 12 and dataset.shape == (side, side) and dataset.dtypes[0] == "int16":
                    found.append(dataset.read().astype(np.uint16))  # no value is negative
        assert len(found) >= count, f"{folder}: {len(found)} patches, {count} are needed"
        return found[:count]

    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    large, small = patches("s2_boadella_timeseries", 256, 4), patches("s2_ships", 128, 40)
    quads = large + [_quad(small[i : i + 4]) for i in range(0, 40, 4)]
    return np.concatenate([np.concatenate(quads[row : row + 7], axis=2) for row in (0, 7)], axis=1)


def _quad(four: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(four[:2], axis=2), np.concatenate(four[2:], axis=2)], axis=1)


def scenes(data: Path, out: Path, count: int) -> Case:
    """COGs of the mosaic in ``count`` orientations."""
    import rasterio
    from rasterio.transform import from_origin

    out.mkdir()
    pixels = mosaic(data)
    for turn in range(count):
        turned = np.ascontiguousarray(np.rot90(pixels, turn, axes=(1, 2)))
        profile = {
            "driver": "COG",
            "count": 12,
            "height": turned.shape[1],
            "width": turned.shape[2],
            "dtype": "uint16",
            "crs": "EPSG:32631",
            "nodata": 0,
        }
        profile |= {"transform": from_origin(500000 + 40000 * turn, 4700000, 10, 10), "compress": "deflate", "predictor": "standard"}
        with rasterio.open(out / f"scene{turn}.tif", "w", overviews="none", **profile) as dataset:
            dataset.write(turned)
    return Case(
        name=f"Sentinel-2 COG deflate, 12 x 512 x 1792 uint16, {count} scenes", domain="sentinel2", folder=out, decode=_rasters, options={}
    )


def band_files(data: Path, out: Path) -> Case:
    """The mosaic as ESA packs its products: one lossless JPEG 2000 file per band."""
    import rasterio
    from rasterio.transform import from_origin

    out.mkdir()
    profile = {
        "driver": "JP2OpenJPEG",
        "count": 1,
        "dtype": "uint16",
        "crs": "EPSG:32631",
        "transform": from_origin(500000, 4700000, 10, 10),
    }
    names = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    for name, band in zip(names, mosaic(data)):
        path = out / f"T31TDG_20200113T105331_{name}.jp2"
        with rasterio.open(path, "w", height=band.shape[0], width=band.shape[1], REVERSIBLE="YES", QUALITY="100", **profile) as dataset:
            dataset.write(band, 1)
    return Case(name="Sentinel-2 JPEG 2000 band files, 12 x 512 x 1792 uint16", domain="sentinel2", folder=out, decode=_rasters, options={})


def volumes(paths: list[Path], out: Path, domain: str, name: str, times: int = 1) -> Case:
    """nii.gz of the values that a store keeps, gzip level 6; mirrored ``times`` times along every axis where real ones are too small."""
    import nibabel

    from dinodomain.domain import find_domain
    from dinodomain.types import Select

    out.mkdir()
    found = find_domain(domain)
    for path in paths:
        for ref in found.discover(str(path), Select()):
            record = found.read(ref)  # type: ignore[arg-type]
            array = record.read(tuple(slice(0, size) for size in record.shape[1:]))[0]
            array = np.pad(array, [(0, size * (times - 1)) for size in array.shape], mode="symmetric")
            image = nibabel.Nifti1Image(array.T, np.reshape(record.affine, (4, 4)))
            image.header.set_slope_inter(record.scale[0], record.offset[0])
            with nibabel.openers.ImageOpener(str(out / path.name.replace(".nrrd", ".nii.gz")), "wb", compresslevel=6) as handle:
                image.to_stream(handle)
    name += f", mirrored to {times}^3" if times > 1 else ""
    return Case(name=f"{name}, {len(paths)} volumes", domain=domain, folder=out, decode=_niftis, options={})


def _rasters(folder: Path) -> int:
    import rasterio

    total = 0
    for path in sorted(folder.iterdir()):
        with rasterio.open(path) as dataset:
            for row in range(0, dataset.height, 2048):
                total += dataset.read(window=((row, min(row + 2048, dataset.height)), (0, dataset.width))).nbytes
    return total


def _niftis(folder: Path) -> int:
    import nibabel

    return sum(np.asanyarray(nibabel.load(path).dataobj.get_unscaled()).nbytes for path in sorted(folder.glob("*.nii.gz")))  # type: ignore[attr-defined]


def _dicoms(folder: Path) -> int:
    import pydicom

    return sum(pydicom.dcmread(path).pixel_array.nbytes for path in sorted(folder.iterdir()))


def _pictures(folder: Path) -> int:
    from PIL import Image

    return sum(np.asarray(Image.open(path)).nbytes for path in sorted(folder.iterdir()))


def cases(data: Path, work: Path, quick: bool) -> Iterator[Case]:
    """All inputs; what the data folder lacks is an error, not a shorter table."""
    medical = data / "medical_ingest/dev"
    yield scenes(data, work / "scenes", 1 if quick else 4)
    yield band_files(data, work / "bands")
    ct = [medical / "ct_nifti" / name for name in ("ts_example_ct.nii.gz", "ts_pulmonary_crop.nii.gz", "lung1_half.nii.gz")]
    brains = [path for path in sorted((data / "ixi_t1_2mm/dev").rglob("*.nii.gz")) if "seg" not in path.name][: 4 if quick else 12]
    for domain, name, paths in (("ct", "CT nii.gz", ct), ("mri", "MR T1 nii.gz, 8 bit", brains)):
        yield volumes(paths, work / domain, domain, name)
        yield volumes(paths[:3], work / f"{domain}-large", domain, name, times=2 if quick else 3)
    yield Case(name="CT DICOM JPEG 2000 lossless, 20 slices", domain="ct", folder=medical / "ct_dicom_j2k", decode=_dicoms, options={})
    xray = work / "xray"
    xray.mkdir()
    pictures = sorted(path for path in (data / "cxr_nih_hannover").rglob("*") if path.suffix.lower() in (".png", ".jpg"))
    for path in pictures[: 50 if quick else 400]:
        shutil.copy(path, xray / path.name)
    yield Case(
        name=f"chest X-ray {pictures[0].suffix[1:].upper()}, {len(list(xray.iterdir()))} images",
        domain="xray",
        folder=xray,
        decode=_pictures,
        options={},
    )


def cleared(store: Path) -> Path:
    """The place of a store, with nothing there."""
    for name in (store.name, f"{store.name}.private"):
        shutil.rmtree(store.with_name(name), ignore_errors=True)
    return store


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of this process, and the result."""
    begun = time.process_time()
    result = call()
    return time.process_time() - begun, result


def run_ingest(case: Case, store: Path, codec: str) -> Any:
    """One ingest in this process."""
    plan = IngestPlan(
        domain=case.domain,
        source=str(case.folder),
        store=str(store),
        workers=0,
        select="all",
        storage=StorePlan(codec=codec),
        **case.options,  # type: ignore[arg-type]
    )
    return ingest(plan, progress=lambda done, total: None)


def array_bytes(store: Path) -> int:
    """Bytes of the pixels on disk: shards and their indexes, without tables."""
    return sum(path.stat().st_size for top in ("scenes", "volumes", "stacks") for path in (store / top).rglob("*") if path.is_file())


def rate_row(case: Case, work: Path, rounds: int) -> Row:
    """Ingest rate over decode rate."""
    decode, whole, size = [], [], 0
    run_ingest(case, cleared(work / "store"), "fast")  # imports and caches
    case.decode(case.folder)
    for _ in range(rounds):
        seconds, size = spent(lambda: case.decode(case.folder))
        decode.append(seconds)
        cleared(work / "store")
        seconds, summary = spent(lambda: run_ingest(case, work / "store", "fast"))
        assert not summary.skipped, summary.text()
        whole.append(seconds)
    theirs, ours = (size / 1e6 / statistics.median(times) for times in (decode, whole))
    ratio = statistics.median(d / w for d, w in zip(decode, whole))
    return _row("ingest rate / decode alone", case.name, ours, "decode alone", theirs, "MB/CPU-s", ratio, RATE_TARGET, rounds)


def size_rows(case: Case, work: Path) -> Iterator[Row]:
    """Size of the store over that of the source files, for both codecs."""
    source = sum(path.stat().st_size for path in case.folder.iterdir())
    peer, target = ("COG deflate", COG_TARGET) if case.domain == "sentinel2" else ("nii.gz", NII_TARGET)
    for codec in ("fast", "small"):
        run_ingest(case, cleared(work / "store"), codec)
        ours = array_bytes(work / "store")
        yield _row(f"size of store ({codec}) / {peer}", case.name, ours / 1e6, peer, source / 1e6, "MB", ours / source, target, 1)


def _row(measure: str, given: str, ours: float, peer: str, theirs: float, unit: str, ratio: float, target: float, rounds: int) -> Row:
    return {
        "measure": measure, "input": given, "ours": round(ours, 3), "peer": peer, "peer_value": round(theirs, 3), "unit": unit,
        "ratio": round(ratio, 3), "target": target, "rounds": rounds,
    }  # fmt: skip


def main() -> None:
    """Prints the table and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sources and rounds")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    data = Path(os.environ.get("DINODOMAIN_TEST_DATA", "../shared/data"))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for case in cases(data, work, arguments.quick):
            rows.append(rate_row(case, work, 1 if arguments.quick else 5))
            print(_line(rows[-1]), flush=True)
            if "COG" in case.name or (case.decode is _niftis and "mirrored" not in case.name):
                for row in size_rows(case, work):
                    rows.append(row)
                    print(_line(row), flush=True)
    write_json(arguments.json, rows)


def _line(row: Row) -> str:
    compare = "at least" if row["unit"] != "MB" else "at most"
    return (
        f"{row['measure']:32} {row['input']:62} {row['ours']:9.2f} {row['peer']:>12} {row['peer_value']:9.2f} {row['unit']:9} "
        f"ratio {row['ratio']:.3f} ({compare} {row['target']})"
    )


if __name__ == "__main__":
    main()
