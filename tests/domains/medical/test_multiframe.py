"""Enhanced multi-frame objects: every frame is an image with its own place, scale and kind."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dinodomain.errors import BadSource
from dinodomain_medical import ct, mri
from dinodomain_medical.dicom_header import read_headers
from dinodomain_medical.dicom_pixels import decode_frames
from dinodomain_medical.dicomweb import headers_of


def item(**values) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def group(**macros) -> Dataset:
    """A functional group: macro keyword to a dict of its values."""
    return item(**{name: Sequence([item(**values)]) for name, values in macros.items()})


@pytest.fixture
def write_enhanced(write_dicom):
    """Writes frames [n, row, column]; ``place(k)`` gives z in mm, ``more(k)`` further macros of frame k."""

    def write(
        path, frames, *, place=lambda k: 2.0 * k, more=lambda k: {}, shared=None, modality="MR", orientation=(1, 0, 0, 0, 1, 0), **tags
    ):
        common = {
            "PixelMeasuresSequence": {"PixelSpacing": [0.5, 0.75], "SliceThickness": 2.0},
            "PlaneOrientationSequence": {"ImageOrientationPatient": list(orientation)},
            "PixelValueTransformationSequence": {
                "RescaleSlope": 1, "RescaleIntercept": -1024 if modality == "CT" else 0, "RescaleType": "HU" if modality == "CT" else "US",
            },
        } | (shared or {})  # fmt: skip
        each = []
        for k in range(len(frames)):
            macros = {"PlanePositionSequence": {"ImagePositionPatient": [-10.0, -20.0, place(k)]}} | more(k)
            each.append(group(**macros))
        write_dicom(path, frames[0], Modality=modality, SeriesInstanceUID="1.2.9", StudyInstanceUID="1.2", PatientID="P1", **tags)
        dataset = pydicom.dcmread(path)
        dataset.NumberOfFrames = len(frames)
        dataset.SOPClassUID = pydicom.uid.EnhancedMRImageStorage if modality == "MR" else pydicom.uid.EnhancedCTImageStorage
        dataset.SharedFunctionalGroupsSequence = Sequence([group(**common)])
        dataset.PerFrameFunctionalGroupsSequence = Sequence(each)
        dataset.PixelData = frames.tobytes()
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


def test_an_enhanced_ct_equals_the_single_frames_it_was_made_of(tmp_path, slices, write_series, write_enhanced, open_one, physical):
    write_series(tmp_path / "single", slices, origin=(-10.0, -20.0, 0.0))
    write_enhanced(tmp_path / "multi" / "a.dcm", slices, modality="CT")
    one, many = open_one(ct, tmp_path / "single"), open_one(ct, tmp_path / "multi")
    np.testing.assert_array_equal(physical(one), physical(many))
    assert one.affine == many.affine
    assert one.spacing == many.spacing
    assert many.fields["slice_thickness_mm"] == 2.0


def test_frames_lie_where_simpleitk_puts_them_whatever_their_order(tmp_path, slices, write_enhanced, open_one, physical):
    path = write_enhanced(tmp_path / "a", slices, modality="CT")
    image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    record = open_one(ct, path)
    assert image.GetSize() == (8, 6, 5)
    x, y, z = image.TransformIndexToPhysicalPoint((6, 1, 3))
    index = np.rint(np.linalg.inv(np.reshape(record.affine, (4, 4))) @ (-x, -y, z, 1)).astype(int)
    assert physical(record)[index[2], index[1], index[0]] == sitk.GetArrayFromImage(image)[3, 1, 6] == 4000 - 1024
    shuffled = [3, 0, 4, 1, 2]
    write_enhanced(tmp_path / "b", slices[shuffled], modality="CT", place=lambda k: 2.0 * shuffled[k])
    np.testing.assert_array_equal(physical(open_one(ct, tmp_path / "b")), physical(record))


def test_scales_per_frame_come_to_one(tmp_path, slices, write_enhanced, open_one, physical):
    scales = [("0.5", "-10"), ("1", "0"), ("0.25", "-10"), ("1", "5"), ("2", "0")]

    def more(k):
        return {"PixelValueTransformationSequence": {"RescaleSlope": scales[k][0], "RescaleIntercept": scales[k][1], "RescaleType": "US"}}

    record = open_one(mri, write_enhanced(tmp_path / "a", slices, more=more))
    expected = np.stack([plane * float(slope) + float(offset) for plane, (slope, offset) in zip(slices.astype(float), scales)])
    np.testing.assert_array_equal(physical(record), expected[:, ::-1, ::-1])
    assert record.fields["scale_kind"] == "integer"


@pytest.mark.parametrize(
    ("macro", "values", "expected"),
    [
        ("MRDiffusionSequence", [{"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}], ["b=0", "b=1000"]),
        ("MREchoSequence", [{"EffectiveEchoTime": 4.6}, {"EffectiveEchoTime": 9.2}], ["echo=4.6", "echo=9.2"]),
        (
            "MRImageFrameTypeSequence",
            [
                {"FrameType": ["ORIGINAL", "PRIMARY", "M", "NONE"], "ComplexImageComponent": "MAGNITUDE"},
                {"FrameType": ["ORIGINAL", "PRIMARY", "P", "NONE"], "ComplexImageComponent": "PHASE"},
            ],
            ["component=M", "component=P"],
        ),
        ("FrameContentSequence", [{"StackID": "1"}, {"StackID": "2"}], ["stack=1", "stack=2"]),
        ("FrameContentSequence", [{"FrameAcquisitionNumber": 1}, {"FrameAcquisitionNumber": 2}], ["acquisition=1", "acquisition=2"]),
    ],
)
def test_volumes_in_one_file_are_sources_of_their_own(tmp_path, slices, write_enhanced, found, full, macro, values, expected):
    frames = np.concatenate([slices, slices + np.uint16(7)])
    path = write_enhanced(tmp_path / "a", frames, place=lambda k: 2.0 * (k % 5), more=lambda k: {macro: values[k // 5]})
    sources, refused = found(mri, tmp_path)
    assert not refused
    assert [source.source_id.partition(";")[2] for source in sources] == expected
    assert len({source.instance for source in sources} | {source.digest for source in sources}) == 4
    for number, source in enumerate(sources):
        assert source.uris == (str(path),)
        assert source.facts["NumberOfImages"] == 5
        np.testing.assert_array_equal(full(mri.read(source))[0], slices[:, ::-1, ::-1] + np.uint16(7 * number))


def test_temporal_positions_of_one_file_are_4d(tmp_path, slices, write_enhanced, found, full):
    frames = np.concatenate([slices, slices + np.uint16(7)])
    write_enhanced(
        tmp_path / "a",
        frames,
        place=lambda k: 2.0 * (k % 5),
        more=lambda k: {"FrameContentSequence": {"TemporalPositionIndex": 1 + k // 5}},
    )
    assert [item.reason for item in found(mri, tmp_path)[1]] == ["a 4-D series: 2 volumes of one place (time)"]
    sources, refused = found(mri, tmp_path, frames="split")
    assert not refused
    np.testing.assert_array_equal(full(mri.read(sources[1]))[0], slices[:, ::-1, ::-1] + np.uint16(7))


def test_a_filter_sees_the_frames_own_values(tmp_path, slices, write_enhanced, found):
    frames = np.concatenate([slices, slices])
    kinds = [["ORIGINAL", "PRIMARY", "M", "NONE"], ["DERIVED", "PRIMARY", "DIFFUSION", "FA"]]
    write_enhanced(
        tmp_path / "a",
        frames,
        place=lambda k: 2.0 * (k % 5),
        more=lambda k: {"MRImageFrameTypeSequence": {"FrameType": kinds[k // 5]}},
        ImageType=["MIXED", "PRIMARY"],
    )
    sources, left = found(mri, tmp_path, where="'DERIVED' not in ImageType and SliceThickness == 2")
    assert [source.facts["NumberOfImages"] for source in sources] == [5]
    assert [item.reason for item in left] == ["left out by ingest.select: fails 'DERIVED' not in ImageType (5 frames of a file)"]


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "JPEGLSLossless"])
def test_compressed_frames_equal_native_ones(tmp_path, write_enhanced, open_one, full, syntax):
    frames = np.random.default_rng(3).integers(0, 4000, (4, 64, 64)).astype(np.uint16)
    path = write_enhanced(tmp_path / "a", frames, modality="CT")
    plain = full(open_one(ct, path))
    dataset = pydicom.dcmread(path)
    dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    dataset.save_as(path)
    np.testing.assert_array_equal(full(open_one(ct, path)), plain)


def test_only_wanted_frames_are_decoded_and_none_is_held(tmp_path, slices, write_enhanced):
    path = write_enhanced(tmp_path / "a", slices)
    headers = read_headers(path)
    frames = list(decode_frames(path, [headers[1], headers[3]]))
    np.testing.assert_array_equal(np.stack([frame.stored for frame in frames]), slices[[1, 3]])
    assert "PixelData" not in frames[0].dataset


def test_a_truncated_multi_frame_file_is_named(tmp_path, write_enhanced, found):
    frames = np.random.default_rng(3).integers(0, 4000, (4, 64, 64)).astype(np.uint16)
    path = write_enhanced(tmp_path / "a", frames, modality="CT")
    path.write_bytes(path.read_bytes()[:-5000])
    sources, refused = found(ct, tmp_path)
    if not refused:
        with pytest.raises(BadSource, match="truncated") as error:
            ct.read(sources[0])
        refused = [error.value]
    assert refused[0].uri.startswith(str(path))


def test_groups_that_do_not_match_the_frames_place_none_of_them(tmp_path, slices, write_enhanced, found):
    path = write_enhanced(tmp_path / "a", slices)
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:3]
    dataset.save_as(path)
    assert "multi-frame object with 5 frames and no statement of where each lies" in found(mri, tmp_path)[1][0].reason


def test_legacy_converted_objects_keep_what_stands_in_their_converted_attributes(tmp_path, slices, write_enhanced, found):
    frames = np.concatenate([slices, slices])
    write_enhanced(
        tmp_path / "a",
        frames,
        place=lambda k: 2.0 * (k % 5),
        more=lambda k: {"UnassignedPerFrameConvertedAttributesSequence": {"EchoTime": 4.6 * (1 + k // 5)}},
    )
    assert [source.source_id.partition(";")[2] for source in found(mri, tmp_path)[0]] == ["echo=4.6", "echo=9.2"]


@pytest.mark.parametrize("modality", ["NM", "XA", "MR"])
def test_frames_without_a_place_in_the_patient_are_refused(tmp_path, slices, write_dicom, found, modality):
    path = write_dicom(tmp_path / "a", slices[0], Modality=modality, PatientID="P1", SeriesInstanceUID="1.4")
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 5
    dataset.PixelData = slices.tobytes()
    dataset.save_as(path)
    reason = found(mri, tmp_path)[1][0].reason
    assert (
        "multi-frame object with 5 frames and no statement of where each lies" if modality == "MR" else f"modality {modality}"
    ) in reason


def test_headers_from_a_servers_metadata_equal_those_from_the_file(tmp_path, slices, write_enhanced):
    path = write_enhanced(tmp_path / "a", slices, modality="CT")
    instance = {tag: element for tag, element in pydicom.dcmread(path).to_json_dict().items() if tag != "7FE00010"}
    made = headers_of(instance, path, (), frames=True)
    for ours, theirs in zip(made, read_headers(path), strict=True):
        for name in ours.__slots__:
            if name not in ("pixel_print", "file_bytes", "fields"):
                assert getattr(ours, name) == getattr(theirs, name), name
