"""The quick reader of headers against pydicom, on every file that pydicom ships and on a real series."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dinodomain.errors import BadSource
from dinodomain_medical import dicom_header
from dinodomain_medical.dicom_header import read_header, read_headers
from dinodomain_medical.quick_header import read_quickly

NAMES = (
    "ImageType", "SliceThickness", "PatientName", "StudyDescription", "Rows", "PixelSpacing", "SmallestImagePixelValue",
    "ConvolutionKernel", "SOPClassUID", "WindowCenter", "AcquisitionNumber", "PixelPaddingValue",
)  # fmt: skip
SHIPPED = sorted(
    path for path in (Path(pydicom.__file__).parent / "data" / "test_files").rglob("*") if path.suffix in (".dcm", "") and path.is_file()
)


def both(path, monkeypatch):
    quick = read_header(path, NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_header, "read_quickly", lambda handle: None)
        return quick, read_header(path, NAMES)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_quick_header_equals_pydicoms(path, monkeypatch):
    try:
        quick, slow = both(path, monkeypatch)
    except BadSource:
        with pytest.raises(BadSource):
            read_headers(path)
        return
    for field in fields(quick):
        assert getattr(quick, field.name) == getattr(slow, field.name), field.name


def test_most_files_are_read_quickly_and_not_by_chance():
    quick = 0
    for path in SHIPPED:
        with path.open("rb") as handle:
            quick += read_quickly(handle) is not None
    assert quick > 0.5 * len(SHIPPED)


def test_a_real_series_is_read_quickly_and_equals_pydicoms(real_data, monkeypatch):
    for path in sorted((real_data / "medical_ingest" / "dev" / "ct_dicom_j2k").iterdir())[::4]:
        with path.open("rb") as handle:
            assert read_quickly(handle) is not None
        quick, slow = both(path, monkeypatch)
        assert quick == slow


@pytest.mark.parametrize("implicit", [False, True])
def test_sequences_of_both_lengths_are_stepped_over(tmp_path, write_dicom, monkeypatch, implicit):
    path = write_dicom(tmp_path / "a", np.zeros((4, 4), np.uint16), Modality="CT", PatientID="P1")
    dataset = pydicom.dcmread(path)
    inner = pydicom.Dataset()
    inner.CodeMeaning = "x" * 60
    outer = pydicom.Dataset()
    outer.PurposeOfReferenceCodeSequence = pydicom.Sequence([inner] * 5)
    for element in ("ReferencedStudySequence", "ReferencedImageSequence"):
        setattr(dataset, element, pydicom.Sequence([outer]))
        dataset[element].is_undefined_length = element == "ReferencedStudySequence"
    dataset.ReferencedStudySequence[0].is_undefined_length_sequence_item = True
    dataset.TextValue = "y" * 60_000  # beyond the first read
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(path)
    with path.open("rb") as handle:
        header = read_quickly(handle)
    assert header is not None
    assert (header.get("PatientID"), header.get("Rows"), header.get("StudyDate")) == ("P1", 4, None)
    quick, slow = both(path, monkeypatch)
    assert quick == slow


@pytest.mark.parametrize("cut", [140, 200, 333, 400])
def test_a_cut_header_is_left_to_pydicom(tmp_path, write_dicom, cut):
    path = write_dicom(tmp_path / "a", np.zeros((4, 4), np.uint16), Modality="CT", PatientID="P1")
    path.write_bytes(path.read_bytes()[:cut])
    with path.open("rb") as handle:
        quick = read_quickly(handle)
    # A cut between two elements looks like a file without pixels to both readers.
    assert quick is None or quick.pixels_at == cut


def test_names_in_other_character_sets_are_read_as_pydicom_does(tmp_path, write_dicom, monkeypatch):
    path = write_dicom(
        tmp_path / "a",
        np.zeros((4, 4), np.uint16),
        Modality="CT",
        SpecificCharacterSet="ISO_IR 192",
        PatientID="Müller-7",
        PatientName="Ж^Ю",
    )
    quick, slow = both(path, monkeypatch)
    assert quick.keys["PatientID"] == slow.keys["PatientID"] == "Müller-7"
    assert quick.values == slow.values
    other = write_dicom(
        tmp_path / "b", np.zeros((4, 4), np.uint16), Modality="CT", SpecificCharacterSet="ISO_IR 144", PatientID="1", PatientName="Ж^Ю"
    )
    with other.open("rb") as handle:
        assert read_quickly(handle) is None
    assert read_header(other, NAMES).values["PatientName"] == "Ж^Ю"
