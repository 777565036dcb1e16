"""Every real item of the ingest traps, one row each: equal to an oracle that shares no code with us, or refused for the right reason.

Oracles: nibabel for NIfTI, SimpleITK for NRRD and DICOM, rasterio (GDAL) for rasters. Equal means, for volumes: values to 1e-6 of the
largest one, affine and spacing to 1e-4 mm, after both sides are brought to axes that run to right, anterior and superior. For rasters:
stored values bit by bit (bands of another resolution replicated, or within half a step of GDAL's own resampling), CRS and affine exactly.

    python benchmarks/items.py [--data FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import rasterio
import rasterio.warp
import SimpleITK as sitk

from dinodomain.domain import find_domain
from dinodomain.errors import BadSource, LeftOut
from dinodomain.lineage import write_json
from dinodomain.types import Record, Select

Row = dict[str, Any]
COLUMNS = ("item", "domain", "outcome", "reason_or_shape", "geometry_equal", "values_equal", "oracle", "right")


@dataclass(frozen=True, kw_only=True)
class MedicalItem:
    """One file or series and what must become of it.

    Attributes:
        path: Below ``medical_ingest/dev``.
        domain: Domain that is to ingest it.
        refusal: Part of the reason it must be refused with; empty where it must equal its oracle.
        options: Further keys of the selection.
    """

    path: str
    domain: str
    refusal: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Path and keys."""
        return " ".join([self.path, *(f"ingest.{key}={value}" for key, value in self.options.items())])


_LABEL, _MASK = "looks like a label map", "a mask, not an image"

MEDICAL = (
    MedicalItem(path="ct_nifti/ts_example_ct.nii.gz", domain="ct"),
    MedicalItem(path="ct_nifti/ts_example_ct_sm.nii.gz", domain="ct"),
    MedicalItem(path="ct_nifti/ts_pulmonary_crop.nii.gz", domain="ct"),
    MedicalItem(path="ct_nifti/lung1_half.nii.gz", domain="ct"),
    MedicalItem(path="ct_dicom_j2k", domain="ct"),
    MedicalItem(path="ct_dicom_j2k", domain="mri", refusal="left out by ingest.select"),
    MedicalItem(path="mr_nifti/ts_example_mr_sm.nii.gz", domain="mri"),
    MedicalItem(path="mr_nrrd/brain1_image.nrrd", domain="mri"),
    MedicalItem(path="mr_nrrd/breast1_image.nrrd", domain="mri"),
    MedicalItem(path="mr_spine/t1w.nii.gz", domain="mri"),
    MedicalItem(path="mr_spine/t2.nii.gz", domain="mri"),
    MedicalItem(path="nifti_odd/pcasl.nii.gz", domain="mri", refusal="4-D with 10 frames of 52x68x20"),
    MedicalItem(path="nifti_odd/pcasl.nii.gz", domain="mri", options={"frames": "split"}),
    MedicalItem(path="nifti_odd/CT_pitch.nii.gz", domain="ct", refusal="values 0..255 cannot be Hounsfield units"),
    MedicalItem(path="nifti_odd/CT_pitch.nii.gz", domain="mri"),
    MedicalItem(path="ct_dicom_j2k_seg.nii.gz", domain="ct", refusal=_LABEL),
    MedicalItem(path="ct_nifti/lung1_half_tumour_seg.nii.gz", domain="ct", refusal=_LABEL),
    MedicalItem(path="ct_nifti/ts_example_ct_sm_seg.nii.gz", domain="ct", refusal=_LABEL),
    MedicalItem(path="ct_nifti/ts_pulmonary_crop_pulmonary_artery.nii.gz", domain="ct", refusal=_MASK),
    MedicalItem(path="ct_nifti/ts_pulmonary_otherGrid_heart.nii.gz", domain="ct", refusal=_MASK),
    MedicalItem(path="mr_nifti/ts_example_mr_sm_seg.nii.gz", domain="mri", refusal=_LABEL),
    MedicalItem(path="mr_nrrd/brain1_label.nrrd", domain="mri", refusal=_LABEL),
    MedicalItem(path="mr_nrrd/breast1_label.nrrd", domain="mri", refusal=_LABEL),
    MedicalItem(path="mr_spine/t1w_seg-manual.nii.gz", domain="mri", refusal=_LABEL),
    MedicalItem(path="mr_spine/t2_seg-manual.nii.gz", domain="mri", refusal=_LABEL),
)


def medical_rows(root: Path) -> list[Row]:
    """One row per item of ``root/medical_ingest/dev``, and one for each file there that the table above does not know."""
    folder = root / "medical_ingest" / "dev"
    rows = [medical_row(folder, item) for item in MEDICAL]
    known = {item.path for item in MEDICAL}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if path.is_file() and place != "index.csv" and not {place, place.rpartition("/")[0]} & known:
            rows.append(dict.fromkeys(COLUMNS) | {"item": place, "outcome": "not in the table", "right": False})
    return rows


