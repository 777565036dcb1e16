"""Left and right, front and back, head and feet: an asymmetric marker lies at the same place of the patient however it was scanned.

The phantom is a function of patient space (RAS mm). It is sampled by the DICOM equation (PS3.3 C.7.6.2.1.1) for every direction of
slices, and each result is compared with SimpleITK's reading of the same files and with nibabel's closest canonical axes.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from dinodomain.domain import linear_to_unit
from dinodomain_medical import ct, mri

MARKER_RAS = np.array([-16.0, 22.0, 10.0])
"""On the left, in front, above the middle."""


def rotated(degrees_about_z: float, degrees_about_x: float) -> tuple[float, ...]:
    """Directions of columns and rows of an axial slice, turned about two axes (double oblique)."""
    a, b = np.radians(degrees_about_z), np.radians(degrees_about_x)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = about_z @ about_x
    return tuple(round(float(v), 9) for v in (*turn[:, 0], *turn[:, 1]))


# Name: direction of columns and of rows (LPS), direction in which instance numbers rise along the normal.
SCANS = {
    "axial head first supine": ((1, 0, 0, 0, 1, 0), 1),
    "axial feet first supine": ((1, 0, 0, 0, 1, 0), -1),
    "axial feet first supine, mirrored columns": ((-1, 0, 0, 0, 1, 0), 1),
    "axial head first prone": ((-1, 0, 0, 0, -1, 0), 1),
    "axial feet first prone": ((-1, 0, 0, 0, -1, 0), -1),
    "sagittal": ((0, 1, 0, 0, 0, -1), 1),
    "sagittal from right to left": ((0, 1, 0, 0, 0, -1), -1),
    "coronal": ((1, 0, 0, 0, 0, -1), 1),
    "coronal from front to back": ((1, 0, 0, 0, 0, -1), -1),
    "oblique": (rotated(0, 25), 1),
    "double oblique": (rotated(20, 35), 1),
    "double oblique backwards": (rotated(-70, 40), -1),
}


def phantom(ras: np.ndarray) -> np.ndarray:
    """A bright ball at the marker on a ramp that differs along every axis."""
    ball = np.exp(-((np.linalg.norm(ras - MARKER_RAS, axis=-1) / 6) ** 2))
    return 1000 + 2 * ras[..., 0] + ras[..., 1] - 3 * ras[..., 2] + 1500 * ball


@pytest.fixture(params=SCANS, ids=SCANS, scope="module")
def scan(request, tmp_path_factory, write_series):
    """A folder with one series, 2 x 1.5 x 4 mm, that covers the marker, and its paths."""
    orientation, sign = SCANS[request.param]
    across, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    step = np.cross(across, down) * 4.0 * sign
    rows, columns, slices = 44, 52, 18
    folder = tmp_path_factory.mktemp("scan") / "s"
    origin = -(across * 2 * columns + down * 1.5 * rows + step * slices) / 2 + MARKER_RAS * (-1, -1, 1) / 2
    k, row, column = np.meshgrid(np.arange(slices), np.arange(rows), np.arange(columns), indexing="ij")
    lps = origin + k[..., None] * step + row[..., None] * down * 1.5 + column[..., None] * across * 2.0
    volume = np.rint(phantom(lps * (-1, -1, 1))).astype(np.uint16)
    paths = write_series(
        folder, volume, orientation=orientation, origin=origin, step=step, spacing=(1.5, 2.0), Modality="MR", RescaleIntercept=0
    )
    return folder, paths


def test_the_marker_lies_at_its_place_and_every_voxel_holds_what_is_there(scan, open_one, full):
    record = open_one(mri, scan[0])
    values, affine = full(record)[0], np.reshape(record.affine, (4, 4))
    z, y, x = np.meshgrid(*[np.arange(size) for size in values.shape], indexing="ij")
    ras = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_array_equal(values, np.rint(phantom(ras.round(9))).astype(np.uint16))
    brightest = np.array(np.unravel_index(np.argmax(values), values.shape))[::-1]
    found = affine[:3, :3] @ brightest + affine[:3, 3]
    assert np.linalg.norm(found - MARKER_RAS) <= np.linalg.norm([2, 1.5, 4]) / 2 + 0.5


def test_stored_axes_are_the_closest_to_right_front_and_head(scan, open_one):
    record = open_one(mri, scan[0])
    affine = np.reshape(record.affine, (4, 4))
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    original = affine if record.original_affine is None else np.reshape(record.original_affine, (4, 4))
    shape = np.abs(nib.io_orientation(original)[:, 0]).astype(int)
    image = nib.Nifti1Image(np.zeros(np.array(record.shape[:0:-1])[shape]), original)
    np.testing.assert_allclose(nib.as_closest_canonical(image).affine, affine, atol=1e-9)


def test_every_corner_and_the_marker_hold_what_simpleitk_reads_there(scan, open_one, full):
    folder, _ = scan
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    oracle, record = sitk.GetArrayFromImage(image), open_one(mri, folder)
    values, inverse = full(record)[0], np.linalg.inv(np.reshape(record.affine, (4, 4)))
    corners = np.stack(np.meshgrid(*[(0, size // 3, size - 1) for size in image.GetSize()], indexing="ij"), axis=-1).reshape(-1, 3)
    for i, j, k in (*corners.tolist(), np.unravel_index(np.argmax(oracle), oracle.shape)[::-1]):
        x, y, z = image.TransformIndexToPhysicalPoint((int(i), int(j), int(k)))
        index = np.rint(inverse @ (-x, -y, z, 1))[:3].astype(int)
        assert values[index[2], index[1], index[0]] == oracle[k, j, i]


def test_names_and_instance_numbers_in_reverse_change_nothing(scan, tmp_path, open_one, full):
    folder, paths = scan
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = len(paths) - number
        dataset.save_as(tmp_path / f"{len(paths) - number:04d}")
    before, after = open_one(mri, folder), open_one(mri, tmp_path)
    np.testing.assert_array_equal(full(before), full(after))
    assert before.affine == after.affine


def to_unit(record, full) -> np.ndarray:
    """What a network sees before normalisation, by the domain's own range."""
    import torch

    from dinodomain.types import TileInfo

    def row(value: float) -> torch.Tensor:
        return torch.tensor([[value]], dtype=torch.float32)

    info = TileInfo(
        scale=row(record.scale[0]), offset=row(record.offset[0]), nodata=row(float("nan")), low=row(-1024), high=row(3071),
        spacing=torch.tensor([record.spacing]), valid_box=torch.zeros((1, 3, 2), dtype=torch.int64),
    )  # fmt: skip
    pixels = torch.from_numpy(full(record))[None]
    assert torch.equal(ct.to_float(pixels, info), linear_to_unit(pixels, info))
    return ct.to_float(pixels, info).numpy()


