"""Who a source is: patient, permanent identity, digest, quantity, facts."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from dinodomain_medical import ct, mri


def only(found, domain, folder, **select):
    sources, refused = found(domain, folder, **select)
    assert not refused
    assert len(sources) == 1
    return sources[0]


def change(paths, **tags) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(path)


def test_a_re_export_with_other_paths_and_patient_headers_has_the_same_identity_and_digest(tmp_path, slices, write_series, found):
    paths = write_series(tmp_path / "a", slices)
    before = only(found, ct, tmp_path / "a")
    (tmp_path / "b").mkdir()
    copies = [shutil.copy(path, tmp_path / "b" / f"1.2.3.{k}") for k, path in enumerate(reversed(paths))]
    change(copies, PatientName="Doe^Jane", StudyDescription="again", InstitutionName="Elsewhere", PatientID="P2")
    after = only(found, ct, tmp_path / "b")
    assert (after.instance, after.digest) == (before.instance, before.digest)
    assert after.unit != before.unit


@pytest.mark.parametrize("implicit", [False, True])
def test_another_encoding_of_the_headers_changes_no_digest(tmp_path, slices, write_series, found, implicit):
    paths = write_series(tmp_path / "s", slices)
    before = only(found, ct, tmp_path)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.ImageComments = "longer header"
        dataset.save_as(path, implicit_vr=implicit, little_endian=True)
    assert only(found, ct, tmp_path).digest == before.digest


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleIntercept": -1000},
        {"PixelSpacing": [0.5, 0.76]},
        {"BitsStored": 15},
        {"PixelRepresentation": 1},
        {"RescaleType": "HU_MOD"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"SOPInstanceUID": "1.2.3.4.5"},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_what_decides_pixels_or_their_meaning_changes_the_digest(tmp_path, slices, write_series, found, tags):
    paths = write_series(tmp_path / "s", slices)
    before = only(found, ct, tmp_path)
    change(paths if "SOPInstanceUID" not in tags else paths[:1], **tags)
    after = only(found, ct, tmp_path)
    assert after.digest != before.digest
    assert (after.instance != before.instance) is ("SOPInstanceUID" in tags)


@pytest.mark.parametrize("at", [0, -1, "middle"])
def test_other_pixels_under_the_same_uids_change_the_digest_only(tmp_path, write_series, found, at):
    volume = np.random.default_rng(0).integers(0, 3000, (3, 64, 64)).astype(np.uint16)
    paths = write_series(tmp_path / "s", volume)
    before = only(found, ct, tmp_path)
    dataset = pydicom.dcmread(paths[1])
    pixels = dataset.pixel_array.copy()
    pixels.ravel()[pixels.size // 2 if at == "middle" else at] += 1
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(paths[1])
    after = only(found, ct, tmp_path)
    assert after.instance == before.instance
    assert after.digest != before.digest


def test_without_uids_there_is_no_permanent_identity(tmp_path, slices, write_series, found):
    write_series(tmp_path / "s", slices, vary=lambda k: {"SOPInstanceUID": None} if k == 0 else {})
    paths = sorted((tmp_path / "s").iterdir())
    dataset = pydicom.dcmread(paths[0])
    del dataset.SOPInstanceUID
    dataset.save_as(paths[0], enforce_file_format=False)
    assert only(found, ct, tmp_path).instance == ""


@pytest.mark.parametrize(
    ("tags", "unit"),
    [({}, "P1"), ({"IssuerOfPatientID": "CLINIC A"}, "CLINIC A\\P1"), ({"PatientID": ""}, None)],
)
def test_the_unit_is_the_patient_with_the_issuer_of_the_id(tmp_path, slices, write_series, found, tags, unit):
    write_series(tmp_path / "s", slices, **tags)
    source = only(found, ct, tmp_path)
    assert source.unit == unit
    assert source.keys.get("IssuerOfPatientID") == tags.get("IssuerOfPatientID")


def test_facts_are_the_headers_own_words_and_numbers(tmp_path, slices, write_series, found):
    paths = write_series(
        tmp_path / "s", slices, SliceThickness=2.0, ConvolutionKernel="B30f", BodyPartExamined="CHEST", Manufacturer="SIEMENS",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], AcquisitionDate="20190203", SeriesDescription="Thorax",
    )  # fmt: skip
    facts = only(found, ct, tmp_path).facts
    assert {name: value for name, value in facts.items() if name[0].isupper() or name in ("acquired", "bytes_in", "bytes_out")} == {
        "Modality": "CT", "SliceThickness": 2.0, "ConvolutionKernel": "B30f", "BodyPartExamined": "CHEST", "Manufacturer": "SIEMENS",
        "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "SeriesDescription": "Thorax", "NumberOfImages": 5, "acquired": "2019-02-03",
        "bytes_in": sum(path.stat().st_size for path in paths), "bytes_out": slices.nbytes,
    }  # fmt: skip


def test_facts_of_files_of_voxels_are_their_size_and_shape(tmp_path, ct_volume, write_nifti, found):
    nifti = write_nifti(tmp_path / "a.nii.gz", ct_volume)
    sitk.WriteImage(sitk.GetImageFromArray(ct_volume.T), str(tmp_path / "b.nrrd"))
    sources, _ = found(ct, tmp_path)
    for source, path in zip(sources, (nifti, tmp_path / "b.nrrd")):
        assert source.facts["shape"] == ct_volume.shape
        assert (source.facts["bytes_in"], source.facts["bytes_out"]) == (path.stat().st_size, ct_volume.nbytes)


def test_modified_hounsfield_units_are_a_quantity_of_their_own(tmp_path, slices, write_series, found):
    for name, kind in (("a", "HU"), ("b", "HU_MOD"), ("c", None)):
        write_series(tmp_path / name, slices, RescaleType=kind, SeriesInstanceUID=f"1.{ord(name)}")
    assert [source.quantity for source in found(ct, tmp_path)[0]] == ["HU", "HU_MOD", "HU"]
    write_series(tmp_path / "m", slices, Modality="MR", SeriesInstanceUID="1.9")
    assert only(found, mri, tmp_path / "m").quantity == ""


def test_records_bring_the_true_date_and_how_their_scale_came_about(tmp_path, slices, write_series, open_one):
    write_series(tmp_path / "s", slices, AcquisitionDate="20190203", StudyDate="20190201")
    record = open_one(ct, tmp_path / "s")
    assert record.acquired == "2019-02-03"
    assert record.fields["scale_kind"] == "shared"
    assert record.fields["year"] == 2019


def test_two_places_of_one_image_set_are_two_sources_of_one_identity(tmp_path, slices, write_series, found):
    """Ingest compares their pixels; it needs to see both."""
    write_series(tmp_path / "a", slices)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    sources, refused = found(ct, tmp_path)
    assert not refused
    assert len({source.source_id for source in sources}) == 2
    assert len({source.instance for source in sources}) == 1
