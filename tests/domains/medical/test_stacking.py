from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dinodomain.errors import LeftOut, UserError
from dinodomain.types import NODATA
from dinodomain_medical import ct, mri

T1_FLAIR = ("T1", "FLAIR")


@pytest.fixture
def write_mr(tmp_path, write_nifti):
    """Writes a NIfTI of random MR values with a scanner code."""

    def write(name, shape=(8, 7, 6), affine=None, *, seed=0, dtype=np.int16, code=1, **options):
        values = np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)
        path = write_nifti(tmp_path / name, values, np.eye(4) if affine is None else affine, **options)
        if "slope" not in options:
            image = nib.load(path)
            image.set_sform(image.affine, code)
            image.set_qform(image.affine, code)
            nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
        return values

    return write


def valid_of(record):
    window = tuple(slice(0, size) for size in record.shape[1:])
    return np.zeros(record.shape[1:], np.uint8) if record.read_valid is None else record.read_valid(window)


def test_equal_grids_are_stacked_bit_by_bit(tmp_path, write_mr, found, full):
    write_mr("p1/p1_T1w.nii.gz", seed=1)
    write_mr("p1/p1_FLAIR.nii.gz", seed=2)
    alone = {record.channels[0]: record for record in map(mri.read, found(mri, tmp_path)[0])}
    (ref,), refused = found(mri, tmp_path, stack=("FLAIR", "T1"))
    record = mri.read(ref)
    assert not refused
    assert (record.channels, record.dtype, record.read_valid) == (("FLAIR", "T1"), "int16", None)
    np.testing.assert_array_equal(full(record), np.concatenate([full(alone["FLAIR"]), full(alone["T1"])]))
    assert record.affine == alone["T1"].affine
    assert record.fields["T1.resampling"] == record.fields["FLAIR.resampling"] == "none"


def test_a_stack_is_known_by_its_folder_and_its_members(tmp_path, write_mr, found):
    write_mr("p1/p1_T1w.nii.gz", seed=1)
    write_mr("p1/p1_FLAIR.nii.gz", seed=2)
    (ref,), _ = found(mri, tmp_path, stack=T1_FLAIR)
    assert ref.source_id == "p1#stack=T1+FLAIR"
    assert [uri.rpartition("/")[2] for uri in ref.uris] == ["p1_FLAIR.nii.gz", "p1_T1w.nii.gz"]
    assert ref.keys == {"path": "p1", "name": "p1", "stem": "p1", "folder": "p1"}
    write_mr("p1/p1_FLAIR.nii.gz", seed=3)
    (other,), _ = found(mri, tmp_path, stack=T1_FLAIR)
    assert other.digest != ref.digest
    assert found(mri, tmp_path, stack=T1_FLAIR, grid="2")[0][0].digest != other.digest


def test_scales_stay_per_channel_and_types_are_the_smallest_that_hold_both(tmp_path, write_mr, found, full):
    write_mr("p/T1.nii", dtype=np.uint8, slope=2.0, inter=5.0)
    write_mr("p/FLAIR.nii", seed=1, slope=0.5, inter=0.0)
    (ref,), _ = found(mri, tmp_path, stack=T1_FLAIR)
    record = mri.read(ref)
    assert (record.dtype, record.scale, record.offset) == ("int16", (2.0, 0.5), (5.0, 0.0))
    assert "all channels as int16, exact" in record.stages