@pytest.mark.parametrize("pairs", ["one other pair", "a pair per slice"])
def test_one_image_under_two_slopes_and_intercepts_gives_the_same_network_input(tmp_path, write_series, open_one, full, pairs):
    hounsfield = np.random.default_rng(5).integers(-500, 500, (4, 6, 8)) * 2
    plain = (hounsfield + 1024).astype(np.uint16)
    write_series(tmp_path / "a", plain)
    scales = [(2, -2000)] * 4 if pairs == "one other pair" else [(2, -2000), (1, -1024), (2, -1000), ("0.5", "-1024")]
    other = np.stack([(plane - int(float(offset))) / float(slope) for plane, (slope, offset) in zip(hounsfield, scales)])
    assert (other == np.rint(other)).all()
    write_series(
        tmp_path / "b",
        other.astype(np.int16),
        SeriesInstanceUID="1.9",
        vary=lambda k: {"RescaleSlope": scales[k][0], "RescaleIntercept": scales[k][1]},
    )
    first, second = open_one(ct, tmp_path / "a"), open_one(ct, tmp_path / "b")
    assert second.fields["scale_kind"] == ("shared" if pairs == "one other pair" else "integer")
    np.testing.assert_allclose(to_unit(first, full), to_unit(second, full), atol=1e-6)


def test_padding_may_differ_from_slice_to_slice(tmp_path, slices, write_series, open_one, full):
    volume = np.clip(slices, 300, 4000).astype(np.uint16)
    padding = [0, 7, 0, 9, 11]
    for k, value in enumerate(padding):
        volume[k, :2] = value
    write_series(tmp_path / "s", volume, vary=lambda k: {"PixelPaddingValue": padding[k]})
    record = open_one(ct, tmp_path / "s")
    valid = record.read_valid(tuple(slice(0, size) for size in record.shape[1:]))
    np.testing.assert_array_equal(valid, (full(record)[0] < 100).astype(np.uint8))
    assert record.nodata == (None,)
