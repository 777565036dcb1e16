from __future__ import annotations

import re
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from dinodomain.errors import BadSource
from dinodomain_medical import ct, mri

SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
TURNED = (0.8, 0.6, 0, 0, 0, -1)
FEET_FIRST = (-1, 0, 0, 0, 1, 0)


def sitk_volume(paths) -> sitk.Image:
    """ITK's reader, told the order by position along the normal."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent)))
    return reader.Execute()


def physical_at(record, volume, point_ras) -> float:
    index = np.linalg.inv(np.reshape(record.affine, (4, 4))) @ (*point_ras, 1)
    x, y, z = np.rint(index[:3]).astype(int)
    np.testing.assert_allclose(index[:3], (x, y, z), atol=1e-3)
    return float(volume[z, y, x])


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), SAGITTAL, CORONAL, TURNED, FEET_FIRST],
    ids=["axial", "sagittal", "coronal", "oblique", "feet-first"],
)
@pytest.mark.parametrize("backwards", [False, True], ids=["in-order", "reversed-names"])
def test_every_voxel_lies_where_simpleitk_puts_it(tmp_path, slices, write_series, open_one, physical, orientation, backwards):
    gap = -2.0 if backwards else 2.0
    paths = write_series(tmp_path / "s", slices, orientation=orientation, gap=gap)
    record, image = open_one(ct, tmp_path / "s"), sitk_volume(paths)
    oracle, ours = sitk.GetArrayFromImage(image), physical(record)
    for index in np.ndindex(*image.GetSize()):
        x, y, z = image.TransformIndexToPhysicalPoint([int(i) for i in index])
        assert physical_at(record, ours, (-x, -y, z)) == oracle[index[2], index[1], index[0]]


def test_a_marker_on_the_left_front_top_is_found_there(tmp_path, write_series, open_one, full):
    """Axial, head first: columns run to the patient's left, rows to the back, slices to the head."""
    volume = np.full((4, 5, 6), 100, dtype=np.uint16)
    volume[-1, 0, -1] = 2000
    volume[0] += np.arange(30, dtype=np.uint16).reshape(5, 6)
    write_series(tmp_path / "s", volume)
    record = open_one(ct, tmp_path / "s")
    z, y, x = np.unravel_index(np.argmax(full(record)[0]), record.shape[1:])
    assert (x, y, z) == (0, 4, 3)  # left = small x, front = large y, top = large z
    np.testing.assert_allclose(record.spacing, (2.0, 0.5, 0.75))
    assert record.stages == ("reoriented LPS -> RAS",)


def test_names_and_file_order_do_not_matter(tmp_path, slices, write_series, open_one, full):
    paths = write_series(tmp_path / "a", slices)
    for k, path in enumerate(paths):
        target = tmp_path / "b" / f"{(k * 3) % 5}.{k}.weird name"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    first, second = open_one(ct, tmp_path / "a"), open_one(ct, tmp_path / "b")
    np.testing.assert_array_equal(full(first), full(second))
    assert first.affine == second.affine


def test_patient_and_keys_come_from_the_header_and_names_do_not(tmp_path, slices, write_series, found):
    write_series(tmp_path / "s", slices, AccessionNumber="A77", PatientName="Doe^Jane")
    source = found(ct, tmp_path)[0][0]
    assert source.source_id == "s"
    assert source.unit == "P1"
    assert dict(source.keys) == {
        "path": "s", "name": "s", "stem": "s", "folder": "s",
        "PatientID": "P1", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "AccessionNumber": "A77",
    }  # fmt: skip
    assert "Jane" not in repr(source)


