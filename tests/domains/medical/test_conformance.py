"""The domain contract, on made-up scans of every kind that each domain reads."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from dinodomain.testing import DomainTests
from dinodomain_medical import ct, mri, xray


@pytest.fixture
def clinic(tmp_path_factory, ct_volume, slices, write_nifti, write_dicom, write_series):
    """A folder with CT, MR and radiographs side by side in folders of their own, made anew for each test."""
    root = tmp_path_factory.mktemp("clinic")
    turned = np.array([[0, 0, 2.0, 0], [-1.5, 0, 0, 5], [0, 1.0, 0, 3], [0, 0, 0, 1]])
    write_nifti(root / "ct" / "a.nii.gz", ct_volume, turned)
    write_nifti(root / "ct" / "b.nii", np.where(ct_volume < 0, ct_volume, ct_volume * 0.5).astype(np.float32))
    write_series(root / "ct" / "series", np.where(slices < 200, 0, slices).astype(np.uint16), PixelPaddingValue=0)
    write_nifti(root / "mri" / "p1" / "p1_T1w.nii.gz", (ct_volume + 1000).astype(np.uint16), turned)
    write_series(root / "mri" / "p2", slices, Modality="MR", RescaleIntercept=0, SeriesDescription="t2_tse", PatientID="P2")
    sitk.WriteImage(sitk.GetImageFromArray((ct_volume + 1001).T), str(root / "mri" / "c.nrrd"))
    tags = {"Modality": "CR", "BitsStored": 12, "HighBit": 11, "ImagerPixelSpacing": [0.1, 0.2]}
    write_dicom(root / "xray" / "p1" / "one", slices[0], PatientID="P1", **tags)
    write_dicom(root / "xray" / "p2" / "two.dcm", slices[1], PatientID="P2", PhotometricInterpretation="MONOCHROME1", **tags)
    Image.fromarray((slices[2] // 8).astype(np.uint8)).save(root / "xray" / "c.png")
    return root


class _OnClinic(DomainTests):
    @pytest.fixture(autouse=True)
    def _made(self, clinic):
        self.source = str(clinic / self.domain.name)


class TestCt(_OnClinic):
    domain = ct
    expected = 3
    entry_point = "ct"


class TestMri(_OnClinic):
    domain = mri
    expected = 3
    entry_point = "mri"


class TestXray(_OnClinic):
    domain = xray
    expected = 3
    entry_point = "xray"
