"""The satellite demo's source: real pixels, a made-up place that says so, blocks that are ground cells."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dinodomain.demo.tiles import BANDS, write_tiles_source
from dinodomain.store.cells import CellGrid, chunk_boxes, footprints
from dinodomain.types import Select, SourceRef
from dinodomain_remote_sensing import sentinel2

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("pyproj")
pytestmark = pytest.mark.skipif(find_spec("spyndex") is None, reason="spyndex is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles_source(tmp_path_factory.mktemp("tiles"))


def test_pixels_are_the_packages_and_the_place_is_said_to_be_made_up(scene: Path) -> None:
    spec = find_spec("spyndex")
    assert spec is not None
    assert spec.submodule_search_locations
    expected = np.array(json.loads((Path(spec.submodule_search_locations[0]) / "data" / "S2_10m.json").read_text()))
    with rasterio.open(scene) as dataset:
        np.testing.assert_array_equal(dataset.read(), expected)
        assert dataset.descriptions == BANDS
        assert dataset.dtypes[0] == "uint16"
        assert "MADE UP" in dataset.tags()["NOTICE"]
    assert "MADE UP" in (scene.parent / "README.txt").read_text()


def test_writing_twice_gives_equal_bytes(scene: Path, tmp_path: Path) -> None:
    assert write_tiles_source(tmp_path).read_bytes() == scene.read_bytes()


def test_the_sentinel2_domain_reads_it_with_ten_metre_pixels(scene: Path) -> None:
    (ref,) = sentinel2.discover(str(scene.parent), Select())
    assert isinstance(ref, SourceRef)
    record = sentinel2.read(ref)
    assert record.channels == BANDS
    assert record.spacing == pytest.approx((10.0, 10.0), rel=0.01)
    assert record.scale == (1e-4,) * 4


def test_blocks_of_thirty_pixels_are_ground_cells(scene: Path) -> None:
    with rasterio.open(scene) as dataset:
        boxes = footprints(dataset.crs.to_wkt(), tuple(dataset.transform), chunk_boxes(dataset.shape, (30, 30)))
    grid = CellGrid(cell_m=300.0)
    assert len(set(grid.units(boxes))) == 100
    assert boxes.x[0, 0] == pytest.approx(0.0, abs=1e-6)
    assert boxes.y[0, 1] % 300.0 == pytest.approx(0.0, abs=1e-6)