def test_a_series_splits_by_what_tells_its_images_apart(tmp_path, slices, write_series, found):
    """Two echoes and two orientations under one UID are four volumes, each regular."""
    for name, echo, orientation in (("a", 1, (1, 0, 0, 0, 1, 0)), ("b", 2, (1, 0, 0, 0, 1, 0)), ("c", 1, CORONAL)):
        write_series(tmp_path / name, slices, EchoNumbers=echo, orientation=orientation, Modality="MR", RescaleIntercept=0)
    together = tmp_path / "together"
    together.mkdir()
    for path in sorted(tmp_path.glob("?/IM*")):
        shutil.move(path, together / (path.parent.name + path.name))
    sources, refused = found(mri, together)
    assert not refused
    assert [len(source.uris) for source in sources] == [5, 5, 5]
    assert [source.source_id.partition(";")[2] for source in sources] == [
        "orientation=1;echo=1",
        "orientation=1;echo=2",
        "orientation=2;echo=1",
    ]


@pytest.mark.parametrize("tag", ["EchoNumbers", "AcquisitionNumber", "DiffusionBValue"])
def test_repeats_of_one_anatomy_split_by_echo_acquisition_or_b_value(tmp_path, slices, write_series, found, tag):
    for value in (1, 2):
        paths = write_series(tmp_path / str(value), slices + np.uint16(value), Modality="MR", RescaleIntercept=0, **{tag: value})
        for path in paths:
            shutil.move(path, tmp_path / f"{value}{path.name}")
    sources, refused = found(mri, tmp_path)
    assert not refused
    assert [len(source.uris) for source in sources] == [5, 5]
    assert len({source.source_id for source in sources}) == 2


def test_one_acquisition_number_per_slice_is_still_one_volume(tmp_path, slices, write_series, found):
    write_series(tmp_path / "s", slices, vary=lambda k: {"AcquisitionNumber": k + 1})
    sources, refused = found(ct, tmp_path)
    assert (len(sources), len(refused)) == (1, 0)


def test_equal_duplicates_are_dropped_and_counted(tmp_path, slices, write_series, open_one, full):
    paths = write_series(tmp_path / "s", slices)
    whole = full(open_one(ct, tmp_path / "s"))
    shutil.copy(paths[2], tmp_path / "s" / "copy")
    record = open_one(ct, tmp_path / "s")
    assert "1 duplicate slices dropped" in record.stages
    np.testing.assert_array_equal(full(record), whole)


def test_different_images_at_one_position_are_refused(tmp_path, slices, write_series, open_one):
    write_series(tmp_path / "s", slices)
    write_series(tmp_path / "t", slices[::-1])
    for path in (tmp_path / "t").iterdir():
        shutil.move(path, tmp_path / "s" / f"x{path.name}")
    (tmp_path / "t").rmdir()
    with pytest.raises(BadSource, match="two series that cannot be told apart: 2 different images"):
        open_one(ct, tmp_path / "s")


def test_a_missing_slice_is_refused_with_its_place(tmp_path, slices, write_series, found):
    paths = write_series(tmp_path / "s", slices)
    paths[2].unlink()
    sources, refused = found(ct, tmp_path)
    assert not sources
    assert refused[0].reason == "1 missing between slices 2 and 3 (gap 4.00 mm, usually 2.00 mm)"


def test_uneven_spacing_is_refused_with_its_range_and_rounding_is_not(tmp_path, slices, write_series, found):
    positions = [0.0, 2.0, 4.3, 6.0, 8.0]
    write_series(tmp_path / "uneven", slices, vary=lambda k: {"ImagePositionPatient": [0, 0, positions[k]]})
    write_series(
        tmp_path / "rounded",
        slices,
        SeriesInstanceUID="1.9",
        vary=lambda k: {"ImagePositionPatient": [0, 0, positions[k] if k != 2 else 4.03]},
    )
    sources, refused = found(ct, tmp_path)
    assert [source.source_id for source in sources] == ["rounded"]
    assert refused[0].reason == "uneven slice spacing 1.70..2.30 mm (usually 2.00 mm)"