def medical_row(folder: Path, item: MedicalItem) -> Row:
    """Ingests one item as far as the record, and compares it."""
    path = folder / item.path
    row: Row = {"item": item.name, "domain": item.domain, "geometry_equal": None, "values_equal": None, "oracle": None}
    try:
        records = _records(path, item)
    except BadSource as refusal:
        reason = refusal.reason.replace(f"{folder}/", "")
        outcome = "left out" if isinstance(refusal, LeftOut) else "refused"
        return row | {"outcome": outcome, "reason_or_shape": reason, "right": bool(item.refusal) and item.refusal in reason}
    name, images = _oracle(path)
    same = len(records) == len(images)
    geometry = same and all(_same_geometry(record, affine) for record, (_, affine) in zip(records, images))
    values = same and all(_same_values(record, array) for record, (array, _) in zip(records, images))
    shape = "x".join(map(str, records[0].shape[:0:-1])) + (f", {len(records)} frames" if len(records) > 1 else "")
    found = {"outcome": "ingested", "reason_or_shape": shape, "geometry_equal": geometry, "values_equal": values, "oracle": name}
    return row | found | {"right": not item.refusal and geometry and values}


def _records(path: Path, item: MedicalItem) -> list[Record]:
    domain = find_domain(item.domain)
    found = list(domain.discover(str(path), Select(where=domain.default_select, **item.options)))
    for one in found:
        if isinstance(one, BadSource):
            raise one
    return [domain.read(one) for one in found if not isinstance(one, BadSource)]


