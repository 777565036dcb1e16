"""Tilted, uneven and incomplete series: refused with numbers, or resampled by key, checked on functions of space and by SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dinodomain.errors import BadSource
from dinodomain_medical import ct, mri
from dinodomain_medical.resample_series import MAX_MISSING

TILT = np.radians(18.5)
SPACING = (0.8, 0.7)
ORIGIN = np.array([-12.0, -15.0, 30.0])


def linear(lps: np.ndarray) -> np.ndarray:
    return 900 + 7 * lps[..., 0] - 5 * lps[..., 1] + 3 * lps[..., 2]


def smooth(lps: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(lps, -1, 0)
    return 1000 + 400 * np.sin(x / 6) * np.cos(y / 7) + 300 * np.sin(z / 9)


def phantom(function, places, rows=40, columns=36) -> np.ndarray:
    """Samples a function of LPS mm on axial slices whose first pixel lies at ``places``."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    inside = np.stack([column * SPACING[1], row * SPACING[0], np.zeros_like(row, float)], axis=-1)
    return np.stack([np.rint(function(place + inside)).astype(np.uint16) for place in places])


def at_voxels(record, function) -> np.ndarray:
    """The function at every voxel of a record."""
    affine = np.reshape(record.affine, (4, 4))
    z, y, x = np.meshgrid(*[np.arange(size) for size in record.shape[1:]], indexing="ij")
    ras = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return function(ras * (-1, -1, 1))


@pytest.fixture
def series(tmp_path, write_series):
    def write(function, steps, **tags):
        """``steps``: LPS offsets of the slices from the origin."""
        places = ORIGIN + np.asarray(steps)
        write_series(
            tmp_path / "s",
            phantom(function, places),
            spacing=SPACING,
            vary=lambda k: {"ImagePositionPatient": [round(float(v), 5) for v in places[k]]},
            **tags,
        )
        return tmp_path / "s"

    return write


def along_z(*depths):
    return [(0.0, 0.0, depth) for depth in depths]


def tilted(*depths):
    return [(0.0, np.tan(TILT) * depth, depth) for depth in depths]