def test_gantry_tilt_is_refused_with_its_angle(tmp_path, slices, write_series, found):
    tilt = np.radians(18.5)
    write_series(tmp_path / "s", slices, step=(0, 2 * np.tan(tilt), 2), GantryDetectorTilt=18.5)
    _, refused = found(ct, tmp_path)
    assert "sheared by 18.5 degrees (gantry tilt, header states 18.5 degrees)" in refused[0].reason


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_truncated_file_is_named(tmp_path, write_series, found, keep):
    big = np.random.default_rng(0).integers(0, 3000, (4, 64, 64)).astype(np.uint16)
    paths = write_series(tmp_path / "s", big)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[: int(len(data) * keep)])
    sources, refused = found(ct, tmp_path)
    if not refused:
        with pytest.raises(BadSource, match="truncated") as error:
            ct.read(sources[0])
        refused = [error.value]
    assert refused[0].uri == str(paths[1])


def test_a_file_cut_within_its_header_is_refused_and_leaves_a_gap_that_is_seen(tmp_path, slices, write_series, found):
    paths = write_series(tmp_path / "s", slices)
    paths[2].write_bytes(paths[2].read_bytes()[:140])
    sources, refused = found(ct, tmp_path)
    assert not sources
    assert {item.uri for item in refused} == {str(paths[2]), str(tmp_path / "s")}


def test_slopes_per_slice_come_to_one_integer_scale_exactly(tmp_path, slices, write_series, open_one, physical):
    scales = [("0.5", "-1024"), ("0.25", "-1024"), ("0.75", "-1000"), ("0.5", "-1023.5"), ("1", "-1024")]
    write_series(tmp_path / "s", slices, vary=lambda k: {"RescaleSlope": scales[k][0], "RescaleIntercept": scales[k][1]})
    record = open_one(ct, tmp_path / "s")
    expected = np.stack([plane * float(slope) + float(offset) for plane, (slope, offset) in zip(slices.astype(float), scales)])
    assert record.dtype == "int16"
    assert record.scale == (0.25,)
    assert "5 slice scales -> one integer scale, exact" in record.stages
    np.testing.assert_array_equal(physical(record), expected[:, ::-1, ::-1])


def test_slopes_without_a_common_scale_become_float32_and_say_so(tmp_path, slices, write_series, open_one, physical):
    slopes = [0.917, 1.00231, 0.8734501, 1.1, 0.99999]
    write_series(tmp_path / "s", slices, vary=lambda k: {"RescaleSlope": str(slopes[k])})
    record = open_one(ct, tmp_path / "s")
    assert (record.dtype, record.scale) == ("float32", (1.0,))
    assert "5 slice scales -> float32" in record.stages
    expected = slices.astype(float) * np.array(slopes)[:, None, None] - 1024
    np.testing.assert_allclose(physical(record), expected[:, ::-1, ::-1], rtol=1e-6, atol=1e-3)


def test_signed_values_of_twelve_bits_lose_their_overlay_bits(tmp_path, write_series, open_one, full):
    values = np.random.default_rng(0).integers(-1024, 1500, (3, 5, 6)).astype(np.int16)
    dirty = ((values & 0x0FFF) | 0x3000).astype(np.uint16).view(np.int16)
    write_series(tmp_path / "s", dirty, BitsStored=12, HighBit=11, RescaleIntercept=0)
    np.testing.assert_array_equal(full(open_one(ct, tmp_path / "s"))[0], values[:, ::-1, ::-1])


def test_padding_of_a_ct_is_no_data_and_not_a_value(tmp_path, slices, write_series, open_one):
    values = slices.astype(np.int16)
    values[:, :2, :2] = -2000
    write_series(tmp_path / "s", values, PixelPaddingValue=-2000, RescaleIntercept=-1024)
    record = open_one(ct, tmp_path / "s")
    assert record.nodata == (-2000.0,)
    window = tuple(slice(0, size) for size in record.shape[1:])
    np.testing.assert_array_equal(record.read_valid(window), (record.read(window)[0] == -2000).astype(np.uint8))


