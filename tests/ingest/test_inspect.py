"""Inspect tells what is in a store, and shows patients and ground the right way round."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest import inspect
from dinodomain.ingest.histogram import histogram
from dinodomain.ingest.pictures import picture_of
from dinodomain.store import open_store
from dinodomain.testing import SyntheticImages, SyntheticVolumes


def test_text_and_json_tell_the_same_facts(tmp_path, run, write_images):
    write_images(tmp_path / "in", ["a.npy", "b.npy"], (1, 20, 24))
    write_images(tmp_path / "in", ["c.npy"], (1, 40, 24))
    (tmp_path / "in" / "d.npy").write_text("no array")
    run(tmp_path / "in", tmp_path / "store", licence="CC0", audit_holdout=0.5)
    found = inspect(tmp_path / "store", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert facts["shapes"] == {"1x20x24": 2, "1x40x24": 1}
    assert facts["skipped"] == {"refused": {"is not a numpy file": 1}}
    assert facts["units"] == 3
    assert facts["channels"]["c0"]["sources"] == 3
    assert facts["bytes_raw"] == 2 * 480 + 960
    assert facts["licences"] == {"CC0": 3}
    text = found.text()
    assert "3 sources of domain synthetic, 2-D (whole (3))" in text
    assert "shapes: 1x20x24 (2), 1x40x24 (1)" in text
    assert "1 x is not a numpy file" in text
    assert "held out for the audit" in text
    assert (tmp_path / "out" / "inspect.txt").read_text() == text + "\n"


def test_the_contact_sheet_is_a_png_and_the_same_each_time(tmp_path, run):
    run("generate:30", tmp_path / "store")
    first, second = (inspect(tmp_path / "store", tmp_path / name) for name in ("a", "b"))
    data = (tmp_path / "a" / "contact_sheet.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", data[16:24])) > 300
    assert data == (tmp_path / "b" / "contact_sheet.png").read_bytes()
    assert first.figure != second.figure


def test_without_a_folder_nothing_is_written(tmp_path, run):
    run("generate:2", tmp_path / "store")
    assert inspect(open_store(tmp_path / "store")).figure is None
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="no store, or one that was never finished"):
        inspect(tmp_path)


HEAD = np.zeros((30, 40, 50), np.int16)  # z, y, x in RAS+: x towards the patient's right
HEAD[:, 30:36, 40:46] = 1000  # anterior, right
HEAD[0] = 1000  # inferior


@pytest.mark.parametrize(
    ("order", "flip"),
    [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (1, -1, -1)), ((2, 1, 0), (1, 1, 1)), ((1, 2, 0), (-1, 1, -1))],
)
def test_the_patients_right_anterior_is_upper_left_whatever_the_array_axes(tmp_path, run, order, flip):
    """The affine is built together with the array, so the picture must not depend on how it lies in memory."""
    array = np.transpose(HEAD, order)[:: flip[0], :: flip[1], :: flip[2]]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, flip)):  # array axis -> world axis (0 z = S, 1 y = A, 2 x = R)
        affine[2 - world, 2 - axis] = sign
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "head.npz", pixels=np.ascontiguousarray(array)[None], affine=affine, spacing=np.ones(3))
    run(tmp_path / "in", tmp_path / "store", SyntheticVolumes())
    picture = picture_of(open_store(tmp_path / "store"), 0)
    assert picture.sides == ("R", "L", "A", "P")
    rows, columns = np.nonzero(picture.pixels > 0.5)
    assert picture.pixels.shape == (40, 50)
    assert (rows.min(), rows.max()) == (4, 9)
    assert (columns.min(), columns.max()) == (4, 9)


def test_without_an_affine_no_side_is_named(tmp_path, run):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", HEAD[None])
    run(tmp_path / "in", tmp_path / "store", SyntheticVolumes())
    assert picture_of(open_store(tmp_path / "store"), 0).sides == ("", "", "", "")


@pytest.mark.parametrize(("north_first", "aspect"), [(True, 1.0), (False, 1.0)])
def test_rasters_are_shown_north_up(tmp_path, run, north_first, aspect):
    pyproj = pytest.importorskip("pyproj")
    pixels = np.full((1, 30, 20), 10, np.uint8)
    pixels[:, :5, :5] = 200  # north-west where row 0 is north
    affine = np.array([10.0, 0, 5e5, 0, -10.0 if north_first else 10.0, 5e6, 0, 0, 1])
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", pixels=pixels if north_first else pixels[:, ::-1], affine=affine,
             crs=pyproj.CRS.from_epsg(32632).to_wkt(), spacing=np.array([10.0, 10.0]))  # fmt: skip
    run(tmp_path / "in", tmp_path / "store", SyntheticImages(num_channels=1))
    picture = picture_of(open_store(tmp_path / "store"), 0)
    assert picture.sides == ("W", "E", "N", "S")
    assert picture.aspect == aspect
    assert picture.pixels[:5, :5].min() > 0.9
    assert picture.pixels[5:, 5:].max() < 0.1


def test_bands_called_like_colours_are_shown_in_colour(tmp_path, run):
    class Colours(SyntheticImages):
        def read(self, ref):
            return dataclasses.replace(SyntheticImages.read(self, ref), channels=("B02", "B03", "B04"))

    run("generate:1", tmp_path / "store", Colours())
    picture = picture_of(open_store(tmp_path / "store"), 0)
    assert picture.pixels.shape == (48, 48, 3)


def world(order, flip, step=(1.0, 1.0, 1.0), turn=None):
    """An affine for an array whose axes run along world axes ``order`` (0 z = S, 1 y = A, 2 x = R) with ``flip`` and ``step`` mm each."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (to, sign) in enumerate(zip(order, flip)):
        affine[2 - to, 2 - axis] = sign * step[axis]
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def shown(tmp_path, run, array, affine, spacing):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "head.npz", pixels=np.ascontiguousarray(array)[None], affine=affine, spacing=np.array(spacing))
    run(tmp_path / "in", tmp_path / "store", SyntheticVolumes())
    return picture_of(open_store(tmp_path / "store"), 0)


