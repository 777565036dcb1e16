from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from dinodomain.errors import BadSource
from dinodomain_medical import ct, mri

OBLIQUE = np.array([[0.9, -0.3, 0.1, 5], [0.28, 1.9, -0.2, -7], [-0.1, 0.25, 2.9, 11], [0, 0, 0, 1.0]])


def affine_of(codes: str, sizes=(1.0, 1.5, 2.5)) -> np.ndarray:
    """Affine whose array axes run towards ``codes``, with voxel sizes per array axis and an odd origin."""
    affine = np.zeros((4, 4))
    for axis, code in enumerate(codes):
        affine["RLAPSI".index(code) // 2, axis] = sizes[axis] * (1 if code in "RAS" else -1)
    affine[:, 3] = 3, -4, 5, 1
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "LAS", "ASL", "IPR", "SRP"])
def test_every_orientation_equals_closest_canonical_of_nibabel(tmp_path, ct_volume, write_nifti, open_one, full, codes):
    path = write_nifti(tmp_path / "scan.nii.gz", ct_volume, affine_of(codes))
    record, oracle = open_one(ct, path), nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(full(record)[0].T, np.asarray(oracle.dataobj))
    np.testing.assert_allclose(np.reshape(record.affine, (4, 4)), oracle.affine)
    np.testing.assert_allclose(record.spacing[::-1], oracle.header.get_zooms())
    assert (record.original_affine is None) == (codes == "RAS")
    assert full(record).flags.c_contiguous
    assert record.dtype == "int16"


@pytest.mark.parametrize(
    "affine", [affine_of("PSR"), affine_of("LPI"), OBLIQUE, OBLIQUE @ affine_of("ASL")], ids=["PSR", "LPI", "oblique", "oblique-ASL"]
)
def test_a_marker_keeps_its_place_in_the_patient(tmp_path, ct_volume, write_nifti, open_one, full, affine):
    record = open_one(ct, write_nifti(tmp_path / "scan.nii", ct_volume, affine))
    voxels = full(record)[0]
    z, y, x = np.unravel_index(np.argmax(voxels), voxels.shape)
    place = np.reshape(record.affine, (4, 4)) @ (x, y, z, 1)
    np.testing.assert_allclose(place, affine @ (5, 1, 3, 1), atol=1e-4)


def test_rising_indexes_run_to_right_anterior_superior(tmp_path, ct_volume, write_nifti, open_one, full):
    """A marker on the patient's left, front and top has a small x, a large y and a large z, whatever the file's axes were."""
    affine = affine_of("LPI")
    marked = np.full_like(ct_volume, -500)
    marked[-1, 0, 0] = 1000  # far along L; near along P is anterior; near along I is superior
    marked[0, 0, 0] = -900
    record = open_one(ct, write_nifti(tmp_path / "scan.nii", marked, affine))
    z, y, x = np.unravel_index(np.argmax(full(record)[0]), record.shape[1:])
    assert (x, y, z) == (0, record.shape[2] - 1, record.shape[1] - 1)


