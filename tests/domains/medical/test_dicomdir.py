from __future__ import annotations

import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from dinodomain_medical import ct, xray
from dinodomain_medical.dicomdir import is_named


def inventory(path, listed, **more):
    """A DICOMDIR that lists paths, one IMAGE record each."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.FileSetID = "DISC"
    records = []
    for name in listed:
        record = Dataset()
        record.DirectoryRecordType = more.get("kind", "IMAGE")
        record.RecordInUseFlag = more.get("in_use", 0xFFFF)
        record.ReferencedFileID = name.split("/")
        records.append(record)
    dataset.DirectoryRecordSequence = records
    path.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation():
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def disc(tmp_path, slices, write_series):
    write_series(tmp_path / "disc" / "dicom" / "se1", slices)
    return tmp_path / "disc"


def test_what_is_listed_and_missing_gets_a_row_and_the_rest_is_found_by_content(disc, found):
    inventory(disc / "DICOMDIR", [f"DICOM/SE1/IM{k:03d}" for k in range(7)])
    sources, refused = found(ct, disc)
    assert [one.source_id for one in sources] == ["dicom/se1"]
    assert [(row.uri, row.reason) for row in refused] == [(str(disc / f"DICOM/SE1/IM00{k}"), "listed in DICOMDIR, missing") for k in (5, 6)]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DICOMDIR.;1"])
def test_names_of_media_are_one_name_in_either_case_with_and_without_version(disc, found, name):
    for path in sorted((disc / "dicom" / "se1").iterdir()):
        path.rename(path.with_name(f"{path.name.lower()}.;1"))
    inventory(disc / name, [f"DICOM/SE1/IM{k:03d}" for k in range(5)])
    sources, refused = found(ct, disc)
    assert (len(sources), refused) == (1, [])
    assert is_named(name)
    assert not is_named("DICOMDIR2")


def test_a_dicomdir_given_as_the_source_reads_its_folder(disc, found):
    path = inventory(disc / "DICOMDIR", ["DICOM/SE1/IM000", "GONE"])
    sources, refused = found(ct, path)
    assert [one.source_id for one in sources] == ["dicom/se1"]
    assert [row.uri for row in refused] == [str(disc / "GONE")]


def test_a_damaged_dicomdir_is_a_row_and_stops_nothing(disc, found):
    path = inventory(disc / "DICOMDIR", [f"DICOM/SE1/IM{k:03d}" for k in range(5)])
    content = bytearray(path.read_bytes())
    for damage in (b"", b"not DICOM at all" * 20, bytes(content[: len(content) * 2 // 3])):
        path.write_bytes(damage)
        sources, refused = found(ct, disc)
        assert len(sources) == 1
        assert [row.uri for row in refused] == [str(path)]
        assert "DICOM" in refused[0].reason


def test_records_that_are_deleted_or_no_images_are_not_missed(disc, found):
    inventory(disc / "DICOMDIR", ["GONE"], in_use=0)
    inventory(disc / "deeper" / "DICOMDIR", ["GONE"], kind="SR DOCUMENT")
    assert found(ct, disc)[1] == []


def test_an_inventory_below_the_source_speaks_of_its_own_folder_and_globs_hold(disc, found, any_domain):
    inventory(disc / "cd" / "DICOMDIR", ["A/B", "C"])
    rows = [row.uri for row in found(any_domain, disc, exclude=("cd/C", "dicom/*"))[1]]
    assert rows == [str(disc / "cd" / "A" / "B")]


def test_radiographs_come_with_their_inventory_too(tmp_path, slices, write_dicom, found):
    write_dicom(tmp_path / "XR" / "A", slices[0], Modality="DX", PatientID="P")
    inventory(tmp_path / "DICOMDIR", ["XR/A", "XR/B"])
    sources, refused = found(xray, tmp_path)
    assert [one.source_id for one in sources] == ["XR/A"]
    assert [row.uri for row in refused] == [str(tmp_path / "XR" / "B")]


def test_a_real_medium_misses_exactly_what_was_taken_from_it(tmp_path, found):
    disc = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    if not (disc / "DICOMDIR").exists():
        pytest.skip("pydicom without its test files")
    shutil.copytree(disc, tmp_path / "disc", ignore=shutil.ignore_patterns("DICOMDIR-*", "README*", "TINY*"))
    missing = [row for row in found(ct, tmp_path / "disc")[1] if row.reason == "listed in DICOMDIR, missing"]
    assert missing == []
    gone = tmp_path / "disc" / "77654033" / "CT2" / "17136"
    gone.unlink()
    missing = [row.uri for row in found(ct, tmp_path / "disc" / "DICOMDIR")[1] if row.reason == "listed in DICOMDIR, missing"]
    assert missing == [str(gone)]