def _oracle(path: Path) -> tuple[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Name, and per volume values (x, y, z) and affine, axes to right, anterior, superior."""
    if path.name.endswith(".nii.gz"):
        image = nib.load(path)
        volumes = nib.four_to_three(image) if len(image.shape) > 3 else [image]
        turned = [nib.as_closest_canonical(volume) for volume in volumes]
        return "nibabel", [(volume.get_fdata(), volume.affine) for volume in turned]
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    image = sitk.DICOMOrient(sitk.ReadImage(names), "RAS")  # SimpleITK names the directions that indices run to
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return "SimpleITK", [(sitk.GetArrayFromImage(image).T.astype(float), np.diag([-1.0, -1, 1, 1]) @ affine)]


def _same_geometry(record: Record, affine: np.ndarray) -> bool:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    if record.affine is None:
        return False
    ours = np.reshape(np.array(record.affine), (4, 4))
    return bool(np.allclose(ours, affine, rtol=0, atol=1e-4) and np.allclose(record.spacing, spacing, rtol=0, atol=1e-4))


def _same_values(record: Record, array: np.ndarray) -> bool:
    stored = record.read(tuple(slice(0, size) for size in record.shape[1:]))[0].T.astype(float)
    physical = stored * record.scale[0] + record.offset[0]
    return physical.shape == array.shape and bool(np.allclose(physical, array, rtol=0, atol=1e-6 * np.abs(array).max()))


@dataclass(frozen=True, kw_only=True)
class SceneKind:
    """How the scenes of one folder are ingested.

    Attributes:
        domain: Domain that is to ingest them.
        options: Further keys of the selection.
    """

    domain: str
    options: dict[str, Any] = field(default_factory=dict)


SCENES = {
    "bigearthnet_s1": SceneKind(domain="sentinel1", options={"sar": "db"}),
    "bigearthnet_s2": SceneKind(domain="sentinel2"),
    "enmap_potsdam": SceneKind(domain="hyperspectral"),
    "eurosat_ms": SceneKind(domain="sentinel2"),
    "landsat5_amazon": SceneKind(domain="landsat"),
    "landsat7_nc": SceneKind(domain="landsat"),
    "landsat8_ny": SceneKind(domain="landsat"),
    "landsat8_overlap": SceneKind(domain="landsat"),
    "oscd_dubai": SceneKind(domain="sentinel2"),
    "s2_boadella_timeseries": SceneKind(domain="sentinel2"),
    "s2_ships": SceneKind(domain="sentinel2"),
}


def satellite_rows(root: Path) -> list[Row]:
    """One row per item of ``sat_multispectral/dev/index.csv``.

    Args:
        root: Folder of the collections, with ``sat_multispectral`` in it.
    """
    folder = root / "sat_multispectral"
    with open(folder / "dev" / "index.csv", newline="") as table:
        return [_satellite_row(folder, row["path"], _scene_kind(row)) for row in csv.DictReader(table)]


def _scene_kind(row: dict[str, str]) -> SceneKind:
    """Chips of one folder come of two sensors."""
    if "sen1floods11" not in row["path"]:
        return SCENES[row["path"].split("/")[1]]
    radar = row["sensor"].startswith("Sentinel-1")
    return SceneKind(domain="sentinel1", options={"sar": "db"}) if radar else SceneKind(domain="sentinel2")


def _satellite_row(folder: Path, path: str, kind: SceneKind) -> Row:
    name = " ".join([path.removeprefix("dev/"), *(f"ingest.{key}={value}" for key, value in kind.options.items())])
    row: Row = {**dict.fromkeys(COLUMNS), "item": name, "domain": kind.domain}
    domain = find_domain(kind.domain)
    (found,) = domain.discover(str(folder / path), Select(**kind.options))
    try:
        if isinstance(found, BadSource):
            raise found
        record = domain.read(found)
    except BadSource as refusal:
        return row | {"outcome": "refused", "reason_or_shape": refusal.reason.replace(f"{folder}/", ""), "right": False}
    bands = [_raster_band(folder / path, channel) for channel in record.channels]
    finest = min(bands, key=lambda band: (abs(band.transform.a), band.path))
    geometry = record.crs is not None and record.affine == tuple(finest.transform) and _same_system(record.crs, finest.crs)
    stored = record.read(tuple(slice(0, size) for size in record.shape[1:]))
    values = all(_same_band(channel, band, finest) for channel, band in zip(stored, bands))
    shape = "x".join(map(str, record.shape))
    found_ = {"outcome": "ingested", "reason_or_shape": shape, "geometry_equal": geometry, "values_equal": values, "oracle": "rasterio"}
    return row | found_ | {"right": geometry and values}


@dataclass(frozen=True, kw_only=True)
class RasterBand:
    """One band as rasterio reads it.

    Attributes:
        path: The file.
        pixels: [y, x].
        transform: Pixel to CRS.
        crs: The system.
        nodata: Declared value, or 0.
    """

    path: str
    pixels: np.ndarray
    transform: Any
    crs: Any
    nodata: float


def _raster_band(item: Path, channel: str) -> RasterBand:
    """The band of a channel, found by the names that the files give their bands, or by the order that SOURCE.md states."""
    path, index = _place_of(item, channel)
    cube, transform, crs, nodata, _ = _read_all(path)
    return RasterBand(path=str(path), pixels=cube[index - 1], transform=transform, crs=crs, nodata=0.0 if nodata is None else nodata)


@lru_cache(maxsize=2)
def _read_all(path: Path) -> tuple[np.ndarray, Any, Any, float | None, tuple[str | None, ...]]:
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.transform, dataset.crs, dataset.nodata, dataset.descriptions


_TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


def _place_of(item: Path, channel: str) -> tuple[Path, int]:
    code = channel.removesuffix("_DN")
    for family in ("TM_", "ETM_", "OLI_", "TIRS_"):
        code = code.removeprefix(family)
    names = {code, code.replace("B0", "B")}
    if item.is_dir():
        stems = ((path, path.stem.rpartition("_")[2]) for path in sorted(item.iterdir()) if path.suffix.lower() == ".tif")
        return next(path for path, stem in stems if stem in names), 1
    texts = _read_all(item)[4]
    if code.startswith("nm"):
        return item, _nearest_wavelength(texts, float(code[2:].replace("_", ".")))
    return item, next((n for n, text in enumerate(texts, 1) if text in names), None) or _TWELVE.index(code) + 1


def _nearest_wavelength(texts: Sequence[str], nm: float) -> int:
    return 1 + int(np.argmin([abs(float(text.partition("(")[2].split()[0]) - nm) for text in texts]))


def _same_system(wkt: str, crs: Any) -> bool:
    return bool(rasterio.crs.CRS.from_wkt(wkt) == crs)


def _same_band(stored: np.ndarray, band: RasterBand, finest: RasterBand) -> bool:
    """Whether a stored channel is the band: as it is, replicated, or as GDAL resamples it (but for the half pixel at its rim)."""
    own = np.nan_to_num(band.pixels)
    ratio = stored.shape[0] / own.shape[0]
    if stored.shape == own.shape and np.allclose(band.transform, finest.transform):
        return bool(np.array_equal(stored, own))
    whole = round(ratio)
    if np.allclose(np.array(band.transform)[:6], np.array(finest.transform)[:6] * [whole, whole, 1, whole, whole, 1]):
        return bool(np.array_equal(stored, own.repeat(whole, 0).repeat(whole, 1)))
    theirs = np.full(stored.shape, np.nan)
    rasterio.warp.reproject(
        own.astype(float), theirs, src_transform=band.transform, src_crs=band.crs, src_nodata=band.nodata, dst_transform=finest.transform,
        dst_crs=finest.crs, dst_nodata=np.nan, resampling=rasterio.warp.Resampling.bilinear,
    )  # fmt: skip
    both = np.isfinite(theirs) & (stored != band.nodata)
    rim = max(1, whole)
    inside = (slice(rim, -rim),) * 2
    near = np.abs(stored.astype(float) - theirs)[inside][both[inside]]
    return bool(both[inside].any() and near.max() <= 1.0)


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    shown: Callable[[Any], str] = lambda value: "" if value is None else {True: "yes", False: "NO"}.get(value, str(value))  # noqa: E731
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(shown(row.get(name)) for name in COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Prints the table; ``--json`` also writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DINODOMAIN_TEST_DATA", "../shared/data")))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = medical_rows(arguments.data) + satellite_rows(arguments.data)
    print(as_markdown(rows))
    print(f"\n{sum(bool(row['right']) for row in rows)} of {len(rows)} items right")
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