def test_slope_and_intercept_stay_a_scale_beside_the_stored_integers(tmp_path, write_nifti, open_one, full, physical):
    stored = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    path = write_nifti(tmp_path / "a_T1w.nii.gz", stored, slope=5.5, inter=-3)
    record = open_one(mri, path)
    assert (record.dtype, record.scale, record.offset) == ("uint8", (5.5,), (-3.0,))
    np.testing.assert_array_equal(full(record)[0].T, stored)
    np.testing.assert_allclose(physical(record).T, nib.load(path).get_fdata())


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_slope_zero_or_nan_means_unscaled(tmp_path, write_nifti, open_one, slope):
    path = write_nifti(tmp_path / "a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5), slope=2.0, inter=7.0)
    header = bytearray(path.read_bytes())
    header[112:116] = np.float32(slope).tobytes()
    path.write_bytes(bytes(header))
    record = open_one(mri, path)
    assert (record.scale, record.offset) == ((1.0,), (0.0,))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_big_endian_files_are_read_in_native_order(tmp_path, ct_volume, open_one, full, dtype):
    image = nib.Nifti1Image(ct_volume.astype(dtype), np.eye(4), header=nib.Nifti1Header(endianness=">"), dtype=dtype)
    nib.save(image, tmp_path / "big.nii")
    assert nib.load(tmp_path / "big.nii").get_data_dtype().byteorder == ">"
    record = open_one(ct, tmp_path / "big.nii")
    assert full(record).dtype == np.dtype(dtype)
    assert record.stages == ()
    np.testing.assert_array_equal(full(record)[0].T, ct_volume)


def test_int32_that_fits_is_narrowed_and_recorded(tmp_path, ct_volume, write_nifti, open_one, full):
    record = open_one(ct, write_nifti(tmp_path / "ct.nii.gz", ct_volume.astype(np.int32)))
    assert record.dtype == "int16"
    assert record.stages == (f"int32 -> int16 (values {ct_volume.min()}..3000 fit)",)
    np.testing.assert_array_equal(full(record)[0].T, ct_volume)


def test_float64_becomes_float32_and_says_so(tmp_path, write_nifti, open_one, full):
    values = np.linspace(-1000, 900, 60).reshape(3, 4, 5)
    record = open_one(ct, write_nifti(tmp_path / "ct.nii", values))
    assert record.stages == ("float64 -> float32",)
    np.testing.assert_array_equal(full(record)[0].T, values.astype(np.float32))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.nan, "2 of 60 values are NaN"),
        (np.inf, "2 of 60 values are NaN or infinite"),
        (1e300, "2 of 60 float64 values overflow float32"),
    ],
)
def test_values_that_float32_cannot_hold_are_counted_and_refused(tmp_path, write_nifti, open_one, bad, reason):
    values = np.linspace(-1000, 900, 60).reshape(3, 4, 5)
    values[0, 0, :2] = bad
    path = write_nifti(tmp_path / "ct.nii", values)
    with pytest.raises(BadSource, match=reason) as error:
        open_one(ct, path)
    assert error.value.uri == str(path)
    assert error.value.remedy


def test_four_dimensional_files_are_refused_with_their_frames(tmp_path, write_nifti, found):
    write_nifti(tmp_path / "series.nii.gz", np.ones((4, 5, 6, 10), dtype=np.int16))
    sources, refused = found(mri, tmp_path)
    assert not sources
    assert "4-D with 10 frames of 4x5x6" in refused[0].reason
    assert "split" in refused[0].remedy


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path, ct_volume, write_nifti, open_one):
    record = open_one(ct, write_nifti(tmp_path / "ct.nii", ct_volume[..., None]))
    assert record.shape == (1, 5, 6, 7)


def test_colour_files_are_refused(tmp_path, found):
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    _, refused = found(mri, tmp_path)
    assert "colour" in refused[0].reason