def corner(picture):
    rows, columns = np.nonzero(picture.pixels > 0.5)
    height, width = picture.pixels.shape
    return ("top" if rows.mean() < height / 2 else "bottom"), ("left" if columns.mean() < width / 2 else "right")


PHANTOM = np.zeros((20, 24, 28), np.int16)  # z, y, x in RAS+
PHANTOM[14:18, 16:22, 20:26] = 1000  # superior, anterior, right


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize(
    ("across", "sides", "place"),
    [(0, ("R", "L", "A", "P"), ("top", "left")), (1, ("R", "L", "S", "I"), ("top", "left")), (2, ("A", "P", "S", "I"), ("top", "left"))],
)
def test_a_volume_is_shown_in_the_plane_it_was_acquired_in_whatever_its_axes(tmp_path, run, flip, order, across, sides, place):
    """``across``: the world axis (0 S, 1 A, 2 R) along which slices are 3 mm apart, pixels being 1 mm."""
    marked = np.repeat(PHANTOM.any(axis=across, keepdims=True), PHANTOM.shape[across], axis=across) * np.int16(1000)
    array = np.transpose(marked, order)[:: flip[0], :: flip[1], :: flip[2]]
    step = [3.0 if to == across else 1.0 for to in order]
    picture = shown(tmp_path, run, array, world(order, flip, step), step)
    assert (picture.sides, corner(picture), picture.aspect) == (sides, place, 1.0)


def test_pixels_of_a_slice_that_are_not_square_keep_their_shape(tmp_path, run):
    picture = shown(tmp_path, run, PHANTOM, world((0, 1, 2), (1, 1, 1), (2.0, 1.5, 1.0)), (2.0, 1.5, 1.0))
    assert (picture.sides, picture.aspect) == (("R", "L", "A", "P"), 1.5)