@pytest.mark.parametrize("turned", [False, True])
def test_linear_resampling_equals_scipy_and_what_no_voxel_reaches_is_no_data(tmp_path, write_mr, found, full, turned):
    rotation = np.eye(4)
    if turned:
        angle = 0.3
        rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    coarse = rotation @ np.diag([2.0, 1.5, 3.0, 1])
    coarse[:3, 3] = 0.7, -0.4, 1.1
    write_mr("p/T1.nii", (12, 11, 10), rotation, seed=1)
    values = write_mr("p/FLAIR.nii", (4, 5, 3), coarse, seed=2)
    record = mri.read(found(mri, tmp_path, stack=T1_FLAIR)[0][0])
    to_member = np.linalg.inv(coarse) @ np.reshape(record.affine, (4, 4))
    inside = np.moveaxis(np.indices((12, 11, 10)), 0, -1) @ to_member[:3, :3].T + to_member[:3, 3]
    reached = ((inside >= -0.5) & (inside < np.array(values.shape) - 0.5)).all(axis=-1)
    oracle = ndimage.affine_transform(values.astype(float), to_member, output_shape=(12, 11, 10), order=1, mode="nearest")
    np.testing.assert_array_equal(valid_of(record).T == 0, reached)
    np.testing.assert_allclose(full(record)[1].T[reached], oracle[reached], atol=1e-3)
    assert set(np.unique(valid_of(record))) == {0, NODATA}
    assert (record.dtype, record.fields["FLAIR.resampling"], record.fields["FLAIR.native_mm"]) == ("float32", "linear", "2x1.5x3")
    assert any("FLAIR: linear from 2x1.5x3 mm to the grid of T1 (1x1x1 mm)" in stage for stage in record.stages)


def test_a_coarser_grid_is_low_pass_filtered_along_its_coarse_axes_only(tmp_path, write_mr, found, full):
    """sigma = sqrt(9 - 1) / 2.355 voxels along z, nothing along x and y; scipy filters and samples on its own."""
    values = write_mr("p/T1.nii", (6, 5, 60), seed=1)
    write_mr("p/FLAIR.nii", (6, 5, 20), np.diag([1.0, 1, 3, 1]), seed=2)
    record = mri.read(found(mri, tmp_path, stack=T1_FLAIR, grid="FLAIR")[0][0])
    smooth = ndimage.gaussian_filter1d(values.astype(float), np.sqrt(8) / (2 * np.sqrt(2 * np.log(2))), axis=2, mode="nearest", truncate=4)
    assert record.fields["T1.resampling"] == "low-pass, linear"
    np.testing.assert_allclose(full(record)[0].T, smooth[:, :, ::3], atol=1e-2)
    assert np.abs(values[:, :, ::3] - smooth[:, :, ::3]).max() > 50


def test_a_constant_stays_constant_under_every_grid(tmp_path, write_nifti, found, full):
    for name, step in (("T1", 1.0), ("FLAIR", 2.0)):
        values = np.full((16, 16, 16), 70, dtype=np.int16)
        values[0, 0, 0], values[0, 0, 1] = 0, 1
        write_nifti(tmp_path / "p" / f"{name}.nii", values, np.diag([step, step, step, 1]))
    for grid in ("finest", "FLAIR", "1.7", "5"):
        record = mri.read(found(mri, tmp_path, stack=T1_FLAIR, grid=grid)[0][0])
        far = full(record)[:, -1, -1, -1][valid_of(record)[-1, -1, -1] == 0]
        np.testing.assert_allclose(far, 70, rtol=1e-6)


def test_a_grid_in_mm_is_cubes_in_the_field_of_view_of_the_finest_member(tmp_path, write_mr, found):
    write_mr("p/T1.nii", (10, 10, 10), np.diag([1.0, 1.0, 2.0, 1]), seed=1)
    write_mr("p/FLAIR.nii", (5, 5, 5), np.diag([3.0, 3.0, 3.0, 1]), seed=2)
    record = mri.read(found(mri, tmp_path, stack=T1_FLAIR, grid="2")[0][0])
    assert record.shape == (2, 10, 5, 5)
    assert record.spacing == pytest.approx((2, 2, 2))
    # The outer edge of the first voxel stays at -0.5 mm (x, y) and -1 mm (z).
    np.testing.assert_allclose(np.reshape(record.affine, (4, 4))[:3, 3], (0.5, 0.5, 0))