@pytest.mark.parametrize(
    "content", [b"this is a text file\n" * 40, gzip.compress(b"so is this\n" * 200), b""], ids=["text", "packed", "empty"]
)
def test_a_text_file_under_a_nifti_name_is_refused(tmp_path, found, content):
    (tmp_path / "scan.nii.gz").write_bytes(content)
    sources, refused = found(mri, tmp_path)
    assert not sources
    assert "not a readable NIfTI file" in refused[0].reason


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_truncated_file_is_refused_by_name(tmp_path, ct_volume, write_nifti, open_one, suffix):
    path = write_nifti(tmp_path / f"scan.{suffix}", np.tile(ct_volume, (9, 9, 9)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadSource, match="truncated or damaged") as error:
        open_one(ct, path)
    assert error.value.uri == str(path)


def test_a_disagreement_of_qform_and_sform_is_recorded_and_sform_wins(tmp_path, ct_volume, open_one):
    image = nib.Nifti1Image(ct_volume, np.eye(4))
    image.set_qform(np.eye(4), code=1)
    moved = np.eye(4)
    moved[0, 3] = 0.4
    image.set_sform(moved, code=1)
    nib.save(image, tmp_path / "ct.nii")
    record = open_one(ct, tmp_path / "ct.nii")
    assert record.fields["sform_qform_mm"] == pytest.approx(0.4, abs=1e-3)
    assert record.affine[3] == pytest.approx(0.4)


def test_a_small_disagreement_is_rounding_and_a_file_without_geometry_says_so(tmp_path, ct_volume, open_one):
    image = nib.Nifti1Image(ct_volume, np.eye(4))
    image.set_qform(np.eye(4), code=1)
    image.set_sform(np.diag([1.001, 1, 1, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    assert "sform_qform_mm" not in open_one(ct, tmp_path / "a.nii").fields
    bare = nib.Nifti1Image(ct_volume, None)
    nib.save(bare, tmp_path / "b.nii")
    assert open_one(ct, tmp_path / "b.nii").fields["geometry"] == "none"


def test_metres_become_millimetres(tmp_path, ct_volume, write_nifti, open_one):
    record = open_one(ct, write_nifti(tmp_path / "ct.nii", ct_volume, np.diag([0.002, 0.003, 0.004, 1]), unit="meter"))
    np.testing.assert_allclose(record.spacing, (4, 3, 2), rtol=1e-6)
    assert "geometry in meter -> mm" in record.stages


def test_a_singular_affine_is_refused(tmp_path, ct_volume, found):
    image = nib.Nifti1Image(ct_volume, np.eye(4))
    image.header["srow_x"][:] = 0
    path = tmp_path / "ct.nii"
    image.to_filename(path)
    raw = bytearray(path.read_bytes())
    raw[280:296] = b"\0" * 16  # srow_x
    path.write_bytes(bytes(raw))
    _, refused = found(ct, path)
    assert "singular" in refused[0].reason


@pytest.mark.parametrize(("high", "dtype"), [(255, np.uint8), (1, np.uint8), (4095, np.uint16)])
def test_values_that_cannot_be_hounsfield_units_are_refused_by_ct_only(tmp_path, write_nifti, open_one, high, dtype):
    values = np.linspace(0, high, 60).reshape(3, 4, 5).astype(dtype)
    values[0, 0, 0] = 0
    path = write_nifti(tmp_path / "scan.nii", values)
    with pytest.raises(BadSource, match=r"cannot be Hounsfield units|a mask, not an image"):
        open_one(ct, path)
    if high > 1:
        assert open_one(mri, path).channels == ("mr",)


def test_a_declared_rescale_makes_unsigned_values_hounsfield_units(tmp_path, write_nifti, open_one, physical):
    record = open_one(
        ct, write_nifti(tmp_path / "ct.nii", np.linspace(0, 4095, 60).reshape(3, 4, 5).astype(np.uint16), slope=1.0, inter=-1024.0)
    )
    assert record.dtype == "uint16"
    assert physical(record).min() == -1024


def test_windows_are_cut_in_stored_type_and_own_their_memory(tmp_path, ct_volume, write_nifti, open_one, full):
    record = open_one(ct, write_nifti(tmp_path / "ct.nii", ct_volume, affine_of("PSR")))
    window = (slice(1, 3), slice(2, 5), slice(0, 4))
    part = record.read(window)
    np.testing.assert_array_equal(part, full(record)[(slice(None), *window)])
    assert part.flags.owndata
    assert part.flags.c_contiguous


@pytest.mark.parametrize(
    ("code", "reason"), [(1002, "label map"), (1003, "label map"), (1007, "vectors or matrices"), (1005, "vectors"), (3, "statistical map")]
)
def test_intent_codes_that_name_no_picture_are_refused_by_header(tmp_path, ct_volume, found, code, reason):
    image = nib.Nifti1Image(ct_volume, np.eye(4))
    image.header["intent_code"] = code
    nib.save(image, tmp_path / "a.nii.gz")
    sources, refused = found(ct, tmp_path)
    assert not sources
    assert reason in refused[0].reason


def test_a_vector_axis_is_refused_even_where_frames_are_split(tmp_path, write_nifti, found):
    write_nifti(tmp_path / "warp.nii.gz", np.ones((4, 5, 6, 1, 3), dtype=np.float32))
    sources, refused = found(mri, tmp_path, frames="split")
    assert not sources
    assert "3 numbers per voxel" in refused[0].reason


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1)])
def test_a_flat_nifti_is_no_volume(tmp_path, write_nifti, found, shape):
    write_nifti(tmp_path / "a.nii", np.ones(shape, dtype=np.int16))
    _, refused = found(mri, tmp_path)
    assert "is no volume" in refused[0].reason


def test_pairs_are_refused_once_and_other_hdr_files_are_left_alone(tmp_path, ct_volume, found):
    nib.save(nib.Nifti1Pair(ct_volume, np.eye(4)), tmp_path / "scan.hdr")
    (tmp_path / "envi.hdr").write_text("ENVI\nsamples = 3\n")
    sources, refused = found(ct, tmp_path)
    assert not sources
    assert [item.uri.rpartition("/")[2] for item in refused] == ["scan.hdr"]
    assert "pair of .hdr and .img" in refused[0].reason
    assert ".nii.gz" in refused[0].remedy


def _both_forms(path, array, sform, qform, codes=(1, 1)):
    image = nib.Nifti1Image(array, sform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("shift", "warned"), [(0.05, False), (0.5, True)])
def test_the_sform_wins_and_a_qform_elsewhere_is_a_warning(tmp_path, ct_volume, open_one, shift, warned):
    moved = np.eye(4)
    moved[0, 3] = shift
    record = open_one(ct, _both_forms(tmp_path / "a.nii", ct_volume, np.eye(4), moved))
    np.testing.assert_array_equal(np.reshape(record.affine, (4, 4)), np.eye(4))
    assert record.fields["geometry"] == "sform"
    assert any("0.5 mm apart; the sform is used" in text for text in record.warnings) == warned
    assert ("sform_qform_mm" in record.fields) == warned


def test_the_qform_counts_where_the_sform_has_no_code_and_neither_is_a_warning(tmp_path, ct_volume, open_one):
    moved = np.diag([-1.0, 2, 3, 1])
    record = open_one(ct, _both_forms(tmp_path / "q.nii", ct_volume, np.eye(4) * 7, moved, codes=(0, 1)))
    assert (record.fields["geometry"], record.spacing, record.warnings) == ("qform", (3, 2, 1), ())
    record = open_one(ct, _both_forms(tmp_path / "n.nii", ct_volume, np.eye(4), np.eye(4), codes=(0, 0)))
    assert record.fields["geometry"] == "none"
    assert "which side is left is not stated" in record.warnings[0]


@pytest.mark.parametrize("qfac", [1.0, -1.0])
def test_the_sign_of_qfac_turns_the_third_axis_as_simpleitk_says(tmp_path, ct_volume, open_one, full, qfac):
    import SimpleITK as sitk

    path = _both_forms(tmp_path / "q.nii", ct_volume, np.eye(4), np.diag([-1.0, 2, 3, 1]), codes=(0, 1))
    raw = bytearray(path.read_bytes())
    raw[76:80] = np.float32(qfac).tobytes()
    path.write_bytes(bytes(raw))
    record, image = open_one(ct, path), sitk.ReadImage(str(path))
    z, y, x = np.unravel_index(np.argmax(full(record)[0]), record.shape[1:])
    lps = np.array(image.TransformIndexToPhysicalPoint((5, 1, 3)))
    np.testing.assert_allclose((np.reshape(record.affine, (4, 4)) @ (x, y, z, 1))[:3], lps * (-1, -1, 1), atol=1e-4)


def test_pixdim_that_contradicts_the_affine_is_a_warning(tmp_path, ct_volume, write_nifti, open_one):
    path = write_nifti(tmp_path / "a.nii", ct_volume, np.diag([2.0, 2, 5, 1]))
    raw = bytearray(path.read_bytes())
    raw[88:92] = np.float32(3).tobytes()
    path.write_bytes(bytes(raw))
    record = open_one(ct, path)
    assert record.spacing == (5, 2, 2)
    assert record.warnings == ("pixdim says voxels of 2x2x3, the affine of 2x2x5; the affine is used",)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_split_frames_are_sources_that_equal_nibabels(tmp_path, write_nifti, found, full, suffix):
    array = np.random.default_rng(0).integers(0, 900, (4, 5, 6, 3)).astype(np.int16)
    path = write_nifti(tmp_path / "p1" / f"scan.{suffix}", array, affine_of("PSR"), slope=2.0, inter=1.0)
    sources, refused = found(mri, tmp_path, frames="split")
    assert not refused
    assert [ref.source_id for ref in sources] == [f"p1/scan.{suffix}#t=00{t}" for t in range(3)]
    names = {(ref.keys["name"], ref.keys["stem"], ref.keys["folder"], ref.keys["FramesOf"]) for ref in sources}
    assert names == {(f"scan.{suffix}", "scan", "p1", f"p1/scan.{suffix}")}
    assert len({ref.digest for ref in sources}) == len({ref.keys["path"] for ref in sources}) == 3
    for t, ref in enumerate(sources):
        record = mri.read(ref)
        oracle = nib.as_closest_canonical(nib.four_to_three(nib.Nifti1Image(array, nib.load(path).affine))[t])
        np.testing.assert_array_equal(full(record)[0].T, np.asarray(oracle.dataobj))
        np.testing.assert_allclose(np.reshape(record.affine, (4, 4)), oracle.affine)
        assert (record.scale, record.offset, record.fields["frame"]) == ((2.0,), (1.0,), t)
        assert record.stages[0] == f"frame {t + 1} of 3"


def test_split_leaves_other_files_as_they_are_and_the_order_by_id(tmp_path, ct_volume, write_nifti, found):
    write_nifti(tmp_path / "b.nii", np.ones((4, 5, 6, 2), dtype=np.int16))
    write_nifti(tmp_path / "a.nii", ct_volume)
    write_nifti(tmp_path / "c.nii", ct_volume)
    (tmp_path / "bad.nii").write_text("no image")
    sources, refused = found(mri, tmp_path, frames="split")
    assert [ref.source_id for ref in sources] == ["a.nii", "b.nii#t=000", "b.nii#t=001", "c.nii"]
    assert len(refused) == 1


def test_a_bval_file_names_the_channel_of_each_frame(tmp_path, write_nifti, found):
    array = np.random.default_rng(0).integers(0, 900, (4, 5, 6, 3)).astype(np.int16)
    write_nifti(tmp_path / "sub-1_dwi.nii.gz", array)
    (tmp_path / "sub-1_dwi.bval").write_text("0 1000 995.5\n")
    sources, _ = found(mri, tmp_path, frames="split")
    records = [mri.read(ref) for ref in sources]
    assert [record.channels[0] for record in records] == ["DWI-b0", "DWI-b1000", "DWI-b1000"]
    assert [record.fields["b_value"] for record in records] == [0.0, 1000.0, 995.5]
    (tmp_path / "sub-1_dwi.bval").write_text("0 1000\n")
    _, refused = found(mri, tmp_path, frames="split")
    assert "does not hold 3 numbers" in refused[0].reason


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64, np.int8])
def test_wide_integers_keep_every_value(tmp_path, open_one, full, dtype):
    values = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(values, np.eye(4), dtype=dtype), tmp_path / "a.nii")
    record = open_one(mri, tmp_path / "a.nii")
    assert record.dtype == "int16"
    np.testing.assert_array_equal(full(record)[0].T, values)


