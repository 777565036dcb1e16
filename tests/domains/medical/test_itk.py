from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from dinodomain.errors import BadSource
from dinodomain_medical import ct, mri

IDENTITY = np.eye(3)


def image_of(array_zyx: np.ndarray, direction=IDENTITY) -> sitk.Image:
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection(np.asarray(direction, dtype=float).ravel().tolist())
    return image


TILTED = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([1, -1, -1]), np.eye(3)[:, [2, 0, 1]], TILTED], ids=["LPS", "LAI", "turned", "oblique"]
)
def test_equals_the_nifti_that_simpleitk_writes(tmp_path, ct_volume, open_one, full, suffix, direction):
    """LPS -> RAS twice over: once by us, once by ITK's NIfTI writer and nibabel."""
    image = image_of(np.ascontiguousarray(ct_volume.T), direction)
    sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
    sitk.WriteImage(image, str(tmp_path / "oracle.nii"))
    record, oracle = open_one(ct, tmp_path / f"a.{suffix}"), nib.as_closest_canonical(nib.load(tmp_path / "oracle.nii"))
    np.testing.assert_array_equal(full(record)[0].T, np.asarray(oracle.dataobj))
    np.testing.assert_allclose(np.reshape(record.affine, (4, 4)), oracle.affine, atol=1e-4)


def test_the_marker_keeps_its_place_by_simpleitks_own_transform(tmp_path, ct_volume, open_one, full):
    image = image_of(np.ascontiguousarray(ct_volume.T), TILTED)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    record = open_one(ct, tmp_path / "a.mha")
    z, y, x = np.unravel_index(np.argmax(full(record)[0]), record.shape[1:])
    lps = np.array(image.TransformIndexToPhysicalPoint((5, 1, 3)))
    np.testing.assert_allclose((np.reshape(record.affine, (4, 4)) @ (x, y, z, 1))[:3], lps * (-1, -1, 1), atol=1e-4)


def test_a_nrrd_without_space_says_that_its_orientation_is_not_stated(tmp_path, open_one):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nspacings: 1 1 2\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + np.arange(24, dtype="<i2").tobytes())
    assert open_one(mri, tmp_path / "a.nrrd").fields["geometry"] == "none"


def test_vectors_four_dimensions_detached_and_broken_files_are_refused(tmp_path, found):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), dtype=np.uint8), isVector=True), str(tmp_path / "colour.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 3, 4, 5), dtype=np.int16), isVector=False), str(tmp_path / "frames.nrrd"))
    (tmp_path / "apart.mhd").write_text("ObjectType = Image\n")
    (tmp_path / "text.nrrd").write_text("nothing of the kind")
    sources, refused = found(mri, tmp_path)
    reasons = {item.uri.rpartition("/")[2]: item.reason for item in refused}
    assert not sources
    assert "several files, or not beside it" in reasons["apart.mhd"]
    assert "3 numbers per voxel" in reasons["colour.mha"]
    assert "6 frames" in reasons["frames.nrrd"]
    assert reasons["text.nrrd"] == "not a readable NRRD file"


def test_a_truncated_nrrd_is_refused_by_name(tmp_path, ct_volume, open_one):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image_of(np.ascontiguousarray(ct_volume.T)), str(path), useCompression=False)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadSource, match="truncated or damaged") as error:
        open_one(ct, path)
    assert error.value.uri == str(path)


def nrrd(path, fields: str, array: np.ndarray):
    head = f"NRRD0005\ntype: short\ndimension: {array.ndim}\nencoding: raw\nendian: little\n{fields}\n"
    path.write_bytes(head.encode() + array.astype("<i2").tobytes())
    return path


SPACE = "space: {}\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\nsizes: 5 4 3\n"


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LPS", "RAS", "left-anterior-superior"])
def test_every_anatomical_space_is_turned_as_simpleitk_turns_it(tmp_path, open_one, full, space):
    array = np.random.default_rng(0).integers(0, 99, (3, 4, 5))
    array[2, 0, 4] = 1000
    path = nrrd(tmp_path / "a.nrrd", SPACE.format(space), array)
    record, image = open_one(mri, path), sitk.ReadImage(str(path))
    z, y, x = np.unravel_index(np.argmax(full(record)[0]), record.shape[1:])
    lps = np.array(image.TransformIndexToPhysicalPoint((4, 0, 2)))
    np.testing.assert_allclose((np.reshape(record.affine, (4, 4)) @ (x, y, z, 1))[:3], lps * (-1, -1, 1), atol=1e-6)
    assert (record.fields["geometry"], record.warnings) == ("header", ())


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed"])
def test_a_space_without_anatomy_is_a_warning(tmp_path, open_one, space):
    record = open_one(mri, nrrd(tmp_path / "a.nrrd", SPACE.format(space), np.arange(60).reshape(3, 4, 5)))
    assert record.fields["geometry"] == "none"
    assert "which side is left is not known" in record.warnings[0]


