"""Every item of the real ingest traps: geometry and values equal to an oracle that shares no code with us, or the right refusal."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from dinodomain_medical import ct, mri, xray


def load_items():
    """The script that prints the table of real items; scripts are no package."""
    path = Path(__file__).parents[3] / "benchmarks" / "items.py"
    spec = importlib.util.spec_from_file_location("items", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["items"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ITEMS = load_items()


@pytest.mark.parametrize("item", ITEMS.MEDICAL, ids=lambda item: f"{item.name}-{item.domain}")
def test_every_item_equals_its_oracle_or_is_refused_for_the_right_reason(real_data, item):
    row = ITEMS.medical_row(real_data / "medical_ingest" / "dev", item)
    assert row["right"], row
    assert set(row) == set(ITEMS.COLUMNS)


def test_the_table_of_items_misses_no_file(real_data, monkeypatch):
    monkeypatch.setattr(ITEMS, "medical_row", lambda folder, item: {"item": item.name})
    rows = ITEMS.medical_rows(real_data)
    assert [row["item"] for row in rows] == [item.name for item in ITEMS.MEDICAL]
    monkeypatch.setattr(ITEMS, "MEDICAL", ITEMS.MEDICAL[1:])
    assert ITEMS.medical_rows(real_data)[-1]["outcome"] == "not in the table"


def assert_equal(record, physical, image) -> None:
    values = image.get_fdata()
    np.testing.assert_allclose(physical(record).T, values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.reshape(record.affine, (4, 4)), image.affine, atol=1e-4)
    np.testing.assert_allclose(record.spacing, nib.affines.voxel_sizes(image.affine)[::-1], atol=1e-4)
    assert nib.aff2axcodes(np.reshape(record.affine, (4, 4))) == ("R", "A", "S")


def test_the_jpeg2000_series_lies_on_the_grid_of_its_segmentation(real_data, open_one, physical):
    folder = real_data / "medical_ingest" / "dev" / "ct_dicom_j2k"
    record = open_one(ct, folder)
    segmentation = nib.as_closest_canonical(nib.load(folder.parent / "ct_dicom_j2k_seg.nii.gz"))
    assert record.shape[:0:-1] == segmentation.shape
    np.testing.assert_allclose(np.reshape(record.affine, (4, 4)), segmentation.affine, atol=1e-3)
    organs = np.asarray(segmentation.dataobj).T
    values = physical(record)
    # TotalSegmentator class 5 is the liver: soft tissue with contrast; outside all organs lies mostly air and fat.
    assert 0 < np.median(values[organs == 5]) < 200
    assert np.median(values[organs == 5]) > np.median(values[organs == 0]) + 300


def test_the_jpeg2000_series_equals_simpleitk(real_data, open_one, physical):
    """ITK reads the slices one by one; order and geometry are checked by the world position of every slice's corner."""
    folder = real_data / "medical_ingest" / "dev" / "ct_dicom_j2k"
    record = open_one(ct, folder)
    values, inverse = physical(record), np.linalg.inv(np.reshape(record.affine, (4, 4)))
    for path in sorted(folder.iterdir())[::5]:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        x, y, z = image.GetOrigin()
        index = np.rint(inverse @ (-x, -y, z, 1)).astype(int)
        assert tuple(index[:2]) == (511, 511)
        np.testing.assert_array_equal(values[index[2], ::-1, ::-1], sitk.GetArrayFromImage(image)[0])


def test_every_ixi_brain_equals_nibabel(real_data, found, physical):
    sources, refused = found(mri, real_data / "ixi_t1_2mm" / "dev")
    assert len(sources) == len(refused) == 12
    for source in sources[::3]:
        record = mri.read(source)
        assert (record.channels, record.dtype, record.stages) == (("T1",), "uint8", ("reoriented PSR -> RAS",))
        assert source.keys["folder"].startswith("IXI")
        assert_equal(record, physical, nib.as_closest_canonical(nib.load(source.uris[0])))


def test_t1_and_flair_are_told_apart_and_keep_their_own_grids(real_data, found):
    sources, _ = found(mri, real_data / "mri_t1_flair_wmh" / "dev", include=("Subj1/*",))
    records = {record.channels[0]: record for record in map(mri.read, sources)}
    assert set(records) == {"T1", "FLAIR"}
    assert records["T1"].shape != records["FLAIR"].shape


def test_radiographs_equal_pillow(real_data, found, full):
    sources, refused = found(xray, real_data / "cxr_nih_hannover" / "dev" / "raw")
    assert not refused
    assert len(sources) == 14
    for source in sources[:5]:
        record = xray.read(source)
        picture = np.asarray(Image.open(source.uris[0]))
        np.testing.assert_array_equal(full(record)[0], picture if picture.ndim == 2 else picture[..., 0])