def test_integers_that_no_stored_type_holds_are_refused(tmp_path, open_one):
    values = np.arange(60, dtype=np.uint32).reshape(3, 4, 5)
    values[0, 0, 0] = 2**31
    nib.save(nib.Nifti1Image(values, np.eye(4), dtype=np.uint32), tmp_path / "a.nii")
    with pytest.raises(BadSource, match="fit neither 16 bits nor float32"):
        open_one(mri, tmp_path / "a.nii")


@pytest.mark.parametrize("column", ["scan.nii.gz", "p1/scan.nii.gz", "scan", "p1"])
def test_a_csv_row_that_names_a_file_speaks_of_all_its_frames(tmp_path, write_nifti, column):
    import json

    from dinodomain.ingest import IngestPlan, ingest
    from dinodomain.store import open_store

    write_nifti(tmp_path / "in" / "p1" / "scan.nii.gz", np.random.default_rng(0).integers(0, 900, (40, 40, 40, 2)).astype(np.int16))
    (tmp_path / "a.csv").write_text(f"scan,patient,arm\n{column},Jane,left\n")
    plan = IngestPlan(
        domain="mri", source=str(tmp_path / "in"), store=str(tmp_path / "store"), metadata=str(tmp_path / "a.csv"), join="scan",
        group="patient", fields=("arm",), frames="split", workers=0,
    )  # fmt: skip
    ingest(plan, domain=mri)
    store = open_store(tmp_path / "store")
    rows = [store.row(number) for number in range(store.index.num_rows)]
    assert len(rows) == 2
    assert len({row["unit"] for row in rows}) == 1
    unnamed = ingest(IngestPlan(domain="mri", source=plan.source, store=str(tmp_path / "unnamed"), frames="split", workers=0), domain=mri)
    assert unnamed.counts["units"] == 1  # also where nobody says whose they are: frames of one person on both sides of a split leak
    assert {json.loads(row["fields"])["arm"] for row in rows} == {"left"}