IRREGULAR = {
    "tilted": tilted(*np.arange(9) * 2.0),
    "uneven": along_z(0, 2, 4.3, 6, 8.2, 10, 12),
    "thin-to-thick": along_z(0, 1, 2, 3, 4, 6, 8, 10, 12),
    "one missing": along_z(0, 2, 4, 8, 10, 12),
    "tilted and uneven": tilted(0, 4.2, 5.4, 9.6, 13.8, 18.0, 22.2),
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_what_is_irregular_is_refused_unless_the_key_says_resample(series, found, name):
    sources, refused = found(ct, series(linear, IRREGULAR[name]))
    assert not sources
    assert "ingest.irregular=resample" in str(refused[0])


@pytest.mark.parametrize("name", IRREGULAR)
def test_a_linear_function_of_space_is_reproduced_to_rounding(series, open_one, full, name):
    """Linear interpolation and symmetric averages keep it; the slices' own rounding and ours leave half a unit each."""
    record = open_one(ct, series(linear, IRREGULAR[name]), irregular="resample")
    good = (
        record.read_valid(tuple(slice(0, size) for size in record.shape[1:])) == 0 if record.read_valid else np.ones(record.shape[1:], bool)
    )
    difference = np.abs(full(record)[0] - at_voxels(record, linear))
    # At the rim a voxel may lie up to half a pixel outside the slice and takes the edge value: 0.5 * 0.8 mm * 5 per mm.
    assert difference[good].max() <= 1 + 0.5 * 0.8 * 5 + 1e-3
    assert np.quantile(difference[good], 0.9) <= 1
    assert good.mean() > 0.5


@pytest.mark.parametrize(("name", "bound"), [("tilted", 4.0), ("uneven", 12.0), ("one missing", 16.0)])
def test_a_smooth_function_of_space_is_reproduced_within_the_error_of_linear_interpolation(series, open_one, full, name, bound):
    """h^2/8 * |f''|: 0.8^2/8 * 400/36 + rounding in the plane; 4^2/8 * 300/81 over a missing slice."""
    record = open_one(mri, series(smooth, IRREGULAR[name], Modality="MR", RescaleIntercept=0), irregular="resample")
    valid = record.read_valid(tuple(slice(0, size) for size in record.shape[1:])) if record.read_valid else np.zeros(record.shape[1:])
    difference = np.abs(full(record)[0] - at_voxels(record, smooth))[valid == 0]
    assert np.quantile(difference, 0.95) <= bound
    assert difference.max() <= bound + 0.5 * 0.8 * 400 / 6


def test_a_tilted_series_equals_simpleitks_resampling(series, open_one, full):
    """ITK sees the slices as a straight image; an affine transform shears the new grid into it."""
    steps = IRREGULAR["tilted"]
    folder = series(smooth, steps)
    record = open_one(ct, folder, irregular="resample")
    shape = record.shape[1:]
    image = sitk.GetImageFromArray(phantom(smooth, ORIGIN + np.asarray(steps)).astype(np.float32))
    image.SetSpacing((SPACING[1], SPACING[0], 2.0))
    image.SetOrigin(ORIGIN.tolist())
    shear = sitk.AffineTransform(3)
    shear.SetMatrix((1, 0, 0, 0, 1, -float(np.tan(TILT)), 0, 0, 1))
    shear.SetCenter(ORIGIN.tolist())
    grid = sitk.Image(shape[2], shape[1], shape[0], sitk.sitkFloat32)
    grid.SetSpacing((SPACING[1], SPACING[0], 2.0))
    grid.SetOrigin(ORIGIN.tolist())
    oracle = sitk.GetArrayFromImage(sitk.Resample(image, grid, shear, sitk.sitkLinear, -1.0))
    ours = full(record)[0][:, ::-1, ::-1]  # canonical axes run to the right and to the front
    inside = oracle >= 0
    assert inside.mean() > 0.6
    np.testing.assert_allclose(ours[inside], oracle[inside], atol=0.51)


def test_an_uneven_series_equals_interpolation_along_each_line(series, open_one, full):
    depths = [0, 2, 4.3, 6, 8.2, 10, 12]
    record = open_one(ct, series(smooth, along_z(*depths)), irregular="resample")
    stack = phantom(smooth, ORIGIN + np.asarray(along_z(*depths))).astype(float)
    np.testing.assert_allclose(record.spacing, (2.0, *SPACING))
    lines = stack.reshape(len(stack), -1)
    expected = np.stack([np.interp(np.arange(7) * 2.0, depths, line) for line in lines.T], axis=1).reshape(stack.shape)
    ours = full(record)[0][:, ::-1, ::-1]
    # Where slices lie closer than the new step, the interpolant is averaged over the difference of at most 0.3 mm.
    np.testing.assert_allclose(ours, expected, atol=0.51 + 4)
    np.testing.assert_allclose(ours[[0, -1]], expected[[0, -1]], atol=0.51)


def test_slices_finer_than_the_new_step_are_averaged_not_picked(series, open_one, full):
    """Alternating fine slices (aliasing at its worst) come to their mean, away from the coarse part."""
    depths = [*np.arange(0, 5, 0.5), *np.arange(5, 29, 2.0)]

    def stripes(lps):
        fine = np.rint((lps[..., 2] - ORIGIN[2]) / 0.5).astype(int) % 2
        return 1000 + 400 * np.where(lps[..., 2] - ORIGIN[2] < 5, fine * 2 - 1, 0) + 0 * lps[..., 0] + 10 * (lps[..., 0] > 0)

    record = open_one(ct, series(stripes, along_z(*depths)), irregular="resample")
    assert record.spacing[0] == pytest.approx(2.0, abs=0.1)
    second = full(record)[0][1]
    assert abs(float(second.mean()) - 1005) < 100  # picking one slice would be 400 off


def test_no_voxel_is_cut_off_and_what_lies_outside_every_slice_is_no_data(series, open_one, full):
    record = open_one(ct, series(linear, IRREGULAR["tilted"]), irregular="resample")
    shift = np.tan(TILT) * 16 / SPACING[0]
    assert record.shape == (1, 9, 40 + int(np.ceil(shift)), 36)
    valid = record.read_valid(tuple(slice(0, size) for size in record.shape[1:]))
    assert set(np.unique(valid)) == {0, 1}
    assert (valid == 0).sum(axis=(1, 2)).min() >= 39 * 36
    assert record.dtype == "uint16"
    stage = next(stage for stage in record.stages if "resampled" in stage)
    assert stage == (
        "resampled linearly to a straight grid: slices are sheared by 18.5 degrees (gantry tilt);"
        " 9 slices 2.00..2.00 mm apart -> 9 slices 2.000 mm apart"
    )
    assert "resampled values rounded to whole stored numbers" in record.stages


def test_a_missing_slice_is_interpolated_and_named(series, open_one):
    assert MAX_MISSING == 1
    record = open_one(ct, series(linear, IRREGULAR["one missing"]), irregular="resample")
    assert record.shape[1] == 7
    assert any(stage.endswith("interpolated over a missing slice: 3 in the order of the normal") for stage in record.stages)


def test_more_missing_slices_are_refused_even_then(series, found):
    sources, refused = found(ct, series(linear, along_z(0, 2, 4, 10, 12)), irregular="resample")
    assert not sources
    assert refused[0].reason == "2 missing between slices 3 and 4 (gap 6.00 mm, usually 2.00 mm)"


def test_the_key_is_not_recommended_where_it_would_not_help(series, found):
    _, refused = found(ct, series(linear, along_z(0, 2, 4, 10, 12, 14)))
    assert "irregular" not in refused[0].remedy
    assert refused[0].remedy.startswith("bring the missing slices")
    assert "no more than 1 is interpolated" in str(refused[0])


def test_thick_slices_far_apart_are_no_hole(series, found):
    """Thin slices through the skull base, thick ones above: the gap is as wide as the slices are thick."""
    folder = series(linear, along_z(0, 2, 4, 6, 8, 10, 15, 20), SliceThickness=5)
    assert len(found(ct, folder, irregular="resample")[0]) == 1


def test_padding_takes_no_part_in_the_interpolation(tmp_path, write_series, open_one, full):
    volume = np.full((5, 20, 20), 1500, np.uint16)
    volume[:, 8, 8] = 1400
    volume[:, :5] = 0
    places = ORIGIN + np.asarray(tilted(0, 2, 4, 6, 8))
    write_series(
        tmp_path / "s", volume, spacing=SPACING, PixelPaddingValue=0, vary=lambda k: {"ImagePositionPatient": [float(v) for v in places[k]]}
    )
    record = open_one(ct, tmp_path / "s", irregular="resample")
    window = tuple(slice(0, size) for size in record.shape[1:])
    values, valid = full(record)[0], record.read_valid(window)
    assert record.nodata == (0.0,)
    assert values[valid == 0].min() >= 1400
    assert set(values[valid == 1].tolist()) == {0}


def test_float_scales_stay_float(tmp_path, write_series, open_one):
    volume = phantom(smooth, ORIGIN + np.asarray(IRREGULAR["uneven"]))
    places = ORIGIN + np.asarray(IRREGULAR["uneven"])
    write_series(
        tmp_path / "s",
        volume,
        spacing=SPACING,
        Modality="MR",
        RescaleIntercept=0,
        vary=lambda k: {"ImagePositionPatient": [float(v) for v in places[k]], "RescaleSlope": str(0.917 + 0.00371 * k)},
    )
    record = open_one(mri, tmp_path / "s", irregular="resample")
    assert record.dtype == "float32"
    assert record.fields["scale_kind"] == "float32"


def test_a_regular_series_is_untouched_by_the_key(tmp_path, slices, write_series, open_one, full):
    write_series(tmp_path / "s", slices)
    plain, keyed = open_one(ct, tmp_path / "s"), open_one(ct, tmp_path / "s", irregular="resample")
    np.testing.assert_array_equal(full(plain), full(keyed))
    assert plain.stages == keyed.stages
    assert not any("resampled" in stage for stage in keyed.stages)


def test_a_stated_tilt_that_the_positions_do_not_show_is_a_warning(tmp_path, slices, write_series, open_one):
    write_series(tmp_path / "s", slices, GantryDetectorTilt=12.0)
    warning = "the header states a gantry tilt of 12 degrees, the slice positions show none; positions are believed"
    assert open_one(ct, tmp_path / "s").warnings == (warning,)


def test_sheared_slices_of_any_direction_are_straightened(tmp_path, write_series, open_one, physical):
    """Sagittal slices that drift along both of their axes; a bright block stays where it lies in the patient."""
    orientation, step = (0, 1, 0, 0, 0, -1), np.array([-2.0, 0.4, 0.7])
    block, volume = np.array([20.0, 8.0, 5.0]), np.zeros((12, 40, 40), np.uint16)
    row, column = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    for k in range(12):
        place = np.array([30.0, -12.0, 22.0]) + k * step
        lps = np.stack([np.full(row.shape, place[0]), place[1] + column, place[2] - row], axis=-1)
        distance = np.linalg.norm(lps - block, axis=-1)
        volume[k] = np.rint(1000 * np.exp(-((distance / 5) ** 2)))
    write_series(tmp_path / "s", volume + np.uint16(10), orientation=orientation, origin=(30.0, -12.0, 22.0), step=step, spacing=(1, 1))
    record = open_one(ct, tmp_path / "s", irregular="resample")
    values = physical(record) + 1024 - 10
    z, y, x = np.meshgrid(*[np.arange(size) for size in values.shape], indexing="ij")
    good = record.read_valid(tuple(slice(0, size) for size in values.shape)) == 0
    weights = np.where(good, values, 0)
    centre = np.array([(axis * weights).sum() / weights.sum() for axis in (x, y, z)])
    ras = (np.reshape(record.affine, (4, 4)) @ (*centre, 1))[:3]
    np.testing.assert_allclose(ras, block * (-1, -1, 1), atol=0.1)


def test_one_slice_and_frames_without_place_stay_refused(tmp_path, slices, write_series, open_one):
    write_series(tmp_path / "s", slices[:1])
    with pytest.raises(BadSource, match="one slice is no volume"):
        open_one(ct, tmp_path / "s", irregular="resample")
