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