def test_monochrome1_turns_mr_once_and_leaves_hounsfield_units(tmp_path, slices, write_series, open_one, full):
    write_series(
        tmp_path / "mr", slices, Modality="MR", PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, RescaleIntercept=0
    )
    write_series(tmp_path / "ct", slices, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    mr_record, ct_record = open_one(mri, tmp_path / "mr"), open_one(ct, tmp_path / "ct")
    np.testing.assert_array_equal(full(mr_record)[0], 4095 - slices[:, ::-1, ::-1])
    np.testing.assert_array_equal(full(ct_record)[0], slices[:, ::-1, ::-1])
    assert "MONOCHROME1 inverted" in mr_record.stages
    assert "MONOCHROME1: display only, values kept" in ct_record.stages


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "PT"}, r"left out by domain=ct \(modality PT\)"),
        ({"Modality": "SR"}, r"left out by domain=ct \(modality SR\)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"NumberOfFrames": 7}, "multi-frame object with 7 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, r"colour \(RGB\)"),
        ({"PixelSpacing": None}, "no ImagePositionPatient"),
        ({"vary": lambda k: {"ImagePositionPatient": None}}, "no ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "not two unit vectors"),
    ],
)
def test_what_is_no_volume_is_refused_by_its_header(tmp_path, slices, write_series, found, tags, reason):
    write_series(tmp_path / "s", slices, **tags)
    sources, refused = found(ct, tmp_path)
    assert not sources
    assert re.search(reason, refused[0].reason)


def test_one_slice_is_no_volume(tmp_path, slices, write_series, found):
    write_series(tmp_path / "s", slices[:1])
    assert found(ct, tmp_path)[1][0].reason == "one slice is no volume"


def test_a_whole_copy_of_a_series_in_a_second_folder_is_a_source_for_ingest_to_compare(tmp_path, slices, write_series, found):
    write_series(tmp_path / "a", slices)
    write_series(tmp_path / "b", slices)
    sources, refused = found(ct, tmp_path)
    assert ([source.source_id for source in sources], refused) == (["a", "b"], [])


def test_empty_uids_are_one_series_per_folder(tmp_path, slices, write_series, found):
    write_series(tmp_path / "a", slices, SeriesInstanceUID="", PatientID="")
    write_series(tmp_path / "b", slices, SeriesInstanceUID="", PatientID="")
    sources, refused = found(ct, tmp_path)
    assert ([source.source_id for source in sources], refused) == (["a", "b"], [])
    assert sources[0].unit is None
    assert "PatientID" not in sources[0].keys


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_compressed_slices_equal_uncompressed_ones(tmp_path, write_series, open_one, full, syntax, dtype):
    low = -1000 if dtype == np.int16 else 0
    volume = np.random.default_rng(2).integers(low, 2000, (3, 64, 64)).astype(dtype)  # the encoder takes no smaller frames
    paths = write_series(tmp_path / "s", volume, BitsStored=12, HighBit=11)
    plain = full(open_one(ct, tmp_path / "s"))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(full(open_one(ct, tmp_path / "s")), plain)


def test_files_without_preamble_or_meta_header_are_read(tmp_path, slices, write_series, open_one, full):
    paths = write_series(tmp_path / "s", slices)
    plain = full(open_one(ct, tmp_path / "s"))
    for path in paths:
        dataset = pydicom.dcmread(path)
        bare = pydicom.Dataset(dataset)
        bare.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(full(open_one(ct, tmp_path / "s")), plain)


@pytest.mark.parametrize(
    ("tags", "channel"),
    [
        ({"SeriesDescription": "t1_mprage_sag"}, "T1"),
        ({"SeriesDescription": "t1_mprage_sag", "ContrastBolusAgent": "Gadovist"}, "T1c"),
        ({"SeriesDescription": "ep2d_diff", "DiffusionBValue": 1000.0}, "DWI-b1000"),
        ({"SeriesDescription": "Dr Doe: knee"}, "mr"),
    ],
)
def test_mr_series_are_named_by_the_vocabulary(tmp_path, slices, write_series, open_one, tags, channel):
    write_series(tmp_path / "s", slices, Modality="MR", RescaleIntercept=0, **tags)
    record = open_one(mri, tmp_path / "s")
    assert record.channels == (channel,)
    assert "Doe" not in repr(record)