_LISTS = {
    "last": ("sizes: 5 4 3 2", "(1,0,0) (0,2,0) (0,0,3) none", "space space space list", lambda a: a),
    "first": ("sizes: 2 5 4 3", "none (1,0,0) (0,2,0) (0,0,3)", "list space space space", lambda a: np.moveaxis(a, 0, -1)),
}


@pytest.mark.parametrize("place", list(_LISTS))
def test_a_list_axis_of_a_nrrd_is_frames_wherever_it_lies(tmp_path, found, full, place):
    sizes, directions, kinds, order = _LISTS[place]
    frames = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 5))
    gradients = "DWMRI_b-value:=1000\nDWMRI_gradient_0000:=0 0 0\nDWMRI_gradient_0001:=0 0.70710678 0\n"
    fields = f"{sizes}\nspace: RAS\nspace directions: {directions}\nkinds: {kinds}\nspace origin: (1,2,3)\n{gradients}"
    nrrd(tmp_path / "a.nrrd", fields, order(frames))
    _, refused = found(mri, tmp_path)
    assert "4-D with 2 frames of 5x4x3" in refused[0].reason
    sources, _ = found(mri, tmp_path, frames="split")
    records = [mri.read(ref) for ref in sources]
    for record, frame in zip(records, frames, strict=True):
        np.testing.assert_array_equal(full(record)[0], frame)
        np.testing.assert_allclose(np.reshape(record.affine, (4, 4))[:3, 3], (1, 2, 3))
    assert [record.channels[0] for record in records] == ["DWI-b0", "DWI-b500"]


def test_a_vector_axis_of_a_nrrd_stays_refused(tmp_path, found):
    fields = "sizes: 2 5 4 3\nspace: RAS\nspace directions: none (1,0,0) (0,2,0) (0,0,3)\nkinds: vector space space space\n"
    nrrd(tmp_path / "a.nrrd", fields, np.arange(120).reshape(3, 4, 5, 2))
    sources, refused = found(mri, tmp_path, frames="split")
    assert not sources
    assert "2 numbers per voxel (vector)" in refused[0].reason


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_the_fourth_axis_is_split_as_simpleitk_extracts_it(tmp_path, found, full, suffix):
    frames = np.random.default_rng(0).integers(0, 99, (3, 4, 5, 6)).astype(np.int16)
    image = sitk.GetImageFromArray(frames, isVector=False)
    image.SetSpacing((0.5, 0.75, 3.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
    sources, refused = found(mri, tmp_path, frames="split")
    assert not refused
    for t, ref in enumerate(sources):
        record = mri.read(ref)
        np.testing.assert_array_equal(full(record)[0], frames[t, :, ::-1, ::-1])
        assert record.spacing == (3.0, 0.75, 0.5)


def test_a_segmentation_is_known_by_its_header(tmp_path, found):
    nrrd(tmp_path / "a.nrrd", SPACE.format("LPS") + "Segment0_ID:=Segment_1\n", np.arange(60).reshape(3, 4, 5))
    _, refused = found(mri, tmp_path)
    assert "segmentation" in refused[0].reason


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_a_detached_header_is_read_with_the_file_beside_it(tmp_path, ct_volume, found, full, suffix):
    array = np.ascontiguousarray(ct_volume.T)
    sitk.WriteImage(image_of(array), str(tmp_path / f"a.{suffix}"), useCompression=False)
    (ref,), refused = found(ct, tmp_path)
    assert not refused
    assert len(ref.uris) == 2
    assert ref.source_id == f"a.{suffix}"
    np.testing.assert_array_equal(full(ct.read(ref))[0], array[:, ::-1, ::-1])
    data = next(path for path in tmp_path.iterdir() if path.suffix != f".{suffix}")
    before = ref.digest
    data.write_bytes(data.read_bytes()[::-1])
    (ref,), _ = found(ct, tmp_path)
    assert ref.digest != before


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "C:\\x.raw", "LIST", "im%03d.raw 1 20 1", "missing.raw", ""])
def test_a_detached_header_cannot_name_files_elsewhere(tmp_path, found, name):
    (tmp_path / "secret.raw").write_bytes(b"0" * 1000)
    (tmp_path / "in").mkdir()
    text = f"ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = {name}\n"
    (tmp_path / "in" / "a.mhd").write_text(text)
    sources, refused = found(mri, tmp_path / "in")
    assert not sources
    assert "beside it" in refused[0].reason


def test_a_link_beside_a_detached_header_does_not_lead_out(tmp_path, found):
    (tmp_path / "secret.raw").write_bytes(b"0" * 120)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.raw").symlink_to(tmp_path / "secret.raw")
    text = "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    (tmp_path / "in" / "a.mhd").write_text(text)
    _, refused = found(mri, tmp_path / "in")
    assert "does not lie beside it" in refused[0].reason