def test_members_on_a_shifted_grid_are_marked_where_they_end(tmp_path, write_mr, found):
    shifted = np.eye(4)
    shifted[0, 3] = 3
    write_mr("p/T1.nii", (8, 7, 6), seed=1)
    write_mr("p/FLAIR.nii", (8, 7, 6), shifted, seed=2)
    record = mri.read(found(mri, tmp_path, stack=T1_FLAIR)[0][0])
    np.testing.assert_array_equal(valid_of(record)[:, :, :3], NODATA)
    np.testing.assert_array_equal(valid_of(record)[:, :, 3:], 0)


def test_members_that_do_not_meet_are_refused(tmp_path, write_mr, found):
    far = np.eye(4)
    far[0, 3] = 300
    write_mr("p/T1.nii", seed=1)
    write_mr("p/FLAIR.nii", affine=far, seed=2)
    with pytest.raises(UserError, match="FLAIR has no voxel in common"):
        mri.read(found(mri, tmp_path, stack=T1_FLAIR)[0][0])


@pytest.mark.parametrize(
    ("files", "reason", "remedy"),
    [
        ({"a_T1.nii": 1}, "its folder holds no FLAIR", "bring what is missing"),
        ({"a_T1.nii": 1, "b_T1.nii": 1, "a_FLAIR.nii": 1}, "2 candidates for T1: 'a_T1.nii', 'b_T1.nii'", "ingest.exclude"),
        ({"a_T1.nii": 1, "a_FLAIR.nii": 4}, "another frame of reference", "register them"),
        ({"a_T1.nii": 0, "a_FLAIR.nii": 0}, "frame of reference is not stated", "state it in the files"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_remedy(tmp_path, write_mr, found, files, reason, remedy):
    for number, (name, code) in enumerate(files.items()):
        write_mr(f"p/{name}", seed=number, code=code)
    sources, refused = found(mri, tmp_path, stack=T1_FLAIR)
    assert not sources
    assert len(refused) == len(files)
    assert all(reason in item.reason and remedy in item.remedy and not isinstance(item, LeftOut) for item in refused)


def test_sources_of_other_channels_are_left_out_and_other_folders_stand_alone(tmp_path, write_mr, found):
    for name in ("p1/T1.nii", "p1/FLAIR.nii", "p1/T2.nii", "p2/T1.nii", "p3/scan.nii"):
        write_mr(name)
    (tmp_path / "broken.nii").write_text("no image")
    sources, refused = found(mri, tmp_path, stack=T1_FLAIR)
    assert [ref.source_id for ref in sources] == ["p1#stack=T1+FLAIR"]
    left = {item.uri.rpartition("/")[2]: item.reason for item in refused if isinstance(item, LeftOut)}
    assert left == {
        "T2.nii": "left out by ingest.stack=[T1,FLAIR] (channel T2 is no part of it)",
        "scan.nii": "left out by ingest.stack=[T1,FLAIR] (channel mr is no part of it)",
    }
    assert len(refused) == 4


@pytest.mark.parametrize(
    ("select", "problem"),
    [
        ({"stack": ("T1", "FLAIRS")}, "unknown channel 'FLAIRS'"),
        ({"stack": ("T1",)}, "two or more"),
        ({"stack": ("T1", "T1")}, "two or more"),
        ({"stack": T1_FLAIR, "grid": "T2"}, "is 'T2'"),
        ({"stack": T1_FLAIR, "grid": "0.01"}, "is '0.01'"),
        ({"stack": T1_FLAIR, "grid": "inf"}, "is 'inf'"),
    ],
)
def test_a_stack_that_makes_no_sense_is_the_users_error(tmp_path, found, select, problem):
    with pytest.raises(UserError, match=problem):
        found(mri, tmp_path, **select)
    with pytest.raises(UserError, match="unknown channel"):
        found(ct, tmp_path, stack=T1_FLAIR)


@pytest.fixture
def write_study(tmp_path, slices, write_series):
    def write(name, description, frame, *, uid, patient="P1", **options):
        pixels = np.random.default_rng(len(name)).permuted(slices, axis=0)
        write_series(
            tmp_path / name, pixels, Modality="MR", RescaleIntercept=0, SeriesDescription=description, SeriesInstanceUID=uid,
            FrameOfReferenceUID=frame, PatientID=patient, AcquisitionDate="20200102", **options,
        )  # fmt: skip

    return write


def test_series_of_one_study_and_frame_of_reference_are_stacked_wherever_they_lie(tmp_path, write_study, found, full):
    write_study("s/one", "t1_tse", "1.9", uid="1.2.3.1")
    write_study("s/other/two", "t2_flair", "1.9", uid="1.2.3.2", gap=4.0)
    alone = {record.channels[0]: record for record in map(mri.read, found(mri, tmp_path)[0])}
    (ref,), refused = found(mri, tmp_path, stack=T1_FLAIR)
    assert not refused
    assert (ref.unit, ref.keys["PatientID"], ref.keys["StudyInstanceUID"]) == ("P1", "P1", "1.2")
    assert ref.source_id == "s#1.9;stack=T1+FLAIR"
    assert len(ref.uris) == 10
    assert len(ref.instance) == 64
    record = mri.read(ref)
    np.testing.assert_array_equal(full(record)[0], full(alone["T1"])[0])
    assert record.acquired == "2020-01-02"
    # FLAIR slices lie 4 mm apart from the same origin: every second T1 slice meets one exactly.
    np.testing.assert_allclose(full(record)[1][::2], full(alone["FLAIR"])[0][:3], atol=1e-3)


def test_series_of_two_frames_of_reference_are_refused(tmp_path, write_study, found):
    write_study("one", "t1_tse", "1.9", uid="1.2.3.1")
    write_study("two", "t2_flair", "1.8", uid="1.2.3.2")
    sources, refused = found(mri, tmp_path, stack=T1_FLAIR)
    assert not sources
    assert {item.reason.partition(": ")[2] for item in refused} == {
        "FLAIR lie in another frame of reference",
        "T1 lie in another frame of reference",
    }


def test_series_of_two_patients_are_never_stacked(tmp_path, write_study, found):
    write_study("one", "t1_tse", "1.9", uid="1.2.3.1", patient="P1")
    write_study("two", "t2_flair", "1.9", uid="1.2.3.2", patient="P2")
    sources, refused = found(mri, tmp_path, stack=T1_FLAIR)
    assert not sources
    assert all("its study holds no" in item.reason for item in refused)


def test_real_t1_and_flair_on_their_own_grids_equal_simpleitk(real_data, found, full):
    folder = real_data / "mri_t1_flair_wmh" / "dev" / "Subj1"
    (ref,), refused = found(mri, folder, stack=T1_FLAIR, grid="T1", exclude=("*seg*",))
    assert not refused
    record = mri.read(ref)
    t1, flair = (
        sitk.DICOMOrient(sitk.ReadImage(str(folder / f"Subj1_{name}.nii.gz"), sitk.sitkFloat64), "LPS") for name in ("T1w", "FLAIR")
    )
    oracle = sitk.Resample(flair, t1, sitk.Transform(), sitk.sitkLinear, -1.0)
    # ITK's arrays run to left and posterior, ours to right and anterior.
    values, expected = full(record)[1] * record.scale[1] + record.offset[1], sitk.GetArrayFromImage(oracle)[:, ::-1, ::-1]
    reached = expected >= 0
    assert record.shape[1:] == expected.shape
    assert 0.3 < reached.mean() < 1
    np.testing.assert_array_equal(valid_of(record) == 0, reached)
    np.testing.assert_allclose(values[reached], expected[reached], atol=2e-3)
    np.testing.assert_allclose(full(record)[0] * record.scale[0], sitk.GetArrayFromImage(t1)[:, ::-1, ::-1], rtol=1e-6)
