"""Writers of tiny made-up scans, shared by the medical tests."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dinodomain.errors import BadSource
from dinodomain.types import Record, Select
from dinodomain_medical import ct, mri, xray

AXIAL = (1, 0, 0, 0, 1, 0)


@pytest.fixture(scope="session")
def full():
    """Reads a whole record as (C, ...) stored values."""

    def read(record: Record) -> np.ndarray:
        return record.read(tuple(slice(0, size) for size in record.shape[1:]))

    return read


@pytest.fixture(scope="session")
def physical(full):
    def read(record: Record) -> np.ndarray:
        return full(record)[0].astype(np.float64) * record.scale[0] + record.offset[0]

    return read


@pytest.fixture(scope="session")
def found():
    """Everything discover yields, split into sources and refusals."""

    def look(domain, source, **select):
        items = list(domain.discover(str(source), Select(**select)))
        return [item for item in items if not isinstance(item, BadSource)], [item for item in items if isinstance(item, BadSource)]

    return look


@pytest.fixture(scope="session")
def open_one(found):
    """Opens the only source of a folder or file; a refusal at either stage is raised."""

    def read(domain, source, **select) -> Record:
        sources, refused = found(domain, source, **select)
        if refused:
            raise refused[0]
        assert len(sources) == 1
        return domain.read(sources[0])

    return read


@pytest.fixture(params=["ct", "mri", "xray"])
def any_domain(request):
    return {"ct": ct, "mri": mri, "xray": xray}[request.param]


@pytest.fixture
def ct_volume() -> np.ndarray:
    """(x, y, z) int16 in HU with a marker that differs along every axis."""
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 200, (7, 6, 5)).astype(np.int16)
    volume[5, 1, 3] = 3000
    return volume


@pytest.fixture(scope="session")
def write_nifti():
    def write(path: Path, array: np.ndarray, affine=None, *, slope=None, inter=None, unit="mm", dtype=None) -> Path:
        image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=dtype or array.dtype)
        image.header.set_xyzt_units(unit)
        image.header.set_slope_inter(slope, inter)
        path.parent.mkdir(parents=True, exist_ok=True)
        if slope is None:
            nib.save(image, path)
        else:  # nibabel would rescale the data; write the stored integers with this very header
            image.header.set_data_offset(352)
            with nib.openers.Opener(str(path), "wb") as handle:
                image.header.write_to(handle)
                handle.write(b"\0" * (352 - handle.tell()))
                handle.write(array.tobytes(order="F"))
        return path

    return write


def _dataset(path: Path, pixels: np.ndarray) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    return dataset


@pytest.fixture(scope="session")
def write_dicom():
    """Writes one frame; any DICOM keyword may be given, None removes it."""

    def write(path: Path, pixels: np.ndarray, **tags) -> Path:
        dataset = _dataset(path, pixels)
        digest = pydicom.uid.generate_uid(entropy_srcs=[path.name, str(tags)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = digest
        if pixels.dtype != np.uint8:
            dataset.add_new("PixelData", "OW", pixels.tobytes())
        else:
            dataset.add_new("PixelData", "OB", pixels.tobytes() + b"\0" * (pixels.size % 2))
        for name, value in tags.items():
            if value is not None:
                setattr(dataset, name, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture(scope="session")
def write_series(write_dicom):
    """Writes a CT series of ``volume`` (slice, row, column), one file each; ``vary(k)`` gives tags of slice k."""

    def write(
        folder: Path,
        volume: np.ndarray,
        *,
        orientation=AXIAL,
        origin=(-10.0, -20.0, 30.0),
        step=None,
        spacing=(0.5, 0.75),
        gap=2.0,
        vary=lambda k: {},
        **tags,
    ) -> list[Path]:
        normal = np.cross(orientation[:3], orientation[3:])
        step = normal * gap if step is None else np.asarray(step)
        common = {
            "Modality": "CT",
            "SeriesInstanceUID": "1.2.3",
            "StudyInstanceUID": "1.2",
            "PatientID": "P1",
            "ImageOrientationPatient": list(orientation),
            "PixelSpacing": list(spacing),
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        } | tags
        paths = []
        for k, pixels in enumerate(volume):
            place = [round(float(v), 6) for v in np.asarray(origin) + k * step]
            paths.append(
                write_dicom(folder / f"IM{k:03d}", pixels, **(common | {"ImagePositionPatient": place, "InstanceNumber": k + 1} | vary(k)))
            )
        return paths

    return write


@pytest.fixture
def slices() -> np.ndarray:
    """(slice, row, column) uint16 stored values of a CT, 12 bits."""
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 1500, (5, 6, 8)).astype(np.uint16)
    volume[3, 1, 6] = 4000
    return volume
