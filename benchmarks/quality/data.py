"""Real data made ready: our store, a table of labels and units, and the folder of images that the peer reads.

Nothing is made twice. The stores set no audit holdout aside: the peer sees all images, so do we.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinodomain import api

REAL = Path(os.environ.get("DINODOMAIN_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""What Sentinel-2 products of both levels have."""
SIDE = 128
"""Longest side of the radiographs that both sides read: more than their crops need, and cheap to decode for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data that both sides can read.

    Attributes:
        store: Ours.
        labels: CSV with ``id``, ``label``, ``unit`` and ``file``, one row per labelled source.
        images: Folder that the peer is given.
    """

    store: Path
    labels: Path
    images: Path

    def rows(self) -> list[dict[str, str]]:
        """The rows of the table of labels."""
        with self.labels.open(newline="") as file:
            return list(csv.DictReader(file))

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] class indices and [n] units, in the order of the table."""
        rows = self.rows()
        names = sorted({row["label"] for row in rows})
        return np.array([names.index(row["label"]) for row in rows]), np.array([row["unit"] for row in rows])


def missing(data: str) -> str | None:
    """Why the data cannot be used; None where they can."""
    folder = REAL / FOLDERS[data] / "dev"
    return None if folder.is_dir() else f"no {FOLDERS[data]} where DINODOMAIN_TEST_DATA points"


def prepare(data: str, work: Path) -> Prepared:
    """Ingests what is not there yet.

    Args:
        data: ``uc_merced``, ``cxr``, ``mri`` or ``sentinel2``.
        work: Folder for stores and tables.
    """
    folder = work / "data" / data
    folder.mkdir(parents=True, exist_ok=True)
    return _PREPARE[data](REAL / FOLDERS[data] / "dev", folder)


def _uc_merced(source: Path, folder: Path) -> Prepared:
    rows = _read(source / "labels.csv")
    table = ((row["file"].removeprefix("dev/"), row["label"], row["near_dup_group"] or row["file"], row["file"]) for row in rows)
    return _made(folder, table, source, domain="aerial", source=str(source))


def _cxr(source: Path, folder: Path) -> Prepared:
    from PIL import Image

    images = folder / "images"
    images.mkdir(exist_ok=True)
    rows = _read(source / "metadata.csv")
    for row in rows:
        small = images / f"{row['image_id']}.png"
        if not small.exists():
            with Image.open(source.parent / row["file"]) as image:
                image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                image.convert("L").save(small)
    # Hannover's images all have one label: whoever tells the site would tell the finding.
    labelled = ((row["image_id"], row["label"], row["patient_id"], row["file"]) for row in rows if row["site"] == "NIH_CC")
    return _made(folder, labelled, images, domain="xray", source=str(images))


def _mri(source: Path, folder: Path) -> Prepared:
    rows = _read(source / "subjects.csv")
    table = ((row["t1"].removeprefix("dev/"), "", row["subject_id"], row["seg"]) for row in rows)
    return _made(folder, table, source, domain="mri", source=str(source), include=("*_T1w.nii.gz",))


def _sentinel2(source: Path, folder: Path) -> Prepared:
    spain, boadella = "sen1floods11_spain/Spain_7370579", "s2_boadella_timeseries/boadella"
    table = [(f"{spain}_S2Hand.tif", "", "spain", f"dev/{spain}_LabelHand.tif")]
    table += [(f"{boadella}_{day}.tif", "", "boadella", f"dev/{boadella}_{day}_water.tif") for day in _DAYS]
    include = ("s2_ships/*", f"{boadella}*.tif", "bigearthnet_s2/*", f"{spain}_S2Hand.tif", "oscd_dubai/date*", "eurosat_ms/*")
    return _made(
        folder, table, folder / "patches", domain="sentinel2", source=str(source), include=include, exclude=("*_water.tif",), bands=BANDS,
        mix=True,
    )  # fmt: skip


_DAYS = ("2020-01-13", "2020-02-02", "2020-06-21")
"""Dates of the reservoir with a water mask."""
FOLDERS: Mapping[str, str] = {
    "uc_merced": "ucmerced_rgb128", "cxr": "cxr_nih_hannover", "mri": "ixi_t1_2mm", "sentinel2": "sat_multispectral",
}  # fmt: skip
_PREPARE: Mapping[str, Callable[[Path, Path], Prepared]] = {
    "uc_merced": _uc_merced, "cxr": _cxr, "mri": _mri, "sentinel2": _sentinel2,
}  # fmt: skip


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _made(folder: Path, table: Iterable[tuple[str, str, str, str]], images: Path, **keys: Any) -> Prepared:
    labels, store = folder / "labels.csv", folder / "store"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "unit", "file", "number"])
        writer.writerows([*row, number] for number, row in enumerate(table))
    if not (store / "manifest.json").exists():
        api.ingest(store=str(store), audit_holdout=0.0, workers=0, **keys)
    return Prepared(store=store, labels=labels, images=images)