def rotation(axis, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = c
    turn[i, j], turn[j, i] = -s, s
    return turn


@pytest.mark.parametrize(
    ("degrees", "sides"),
    [(10, ("R", "L", "A", "P")), (30, ("RA", "LP", "AL", "PR")), (-30, ("RP", "LA", "AR", "PL")), (60, ("RP", "LA", "AR", "PL"))],
)
def test_an_oblique_volume_names_both_directions_that_a_side_leans_to(tmp_path, run, degrees, sides):
    """Turned about the long axis of the patient; past 45 degrees the other array axis is the nearer one."""
    block = np.repeat(PHANTOM.any(axis=0, keepdims=True), 20, axis=0) * np.int16(1000)
    picture = shown(tmp_path, run, block, world((0, 1, 2), (1, 1, 1), turn=rotation(2, degrees)), (1.0, 1.0, 1.0))
    assert picture.sides == sides


def test_a_tilted_brain_stays_axial_up_to_45_degrees(tmp_path, run):
    block = np.repeat(PHANTOM.any(axis=0, keepdims=True), 20, axis=0) * np.int16(1000)
    picture = shown(tmp_path, run, block, world((0, 1, 2), (1, 1, 1), (3.0, 1.0, 1.0), rotation(0, 20)), (3.0, 1.0, 1.0))
    assert (picture.sides, corner(picture)) == (("R", "L", "AS", "PI"), ("top", "left"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Films(SyntheticImages):
    """Radiographs whose header says how they lie."""

    orientation: str = ""

    def read(self, ref):
        fields = {"patient_orientation": self.orientation, "view": "PA", "laterality": "L"}
        return dataclasses.replace(SyntheticImages.read(self, ref), fields={k: v for k, v in fields.items() if v})


@pytest.mark.parametrize(
    ("orientation", "marker", "sides"),
    [
        ("L\\F", (2, 2), ("R", "L", "H", "F")),
        ("R\\F", (2, -3), ("R", "L", "H", "F")),
        ("L\\H", (-3, 2), ("R", "L", "H", "F")),
        ("R\\H", (-3, -3), ("R", "L", "H", "F")),
        ("A\\F", (2, 2), ("P", "A", "H", "F")),
        ("P\\F", (2, 2), ("A", "P", "H", "F")),
        ("LA\\F", (2, 2), ("RP", "LA", "H", "F")),
        ("", (2, 2), ("", "", "", "")),
        ("sideways", (2, 2), ("", "", "", "")),
    ],
)
def test_the_marker_of_a_radiograph_stands_where_the_viewer_expects_it(tmp_path, run, orientation, marker, sides):
    """The film has its bright marker in the upper left corner of the picture as stored; L\\F means that this is the patient's right."""
    pixels = np.full((1, 40, 30), 10, np.uint8)
    pixels[0, marker[0], marker[1]] = 250
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", pixels)
    run(tmp_path / "in", tmp_path / "store", Films(num_channels=1, orientation=orientation))
    picture = picture_of(open_store(tmp_path / "store"), 0)
    assert picture.sides == sides
    assert np.argwhere(picture.pixels > 0.9).tolist() == [[2, 2]]
    assert picture.title.endswith("a.npy PA L")


NORTH_WEST = np.full((1, 30, 20), 10, np.uint8)
NORTH_WEST[:, :5, :5] = 200


@pytest.mark.parametrize("symmetry", range(8))
def test_a_raster_is_north_up_from_any_of_the_eight_ways_it_may_lie(tmp_path, run, symmetry):
    pyproj = pytest.importorskip("pyproj")
    flip_rows, flip_columns, transpose = symmetry & 1, symmetry & 2, symmetry & 4
    pixels, affine = NORTH_WEST, np.array([[10.0, 0, 5e5], [0, -10.0, 5e6], [0, 0, 1]])
    if flip_rows:
        pixels, affine = pixels[:, ::-1], affine @ np.array([[1, 0, 0], [0, -1, 30], [0, 0, 1]])
    if flip_columns:
        pixels, affine = pixels[:, :, ::-1], affine @ np.array([[-1, 0, 20], [0, 1, 0], [0, 0, 1]])
    if transpose:
        pixels, affine = pixels.transpose(0, 2, 1), affine @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", pixels=np.ascontiguousarray(pixels), affine=affine.ravel(),
             crs=pyproj.CRS.from_epsg(32632).to_wkt(), spacing=np.array([10.0, 10.0]))  # fmt: skip
    run(tmp_path / "in", tmp_path / "store", SyntheticImages(num_channels=1))
    picture = picture_of(open_store(tmp_path / "store"), 0)
    assert picture.sides == ("W", "E", "N", "S")
    assert picture.pixels.shape == (30, 20)
    assert picture.pixels[:5, :5].min() > 0.9
    assert picture.pixels[5:, 5:].max() < 0.1


@pytest.mark.parametrize(
    ("degrees", "sides"),
    [(10, ("W", "E", "N", "S")), (30, ("WNW", "ESE", "NNE", "SSW")), (-30, ("WSW", "ENE", "NNW", "SSE")), (80, ("W", "E", "N", "S")),
     (120, ("WNW", "ESE", "NNE", "SSW")), (180, ("W", "E", "N", "S"))],
)  # fmt: skip
def test_a_rotated_raster_says_where_its_sides_point(tmp_path, run, degrees, sides):
    """The grid is turned clockwise by ``degrees``: its upper side points so far east of north."""
    pyproj = pytest.importorskip("pyproj")
    c, s = 10 * np.cos(np.radians(degrees)), 10 * np.sin(np.radians(degrees))
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", pixels=NORTH_WEST, affine=np.array([c, -s, 5e5, -s, -c, 5e6, 0, 0, 1]),
             crs=pyproj.CRS.from_epsg(32632).to_wkt(), spacing=np.array([10.0, 10.0]))  # fmt: skip
    run(tmp_path / "in", tmp_path / "store", SyntheticImages(num_channels=1))
    assert picture_of(open_store(tmp_path / "store"), 0).sides == sides


@pytest.mark.parametrize(
    ("values", "step", "bins"),
    [
        (np.arange(256).repeat(9), 1.0, 64),
        (np.arange(100).repeat(3), 1.0, 50),
        (np.array([0, 10, 20, 20]), 10.0, 3),
        (np.full(7, 5), 1.0, 1),
    ],
)
def test_bins_of_integers_hold_equally_many_levels(values, step, bins):
    found = histogram(values.astype(np.float64), "HU", step)
    assert len(found.counts) == bins
    assert sum(found.counts) + found.below + found.above == values.size
    edges = found.start + found.width * np.arange(bins + 1)
    assert found.counts == tuple(np.histogram(values, edges)[0])
    assert (found.width / step) % 1 == 0


def test_a_histogram_of_real_numbers_agrees_with_numpy_and_counts_what_lies_beyond():
    values = np.random.Generator(np.random.PCG64(0)).normal(size=100_000)
    found = histogram(values)
    edges = found.start + found.width * np.arange(65)
    assert found.counts == tuple(np.histogram(values, edges)[0])
    assert found.below + found.above == pytest.approx(200, abs=4)
    assert histogram(np.full(5, 0.25)).counts[0] == 5


def test_histograms_are_of_training_pixels_in_physical_units(tmp_path, run):
    class Scaled(SyntheticImages):
        def read(self, ref):
            return dataclasses.replace(SyntheticImages.read(self, ref), scale=(0.5,), offset=(-100.0,))

    run("generate:80", tmp_path / "store", Scaled(num_channels=1, per_unit=1), audit_holdout=0.5)
    store = open_store(tmp_path / "store")
    found = inspect(store, tmp_path / "out")
    told = found.histograms["c0"]
    kept = [row for row in range(len(store)) if not store.row(row)["holdout"]]
    assert 20 < len(kept) < 60
    assert sum(told.counts) + told.below + told.above == len(kept) * 48 * 48
    assert -100 <= told.start <= -90
    assert (told.width / 0.5) % 1 == 0
    assert (tmp_path / "out" / "histograms.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    facts = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert facts["histograms"]["c0"]["counts"] == list(told.counts)
    assert facts["figure_histograms"] == str(tmp_path / "out" / "histograms.png")


def test_fields_splits_and_dates_are_counted_and_a_unit_in_two_splits_is_called_out(tmp_path, run):
    class Dated(SyntheticImages):
        def read(self, ref):
            number = int(ref.keys["stem"][-5:])
            fields = {"kernel": ("Br40", "Hr60")[number % 2], "kvp": 80 + number, "split": "test" if number in (1, 2, 3) else "train"}
            return dataclasses.replace(SyntheticImages.read(self, ref), fields=fields, acquired=f"2020-01-{number + 1:02d}")

    run("generate:20", tmp_path / "store", Dated())
    found = inspect(tmp_path / "store", top=1)
    assert found.fields["kernel"].values == {"Br40": 10, "Hr60": 10}
    assert (found.fields["kvp"].low, found.fields["kvp"].high) == (80, 99)
    assert found.splits == {"test": {"sources": 3, "units": 2}, "train": {"sources": 17, "units": 9}}
    assert found.units_in_several_splits == 1
    assert found.acquired == ("2020-01-01", "2020-01-20")
    text = found.text()
    assert "kernel: Br40 (10) and 1 more" in text
    assert "UNITS IN SEVERAL SPLITS: 1" in text
    assert "acquired: 2020-01-01 to 2020-01-20" in text.splitlines()


def test_clear_names_of_skipped_files_are_told_only_when_asked_and_never_written(tmp_path, run, write_images):
    source = write_images(tmp_path / "in", ["jane/a.npy"])
    (source / "jane" / "doe.npy").write_text("none")
    run(source, tmp_path / "store", SyntheticImages(personal=True))
    assert "doe" not in inspect(tmp_path / "store").text()
    found = inspect(tmp_path / "store", tmp_path / "out", names=True)
    assert "  jane/doe.npy: is not a numpy file" in found.text().splitlines()
    assert found.as_json()["skipped_files"] == [{"uri": "jane/doe.npy", "reason": "is not a numpy file"}]
    assert not any(b"doe" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    (tmp_path / "store.private" / "skipped.csv").unlink()
    with pytest.raises(UserError, match="there are no clear names at"):
        inspect(tmp_path / "store", names=True)
