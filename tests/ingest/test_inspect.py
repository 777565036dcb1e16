"""Inspect tells what is in a store, and shows patients and ground the right way round."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest

from dinodomain.errors import UserError
from dinodomain.ingest import inspect
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
